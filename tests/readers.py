"""Every reader of files that somebody else may have made, and a small whole file for each."""

import argparse
import json
import pickle

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from test_clip_models import released_file, tiny_file
from test_nvidia import Generator, snapshot
from tiny import tiny_editor

from attention.clip_models.released import load_clip
from attention.clip_models.tiny import TinyCLIP
from attention.editing.photo import read_landmarks, read_photo
from attention.editing.recipes import RECIPE_KEY, read_recipe
from attention.evaluation.celeba_mask import _read as read_label
from attention.files.authors import TrainedParts, from_released, read_released, to_released
from attention.files.cluster_pickle import read_cluster_pickle
from attention.files.generator import load_generator
from attention.files.regions import load_regions, save_regions
from attention.files.safetensors import read_safetensors, write_safetensors
from attention.files.torch_files import read_torch_file
from attention.training.captions import read_phrases
from attention.worlds.toml import read_toml

PICTURES = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
EXAMPLE = """generator = "cars.pt"
prompts = ["a red car", "a yellow car"]
truncation = 0.7
encoder = { kind = "e4e", source = "e4e.pt" }
[settings]
attention_layer = 13
lambda_id = 0.5
"""


def picture_of(path):
    generator, _ = load_generator(path)
    with torch.no_grad():
        image = generator.picture(generator.styles(generator.mapping(torch.ones(1, generator.style_dim), truncation=0.7)))
    assert image.isfinite().all(), "a picture that is not finite"


def read_clip(path):
    clip = TinyCLIP.load(path)
    for embedded in (clip.encode_image(torch.zeros(1, 3, 32, 32)), clip.encode_text(["blue eyes"])):
        assert embedded.isfinite().all(), "an embedding that is not finite"


def read_editor(path):
    read_safetensors(path, "where2edit editor", "python -m attention.run_attention")


def read_mapper(path):
    from_released(read_released(path), path)


# Name of a small whole file -> what reads it.
READERS = {
    "generator.pt": picture_of, "generator.safetensors": picture_of, "train.pt": picture_of, "network.pkl": picture_of,
    "regions.safetensors": load_regions, "editor.safetensors": read_editor, "mapper.pt": read_mapper,
    "k_means.pkl": read_cluster_pickle, "clip.pt": load_clip, "clip.safetensors": read_clip,
    "checkpoint.pt": read_torch_file, "world.toml": read_toml, "landmarks.json": read_landmarks,
    "landmarks.txt": read_landmarks, "captions.txt": lambda path: list(read_phrases(path)),
    "raw.json": lambda path: list(read_phrases(path)), "recipe.png": read_recipe, "label.png": read_label,
    **{f"picture.{kind.lower()}": read_photo for kind in PICTURES}}


def write_all(folder):
    """Write the small whole files of READERS."""
    editor = tiny_editor()
    state = {name: value.detach() for name, value in editor.generator.state_dict().items()}
    torch.save({"g_ema": state, "latent_avg": torch.zeros(16)}, folder / "generator.pt")
    write_safetensors(folder / "generator.safetensors", state, {})
    torch.save(rosinality(state), folder / "train.pt")
    snapshot(folder / "network.pkl", Generator())
    save_regions(editor.regions, folder / "regions.safetensors")
    write_safetensors(folder / "editor.safetensors", editor.state_dict(), {
        "kind": "where2edit editor", "config": json.dumps({"domain": "ffhq"}), "generator_hash": "0" * 16,
        "regions": json.dumps(editor.regions.metadata)})
    parts = TrainedParts([16, 16, 16, 8], 8, text_dim=8, hidden=8, features=4)
    torch.save(to_released(parts, torch.zeros(5, 18)), folder / "mapper.pt")
    (folder / "k_means.pkl").write_bytes(pickle.dumps(torch.zeros(5, 20)))
    released_file(folder)
    tiny_file(folder)
    torch.save({"editor": editor.state_dict(), "step": 3, "config": {"seed": 1}}, folder / "checkpoint.pt")
    (folder / "world.toml").write_text(EXAMPLE)
    (folder / "landmarks.json").write_text(json.dumps([[i + 0.5, 2.0 * i] for i in range(68)]))
    (folder / "landmarks.txt").write_text("\n".join(f"{i} {i + 1}" for i in range(5)))
    (folder / "captions.txt").write_text("blonde hair, big nose\nshe has blue eyes\n")
    (folder / "raw.json").write_text(json.dumps([{"description": "blonde hair"}, {"descriptions": [{"text": "big nose"}]}]))
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    said = PngImagePlugin.PngInfo()
    said.add_text(RECIPE_KEY, json.dumps({"version": 1, "changes": [{"what": "blonde hair"}]}))
    Image.fromarray(pixels).save(folder / "recipe.png", pnginfo=said)
    Image.fromarray(pixels[..., 0]).save(folder / "label.png")
    for kind in PICTURES:
        Image.fromarray(pixels).save(folder / f"picture.{kind.lower()}", format=kind)


def rosinality(state):
    """What rosinality's train.py saves: two generators, a discriminator, optimisers, options and a numpy number."""
    options = argparse.Namespace(path="ffhq", size=32, lr=np.float64(0.002), r1=10, distributed=False, local_rank=0)
    optimiser = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.002}]}
    return {"g": state, "d": {"convs.0.0.weight": torch.zeros(3)}, "g_ema": state, "g_optim": optimiser,
            "d_optim": optimiser, "args": options, "ada_aug_p": np.float32(0)}
