"""The measures of edits of drawn faces, against closed forms, naive loops and edits that the renderer makes exactly."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from attention.clip_models.tiny import TinyCLIP
from attention.evaluation.metrics import (
    MARGIN,
    Asked,
    clip_gain,
    collateral,
    grow,
    iou,
    locality,
    means,
    measure,
    success,
    sweep_figure,
    table,
)
from attention.files.published import SHIPPED
from attention.images import to_image
from attention.worlds.drawn.concepts import BY_PHRASE, CONCEPTS
from attention.worlds.drawn.faces import FaceParams, draw_faces
from attention.worlds.drawn.truth import SAME_FACE, DrawnFaces, DrawnTruth, SeenFaces

FACES = 18              # more than are measured at once
TRUTH = DrawnTruth(torch.device("cpu"))


@pytest.fixture(scope="module")
def clip():
    return TinyCLIP.load(SHIPPED / "clip.safetensors")


def asked(params: FaceParams, prompt: str) -> Asked:
    return Asked.of(TRUTH, DrawnFaces(params), prompt)


@pytest.fixture(scope="module")
def params():
    return FaceParams.sample(FACES, seed=11)


@pytest.fixture(scope="module")
def before(params):
    return to_image(draw_faces(params).images)


def random_pictures(count: int, side: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def square(side: int) -> torch.Tensor:
    """(2, side, side) bool: everything but a square in the middle that touches no edge."""
    keep = torch.ones(2, side, side, dtype=torch.bool)
    keep[:, side // 3:side // 2, side // 3:side // 2] = False
    return keep


# --- on the pixels that should not change

def test_a_constant_offset_has_the_closed_form_of_every_measure():
    reference, everywhere = torch.zeros(2, 3, 24, 24), torch.ones(2, 24, 24, dtype=torch.bool)
    for keep in (everywhere, square(24)):
        figures = locality(reference + 0.2, reference, keep)                            # 0.1 of pixels in [0, 1]
        for name, expected in (("mse", 0.01), ("psnr", 20), ("largest", 0.1)):
            torch.testing.assert_close(figures[name], torch.full((2,), float(expected)))
    # Flat pictures have no variance: SSIM is its luminance term, of greys 0.5 and 0.6.
    expected = (2 * 0.5 * 0.6 + 0.01**2) / (0.5**2 + 0.6**2 + 0.01**2)
    ssim = locality(reference + 0.2, reference, everywhere)["ssim"]
    torch.testing.assert_close(ssim, torch.full((2,), expected), rtol=0, atol=1e-5)


def test_whatever_happens_inside_leaks_into_no_measure_of_the_outside():
    reference, keep = random_pictures(2, 24, 0), square(24)
    edited = torch.where(keep[:, None], reference, random_pictures(2, 24, 1))
    figures = locality(edited, reference, keep, lambda a, b: (a - b).abs().mean(dim=(1, 2, 3)))
    for name, expected in (("mse", 0), ("psnr", 80), ("largest", 0), ("lpips", 0), ("ssim", 1)):
        torch.testing.assert_close(figures[name], torch.full((2,), float(expected)), rtol=0, atol=1e-6)


def test_ssim_outside_equals_a_naive_loop_in_float64():
    reference, keep = random_pictures(2, 14, 2), square(14)
    edited = (reference + 0.3 * random_pictures(2, 14, 3)).clamp(-1, 1)
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets[:, None]**2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()
    for face in range(2):
        pasted = torch.where(keep[face], edited[face], reference[face])
        x, y = (np.pad((p.double().numpy() + 1) / 2, ((0, 0), (5, 5), (5, 5)), mode="reflect")
                for p in (pasted, reference[face]))
        values = []
        for row, column in keep[face].nonzero().tolist():
            for channel in range(3):
                a, b = (p[channel, row:row + 11, column:column + 11] for p in (x, y))
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                spread_a, spread_b = (window * (a - mean_a)**2).sum(), (window * (b - mean_b)**2).sum()
                together = (window * (a - mean_a) * (b - mean_b)).sum()
                values.append((2 * mean_a * mean_b + 1e-4) * (2 * together + 9e-4)
                              / ((mean_a**2 + mean_b**2 + 1e-4) * (spread_a + spread_b + 9e-4)))
        assert abs(float(locality(edited, reference, keep)["ssim"][face]) - np.mean(values)) < 2e-5


def test_lpips_sees_the_edit_with_its_inside_taken_from_the_reference():
    reference, edited, keep = random_pictures(2, 16, 4), random_pictures(2, 16, 5), square(16)
    figures = locality(edited, reference, keep, lambda a, b: (a - b).abs().sum(dim=(1, 2, 3)))
    torch.testing.assert_close(figures["lpips"], ((edited - reference).abs() * keep[:, None]).sum(dim=(1, 2, 3)))


def test_locality_passes_over_colours_that_no_screen_shows():
    reference = torch.ones(1, 3, 12, 12)
    assert float(locality(reference + 0.5, reference, torch.ones(1, 12, 12, dtype=torch.bool))["largest"]) == 0


def test_a_picture_without_outside_has_no_figure():
    figures = locality(torch.zeros(1, 3, 12, 12), torch.ones(1, 3, 12, 12), torch.zeros(1, 12, 12, dtype=torch.bool))
    assert all(torch.isnan(values).all() for values in figures.values())


# --- what the reader sees

def changed(params: FaceParams, **values: float) -> FaceParams:
    """The faces with some fields set, for every face, to a number."""
    return replace(params, **{name: np.full(len(params), value, np.float32) for name, value in values.items()})


def test_success_equals_a_naive_loop_over_the_faces_that_lacked_it(params):
    after = FaceParams.sample(FACES, seed=12)
    before = replace(params, smile=np.where(np.arange(FACES) == 3, 1, params.smile))     # the reader sees a smile too many
    for concept in CONCEPTS:
        lacked = [i for i, truth in enumerate(concept.truth(params)) if truth == 0 and not concept.seen_in(before)[i]]
        gained = [i for i in lacked if concept.seen_in(after)[i]]
        prompt = Asked(concept.phrase, DrawnFaces(params), TRUTH, torch.empty(0))         # its pixels play no part
        figures = success(prompt, SeenFaces(before), SeenFaces(after))
        assert figures["faces"] == len(lacked)
        assert figures["success"] == (pytest.approx(len(gained) / len(lacked)) if lacked else None)


def test_success_is_unknown_where_every_face_has_the_attribute_already(params):
    have = changed(params, glasses=1.0)
    assert success(asked(have, "glasses"), SeenFaces(have), SeenFaces(have)) == {"success": None, "faces": 0}


def test_collateral_equals_a_naive_loop(params):
    after, shares = FaceParams.sample(FACES, seed=13), []
    for i in range(FACES):
        face, edit = params.take(slice(i, i + 1)), after.take(slice(i, i + 1))
        counted = [other for other in CONCEPTS if other.attribute != "eye_colour" and other.truth(face)[0] in (0, 1)]
        shares.append(sum(other.seen_in(face)[0] != other.seen_in(edit)[0] for other in counted) / len(counted))
    assert collateral(asked(params, "blue eyes"), SeenFaces(params), SeenFaces(after)) == pytest.approx(np.mean(shares))


def test_collateral_passes_over_what_was_asked_for_and_over_matters_of_taste(params):
    other = replace(params, glasses=1 - params.glasses)
    assert collateral(asked(params, "glasses"), SeenFaces(params), SeenFaces(other)) == 0
    undecided, flipped, turned = changed(params, smile=0.45), changed(params, smile=0.35), BY_PHRASE["frowning"]
    assert (turned.seen_in(undecided) != turned.seen_in(flipped)).all() and np.isnan(turned.truth(undecided)).all()
    assert collateral(asked(undecided, "red hair"), SeenFaces(undecided), SeenFaces(flipped)) == 0


def test_a_face_stays_the_same_to_a_bound_whatever_a_prompt_may_change(params):
    before = changed(params, position_x=0.5, face_height=0.5)
    for step, expected in ((0.99 * SAME_FACE, True), (1.01 * SAME_FACE, False)):
        for moved in (changed(before, position_x=0.5 - step), changed(before, face_height=0.5 + step)):
            assert (SeenFaces(before).same_face(SeenFaces(moved)) == expected).all()
    other, kept = FaceParams.sample(FACES, seed=14), ("position_x", "position_y", "face_width", "face_height")
    after = replace(other, **{name: getattr(params, name) for name in kept})
    assert SeenFaces(params).same_face(SeenFaces(after)).all()


def test_clip_gain_is_the_rise_of_the_cosine():
    class Clip:
        def encode_image(self, images):
            return images[:, :2, 0, 0] * 7

        def encode_text(self, texts):
            assert texts == ["red hair"]
            return torch.tensor([[3.0, 0.0]])

    before, after = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    before[:, 1], after[0, 0], after[1, :2] = 1, 1, 1                   # at 90 degrees; then at 0 and at 45
    assert clip_gain(before, after, "red hair", Clip()) == pytest.approx((1 + 0.5**0.5) / 2)


# --- masks

def test_iou_of_half_overlapping_squares_is_one_third():
    gated, part = torch.zeros(1, 1, 4, 4), torch.zeros(1, 8, 8, dtype=torch.bool)
    gated[0, 0, 0:2, 0:2] = 0.9                     # covers pixels 0..3 of the 8 px picture on both axes
    part[0, 0:4, 2:6] = True
    assert abs(float(iou(gated, part)) - 1 / 3) < 1e-7


def test_iou_of_an_empty_mask_is_zero():
    assert not iou(torch.zeros(2, 1, 4, 4), torch.ones(2, 8, 8, dtype=torch.bool)).any()


# --- all of it on drawings

def test_the_renderers_own_edit_is_perfect_by_every_measure(params, before, clip):
    for phrase in ("purple hair", "glasses", "big nose"):
        after, prompt = to_image(draw_faces(BY_PHRASE[phrase].apply(params)).images), asked(params, phrase)
        figures = measure(before, after, prompt.part[:, None].float(), prompt, clip)
        assert figures["success"] >= 0.9 and figures["collateral"] <= 0.01 and figures["identity"] >= 0.95, phrase
        assert figures["iou"] == 1 and figures["clip_gain"] > 0.1, phrase
        assert figures["psnr_outside"] > 60 and figures["largest_outside"] < 0.07, phrase       # differences below VISIBLE


def test_doing_nothing_succeeds_never_and_preserves_all(params, before, clip):
    figures = measure(before, before, None, asked(params, "beard"), clip)
    assert {name: round(value, 5) for name, value in figures.items() if value is not None} == {
        "success": 0, "success_by_reader": 0, "faces": int((BY_PHRASE["beard"].truth(params) == 0).sum()),
        "collateral": 0, "psnr_outside": 80, "ssim_outside": 1, "mse_outside": 0, "largest_outside": 0, "change_inside": 0,
        "change_outside": 0, "identity_distance": 0, "identity": 1, "clip_gain": 0}
    assert figures["iou"] is None and figures["lpips_outside"] is None


def test_another_face_instead_of_an_edit_is_told_by_every_measure(params, before, clip):
    figures = measure(before, before.roll(1, dims=0), None, asked(params, "beard"), clip)
    assert figures["collateral"] > 0.2 and figures["identity"] < 0.3
    assert figures["psnr_outside"] < 20 and figures["ssim_outside"] < 0.9 and figures["largest_outside"] > 0.5


def test_figures_are_means_over_faces_of_each_face_alone(params, before, clip):
    """The ceiling of 80 dB holds for every face, and batches of faces change nothing."""
    prompt = asked(params, "red lipstick")
    after = before.clone()
    after[1::2] = (after[1::2] + 0.1).clamp(-1, 1)
    figures = measure(before, after, None, prompt, clip, lpips=lambda a, b: (a - b).abs().amax(dim=(1, 2, 3)))
    errors, largest = [], []
    for i in range(FACES):
        outside = ~grow(prompt.part[i:i + 1], MARGIN)[0]
        difference = (after[i] - before[i])[:, outside].double() / 2
        errors.append(float(difference.square().mean()))
        largest.append(float(difference.abs().max()))
    decibels = [80 if error < 1e-8 else -10 * np.log10(error) for error in errors]
    assert figures["psnr_outside"] == pytest.approx(np.mean(decibels), rel=1e-5)
    assert figures["mse_outside"] == pytest.approx(np.mean(errors), rel=1e-4)
    assert figures["largest_outside"] == pytest.approx(np.mean(largest), rel=1e-4)
    assert figures["lpips_outside"] == pytest.approx(2 * np.mean(largest), rel=1e-4)
    change = (after - before).abs().mean(dim=1)
    assert figures["change_inside"] == pytest.approx(float(change[prompt.part].mean()), rel=1e-4)


def test_the_margin_around_the_true_part_does_not_count(params, before, clip):
    before, prompt = before[:2], asked(params.take(slice(0, 2)), "glasses")
    for pixels, counts in ((MARGIN, False), (MARGIN + 1, True)):
        ring = grow(prompt.part, pixels) & ~grow(prompt.part, pixels - 1)
        figures = measure(before, torch.where(ring[:, None], -before, before), None, prompt, clip)
        assert (figures["psnr_outside"] < 60) == counts and (figures["change_outside"] > 0) == counts


def test_colours_that_no_screen_shows_change_no_figure(params, before, clip):
    before, prompt = before[:3], asked(params.take(slice(0, 3)), "red lipstick")
    figures = measure(before, 2 * before, None, prompt, clip)
    assert figures == measure(before, (2 * before).clamp(-1, 1), None, prompt, clip)


# --- tables and plots

def test_means_pass_over_unknown_figures():
    rows = {"a": {"success": None, "iou": 0.2}, "b": {"success": 0.5, "iou": 0.4}, "c": {"success": 1.0, "iou": 0.6}}
    assert means(rows) == {"success": 0.75, "iou": pytest.approx(0.4)}


def test_the_table_has_a_dash_for_an_unknown_figure_and_no_column_without_any():
    rows = {"ours": {"success": None, "faces": 3, "lpips_outside": None}, "theirs": {"success": 0.5, "faces": 4}}
    assert table(rows, "method").splitlines() == [
        "| method | success | faces |", "| --- | --- | --- |", "| ours | - | 3 |", "| theirs | 0.50 | 4 |"]


def test_the_sweep_has_a_curve_a_method_through_its_points():
    curves = {"ours": [(0.1, 70.0), (0.9, 50.0)], "theirs": [(0.2, 40.0), (0.8, 20.0), (0.9, 15.0)]}
    panel = sweep_figure(curves).axes[0]
    assert {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in panel.lines} == curves


# --- what people see and the reader does not

def painted(images: torch.Tensor, pixels: np.ndarray, source: torch.Tensor) -> torch.Tensor:
    """Pictures with some pixels (N, S, S) bool taken from others."""
    return torch.where(torch.from_numpy(pixels)[:, None], source, images)


def test_a_colour_on_half_of_its_part_is_no_success_and_the_renderers_own_edit_is(params, before):
    lower = np.arange(128)[None, :, None] > 44                          # below the fringe
    faces, concept = DrawnFaces(params), BY_PHRASE["black hair"]
    plain, drawing = concept.truth(params) == 0, draw_faces(params)
    long = (drawing.mask("hair") & lower).sum(axis=(1, 2)) > 0.5 * drawing.mask("hair").sum(axis=(1, 2))
    whole = to_image(draw_faces(concept.apply(params)).images)
    cap = painted(whole, np.repeat(np.repeat(lower, 128, axis=2), FACES, axis=0), before)
    assert faces.shows("black hair", whole).all() and not faces.shows("black hair", before)[plain].any()
    assert (plain & long).sum() > 2 and not faces.shows("black hair", cap)[plain & long].any()


def test_every_prompt_is_shown_by_its_own_drawing_and_no_colour_by_another_one(params):
    params = params.take(slice(0, 6))
    faces = DrawnFaces(params)
    for phrase in ("grey hair", "brown eyes", "pink lipstick", "pale skin", "rosy cheeks", "big nose", "smiling"):
        assert faces.shows(phrase, to_image(draw_faces(BY_PHRASE[phrase].apply(params)).images)).all(), phrase
    for phrase, other in (("grey hair", "blue hair"), ("brown eyes", "blue eyes"), ("pink lipstick", "red lipstick"),
                          ("pale skin", "tanned skin")):
        assert not faces.shows(phrase, to_image(draw_faces(BY_PHRASE[other].apply(params)).images)).any(), phrase


def test_a_grey_smear_in_place_of_a_nose_is_no_success(params):
    wide = BY_PHRASE["big nose"].apply(params)
    images, nose = to_image(draw_faces(wide).images), draw_faces(wide).mask("nose")
    assert not DrawnFaces(params).shows("big nose", painted(images, nose, images * 0.5 - 0.1)).any()


def test_glasses_that_an_edit_of_the_eyebrows_takes_along_are_collateral(params):
    wearing = changed(params, glasses=1.0)
    prompt, bare = asked(wearing, "thin eyebrows"), to_image(draw_faces(changed(wearing, glasses=0.0)).images)
    before = to_image(draw_faces(wearing).images)
    edited = to_image(draw_faces(BY_PHRASE["thin eyebrows"].apply(wearing)).images)
    rims = draw_faces(wearing).mask("glasses") & (np.arange(128)[None, :, None] < 60)       # the upper ones
    row = [concept.phrase for concept in CONCEPTS].index("glasses")
    for after, lost in ((edited, False), (painted(edited, rims, bare), True)):
        found = prompt.faces.lost("thin eyebrows", prompt.part, before, after)
        assert (found[row] == lost).all() and not np.delete(found, row, axis=0).any()
    seen = SeenFaces(wearing)
    assert collateral(prompt, seen, seen, found) > collateral(prompt, seen, seen) == 0
