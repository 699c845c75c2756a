"""Grey values on their way from stored to displayed ones: the transformations of PS3.3 C.11, one function each.

Each takes the dataset that holds its attributes: an image's header, a presentation state or an item of one. Which of
them are applied is the caller's affair.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.header import read_items, read_lut, read_number, read_text

Values = NDArray[np.float64]
"""float64[H, W], stored, modality or display values of one frame."""


def apply_modality(ds: Dataset, stored: NDArray[Any]) -> Values:
    """Return modality values: a Modality LUT Sequence wins over rescale; an unusable one leaves the stored values."""
    values = _finite(stored)
    for item in read_items(ds, "ModalityLUTSequence")[:1]:
        looked_up = _look_up(item, values)
        if looked_up is not None:
            return looked_up
    slope, intercept = read_number(ds, "RescaleSlope"), read_number(ds, "RescaleIntercept")
    if not slope or intercept is None or (slope, intercept) == (1.0, 0.0):
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        rescaled = values * slope + intercept
    return rescaled if np.isfinite(rescaled).all() else values


def find_modality_range(ds: Dataset, low: float, high: float) -> tuple[float, float]:
    """Return the least and the greatest modality value that stored values from `low` to `high` can have."""
    for item in read_items(ds, "ModalityLUTSequence")[:1]:
        lut = read_lut(item)
        if lut is not None:
            return 0.0, 2.0 ** lut[1] - 1.0
    ends = apply_modality(ds, np.array([low, high]))
    return float(ends.min()), float(ends.max())


def apply_presentation(ds: Dataset, picture: Values) -> Values:
    """Return P-values in [0, 1] of VOI values in [0, 1]: Presentation LUT, else its shape (PS3.3 C.11.6)."""
    for item in read_items(ds, "PresentationLUTSequence")[:1]:
        lut = read_lut(item)
        if lut is not None:
            # the first entry is for the least value that the VOI transformation can give, the last for the greatest
            entries = np.rint(picture * (len(lut[2]) - 1)).astype(np.intp)
            return np.asarray(lut[2][entries], np.float64) / (2.0 ** lut[1] - 1.0)
    return 1.0 - picture if read_text(ds, "PresentationLUTShape") == "INVERSE" else picture


def _look_up(item: Dataset, values: Values) -> Values | None:
    """Return the entries of a LUT for `values`; those outside take its first or last (PS3.3 C.11.1.1)."""
    lut = read_lut(item)
    if lut is None:
        return None
    first, _, table = lut
    return np.asarray(table[np.clip(np.rint(values) - first, 0, len(table) - 1).astype(np.intp)], np.float64)


def _finite(stored: NDArray[Any]) -> Values:
    if stored.dtype.kind != "f":
        return stored.astype(np.float64)
    return np.nan_to_num(np.asarray(stored, np.float64), posinf=0.0, neginf=0.0)


def apply_window(ds: Dataset, values: Values) -> Values | None:
    """Apply the first window (PS3.3 C.11.2.1.2.1, C.11.2.1.3), None where there is none that is usable."""
    centre, width = read_number(ds, "WindowCenter"), read_number(ds, "WindowWidth")
    if centre is None or width is None or not np.isfinite((centre, width)).all() or width <= 0:
        return None
    function = read_text(ds, "VOILUTFunction") or "LINEAR"
    if function == "SIGMOID":
        return np.asarray(1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -60.0, 60.0))))
    if function == "LINEAR":
        if width < 1:
            return None
        centre, width = centre - 0.5, width - 1.0
        if width == 0:
            return np.where(values > centre, 1.0, 0.0)
    picture = values - centre
    picture /= width
    picture += 0.5
    return np.clip(picture, 0.0, 1.0, out=picture)  # in its place: room for a film costs more than counting in it


def apply_voi_lut(ds: Dataset, values: Values) -> Values | None:
    """Apply the first VOI LUT (PS3.3 C.11.2.1.1), None where there is none that is usable."""
    for item in read_items(ds, "VOILUTSequence")[:1]:
        lut, looked_up = read_lut(item), _look_up(item, values)
        if lut is not None and looked_up is not None:
            return looked_up / (2.0 ** lut[1] - 1.0)
    return None
