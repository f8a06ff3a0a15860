"""dlib's recogniser in torch, against dlib."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from attention.errors import UserError
from attention.inversion import dlib_models, invert
from attention.inversion.descriptor import CHIP, FACE_IN_FRAME, face_chips, load_descriptor
from attention.inversion.identity import Recogniser

pytest.importorskip("dlib", reason="who a face is, is told with the extra photos")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recogniser():
    return Recogniser()


@pytest.mark.parametrize("seed", range(3))
def test_a_face_is_described_as_dlib_does(recogniser, seed):
    chip = np.random.default_rng(seed).integers(256, size=(CHIP, CHIP, 3), dtype=np.uint8)
    said = load_descriptor(CPU)(torch.from_numpy(chip).permute(2, 0, 1)[None].float())[0]
    np.testing.assert_allclose(said, recogniser._network.compute_face_descriptor(chip), atol=2e-6)


def test_the_chip_is_the_face_s_part_of_the_frame_in_levels():
    side = 1000
    across = torch.linspace(-1, 1, 2 * side + 1)[1::2].expand(1, 3, side, side)             # grows from left to right
    chips = face_chips(across), face_chips(across.mT)
    left, top, right, bottom = FACE_IN_FRAME
    for chip, first, last in ((chips[0][0, 0, 0], left, right), (chips[1][0, 0, :, 0], top, bottom)):
        places = (torch.arange(CHIP) + 0.5) / CHIP * (last - first) + first
        torch.testing.assert_close(chip, places * 255, atol=1, rtol=0)


def test_a_likeness_is_the_recogniser_s_distance_squared(recogniser):
    pictures = torch.rand(2, 1, 3, 300, 300, generator=torch.Generator().manual_seed(0)) * 2 - 1
    chips = [np.ascontiguousarray(face_chips(picture)[0].permute(1, 2, 0).round().byte()) for picture in pictures]
    persons = [np.array(recogniser._network.compute_face_descriptor(chip)) for chip in chips]
    found = invert._likeness(CPU)(*pictures)
    assert found.item() == pytest.approx(invert.LIKENESS * np.square(persons[0] - persons[1]).sum(), rel=0.02)


def shorter(content):
    return content[:-50_000]


def broken(content):
    """Not a number in the first convolution."""
    place = content.index(b"con_4") + 100
    return content[:place] + b"\xff" * 8 + content[place + 8:]


@pytest.mark.parametrize(("spoil", "why"), [(shorter, "fc_2 of 32,768 weights is missing"), (broken, "not finite"),
                                            (lambda content: b"", "con_4 of 4,736 weights is missing")])
def test_a_file_that_is_not_whole_is_told_with_the_command_that_mends_it(spoil, why, tmp_path, monkeypatch):
    whole = dlib_models.package_file(dlib_models.RECOGNISER, "this test")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / whole.name).write_bytes(spoil(whole.read_bytes()))
    monkeypatch.setattr(dlib_models, "find_spec", lambda name: SimpleNamespace(submodule_search_locations=[str(tmp_path)]))
    load_descriptor.cache_clear()
    with pytest.raises(UserError, match=rf"v1\.dat cannot be read \(.*{why}.*\); get it again with: pip install --force"):
        load_descriptor(CPU)
