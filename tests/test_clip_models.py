"""CLIP: the fixed map to its input, parity with OpenAI's model and tokenizer, the small CLIP and its files."""

import copy
import warnings

import open_clip
import pytest
import torch
from conftest import assert_close_to_max
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from safetensors.torch import save_file

from attention.clip_models import CLIP_MODELS
from attention.clip_models.base import TextImageModel
from attention.clip_models.released import OPENAI_SCALARS, OpenClip, load_clip
from attention.clip_models.tiny import TinyCLIP, WordTokenizer
from attention.errors import UserError
from attention.images import area_resize

WORDS = ("blonde hair", "blue eyes", "big nose")
SMALL = dict(dim=16, image_size=32, width=8, text_width=16, text_heads=2, text_layers=1, context_length=8)


def tiny() -> TinyCLIP:
    torch.manual_seed(0)
    return TinyCLIP(WORDS, **SMALL)


@pytest.fixture(scope="module")
def openai(golden):
    """OpenAI's CLIP at the golden file's sizes, from open_clip's own classes, and the arrays."""
    data = golden("clip_tiny")
    size = {name.removeprefix("config/"): int(value) for name, value in data.items() if name.startswith("config/")}
    model = CLIP(size["embed_dim"],
                 CLIPVisionCfg(layers=size["vision_layers"], width=size["vision_width"], head_width=64,
                               patch_size=size["vision_patch_size"], image_size=size["image_resolution"]),
                 CLIPTextCfg(context_length=size["context_length"], vocab_size=size["vocab_size"],
                             width=size["transformer_width"], heads=size["transformer_heads"],
                             layers=size["transformer_layers"]), quick_gelu=True)
    model.load_state_dict({name.removeprefix("sd/"): value.float() for name, value in data.items()
                           if name.startswith("sd/")})
    return OpenClip(model, tokenize=lambda texts, context_length: data["tokens"][:len(texts)].long()), data


# --- the map to CLIP's input

def test_the_map_to_224_px_is_the_published_one_forward_and_backward(golden):
    data = golden("clip_pre")
    for side in (32, 64, 256):
        x = data[f"s{side}/x"].requires_grad_()
        y = area_resize(x, 224)
        y.backward(data[f"s{side}/grad_y"])
        assert_close_to_max(y, data[f"s{side}/y"], 2e-5)
        assert_close_to_max(x.grad, data[f"s{side}/grad_x"], 1e-4)


def test_a_resized_picture_keeps_its_mean_and_a_flat_one_itself():
    for size, side in ((128, 64), (48, 64), (100, 32), (7, 5)):
        flat, image = torch.full((1, 3, size, size), 0.3), torch.randn(2, 3, size, size)
        torch.testing.assert_close(area_resize(flat, side), torch.full((1, 3, side, side), 0.3))
        torch.testing.assert_close(area_resize(image, side).mean((2, 3)), image.mean((2, 3)), atol=1e-5, rtol=0)
    assert torch.equal(area_resize(image, 7), image)


def test_resizing_is_not_rounded_under_autocast():
    image = torch.randn(1, 3, 64, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = area_resize(image, 32)
    assert torch.equal(rounded, area_resize(image, 32))


def test_resizing_first_used_in_inference_mode_can_be_trained_through_later():
    with torch.inference_mode():
        area_resize(torch.randn(1, 3, 37, 37), 19)
    image = torch.randn(1, 3, 37, 37, requires_grad=True)
    area_resize(image, 19).sum().backward()
    assert image.grad is not None


def test_pictures_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match=r"64x32.*crop"):
        area_resize(torch.zeros(1, 3, 64, 32), 32)


# --- OpenAI's CLIP

def test_features_their_gradient_and_logits_are_openais(openai):
    clip, data = openai
    image = data["image"].clone().requires_grad_()
    features, texts = clip.encode_image(image), clip.encode_text(["", "", ""])
    (features * data["image_features_weight"]).sum().backward()
    assert_close_to_max(features, data["image_features"], 2e-5)
    assert_close_to_max(image.grad, data["grad_image"], 1e-4)
    assert_close_to_max(texts, data["text_features"], 2e-5)
    seen, said = (torch.nn.functional.normalize(rows, dim=1) for rows in (features, texts[:2]))
    assert_close_to_max(clip.model.logit_scale.exp() * seen @ said.T, data["logits_per_image"], 2e-5)


