"""Findings and devices of a generated radiograph: where they are drawn, what they look like, and their tight boxes.

A `Lesion` is a kind, a side, a height in the lung and one or more painted parts. Positions vary within what the words
of a report can say, so that a phrase alone does not tell the box.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from grounding.phantoms.anatomy import (
    LARGE_HEART,
    LEFT,
    RIGHT,
    Chest,
    Field,
    bounding_box,
    bump,
    ramp,
    smooth_noise,
    stroke,
)
from grounding.types import Box, Laterality

LUNG_LABELS = (
    "consolidation",
    "opacity",
    "ground_glass",
    "edema",
    "nodule",
    "mass",
    "atelectasis",
    "pleural_effusion",
    "pneumothorax",
)
DEVICE_LABELS = ("endotracheal_tube", "central_line", "nasogastric_tube", "pacemaker")
LABELS = ("cardiomegaly", *LUNG_LABELS, *DEVICE_LABELS)
AIRSPACE = ("consolidation", "opacity", "ground_glass", "edema")
"""Findings that look alike: two of them never share a lung."""

SIDE_NAMES: dict[int, Laterality] = {RIGHT: "right", LEFT: "left"}


@dataclass(frozen=True, slots=True)
class Lesion:
    """A drawn finding. `level` is upper, mid, lower or None where no word fits; `extent` is its size in [0, 1]."""

    label: str
    laterality: Laterality | None
    level: str | None
    extent: float
    diameter_cm: float
    boxes: tuple[Box, ...]


@dataclass(slots=True)
class Canvas:
    """What painters change: density added in the lungs, air taken out of them, vessels wiped, lines on top."""

    chest: Chest
    added: Field
    opaque: Field
    bare: Field
    lines: Field

    @classmethod
    def blank(cls, chest: Chest) -> Canvas:
        """A canvas on which nothing is drawn."""
        zero = np.zeros(chest.frame.shape, np.float32)
        return cls(chest, zero.copy(), zero.copy(), zero.copy(), zero.copy())

    def lung(self, side: int) -> Field:
        """Air of a lung that the heart does not cover."""
        return self.chest.lung[side] * (1 - self.chest.heart)


Painter = Callable[[Canvas, np.random.Generator, int], tuple[Box | None, str | None, float]]


def paint(
    label: str, canvas: Canvas, rng: np.random.Generator, sides: tuple[int, ...], taken: list[Box]
) -> Lesion | None:
    """Draw `label` on every side of `sides`; None, and the canvas unchanged, where too little of it would be visible.

    `taken` are boxes of earlier findings that the new one must not hide.
    """
    before = (canvas.added.copy(), canvas.opaque.copy(), canvas.bare.copy(), canvas.lines.copy())
    parts = [PAINTERS[label](canvas, rng, side) for side in sides]
    boxes = tuple(box for box, _, _ in parts if box is not None)
    smallest = 0.045 * min(canvas.chest.frame.shape)
    thin = any(min(box.x2 - box.x1, box.y2 - box.y1) < smallest for box in boxes)
    if len(boxes) < len(parts) or thin or any(_overlap(box, other) > 0.3 for box in boxes for other in taken):
        canvas.added, canvas.opaque, canvas.bare, canvas.lines = before
        return None
    levels = {level for _, level, _ in parts}
    extent = max(part[2] for part in parts)
    span = max(max(box.x2 - box.x1, box.y2 - box.y1) for box in boxes) / (2 * canvas.chest.frame.half_width)
    return Lesion(
        label=label,
        laterality=_laterality(label, sides),
        level=levels.pop() if len(levels) == 1 else None,
        extent=extent,
        diameter_cm=round(28 * span, 1),
        boxes=boxes,
    )


def _overlap(first: Box, second: Box) -> float:
    """Intersection as a share of the smaller box."""
    width = min(first.x2, second.x2) - max(first.x1, second.x1)
    height = min(first.y2, second.y2) - max(first.y1, second.y1)
    return max(0.0, width) * max(0.0, height) / max(1e-6, min(first.area, second.area))


def _laterality(label: str, sides: tuple[int, ...]) -> Laterality | None:
    if label in ("endotracheal_tube", "nasogastric_tube", "cardiomegaly"):
        return None
    return "bilateral" if len(sides) > 1 else SIDE_NAMES[sides[0]]


def level_of(v: float) -> str | None:
    """Word for a height in the lung, or None near the border of two zones, where either word would be arguable."""
    for name, low, high in (("upper", -1.0, 0.32), ("mid", 0.38, 0.58), ("lower", 0.64, 2.0)):
        if low <= v <= high:
            return name
    return None


def _blob(
    canvas: Canvas, rng: np.random.Generator, side: int, radius: tuple[float, float], raggedness: float
) -> tuple[Field, float, float]:
    """A rounded field in [0, 1] within a lung, its height `v` and its relative size."""
    chest = canvas.chest
    size = float(rng.uniform(0, 1))
    ru = radius[0] + (radius[1] - radius[0]) * size
    rv = ru * float(rng.uniform(0.6, 1.25))
    a = float(rng.uniform(chest.anatomy.mediastinum + 0.1, 0.88))
    v = float(rng.uniform(0.14, 0.86))
    r = np.sqrt(np.square((chest.u * side - a) / np.float32(ru)) + np.square((chest.v - v) / np.float32(rv)))
    if raggedness:
        r = r + smooth_noise(rng, chest.frame.shape, (14, raggedness))
    return r, v, size


def _airspace(density: tuple[float, float], radius: tuple[float, float], soft: float, patchy: float) -> Painter:
    def painter(canvas: Canvas, rng: np.random.Generator, side: int) -> tuple[Box | None, str | None, float]:
        r, v, size = _blob(canvas, rng, side, radius, 0.13)
        field = ramp(1 - r, soft) * canvas.lung(side)
        box = bounding_box(field > 0.4)
        texture = 1 + patchy * _mottle(canvas, rng)
        strength = float(rng.uniform(*density))
        canvas.added += strength * field * np.clip(texture, 0.2, 1.8)
        return box, _level_in_box(canvas, box, v), size

    return painter


def _mottle(canvas: Canvas, rng: np.random.Generator) -> Field:
    """Uneven density at three scales, so that no grid shows."""
    return smooth_noise(rng, canvas.chest.frame.shape, (17, 0.6), (41, 0.5), (90, 0.3))


def _level_in_box(canvas: Canvas, box: Box | None, v: float) -> str | None:
    """A large shadow has no single level, whatever its centre."""
    if box is None or box.y2 - box.y1 > 0.5 * canvas.chest.frame.height:
        return None
    return level_of(v)


def _edema(canvas: Canvas, rng: np.random.Generator, side: int) -> tuple[Box | None, str | None, float]:
    chest = canvas.chest
    ru, rv = rng.uniform(0.32, 0.6), rng.uniform(0.22, 0.40)
    a, v = chest.anatomy.mediastinum + rng.uniform(0.02, 0.2), rng.uniform(0.42, 0.66)
    r = np.sqrt(np.square((chest.u * side - a) / ru) + np.square((chest.v - v) / rv))
    r = r + smooth_noise(rng, chest.frame.shape, (10, 0.10))
    field = ramp(1 - r, 0.7) * canvas.lung(side)
    texture = 1 + 0.25 * _mottle(canvas, rng)
    canvas.added += float(rng.uniform(0.16, 0.28)) * field * texture
    return bounding_box(field > 0.4), None, float(ru)


def _round(density: tuple[float, float], radius: tuple[float, float], raggedness: float) -> Painter:
    def painter(canvas: Canvas, rng: np.random.Generator, side: int) -> tuple[Box | None, str | None, float]:
        chest = canvas.chest
        reach = float(rng.uniform(*radius))
        a = float(rng.uniform(chest.anatomy.mediastinum + 0.2, 0.85))
        v = float(rng.uniform(0.12, 0.82))
        ratio = chest.frame.half_width / chest.frame.height
        r = np.sqrt(np.square(chest.u * side - a) + np.square((chest.v - v) / np.float32(ratio))) / np.float32(reach)
        if raggedness:
            r = r + smooth_noise(rng, chest.frame.shape, (22, raggedness))
        field = ramp(1 - r, 0.35) * ramp(canvas.lung(side) - 0.3, 0.4)
        canvas.added += float(rng.uniform(*density)) * field
        return (bounding_box(field > 0.4), level_of(v), float((reach - radius[0]) / (radius[1] - radius[0])))

    return painter


def _atelectasis(canvas: Canvas, rng: np.random.Generator, side: int) -> tuple[Box | None, str | None, float]:
    chest = canvas.chest
    v, a = float(rng.uniform(0.42, 0.84)), float(rng.uniform(0.38, 0.75))
    slope, thickness = float(rng.normal(0, 0.25)), float(rng.uniform(0.018, 0.036))
    half = float(rng.uniform(0.16, 0.34))
    along = chest.u * side - a
    across = chest.v - v - slope * along - 0.25 * np.square(along)
    field = bump(across, 1.6 * thickness) * ramp(half - np.abs(along), 0.12) * canvas.lung(side)
    canvas.added += float(rng.uniform(0.17, 0.30)) * field
    return bounding_box(field > 0.3), level_of(v), half


def _effusion(canvas: Canvas, rng: np.random.Generator, side: int) -> tuple[Box | None, str | None, float]:
    chest = canvas.chest
    size = float(rng.uniform(0, 1)) ** 1.4
    a = np.clip(chest.u * side, 0, 1.1)
    depth = 0.16 + 0.42 * size
    meniscus = 1 - depth * (0.42 + 0.58 * np.square(a)) - chest.anatomy.dome[side > 0] * 0.35 * size
    fluid = ramp(chest.v - meniscus, 0.05) * (chest.u * side > 0) * (1 - 0.8 * chest.heart)
    box = bounding_box(fluid * canvas.lung(side) > 0.5)
    canvas.opaque[:] = np.maximum(canvas.opaque, fluid)
    return box, "lower", size


def _pneumothorax(canvas: Canvas, rng: np.random.Generator, side: int) -> tuple[Box | None, str | None, float]:
    chest = canvas.chest
    size = float(rng.uniform(0, 1))
    lateral = 0.07 + 0.22 * size
    cap = 0.10 + 0.20 * size
    apical = bool(rng.random() < 0.6)
    reach = float(rng.uniform(0.22, 0.42)) if apical else float(rng.uniform(0.55, 0.95))
    wall, roof = lateral - chest.outer[side], 0.8 * (cap - chest.v)
    rounded = 0.5 * (wall + roof + np.sqrt(np.square(wall - roof) + np.float32(0.006)))  # a maximum without a corner
    rim = rounded - 0.4 * np.clip(chest.v - reach + 0.1, 0, 1)
    space = ramp(rim, 0.02) * canvas.lung(side)
    line = bump(rim, 0.022) * canvas.lung(side)
    box = bounding_box(space > 0.5)
    canvas.bare[:] = np.maximum(canvas.bare, space)
    canvas.added += float(rng.uniform(0.10, 0.18)) * line - float(rng.uniform(0.06, 0.12)) * space
    level = "upper" if box is not None and box.y2 - box.y1 < 0.42 * chest.frame.height else None
    return box, level, size


def _line(
    canvas: Canvas, rng: np.random.Generator, points: NDArray[np.float64], width: float, strength: float
) -> Box | None:
    """A radio-opaque tube along `points` (patient's frame); its box has the tube's own width and a small margin."""
    smooth = _spline(points)
    pixels = canvas.chest.frame.to_pixels(smooth)
    field = stroke(canvas.chest.frame, [(pixels, width)])
    canvas.lines += strength * field
    rows, columns = canvas.chest.frame.shape
    margin = 0.016 * min(rows, columns)
    low = np.clip(pixels.min(axis=0) - margin, 0, (columns, rows))
    high = np.clip(pixels.max(axis=0) + margin, 0, (columns, rows))
    return Box(float(low[0]), float(low[1]), float(high[0]), float(high[1]))


def _spline(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rounded curve near the control points: corners cut three times (Chaikin)."""
    for _ in range(3):
        first, second = points[:-1], points[1:]
        cut = np.empty((2 * len(first), 2))
        cut[0::2], cut[1::2] = (0.75 * first + 0.25 * second, 0.25 * first + 0.75 * second)
        points = np.vstack([points[:1], cut, points[-1:]])
    return points


def _endotracheal_tube(canvas: Canvas, rng: np.random.Generator, side: int) -> tuple[Box | None, str | None, float]:
    x = canvas.chest.anatomy.trachea
    tip = float(rng.uniform(0.12, 0.34))
    start = x + float(rng.choice([-1, 1]) * rng.uniform(0.06, 0.2))
    points = np.array([[start, -0.4], [(start + x) / 2, -0.1], [x, 0.05], [x + float(rng.normal(0, 0.02)), tip]])
    return (_line(canvas, rng, points, float(rng.uniform(2.2, 3.4)), float(rng.uniform(0.16, 0.28))), None, tip)


def _central_line(canvas: Canvas, rng: np.random.Generator, side: int) -> tuple[Box | None, str | None, float]:
    tip = float(rng.uniform(0.34, 0.6))
    cava = -canvas.chest.anatomy.mediastinum - 0.01
    if rng.random() < 0.5:  # jugular: down the neck
        start = [[side * 0.28, -0.35], [side * 0.2, -0.05]]
    else:  # subclavian or arm: along the clavicle
        start = [[side * float(rng.uniform(0.7, 1.0)), float(rng.uniform(0.1, 0.3))], [side * 0.5, 0.06]]
    points = np.array([*start, [cava + 0.02 * side, 0.16], [cava, tip]])
    return (_line(canvas, rng, points, float(rng.uniform(1.2, 2.0)), float(rng.uniform(0.16, 0.28))), None, tip)


def _nasogastric_tube(canvas: Canvas, rng: np.random.Generator, side: int) -> tuple[Box | None, str | None, float]:
    end = [float(rng.uniform(0.35, 0.65)), float(rng.uniform(1.0, 1.12))]
    points = np.array([[0.02, -0.4], [0.0, 0.1], [0.05, 0.6], [0.08, 0.92], [0.3, 1.05], end])
    points[1:4, 0] += rng.normal(0, 0.03)
    return (_line(canvas, rng, points, float(rng.uniform(1.3, 2.2)), float(rng.uniform(0.16, 0.28))), None, 0.5)


def _pacemaker(canvas: Canvas, rng: np.random.Generator, side: int) -> tuple[Box | None, str | None, float]:
    """The generator over the upper chest with its leads; the box is the generator's."""
    chest = canvas.chest
    a, v = float(rng.uniform(0.55, 0.85)), float(rng.uniform(0.14, 0.30))
    ru, rv = float(rng.uniform(0.11, 0.16)), float(rng.uniform(0.06, 0.085))
    r = np.power(np.abs((chest.u * side - a) / ru), 3) + np.power(np.abs((chest.v - v) / rv), 3)
    case = ramp(1 - r, 0.25)
    tip = [float(rng.uniform(0.1, 0.3)), float(rng.uniform(0.72, 0.86))]
    points = np.array([[side * (a - 0.08), v - 0.03], [side * 0.4, 0.08], [-0.12, 0.22], [-0.14, 0.55], tip])
    _line(canvas, rng, points, 1.4, 0.3)
    canvas.lines += float(rng.uniform(0.35, 0.6)) * case
    return bounding_box(case > 0.5), None, ru


def _cardiomegaly(canvas: Canvas, rng: np.random.Generator, side: int) -> tuple[Box | None, str | None, float]:
    """Already in the anatomy: the heart was drawn wide. Only its box is taken here."""
    excess = canvas.chest.anatomy.cardiothoracic_ratio - LARGE_HEART[0]
    return canvas.chest.heart_box(), None, excess / (LARGE_HEART[1] - LARGE_HEART[0])


PAINTERS: dict[str, Painter] = {
    "cardiomegaly": _cardiomegaly,
    "consolidation": _airspace((0.22, 0.36), (0.15, 0.52), 0.45, 0.18),
    "opacity": _airspace((0.14, 0.28), (0.15, 0.56), 0.6, 0.30),
    "ground_glass": _airspace((0.10, 0.19), (0.24, 0.64), 0.6, 0.35),
    "edema": _edema,
    "nodule": _round((0.16, 0.32), (0.065, 0.12), 0.0),
    "mass": _round((0.22, 0.36), (0.14, 0.30), 0.06),
    "atelectasis": _atelectasis,
    "pleural_effusion": _effusion,
    "pneumothorax": _pneumothorax,
    "endotracheal_tube": _endotracheal_tube,
    "central_line": _central_line,
    "nasogastric_tube": _nasogastric_tube,
    "pacemaker": _pacemaker,
}
