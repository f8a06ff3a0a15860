"""Drawn faces: a seeded vector renderer of front-view faces with exact part masks.

Coordinates run over [-1, 1] on both axes, x to the right, y down. Shapes are approximate signed distances (negative
inside), turned into coverage over one pixel, and painted from back to front; a pixel's label is the topmost part that
covers more than half of it.
"""

from dataclasses import dataclass, fields, replace

import numpy as np

SIZE = 128

# CelebAMask-HQ's part names, left and right joined.
PARTS = ("background", "skin", "nose", "eyes", "brows", "ears", "mouth", "lips", "hair", "neck", "cloth", "earrings",
         "glasses")

HAIR_COLOURS = {"black": (0.10, 0.09, 0.11), "brown": (0.40, 0.24, 0.13), "blonde": (0.95, 0.80, 0.42),
                "red": (0.76, 0.24, 0.10), "grey": (0.66, 0.66, 0.69), "purple": (0.46, 0.22, 0.64),
                "blue": (0.16, 0.36, 0.82), "pink": (0.97, 0.52, 0.72)}
EYE_COLOURS = {"blue": (0.22, 0.50, 0.93), "brown": (0.40, 0.22, 0.09), "green": (0.22, 0.62, 0.30)}
LIP_COLOURS = {"bare": (0.72, 0.42, 0.38), "red": (0.82, 0.05, 0.12), "pink": (1.00, 0.38, 0.66)}
SKIN_TONES = ((0.99, 0.89, 0.81), (0.89, 0.70, 0.55), (0.45, 0.29, 0.20))       # pale, medium, dark
GOLD, FRAME, CHEEK, MOUTH = (0.99, 0.80, 0.16), (0.13, 0.13, 0.17), (0.95, 0.33, 0.33), (0.30, 0.06, 0.08)
TEETH, BROW, BEARD = (0.97, 0.96, 0.93), (0.21, 0.14, 0.11), (0.24, 0.16, 0.12)
# A mapping from z to attributes (FaceParams.from_z): how steeply categories and present/absent attributes switch.
CATEGORY_SHARPNESS, PRESENCE_SHARPNESS = 6.0, 5.0