def test_tokens_are_openais(golden):
    data = golden("tokens")
    texts = [text.decode("utf-8") for text in data["texts"].tolist()]
    assert torch.equal(open_clip.tokenize(texts), data["tokens"].long())


def test_a_text_that_is_too_long_ends_with_openais_end_token():
    tokens = open_clip.tokenize(["hair " * 100])
    assert tokens.shape == (1, 77) and tokens[0, -1] == tokens.max() == 49407


def test_a_released_file_gives_the_model_that_it_holds(openai, tmp_path):
    """Only pictures: OpenAI's files imply heads 64 wide, but the golden text side has two in a width of 64."""
    clip, data = openai
    torch.save({name.removeprefix("sd/"): value.half() for name, value in data.items() if name.startswith("sd/")},
               tmp_path / "clip.pt")
    loaded = load_clip(tmp_path / "clip.pt")
    assert (loaded.dim, loaded.image_size) == (clip.dim, clip.image_size)
    assert_close_to_max(loaded.encode_image(data["image"]), data["image_features"], 2e-5)


def test_a_missing_a_damaged_and_a_foreign_released_clip_are_named(tmp_path):
    for name, words in (("none.pt", "not a file"), ("runs/x", "not a file"), ("ViT-Z-99", "nor a CLIP")):
        with pytest.raises(UserError, match=words) as error:
            load_clip(name)
        assert name in str(error.value)
    path = tmp_path / "ViT-B-32.pt"
    for content in (b"", b"PK\x03\x04 cut"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"ViT-B-32\.pt .*cut short"):
            load_clip(path)
    torch.save({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="does not hold OpenAI CLIP weights"):
        load_clip(path)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_an_unknown_program_is_not_run(tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "ViT-B-32.pt"))
    with pytest.raises(UserError, match=r"program.*trust=True"):
        load_clip(tmp_path / "ViT-B-32.pt")


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("half", (True, False))     # OpenAI's archive is in half precision; the golden weights fit in it
def test_a_trusted_archive_gives_the_model_that_it_holds(half, openai, tmp_path):
    clip, data = openai
    model = copy.deepcopy(clip.model)
    model.attn_mask = None                          # as in OpenAI's archive: no mask, three numbers beside the weights
    for number in OPENAI_SCALARS:
        model.__dict__.pop(number, None)
        model.register_buffer(number, torch.tensor(1))
    archive = torch.jit.trace_module(model, {"encode_image": data["image"]})
    (archive.half() if half else archive).save(str(tmp_path / "clip.pt"))
    loaded = load_clip(tmp_path / "clip.pt", trust=True)
    assert loaded.model.text_projection.dtype == torch.float32
    assert_close_to_max(loaded.encode_image(data["image"]), data["image_features"], 2e-5)


def test_another_precision_is_used_only_when_asked_for(openai, tmp_path):
    clip, data = openai
    torch.save(clip.model.state_dict(), tmp_path / "clip.pt")
    loaded = load_clip(tmp_path / "clip.pt", dtype=torch.bfloat16)
    embedded = loaded.encode_image(data["image"])
    assert loaded.model.text_projection.dtype == torch.bfloat16 and embedded.dtype == torch.float32
    error = (embedded - data["image_features"]).abs().max() / data["image_features"].abs().max()
    assert 1e-4 < error < 5e-2              # rounded, and not further off than eight bits allow


def test_float32_weights_of_a_file_are_not_rounded_to_half(openai, tmp_path):
    weights = {name: value.clone() for name, value in openai[0].model.state_dict().items()}
    weights["text_projection"] += 1e-5
    torch.save(weights, tmp_path / "clip.pt")
    assert torch.equal(load_clip(tmp_path / "clip.pt").model.text_projection, weights["text_projection"])


