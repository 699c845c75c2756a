"""What the result documents are made of, and which boxes are written: one decision for SR, GSPS and picture."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Literal

import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicom_node.config import ResultsSettings
from dicom_node.header import read_number, read_text
from dicom_node.laterality import contradicts
from dicom_node.orientation import UPRIGHT, Orientation, read_orientation
from dicom_node.report import Report
from dicom_node.results import codes
from grounding.types import Box, Finding, Grounding, ScoredBox

SrClass = Literal["comprehensive_3d", "comprehensive"]
WhenNothingLocalized = Literal["none", "text", "tid1500"]
Tracking = Literal["cornerstone", "plain"]
Window = Literal["image", "reader"]

SR_SOP_CLASSES: dict[SrClass, str] = {
    "comprehensive_3d": "1.2.840.10008.5.1.4.1.1.88.34",
    "comprehensive": "1.2.840.10008.5.1.4.1.1.88.33",
}
GSPS_SOP_CLASS = "1.2.840.10008.5.1.4.1.1.11.1"

_DEVICE = re.compile(
    r"\b(catheters?|lines?|tubes?|drains?|leads?|pacemakers?|picc|ports?|sheaths?|wires?|cannulas?|devices?|electrodes?)\b",
    re.IGNORECASE,
)

NOTE = "Research model - unverified. Not for diagnosis."
"""What every SR and every picture of a result says."""

MIN_SIDE = 1.0
"""Pixels; a smaller box cannot be seen and is written as not localized."""


@dataclass(frozen=True, slots=True)
class Equipment:
    """The node that writes the results. `software_version` is the node's; the model's is in the grounding."""

    institution: str = ""
    station: str = ""
    software_version: str = "0.2.0"


@dataclass(frozen=True, slots=True)
class Reference:
    """An instance that a result refers to."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str


@dataclass(frozen=True, slots=True)
class ResultOptions:
    """How results are written; the settings of the section `results`.

    `min_confidence`: boxes scored lower are written as not localized. `when_nothing_localized`: no SR, an SR that
    viewers show as text, or a strict TID 1500 one. `tracking`: identifiers that OHIF before 3.12 takes for a rectangle,
    or plain ones. `gsps`: whether presentation states accompany the SR, which then refers to them. `window`: they keep
    the image's first window, or leave the window to the reader.
    """

    min_confidence: float = 0.0
    when_nothing_localized: WhenNothingLocalized = "text"
    tracking: Tracking = "cornerstone"
    gsps: bool = True
    window: Window = "image"

    @classmethod
    def of(cls, settings: ResultsSettings) -> ResultOptions:
        """Return the options that the configuration asks for."""
        return cls(
            min_confidence=settings.min_confidence,
            when_nothing_localized=settings.when_nothing_localized,
            tracking=settings.tracking,
            gsps=settings.gsps,
            window=settings.window,
        )


@dataclass(frozen=True, slots=True)
class ResultInput:
    """All that the results of one revision of a study depend on.

    `images` are header datasets in the order of `Finding.image`; `report_header` is None for a report that is no DICOM
    instance. `created_at` (aware) belongs to the job, not to the moment of writing: a repeat must give the same bytes.
    `local_timezone` is used where the first image names no Timezone Offset From UTC. `predecessors` are the instances
    of the SR that this one replaces: one, or two where archives took it in different SOP classes.
    """

    images: tuple[Dataset, ...]
    report_header: Dataset | None
    report: Report
    grounding: Grounding
    created_at: datetime
    revision: int = 1
    predecessors: tuple[Reference, ...] = ()
    equipment: Equipment = Equipment()
    sr_class: SrClass = "comprehensive_3d"
    options: ResultOptions = ResultOptions()
    local_timezone: tzinfo = UTC


@dataclass(frozen=True, slots=True)
class Mark:
    """One box that is written. `number` counts from 1 over all images; `box` is inside its image, in float32.

    `on_other_side`: it lies on the other side of the patient than the phrase says.
    """

    number: int
    finding: Finding
    box: Box
    score: float
    on_other_side: bool = False

    @property
    def label(self) -> str:
        """The short text beside the box: "2 Pleural effusion"; the phrase where the finding has no code."""
        name = self.finding.finding.meaning if self.finding.finding is not None else self.finding.phrase
        return write_label(self.number, name, self.on_other_side)


@dataclass(frozen=True, slots=True)
class Remark:
    """One phrase without a box, and why."""

    finding: Finding
    status: Code