@dataclass(frozen=True)
class FaceParams:
    """N faces as arrays: (N,) values in [0, 1], (N, options) weights that sum to 1, (N, 3) colours in [0, 1]."""

    hair_colour: np.ndarray     # weights over HAIR_COLOURS
    eye_colour: np.ndarray      # weights over EYE_COLOURS
    lipstick: np.ndarray        # weights over LIP_COLOURS
    hair_length: np.ndarray     # 0 ends at the ears, 1 on the shoulders
    skin_tone: np.ndarray       # 0 pale, 0.5 medium, 1 dark
    eye_opening: np.ndarray
    brow_thickness: np.ndarray
    nose_width: np.ndarray
    ear_size: np.ndarray
    smile: np.ndarray           # 0 corners down, 1 broad smile
    mouth_open: np.ndarray
    beard: np.ndarray           # presence, drawn as opacity; so are the next three
    rosy_cheeks: np.ndarray
    earrings: np.ndarray
    glasses: np.ndarray
    face_width: np.ndarray
    face_height: np.ndarray
    position_x: np.ndarray
    position_y: np.ndarray
    background: np.ndarray      # (N, 3) before softening
    clothes: np.ndarray         # (N, 3)

    @staticmethod
    def widths() -> dict[str, int]:
        """Numbers per face of each field, in order (1 for a value)."""
        special = {"hair_colour": len(HAIR_COLOURS), "eye_colour": len(EYE_COLOURS), "lipstick": len(LIP_COLOURS),
                   "background": 3, "clothes": 3}
        return {field.name: special.get(field.name, 1) for field in fields(FaceParams)}

    @classmethod
    def from_z(cls, z: np.ndarray) -> "FaceParams":
        """The fixed rule by which a latent z (N, D), D >= 38, decides a face; z is first scaled to unit mean square.

        Categories are a softmax over their entries, values a sigmoid of one entry, presences a steep sigmoid that about
        a third of all faces pass. Everything is smooth in z, so that a generator can be fitted to it.
        """
        z = z / np.sqrt(np.mean(z**2, axis=1, keepdims=True) + 1e-8)
        values, start = {}, 0
        for name, width in cls.widths().items():
            part, start = z[:, start:start + width], start + width
            if name in ("hair_colour", "eye_colour", "lipstick"):
                weights = np.exp(CATEGORY_SHARPNESS * (part - part.max(axis=1, keepdims=True)))
                values[name] = weights / weights.sum(axis=1, keepdims=True)
            elif name in ("beard", "rosy_cheeks", "earrings", "glasses"):
                values[name] = _sigmoid(PRESENCE_SHARPNESS * (part[:, 0] - 0.45))
            else:
                values[name] = _sigmoid(1.6 * part).reshape(len(z), *([width] if width > 1 else []))
        return cls(**{name: value.astype(np.float32) for name, value in values.items()})

    @classmethod
    def sample(cls, count: int, seed: int) -> "FaceParams":
        """`count` random faces; in half of them categories and presences are pure, as edited faces should be."""
        random = np.random.default_rng(seed)
        smooth = cls.from_z(random.standard_normal((count, sum(cls.widths().values()))))
        pure = random.random(count) < 0.5
        changes = {}
        for name in ("hair_colour", "eye_colour", "lipstick"):
            weights = getattr(smooth, name)
            one_hot = np.eye(weights.shape[1], dtype=np.float32)[weights.argmax(axis=1)]
            changes[name] = np.where(pure[:, None], one_hot, weights)
        for name in ("beard", "rosy_cheeks", "earrings", "glasses"):
            changes[name] = np.where(pure, np.round(getattr(smooth, name)), getattr(smooth, name))
        return replace(smooth, **changes)

    @classmethod
    def mean(cls) -> "FaceParams":
        """One face with every value in the middle of its range."""
        return cls(**{name: np.full((1, width) if width > 1 else 1, 1 / width if width > 1 else 0.5, np.float32)
                      for name, width in cls.widths().items()})

    def __len__(self) -> int:
        return len(self.smile)

    def take(self, index) -> "FaceParams":
        """The faces at `index` (slice, integers or booleans)."""
        return FaceParams(**{field.name: getattr(self, field.name)[index] for field in fields(self)})

    def as_matrix(self) -> np.ndarray:
        """(N, P) all numbers side by side, in field order."""
        return np.concatenate([getattr(self, name).reshape(len(self), -1) for name in self.widths()], axis=1)

    def colours(self) -> dict[str, np.ndarray]:
        """The colours that paint each face, (N, 3) in [0, 1] by name."""
        pale, medium, dark = (np.array(tone, np.float32) for tone in SKIN_TONES)
        t = self.skin_tone[:, None] * 2
        skin = np.where(t < 1, pale + t * (medium - pale), medium + (t - 1) * (dark - medium))
        hair = self.hair_colour @ _palette(HAIR_COLOURS)
        bare, painted = self.lipstick[:, :1], self.lipstick[:, 1:] @ _palette(LIP_COLOURS)[1:]
        bare_lips = 0.55 * skin * np.array([1.0, 0.72, 0.70], np.float32) + 0.45 * np.array(LIP_COLOURS["bare"])
        return {"skin": skin, "hair": hair, "eyes": self.eye_colour @ _palette(EYE_COLOURS),
                "lips": bare * bare_lips + painted,
                "background": 0.68 + 0.24 * self.background, "clothes": 0.20 + 0.55 * self.clothes}


@dataclass(frozen=True)
class Drawing:
    """images (N, S, S, 3) uint8; labels (N, S, S) uint8 index into PARTS; areas: named skin areas, (N, S, S) bool."""

    images: np.ndarray
    labels: np.ndarray
    areas: dict[str, np.ndarray]

    def mask(self, part: str) -> np.ndarray:
        """(N, S, S) bool of a part of PARTS, or of the skin areas "cheeks" and "jaw"."""
        if part in self.areas:
            return self.areas[part]
        return self.labels == PARTS.index(part)


def draw_faces(params: FaceParams, size: int = SIZE, chunk: int = 64) -> Drawing:
    """Draw every face of `params` at size x size pixels, `chunk` faces at a time (they then stay in the cache)."""
    chunks = [_finished(_draw(params.take(slice(i, i + chunk)), size)) for i in range(0, len(params), chunk)]
    return Drawing(np.concatenate([part.images for part in chunks]), np.concatenate([part.labels for part in chunks]),
                   {name: np.concatenate([part.areas[name] for part in chunks]) for name in chunks[0].areas})