@pytest.mark.parametrize("name, tag, quick_gelu", [("ViT-B/32", "openai", True), ("ViT-B-32", "laion2b_e16", False)])
def test_a_named_model_gets_the_activation_that_its_weights_were_trained_with(name, tag, quick_gelu, openai,
                                                                              monkeypatch):
    """open_clip only warns: its "ViT-B-32" with OpenAI's weights would run with the other activation."""
    asked = []
    monkeypatch.setattr(open_clip, "create_model", lambda *args, **flags: asked.append((args, flags)) or openai[0].model)
    load_clip(name, pretrained=tag)
    (args, flags), = asked
    assert args == ("ViT-B-32", tag) and flags["force_quick_gelu"] is quick_gelu


def test_a_download_that_fails_says_what_to_do_instead(monkeypatch):
    def offline(*args, **flags):
        raise RuntimeError("Failed to download weights")

    monkeypatch.setattr(open_clip, "create_model", offline)
    with pytest.raises(UserError, match=r"ViT-B-32.*pretrained=openai.*give its path"):
        load_clip("ViT-B-32")


# --- one contract for all

def released_file(folder):
    """The tensors of a small CLIP with OpenAI's vocabulary."""
    torch.manual_seed(0)
    clip = CLIP(32, CLIPVisionCfg(layers=1, width=64, head_width=64, patch_size=16, image_size=32),
                CLIPTextCfg(context_length=77, vocab_size=49408, width=64, heads=1, layers=1), quick_gelu=True)
    torch.save(clip.state_dict(), folder / "clip.pt")
    return folder / "clip.pt"


@pytest.mark.filterwarnings("error")
def test_a_file_that_does_not_say_its_activation_is_told_or_asked_for(tmp_path):
    path, images = released_file(tmp_path), torch.rand(1, 3, 32, 32)
    gelu = CLIP_MODELS["released-gelu"](path)
    assert any(isinstance(module, torch.nn.GELU) for module in gelu.modules())
    with pytest.warns(UserWarning, match=r"clip\.pt .*QuickGELU is taken.*released-gelu"):
        quick = CLIP_MODELS["released"](path)
    assert not any(isinstance(module, torch.nn.GELU) for module in quick.modules())
    assert not torch.allclose(gelu.encode_image(images), quick.encode_image(images))
    weights = torch.load(path, weights_only=True)
    numbers = dict(zip(OPENAI_SCALARS, (32, 77, 49408), strict=True))               # as OpenAI's own files have
    torch.save(weights | {name: torch.tensor(number) for name, number in numbers.items()}, path)
    assert torch.equal(CLIP_MODELS["released"](path).encode_image(images), quick.encode_image(images))


def test_a_clip_under_wrappers_and_another_ending_is_read(tmp_path):
    path = released_file(tmp_path)
    weights = torch.load(path, weights_only=True)
    wrapped = {f"module.{name}": value for name, value in weights.items()}
    torch.save({"epoch": 3, "name": "run", "state_dict": wrapped}, path)
    save_file(weights, tmp_path / "weights.bin")
    with pytest.warns(UserWarning, match="QuickGELU"):
        read = [load_clip(file).model.text_projection for file in (path, tmp_path / "weights.bin")]
    assert all(torch.equal(projection, weights["text_projection"]) for projection in read)


def test_a_clip_of_contradicting_sizes_asks_for_no_memory(tmp_path):
    path = released_file(tmp_path)
    weights = torch.load(path, weights_only=True)
    for name, shape in (("positional_embedding", (60_000, 64)), ("ln_final.weight", (60_000,)),
                        ("visual.conv1.weight", (60_000, 3, 1, 1)), ("text_projection", (1, 60_000))):
        torch.save(weights | {name: torch.zeros(shape)}, path)
        with pytest.raises(UserError, match="does not hold OpenAI CLIP weights"):
            load_clip(path)


def tiny_file(folder):
    tiny().save(folder / "clip.safetensors")
    return folder / "clip.safetensors"


# A new kind of CLIP is one more entry here.
FILES = {"released": released_file, "released-gelu": released_file, "tiny": tiny_file}


