"""The published protocol on a small drawn folder in CelebAMask-HQ's layout, with random weights of the right formats."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torch_fidelity
from conftest import assert_close_to_max
from PIL import Image
from sklearn.metrics import jaccard_score
from torch_fidelity import feature_extractor_inceptionv3 as inception_module

from attention import evaluate_real
from attention.errors import UserError
from attention.evaluation import photos as evaluation
from attention.evaluation import real
from attention.evaluation.celeba_mask import PARTS, PUBLISHED_PROMPTS, CelebAMask, labels_of, published_labels
from attention.evaluation.real import (
    distances,
    load_inception,
    macro_jaccard,
    overlap,
    picture_paths,
    pixels_shared,
    read_pictures,
)
from attention.files.published import SHIPPED
from attention.inversion import IRSE50, identity_similarity
from attention.method.defaults import COVERAGE
from attention.method.spatial_attention import threshold_for
from attention.training.runs import load_run
from attention.worlds.drawn.faces import PARTS as DRAWN_PARTS
from attention.worlds.drawn.faces import FaceParams, draw_faces
from attention.worlds.registry import WORLDS

NUMBERS = ("0", "3", "2001")            # the last is the first folder's no longer
SIDES = (128, 256, 128)                 # pictures of mixed sizes
PROMPTS = ("grey hair", "red lipstick", "glasses", "hair and lips")
OWN_LABELS = {"background": (0,), "skin": (1,), "nose": (2,), "glasses": (3,), "eyes": (4, 5), "brows": (6, 7),
              "ears": (8, 9), "mouth": (10,), "lips": (11, 12), "hair": (13,), "earrings": (15,), "neck": (17,),
              "cloth": (18,)}

# --- a small folder as the data set has it

@pytest.fixture(scope="module")
def drawing():
    params = FaceParams.sample(len(NUMBERS), seed=5)
    return draw_faces(replace(params, glasses=np.array([1, 0, 0], np.float32)))


def expected_labels(labels):
    """(S, S) numbers of the data set for those of the renderer; of a pair the left one in the picture comes first."""
    found = np.zeros_like(labels)
    for index, name in enumerate(DRAWN_PARTS):
        ids = OWN_LABELS[name]
        where = labels == index
        found[where] = ids[-1]
        found[:, :64][where[:, :64]] = ids[0]
    return found


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, drawing):
    """photos/3.png ... and CelebAMask-HQ-mask-anno/0/00003_hair.png ...: parts of 512 px, black parts without a file."""
    root = tmp_path_factory.mktemp("dataset")
    (root / "photos").mkdir()
    for number, side, pixels, labels in zip(NUMBERS, SIDES, drawing.images, drawing.labels, strict=True):
        Image.fromarray(pixels).resize((side, side)).save(root / f"photos/{number}.png")
        folder = root / "CelebAMask-HQ-mask-anno" / str(int(number) // 2000)
        folder.mkdir(parents=True, exist_ok=True)
        found = expected_labels(labels).repeat(4, axis=0).repeat(4, axis=1)
        for label in np.unique(found[found > 0]):
            # As in the data set, skin goes on under what is in front of it.
            part = found > 0 if label == 1 else found == label
            Image.fromarray(part.astype(np.uint8) * 255).save(folder / f"{int(number):05d}_{PARTS[label]}.png")
    return root


@pytest.fixture(scope="module")
def inception_file(tmp_path_factory):
    """Every tensor of torch-fidelity's Inception, with random numbers."""
    path = tmp_path_factory.mktemp("inception") / "inception.pth"
    torch.manual_seed(0)
    network = inception_module.FeatureExtractorInceptionV3
    with mock.patch.object(network, "load_state_dict"), mock.patch.object(inception_module.torch, "load"):
        state = network("inception-v3-compat", ["64"], "none").state_dict()
    # torch's own initial weights shrink a signal by the root of 6 at every layer.
    torch.save({name: tensor * 6**0.5 if name.endswith("conv.weight") else tensor for name, tensor in state.items()}, path)
    return path


