"""Files that nobody should have made, and paths that are none: one sentence, soon, in little memory, and nothing is run."""

import argparse
import io
import os
import pickle
import resource
import signal
import time
import warnings
import zipfile

import pytest
import torch
from readers import READERS, read_mapper, rosinality
from safetensors.torch import save_file
from test_reading import odd_paths

from attention.errors import UserError
from attention.files.cluster_pickle import read_cluster_pickle
from attention.files.disk import locked
from attention.files.generator import load_generator
from attention.files.nvidia import read_nvidia
from attention.files.regions import load_regions
from attention.files.safetensors import all_of, packed, write_safetensors
from attention.files.tensors import checked
from attention.files.torch_files import read_torch_file
from attention.generator import StyleGAN2
from attention.inversion import load_e4e, load_recogniser
from attention.inversion.perceptual import RELU2_2, vgg_features
from attention.training.convert import convert, restore

MEGABYTES, SECONDS = 300, 2
MORE_READERS = {"e4e": load_e4e, "recogniser": load_recogniser, "vgg": lambda path: vgg_features(path, RELU2_2),
                "convert": convert, "restore": restore, "nvidia": read_nvidia, "state": read_torch_file}


@pytest.fixture(scope="module")
def state():
    """A generator of 16 px."""
    torch.manual_seed(0)
    generator = StyleGAN2(16, style_dim=8, mapping_layers=2, channels={4: 8, 8: 8, 16: 4})
    return {name: value.contiguous() for name, value in generator.state_dict().items()}


def refused(read, path, words="a"):
    """The one sentence that a file ends in, within SECONDS and MEGABYTES."""
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(UserError, match=words) as error:
        read(path)
    assert time.process_time() - start < SECONDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1000 * MEGABYTES
    message = str(error.value)
    assert message.isprintable() and len(message) < 2000
    return message


# --- paths

def test_every_reader_tells_every_odd_path_in_one_sentence(tmp_path):
    paths = {**odd_paths(tmp_path), "empty": tmp_path / "empty", "shut": tmp_path / "shut"}
    paths["empty"].touch()
    paths["shut"].write_text("x")
    paths["shut"].chmod(0)
    del paths["large"]                                      # a file of some signs, which may be captions
    if os.access(paths["shut"], os.R_OK):
        del paths["shut"]                                   # the tests run as root
    for name, read in {**READERS, **MORE_READERS}.items():
        for kind, path in paths.items():
            if (name, kind) == ("captions.txt", "folder"):
                continue                                    # of captions
            try:
                refused(read, type(tmp_path)(path))
            except BaseException as error:
                raise AssertionError(f"{name} of {kind}") from error


# --- tensors that are no weights

SPOILED = {
    "not a number": lambda x: x * float("nan"), "infinite": lambda x: x + float("inf"), "huge": lambda x: x * 0 + 1e30,
    "whole numbers": lambda x: x.long(), "truth values": lambda x: x > 0, "complex": lambda x: x.to(torch.complex64),
    "one number": lambda x: x.flatten()[0].clone(), "a row": lambda x: x.flatten(), "none": lambda x: x[..., :0],
    "many axes": lambda x: x[(None,) * 5].contiguous()}
TORCH_ONLY = {
    "quantised": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "sparse": lambda x: x.to_sparse(),
    "repeated": lambda x: torch.zeros(()).expand(*x.shape[:-1], 10**10), "a list": lambda x: [0.5],
    "without memory": lambda x: torch.empty(10**10, device="meta")}
PLACES = ("input.input", "style.1.weight", "conv1.conv.modulation.weight", "convs.0.conv.weight", "noises.noise_1")


@pytest.mark.filterwarnings("ignore")
def test_no_generator_is_made_of_tensors_that_are_no_weights(state, tmp_path):
    for place in PLACES:
        for kind, spoil in (SPOILED | TORCH_ONLY).items():
            other = {**state, place: spoil(state[place])}
            torch.save({"g_ema": other}, tmp_path / "a.pt")
            assert place in refused(load_generator, tmp_path / "a.pt", r"a\.pt"), kind
            if kind in SPOILED:
                save_file(other, tmp_path / "a.safetensors")
                assert place in refused(load_generator, tmp_path / "a.safetensors", r"a\.safetensors"), kind