@pytest.mark.parametrize("kind", CLIP_MODELS)
def test_every_clip_keeps_the_protocol(kind, tmp_path):
    clip = CLIP_MODELS[kind](FILES[kind](tmp_path), False)
    assert isinstance(clip, TextImageModel)
    images = torch.randn(2, 3, 64, 64, requires_grad=True)
    embeddings, texts = clip.encode_image(images), clip.encode_text(["blue eyes", "hair"])
    embeddings.sum().backward()
    assert images.grad.abs().sum() > 0 and not texts.requires_grad
    assert embeddings.shape == texts.shape == (2, clip.dim) and embeddings.dtype == texts.dtype == torch.float32
    torch.testing.assert_close(clip.encode_text(["hair"]), texts[1:])
    assert not any(weight.requires_grad for weight in clip.parameters())
    assert not any(module.training for module in clip.train().modules())
    assert clip.fits("blue eyes") and not clip.fits("hair " * 100)
    assert torch.isfinite(clip.encode_text(["hair " * 100])).all()


# --- the small CLIP

def test_words_are_numbered_between_start_and_end():
    tokenizer = WordTokenizer(WORDS, context_length=6)          # blonde 3, hair 4, blue 5, eyes 6, big 7, nose 8
    assert tokenizer(["Blue, HAIR!"]).tolist() == [[1, 5, 4, 9, 0, 0]]
    assert tokenizer(["green hair"]).tolist() == [[1, 2, 4, 9, 0, 0]]


def test_a_text_that_is_too_long_still_ends_with_the_end():
    tokenizer = WordTokenizer(WORDS, context_length=4)
    assert tokenizer(["big blue nose hair"]).tolist() == [[1, 7, 5, 9]]


def test_unknown_words_are_named_once_each():
    assert WordTokenizer(WORDS).unknown("green hair, Green purple eyes") == ["green", "purple"]


def test_an_unknown_word_is_warned_of_once():
    clip = tiny()
    with pytest.warns(UserWarning, match="'green'"):
        clip.encode_text(["green eyes"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip.encode_text(["green hair"])


def test_a_saved_clip_comes_back_frozen_and_equal(tmp_path):
    clip = tiny().freeze()
    clip.save(tmp_path / "clip.safetensors")
    loaded, image = TinyCLIP.load(tmp_path / "clip.safetensors"), torch.randn(1, 3, 32, 32)
    assert loaded.frozen and loaded.tokenizer.words == clip.tokenizer.words
    assert torch.equal(loaded.encode_image(image), clip.encode_image(image))
    assert torch.equal(loaded.encode_text(["big nose"]), clip.encode_text(["big nose"]))


def test_a_clip_saved_in_half_precision_is_smaller_and_nearly_the_same(tmp_path):
    clip, image = tiny().freeze(), torch.randn(1, 3, 32, 32)
    clip.save(tmp_path / "full.safetensors")
    clip.save(tmp_path / "half.safetensors", dtype=torch.float16)
    full, half = ((tmp_path / f"{name}.safetensors").stat().st_size for name in ("full", "half"))
    loaded = TinyCLIP.load(tmp_path / "half.safetensors")
    assert half < 0.7 * full
    assert_close_to_max(loaded.encode_image(image), clip.encode_image(image), 2e-3)
    assert next(loaded.parameters()).dtype == torch.float32


def test_a_failed_save_leaves_nothing_behind(tmp_path):
    (tmp_path / "clip.safetensors").mkdir()
    with pytest.raises(UserError, match="could not be written"):
        tiny().save(tmp_path / "clip.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["clip.safetensors"]


def test_a_missing_a_cut_and_a_foreign_small_clip_are_named(tmp_path):
    path = tmp_path / "clip.safetensors"

    def refused(words):
        with pytest.raises(UserError, match=words):
            TinyCLIP.load(path)

    refused(r"clip\.safetensors is not a file.*attention\.worlds\.drawn\.build")
    tiny().save(path)
    path.write_bytes(path.read_bytes()[:-100])
    refused("not a complete safetensors file")
    save_file({"x": torch.zeros(1)}, path)
    refused("marked None")
