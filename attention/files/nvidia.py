"""StyleGAN2 generators from the network pickles (.pkl) of NVIDIA's stylegan2-ada-pytorch and stylegan3 programs.

Such a pickle carries the source of its classes, and the published program runs it. Nothing is run here: every name in the
file is looked up in a short table of stand-ins, a network becomes a plain dictionary of its attributes, and a name
outside of the table ends the reading.
"""

import io
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from attention.errors import UserError
from attention.files.pickles import Ignored, InertUnpickler, Table, check_torch_file, is_torch_file, plain_set
from attention.files.reading import readable, shown
from attention.files.safetensors import is_safetensors
from attention.files.tensors import checked

LR_MUL = 0.01           # learning rate factor of the mapping network that StyleGAN2.from_state_dict assumes
UP_GAIN = 4             # our filters make up for the zeros of a doubling, theirs sum to one
SAME, LEAD, MAP, COLOUR = (...,), (None, ...), (None, None, ...), (None, ..., None, None)     # where axes of length 1 join
SUPPORTED = ("expected an unconditional StyleGAN2 for RGB pictures, such as ffhq.pkl of stylegan2-ada-pytorch or what "
             "stylegan3's train.py writes with --cfg=stylegan2")


def read_nvidia(path: Path) -> dict[str, Tensor]:
    """The generator G_ema of a network pickle as a state dict under the published names; nothing is executed.

    `StyleGAN2.from_state_dict` takes the result strictly once `latent_avg` (style_dim,), the network's w_avg, is taken
    out. No weight is flipped: their up-convolution is a true convolution of the map with zeros between its samples,
    which is what a transposed convolution computes. Two things differ from NVIDIA's program:
    - Their demodulation normalises the weights as stored, ours after the factor 1 / sqrt(fan_in), as the first StyleGAN2
      did. The factor cancels but for the epsilon of 1e-8, which weighs fan_in times more here: for weights of unit
      variance, as training starts with, the maps shrink by 5e-9 of their value, below the precision of float32.
    - A network with conv_clamp (256 where it was trained in half precision, in which it then also runs on a GPU) cuts
      off activations beyond that value. Ours does not, so pictures that reach it differ.

    Args:
        path: a pickle of {"G_ema": network, ...}, of that program's persistence layout.
    Returns:
        Tensors on the CPU in the dtype of the file; the mapping network's are rescaled to `LR_MUL` where it had another.
    Raises:
        UserError: the file is missing, cut short, names anything beyond tensors and networks, or holds another kind of
            generator: StyleGAN3, conditional, not RGB, without skip connections or noise, z and w of different widths.
    Source: Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data"; its public file layout.
    """
    path = Path(path)
    generator = _inert_generator(path)
    try:
        problems = [f"G_ema has {found}" for found in _unsupported(generator)]
        if not problems:
            tensors, plan = _tensors(generator), list(_plan(generator))
            known = {theirs for theirs, *_ in plan}
            tensors = checked(tensors, path, SUPPORTED)
            problems = [f"G_ema lacks {name}" for name in sorted(known - tensors.keys())]
            problems += [f"G_ema has an unknown {name}" for name in sorted(tensors.keys() - known)
                         if not name.endswith(".resample_filter")]               # layers that do not resample have one
    except UserError:
        raise
    except Exception as error:          # the dictionaries may hold anything anywhere
        problems = [f"G_ema has an unknown layout ({type(error).__name__}: {shown(error, 80)})"]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise UserError(f"{path} holds another kind of generator: {shown(', '.join(problems[:4]), 1000)}{more}; "
                        f"{SUPPORTED}")
    return {ours: tensors[theirs][axes] * factor for theirs, ours, axes, factor in plan}


# --- reading without running

# Names in a file -> what stands for them; "_name" is a method of the unpickler.
STAND_INS = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): Table,     # a network: {"class_name", "state", ...}
    ("dnnlib.util", "EasyDict"): Table,
    ("collections", "OrderedDict"): Table,
    ("builtins", "set"): plain_set,
    ("torch.storage", "_load_from_bytes"): "_storage",
    ("torch._utils", "_rebuild_tensor_v2"): "_tensor",
    ("torch._utils", "_rebuild_parameter"): "_parameter",
    ("numpy", "dtype"): Ignored,
    ("numpy", "ndarray"): Ignored,
    **{(module, name): Ignored for module in ("numpy.core.multiarray", "numpy._core.multiarray")
       for name in ("scalar", "_reconstruct")},
}


