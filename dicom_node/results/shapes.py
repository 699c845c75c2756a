"""What SR and presentation states draw with, as lines: points, polylines, circles, ellipses. Pure.

Graphic Data is alike in both: (column, row) pairs, 0.0 the outer corner of the first pixel (PS3.3 C.18.6, C.10.5).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.header import DECODE_ERRORS, read_text, read_value
from grounding.types import Box

Points = NDArray[np.float64]
"""float64[N, 2] of (column, row)."""

POINTS_NEEDED = {"POINT": 1, "MULTIPOINT": 1, "POLYLINE": 2, "INTERPOLATED": 2, "CIRCLE": 2, "ELLIPSE": 4}
"""Graphic types and how many points each has at least (PS3.3 C.18.6.1.2, C.10.5.1.2)."""

FARTHEST = 1e9
"""Pixels; no graphic reaches that far, and sums of larger numbers lose whole pixels."""

ROUND_STEPS = 180
"""Corners of a circle or an ellipse: on a film of 3,000 pixels they lie a fifth of a pixel inside the curve."""


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """One graphic: its type, its points, and whether its inside is filled."""

    kind: str
    points: Points
    is_filled: bool = False


def read_shape(item: Dataset) -> Shape | None:
    """Return the graphic of an SCOORD or a graphic object, None where its type or its points are none."""
    kind, points = read_text(item, "GraphicType"), read_points(item, "GraphicData")
    if kind not in POINTS_NEEDED or len(points) < POINTS_NEEDED[kind]:
        return None
    return Shape(kind, points, kind != "POINT" and read_text(item, "GraphicFilled") == "Y")


def read_points(item: Dataset, keyword: str) -> Points:
    """Return the pairs of numbers in `keyword`; none at all where one of them is no number, or absurd."""
    try:
        values = np.atleast_1d(np.asarray(read_value(item, keyword), np.float64))
    except DECODE_ERRORS:
        return np.empty((0, 2))
    is_usable = bool((np.abs(values) < FARTHEST).all())  # not so for NaN
    return values[: len(values) // 2 * 2].reshape(-1, 2) if is_usable else np.empty((0, 2))


def trace_shape(shape: Shape) -> tuple[Points, ...]:
    """Return the lines that draw a shape; a point is a line of one corner. INTERPOLATED is drawn straight."""
    if shape.kind in ("POINT", "MULTIPOINT"):
        return tuple(shape.points[n : n + 1] for n in range(len(shape.points)))
    if shape.kind == "CIRCLE":
        centre, radius = shape.points[0], float(np.hypot(*(shape.points[1] - shape.points[0])))
        return (_trace_round(centre, np.array([radius, 0.0]), np.array([0.0, radius])),)
    if shape.kind == "ELLIPSE":
        # the ends of the major axis, then those of the minor one
        major, minor = shape.points[1] - shape.points[0], shape.points[3] - shape.points[2]
        return (_trace_round((shape.points[0] + shape.points[1]) / 2, major / 2, minor / 2),)
    return (shape.points,)


def trace_corners(box: Box) -> NDArray[np.float32]:
    """Return float32[5, 2], the closed rectangle as (column, row) points: TL TR BR BL TL."""
    x1, y1, x2, y2 = box.xyxy
    return np.array([[x1, y1], [x2, y1], [x2, y2], [x1, y2], [x1, y1]], np.float32)


def _trace_round(centre: Points, one: Points, other: Points) -> Points:
    turn = np.linspace(0.0, 2.0 * np.pi, ROUND_STEPS + 1)[:, None]
    return np.asarray(centre + np.cos(turn) * one + np.sin(turn) * other)