def landmarks(params: FaceParams) -> dict[str, np.ndarray]:
    """Exact points of each face, (N, 2) x and y in [-1, 1]: both eye centres, both mouth corners, the nose tip."""
    shape = _Geometry(params)
    left, right = (np.concatenate([shape.cx + side * shape.eye_x, shape.eye_y], axis=1)[..., 0] for side in (-1, 1))
    corners = [np.concatenate([shape.cx + side * shape.mouth_half, shape.mouth_y], axis=1)[..., 0] for side in (-1, 1)]
    return {"left_eye": left, "right_eye": right, "nose": np.concatenate([shape.cx, shape.nose_y], axis=1)[..., 0],
            "left_mouth": corners[0], "right_mouth": corners[1]}


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def _palette(colours: dict) -> np.ndarray:
    return np.array(list(colours.values()), np.float32)


class _Geometry:
    """Positions and sizes that several parts share, each (N, 1, 1)."""

    def __init__(self, p: FaceParams):
        def value(name):
            return getattr(p, name).astype(np.float32)[:, None, None]

        self.cx, self.cy = 0.10 * (value("position_x") - 0.5), 0.03 + 0.08 * (value("position_y") - 0.5)
        self.half_width, self.half_height = 0.35 + 0.09 * value("face_width"), 0.47 + 0.09 * value("face_height")
        self.eye_x, self.eye_y = 0.43 * self.half_width, self.cy - 0.04
        self.eye_half_height = 0.028 + 0.072 * value("eye_opening")
        self.nose_y, self.nose_half = self.cy + 0.155, 0.042 + 0.078 * value("nose_width")
        self.ear_rx, self.ear_ry = 0.055 + 0.06 * value("ear_size"), 0.085 + 0.085 * value("ear_size")
        self.ear_x, self.ear_y = self.half_width * 0.97 + 0.35 * self.ear_rx, self.cy + 0.03
        self.mouth_y, self.mouth_half = self.cy + 0.62 * self.half_height, 0.125 + 0.055 * value("smile")


class _Canvas:
    """A batch of pictures being painted: image (N, 3, S, S) float32 in [0, 1], labels (N, S, S)."""

    def __init__(self, count: int, size: int):
        self.size = size
        self.image = np.zeros((count, 3, size, size), np.float32)
        self.labels = np.zeros((count, size, size), np.uint8)
        self.areas: dict[str, np.ndarray] = {}
        self.axis = (np.arange(size, dtype=np.float32) + 0.5) * (2 / size) - 1

    def window(self, x0: float, x1: float, y0: float, y1: float):
        """Slices of a window that holds a part on every face, and its pixel centres x (1, 1, w), y (1, h, 1)."""
        def cut(low, high):
            return slice(max(0, int((low + 1) / 2 * self.size)), min(self.size, int((high + 1) / 2 * self.size) + 1))

        xs, ys = cut(x0, x1), cut(y0, y1)
        return (ys, xs), self.axis[None, None, xs], self.axis[None, ys, None]

    def coverage(self, distance: np.ndarray) -> np.ndarray:
        """Signed distance to the share of each pixel that is inside, (N, h, w) in [0, 1]."""
        return np.clip(0.5 - distance * (self.size / 2), 0, 1)

    def paint(self, window, alpha: np.ndarray, colour: np.ndarray, part: str | None = None) -> None:
        """Lay `colour` ((N, 3) or (N, 3, h, w)) over a window with opacity alpha (N, h, w)."""
        ys, xs = window
        colour = np.asarray(colour, np.float32)
        colour = colour[:, :, None, None] if colour.ndim == 2 else colour
        target = self.image[:, :, ys, xs]
        target += alpha[:, None] * (colour - target)
        if part is not None:
            self.labels[:, ys, xs][alpha > 0.5] = PARTS.index(part)


def _ellipse(x, y, cx, cy, rx, ry) -> np.ndarray:
    """Approximate signed distance to an ellipse: exact on its axes' ends, close near its edge."""
    radius = np.sqrt(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2)
    return (radius - 1) * np.minimum(rx, ry)


def _smoothstep(low: float, high: float, x: np.ndarray) -> np.ndarray:
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def _finished(canvas: _Canvas) -> Drawing:
    """In bytes, a quarter of the canvas: many thousand faces fit into memory."""
    pixels = np.clip(canvas.image * 255 + 0.5, 0, 255).astype(np.uint8)
    return Drawing(np.ascontiguousarray(pixels.transpose(0, 2, 3, 1)), canvas.labels, canvas.areas)


