"""Colours of photos: a profile says which colours their numbers mean; generators know sRGB alone.

A photo keeps its own numbers and its profile (`info["icc_profile"]`), so that what no edit touches stays the very same
colour. Its crop is turned into sRGB for the generator, and what the generator makes into the photo's numbers.
"""

import io
import math
import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from attention.files.pictures import CODE_POINTS

LARGEST_PROFILE = 1_000_000     # bytes; Pillow opens no PNG that holds a larger one
SEEN = 2                        # levels: profiles that move no colour by more are taken for sRGB itself
LIGHTS = (0.005, 0.02, 0.05, *(step / 10 for step in range(1, 10)), 0.95, 0.98, 0.995)  # of pixels: steps of a known tone
STRANGE = 8                     # levels, of noise, by which pixels of one lightness differ in a picture of one tone
STRAY = 0.05                    # of such a picture may have another colour: a stamp, a date
SPACES = {"L": "GRAY", "CMYK": "CMYK", "LAB": "Lab", "RGB": "RGB"}         # mode -> what its profile is of
SRGB_GAMMA = 1 / 2.2
SRGB_PRIMARIES, SRGB_TRANSFERS = {1, 2}, {1, 2, 6, 13, 14, 15}             # code points of H.273; 2 is "not said"
UNUSABLE = (ImageCms.PyCMSError, OSError, ValueError, TypeError)


def to_rgb(picture: Image.Image, name: str) -> Image.Image:
    """A decoded picture of any mode as RGB, transparency on white; all of its `info` is the profile of its numbers, if any.

    Notes say what was turned into sRGB because RGB cannot hold it, and which profile was passed over.
    """
    alpha = picture.convert("RGBA").getchannel("A") if picture.has_transparency_data else None
    profile, colours = _profile(picture, name), without_alpha(picture)
    if profile is not None and _space(profile) == SPACES[colours.mode] and (colours.mode != "RGB" or not _keeps(profile)):
        warnings.warn(f"{name} has a colour profile of {SPACES[colours.mode]} ({colours.mode}); it is turned into sRGB",
                      stacklevel=3)
        colours, profile = _moved(colours, profile, _srgb()), None
    elif profile is not None and (_space(profile) != "RGB" or colours.mode in ("CMYK", "LAB")):
        warnings.warn(f"{name} has a colour profile of {_space(profile)}, but its pixels are {colours.mode}; the profile "
                      "is passed over", stacklevel=3)
        profile = None
    elif colours.mode == "CMYK":
        warnings.warn(f"{name} is CMYK without a colour profile, so that its colours in RGB are a guess", stacklevel=3)
    if colours.mode != "RGB":
        colours = colours.convert("RGB")                        # of grey, a profile of RGB holds for three equal numbers
    if alpha is not None and np.asarray(alpha).min() < 255:
        warnings.warn(f"{name} is transparent in places, which become white", stacklevel=3)
        colours = Image.composite(colours, Image.new("RGB", colours.size, "white"), alpha)
    result = colours.copy() if colours is picture else colours
    result.info = {} if profile is None else {"icc_profile": profile}
    return result


def to_srgb(pixels: np.ndarray, photo: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 in a photo's numbers -> in sRGB."""
    profile = photo.info.get("icc_profile")
    return pixels if profile is None or _is_srgb(profile) else np.array(_moved(Image.fromarray(pixels), profile, _srgb()))


def from_srgb(pixels: np.ndarray, photo: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 in sRGB -> in a photo's numbers."""
    profile = photo.info.get("icc_profile")
    return pixels if profile is None or _is_srgb(profile) else np.array(_moved(Image.fromarray(pixels), _srgb(), profile))


def in_srgb(photo: Image.Image) -> Image.Image:
    """A photo of any profile as sRGB."""
    return Image.fromarray(to_srgb(np.asarray(photo), photo))


@dataclass(frozen=True)
class Tone:
    """The one colour that a black and white, a sepia or another toned picture has at every lightness.

    Attributes:
        lights: (n,) rising, of [0, 255].
        offsets: (n, 3) what its channels have more than that.
    """

    lights: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, pixels: np.ndarray) -> "Tone | None":
        """That of pixels (H, W, 3) uint8; None if colours differ where the lightness does not."""
        light, colours = lightness(pixels).ravel(), pixels.reshape(-1, 3).astype(np.float32)
        groups = np.split(np.argsort(light), [math.ceil(share * len(light)) for share in LIGHTS])
        tone = cls(np.array([np.median(light[group]) for group in groups]),
                   np.array([np.median(colours[group] - light[group, None], axis=0) for group in groups]))
        away = np.abs(colours - tone._shown(light)).max(axis=1)
        # A dark picture of colours has none that differ much.
        return tone if np.quantile(away, 1 - STRAY) <= STRANGE / 255 * int(pixels.max()) else None

    @property
    def grey(self) -> bool:
        """Whether it is that of black and white, as near as a scanner's tint."""
        return bool(np.ptp(self.offsets, axis=1).max() <= STRANGE)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 -> the same in this tone."""
        return self._shown(lightness(pixels)).round().clip(0, 255).astype(np.uint8)

    def _shown(self, light: np.ndarray) -> np.ndarray:
        """(..., 3) float32 of lightness (...)."""
        return light[..., None] + np.stack([np.interp(light, self.lights, offset) for offset in self.offsets.T], axis=-1)


def lightness(pixels: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 -> (...) float32 in [0, 255], the luma of BT.601."""
    return pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)