class _NetworkUnpickler(InertUnpickler):
    """Builds plain dictionaries and tensors; every other name in the file is refused."""

    def __init__(self, file: BinaryIO, path: Path):
        super().__init__(file)
        self.path = path
        self._ignored = type("Ignored", (Ignored,), {})        # of this file alone: it too may get attributes

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in STAND_INS:
            name = shown(f"{module}.{name}", 80)
            raise UserError(f"{self.path} asks for {name}, which is no part of a network pickle of "
                            f"stylegan2-ada-pytorch or stylegan3 and was not run; {SUPPORTED} "
                            "(their legacy.py converts the older TensorFlow pickles)")
        stand_in = STAND_INS[module, name]
        if stand_in is Ignored:
            return self._ignored
        # Bound methods: a pickle may set attributes of what it is given, and these have none to set.
        return getattr(self, stand_in) if isinstance(stand_in, str) else stand_in

    def _storage(self, payload: bytes) -> torch.storage.TypedStorage:
        """The numbers under a tensor: a torch file of their own within the pickle."""
        try:
            check_torch_file(io.BytesIO(payload), len(payload))
            return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        except Exception as error:      # torch and pickle each raise their own kinds, with advice that is wrong here
            raise pickle.UnpicklingError("the storage of a tensor is damaged or holds more than numbers") from error

    def _tensor(self, storage: torch.storage.TypedStorage, offset: int, size: tuple, stride: tuple, *_: Any) -> Tensor:
        # as_strided refuses to leave the storage; set_ with a size would grow it and show whatever lies in that memory.
        return torch.empty(0, dtype=storage.dtype).set_(storage).as_strided(size, stride, offset)

    def _parameter(self, tensor: Tensor, *_: Any) -> Tensor:
        return tensor


def _inert_generator(path: Path) -> dict:
    """The network G_ema of a pickle as a dictionary with "class_name" and "state"."""
    if not os.path.exists(path):
        raise UserError(f"{path} is missing; {SUPPORTED}")
    readable(path, "a network pickle")
    try:
        with path.open("rb") as file:
            content = _NetworkUnpickler(file, path).load()
    except UserError:
        raise
    except Exception as error:          # a damaged pickle can raise nearly anything
        reason = shown((str(error) or type(error).__name__).splitlines()[0], 120)
        raise UserError(f"{path} is not a whole network pickle ({reason}); download it again; {SUPPORTED}") from error
    generator = content.get("G_ema") if isinstance(content, dict) else None
    if not isinstance(generator, dict) or not {"class_name", "state"} <= generator.keys():
        held = ", ".join(map(str, list(content)[:4])) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise UserError(f"{path} has no network G_ema (it holds: {shown(held, 120)}); {SUPPORTED}")
    return generator


def is_pickle(path: Path) -> bool:
    """Whether a file is a pickle of its own, not a torch file, which begins with one."""
    with path.open("rb") as file:
        pickled = file.read(1) == pickle.PROTO
    return (pickled or path.suffix == ".pkl") and not is_torch_file(path) and not is_safetensors(path)


# --- their layout

def _children(module: dict) -> dict[str, dict]:
    return module["state"]["_modules"]


def _tensors(module: dict, prefix: str = "") -> dict[str, Tensor]:
    """Parameters and buffers of a module and of all within it, by their dotted names."""
    tensors = {prefix + name: tensor for part in ("_parameters", "_buffers")
               for name, tensor in module["state"][part].items() if isinstance(tensor, Tensor)}
    for name, child in _children(module).items():
        tensors |= _tensors(child, f"{prefix}{name}.")
    return tensors


