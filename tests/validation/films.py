"""Films of every kind with one white marker, drawn at random from a seed; the whole truth about each is known."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000Lossless, JPEGLSLossless, RLELossless

from tests.builders import CR_STORAGE, DX_PRESENTATION_STORAGE, MULTI_FRAME_SC, make_cxr_dataset

ORIENTATIONS = (
    ("L", "F"), ("R", "F"), ("L", "H"), ("R", "H"), ("F", "L"), ("F", "R"), ("H", "L"), ("H", "R"), ("", ""), ("L", ""),
)  # fmt: skip
DEPTHS = ((8, "u1"), (10, "u2"), (12, "u2"), (14, "u2"), (15, "u2"), (16, "u2"), (8, "i1"), (12, "i2"), (16, "i2"))
SYNTAXES = (None, None, JPEG2000Lossless, JPEGLSLossless, RLELossless)
SPACINGS: tuple[dict[str, Any], ...] = (
    {}, {"ImagerPixelSpacing": None}, {"PixelSpacing": [0, 0]}, {"PixelSpacing": [0.2, 0.1]},
    {"ImagerPixelSpacing": None, "PixelAspectRatio": [3, 2]}, {"ImagerPixelSpacing": [0.1, 0.2]},
)  # fmt: skip


@dataclass(frozen=True)
class Film:
    """How a film is stored; `marker` in pixels of the stored matrix."""

    rows: int
    columns: int
    bits: int
    dtype: str
    photometric: str
    orientation: tuple[str, str]
    sop_class_uid: str
    syntax: str | None
    spacing: dict[str, Any]
    has_window: bool
    slope: float
    marker: tuple[int, int, int, int]


MARGIN = 0.07
"""Share of each side that markers keep from the borders, if they do not touch them: what is nearer than a pixel of the
model cannot be told from what touches, and some views leave out a little more."""


def draw_film(seed: int, *, touches: bool) -> Film:
    """Return a film; its marker may touch the borders if `touches`."""
    dice = Random(seed)
    rows, columns = round(2 ** dice.uniform(6.5, 11.5)), round(2 ** dice.uniform(6.5, 11.5))
    if max(rows, columns) > 4 * min(rows, columns):
        columns = rows
    bits, dtype = dice.choice(DEPTHS)
    return Film(
        rows=rows,
        columns=columns,
        bits=bits,
        dtype=dtype,
        photometric=dice.choice(("MONOCHROME1", "MONOCHROME2")),
        orientation=dice.choice(ORIENTATIONS),
        sop_class_uid=dice.choice((CR_STORAGE, DX_PRESENTATION_STORAGE, DX_PRESENTATION_STORAGE, MULTI_FRAME_SC)),
        syntax=dice.choice(SYNTAXES),
        spacing=dice.choice(SPACINGS),
        has_window=dice.random() < 0.7,
        slope=dice.choice((1.0, 1.0, 2.5, 0.25)),
        marker=_draw_marker(dice, rows, columns, touches),
    )


def make_film(film: Film, study: str) -> Dataset:
    """Return the film as its modality would send it: black but for the marker, in its grey scale and encoding."""
    low = -(2 ** (film.bits - 1)) if film.dtype[0] == "i" else 0
    pixels = np.rint(low + _draw_picture(film) * (2**film.bits - 1)).astype(film.dtype)
    frames = {}
    if film.sop_class_uid == MULTI_FRAME_SC:
        # the second frame must not be looked at
        pixels = np.stack([pixels, np.full_like(pixels, pixels.max())])
        frames = {"NumberOfFrames": 2, "Rows": film.rows, "Columns": film.columns}
    # black and white lie outside the window, so that they are shown as such
    centre, width = film.slope * (low + 2 ** (film.bits - 1)), 0.9 * film.slope * 2**film.bits
    ds = make_cxr_dataset(
        study=study,
        sop_class_uid=film.sop_class_uid,
        photometric=film.photometric,
        pixels=pixels.reshape(-1, film.columns),
        PatientOrientation=list(film.orientation) if any(film.orientation) else None,
        BitsStored=film.bits,
        HighBit=film.bits - 1,
        RescaleSlope=film.slope,
        RescaleIntercept=0,
        WindowCenter=round(centre, 3) if film.has_window else None,
        WindowWidth=round(width, 3) if film.has_window else None,
        **{**film.spacing, **frames},
    )
    if film.syntax is not None and film.dtype != "i1":
        # GDCM, which is asked first for RLE, aborts the process on some pictures
        plugin = "pylibjpeg" if film.syntax == RLELossless else ""
        ds.compress(film.syntax, encoding_plugin=plugin, generate_instance_uid=False)
    return ds


def _draw_marker(dice: Random, rows: int, columns: int, touches: bool) -> tuple[int, int, int, int]:
    sides = []
    for size in (columns, rows):
        extent = round(size * dice.uniform(0.25, 0.5))
        first = round(dice.uniform(size * MARGIN, size * (1 - MARGIN) - extent))
        if touches and dice.random() < 0.2:
            first = dice.choice((0, size - extent))
        sides.append((first, first + extent))
    (x1, x2), (y1, y2) = sides
    return x1, y1, x2, y2


def _draw_picture(film: Film) -> NDArray[np.float64]:
    """Return the stored picture in [0, 1]; the marker is what is bright when it is shown."""
    x1, y1, x2, y2 = film.marker
    picture = np.zeros((film.rows, film.columns))
    picture[y1:y2, x1:x2] = 1.0
    return 1.0 - picture if film.photometric == "MONOCHROME1" else picture
