"""The lossy JPEG processes that pydicom has no decoder for, by GDCM itself: 12 bits, spectral selection, progression.

pydicom refuses JPEG Extended of 12 bits with GDCM, and knows the two retired syntaxes (PS3.5 2004 8.2.1) not at all.
"""

from __future__ import annotations

from typing import Any

import gdcm
import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame

from dicom_node.header import read_number, read_text

EXTENDED = "1.2.840.10008.1.2.4.51"
SPECTRAL_SELECTION = "1.2.840.10008.1.2.4.53"
FULL_PROGRESSION = "1.2.840.10008.1.2.4.55"

SYNTAXES = frozenset({EXTENDED, SPECTRAL_SELECTION, FULL_PROGRESSION})


def decode_extended(ds: Dataset, syntax: str) -> NDArray[Any]:
    """Return the first frame of a grayscale image in one of `SYNTAXES`, [Rows, Columns] as stored.

    Raises ValueError where GDCM cannot decode it, or what it decodes is of another size than the header says.
    """
    rows, columns, bits = (int(read_number(ds, key) or 0) for key in ("Rows", "Columns", "BitsStored"))
    if read_number(ds, "SamplesPerPixel") not in (None, 1) or not 8 <= bits <= 12:
        raise ValueError("GDCM is asked for grayscale of 8 to 12 bits only")
    frames = int(read_number(ds, "NumberOfFrames") or 1)
    image = _wrap(get_frame(ds.PixelData, 0, number_of_frames=frames), syntax, ds)
    image.SetDimensions((columns, rows, 1))
    allocated = 8 if bits == 8 else 16
    image.SetPixelFormat(
        gdcm.PixelFormat(1, allocated, bits, bits - 1, int(read_number(ds, "PixelRepresentation") or 0))
    )
    decoded = image.GetBuffer().encode("utf-8", "surrogateescape")  # GDCM gives its bytes as str
    values = np.frombuffer(decoded, f"{'i' if read_number(ds, 'PixelRepresentation') == 1 else 'u'}{allocated // 8}")
    if values.size != rows * columns:
        raise ValueError(f"GDCM decodes {values.size} pixels, not {rows} x {columns}")
    return values.reshape(rows, columns)


def _wrap(frame: bytes, syntax: str, ds: Dataset) -> Any:
    """Return a GDCM image of one encoded frame."""
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(frame)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDataElement(element)
    photometric = gdcm.PhotometricInterpretation.GetPIType(read_text(ds, "PhotometricInterpretation"))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(photometric))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    return image
