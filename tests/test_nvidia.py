"""NVIDIA's network pickles: read without running them, and the same pictures as a plain program of the definitions."""

import collections
import io
import math
import os
import pickle
import sys
import warnings
from types import ModuleType
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close_to_max
from torch import nn

from attention.errors import UserError
from attention.files.nvidia import read_nvidia
from attention.generator import StyleGAN2 as Ours

CHANNELS = {4: 10, 8: 7, 16: 5}
WIDTH = 12
GAIN = np.sqrt(2)       # a numpy number, as the layers of the published program keep


# --- a plain program of the same definitions, whose networks pickle as theirs do

def reconstruct(meta):
    exec(meta["module_src"])            # what the published program does with the text in the file


class EasyDict(dict):
    """Their dictionary with attributes."""


class Network(nn.Module):
    """Pickled as (reconstruct, (meta,)); the `module_src` in it makes a file where it is executed."""

    trap = "raise RuntimeError"

    def __reduce__(self):
        return reconstruct, (dict(type="class", version=6, module_src=self.trap, class_name=type(self).__name__,
                                  state=dict(self.__dict__)),), None


class FullyConnectedLayer(Network):
    def __init__(self, width, out, activation="linear", lr_multiplier=1):
        super().__init__()
        self.activation, self.weight_gain, self.bias_gain = activation, lr_multiplier / np.sqrt(width), lr_multiplier
        self.weight = nn.Parameter(torch.randn(out, width) / lr_multiplier)
        self.bias = nn.Parameter((torch.randn(out) * 0.3 + (activation == "linear")) / lr_multiplier)

    def forward(self, x):
        y = x @ (self.weight * float(self.weight_gain)).T + self.bias * self.bias_gain
        return y if self.activation == "linear" else F.leaky_relu(y, 0.2) * math.sqrt(2)


class SynthesisLayer(Network):
    def __init__(self, width, out, resolution, up=1):
        super().__init__()
        self.up, self.use_noise, self.activation, self.act_gain, self.conv_clamp = up, True, "lrelu", GAIN, None
        self.affine = FullyConnectedLayer(WIDTH, width)
        weight = torch.randn(out, width, 3, 3)
        self.weight = nn.Parameter(weight.to(memory_format=torch.channels_last))       # as theirs in half precision
        self.register_buffer("resample_filter", fir())
        self.register_buffer("noise_const", torch.randn(resolution, resolution))
        self.noise_strength = nn.Parameter(torch.randn([]))
        self.bias = nn.Parameter(torch.randn(out))

    def forward(self, x, w):
        maps = []
        for one, style in zip(x, self.affine(w), strict=True):
            weight = self.weight * style[:, None, None]
            weight = weight / (weight.square().sum(dim=(1, 2, 3), keepdim=True) + 1e-8).sqrt()
            if self.up == 1:
                maps.append(F.conv2d(one[None], weight, padding=1))
            else:                       # the low-pass first, then a true convolution, which turns the weights round
                doubled = resample(one[None], self.resample_filter, before=3, after=2)
                maps.append(F.conv2d(doubled, weight.flip(2, 3)))
        y = torch.cat(maps) + self.noise_const * self.noise_strength + self.bias[:, None, None]
        return F.leaky_relu(y, 0.2) * math.sqrt(2)


class ToRGBLayer(Network):
    def __init__(self, width):
        super().__init__()
        self.affine, self.weight_gain = FullyConnectedLayer(WIDTH, width), 1 / np.sqrt(width)
        self.weight, self.bias = nn.Parameter(torch.randn(3, width, 1, 1)), nn.Parameter(torch.randn(3))

    def forward(self, x, w):
        style = self.affine(w) * float(self.weight_gain)
        return torch.einsum("oi,bi,bihw->bohw", self.weight[:, :, 0, 0], style, x) + self.bias[:, None, None]


