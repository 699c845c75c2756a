"""Grey scale of a presentation state: the transformations of its image, the first of each kind, or none."""

from __future__ import annotations

import highdicom as hd
import numpy as np
from pydicom.dataset import Dataset

from dicom_node.header import read_items, read_lut, read_number, read_text


def build_modality(image: Dataset) -> hd.ModalityLUTTransformation | None:
    """Return the image's Modality LUT, else its rescale, else None (identity)."""
    for lut in read_items(image, "ModalityLUTSequence")[:1]:
        values = read_lut(lut)
        if values is not None:
            table = hd.ModalityLUT(
                lut_type=read_text(lut, "ModalityLUTType") or "US",
                first_mapped_value=max(values[0], 0),
                lut_data=values[2],
                lut_explanation=read_text(lut, "LUTExplanation") or None,
            )
            _describe(table, values[0], len(values[2]))
            return hd.ModalityLUTTransformation(modality_lut=table)
    slope, intercept = read_number(image, "RescaleSlope"), read_number(image, "RescaleIntercept")
    if not slope or intercept is None or not np.isfinite((slope, intercept)).all():
        return None
    kind = read_text(image, "RescaleType") or "US"
    return hd.ModalityLUTTransformation(rescale_intercept=intercept, rescale_slope=slope, rescale_type=kind)


def build_voi(image: Dataset) -> hd.pr.SoftcopyVOILUTTransformation | None:
    """Return the image's first usable window, else its first VOI LUT, else None (identity)."""
    centre, width = read_number(image, "WindowCenter"), read_number(image, "WindowWidth")
    if centre is not None and width is not None and np.isfinite((centre, width)).all() and width >= 1:
        function = read_text(image, "VOILUTFunction")
        return hd.pr.SoftcopyVOILUTTransformation(
            window_center=centre,
            window_width=width,
            voi_lut_function=function if function in ("LINEAR", "LINEAR_EXACT", "SIGMOID") else None,
        )
    for lut in read_items(image, "VOILUTSequence")[:1]:
        values = read_lut(lut)
        if values is not None:
            explanation = read_text(lut, "LUTExplanation") or None
            scaled = np.rint(values[2] * (65535.0 / (2 ** values[1] - 1))).clip(0, 65535).astype(np.uint16)
            table = hd.VOILUT(first_mapped_value=max(values[0], 0), lut_data=scaled, lut_explanation=explanation)
            _describe(table, values[0], len(values[2]))
            return hd.pr.SoftcopyVOILUTTransformation(voi_luts=[table])
    return None


def build_presentation(image: Dataset) -> hd.PresentationLUTTransformation:
    """Return INVERSE for MONOCHROME1: a presentation state overrides the photometric interpretation (PS3.4 N.2.1.4)."""
    inverse = read_text(image, "PhotometricInterpretation") == "MONOCHROME1"
    return hd.PresentationLUTTransformation(presentation_lut_shape="INVERSE" if inverse else "IDENTITY")


def _describe(table: Dataset, first: int, entries: int) -> None:
    """Write the descriptor: highdicom takes no negative first value. Entries are 16 bits here, 8 or 16 are allowed."""
    table.add_new("LUTDescriptor", "SS" if first < 0 else "US", [entries % 65536, first, 16])
