"""A radiograph on a screen: its frame reduced to what a screen shows, in any window, as PNG.

A reduced frame is of whole blocks of stored pixels; the last ones may reach beyond the film's edge. Who draws it knows
by the factor how large it is in stored pixels, so that a box stays where it was computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from pydicom.dataset import Dataset

from dicom_node.header import read_number, read_text
from dicom_node.pixels import decode_frame, render_frame
from dicom_node.results.canvas import to_bytes
from dicom_node.results.shapes import read_points
from dicom_node.results.sr_tree import read_spacing
from dicom_node.results.values import read_size

FINE_SIDE, COARSE_SIDE = 3200, 1600
"""Pixels of the longer side, at most: of a film that is looked at closely, and of one on the whole page."""

COMPRESSION = 1
"""Of zlib: on the way to a browser next door, time is dearer than bytes."""


@dataclass(frozen=True, slots=True)
class Window:
    """Window centre and width in modality values."""

    centre: float
    width: float


@dataclass(frozen=True, slots=True, eq=False)
class Reduced:
    """A frame of stored values whose pixels are the means of blocks of `factor` x `factor`."""

    values: NDArray[Any]
    factor: int

    def reduce(self, factor: int) -> Reduced:
        """Return the frame reduced by `factor` in all, a multiple of its own."""
        return Reduced(reduce_frame(self.values, factor // self.factor), factor)


@dataclass(frozen=True, slots=True, eq=False)
class Film:
    """An image without its pixel data, and its frame as fine as it is ever shown."""

    header: Dataset
    frame: Reduced

    def write_png(self, window: Window | None, factor: int) -> bytes:
        """Return the picture, reduced by `factor`, in the image's own window or another."""
        reduced = self.frame.reduce(factor)
        asked = (window.centre, window.width) if window else None
        picture = PillowImage.fromarray(to_bytes(render_frame(self.header, reduced.values, asked)))
        return encode_png(picture)


def read_film(ds: Dataset) -> Film:
    """Decode an image, and let its pixel data go; raises UnreadablePixelsError as `pixels.render` does."""
    frame, (fine, _) = decode_frame(ds), factors(*read_size(ds))
    for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData"):
        ds.pop(keyword, None)
    return Film(ds, Reduced(reduce_frame(frame, fine), fine))


def factors(rows: int, columns: int) -> tuple[int, int]:
    """Return by how much a film is reduced where it is shown fine and coarse; the second is a multiple of the first."""
    longer = max(rows, columns, 1)
    fine = -(-longer // FINE_SIDE)
    return fine, fine * -(-longer // (COARSE_SIDE * fine))


def reduce_frame(stored: NDArray[Any], factor: int) -> NDArray[Any]:
    """Return the means of blocks of `factor` x `factor` pixels, in the type of the frame; the last may be smaller."""
    if factor == 1:
        return stored
    rows, columns = stored.shape[:2]
    starts = np.arange(0, columns, factor)
    widths = np.diff(np.append(starts, columns)).reshape(-1, *[1] * (stored.ndim - 2))
    lines = []
    for row in range(0, rows, factor):  # a line at a time: nothing as large as the film is made besides it
        block = stored[row : row + factor].astype(np.float64).mean(axis=0)
        lines.append(np.add.reduceat(block, starts, axis=0) / widths)
    means = np.stack(lines)
    whole = np.issubdtype(stored.dtype, np.integer)
    return (np.rint(means) if whole else means).astype(stored.dtype)


def encode_png(picture: PillowImage.Image) -> bytes:
    """Return a picture as PNG."""
    buffer = BytesIO()
    picture.save(buffer, "PNG", compress_level=COMPRESSION)
    return buffer.getvalue()


def find_aspect(image: Dataset) -> float:
    """Return height by width of a pixel: of its spacing, else of Pixel Aspect Ratio (PS3.3 C.7.6.3.1.7), else 1."""
    spacing = read_spacing(image)
    pair = read_points(image, "PixelAspectRatio")
    if spacing is None:
        spacing = (float(pair[0, 0]), float(pair[0, 1])) if len(pair) == 1 and (pair > 0).all() else (1.0, 1.0)
    aspect = spacing[0] / spacing[1]
    return aspect if 0.2 <= aspect <= 5.0 else 1.0


def suggest_window(image: Dataset) -> Window | None:
    """Return the window that an image's header gives, else all values that it can have; None of a colour image."""
    if not read_text(image, "PhotometricInterpretation").startswith("MONOCHROME"):
        return None
    centre, width = read_number(image, "WindowCenter"), read_number(image, "WindowWidth")
    if centre is not None and width is not None and width >= 1:
        return Window(centre, width)
    bits = int(read_number(image, "BitsStored") or 12)
    low = -(2.0 ** (bits - 1)) if read_number(image, "PixelRepresentation") == 1 else 0.0
    slope, intercept = read_number(image, "RescaleSlope") or 1.0, read_number(image, "RescaleIntercept") or 0.0
    return Window((low + 2.0 ** (bits - 1)) * slope + intercept, 2.0**bits * abs(slope))
