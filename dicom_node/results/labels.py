"""Where labels of boxes go, in GSPS and overlay: beside their box, inside the picture, not over another label."""

from __future__ import annotations

from collections.abc import Sequence

Rect = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


def place_labels(
    boxes: Sequence[Rect],
    sizes: Sequence[tuple[float, float]],
    width: float,
    height: float,
    wished: Sequence[tuple[float, float] | None] = (),
) -> list[Rect]:
    """Return a rectangle of each of `sizes` (width, height) for the label of each box, in a picture of width x height.

    Tried in order: the corner `wished` for, if any, then above the box, below it, inside its top edge and beside it,
    first where no other box is covered, then row by row down the picture. A label larger than the picture is cut to it.
    """
    placed: list[Rect] = []
    wishes = [[corner] if corner is not None else [] for corner in wished] or [[] for _ in boxes]
    for box, (wanted_width, wanted_height), wish in zip(boxes, sizes, wishes, strict=True):
        size = min(wanted_width, width), min(wanted_height, height)
        near = [_keep_inside(corner, size, width, height) for corner in _corners(box, size)]
        clear = [rect for rect in near if not any(_overlap(rect, other) for other in boxes if other != box)]
        rows = [(box[0], row * size[1]) for row in range(int(height // size[1]))]
        wanted, far = ([_keep_inside(corner, size, width, height) for corner in some] for some in (wish, rows))
        candidates = [*wanted, *clear, *near, *far]
        free = (rect for rect in candidates if not any(_overlap(rect, other) for other in placed))
        placed.append(next(free, candidates[0]))
    return placed


def _corners(box: Rect, size: tuple[float, float]) -> list[tuple[float, float]]:
    left, top, right, bottom = box
    above = [(left, top - size[1])] if top >= size[1] else []
    return [*above, (left, bottom), (left, top), (right, top), (left - size[0], top), (right - size[0], bottom)]


def _keep_inside(corner: tuple[float, float], size: tuple[float, float], width: float, height: float) -> Rect:
    left = min(max(corner[0], 0.0), width - size[0])
    top = min(max(corner[1], 0.0), height - size[1])
    return left, top, left + size[0], top + size[1]


def _overlap(one: Rect, other: Rect) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
