"""Where in a photo the square lies that a generator frames: found by landmarks, cut out, and put back."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from attention.errors import UserError
from attention.generator import window_means
from attention.images import area_resize

BAND = 256                  # rows of a photo that an edit is put back into at once: large photos need no more memory
WINDOWS = 60                # in a side of the square: structure is what varies within one
SMOOTH = 150.0              # variance in levels squared, below which there is no structure
KEPT_MOST = 1.5             # of the photo's structure: darker hair that turns fair has more contrast
COARSE = 4                  # pixels of the square that one is of those in which colours are compared
COLOUR_WINDOWS = 30         # in a side of the square: a colour is what is the same within one
SET = 30.0                  # levels, of all three channels: a change of colour by so much sets it rather than shifts it
TONE_WINDOWS = 8            # in a side of the square: a tone is what much of a face has alike, ...
HUE = 14.0                  # levels beside the mean of the three: a change by so much sets another hue
MISPLACED = 8.0             # ... and what differs from it by so many levels, of all three channels, lies elsewhere
ALONG = 64                  # points of an edge of the square, ...
BEYOND = 0.75               # ... at which the photo is asked for so many of its pixels farther out
NARROWEST = 0.2             # eyes closer together than this share of their distance from the mouth are seen from the side
# The points that frame a face, as (index, ...) of the usual 68 landmarks: eyes, corners of the mouth.
POINTS_OF_68 = {"left eye": range(36, 42), "right eye": range(42, 48), "left mouth": (48,), "right mouth": (54,)}
POINTS_OF_5 = {"left eye": (0,), "right eye": (1,), "left mouth": (3,), "right mouth": (4,)}     # 2 is the nose


def framing_points(landmarks: np.ndarray) -> dict[str, np.ndarray]:
    """Landmarks (68, 2) or (5, 2) -> the four points that frame a face, left and right as the viewer sees them.

    Raises:
        UserError: they are something else, or the eyes lie nearly on one another, as in a face seen from the side.
    """
    points = checked_landmarks(landmarks)
    groups = POINTS_OF_68 if len(points) == 68 else POINTS_OF_5
    found = {name: points[list(indices)].mean(axis=0) for name, indices in groups.items()}
    between = found["right eye"] - found["left eye"]
    down = (found["left mouth"] + found["right mouth"] - found["left eye"] - found["right eye"]) / 2
    if np.hypot(*between) <= NARROWEST * np.hypot(*down):
        raise UserError("the landmarks of the eyes lie nearly on one another, as in a face seen from the side; give a more "
                        "frontal photo, or other landmarks")
    return found


@dataclass(frozen=True)
class Frame:
    """A square, turned and scaled, in a photo: where the generator's picture lies.

    Attributes:
        center: (2,) x, y in pixels of the photo; pixel i covers i to i + 1.
        right: (2,) from the center to the middle of the right edge; down is the same, turned clockwise.
    """

    center: np.ndarray
    right: np.ndarray

    @property
    def down(self) -> np.ndarray:
        return np.array([-self.right[1], self.right[0]])

    def scaled(self, by: float) -> "Frame":
        """The same square in the photo at another size."""
        return Frame(self.center * by, self.right * by)

    @property
    def half(self) -> float:
        """Half the side of the square in pixels of the photo."""
        return float(np.hypot(*self.right))

    def apart(self, other: "Frame") -> float:
        """Mean distance of the corners from those of another, as a share of the other's side."""
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
        moved = self.center - other.center + corners @ np.stack([self.right - other.right, self.down - other.down])
        return float(np.linalg.norm(moved, axis=1).mean() / (2 * other.half))

    def holds(self, x: float, y: float) -> bool:
        """Whether a place of the photo lies in the square."""
        away = np.array([x, y]) - self.center
        return bool(max(abs(away @ self.right), abs(away @ self.down)) <= self.half**2)

    def within(self, points: np.ndarray, side: int) -> np.ndarray:
        """Points (N, 2) of a photo -> where they lie in `crop` at this side, in its pixels."""
        away = points - self.center
        return (np.stack([away @ self.right, away @ self.down], axis=1) / self.half**2 + 1) / 2 * side

    def in_photo(self, points: np.ndarray, side: int) -> np.ndarray:
        """Points (N, 2) of `crop` at this side -> where they lie in the photo: `within` undone."""
        across, down = (points / side * 2 - 1).T[..., None]
        return self.center + across * self.right + down * self.down

    def box(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Left, top, right, bottom of the pixels of a photo (width, height) that the square touches."""
        reach = np.abs(self.right) + np.abs(self.down)
        low, high = np.floor(self.center - reach).astype(int), np.ceil(self.center + reach).astype(int)
        return (max(0, low[0]), max(0, low[1]), min(size[0], high[0]), min(size[1], high[1]))

    def open_edges(self, size: tuple[int, int]) -> tuple[bool, bool, bool, bool]:
        """Whether a photo (width, height) goes on beyond the square's left, top, right and bottom edge."""
        along, far = np.linspace(-1, 1, ALONG), np.full(ALONG, 1 + BEYOND / self.half)

        def goes_on(across: np.ndarray, down: np.ndarray) -> bool:
            points = self.center + across[:, None] * self.right + down[:, None] * self.down
            return bool(((points >= 0) & (points < size)).all(axis=1).any())

        return goes_on(-far, along), goes_on(along, -far), goes_on(far, along), goes_on(along, far)

    def check(self, size: tuple[int, int]) -> None:
        """Raise UserError unless the square has a size and touches a photo (width, height)."""
        if self.half > 1:
            left, top, right, bottom = self.box(size)
            if right > left and bottom > top:
                return
        raise UserError("the landmarks coincide or lie outside of the photo; check them")

    def crop(self, photo: Image.Image, side: int) -> np.ndarray:
        """(side, side, 3) uint8 of what the square shows. Beyond the photo's edge it is mirrored.

        Raises:
            UserError: the square has no size, or is not inside the photo at all.
        """
        self.check(photo.size)
        left, top, right, bottom = self.box(photo.size)
        # Shrink first where the photo is finer than the crop, or pixels between the samples would be lost.
        shrink = max(1.0, 2 * self.half / side)
        size = [max(1, round(length / shrink)) for length in (right - left, bottom - top)]
        small = photo.resize(size, Image.Resampling.BOX, box=(left, top, right, bottom))
        pixels = torch.from_numpy(np.asarray(small, np.float32)).permute(2, 0, 1)[None]
        steps = (torch.arange(side, dtype=torch.float64) + 0.5) * (2 / side) - 1
        down, across = torch.meshgrid(steps, steps, indexing="ij")                           # (side, side) in [-1, 1]
        x, y = (self.center[axis] + across * self.right[axis] + down * self.down[axis] for axis in (0, 1))
        grid = torch.stack([(x - left) / (right - left), (y - top) / (bottom - top)], dim=2) * 2 - 1
        crop = F.grid_sample(pixels, grid[None].float(), mode="bicubic", padding_mode="reflection", align_corners=False)
        return crop[0].permute(1, 2, 0).round().clamp(0, 255).byte().numpy()

    def put_back(self, photo: Image.Image, before: np.ndarray, after: np.ndarray, share: np.ndarray,
                 anew: np.ndarray | None = None) -> Image.Image:
        """Show an edit in a photo: where the share is 0, it stays as it is, bit for bit.

        The generator's picture of the face is never quite the photo. Where the edit keeps the structure of the face, as a
        colour of hair does, what differs stays in the photo, its strands and pores; where it makes another structure, as
        an open mouth is, the generator's stands alone, or the old mouth would show through it. And where it sets another
        colour, what differs in colour goes: grey hair is grey, though the generator's was not as yellow as the photo's.
        photo + share * (after + k * (photo - before - lost) - photo), k = `kept_detail`, lost of `Apart`. Where all is
        drawn anew, k is less where the photo has other things than the generator, teeth where that has a lip, and 1 - k of
        the tone of the photo's face is given to what was drawn.

        Args:
            before, after: (R, R, 3) uint8 of the square without and with the edit.
            share: (R, R) in [0, 1], how much of what was made a pixel takes over.
            anew: (R, R) in [0, 1], the same where it keeps no structure; None: nowhere.
        """
        left, top, right, bottom = self.box(photo.size)
        first, second = before.astype(np.float32), after.astype(np.float32)
        kept, shown = kept_detail(first, second)[..., None], share.astype(np.float32)[..., None]
        drawn = np.float32(0) if anew is None else anew.astype(np.float32)[..., None]
        apart = Apart.of(self.crop(photo, len(first) // COARSE), first, second, shown)
        kept = kept * (1 - drawn * apart.elsewhere)
        second = second - kept * apart.lost + drawn * (1 - kept) * apart.tone
        # The photo's own share and what is added to it; both are smooth where the photo is finer than the square.
        stacked = np.concatenate([shown * (second - kept * first), shown * (1 - kept), shown], axis=2)      # (R, R, 5)
        layers = torch.from_numpy(stacked).permute(2, 0, 1)[None]                                   # (1, 5, R, R)
        shrink = layers.shape[-1] / (2 * self.half)
        if shrink > 1:
            layers = F.interpolate(layers, size=[max(1, math.ceil(layers.shape[-1] / shrink))] * 2, mode="area")
        result = np.array(photo)
        for row in range(top, bottom, BAND):
            part = result[row:min(row + BAND, bottom), left:right]                                  # (h, w, 3)
            warped = self._warped(layers, left, row, part.shape[1], part.shape[0])
            changed = (part * (1 - warped[..., 3:4]) + warped[..., :3]).round().clip(0, 255).astype(np.uint8)
            part[...] = np.where(warped[..., 4:] > 0, changed, part)
        edited = Image.fromarray(result)
        edited.info = dict(photo.info)                          # what its numbers mean
        return edited

    def _warped(self, layers: Tensor, left: int, top: int, width: int, height: int) -> np.ndarray:
        """(height, width, C): what layers (1, C, R, R) on the square are at these pixels of the photo, 0 outside of it."""
        x = torch.arange(left, left + width, dtype=torch.float64) + 0.5 - self.center[0]
        y = torch.arange(top, top + height, dtype=torch.float64)[:, None] + 0.5 - self.center[1]
        axes = [(x * axis[0] + y * axis[1]) / self.half**2 for axis in (self.right, self.down)]     # [-1, 1] inside
        warped = F.grid_sample(layers, torch.stack(axes, dim=2)[None].float(), mode="bilinear", align_corners=False)
        return warped[0].permute(1, 2, 0).numpy()


def kept_detail(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """How much of the fine structure of a picture stands after an edit of it, in [0, KEPT_MOST]: the slope by which the
    pixels after the edit follow those before, in a window round each pixel, as a guided filter fits it (He et al. 2013).
    Where there is nothing to follow, it is the share of the light that is left, at most 1: black hair has no fair shine.

    Args:
        before, after: (R, R, 3) in [0, 255].
    Returns:
        (R, R) float32.
    """
    pictures = [torch.from_numpy(picture).permute(2, 0, 1)[None] for picture in (before, after)]
    first, second = (means(picture, WINDOWS) for picture in pictures)
    together = (means(pictures[0] * pictures[1], WINDOWS) - first * second).sum(dim=1)              # (1, R, R)
    own = (means(pictures[0].square(), WINDOWS) - first.square()).sum(dim=1)
    light = ((second.mean(dim=1) + 1) / (first.mean(dim=1) + 1)).clamp(max=1)
    slope = (together + SMOOTH * light) / (own + SMOOTH)
    return slope[0].clamp(0, KEPT_MOST).numpy()


class Apart(NamedTuple):
    """How a photo differs from the generator's picture before an edit, without its detail.

    Attributes:
        lost: (R, R, 3) in levels, what differs in colour, as far as the edit sets another colour.
        tone: (R, R, 3) in levels, what differs in light over much of the face, as far as the edit sets no other colour, and
            in hue, as far as it sets no other hue: brows that get dark stay brown.
        elsewhere: (R, R, 1) in [0, 1], how far it has other things in a place, whatever their tone, where the edit sets
            colours.
    """

    lost: np.ndarray
    tone: np.ndarray
    elsewhere: np.ndarray

    @classmethod
    def of(cls, seen: np.ndarray, before: np.ndarray, after: np.ndarray, share: np.ndarray) -> "Apart":
        """Of what the square shows.

        Args:
            seen: (r, r, 3) uint8 of the photo, r the side of the others over COARSE.
            before, after: (R, R, 3) float32 in [0, 255].
            share: (R, R, 1) in [0, 1], what is edited; colours are compared with others there.
        """
        def small(pixels: np.ndarray) -> Tensor:
            return area_resize(torch.from_numpy(pixels).permute(2, 0, 1)[None], len(seen))

        inside, first = small(share) + 1e-3, small(before)

        def colour(pixels: Tensor, windows: int = COLOUR_WINDOWS) -> Tensor:
            """(1, 3, r, r): the mean of what is edited, in a window round each pixel."""
            return means(pixels * inside, windows) / means(inside, windows)

        differs, change = small(seen.astype(np.float32)) - first, colour(small(after) - first)
        near, wide = colour(differs), colour(differs, TONE_WINDOWS)
        changed, turned, away = (1 - torch.exp(-levels.square().sum(dim=1, keepdim=True) / scale**2)    # (1, 1, r, r)
                                 for levels, scale in ((change, SET), (hue(change), HUE), (near - wide, MISPLACED)))
        tone = (wide - hue(wide)) * (1 - changed) + hue(near) * (1 - turned)
        maps = torch.cat([near * changed, tone, away * changed], dim=1)                                 # (1, 7, r, r)
        whole = F.interpolate(maps, size=before.shape[:2], mode="bilinear")[0].permute(1, 2, 0).numpy()
        return cls(whole[..., :3], whole[..., 3:6], whole[..., 6:])


def hue(colours: Tensor) -> Tensor:
    """Colours (B, 3, h, w) without their light."""
    return colours - colours.mean(dim=1, keepdim=True)


def means(maps: Tensor, windows: int) -> Tensor:
    """Mean of square maps (B, C, S, S) in a window round each pixel, of which so many fit into a side."""
    return window_means(maps, maps.shape[-1] // windows | 1)


def ffhq_frame(landmarks: np.ndarray) -> Frame:
    """How FFHQ frames a face with these landmarks (68, 2) or (5, 2).

    The square stands along the mean of the eyes' line and the line across eyes and mouth; its half side is twice the
    distance of the eyes, or 1.8 times that from eyes to mouth if this is more; its center is a tenth of the way from the
    eyes to the mouth. Source: Karras et al. 2019, appendix C.
    """
    points = framing_points(landmarks)
    eyes, mouth = ((points[f"left {part}"] + points[f"right {part}"]) / 2 for part in ("eye", "mouth"))
    eye_to_eye, eye_to_mouth = points["right eye"] - points["left eye"], mouth - eyes
    across = eye_to_eye - np.array([-eye_to_mouth[1], eye_to_mouth[0]])
    half = max(2 * np.hypot(*eye_to_eye), 1.8 * np.hypot(*eye_to_mouth))
    return Frame(eyes + 0.1 * eye_to_mouth, across / np.hypot(*across) * half)


def frame_like(landmarks: np.ndarray, typical: np.ndarray) -> Frame:
    """The square in which landmarks (N, 2) lie, as nearly as a turn, a scale and a shift can, at typical places.

    Args:
        typical: (N, 2) in [-1, 1] of the square, x to the right, y down.
    """
    own, other = landmarks - landmarks.mean(axis=0), typical - typical.mean(axis=0)
    a, b = own[:, 0] + 1j * own[:, 1], other[:, 0] + 1j * other[:, 1]
    turn = np.vdot(b, a) / np.vdot(b, b)                                         # the least squares solution of a = turn b
    shift = turn * complex(*typical.mean(axis=0))
    return Frame(landmarks.mean(axis=0) - [shift.real, shift.imag], np.array([turn.real, turn.imag]))


def checked_landmarks(points: Any) -> np.ndarray:
    """Points as (68, 2) or (5, 2) float64.

    Raises:
        UserError: they are something else.
    """
    try:
        array = np.array(points, np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.shape not in ((68, 2), (5, 2)) or not np.isfinite(array).all():
        raise UserError(f"landmarks of shape {array.shape} were found, expected x and y of 68 points, or of 5 (eyes, nose, "
                        "corners of the mouth), all finite")
    return array