@pytest.fixture
def early_layers(monkeypatch):
    """Inception's first layers in place of its last: as good for the arithmetic, and a hundredth of the time."""
    monkeypatch.setattr(real, "FID_LAYER", "64")
    monkeypatch.setattr(real, "SCORE_LAYER", "192")


@pytest.fixture
def run(tmp_path):
    """A run folder that holds the shipped editor."""
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(SHIPPED / "editor.safetensors", folder)
    return folder


@pytest.fixture(scope="module")
def shipped():
    """The shipped editor and its world."""
    return load_run(SHIPPED, "cpu")[:2]


def pixels_of(dataset):
    """(3, 3, 128, 128) in [-1, 1], as the evaluation sees the photos, which come in the order 0, 2001, 3."""
    return next(read_pictures(picture_paths(dataset / "photos"), 128, 4, {}))[1]


# --- labels

def test_the_eight_published_prompts_mean_the_labels_of_the_method():
    brows, eyes, lips = (6, 7), (4, 5), (11, 12)
    expected = [(1,), (2,), eyes, brows, (8, 9), (10,), lips, (13,)]
    assert [published_labels(prompt) for prompt in PUBLISHED_PROMPTS] == expected
    ours = [labels_of(prompt) for prompt in PUBLISHED_PROMPTS]          # to us a mouth is its lips too: it may be closed
    assert ours == [*expected[:5], (10, *lips), *expected[6:]]
    assert labels_of("Eyebrows ") == brows and labels_of("wearing a pair of earrings") == (8, 9, 15)
    assert labels_of("a mood") is None


def test_every_prompt_of_both_worlds_has_labels():
    assert not [prompt for name in ("drawn", "ffhq") for prompt in WORLDS[name].prompts if labels_of(prompt) is None]


@pytest.mark.parametrize("root", ("", "CelebAMask-HQ-mask-anno"))
def test_labels_are_those_that_were_drawn_and_missing_parts_are_black(root, dataset, drawing):
    masks = CelebAMask(dataset / root)
    for number, labels in zip(NUMBERS, drawing.labels, strict=True):
        found = masks.labels(number)
        assert found.shape == (512, 512)
        assert np.array_equal(found[::4, ::4], expected_labels(labels))
    assert (masks.labels("0") == 3).any() and not (masks.labels("3") == 3).any()            # glasses


def test_labels_of_other_pictures_are_one_sentence(dataset):
    masks = CelebAMask(dataset)
    with pytest.raises(UserError, match=r"no labels for 2 of 3 pictures \(the first is '7'\).*0/00003_hair\.png"):
        masks.check(["0", "7", "face"])
    with pytest.raises(UserError, match=r"photos has no folder CelebAMask-HQ-mask-anno/0"):
        CelebAMask(dataset / "photos")


def test_a_broken_mask_and_one_of_another_size_are_named(dataset, tmp_path):
    shutil.copytree(dataset / "CelebAMask-HQ-mask-anno", tmp_path / "masks")
    path = tmp_path / "masks/0/00003_hair.png"
    Image.new("L", (256, 256)).save(path)
    with pytest.raises(UserError, match=r"00003_hair\.png has 256 x 256 pixels.*512 x 512"):
        CelebAMask(tmp_path / "masks").labels("3")
    path.write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"00003_hair\.png cannot be read as a mask"):
        CelebAMask(tmp_path / "masks").labels("3")


def test_overlap_counts_pixels():
    gated, part = torch.zeros(3, 1, 4, 4), torch.zeros(3, 8, 8, dtype=torch.bool)
    gated[0, 0, 0:2, 0:2] = 0.9                             # 16 of 64 pixels
    part[0, 0:4, 2:6] = True                                # 16, of which 8 are the same
    part[1, 0, 0] = True
    figures = overlap(gated, part)
    assert figures["iou"].tolist() == pytest.approx([8 / 24, 0, 1])