def test_a_small_file_asks_for_no_large_generator(state, tmp_path):
    """Sizes follow from a few tensors; what they ask for is held against what is there."""
    blocks = {f"to_rgbs.{i}.conv.weight": torch.zeros(1, 3, 4, 1, 1) for i in range(100)}
    blocks |= {f"convs.{2 * i}.conv.weight": torch.zeros(1, 4, 4, 3, 3) for i in range(100)}
    few = {name: value for name, value in blocks.items() if int(name.split(".")[1]) < 28}      # 65,536 px: noise of 17 GB
    wide = {f"convs.{i}.conv.weight": torch.zeros(1, 100_000, 1, 1, 1) for i in (0, 2)}
    without_noise = {name: value for name, value in state.items() if "noise_" not in name}
    for more in (blocks, few, wide, {"conv1.conv.modulation.weight": torch.zeros(1, 100_000)}):
        save_file({**without_noise, **more}, tmp_path / "a.safetensors")
        refused(load_generator, tmp_path / "a.safetensors", "these weights")
    mobile = {f"synthesis_layers.{i}.{part}": torch.zeros(4, 4) for i in range(100) for part in ("bias", "depthwise")}
    mobile |= {"synthesis_layers.0.modulation.weight": torch.zeros(4, 4)}
    save_file(mobile, tmp_path / "a.safetensors")
    refused(load_generator, tmp_path / "a.safetensors", "MobileStyleGAN")


def test_packed_weights_come_back_within_a_step_of_their_rows_scale_and_hostile_scales_are_refused(tmp_path):
    path, weights = tmp_path / "small.safetensors", {"a.weight": torch.randn(64, 80) * torch.logspace(-3, 2, 64)[:, None],
                                                     "a.bias": torch.randn(80), "odd.scale": torch.ones(3)}
    write_safetensors(path, packed(weights), {"kind": "small"})
    assert path.stat().st_size < 64 * 80 * 1.4
    found, _ = all_of(path, "again")
    assert set(found) == set(weights) and found["a.weight"].dtype == torch.float32
    step = weights["a.weight"].abs().amax(dim=1, keepdim=True) / 127
    assert ((found["a.weight"] - weights["a.weight"]).abs() <= 0.501 * step).all()
    bytes_alone = {"a": torch.ones(64, 80, dtype=torch.int8)}
    for spoiled in (bytes_alone, {**bytes_alone, "a.scale": torch.ones(3)},
                    {**bytes_alone, "a.scale": torch.full((64,), float("nan"))}):
        write_safetensors(path, spoiled, {})
        with pytest.raises(UserError, match=r"small\.safetensors holds a "):
            all_of(path, "again")


def test_batch_norms_count_but_do_not_vary_below_zero(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 100)
    checked({"n.num_batches_tracked": torch.tensor(3), "n.running_var": torch.zeros(3)}, tmp_path / "a", "")
    for name, value in (("n.running_var", -torch.ones(3)), ("n.num_batches", torch.tensor(3))):
        with pytest.raises(UserError, match=rf"a holds {name}"):
            checked({name: value}, tmp_path / "a", "")


def test_names_in_a_file_cannot_speak_to_the_terminal(state, tmp_path):
    for name in ("\x1b[31mred\x1b[0m", "a\nb", "\u202egnp"):
        torch.save({"g_ema": {**state, name: torch.zeros(1)}}, tmp_path / "a.pt")
        save_file({**state, name: torch.zeros(1)}, tmp_path / "b.safetensors")
        torch.save({name: 3}, tmp_path / "c.pt")
        for path in ("a.pt", "b.safetensors", "c.pt"):
            for read in (load_generator, read_mapper, load_regions, load_recogniser):
                refused(read, tmp_path / path)


# --- files that are more than they look

def pickled(*codes):
    return b"\x80\x04" + b"".join(codes) + b"."


def tower(height):
    """Tuples of the same tuple twice, in one another: 2^height values."""
    return b")" + b"".join(b"\x94h" + bytes([i]) + b"\x86" for i in range(height))


BOMBS = {                                               # each of some hundred bytes
    "a table for the largest number": pickled(b"}r\xff\xff\xff\x7f"),
    "a tower as a key": pickled(b"}", tower(60), b"K\x01s"),
    "a tower in a set": pickled(b"\x8f(", tower(60), b"\x90"),
    "a tower": pickled(b"}\x8c\x05G_ema", tower(60), b"s"),
    "a tower as the name of a storage": pickled(tower(60), b"Q"),
    "a tower in a call": pickled(b"}\x8c\x05g_emaccollections\nOrderedDict\n]", tower(60), b"K\x01\x86a\x85Rs"),
    "many bytes": pickled(b"\x8e", (2**33).to_bytes(8, "little")),
    "a deep one": pickled(b"]" * 20_000, b"a" * 19_999)}


