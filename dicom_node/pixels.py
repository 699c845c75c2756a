"""Stored pixels to the picture a reader would see: float32[H, W] in [0, 1], air dark.

Decoding, modality and VOI transformation and polarity; no rotation, no cropping, no resizing, so that a box in the
picture is a box in the stored pixel matrix. Of several frames the first is used.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.pixels import apply_color_lut, pixel_array
from pydicom.uid import UID

from dicom_node.codestream import FrameSize, check_size
from dicom_node.decoding import ITSELF, DecodingError, decode_apart
from dicom_node.errors import NotApplicableError
from dicom_node.grayscale import Values, apply_modality, apply_voi_lut, apply_window
from dicom_node.header import DECODE_ERRORS, read_number, read_text, read_value
from dicom_node.jpeg_extended import EXTENDED, FULL_PROGRESSION, SPECTRAL_SELECTION
from grounding.types import Image

MAX_PIXELS = 100_000_000
"""Larger frames than any radiograph are refused before memory is asked for."""

PLUGINS = {
    "1.2.840.10008.1.2": ("",),
    "1.2.840.10008.1.2.1": ("",),
    "1.2.840.10008.1.2.1.99": ("",),
    "1.2.840.10008.1.2.2": ("",),
    "1.2.840.10008.1.2.4.50": ("gdcm", "pillow"),
    EXTENDED: (ITSELF, "gdcm", "pillow"),
    SPECTRAL_SELECTION: (ITSELF,),
    FULL_PROGRESSION: (ITSELF,),
    "1.2.840.10008.1.2.4.57": ("gdcm",),
    "1.2.840.10008.1.2.4.70": ("gdcm",),
    "1.2.840.10008.1.2.4.80": ("pyjpegls", "gdcm"),
    "1.2.840.10008.1.2.4.81": ("pyjpegls", "gdcm"),
    "1.2.840.10008.1.2.4.90": ("pylibjpeg", "gdcm", "pillow"),
    "1.2.840.10008.1.2.4.91": ("pylibjpeg", "gdcm", "pillow"),
    "1.2.840.10008.1.2.4.201": ("pylibjpeg",),
    "1.2.840.10008.1.2.4.202": ("pylibjpeg",),
    "1.2.840.10008.1.2.4.203": ("pylibjpeg",),
    "1.2.840.10008.1.2.5": ("pylibjpeg", "pydicom"),
}
"""Transfer syntax to the pydicom plug-ins that decode it, in the order tried; "" is pydicom's own native reading,
which alone is done in this process (see `decoding`)."""

PERCENTILES = (0.5, 99.5)
"""Grey range of an image without a usable window."""

LUMINANCE = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue (ITU-R BT.601, the matrix of YBR_FULL in PS3.3 C.7.6.3.1.2)."""

MIN_CONTRAST = 0.05
"""A window that leaves less than this between the 1st and the 99th percentile shows nothing; it is not used."""


class UnreadablePixelsError(NotApplicableError):
    """The instance holds no picture that can be decoded here; the text says which part is at fault."""


def render(ds: Dataset) -> Image:
    """Return the first frame of `ds` as float32[Rows, Columns] in [0, 1] in MONOCHROME2 polarity.

    A constant image is 0.5 everywhere. Raises UnreadablePixelsError for any dataset that cannot be decoded.
    """
    with _naming_damage(ds):
        return render_frame(ds, _decode(ds))


def decode_frame(ds: Dataset) -> NDArray[Any]:
    """Return the first frame of `ds` as stored, [Rows, Columns] or [Rows, Columns, 3]; raises as `render` does."""
    with _naming_damage(ds):
        return _decode(ds)


@contextmanager
def _naming_damage(ds: Dataset) -> Iterator[None]:
    try:
        yield
    except DECODE_ERRORS as error:
        raise UnreadablePixelsError(
            f"the pixels of instance {read_text(ds, 'SOPInstanceUID')} are damaged ({type(error).__name__}); "
            "ask the sender for the image again"
        ) from error


def render_frame(ds: Dataset, stored: NDArray[Any], window: tuple[float, float] | None = None) -> Image:
    """Return the picture of stored values of `ds`, which may be reduced, as `render` does.

    `window` (centre, width; PS3.3 C.11.2.1.2.1) is taken instead of what the image says; a colour image has none.
    """
    photometric = read_text(ds, "PhotometricInterpretation")
    if stored.ndim == 3:
        return _as_image(_stretch(stored[..., :3] @ LUMINANCE, *_bit_range(ds)))
    padding = _find_padding(ds, stored)
    values = apply_modality(ds, stored)
    picture = _apply_window(ds, values, padding) if window is None else _show_window(values, *window)
    if photometric == "MONOCHROME1":
        picture = 1.0 - picture
    if padding is not None:
        picture = np.where(padding, 0.0, picture)
    return _as_image(picture)


def _as_image(picture: Values) -> Image:
    image = picture.astype(np.float32, order="C")
    return np.clip(image, 0.0, 1.0, out=image)