def _unsupported(generator: dict) -> list[str]:
    """What their generator has and ours lacks, in words."""
    state, networks = generator["state"], _children(generator)
    blocks = _children(networks["synthesis"])
    kinds = {block["class_name"] for block in blocks.values()} | {generator["class_name"]}
    if others := kinds - {"Generator", "SynthesisBlock"}:
        hint = " (a StyleGAN3 network)" if "SynthesisInput" in others else ""
        return [f"parts of the class {', '.join(sorted(others))}{hint}"]
    convs = [layer["state"] for block in blocks.values() for name, layer in _children(block).items() if "conv" in name]
    layers = [layer["state"] for name, layer in _children(networks["mapping"]).items() if name.startswith("fc")]
    activations = {layer["activation"] for layer in convs + layers}
    architectures = {block["state"]["architecture"] for block in blocks.values()}
    return [words for words, wrong in [
        (f"c_dim {state['c_dim']} (a conditional network)", state["c_dim"] != 0),
        (f"img_channels {state['img_channels']}", state["img_channels"] != 3),
        (f"z_dim {state['z_dim']} and w_dim {state['w_dim']} (they must be equal)", state["z_dim"] != state["w_dim"]),
        (f"a picture of {state['img_resolution']} px (at least 8)", len(blocks) < 2),
        (f"the architecture {', '.join(sorted(map(repr, architectures)))} ('skip' is needed)", architectures != {"skip"}),
        (f"the activation {', '.join(sorted(map(repr, activations)))} ('lrelu' is needed)", activations != {"lrelu"}),
        ("layers without noise", not all(layer["use_noise"] for layer in convs)),
    ] if wrong]


def _plan(generator: dict) -> Iterator[tuple[str, str, tuple, float]]:
    """(their name, our name, index that adds axes of length 1, factor) of every tensor that is taken over."""
    networks = _children(generator)
    layers = _children(networks["mapping"])
    for number in range(len(layers)):
        factor = float(layers[f"fc{number}"]["state"]["bias_gain"]) / LR_MUL            # exactly 1 for the published 0.01
        for part in ("weight", "bias"):
            yield f"mapping.fc{number}.{part}", f"style.{number + 1}.{part}", SAME, factor
    if "w_avg" in networks["mapping"]["state"]["_buffers"]:
        yield "mapping.w_avg", "latent_avg", SAME, 1
    yield "synthesis.b4.const", "input.input", LEAD, 1
    yield from _conv_plan("synthesis.b4.conv1", "conv1", 0)
    yield from _rgb_plan("synthesis.b4.torgb", "to_rgb1")
    for block in range(len(_children(networks["synthesis"])) - 1):
        theirs, up, rgb = f"synthesis.b{8 * 2**block}", f"convs.{2 * block}", f"to_rgbs.{block}"
        yield from _conv_plan(f"{theirs}.conv0", up, 2 * block + 1)
        yield f"{theirs}.conv0.resample_filter", f"{up}.conv.blur.kernel", SAME, UP_GAIN
        yield from _conv_plan(f"{theirs}.conv1", f"convs.{2 * block + 1}", 2 * block + 2)
        yield from _rgb_plan(f"{theirs}.torgb", rgb)
        yield f"{theirs}.resample_filter", f"{rgb}.upsample.kernel", SAME, UP_GAIN


def _conv_plan(theirs: str, ours: str, number: int) -> Iterator[tuple[str, str, tuple, float]]:
    yield from _modulated_plan(theirs, ours)
    yield f"{theirs}.noise_strength", f"{ours}.noise.weight", LEAD, 1
    yield f"{theirs}.noise_const", f"noises.noise_{number}", MAP, 1
    yield f"{theirs}.bias", f"{ours}.activate.bias", SAME, 1


def _rgb_plan(theirs: str, ours: str) -> Iterator[tuple[str, str, tuple, float]]:
    yield from _modulated_plan(theirs, ours)
    yield f"{theirs}.bias", f"{ours}.bias", COLOUR, 1


def _modulated_plan(theirs: str, ours: str) -> Iterator[tuple[str, str, tuple, float]]:
    yield f"{theirs}.weight", f"{ours}.conv.weight", LEAD, 1
    for part in ("weight", "bias"):
        yield f"{theirs}.affine.{part}", f"{ours}.conv.modulation.{part}", SAME, 1