class SynthesisBlock(Network):
    def __init__(self, resolution):
        super().__init__()
        self.architecture, out = "skip", CHANNELS[resolution]
        self.register_buffer("resample_filter", fir())
        if resolution == 4:
            self.const = nn.Parameter(torch.randn(out, 4, 4))
        else:
            self.conv0 = SynthesisLayer(CHANNELS[resolution // 2], out, resolution, up=2)
        self.conv1, self.torgb = SynthesisLayer(out, out, resolution), ToRGBLayer(out)

    def forward(self, x, image, rows):
        x = self.const.expand(len(rows[0]), -1, -1, -1) if x is None else self.conv0(x, rows.pop(0))
        x = self.conv1(x, rows.pop(0))
        colours = self.torgb(x, rows[0])                                        # the next block begins with this row
        return x, colours if image is None else resample(image, self.resample_filter, before=2, after=1) + colours


class MappingNetwork(Network):
    def __init__(self, lr_multiplier):
        super().__init__()
        for number in range(3):
            setattr(self, f"fc{number}", FullyConnectedLayer(WIDTH, WIDTH, "lrelu", lr_multiplier))
        self.register_buffer("w_avg", torch.randn(WIDTH))

    def forward(self, z, truncation):
        x = z / (z.square().mean(dim=1, keepdim=True) + 1e-8).sqrt()
        for layer in (self.fc0, self.fc1, self.fc2):
            x = layer(x)
        return self.w_avg + truncation * (x - self.w_avg)


class SynthesisNetwork(Network):
    def __init__(self):
        super().__init__()
        for resolution in CHANNELS:
            setattr(self, f"b{resolution}", SynthesisBlock(resolution))

    def forward(self, rows):
        x = image = None
        for block in self.children():
            x, image = block(x, image, rows)
        return image


class Generator(Network):
    def __init__(self, lr_multiplier=0.01):
        super().__init__()
        self.z_dim, self.c_dim, self.w_dim, self.img_resolution, self.img_channels = WIDTH, 0, WIDTH, 16, 3
        self.mapping, self.synthesis = MappingNetwork(lr_multiplier), SynthesisNetwork()
        self._init_args, self._init_kwargs = (), EasyDict(mapping_kwargs=EasyDict(lr_multiplier=lr_multiplier))


class SynthesisInput(Network):
    """Of StyleGAN3; keeps a numpy array."""

    def __init__(self):
        super().__init__()
        self.size = np.array([20, 20])


def fir():
    """Uneven, so that a filter that is turned round or transposed is seen; sums to one."""
    taps = torch.tensor([[1.0, 2.0, 4.0, 1.0]]).T * torch.tensor([1.0, 3.0, 2.0, 1.0])
    return taps / taps.sum()


def resample(x, taps, before, after):
    """Zeros between samples and around them, then a true convolution with the filter, times 4."""
    stuffed = x.new_zeros(*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    stuffed[:, :, ::2, ::2] = x
    padded = F.pad(stuffed, (before, after, before, after))
    return F.conv2d(padded, taps.flip(0, 1).expand(x.shape[1], 1, 4, 4) * 4, groups=x.shape[1])


@pytest.fixture
def trapped(tmp_path, monkeypatch):
    """Networks that would make the file `executed` if what is in their pickle ran."""
    monkeypatch.setattr(Network, "trap", f"open({str(tmp_path / 'executed')!r}, 'w')")


@pytest.fixture
def generator(trapped):
    return Generator()


def their_modules():
    """The modules that their pickles name, for as long as something is pickled."""
    reconstruct.__module__, reconstruct.__qualname__ = "torch_utils.persistence", "_reconstruct_persistent_obj"
    EasyDict.__module__ = "dnnlib.util"
    modules = {name: ModuleType(name) for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")}
    modules["torch_utils.persistence"]._reconstruct_persistent_obj = reconstruct
    modules["dnnlib.util"].EasyDict = EasyDict
    return patch.dict(sys.modules, modules)


def snapshot(path, g_ema, protocol=None, **others):
    """A file as their training writes it: more networks than the one that is wanted, and settings."""
    content = {"G": SynthesisInput(), "D": ToRGBLayer(4), "G_ema": g_ema, "augment_pipe": None,
               "training_set_kwargs": EasyDict(class_name="training.dataset.ImageFolderDataset", use_labels=False)}
    with their_modules():
        path.write_bytes(pickle.dumps(content | others, protocol))
    return path


# --- the same numbers

@pytest.mark.parametrize(("lr_multiplier", "protocol"), [(0.01, 4), (0.1, 3)])
def test_the_converted_generator_computes_what_the_definitions_say(tmp_path, generator, lr_multiplier, protocol):
    torch.manual_seed(0)
    theirs = Generator(lr_multiplier)
    state = read_nvidia(snapshot(tmp_path / "net.pkl", theirs, protocol))
    mean_w = state.pop("latent_avg")
    with warnings.catch_warnings():
        warnings.simplefilter("error")          # nothing may be missing, noise maps included
        ours = Ours.from_state_dict(state).double()
    theirs, ours.mean_w = theirs.double(), mean_w.double()
    z = torch.randn(2, WIDTH, dtype=torch.float64)
    with torch.no_grad():
        assert_close_to_max(ours.mapping(z), theirs.mapping(z, 1.0), 1e-6)
        assert_close_to_max(ours.mapping(z, 0.6), theirs.mapping(z, 0.6), 1e-6)
        rows = torch.randn(2, ours.n_latent, WIDTH, dtype=torch.float64)          # every layer gets a w of its own
        expected = theirs.synthesis(list(rows.unbind(dim=1)))
        assert expected.shape == (2, 3, 16, 16)
        assert_close_to_max(ours.synthesis(ours.styles(rows)).image, expected, 1e-6)
    assert not (tmp_path / "executed").exists()


def test_published_weights_arrive_unchanged_under_the_published_names(tmp_path, generator):
    state = read_nvidia(snapshot(tmp_path / "net.pkl", generator))
    expected = Ours(16, WIDTH, mapping_layers=3, channels=CHANNELS).state_dict()
    assert {name: value.shape for name, value in state.items()} == (
        {name: value.shape for name, value in expected.items()} | {"latent_avg": (WIDTH,)})
    assert torch.equal(state["convs.2.conv.weight"][0], generator.synthesis.b16.conv0.weight)
    assert torch.equal(state["style.3.weight"], generator.mapping.fc2.weight)
    assert not any(value.requires_grad for value in state.values())


# --- nothing is executed

def test_the_source_in_the_file_would_make_a_file_if_it_ran(tmp_path, generator):
    path = snapshot(tmp_path / "net.pkl", generator)
    read_nvidia(path)
    assert not (tmp_path / "executed").exists()
    with their_modules():
        pickle.loads(path.read_bytes())         # our own file, to see that the trap of these tests is set
    assert (tmp_path / "executed").exists()


class Call:
    """Pickles as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def hostile(kind, made):
    """A call that makes the file `made`, and the name by which a pickle knows it."""
    return {"system": (Call(os.system, f"touch {made}"), r"posix\.system"),
            "eval": (Call(eval, f"open({str(made)!r}, 'w')"), r"builtins\.eval"),
            "open": (Call(open, str(made), "w"), r"io\.open")}[kind]


@pytest.mark.parametrize("kind", ["system", "eval", "open"])
def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path, trapped, kind):
    for place in ("top", "beside", "within", "payload"):
        path = tmp_path / f"{place}_net.pkl"
        name = write_hostile(path, kind, place, tmp_path / "made")
        with pytest.raises(UserError, match=rf"net\.pkl .*{name}") as error:
            read_nvidia(path)
        assert not (tmp_path / "made").exists() and not (tmp_path / "executed").exists(), place
        assert "\n" not in str(error.value)


def write_hostile(path, kind, place, made):
    """A network pickle with a call that makes the file `made`; returns how the error names it."""
    call, name = hostile(kind, made)
    generator = Generator()
    if place == "top":
        path.write_bytes(pickle.dumps(call))
    elif place == "beside":
        snapshot(path, generator, augment_pipe=call)
    elif place == "within":
        generator.mapping.fc1.activation = call
        snapshot(path, generator)
    else:
        payload = io.BytesIO()
        torch.save(call, payload, _use_new_zipfile_serialization=False)
        generator.mapping.fc1.activation = Call(torch.storage._load_from_bytes, payload.getvalue())
        snapshot(path, generator)
        name = "more than numbers"
    return name


def test_a_tensor_that_reaches_beyond_its_storage_is_refused(tmp_path, generator):
    storage = torch.zeros(4).untyped_storage()
    typed = torch.storage.TypedStorage(wrap_storage=storage, dtype=torch.float32, _internal=True)
    generator.mapping.extra = Call(torch._utils._rebuild_tensor_v2, typed, 0, (100,), (1,), False,
                                   collections.OrderedDict())
    with pytest.raises(UserError, match=r"net\.pkl is not a whole network pickle .*out of bounds"):
        read_nvidia(snapshot(tmp_path / "net.pkl", generator))


# --- other files

def test_a_missing_and_a_damaged_file_are_named(tmp_path, generator):
    path = tmp_path / "net.pkl"
    with pytest.raises(UserError, match=r"net\.pkl is missing.*expected"):
        read_nvidia(path)
    content = snapshot(path, generator).read_bytes()
    for damaged in (b"", content[:len(content) // 2], bytes(range(256)) * 20):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"net\.pkl is not a whole network pickle.*expected") as error:
            read_nvidia(path)
        assert "\n" not in str(error.value)


def test_a_pickle_of_something_else_is_refused(tmp_path):
    path = tmp_path / "net.pkl"
    for content, found in (([1, 2], "a list"), ({"k_means": 3}, "k_means"), ({"G_ema": 3}, "G_ema"),
                           ({"G_ema": {"state": {}}}, "G_ema"),
                           ({"G_ema": {"class_name": "Generator", "state": {}}}, "unknown layout")):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(UserError, match=rf"net\.pkl .*{found}.*expected an unconditional StyleGAN2"):
            read_nvidia(path)


def four_pixels(generator):
    generator.img_resolution = 4
    del generator.synthesis.b8, generator.synthesis.b16


def stylegan3(generator):
    for name in list(generator.synthesis._modules):
        delattr(generator.synthesis, name)
    generator.synthesis.input = SynthesisInput()


UNSUPPORTED = {
    r"c_dim 10": lambda g: setattr(g, "c_dim", 10),
    r"img_channels 1": lambda g: setattr(g, "img_channels", 1),
    r"z_dim 8 and w_dim 12": lambda g: setattr(g, "z_dim", 8),
    r"architecture .*'resnet'": lambda g: setattr(g.synthesis.b8, "architecture", "resnet"),
    r"architecture .*'orig'": lambda g: [setattr(block, "architecture", "orig") for block in g.synthesis.children()],
    r"activation .*'relu'": lambda g: setattr(g.synthesis.b8.conv0, "activation", "relu"),
    r"activation .*'linear'": lambda g: setattr(g.mapping.fc2, "activation", "linear"),
    r"without noise": lambda g: setattr(g.synthesis.b16.conv1, "use_noise", False),
    r"StyleGAN3": stylegan3,
    r"parts of the class ToRGBLayer": lambda g: setattr(g.synthesis, "b16", ToRGBLayer(4)),
    r"4 px \(at least 8\)": four_pixels,
    r"lacks synthesis\.b16\.torgb\.bias": lambda g: delattr(g.synthesis.b16.torgb, "bias"),
    r"lacks synthesis\.b8\.": lambda g: delattr(g.synthesis, "b8"),
    r"an unknown synthesis\.b8\.skip\.weight": lambda g: setattr(g.synthesis.b8, "skip", ToRGBLayer(4)),
}


def test_another_kind_of_generator_is_refused_by_what_was_found(tmp_path, trapped):
    for found, change in UNSUPPORTED.items():
        generator = Generator()
        change(generator)
        with pytest.raises(UserError, match=rf"net\.pkl .*{found}.*expected an unconditional StyleGAN2"):
            read_nvidia(snapshot(tmp_path / "net.pkl", generator))
    assert not (tmp_path / "executed").exists()


def test_a_network_without_a_mean_w_gives_none(tmp_path, generator):
    del generator.mapping.w_avg
    state = read_nvidia(snapshot(tmp_path / "net.pkl", generator))
    assert "latent_avg" not in state and "style.1.weight" in state
