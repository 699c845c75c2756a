"""The page of findings that are in no DICOM object: of a PNG, or where no SR is written.

Where there is an SR, `rendering.draw_report` draws what it says; both give the same page.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image as PillowImage

from dicom_node.orientation import UPRIGHT, Orientation
from dicom_node.results.page import Passage, Region, draw_page
from dicom_node.results.shapes import trace_corners
from dicom_node.results.values import NOTE, Mark, select_marks
from grounding.types import Finding, Image


def draw_overlay(
    image: Image,
    findings: Sequence[Finding],
    *,
    image_index: int = 0,
    min_confidence: float = 0.0,
    orientation: Orientation = UPRIGHT,
) -> PillowImage.Image:
    """Return the page of `image` (float32[H, W] in [0, 1]).

    `findings` are all of the study: boxes are numbered as in SR and GSPS. `orientation` is how the image is stored.
    """
    others = {finding.image: (1_000_000, 1_000_000) for finding in findings}
    sizes = {**others, image_index: image.shape}
    marks, remarks = select_marks(findings, sizes, min_confidence, {image_index: orientation})
    regions = [_make_region(mark) for mark in marks if mark.finding.image == image_index]
    passages = [Passage(remark.status.meaning, remark.finding.phrase) for remark in remarks]
    return draw_page(image, regions, passages, note=NOTE)


def _make_region(mark: Mark) -> Region:
    corners = trace_corners(mark.box).astype(np.float64)
    return Region(mark.number, mark.label, mark.finding.phrase, mark.score, (corners,))