def without_alpha(picture: Image.Image) -> Image.Image:
    """L, CMYK, LAB or RGB of 8 bits."""
    if picture.mode.startswith("I") or picture.mode == "F":                  # 16 bits of grey; convert() would clip them
        values = np.nan_to_num(np.asarray(picture, np.float64))
        scale = 1 / 257 if values.max() > 255 else 255 if picture.mode == "F" and values.max() <= 1 else 1
        return Image.fromarray((values * scale).round().clip(0, 255).astype(np.uint8))
    if picture.mode in ("1", "L", "LA", "La"):
        return picture.convert("L")
    if picture.mode in ("RGB", "CMYK", "LAB"):
        return picture
    return (picture.convert("RGBA") if picture.mode in ("PA", "RGBa") else picture).convert("RGB")


def _profile(picture: Image.Image, name: str) -> bytes | None:
    """The profile of a picture, once it can be read."""
    profile, (primaries, transfer) = picture.info.get("icc_profile"), picture.info.get(CODE_POINTS, (2, 2))
    if not profile and (primaries not in SRGB_PRIMARIES or transfer not in SRGB_TRANSFERS):
        warnings.warn(f"{name} says by code points (primaries {primaries}, transfer {transfer}) that its colours are not "
                      "sRGB's; they are passed over, so turn it into sRGB first if it looks pale", stacklevel=4)
    if not profile:
        gamma = picture.info.get("gamma", SRGB_GAMMA)
        if "srgb" not in picture.info and abs(gamma - SRGB_GAMMA) > 0.01:
            warnings.warn(f"{name} says by a gamma of {gamma:g} what its numbers mean; it is passed over", stacklevel=4)
        return None
    if _space(profile) is None:
        warnings.warn(f"{name} has a colour profile that cannot be read; it is passed over", stacklevel=4)
        return None
    return bytes(profile)


@lru_cache(maxsize=16)
def _space(profile: bytes) -> str | None:
    """RGB, GRAY, CMYK or Lab, what a profile is of; None if it is broken."""
    try:
        found = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile.xcolor_space.strip()
        mode = next(mode for mode, space in SPACES.items() if space == found)
        _moved(Image.new(mode, (1, 1)), profile, _srgb())
    except (*UNUSABLE, StopIteration):
        return None
    return found


@lru_cache(maxsize=16)
def _keeps(profile: bytes) -> bool:
    """Whether a photo in RGB can keep this profile: a PNG holds it, and there is a way back from sRGB."""
    try:
        _moved(Image.new("RGB", (1, 1)), _srgb(), profile)
    except UNUSABLE:
        return False
    return len(profile) <= LARGEST_PROFILE


@lru_cache(maxsize=16)
def _is_srgb(profile: bytes) -> bool:
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels), axis=3).reshape(27, 27, 3)
    moved = np.asarray(_moved(Image.fromarray(cube), profile, _srgb()))
    return int(np.abs(moved.astype(int) - cube).max()) <= SEEN


@lru_cache(maxsize=1)
def _srgb() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def _moved(picture: Image.Image, source: bytes, target: bytes) -> Image.Image:
    """The same colours in the numbers of another profile of RGB."""
    one, other = (ImageCms.ImageCmsProfile(io.BytesIO(profile)) for profile in (source, target))
    moved = ImageCms.profileToProfile(picture, one, other, outputMode="RGB")
    assert moved is not None                                    # it is None only where it works in place
    return moved
