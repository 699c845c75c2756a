"""Pure coordinates: between an image's pixels and the square canvas of the model, and between forms of a box.

Model boxes are cxcywh in [0, 1] of the canvas; `Box` is always corners in pixels of the image as stored.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from grounding.types import Box, Image

BoxTuple = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Frame:
    """Where the content of one `height` x `width` image lies on a `canvas` x `canvas` square.

    `fill` stretches the image over the whole canvas; `letterbox` keeps the aspect ratio and centres it on black.
    """

    height: int
    width: int
    canvas: int
    mode: Literal["fill", "letterbox"] = "fill"

    def __post_init__(self) -> None:
        if min(self.height, self.width, self.canvas) < 1:
            raise ValueError(f"image and canvas need at least one pixel, not {self.height} x {self.width}")

    @property
    def content(self) -> tuple[int, int, int, int]:
        """Left, top, width and height of the content on the canvas, in whole canvas pixels."""
        if self.mode == "fill":
            return (0, 0, self.canvas, self.canvas)
        longest = max(self.height, self.width)
        width = max(1, round(self.width * self.canvas / longest))
        height = max(1, round(self.height * self.canvas / longest))
        return ((self.canvas - width) // 2, (self.canvas - height) // 2, width, height)

    def to_model(self, box: Box) -> BoxTuple:
        """Image pixels -> cxcywh in [0, 1] of the canvas."""
        left, top, width, height = self.content
        xs = [(left + x / self.width * width) / self.canvas for x in (box.x1, box.x2)]
        ys = [(top + y / self.height * height) / self.canvas for y in (box.y1, box.y2)]
        return ((xs[0] + xs[1]) / 2, (ys[0] + ys[1]) / 2, xs[1] - xs[0], ys[1] - ys[0])

    def to_image(self, cxcywh: Iterable[float]) -> Box:
        """cxcywh in [0, 1] of the canvas -> image pixels, clipped to the image."""
        cx, cy, w, h = (float(v) for v in cxcywh)
        left, top, width, height = self.content

        def pixel(value: float, offset: int, extent: int, size: int) -> float:
            return min(max((value * self.canvas - offset) / extent, 0.0), 1.0) * size

        x1, x2 = (pixel(cx + sign * w / 2, left, width, self.width) for sign in (-1, 1))
        y1, y2 = (pixel(cy + sign * h / 2, top, height, self.height) for sign in (-1, 1))
        return Box(x1, y1, max(x1, x2), max(y1, y2))

    def draw(self, image: Image) -> Image:
        """float32[H, W] -> float32[canvas, canvas]; area-averaged when it shrinks, black outside the content."""
        left, top, width, height = self.content
        resized = resize(image, height, width)
        if self.mode == "fill":
            return resized
        canvas = np.zeros((self.canvas, self.canvas), np.float32)
        canvas[top : top + height, left : left + width] = resized
        return canvas


def resize(image: Image, height: int, width: int) -> Image:
    """Resample float32[H, W] to float32[height, width] with an anti-aliasing filter."""
    if image.shape == (height, width):
        return image
    picture = PillowImage.fromarray(image, mode="F")
    resampled: Image = np.asarray(picture.resize((width, height), PillowImage.Resampling.BILINEAR), dtype=np.float32)
    return resampled


def stretch_contrast(image: Image) -> Image:
    """Map the 1st and 99th percentile of float32[H, W] to 0 and 1, so that films and phantoms look alike."""
    low, high = np.percentile(image, (1.0, 99.0))
    if high - low < 1e-6:
        return np.zeros_like(image)
    stretched: Image = np.clip((image - low) / (high - low), 0.0, 1.0).astype(np.float32)
    return stretched


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes; 0 when both are empty."""
    width = max(0.0, min(a.x2, b.x2) - max(a.x1, b.x1))
    height = max(0.0, min(a.y2, b.y2) - max(a.y1, b.y1))
    union = a.area + b.area - width * height
    return width * height / union if union > 0 else 0.0


def box_map(boxes_xyxy_norm: Iterable[BoxTuple], size: int, softness: float) -> NDArray[np.float32]:
    """Soft-edged union of boxes on a size x size grid, scaled to a maximum of 1: float32[size, size]."""
    centres = ((np.arange(size) + 0.5) / size).astype(np.float32)
    total = np.zeros((size, size), np.float32)
    for x1, y1, x2, y2 in boxes_xyxy_norm:
        across = soft_interval(centres, x1, x2, softness)
        down = soft_interval(centres, y1, y2, softness)
        total = np.maximum(total, down[:, None] * across[None, :])
    peak = float(total.max())
    return total / peak if peak > 0 else total


def soft_interval(x: NDArray[np.float32], low: float, high: float, softness: float) -> NDArray[np.float32]:
    """1 inside [low, high], 0 outside, with logistic edges of width `softness`."""
    above = 1.0 / (1.0 + np.exp(-np.clip((x - low) / softness, -60, 60)))
    below = 1.0 / (1.0 + np.exp(-np.clip((high - x) / softness, -60, 60)))
    inside: NDArray[np.float32] = (above * below).astype(np.float32)
    return inside
