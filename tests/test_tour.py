"""The notebook runs from the first cell to the last, and what its cells end with is so."""

import base64
import io

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient
from PIL import Image

import attention
from attention.files.published import ROOT

pytestmark = pytest.mark.program
TOUR = ROOT / "show_demo/tour.ipynb"
CHECKS = ("outside", "by-region", "undo", "photo-outside", "replay")      # cells that end in True if all is well
PICTURES = ("seed", "edit", "regions", "chain", "grid", "transfer", "photo")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Cell's name -> MIME type -> what the cell ended with; stdout and stderr: what it printed."""
    notebook, found = nbformat.read(TOUR, as_version=4), {}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR"):
            patch.setenv(name, str(tmp_path_factory.mktemp(name)))
        patch.setenv("OMP_NUM_THREADS", "1")                # the other core belongs to the other half of the suite
        NotebookClient(notebook, timeout=60, kernel_name="python3", resources={"metadata": {"path": TOUR.parent}}).execute()
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                found.setdefault(cell.id, {})[output.name] = output.text
            else:
                found.setdefault(cell.id, {}).update(output.data)
    return found


def test_the_notebook_is_kept_without_outputs():
    code = [cell for cell in nbformat.read(TOUR, as_version=4).cells if cell.cell_type == "code"]
    assert len(code) >= 12 and not any(cell.outputs or cell.execution_count for cell in code)


@pytest.mark.parametrize("cell", CHECKS)
def test_what_the_notebook_promises_holds(cell, results):
    assert results[cell]["text/plain"] == "True"


@pytest.mark.parametrize("cell", PICTURES)
def test_the_notebook_shows_its_pictures(cell, results):
    assert np.ptp(pixels(results[cell])) > 100


def test_the_notebook_warns_of_nothing(results):
    assert not [result["stderr"] for result in results.values() if "UserWarning" in result.get("stderr", "")]


def pixels(result):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(result["image/png"]))).convert("RGB"))


def test_the_pictures_are_those_of_the_editor(results):
    editor = attention.load_editor("drawn", device="cpu")
    face = editor.open_seed(21)
    edited = face.edit("purple hair")
    assert np.array_equal(pixels(results["seed"]), np.asarray(face.image))
    shown, expected = pixels(results["edit"])[:, 256:512], np.asarray(edited.image.resize((256, 256)))
    assert np.array_equal(shown, expected)
    assert np.array_equal(pixels(results["grid"]), np.asarray(editor.grid(face, ["purple hair", "beard"],
                                                                          [0.05, 0.1, 0.15, 0.2])))


def test_refinement_brought_the_photo_nearer(results):
    before, after = map(float, results["photo"]["stdout"].split(":")[1].split())
    assert 15 < before < after
