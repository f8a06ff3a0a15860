"""The two published commands, unchanged but for sizes, on files of the published formats with small random weights."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors import safe_open
from torchvision.models import vgg16
from warm import Program

from attention.files.published import ROOT
from attention.generator import StyleGAN2
from attention.training.captions import read_phrases

pytestmark = pytest.mark.program
SIZE, LAYER = "16", "7"         # published 1024 and 13; layer 7 is the second at 16 px
PHRASES = len(set(read_phrases(ROOT / "celeba-caption/sample")))
CLUSTER = ["--stylegan_size", SIZE, "--channel_multiplier", "2", "--description", "Cluster", "--batch_size", "5", "--step",
           "2", "--attention_layer", LAYER, "--cluster_num", "20"]
TRAIN = ["--multiprocessing-distributed", "--gpu_id", "0,1", "--stylegan_size", SIZE, "--channel_multiplier", "2",
         "--batch_size", "1", "--step", "2", "--save_intermediate_image_every", "1000", "--lambda_ess", "0.03",
         "--lambda_sec", "0.01", "--lambda_id", "0.1", "--lambda_delta", "0.03", "--lr", "0.01", "--attention_layer", LAYER,
         "--description", "narrow eyes", "--use_cluster", "--cluster_layer", LAYER, "--cluster_num", "20",
         "--work_in_stylespace"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A folder with a generator, a CLIP of OpenAI's names and VGG's first layers."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    generator = StyleGAN2(int(SIZE), style_dim=64, mapping_layers=2)
    torch.save({"g_ema": generator.state_dict(), "latent_avg": torch.zeros(64)}, folder / "generator.pt")
    clip = CLIP(32, CLIPVisionCfg(layers=1, width=64, head_width=64, patch_size=16, image_size=32),
                CLIPTextCfg(context_length=77, vocab_size=49408, width=64, heads=1, layers=1), quick_gelu=True)
    torch.save(clip.state_dict(), folder / "ViT-B-32.pt")
    torch.save({f"features.{name}": value for name, value in vgg16().features[:9].state_dict().items()},
               folder / "vgg16-397923af.pth")
    return folder


class Ended(NamedTuple):
    """How a command ended."""

    code: int | None
    out: str
    errors: str


@pytest.fixture(scope="module")
def started(tmp_path_factory, weights):
    """start(script, folder, flags): the package copied aside, the command run in it, how it ended."""
    top = tmp_path_factory.mktemp("top")
    shutil.copytree(ROOT / "attention", top / "attention", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "celeba-caption", top / "celeba-caption")
    environment = {"WHERE2EDIT_WEIGHTS": str(weights), "CUDA_VISIBLE_DEVICES": ""}

    def start(script: str, folder: str, flags: list[str]) -> Ended:
        program = Program.of_script(script, ["--ckpt", str(weights / "generator.pt"), *flags], top / folder, environment,
                                    tmp_path_factory.mktemp("said"))
        out, errors = program.communicate(timeout=300)
        return Ended(program.returncode, out, errors)

    start.top = top
    return start


def test_the_published_commands_run_unchanged_from_their_own_folder(started):
    clustered = started("clustering_feature.py", "attention", CLUSTER)
    assert clustered.code == 0, clustered.errors
    assert clustered.errors.count("--description changes nothing here") == 1
    run = started.top / "attention/runs/ffhq"
    with safe_open(run / "regions.safetensors", "pt") as file:
        assert file.get_tensor("centroids").shape == (20, 512 + 2 * 32)

    trained = started("run_attention.py", "attention", [*TRAIN, "--cluster_path", str(run / "regions.safetensors")])
    assert trained.code == 0, trained.errors
    for flag in ("--use_cluster", "--work_in_stylespace"):
        assert trained.errors.count(f"{flag} changes nothing here") == 1
    corpus = started.top / "celeba-caption/sample"
    assert trained.out.count(f"recipe paper, targets: text; prompts are drawn from {PHRASES} phrases of {corpus}") == 1
    config = json.loads((run / "config.json").read_text())
    assert (config["batch_size"], config["lambda_ess"], config["description"]) == (1, 0.03, "narrow eyes")
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["clip_contrastive"] > 0                 # two prompts in two processes; one alone would always give 0
    assert (run / "editor.safetensors").exists() and (run / "samples/000002.png").exists()


def test_a_single_prompt_is_refused_with_the_reason(started):
    one = [*TRAIN, "--cluster_path", str(started.top / "attention/runs/ffhq/regions.safetensors"), "--gpu_id", "0"]
    done = started("attention/run_attention.py", ".", one)
    assert done.code == 2 and "at least 2" in done.errors and "Traceback" not in done.errors
