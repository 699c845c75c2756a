"""Pictures that results are drawn on in tests, and what is drawn as numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage
from pydicom.dataset import Dataset

from tests.builders import make_cxr_dataset


def make_grey(rows: int = 1000, columns: int = 800, **attributes: Any) -> Dataset:
    """Return an image of one grey: whatever is coloured was drawn."""
    return make_cxr_dataset(pixels=np.full((rows, columns), 100, np.uint8), **attributes)


def to_array(picture: PilImage.Image) -> NDArray[np.int16]:
    """Return the levels int16[height, width, 3] of a picture, so that differences can be negative."""
    return np.asarray(picture.convert("RGB"), np.int16)
