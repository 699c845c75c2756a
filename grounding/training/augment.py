"""Random changes of training pictures that leave the truth intact: small affine moves (boxes follow) and exposure.

All functions take their random generator; nothing here knows what a finding is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont
from scipy import ndimage

from grounding.geometry import BoxTuple
from grounding.types import Image


@dataclass(frozen=True, slots=True)
class AffineRange:
    """Largest changes: scale as a share, shift as a share of the picture, rotation in degrees."""

    scale: float
    shift: float
    degrees: float


@dataclass(frozen=True, slots=True)
class Affine:
    """A drawn move: new = centre + R(angle) * scale * (old - centre) + shift, in units of the picture."""

    scale_x: float
    scale_y: float
    shift_x: float
    shift_y: float
    radians: float
    mirrored: bool

    def box(self, cxcywh: BoxTuple) -> BoxTuple:
        """The moved box, clipped to the picture; rotation widens it by half of what its corners would."""
        cx, cy, w, h = cxcywh
        c, s = math.cos(self.radians), math.sin(self.radians)
        x, y = (cx - 0.5) * (-1 if self.mirrored else 1) * self.scale_x, (cy - 0.5) * self.scale_y
        w, h = w * self.scale_x, h * self.scale_y
        nx, ny = 0.5 + c * x - s * y + self.shift_x, 0.5 + s * x + c * y + self.shift_y
        nw, nh = w * c + 0.5 * h * abs(s), h * c + 0.5 * w * abs(s)
        x1, y1 = max(nx - nw / 2, 0.0), max(ny - nh / 2, 0.0)
        x2, y2 = min(nx + nw / 2, 1.0), min(ny + nh / 2, 1.0)
        return ((x1 + x2) / 2, (y1 + y2) / 2, max(x2 - x1, 0.0), max(y2 - y1, 0.0))

    def draw(self, image: Image, size: int) -> Image:
        """float32[H, W] -> float32[size, size], black where nothing was."""
        height, width = image.shape
        c, s = math.cos(self.radians), math.sin(self.radians)
        sign = -1.0 if self.mirrored else 1.0
        # Pillow wants the way back: picture coordinates of each new pixel.
        a, b = sign * c / self.scale_x, sign * s / self.scale_x
        d, e = -s / self.scale_y, c / self.scale_y
        ox = 0.5 - a * (0.5 + self.shift_x) - b * (0.5 + self.shift_y)
        oy = 0.5 - d * (0.5 + self.shift_x) - e * (0.5 + self.shift_y)
        rows = (a * width / size, b * width / size, ox * width, d * height / size, e * height / size, oy * height)
        moved = PillowImage.fromarray(image, mode="F").transform(
            (size, size), PillowImage.Transform.AFFINE, rows, PillowImage.Resampling.BILINEAR
        )
        return np.asarray(moved, dtype=np.float32)


IDENTITY = Affine(1.0, 1.0, 0.0, 0.0, 0.0, False)


def draw_affine(rng: np.random.Generator, limits: AffineRange, boxes: Sequence[BoxTuple], mirrored: bool) -> Affine:
    """A random move that keeps at least 70 % of every box in the picture (the plain mirror image if none is found)."""
    for _ in range(8):
        both = math.exp(rng.uniform(-limits.scale, limits.scale))
        stretch = math.exp(rng.uniform(-limits.scale, limits.scale) / 2)
        move = Affine(
            both * stretch, both / stretch, rng.uniform(-limits.shift, limits.shift),
            rng.uniform(-limits.shift, limits.shift), math.radians(rng.uniform(-limits.degrees, limits.degrees)),
            mirrored,
        )  # fmt: skip
        if all(move.box(b)[2] * move.box(b)[3] >= 0.7 * b[2] * b[3] * move.scale_x * move.scale_y for b in boxes):
            return move
    return Affine(1.0, 1.0, 0.0, 0.0, 0.0, mirrored)


def vary_film(rng: np.random.Generator, image: Image) -> Image:
    """What scanners, workstations and figures of papers do to a film: float32[S, S] in [0, 1] to the same.

    Uneven exposure, equalised histograms, collimation, letters and arrows, and the wear of JPEG.
    """
    out = image
    if rng.random() < 0.25:
        out = np.clip(out * (1 + _shading(rng, out.shape[0], rng.uniform(0.05, 0.3))), 0, 1)
    if rng.random() < 0.12:
        out = _equalized(out, float(rng.uniform(0.3, 1.0)))
    if rng.random() < 0.2:
        out = _collimated(rng, out)
    if rng.random() < 0.3:
        out = _lettered(rng, out)
    if rng.random() < 0.25:
        out = _jpeg(out, int(rng.integers(15, 75)))
    return np.asarray(out, dtype=np.float32)


def _shading(rng: np.random.Generator, size: int, depth: float) -> Image:
    """A slow field of mean 0, as a tilted grid or a short distance gives."""
    cells = rng.uniform(-depth, depth, (3, 3)).astype(np.float32)
    field = PillowImage.fromarray(cells, mode="F").resize((size, size), PillowImage.Resampling.BICUBIC)
    return np.asarray(field, dtype=np.float32)


def _equalized(image: Image, share: float) -> Image:
    """A mixture of the picture and its histogram-equalised self."""
    levels = np.clip(image * 255, 0, 255).astype(np.uint8)
    ranks = np.cumsum(np.bincount(levels.ravel(), minlength=256)) / levels.size
    mixed: Image = ((1 - share) * image + share * ranks[levels]).astype(np.float32)
    return mixed


def _collimated(rng: np.random.Generator, image: Image) -> Image:
    """Borders in one tone, black or white, on some sides."""
    out, tone = image.copy(), float(rng.choice([0.0, rng.uniform(0, 0.2), 1.0], p=[0.5, 0.3, 0.2]))
    for turn in range(4):
        width = int(image.shape[0] * rng.uniform(0, 0.06)) if rng.random() < 0.5 else 0
        np.rot90(out, turn)[:width] = tone
    return out


def _lettered(rng: np.random.Generator, image: Image) -> Image:
    """Letters, words or arrows as on films and in figures: bright or dark, anywhere near the border."""
    size = image.shape[0]
    picture = PillowImage.fromarray(image, mode="F")
    pen = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(1, 4))):
        edge = rng.uniform(0.01, 0.12) if rng.random() < 0.5 else rng.uniform(0.85, 0.95)
        x, y = rng.uniform(0.01, 0.9) * size, edge * size
        tone = float(rng.choice([0.0, 1.0], p=[0.2, 0.8]))
        if rng.random() < 0.8:
            text = str(rng.choice(["L", "R", "A", "B", "C", "D", "a", "AP", "PORTABLE", "SUPINE", "ERECT 10:42", "LT"]))
            pen.text((x, y), text, fill=tone, font=ImageFont.load_default(int(size * rng.uniform(0.035, 0.11))))
        else:
            tip = (rng.uniform(0.2, 0.8) * size, rng.uniform(0.2, 0.8) * size)
            pen.line([(tip[0] + size * 0.07, tip[1] + size * rng.uniform(-0.05, 0.05)), tip], fill=tone, width=2)
    return np.asarray(picture, dtype=np.float32)


def _jpeg(image: Image, quality: int) -> Image:
    stream = BytesIO()
    PillowImage.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8)).save(stream, "JPEG", quality=quality)
    with PillowImage.open(stream) as worn:
        return np.asarray(worn, dtype=np.float32) / np.float32(255)


def vary_exposure(rng: np.random.Generator, image: Image, strength: float) -> Image:
    """Gamma, contrast, brightness, blur, lost resolution and noise; `strength` 1 is strong. Stays in [0, 1]."""
    out = image
    if rng.random() < 0.25 * strength:
        out = ndimage.gaussian_filter(out, rng.uniform(0.4, 1.6))
    if rng.random() < 0.12 * strength:
        small = max(24, int(image.shape[0] / rng.uniform(1.5, 4.5)))
        picture = PillowImage.fromarray(out, mode="F")
        shrunk = picture.resize((small, small), PillowImage.Resampling.BILINEAR)
        out = np.asarray(shrunk.resize(picture.size, PillowImage.Resampling.BILINEAR))
    out = np.power(np.clip(out, 0, 1), math.exp(rng.normal(0, 0.3 * strength)))
    contrast, brightness = math.exp(rng.normal(0, 0.15 * strength)), rng.normal(0, 0.06 * strength)
    out = (out - 0.5) * contrast + 0.5 + brightness
    out = out + rng.standard_normal(out.shape, dtype=np.float32) * rng.uniform(0, 0.05 * strength)
    if rng.random() < 0.15 * strength:
        side = int(rng.integers(10, 50))
        y, x = rng.integers(0, image.shape[0] - side), rng.integers(0, image.shape[1] - side)
        out[y : y + side, x : x + side] = rng.uniform(0, 1)
    return np.clip(out, 0, 1).astype(np.float32)
