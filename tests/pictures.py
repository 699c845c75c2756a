"""Pictures that results are drawn on in tests, and what is drawn as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage
from pydicom.dataset import Dataset

from tests.builders import make_cxr_dataset

LINES = 15
"""Lines of pixels along which the edges of a drawn box are looked for."""


def make_grey(rows: int = 1000, columns: int = 800, **attributes: Any) -> Dataset:
    """Return an image of one grey: whatever is coloured was drawn."""
    return make_cxr_dataset(pixels=np.full((rows, columns), 100, np.uint8), **attributes)


def to_array(picture: PilImage.Image) -> NDArray[np.int16]:
    """Return the levels int16[height, width, 3] of a picture, so that differences can be negative."""
    return np.asarray(picture.convert("RGB"), np.int16)


def read_box(picture: PilImage.Image, around: Sequence[float]) -> tuple[float, float, float, float]:
    """Return the box that is drawn around the middle of `around`, in pixels of the picture.

    Looked for from the middle outwards, along several lines: a label may stand in the way of some of them. Where it
    touches an edge all along, that begins where the colour does, and is as thick as the others.
    """
    return find_box(np.ptp(to_array(picture), axis=2).astype(float), around)


def find_box(colour: NDArray[np.float64], around: Sequence[float]) -> tuple[float, float, float, float]:
    """Return the box around the middle of `around` where `colour` [H, W], as strong as it is drawn, makes one."""
    x1, y1, x2, y2 = around
    column, row = round((x1 + x2) / 2), round((y1 + y2) / 2)
    columns, rows = (np.linspace(a, b, LINES + 2)[1:-1].astype(int) for a, b in ((x1, x2), (y1, y2)))
    left, right = colour[rows, :column][:, ::-1], colour[rows, column:]
    top, bottom = colour[:row, columns].T[:, ::-1], colour[row:, columns].T
    sides = [[_find_run(line) for line in lines] for lines in (left, top, right, bottom)]
    # not the least: of a side on the border half the stroke is outside the picture, and there may be two of them
    thickness = sorted(min(length for _, _, length in runs) for runs in sides)[2]
    a, b, c, d = (_place_edge(runs, thickness) for runs in sides)
    return column - a, row - b, column + c, row + d


def _place_edge(runs: Sequence[tuple[float, float, float]], thickness: float) -> float:
    clean = [middle for middle, _, length in runs if length <= thickness + 0.5]
    return float(np.median(clean or [start + thickness / 2 for _, start, _ in runs]))


def _find_run(line: NDArray[np.float64]) -> tuple[float, float, float]:
    """Return middle, start and length of the first coloured run of a line of pixels, pale pixels counted in part."""
    coloured = np.flatnonzero(line > 8)
    assert len(coloured), "nothing is drawn there"
    run = np.split(coloured, np.flatnonzero(np.diff(coloured) > 1) + 1)[0]
    cover = line[run] / line[run].max()
    return float(np.average(run + 0.5, weights=cover)), float(run[0] + 1 - cover[0]), float(cover.sum())
