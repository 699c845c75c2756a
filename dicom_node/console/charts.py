"""Bars of the last hours, as SVG draws them. Pure: numbers in, rectangles out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

WIDTH, HEIGHT = 360.0, 96.0
LEFT, BOTTOM, TOP = 34.0, 18.0, 10.0
GAP = 2.0


@dataclass(frozen=True, slots=True)
class Bar:
    """One hour: where its rectangle is, and how many it stands for."""

    x: float
    y: float
    width: float
    height: float
    count: int
    hour: str


@dataclass(frozen=True, slots=True)
class Chart:
    """The bars of a series; `highest` is the number at the top line, `ticks` are (x, hour) below the axis."""

    name: str
    kind: str
    total: int
    highest: int
    bars: tuple[Bar, ...]
    ticks: tuple[tuple[float, str], ...]
    summary: str


def draw_chart(name: str, kind: str, counts: Sequence[tuple[datetime, int]]) -> Chart:
    """Return the chart of counts by hour; every sixth hour is named."""
    highest = round_up(max((count for _, count in counts), default=0))
    step = (WIDTH - LEFT) / max(len(counts), 1)
    bars = tuple(
        Bar(round(LEFT + n * step, 2), round(HEIGHT - BOTTOM - _tall(count, highest), 2), round(step - GAP, 2),
            round(_tall(count, highest), 2), count, f"{at:%H}:00")
        for n, (at, count) in enumerate(counts)
    )  # fmt: skip
    ticks = tuple((bar.x, bar.hour) for bar, (at, _) in zip(bars, counts, strict=True) if at.hour % 6 == 0)
    total = sum(count for _, count in counts)
    busiest = max(counts, key=lambda one: one[1], default=None)
    most = f", most in the hour from {busiest[0]:%H}:00 ({busiest[1]})" if busiest and total else ""
    return Chart(name, kind, total, highest, bars, ticks, f"{name}: {total} in {len(counts)} hours{most}")


def round_up(count: int) -> int:
    """Return the next number of the kind 1, 2, 5, 10, 20, …; at least 1."""
    size = 1
    while True:
        for first in (1, 2, 5):
            if first * size >= count:
                return first * size
        size *= 10


def _tall(count: int, highest: int) -> float:
    return count / highest * (HEIGHT - BOTTOM - TOP)