def _draw(params: FaceParams, size: int) -> _Canvas:
    canvas, shape, colours = _Canvas(len(params), size), _Geometry(params), params.colours()
    value = {name: getattr(params, name).astype(np.float32)[:, None, None] for name in params.widths()
             if getattr(params, name).ndim == 1}
    _background(canvas, colours)
    hair = _hair_shape(canvas, shape, value["hair_length"])
    shaded_hair = _hair_colour(canvas, shape, colours["hair"])
    everywhere = (slice(None), slice(None))
    canvas.paint(everywhere, canvas.coverage(hair), 0.82 * shaded_hair, "hair")
    _neck_and_clothes(canvas, shape, colours)
    _ears(canvas, shape, colours["skin"])
    face = _face(canvas, shape, colours["skin"])
    _cheeks_and_beard(canvas, shape, colours, value, face)
    _nose(canvas, shape, colours["skin"])
    _mouth(canvas, shape, colours["lips"], value)
    _eyes(canvas, shape, colours)
    _front_hair(canvas, shape, hair, shaded_hair)
    _brows(canvas, shape, value["brow_thickness"])
    _earrings(canvas, shape, value["earrings"])
    _glasses(canvas, shape, value["glasses"])
    return canvas


def _background(canvas, colours) -> None:
    shade = 1.04 - 0.10 * canvas.axis[None, None, :, None]
    canvas.image += np.clip(colours["background"][:, :, None, None] * shade, 0, 1).astype(np.float32)


def _hair_shape(canvas, s: _Geometry, length) -> np.ndarray:
    """Signed distance to the whole head of hair: a cap over the skull that falls straight to its length."""
    x, y = canvas.axis[None, None, :], canvas.axis[None, :, None]
    half, top = s.half_width + 0.135, s.cy - 0.02
    cap = _ellipse(x, y, s.cx, top, half, s.half_height + 0.12)
    end = s.cy + 0.04 + 0.74 * length
    drop = np.maximum(y - top, 0)
    side = np.abs(x - s.cx) - half - 0.06 * drop * length + 0.5 * np.maximum(y - end + 0.10, 0) ** 2 / 0.10
    return np.where(y < top, cap, np.maximum(side, y - end))


def _hair_colour(canvas, s: _Geometry, hair: np.ndarray) -> np.ndarray:
    """(N, 3, S, S): strands that follow the head and a soft light across the crown."""
    x, y = canvas.axis[None, None, :], canvas.axis[None, :, None]
    strands = np.cos(((x - s.cx) / s.half_width) * 13) * 0.05
    light = 0.22 * np.exp(-(((y - s.cy + 0.40) / 0.12) ** 2)) * np.exp(-(((x - s.cx) / 0.40) ** 2))
    shade = (1 + strands + light - 0.12 * (y - s.cy)).astype(np.float32)
    return np.clip(hair[:, :, None, None] * shade[:, None] + 0.10 * light[:, None], 0, 1)


def _neck_and_clothes(canvas, s: _Geometry, colours) -> None:
    window, x, y = canvas.window(-0.40, 0.40, 0.20, 1)
    neck = np.maximum(np.abs(x - s.cx) - 0.15 - 0.04 * np.maximum(y - 0.6, 0), s.cy + 0.2 - y)
    shadow = 1 - 0.26 * np.clip(1 - (y - s.cy - s.half_height) / 0.16, 0, 1)
    canvas.paint(window, canvas.coverage(neck), colours["skin"][:, :, None, None] * 0.95 * shadow[:, None], "neck")
    window, x, y = canvas.window(-1, 1, 0.6, 1)
    body = np.maximum(_ellipse(x, y, s.cx, 1.20, 0.80, 0.42), -_ellipse(x, y, s.cx, 0.78, 0.20, 0.11))
    shade = 1.06 - 0.5 * (x - s.cx) ** 2 + 0 * y
    canvas.paint(window, canvas.coverage(body), np.clip(colours["clothes"][:, :, None, None] * shade[:, None], 0, 1),
                 "cloth")


def _ears(canvas, s: _Geometry, skin: np.ndarray) -> None:
    for side in (-1, 1):
        window, x, y = canvas.window(*sorted((side * 0.20, side * 0.75)), -0.30, 0.35)
        centre = s.cx + side * s.ear_x
        canvas.paint(window, canvas.coverage(_ellipse(x, y, centre, s.ear_y, s.ear_rx, s.ear_ry)), 0.94 * skin, "ears")
        inner = _ellipse(x, y, centre + side * 0.01, s.ear_y, 0.5 * s.ear_rx, 0.6 * s.ear_ry)
        canvas.paint(window, canvas.coverage(inner), 0.78 * skin)