def test_macro_jaccard_is_scikit_learns_over_the_pixels_of_all_pictures():
    random = np.random.default_rng(0)
    gated = torch.from_numpy(random.random((5, 8, 6, 6)) * (random.random((5, 8, 6, 6)) < 0.3))
    parts = torch.from_numpy(random.random((5, 8, 12, 12)) < np.linspace(0.05, 0.6, 8)[:, None, None])
    parts[:2, 3] = False                                    # pictures that lack a part
    gated[:, 5], parts[:, 5] = 0, False                     # a part of which nothing is anywhere
    shared = {prompt: (0, 0) for prompt in PUBLISHED_PROMPTS}
    for picture in range(5):
        for column, prompt in enumerate(shared):
            counts = pixels_shared(gated[picture, column][None, None], parts[picture, column][None])
            shared[prompt] = tuple(before + int(count) for before, count in zip(shared[prompt], counts, strict=True))
    masks = (gated > 0).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    columns = [tensor.permute(0, 2, 3, 1).reshape(-1, 8).numpy() for tensor in (parts, masks)]
    with pytest.warns(UserWarning, match="no picture has the part of mouths are slightly open"):
        found = macro_jaccard(shared)
    expected = jaccard_score(*columns, average=None, zero_division=0)
    assert list(found["parts"].values()) == pytest.approx(expected.tolist()) and expected[5] == 0
    assert found["macro"] == pytest.approx(jaccard_score(*columns, average="macro", zero_division=0))
    each = np.mean([jaccard_score(*(column.reshape(5, -1, 8)[i] for column in columns), average="macro", zero_division=0)
                    for i in range(5)])
    assert abs(found["macro"] - each) > 0.003               # it is no mean over pictures


# --- pictures

