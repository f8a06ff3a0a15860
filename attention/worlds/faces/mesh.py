"""Where things lie in a picture of a face: landmarks of a face mesh and the mask of a person, by published small networks.

MediaPipe's face mesh (468 points), its irises and its selfie segmentation, read from the wheel of the package mediapipe
(`python -m attention.download mesh`) and run by LiteRT, of the extra `truth`. For building and for evaluation only: no edit
needs them. They see pictures, never the generator, so that they are independent of what edits.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from PIL import Image

from attention.errors import UserError
from attention.extras import need
from attention.files.published import MESH_FILE, WEIGHTS, found

NETWORKS = {"face": "face_landmark.tflite", "iris": "iris_landmark.tflite", "person": "selfie_segmentation.tflite"}
# An aligned face lies here, in shares of the side: centre x, y, and the side of the square that the mesh is shown first.
ALIGNED = (0.5, 0.54, 0.86)
MARGIN = 1.5                # of the square around found landmarks, as MediaPipe's tracking has it
EYE_MARGIN = 2.3            # of the square around an eye over the eye's width
LEAST_SCORE = 0.5           # of the face flag, below which there is no face
PADDING = 0.5               # shares of the side by which a picture is continued, so that squares may stick out
# Corners (outer, inner) of the eye to the left of the picture and of that to the right, in the mesh's numbers.
EYE_CORNERS = ((33, 133), (263, 362))


@dataclass(frozen=True)
class Mesh:
    """What was found in one picture, in pixels of it.

    Attributes:
        points: (468, 2) x and y.
        irises: (2, 5, 2), that to the left of the picture first: centre, then four points of the edge.
        eyelids: (2, 16, 2) outlines of the open eyes.
        person: (S, S) in [0, 1], the probability that a pixel belongs to a person.
        score: of the face flag, in [0, 1].
    """

    points: np.ndarray
    irises: np.ndarray
    eyelids: np.ndarray
    person: np.ndarray
    score: float

    @property
    def found(self) -> bool:
        return self.score >= LEAST_SCORE

    def flat(self) -> np.ndarray:
        """(511, 2): points, irises, eyelids, in one array to be kept."""
        return np.concatenate([self.points, self.irises.reshape(-1, 2), self.eyelids.reshape(-1, 2)])

    @classmethod
    def of(cls, flat: np.ndarray, person: np.ndarray, score: float) -> "Mesh":
        """The inverse of `flat`."""
        return cls(flat[:468], flat[468:478].reshape(2, 5, 2), flat[478:].reshape(2, 16, 2), person, score)


class FaceMesh:
    """The three networks.

    Raises:
        UserError: the extra or a file is missing.
    """

    def __init__(self, folder: Path = WEIGHTS):
        need("truth", "measuring faces")
        from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415  (an extra)

        self._networks: dict[str, Any] = {}
        path = found(folder / MESH_FILE, "the networks of the face mesh")
        try:
            with ZipFile(path) as archive:
                for key, name in NETWORKS.items():
                    network = Interpreter(model_content=archive.read(name), num_threads=1)
                    network.allocate_tensors()
                    self._networks[key] = network
        except (BadZipFile, KeyError, ValueError, RuntimeError) as error:
            raise UserError(f"{path} holds no networks that LiteRT reads ({str(error)[:200]}); delete it and run: "
                            "python -m attention.download mesh") from error

    def __call__(self, pixels: np.ndarray) -> Mesh:
        """Look at an aligned picture (S, S, 3) uint8; where there is no face, the mesh says so by its score."""
        side = len(pixels)
        pad = int(PADDING * side)
        wide = Image.fromarray(np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)), mode="edge"))

        def crop(centre: np.ndarray, size: float, into: int, mirrored: bool = False) -> tuple[np.ndarray, np.ndarray]:
            size = min(size, 1.8 * side)
            corner = np.clip(centre + pad - size / 2, 0, 2 * pad + side - size)
            seen = np.asarray(wide.resize((into, into), Image.Resampling.BILINEAR, (*corner, *(corner + size))))
            return seen[:, ::-1] if mirrored else seen, corner - pad

        centre, size = np.array(ALIGNED[:2]) * side, ALIGNED[2] * side
        for _ in range(2):              # the second look is at the square around what the first one found
            seen, corner = crop(centre, size, 192)
            points, flag = self._run("face", seen)
            points = points.reshape(468, 3)[:, :2] * (size / 192) + corner
            low, high = points.min(axis=0), points.max(axis=0)
            centre, size = (low + high) / 2, float((high - low).max()) * MARGIN
        irises, eyelids = [], []
        for mirrored, corners in enumerate(EYE_CORNERS):
            ends = points[list(corners)]
            width = float(np.linalg.norm(ends[1] - ends[0])) * EYE_MARGIN
            seen, corner = crop(ends.mean(axis=0), width, 64, bool(mirrored))
            lids, iris = (array.reshape(-1, 3)[:, :2] for array in self._run("iris", seen))
            if mirrored:
                lids, iris = lids * [-1, 1] + [64, 0], iris * [-1, 1] + [64, 0]
            irises.append(iris * (width / 64) + corner)
            eyelids.append(lids[:16] * (width / 64) + corner)
        whole = np.asarray(Image.fromarray(pixels).resize((256, 256), Image.Resampling.BILINEAR))
        mask = Image.fromarray(self._run("person", whole)[0].reshape(256, 256))
        person = mask.resize((side, side), Image.Resampling.BILINEAR)
        return Mesh(points.astype(np.float32), np.array(irises, np.float32), np.array(eyelids, np.float32),
                    np.asarray(person), float(1 / (1 + np.exp(-flag.flat[0]))))

    def _run(self, key: str, pixels: np.ndarray) -> list[np.ndarray]:
        """The outputs of a network for a picture (S, S, 3) uint8 of its input's size."""
        network = self._networks[key]
        network.set_tensor(network.get_input_details()[0]["index"], pixels[None].astype(np.float32) / 255)
        network.invoke()
        return [network.get_tensor(output["index"]) for output in network.get_output_details()]