def _face(canvas, s: _Geometry, skin: np.ndarray) -> np.ndarray:
    """Paints the face and returns its coverage over the whole picture."""
    x, y = canvas.axis[None, None, :], canvas.axis[None, :, None]
    taper = 1 - 0.16 * np.clip((y - s.cy) / s.half_height, 0, 1) ** 2          # a chin narrower than the temples
    alpha = canvas.coverage(_ellipse(x, y, s.cx, s.cy, s.half_width * taper, s.half_height))
    rim = ((x - s.cx) / s.half_width) ** 2 + 0.6 * ((y - s.cy) / s.half_height) ** 2
    shade = 1.03 - 0.13 * rim
    canvas.paint((slice(None), slice(None)), alpha, np.clip(skin[:, :, None, None] * shade[:, None], 0, 1), "skin")
    return alpha


def _cheeks_and_beard(canvas, s: _Geometry, colours, value, face: np.ndarray) -> None:
    x, y = canvas.axis[None, None, :], canvas.axis[None, :, None]
    jaw = _smoothstep(0.06, 0.18, y - s.cy) * canvas.coverage(
        -_ellipse(x, y, s.cx, s.cy + 0.02, 0.80 * s.half_width, 0.62 * s.half_height) * 0.25)
    jaw = np.maximum(jaw, canvas.coverage(_ellipse(x, y, s.cx, s.mouth_y - 0.075, 0.155, 0.045) * 0.5)) * face
    canvas.areas["jaw"] = jaw > 0.5
    canvas.paint((slice(None), slice(None)), 0.85 * value["beard"] * jaw, np.array(BEARD)[None])
    cheeks = np.zeros_like(face)
    for side in (-1, 1):
        window, x, y = canvas.window(*sorted((side * 0.02, side * 0.60)), -0.05, 0.45)
        distance = (((x - s.cx - side * 0.60 * s.half_width) / 0.125) ** 2 + ((y - s.cy - 0.175) / 0.095) ** 2)
        blush = np.clip(1.25 - distance, 0, 1) * face[:, window[0], window[1]]
        cheeks[:, window[0], window[1]] = np.maximum(cheeks[:, window[0], window[1]], blush)
        canvas.paint(window, 0.72 * value["rosy_cheeks"] * blush, np.array(CHEEK)[None])
    canvas.areas["cheeks"] = cheeks > 0.3


def _nose(canvas, s: _Geometry, skin: np.ndarray) -> None:
    window, x, y = canvas.window(-0.26, 0.26, -0.22, 0.36)
    bulb = _ellipse(x, y, s.cx, s.nose_y, s.nose_half, 0.055)
    slope = np.clip((y - s.eye_y) / (s.nose_y - s.eye_y), 0, 1)
    bridge = np.maximum(np.abs(x - s.cx) - 0.018 - 0.45 * s.nose_half * slope**2,
                        np.maximum(s.eye_y + 0.02 - y, y - s.nose_y))
    nose = np.minimum(bulb, bridge)
    light = 0.93 + 0.10 * np.exp(-(((x - s.cx) / 0.03) ** 2) - ((y - s.nose_y + 0.02) / 0.08) ** 2)
    canvas.paint(window, canvas.coverage(nose), np.clip(skin[:, :, None, None] * 0.90 * light[:, None], 0, 1), "nose")
    under = np.maximum(bulb, s.nose_y + 0.022 - y)
    canvas.paint(window, 0.35 * canvas.coverage(under), 0.55 * skin)
    for side in (-1, 1):
        nostril = _ellipse(x, y, s.cx + side * 0.5 * s.nose_half, s.nose_y + 0.028, 0.22 * s.nose_half + 0.006, 0.014)
        canvas.paint(window, canvas.coverage(nostril), 0.42 * skin)