def test_a_pickle_of_some_bytes_takes_neither_time_nor_memory(tmp_path):
    legacy = io.BytesIO()
    torch.save({}, legacy, _use_new_zipfile_serialization=False)
    head = legacy.getvalue()[:legacy.getvalue().index(b"}q\x00.")]
    for kind, content in BOMBS.items():
        (tmp_path / "a.pkl").write_bytes(content)
        (tmp_path / "old.pt").write_bytes(head + content + pickle.dumps([], 2))
        with zipfile.ZipFile(tmp_path / "new.pt", "w") as archive:
            archive.writestr("a/data.pkl", content)
            archive.writestr("a/version", "3\n")
        try:
            for read in (read_nvidia, read_cluster_pickle, load_generator):
                refused(read, tmp_path / "a.pkl")
            for name in ("old.pt", "new.pt"):
                for read in (read_torch_file, load_generator):
                    try:
                        refused(read, tmp_path / name)
                    except BaseException:
                        if read is load_generator:          # an empty dictionary may come of it
                            raise
        except BaseException as error:
            raise AssertionError(kind) from error


def test_what_unpacks_to_gigabytes_is_not_unpacked(tmp_path):
    for name, size in (("a/data/0", 2 * 10**8), ("a/data.pkl", 10**8)):
        with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            with archive.open(name, "w", force_zip64=True) as entry:
                for _ in range(size // 10**7):
                    entry.write(bytes(10**7))
            archive.writestr("a/version", "3\n")
        refused(read_torch_file, tmp_path / "a.pt", "compressed")
        refused(load_generator, tmp_path / "a.pt", "compressed")


def test_a_header_of_gigabytes_is_not_read(tmp_path):
    with (tmp_path / "a.safetensors").open("wb") as file:
        file.write((4 * 10**9).to_bytes(8, "little") + b"{")
        file.truncate(5 * 10**9)                                            # takes no room on the disk
    refused(load_generator, tmp_path / "a.safetensors", "header of 4,000,000,000 bytes")
    (tmp_path / "a.safetensors").write_bytes((10**5).to_bytes(8, "little") + b'{"a":' * 20_000)
    refused(load_generator, tmp_path / "a.safetensors", "not a complete safetensors file")


# --- files of other programs

def test_the_checkpoint_of_rosinalitys_own_training_is_read(state, tmp_path):
    torch.save(rosinality(state), tmp_path / "000100.pt")
    torch.save({"g_ema": state}, tmp_path / "converted.pt")
    assert load_generator(tmp_path / "000100.pt")[1] == load_generator(tmp_path / "converted.pt")[1]


def test_nothing_that_a_checkpoint_keeps_beside_its_weights_is_run(state, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    for content in ({"g_ema": state, "args": Hostile()}, {"g_ema": state, "args": argparse.Namespace(path=Hostile())}):
        torch.save(content, tmp_path / "a.pt")
        refused(load_generator, tmp_path / "a.pt", "mkdir")
    assert not (tmp_path / "made").exists()


def test_the_content_says_what_a_file_is_and_wrappers_do_not_count(state, tmp_path):
    wrapped = {f"module._orig_mod.{name}": value for name, value in state.items()}
    for name in ("a.bin", "a.safetensors", "a.pt", "a.pkl"):
        for content in (state, wrapped):
            save_file(content, tmp_path / "safe")
            torch.save({"g_ema": content}, tmp_path / "torch")
            torch.save(content, tmp_path / "bare")
            torch.save({"g_ema": content}, tmp_path / "old", _use_new_zipfile_serialization=False)
            for kind in ("safe", "torch", "bare", "old"):
                (tmp_path / kind).rename(tmp_path / name)
                with warnings.catch_warnings():
                    warnings.simplefilter("error")
                    generator, _ = load_generator(tmp_path / name)
                assert torch.equal(generator.constant, state["input.input"]), (name, kind)


# --- writing

def test_two_processes_do_not_make_one_file_and_a_killed_one_holds_no_lock(tmp_path):
    path = tmp_path / "a"
    with locked(path), pytest.raises(UserError, match="a is being made by another process"), locked(path):
        pass
    assert not list(tmp_path.iterdir())
    reader, writer = os.pipe()
    if not (child := os.fork()):
        with locked(tmp_path / "a"):
            os.write(writer, b"x")
            signal.pause()
    os.read(reader, 1)
    with pytest.raises(UserError, match="another process"), locked(tmp_path / "a"):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with locked(tmp_path / "a"):
        pass
    assert not list(tmp_path.iterdir())
