"""e4e and the face recogniser: the published blocks, names and shapes; the whole passes; files of other kinds."""

import warnings
from argparse import Namespace
from pathlib import PosixPath

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close_to_max, published_tensors
from torch import nn

from attention.errors import UserError
from attention.inversion import IRSE50, Encoder4Editing, face_crop, identity_similarity, load_e4e, load_recogniser
from attention.inversion.e4e import E4E_FILE, GradualStyleBlock, upsample_add
from attention.inversion.irse import RECOGNISER_FILE, IRSEUnit

SMALL = ((16, 3), (16, 4), (24, 14), (32, 3))       # the published numbers of units, narrow
RECOGNISER_COMMAND = r"python -m attention\.download model_ir_se50\.pth$"
E4E_COMMAND = r"python -m attention\.download e4e_ffhq_encode\.pt$"


def table(name):
    """Names and shapes of the tensors of a published file."""
    return {key: tuple(entry["shape"]) for key, entry in published_tensors(name).items()}


def stored(shapes):
    """A state dict of these shapes; each tensor repeats one number of its own, so that its file stays small."""
    return {name: torch.tensor(number / 1000).expand(shape) for number, (name, shape) in enumerate(shapes.items())}


def with_random_statistics(module):
    """Norms whose statistics and factors are not the neutral ones, in evaluation mode."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (part.weight, part.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (part.bias, part.running_mean):
                nn.init.normal_(tensor, std=0.2)
    return module.requires_grad_(False).eval()


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    encoder = with_random_statistics(Encoder4Editing(n_latent=9, stages=SMALL))
    encoder.latent_avg.normal_()
    return encoder


@pytest.fixture(scope="module")
def recogniser():
    torch.manual_seed(0)
    return with_random_statistics(IRSE50(SMALL))


@pytest.fixture
def e4e_checkpoint():
    """A whole file in the published layout, 1024 px, decoder included."""
    return {"state_dict": stored(table("e4e_ffhq_encode")), "latent_avg": torch.randn(18, 512),
            "opts": {"stylegan_size": 1024, "encoder_type": "Encoder4Editing", "device": "cuda:0"}, "global_step": 7}


# --- the published blocks

def test_parts_of_the_encoder_are_the_published_ones(golden):
    arrays = golden("encoder_blocks")
    for case in ("irse0", "irse1", "irse2"):
        unit = IRSEUnit(*arrays[f"{case}/config"].tolist()).eval()
        weights = {name.removeprefix(f"{case}/sd/"): array for name, array in arrays.items() if f"{case}/sd/" in name}
        absent = unit.load_state_dict(weights, strict=False).missing_keys
        assert all(name.endswith("num_batches_tracked") for name in absent), case
        assert_close_to_max(unit(arrays[f"{case}/x"]), arrays[f"{case}/y"], 2e-5)
    block = GradualStyleBlock(12, 16)
    block.load_state_dict({name.removeprefix("gradual/sd/"): array for name, array in arrays.items()
                           if name.startswith("gradual/sd/")})
    assert_close_to_max(block(arrays["gradual/x"]), arrays["gradual/y"], 2e-5)
    added = upsample_add(arrays["upsample_add/x"], arrays["upsample_add/y_lateral"])
    assert_close_to_max(added, arrays["upsample_add/out"], 2e-5)


def test_face_crop_is_the_published_one(golden):
    arrays = golden("idloss")
    for side in (64, 256, 512):
        assert_close_to_max(face_crop(arrays[f"s{side}/x"]), arrays[f"s{side}/y"], 2e-5)


def test_published_identity_loss_is_one_minus_the_mean_similarity(golden):
    arrays = golden("idloss")
    embeddings = {1.0: arrays["loss/feat_hat"], -1.0: arrays["loss/feat"]}          # told apart by the colour of the face

    def stub(faces):
        assert faces.shape == (3, 3, 112, 112)
        return F.normalize(embeddings[faces.mean().item()], dim=1)

    white, black = torch.ones(3, 3, 256, 256), -torch.ones(3, 3, 256, 256)
    assert_close_to_max(1 - identity_similarity(stub, white, black).mean(), arrays["loss/loss"], 2e-5)


# --- names and shapes

def test_names_and_shapes_are_those_of_the_published_encoder():
    expected = {name.removeprefix("encoder."): shape for name, shape in table("e4e_ffhq_encode").items()
                if name.startswith("encoder.")}
    with torch.device("meta"):
        encoder = Encoder4Editing()
    assert len(expected) == 621
    assert {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()} == expected


def test_names_and_shapes_are_those_of_the_published_recogniser():
    with torch.device("meta"):
        recogniser = IRSE50()
    assert {name: tuple(tensor.shape) for name, tensor in recogniser.state_dict().items()} == table("ir_se50")


def test_full_size_models_map_a_batch_to_the_promised_shapes():
    with torch.device("meta"):
        assert Encoder4Editing().eval()(torch.empty(2, 3, 256, 256)).shape == (2, 18, 512)
        assert IRSE50().eval()(torch.empty(2, 3, 112, 112)).shape == (2, 512)


# --- the whole passes

def test_encoder_reads_rows_from_the_published_units_and_adds_the_average(encoder):
    images = torch.rand(2, 3, 256, 256) * 2 - 1
    weights = encoder.state_dict()
    x = F.conv2d(images, weights["input_layer.0.weight"], padding=1)
    x = F.batch_norm(x, *(weights[f"input_layer.1.{name}"] for name in ("running_mean", "running_var", "weight", "bias")))
    x = F.prelu(x, weights["input_layer.2.weight"])
    outputs = []
    for unit in encoder.body:
        outputs.append(x := unit(x))
    assert [outputs[unit].shape[-1] for unit in (6, 20, 23)] == [64, 32, 16]
    middle = F.interpolate(outputs[23], (32, 32), mode="bilinear", align_corners=True) + encoder.latlayer1(outputs[20])
    fine = F.interpolate(middle, (64, 64), mode="bilinear", align_corners=True) + encoder.latlayer2(outputs[6])
    rows = [encoder.styles[row](outputs[23] if row < 3 else middle if row < 7 else fine) for row in range(9)]
    w = rows[0][:, None].repeat(1, 9, 1)
    for row in range(1, 9):
        w[:, row] += rows[row]
    assert_close_to_max(encoder(images), w + encoder.latent_avg, 2e-5)


def test_encoder_resizes_pictures_of_another_side_with_antialiasing(encoder):
    large = torch.rand(1, 3, 512, 512) * 2 - 1
    small = F.interpolate(large, size=(256, 256), mode="bilinear", antialias=True)
    assert torch.equal(encoder(large), encoder(small))


def test_encoder_and_face_crop_refuse_pictures_that_a_resize_would_squash(encoder):
    for function in (encoder, face_crop):
        with pytest.raises(ValueError, match=r"256x200.*crop"):
            function(torch.zeros(1, 3, 256, 200))


def test_recogniser_embeds_its_last_map_on_the_unit_sphere(recogniser):
    faces = torch.rand(2, 3, 112, 112) * 2 - 1
    weights = recogniser.state_dict()

    def norm(x, index):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(weights[f"output_layer.{index}.{name}"] for name in names))

    x = norm(recogniser.body(recogniser.input_layer(faces)), 0).reshape(2, -1)
    x = norm(F.linear(x, weights["output_layer.3.weight"], weights["output_layer.3.bias"]), 4)
    embeddings = recogniser(faces)
    assert_close_to_max(embeddings, x / x.square().sum(1, keepdim=True).sqrt(), 2e-5)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2))


def test_a_face_is_itself_and_one_face_may_be_compared_with_many(recogniser):
    images = torch.rand(3, 3, 128, 128) * 2 - 1
    similarities = identity_similarity(recogniser, images[:1], images)
    torch.testing.assert_close(similarities[0], torch.tensor(1.0))
    assert similarities.shape == (3,) and (similarities[1:] < similarities[0]).all() and (similarities <= 1).all()


# --- files

def test_recogniser_takes_every_tensor_of_its_file_frozen_for_evaluation(tmp_path):
    state = stored(table("ir_se50"))
    torch.save(state, tmp_path / "model_ir_se50.pth")
    recogniser = load_recogniser(tmp_path / "model_ir_se50.pth")
    for name, tensor in recogniser.state_dict().items():
        assert torch.equal(tensor, state[name].to(tensor.dtype)), name
    assert not recogniser.training and not any(parameter.requires_grad for parameter in recogniser.parameters())


def test_encoder_takes_every_encoder_tensor_and_the_average_frozen_for_evaluation(tmp_path, e4e_checkpoint):
    torch.save(e4e_checkpoint, tmp_path / "e4e.pt")
    encoder = load_e4e(tmp_path / "e4e.pt")
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, e4e_checkpoint["state_dict"][f"encoder.{name}"].to(tensor.dtype)), name
    assert torch.equal(encoder.latent_avg, e4e_checkpoint["latent_avg"])
    assert not encoder.training and not any(parameter.requires_grad for parameter in encoder.parameters())


def test_fewer_rows_with_one_average_for_all_and_weights_in_half_precision_load(tmp_path, e4e_checkpoint):
    kept = tuple(f"encoder.styles.{row}." for row in range(14))                     # 14 rows: 256 px
    state = {name: tensor for name, tensor in e4e_checkpoint["state_dict"].items()
             if not name.startswith("encoder.styles.") or name.startswith(kept)}
    state["encoder.latlayer1.weight"] = state["encoder.latlayer1.weight"].half()
    average = e4e_checkpoint["latent_avg"][0]
    torch.save({**e4e_checkpoint, "state_dict": state, "latent_avg": average}, tmp_path / "e4e.pt")
    encoder = load_e4e(tmp_path / "e4e.pt")
    assert len(encoder.styles) == 14 and encoder.latlayer1.weight.dtype == torch.float32
    assert torch.equal(encoder.latent_avg, average.repeat(14, 1))


def test_a_missing_file_names_the_download(tmp_path):
    for load, name in ((load_recogniser, RECOGNISER_FILE), (load_e4e, E4E_FILE)):
        with pytest.raises(UserError, match=f"{name} is missing .*attention.download {name} --folder {tmp_path}$"):
            load(tmp_path / name)


def test_recogniser_refuses_a_file_of_e4e(tmp_path, e4e_checkpoint):
    torch.save(e4e_checkpoint, tmp_path / "e4e.pt")
    with pytest.raises(UserError, match=r"e4e\.pt .*397 missing: input_layer\.0\.weight.*4 unexpected: state_dict.*"
                       + RECOGNISER_COMMAND):
        load_recogniser(tmp_path / "e4e.pt")


def test_recogniser_lists_names_and_shapes_that_differ(tmp_path):
    state = stored(table("ir_se50"))
    del state["body.3.res_layer.2.weight"]
    torch.save({**state, "output_layer.4.bias": torch.zeros(256), "fc.bias": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"1 missing: body\.3\.res_layer\.2\.weight; 1 unexpected: fc\.bias; "
                       r"1 of another shape: output_layer\.4\.bias \(256,\) instead of \(512,\)"):
        load_recogniser(tmp_path / "other.pth")


def test_encoder_refuses_files_of_another_kind(tmp_path, e4e_checkpoint):
    for change, message in (
            ({"state_dict": None}, r"holds state_dict, latent_avg, opts, global_step"),
            ({"latent_avg": [0.0]}, r"holds state_dict, latent_avg"),
            ({"latent_avg": None, "opts": {"start_from_latent_avg": True}}, r"no latent_avg, but its options"),
            ({"latent_avg": torch.zeros(14, 512)}, r"latent_avg of shape \(14, 512\).*\(18, 512\)"),
            ({"opts": {"encoder_type": "GradualStyleEncoder"}}, r"type GradualStyleEncoder"),
            ({"state_dict": {"decoder.input.input": torch.zeros(1)}}, r"missing: encoder\.input_layer\.0\.weight")):
        torch.save({**e4e_checkpoint, **change}, tmp_path / "other.pt")
        with pytest.raises(UserError, match=r"other\.pt .*" + message + ".*" + E4E_COMMAND):
            load_e4e(tmp_path / "other.pt")


def test_an_encoder_that_was_trained_without_an_average_adds_none(tmp_path, e4e_checkpoint):
    """As e4e's own training saves it: a latent_avg only with start_from_latent_avg, which is not its default."""
    del e4e_checkpoint["latent_avg"]
    state = {f"module.{name}": value for name, value in e4e_checkpoint["state_dict"].items()}           # DataParallel
    torch.save({"state_dict": state, "opts": {"start_from_latent_avg": False, "exp_dir": PosixPath("runs"),
                                              "lr": np.float64(1e-4)}}, tmp_path / "e4e.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder = load_e4e(tmp_path / "e4e.pt")
    assert not encoder.latent_avg.any() and encoder.latent_avg.shape == (18, 512)
    torch.save({"state_dict": state, "opts": Namespace(lr=1e-4)}, tmp_path / "e4e.pt")
    with pytest.warns(UserWarning, match=r"e4e\.pt has no latent_avg and does not say"):
        assert not load_e4e(tmp_path / "e4e.pt").latent_avg.any()