def _decode(ds: Dataset) -> NDArray[Any]:
    """Return the first frame, [H, W] or [H, W, 3], as stored values."""
    uid = read_text(ds, "SOPInstanceUID")
    if not any(keyword in ds for keyword in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise UnreadablePixelsError(f"instance {uid} has no pixels; it is no image that can be grounded")
    rows, columns = read_number(ds, "Rows"), read_number(ds, "Columns")
    if not rows or not columns or rows * columns > MAX_PIXELS:
        raise UnreadablePixelsError(
            f"instance {uid} says it has {rows} rows and {columns} columns; no radiograph has that size"
        )
    syntax = read_text(getattr(ds, "file_meta", Dataset()), "TransferSyntaxUID")
    if syntax not in PLUGINS:
        name = UID(syntax).name if syntax else "none"
        raise UnreadablePixelsError(
            f"instance {uid} is in transfer syntax {name}, which is not supported; have it sent uncompressed"
        )
    frame = _first_frame(ds, syntax)
    if read_text(ds, "PhotometricInterpretation") == "PALETTE COLOR":
        frame = apply_color_lut(frame, ds)
    if frame.shape[:2] != (int(rows), int(columns)) or (frame.ndim == 3 and frame.shape[2] < 3):
        raise UnreadablePixelsError(f"instance {uid} decodes to {frame.shape}, not to {rows:.0f} x {columns:.0f}")
    return frame


def _first_frame(ds: Dataset, syntax: str) -> NDArray[Any]:
    try:
        if PLUGINS[syntax] == ("",):
            return np.asarray(pixel_array(ds, index=0, decoding_plugin=""))
        frame = _encoded_frame(ds)
        check_size(frame, syntax, _expected_size(ds), int(read_number(ds, "BitsAllocated") or 0))
        return decode_apart(ds, frame, syntax, PLUGINS[syntax])
    except DECODE_ERRORS as error:
        raise UnreadablePixelsError(
            f"the pixels of instance {read_text(ds, 'SOPInstanceUID')} ({UID(syntax).name}) cannot be decoded "
            f"({error if isinstance(error, DecodingError) else type(error).__name__}); they are damaged or of a "
            "variant that is not supported: have them sent uncompressed"
        ) from error


def _encoded_frame(ds: Dataset) -> bytes:
    """Return the first frame as it is encoded."""
    tables = [read_value(ds, keyword) for keyword in ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")]
    return get_frame(
        ds.PixelData, 0, number_of_frames=int(read_number(ds, "NumberOfFrames") or 1),
        extended_offsets=(tables[0], tables[1]) if all(tables) else None,
    )  # fmt: skip


def _expected_size(ds: Dataset) -> FrameSize:
    rows, columns, samples = (int(read_number(ds, key) or 0) for key in ("Rows", "Columns", "SamplesPerPixel"))
    return FrameSize(rows, columns, samples or 1)


def _bit_range(ds: Dataset) -> tuple[float, float]:
    """Return the range of a colour sample; a palette's entries are as wide as its descriptor says."""
    bits = read_number(ds, "BitsStored") or 8
    descriptor = read_value(ds, "RedPaletteColorLookupTableDescriptor")
    if read_text(ds, "PhotometricInterpretation") == "PALETTE COLOR" and descriptor and len(descriptor) == 3:
        bits = float(descriptor[2])
    return 0.0, 2.0**bits - 1.0


def _find_padding(ds: Dataset, stored: NDArray[Any]) -> NDArray[np.bool_] | None:
    """Return the pixels outside the exposed field (PS3.3 C.7.5.1.1.2), or None where that is nothing or everything."""
    first = read_number(ds, "PixelPaddingValue")
    if first is None:
        return None
    last = read_number(ds, "PixelPaddingRangeLimit")
    low, high = sorted((first, first if last is None else last))
    padding = (stored >= low) & (stored <= high)
    return padding if 0.0 < padding.mean() < 0.95 else None


def _apply_window(ds: Dataset, values: Values, padding: NDArray[np.bool_] | None) -> Values:
    """Return values in [0, 1]: the first window if it shows something, else the first VOI LUT, else percentiles."""
    for apply in (_first_window, apply_voi_lut):
        picture = apply(ds, values)
        if picture is not None and _has_contrast(picture if padding is None else picture[~padding]):
            return picture
    shown = values[~padding] if padding is not None else values
    low, high = (float(limit) for limit in np.percentile(_sample(shown), PERCENTILES))
    if low == high:
        low, high = float(shown.min()), float(shown.max())
    return np.full_like(values, 0.5) if low == high else _stretch(values, low, high)


def _first_window(ds: Dataset, values: Values) -> Values | None:
    """Return the picture of the first window, None where it is no wider than one value: that shows black and white."""
    width = read_number(ds, "WindowWidth")
    is_step = width is not None and width <= 1 and read_text(ds, "VOILUTFunction") in ("", "LINEAR")
    return None if is_step else apply_window(ds, values)


def _show_window(values: Values, centre: float, width: float) -> Values:
    asked = Dataset()
    asked.WindowCenter, asked.WindowWidth = centre, width
    picture = apply_window(asked, values)
    return np.full_like(values, 0.5) if picture is None else picture


def _has_contrast(picture: Values) -> bool:
    low, high = np.percentile(_sample(picture), (1, 99))
    return bool(high - low >= MIN_CONTRAST)


def _sample(values: Values) -> Values:
    """Return every n-th value: percentiles of a radiograph need no more than a quarter of a million."""
    return values.ravel()[:: max(1, values.size // 250_000)]


def _stretch(values: Values, low: float, high: float) -> Values:
    return np.clip((values - low) / (high - low), 0.0, 1.0)
