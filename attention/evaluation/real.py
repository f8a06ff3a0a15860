"""Edits of real pictures by the published protocol, and what that protocol leaves out.

Distances of distributions (FID, IS, KID) by torch-fidelity, identity by ArcFace, CLIP's opinion, attention against labels,
and how far everything outside the labelled part stayed as it was. One-sided figures are won by doing nothing: read them
together.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from attention.clip_models.base import TextImageModel
from attention.editing.colours import in_srgb
from attention.editing.photo import read_photo
from attention.errors import UserError
from attention.evaluation.metrics import grow, locality
from attention.files.pictures import picture_endings
from attention.files.published import INCEPTION_FILE, WEIGHTS, download_command
from attention.files.reading import shown
from attention.files.torch_files import read_torch_file
from attention.images import to_bytes, to_image
from attention.inversion import face_crop
from attention.method.editor import Edit, Source

INCEPTION_WEIGHTS = WEIGHTS / INCEPTION_FILE
FID_LAYER, SCORE_LAYER = "2048", "logits_unbiased"      # of Inception: for FID and KID; for IS
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000                # torch-fidelity's; fewer pictures make a smaller subset
SCORE_SPLITS, PICTURES_PER_SPLIT = 10, 10               # of IS, which says little about fewer pictures than that
SHOWN = 3                   # names in a message
MARGIN_SHARE = 64           # of the side: how far the part is grown before the rest must stay; a pixel of a 64 px mask
Features = dict[str, Tensor]        # FID_LAYER (N, 2048) and SCORE_LAYER (N, 1008), on the CPU


# --- pictures

def picture_paths(folder: Path) -> list[Path]:
    """The files of a folder that are pictures by their ending, in order; of others but hidden ones, their number is told.

    Raises:
        UserError: there are none.
    """
    files = sorted(path for path in folder.iterdir() if path.name[0] != "." and path.is_file()) if folder.is_dir() else []
    paths = [path for path in files if path.suffix.lower() in picture_endings()]
    if not paths:
        raise UserError(f"{folder} holds no pictures, expected a folder of files such as .jpg or .png; name another folder")
    if others := [path.name for path in files if path.suffix.lower() not in picture_endings()]:
        warnings.warn(f"{len(others)} of the files in {shown(folder)} passed over, by the ending no picture: "
                      f"{shown(', '.join(others[:SHOWN]))}{', ...' * (len(others) > SHOWN)}", stacklevel=2)
    return paths


def read_pictures(paths: Sequence[Path], side: int, at_once: int, skipped: dict[str, str]) -> Iterator[tuple[list, Tensor]]:
    """Read pictures that are framed already, whatever their size: batches of paths and of (B, 3, side, side) in [-1, 1].

    Args:
        skipped: takes the name of every file that is no whole square picture, and why.
    Raises:
        UserError: after the last file, none of them was.
    """
    read, batch, any_read = [], [], False
    for path in paths:
        try:
            batch.append(_framed(path, side))
            read.append(path)
        except UserError as error:
            skipped[path.name] = str(error)
        if len(read) == at_once or (read and path == paths[-1]):
            yield read, torch.stack(batch)
            read, batch, any_read = [], [], True
    if not any_read:
        raise UserError(f"none of the {len(paths)} pictures in {paths[0].parent} could be used; the first: "
                        f"{skipped[paths[0].name]}")


def _framed(path: Path, side: int) -> Tensor:
    """(3, side, side) in [-1, 1]."""
    photo = in_srgb(read_photo(path))
    if photo.width != photo.height:
        raise UserError(f"{path} is {photo.width} x {photo.height}, but an aligned picture is square; crop its face "
                        "as the world frames faces first")
    return to_image(np.array(photo.resize((side, side), Image.Resampling.LANCZOS))[None])[0]


# --- distributions

def load_inception(path: Path, device: torch.device) -> Callable[[Tensor], Features]:
    """torch-fidelity's Inception of a file, never of the network: pictures (B, 3, H, W) in [-1, 1] -> their features.

    Raises:
        UserError: the file is missing, cut short or of another kind.
    """
    read_torch_file(path)           # plain tensors: torch-fidelity itself would run what else is in the file
    try:
        inception = FeatureExtractorInceptionV3("inception-v3-compat", [FID_LAYER, SCORE_LAYER], str(path)).to(device)
    except RuntimeError as error:
        raise UserError(f"{path} does not have the tensors of torch-fidelity's Inception "
                        f"({' '.join(str(error).split())[:200]}); get that file with: "
                        f"{download_command(INCEPTION_WEIGHTS)}") from error

    @torch.no_grad()
    def features(pictures: Tensor) -> Features:
        pixels = to_bytes(pictures.to(device))                                               # as if saved and read
        found = inception.convert_features_tuple_to_dict(inception(pixels))
        return {layer: found[layer].cpu() for layer in (FID_LAYER, SCORE_LAYER)}

    return features


def join(parts: Sequence[Features]) -> Features:
    """The features of several batches, one after the other."""
    return {layer: torch.cat([part[layer] for part in parts]) for layer in parts[0]}


def distances(pictures: Features, reference: Features) -> dict[str, float]:
    """FID and KID of pictures to a reference, and the inception score of the pictures alone, by torch-fidelity.

    Subsets and splits shrink to what so few pictures allow, and are told with the figures.

    Raises:
        UserError: fewer than two pictures on a side, of which there is no distribution.
    """
    count, other = len(pictures[FID_LAYER]), len(reference[FID_LAYER])
    if min(count, other) < 2:
        raise UserError(f"FID and KID were asked of {count} pictures against {other}, but need at least 2 on each side; "
                        "give a larger folder, or leave them out with --no_fid")
    size = min(KID_SUBSET_SIZE, count, other)
    splits = SCORE_SPLITS if count >= SCORE_SPLITS * PICTURES_PER_SPLIT else 1
    here, there = (side[FID_LAYER].double() for side in (pictures, reference))
    statistics = [fid_features_to_statistics(side) for side in (here, there)]
    kid = kid_features_to_metric(here, there, kid_subsets=KID_SUBSETS, kid_subset_size=size, verbose=False)
    score = isc_features_to_metric(pictures[SCORE_LAYER], splits)
    return {"pictures": count, "reference": other,
            "fid": fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"],
            "kid": kid["kernel_inception_distance_mean"], "kid_std": kid["kernel_inception_distance_std"],
            "kid_subset_size": size, "inception_score": score["inception_score_mean"],
            "inception_score_std": score["inception_score_std"], "inception_score_splits": splits}


# --- picture by picture

@dataclass(frozen=True)
class Judges:
    """What measures edits: CLIP, and an ArcFace recogniser and LPIPS where their weights are here."""

    clip: TextImageModel
    recogniser: nn.Module | None = None
    lpips: Callable[[Tensor, Tensor], Tensor] | None = None


class Originals:
    """What edits are compared with: photos (B, 3, R, R) in [-1, 1] and their inversions, looked at once."""

    @torch.no_grad()
    def __init__(self, photos: Tensor, source: Source, judges: Judges):
        self.photos, self.source, self.judges = photos.to(source.image.device), source, judges
        self.embedding = F.normalize(judges.clip.encode_image(source.image), dim=1)
        self.faces = {name: self.face(pictures) for name, pictures in self.pictures().items()} if judges.recogniser else {}

    def pictures(self) -> dict[str, Tensor]:
        return {"inverted": self.source.image, "photo": self.photos}

    def face(self, pictures: Tensor) -> Tensor:
        """(B, D) of length 1: who the recogniser sees."""
        assert self.judges.recogniser is not None
        seen: Tensor = self.judges.recogniser(face_crop(pictures))
        return seen

    @torch.no_grad()
    def inversion(self) -> dict[str, Tensor]:
        """How well the inversions draw the photos again: PSNR, SSIM, identity and LPIPS, each (B,)."""
        whole = torch.ones(len(self.photos), *self.photos.shape[-2:], dtype=torch.bool, device=self.photos.device)
        figures = locality(self.source.image, self.photos, whole, self.judges.lpips)
        if self.judges.recogniser is not None:
            figures["identity"] = (self.faces["inverted"] * self.faces["photo"]).sum(dim=1)
        return figures

    @torch.no_grad()
    def measure(self, edit: Edit, text: Tensor, part: Tensor | None) -> dict[str, Tensor]:
        """The figures of one prompt's edits, each (B,); NaN where a picture cannot give one.

        Args:
            text: (D,) CLIP embedding of the prompt.
            part: (B, R, R) bool, the labelled part; None without labels. A picture that lacks the part is passed over.
        """
        direction = F.normalize(text, dim=0)
        gain = (F.normalize(self.judges.clip.encode_image(edit.image), dim=1) - self.embedding) @ direction
        figures = {"clip_improved": (gain > 0).float(), "clip_gain": gain}
        if self.judges.recogniser is not None:
            face = self.face(edit.image)
            figures |= {f"identity_{name}": (face * own).sum(dim=1) for name, own in self.faces.items()}
        if part is not None:
            assert edit.place is not None                       # its mask came of a text
            labelled, keep = overlap(edit.place.gated, part), ~grow(part, max(1, part.shape[-1] // MARGIN_SHARE))
            for name, pictures in self.pictures().items():
                kept = locality(edit.image, pictures, keep, self.judges.lpips)
                labelled |= {f"{measure}_{name}": values for measure, values in kept.items()}
            absent = ~part.any(dim=(1, 2))
            figures |= {name: values.masked_fill(absent, torch.nan) for name, values in labelled.items()}
        return figures


def overlap(gated: Tensor, part: Tensor) -> dict[str, Tensor]:
    """How well a gated attention (B, 1, h, h) above 0 is a part (B, R, R) bool, picture by picture: "iou" (B,).

    Unlike in the published program, the attention was not blurred before, which would take its edges away.
    """
    together, either = pixels_shared(gated, part)
    return {"iou": torch.where(either > 0, together / either.clamp(min=1), 1.0)}            # nothing asked, nothing found


def pixels_shared(gated: Tensor, part: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) pixels of a part (B, R, R) bool that a gated attention (B, 1, h, h) above 0 covers, and those of either."""
    mask = F.interpolate(gated, size=part.shape[-2:], mode="nearest")[:, 0] > 0
    return (mask & part).sum(dim=(1, 2)), (mask | part).sum(dim=(1, 2))


def macro_jaccard(shared: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """The published measure of the attention: the mean over parts of each part's IoU over the pixels of all pictures.

    It is scikit-learn's `jaccard_score` of (pixels of all pictures, parts) columns with the average "macro": a large part
    of one picture weighs more than a small one of another, and a picture that lacks a part counts what was found there.

    Args:
        shared: prompt -> the sums over pictures of `pixels_shared`.
    Returns:
        "macro", and "parts": prompt -> IoU; as in scikit-learn 0, with a warning, where no picture has the part or a mask.
    """
    if empty := [prompt for prompt, (_, either) in shared.items() if either == 0]:
        warnings.warn(f"no picture has the part of {', '.join(empty)}, nor any attention there: counted as an IoU of 0",
                      stacklevel=2)
    parts = {prompt: together / either if either else 0.0 for prompt, (together, either) in shared.items()}
    return {"macro": sum(parts.values()) / len(parts), "parts": parts}