def _mouth(canvas, s: _Geometry, lips: np.ndarray, value) -> None:
    window, x, y = canvas.window(-0.30, 0.30, 0.15, 0.65)
    taper = 1 - ((x - s.cx) / s.mouth_half) ** 2                                # 1 in the middle, 0 at the corners
    middle = s.mouth_y + 0.16 * (value["smile"] - 0.30) * (taper - 0.5)
    opening = 0.080 * value["mouth_open"]
    offset = y - middle
    outer = np.maximum(-offset - (0.040 + 0.5 * opening) * taper, offset - (0.052 + opening) * taper)
    inner = np.maximum(-offset - (0.004 + 0.5 * opening) * taper, offset - (0.004 + opening) * taper)
    canvas.paint(window, canvas.coverage(outer), lips, "lips")
    gap = canvas.coverage(inner)
    canvas.paint(window, gap, np.array(MOUTH)[None], "mouth")
    teeth = np.maximum(inner + 0.008, offset - 0.2 * opening)
    canvas.paint(window, canvas.coverage(teeth), np.array(TEETH)[None])


def _eyes(canvas, s: _Geometry, colours) -> None:
    for side in (-1, 1):
        window, x, y = canvas.window(*sorted((side * 0.01, side * 0.40)), -0.28, 0.18)
        cx, cy, half = s.cx + side * s.eye_x, s.eye_y, s.eye_half_height
        lid = canvas.coverage(_ellipse(x, y, cx, cy - 0.010, 0.112, half + 0.014))
        canvas.paint(window, lid, 0.30 * colours["skin"], "eyes")
        white = canvas.coverage(_ellipse(x, y, cx, cy + 0.004, 0.105, half))
        canvas.paint(window, white, np.array([[0.98, 0.98, 0.98]]), "eyes")
        for radius, colour in ((0.070, colours["eyes"]), (0.030, np.array([[0.05, 0.05, 0.06]]))):
            canvas.paint(window, white * canvas.coverage(_ellipse(x, y, cx, cy, radius, radius)), colour, "eyes")
        glint = canvas.coverage(_ellipse(x, y, cx + 0.022, cy - 0.020, 0.014, 0.014))
        canvas.paint(window, white * glint, np.array([[1.0, 1.0, 1.0]]))


def _front_hair(canvas, s: _Geometry, hair: np.ndarray, colour: np.ndarray) -> None:
    """The fringe: hair above the forehead, open over the face and ending above the ears."""
    x, y = canvas.axis[None, None, :], canvas.axis[None, :, None]
    opening = _ellipse(x, y, s.cx + 0.04, s.cy + 0.16, 0.90 * s.half_width, 0.80 * s.half_height)
    fringe = np.maximum(np.maximum(hair, -opening), y - (s.cy - 0.06))
    canvas.paint((slice(None), slice(None)), canvas.coverage(fringe), colour, "hair")


def _brows(canvas, s: _Geometry, thickness) -> None:
    for side in (-1, 1):
        window, x, y = canvas.window(*sorted((side * 0.0, side * 0.42)), -0.42, 0.0)
        u = (x - s.cx - side * s.eye_x) / 0.125
        height = np.abs(y - (s.eye_y - 0.155 + 0.035 * u**2)) - (0.010 + 0.040 * thickness) * (1 - 0.45 * u**2)
        canvas.paint(window, canvas.coverage(np.maximum(height, (np.abs(u) - 1) * 0.125)), np.array(BROW)[None], "brows")


def _earrings(canvas, s: _Geometry, presence) -> None:
    for side in (-1, 1):
        window, x, y = canvas.window(*sorted((side * 0.25, side * 0.80)), -0.05, 0.50)
        cx, cy = s.cx + side * (s.ear_x + 0.2 * s.ear_rx), s.ear_y + s.ear_ry + 0.035
        ring = _ellipse(x, y, cx, cy, 0.050, 0.050)
        canvas.paint(window, presence * canvas.coverage(ring), np.array(GOLD)[None], "earrings")
        glint = canvas.coverage(_ellipse(x, y, cx - 0.015, cy - 0.015, 0.016, 0.016))
        canvas.paint(window, presence * glint, np.array([[1.0, 0.97, 0.75]]))


def _glasses(canvas, s: _Geometry, presence) -> None:
    window, x, y = canvas.window(-0.60, 0.60, -0.32, 0.24)
    distance = np.abs(x - s.cx)
    rims = np.abs(_ellipse(distance, y, s.eye_x, s.eye_y + 0.01, 0.158, 0.150)) - 0.016
    bar = np.abs(y - s.eye_y + 0.01) - 0.014
    bridge = np.maximum(bar, distance - s.eye_x + 0.15)
    temples = np.maximum(bar, np.maximum(s.eye_x + 0.15 - distance, distance - s.half_width))
    frame = np.minimum(rims, np.minimum(bridge, temples))
    canvas.paint(window, presence * canvas.coverage(frame), np.array(FRAME)[None], "glasses")