def write_label(number: int, name: str, on_other_side: bool = False) -> str:
    """Return the short text beside box `number`."""
    warning = " (check side)" if on_other_side else ""
    return f"{number} {name if len(name) <= 40 else name[:37].rstrip() + '...'}{warning}"


def read_size(image: Dataset) -> tuple[int, int]:
    """Return rows and columns of an image header, in pixels."""
    return int(read_number(image, "Rows") or 0), int(read_number(image, "Columns") or 0)


def select_marks(
    findings: Sequence[Finding],
    sizes: Mapping[int, tuple[int, int]],
    min_confidence: float = 0.0,
    orientations: Mapping[int, Orientation] | None = None,
) -> tuple[tuple[Mark, ...], tuple[Remark, ...]]:
    """Return the boxes to write and the phrases to list without one, in the order of the findings.

    `sizes` are (rows, columns) by index of the image, and `orientations` how it is stored, if otherwise than films
    hang. A phrase that has a box in one image is not listed as missing in another.
    """
    ways = orientations or {}
    kept = [(finding, _keep_boxes(finding, sizes, min_confidence)) for finding in findings]
    placed = {_key(finding) for finding, boxes in kept if boxes}
    marks: list[Mark] = []
    remarks: dict[tuple[object, ...], Remark] = {}
    for finding, boxes in kept:
        way, size = ways.get(finding.image, UPRIGHT), sizes[finding.image]
        marks += [
            Mark(len(marks) + n, finding, scored.box, scored.score, is_opposed(finding, scored.box, size, way))
            for n, scored in enumerate(boxes, 1)
        ]
        if not boxes and _key(finding) not in placed:
            remarks.setdefault(_key(finding), Remark(finding, _status(finding, sizes)))
    return tuple(marks), tuple(remarks.values())


def select_result_marks(result: ResultInput) -> tuple[tuple[Mark, ...], tuple[Remark, ...]]:
    """Return the boxes and the phrases without one that the results of `result` hold."""
    sizes = {index: read_size(image) for index, image in enumerate(result.images)}
    ways = {index: read_orientation(image) for index, image in enumerate(result.images)}
    return select_marks(result.grounding.findings, sizes, result.options.min_confidence, ways)


def is_opposed(finding: Finding, box: Box, size: tuple[int, int], orientation: Orientation = UPRIGHT) -> bool:
    """Tell whether a box lies on the other side of the patient than its phrase says; `size` is (rows, columns).

    Not asked of lines and tubes: theirs is the side where they enter.
    """
    return not _DEVICE.search(finding.phrase) and contradicts(
        finding.site.laterality if finding.site else None, box, *size, orientation
    )


def is_grayscale(image: Dataset) -> bool:
    """Tell whether a Grayscale Softcopy Presentation State may refer to the image (PS3.3 A.33.1)."""
    return read_text(image, "PhotometricInterpretation") in ("MONOCHROME1", "MONOCHROME2")


def has_gsps(result: ResultInput, image_index: int, marks: Sequence[Mark]) -> bool:
    """Tell whether an image gets a presentation state: it is grayscale and at least one box is on it."""
    wanted = result.options.gsps and is_grayscale(result.images[image_index])
    return wanted and any(mark.finding.image == image_index for mark in marks)


def clip_box(box: Box, rows: int, columns: int) -> Box | None:
    """Return `box` as it is written, float32 within the image, or None where less than a pixel of it is left."""
    corners = np.asarray(box.xyxy, np.float32)
    x1, x2 = (float(x) for x in np.clip(corners[[0, 2]], 0, columns))
    y1, y2 = (float(y) for y in np.clip(corners[[1, 3]], 0, rows))
    return Box(x1, y1, x2, y2) if x2 - x1 >= MIN_SIDE and y2 - y1 >= MIN_SIDE else None


def _keep_boxes(finding: Finding, sizes: Mapping[int, tuple[int, int]], min_confidence: float) -> tuple[ScoredBox, ...]:
    if finding.negated or not finding.localized:
        return ()
    clipped = (
        (clip_box(scored.box, *sizes[finding.image]), scored.score)
        for scored in finding.boxes
        if scored.score >= min_confidence
    )
    return tuple(ScoredBox(box, score) for box, score in clipped if box is not None)


def _status(finding: Finding, sizes: Mapping[int, tuple[int, int]]) -> Code:
    if finding.negated:
        return codes.NEGATED
    return codes.LOW_CONFIDENCE if _keep_boxes(finding, sizes, 0.0) else codes.NOT_LOCALIZED


def _key(finding: Finding) -> tuple[object, ...]:
    return finding.phrase, finding.source, finding.negated