def test_mixed_sizes_are_resized_and_what_is_no_square_picture_is_skipped_and_named(dataset, drawing, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(dataset / "photos", folder)
    (folder / "1.jpg").write_bytes((folder / "0.png").read_bytes()[:2000])
    Image.new("RGB", (128, 100)).save(folder / "4.png")
    (folder / "notes.txt").write_text("no picture by its ending")
    skipped = {}
    with pytest.warns(UserWarning, match=r"1 of the files in \S+ passed over, by the ending no picture: notes\.txt$"):
        paths = picture_paths(folder)
    batches = list(read_pictures(paths, 128, 2, skipped))
    assert [[path.stem for path in paths] for paths, _ in batches] == [["0", "2001"], ["3"]]
    assert set(skipped) == {"1.jpg", "4.png"} and "128 x 100" in skipped["4.png"]
    drawn = torch.from_numpy(drawing.images).permute(0, 3, 1, 2) / 127.5 - 1
    assert_close_to_max(batches[0][1], drawn[[0, 2]], 1e-6)
    assert (batches[1][1][0] - drawn[1]).abs().mean() < 0.02                                # enlarged, and shrunk again


def test_folders_without_any_picture_are_one_sentence(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match=rf"{folder} holds no pictures"):
            picture_paths(folder)
    (tmp_path / "0.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"none of the 1 pictures in .*0\.png cannot be read"):
        list(read_pictures(picture_paths(tmp_path), 128, 2, {}))


# --- distributions

def features(count, seed, shift=0.0):
    random = np.random.default_rng(seed)
    values = random.standard_normal((count, 6)) @ np.diag([1, 2, 3, 1, 1, 0.5]) + shift
    return {"2048": torch.from_numpy(values), "logits_unbiased": torch.from_numpy(random.standard_normal((count, 5)) * 3)}


def frechet(a, b):
    """|m - n|^2 + tr(S + T - 2 (S^1/2 T S^1/2)^1/2), all roots by symmetric eigenvalues, in float64."""
    (m, n), (s, t) = (x.mean(axis=0) for x in (a, b)), (np.cov(x.T) for x in (a, b))
    values, vectors = np.linalg.eigh(s)
    root = vectors @ np.diag(np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ t @ root).clip(0)).sum()
    return ((m - n) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * cross


def kernel_distance(a, b):
    """The unbiased squared MMD of the kernel (x.y / D + 1)^3, pair by pair."""
    def kernel(x, y):
        return (x @ y / len(x) + 1) ** 3

    def within(x):
        return np.mean([kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j])

    return within(a) + within(b) - 2 * np.mean([kernel(x, y) for x in a for y in b])


def test_fid_kid_and_is_are_their_definitions():
    a, b = features(20, 0), features(20, 1, shift=0.7)
    found = distances(a, b)
    left, right = (side["2048"].numpy() for side in (a, b))
    assert found["fid"] == pytest.approx(frechet(left, right), rel=1e-8)
    assert found["kid"] == pytest.approx(kernel_distance(left, right), rel=1e-8)            # every subset is the whole set
    assert found["kid_std"] == pytest.approx(0, abs=1e-9)
    shares = a["logits_unbiased"].softmax(dim=1).numpy()
    divergence = [(p * np.log(p / shares.mean(axis=0))).sum() for p in shares]
    assert found["inception_score"] == pytest.approx(np.exp(np.mean(divergence)), rel=1e-8)


def test_equal_sets_have_fid_zero_and_certain_classes_in_equal_numbers_score_their_number():
    same = features(20, 0)
    same["logits_unbiased"] = 100 * torch.eye(5).repeat(4, 1)
    found = distances(same, same)
    assert found["fid"] == pytest.approx(0, abs=1e-6) and found["kid"] < 0          # being unbiased, it must be below 0
    assert found["inception_score"] == pytest.approx(5)


def test_subsets_and_splits_shrink_to_the_number_of_pictures_and_are_told():
    found = distances(features(30, 0), features(12, 1))
    assert (found["pictures"], found["reference"], found["kid_subset_size"]) == (30, 12, 12)
    assert found["inception_score_splits"] == 1 and found["kid_std"] > 0
    assert distances(features(100, 0), features(12, 1))["inception_score_splits"] == 10
    with pytest.raises(UserError, match=r"1 pictures against 12.*at least 2.*--no_fid"):
        distances(features(1, 0), features(12, 1))


def test_fid_and_kid_of_folders_are_those_of_torch_fidelitys_own_command(inception_file, dataset, tmp_path, early_layers):
    for number, pixels in enumerate(draw_faces(FaceParams.sample(4, seed=8), 64).images):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    inception = load_inception(inception_file, torch.device("cpu"))
    ours = distances(*(inception(next(read_pictures(picture_paths(folder), side, 4, {}))[1])
                       for folder, side in ((tmp_path, 64), (dataset / "photos", 128))))
    # Every picture of torch-fidelity's folders has its own size; the second is the one that we resize.
    same = tmp_path / "same"
    same.mkdir()
    pictures = ((pixels_of(dataset) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    for number, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(same / f"{number}.png")
    theirs = torch_fidelity.calculate_metrics(
        input1=str(tmp_path), input2=str(same), fid=True, kid=True, kid_subset_size=3, feature_layer_fid="64",
        feature_layer_kid="64", feature_extractor_weights_path=str(inception_file), cuda=False, cache=False,
        save_cpu_ram=True, verbose=False)
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-3) and ours["fid"] > 0
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3, abs=1e-7)


def test_inception_is_never_downloaded_and_a_missing_or_other_file_is_one_sentence(tmp_path):
    cpu, name = torch.device("cpu"), real.INCEPTION_WEIGHTS.name
    with mock.patch.object(inception_module, "load_state_dict_from_url", side_effect=AssertionError("asked the network")):
        with pytest.raises(UserError, match=rf"{name} is missing .*attention\.download {name} --folder {tmp_path}$"):
            load_inception(tmp_path / name, cpu)
        torch.save({"fc.weight": torch.zeros(3)}, tmp_path / name)
        with pytest.raises(UserError, match=r"not have the tensors of torch-fidelity's Inception.*attention\.download"):
            load_inception(tmp_path / name, cpu)


def test_inception_gives_the_layers_of_the_published_figures(inception_file):
    found = load_inception(inception_file, torch.device("cpu"))(torch.rand(1, 3, 32, 32))
    assert found["2048"].shape == (1, 2048) and found["logits_unbiased"].shape == (1, 1008)


# --- the whole evaluation

@pytest.fixture
def weights(monkeypatch, tmp_path):
    """Flags of stand-ins for the recogniser and LPIPS: a small random IR-SE body, and a plain mean difference."""
    torch.manual_seed(0)
    recogniser = IRSE50(((16, 3), (16, 4), (24, 14), (32, 3))).requires_grad_(False).eval()
    monkeypatch.setattr(evaluation, "load_recogniser", lambda path: recogniser)
    monkeypatch.setattr(evaluation, "load_lpips", lambda path, device: lambda a, b: (a - b).abs().mean(dim=(1, 2, 3)))
    (tmp_path / "weights").touch()
    return recogniser, ["--arcface", str(tmp_path / "weights"), "--vgg", str(tmp_path / "weights")]


def evaluate(run, dataset, *flags):
    path = evaluate_real.main(["--run", str(run), "--photos", str(dataset / "photos"), "--device", "cpu", *map(str, flags)])
    return json.loads(path.read_text())


def test_a_shipped_editor_is_measured_by_its_name_and_figures_of_other_photos_are_not_replaced(dataset, tmp_path,
                                                                                               monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = ["--run", "drawn", "--prompts", "beard", "--no_fid", "--pictures", "1", "--device", "cpu"]
    path = evaluate_real.main([*flags, "--photos", str(dataset / "photos")])
    assert path == Path("runs/drawn-shipped/real/metrics.json") and json.loads(path.read_text())["pictures"] == 1
    shutil.copytree(dataset / "photos", "others")
    with pytest.raises(UserError, match=r"drawn-shipped/real has metrics\.json, which is of an evaluation of \S+/photos "):
        evaluate_real.main([*flags, "--photos", "others"])
    assert evaluate_real.main([*flags, "--photos", "others", "--results", "found"]) == Path("found/metrics.json")


def test_figures_are_what_a_plain_computation_gives(run, shipped, dataset, weights):
    recogniser, flags = weights
    report = evaluate(run, dataset, "--masks", dataset, "--prompts", ";".join(PROMPTS), "--strength", 0.2, "--no_fid",
                      *flags)
    assert report["pictures"] == 3 and report["skipped"] == {} and report["published_jaccard"] is None
    assert len(report["left_out"]) == 1 and "'hair and lips' is no part" in report["left_out"][0]
    assert [report["prompts"][prompt]["labelled"] for prompt in PROMPTS] == [3, 3, 3, 0]
    assert set(report["prompts"]["hair and lips"]) == {"clip_improved", "clip_gain", "identity_inverted", "identity_photo",
                                                        "labelled"}

    editor, world = shipped
    photos, masks = pixels_of(dataset), CelebAMask(dataset)
    rows = {"grey hair": [], "red lipstick": []}
    for number, photo in zip(("0", "2001", "3"), photos, strict=True):
        source = editor.source(world.invert(photo[None]).w)
        for prompt, ids in (("grey hair", [13]), ("red lipstick", [11, 12])):
            with torch.no_grad():
                text = world.clip.encode_text([prompt])
                edit = editor(source, text, text, 0.2)
                similar = [F.cosine_similarity(world.clip.encode_image(image), text).item()
                           for image in (source.image, edit.image)]
            part = np.isin(masks.labels(number)[::4, ::4], ids)
            grown = np.zeros_like(part)
            for y, x in np.argwhere(part):
                grown[max(0, y - 2):y + 3, max(0, x - 2):x + 3] = True
            mask = (edit.place.gated[0, 0] > 0).numpy()
            mask = mask.repeat(128 // len(mask), axis=0).repeat(128 // len(mask), axis=1)
            here, there = (image.clamp(-1, 1)[0].numpy() / 2 for image in (edit.image, source.image))
            error = {"inverted": (here - there)[:, ~grown], "photo": (here - photo.numpy() / 2)[:, ~grown]}
            mse = {name: np.mean(difference.astype(np.float64) ** 2) for name, difference in error.items()}
            iou = (mask & part).sum() / (mask | part).sum()
            rows[prompt].append({
                "clip_gain": similar[1] - similar[0], "clip_improved": float(similar[1] > similar[0]), "iou": iou,
                "mse_inverted": mse["inverted"], "psnr_inverted": min(80, -10 * np.log10(mse["inverted"])),
                "mse_photo": mse["photo"], "psnr_photo": -10 * np.log10(mse["photo"]),
                "lpips_photo": 2 * np.abs(error["photo"]).sum() / here.size,
                "identity_inverted": identity_similarity(recogniser, edit.image, source.image).item(),
                "identity_photo": identity_similarity(recogniser, edit.image, photo[None]).item()})
    for prompt, faces in rows.items():
        for name in faces[0]:
            expected = np.mean([face[name] for face in faces])
            assert report["prompts"][prompt][name] == pytest.approx(expected, rel=2e-3, abs=2e-5), (prompt, name)
    assert report["mean"]["iou"] == pytest.approx(np.mean([report["prompts"][prompt]["iou"] for prompt in PROMPTS[:3]]))


def test_the_published_jaccard_is_one_figure_of_the_run_and_needs_its_eight_prompts(run, shipped, dataset):
    report = evaluate(run, dataset, "--masks", dataset, "--prompts", "published", "--no_fid", "--pictures", 2)
    editor, world = shipped
    columns = {"true": [], "found": []}
    for number, photo in zip(("0", "2001"), pixels_of(dataset)[:2], strict=True):
        labels = CelebAMask(dataset).labels(number)[::4, ::4]
        columns["true"].append(np.stack([np.isin(labels, published_labels(prompt)) for prompt in PUBLISHED_PROMPTS], -1))
        source, text = editor.source(world.invert(photo[None]).w), world.clip.encode_text(list(PUBLISHED_PROMPTS))
        with torch.no_grad():
            gated = torch.cat([editor.locate(source, where[None], threshold_for(COVERAGE)).gated for where in text])
        masks = F.interpolate(gated, size=128)[:, 0] > 0
        columns["found"].append(masks.permute(1, 2, 0).numpy())
    true, found = (np.concatenate([pixels.reshape(-1, 8) for pixels in part]) for part in columns.values())
    expected = jaccard_score(true, found, average="macro")
    assert report["published_jaccard"]["macro"] == pytest.approx(expected)
    assert f"the mean over the 8 parts): {expected:.3f}" in (run / "real/table.md").read_text()


def test_doing_nothing_wins_the_published_variant_and_only_that(run, shipped, dataset, inception_file, early_layers,
                                                                tmp_path):
    shutil.copytree(dataset / "photos", tmp_path / "real")
    (tmp_path / "real/9.jpg").write_bytes(b"no picture")
    report = evaluate(run, dataset, "--masks", dataset, "--prompts", "grey hair;beard", "--strength", 0, "--inception",
                      inception_file, "--real", tmp_path / "real")
    assert list(report["skipped_real"]) == ["9.jpg"] and report["skipped"] == {}
    edits, floor, published = (report["distances"][name] for name in (
        evaluation.AGAINST_REAL, evaluation.FLOOR, evaluation.PUBLISHED_VARIANT))
    assert (edits["pictures"], edits["reference"], published["reference"]) == (6, 3, 6)
    _, world = shipped
    inception, photos = load_inception(inception_file, world.device), pixels_of(dataset)
    with torch.no_grad():
        inverted = torch.cat([world.picture(world.invert(photo[None]).w) for photo in photos])
    left, right = (inception(pictures)["64"].double().numpy() for pictures in (inverted, photos))
    assert floor["fid"] == pytest.approx(frechet(left, right), rel=1e-3)
    assert edits["fid"] == pytest.approx(frechet(np.tile(left, (2, 1)), right), rel=1e-3)
    assert abs(published["fid"]) < 1e-3 * edits["fid"]
    assert report["mean"]["psnr_inverted"] == pytest.approx(80) and report["mean"]["ssim_inverted"] == pytest.approx(1)
    assert report["mean"]["psnr_photo"] < 40
    assert report["mean"]["clip_improved"] == 0 and report["mean"]["clip_gain"] == 0
    said = (run / "real/table.md").read_text()
    assert "can be won by doing nothing" in said and "biased upwards below 2048" in said
    assert Image.open(run / "real/edits.png").width > 4 * 128


def test_what_lacks_weights_is_left_out_with_the_file_and_the_command(run, dataset, tmp_path):
    report = evaluate(run, dataset, "--prompts", "beard", "--no_fid", "--arcface", tmp_path / "model_ir_se50.pth", "--vgg",
                      tmp_path / "vgg16-397923af.pth", "--pictures", 1, "--where", "chin")
    said = (run / "real/table.md").read_text()
    for name, reason in zip(("model_ir_se50.pth", "vgg16-397923af.pth"), report["left_out"], strict=True):
        assert reason.endswith(f"python -m attention.download {name} --folder {tmp_path}") and reason in said
    assert set(report["mean"]) == {"clip_improved", "clip_gain"} and report["distances"] == {}
    assert report["pictures"] == 1 and report["where"] == "chin"


@pytest.mark.parametrize("flags, words", [
    (["--inception", "nowhere/weights-inception-2015-12-05-6726825d.pth"], ["attention.download weights-inc", "--no_fid"]),
    (["--masks", "{photos}"], ["--masks", "CelebAMask-HQ-mask-anno"]),
    (["--real", "{empty}"], ["holds no pictures"]),
    (["--prompts", " ; "], ["--prompts", "semicolons"]),
    (["--run", "{empty}"], ["editor.safetensors"]),
])
def test_a_mistake_is_one_sentence_and_leaves_nothing_behind(run, dataset, flags, words, tmp_path, inception_file):
    (tmp_path / "empty").mkdir()
    places = {"photos": dataset / "photos", "empty": tmp_path / "empty"}
    with pytest.raises(UserError) as error:
        evaluate(run, dataset, "--inception", inception_file, *(flag.format(**places) for flag in flags))
    assert all(word in str(error.value) for word in words), str(error.value)
    assert not [path for path in (run / "real").glob("*")] and not list((tmp_path / "empty").iterdir())


def test_a_broken_photo_is_counted_and_named_and_an_editor_of_a_world_without_encoder_refused(run, dataset, tmp_path,
                                                                                              monkeypatch, capsys):
    shutil.copytree(dataset / "photos", tmp_path / "photos")
    (tmp_path / "photos/7.png").write_bytes(b"no picture")
    report = evaluate(run, tmp_path, "--prompts", "beard", "--no_fid")
    assert report["pictures"] == 3 and list(report["skipped"]) == ["7.png"]
    assert "1 skipped: 7.png" in (run / "real/table.md").read_text() and "7.png cannot be read" in capsys.readouterr().err
    monkeypatch.setitem(WORLDS, "drawn", replace(WORLDS["drawn"], encoder=None))
    with pytest.raises(UserError, match="the world drawn has no encoder"):
        evaluate(run, tmp_path, "--no_fid")


def test_a_picture_with_broken_labels_is_skipped_and_a_place_without_labels_told(run, dataset, tmp_path, capsys):
    shutil.copytree(dataset, tmp_path / "data")
    (tmp_path / "data/CelebAMask-HQ-mask-anno/0/00003_hair.png").write_bytes(b"no picture")
    report = evaluate(run, tmp_path / "data", "--masks", str(tmp_path / "data"), "--prompts", "beard; wings", "--no_fid")
    assert list(report["skipped"]) == ["3.png"] and "00003_hair.png cannot be read" in capsys.readouterr().err
    assert ["wings" in reason for reason in report["left_out"] if reason.startswith("labels")] == [True]


def test_one_picture_is_refused_for_fid_before_anything_is_computed(run, dataset, tmp_path):
    (tmp_path / "photos").mkdir()
    shutil.copy(next((dataset / "photos").iterdir()), tmp_path / "photos")
    with pytest.raises(UserError, match=r"need at least 2.*--no_fid"):
        evaluate(run, tmp_path)
