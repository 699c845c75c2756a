"""Results read back: what an SR or a presentation state of the node says, for checks against the database."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from pydicom.dataset import Dataset

from dicom_node.header import read_items, read_number, read_text
from dicom_node.report_codes import read_concept
from dicom_node.results import codes
from dicom_node.results.sr_tree import walk_tree
from grounding.types import Box, Concept


@dataclass(frozen=True, slots=True)
class ReadBox:
    """A box as a result holds it. `text` is the phrase in an SR, the label in a GSPS, which has no score."""

    text: str
    sop_instance_uid: str
    box: Box
    score: float | None
    tracking_uid: str
    finding: Concept | None = None


@dataclass(frozen=True, slots=True)
class ReadRemark:
    """A phrase that an SR lists without a box, and its localization status."""

    phrase: str
    status: str


def read_boxes(ds: Dataset) -> list[ReadBox]:
    """Return the boxes of an SR or a presentation state of the node, in the order written; score in [0, 1]."""
    if read_text(ds, "Modality") == "PR":
        return list(_read_graphics(ds))
    groups = (item for item in walk_tree(ds) if is_named(item, codes.MEASUREMENT_GROUP.value))
    return [_read_group(group) for group in groups]


def read_remarks(ds: Dataset) -> list[ReadRemark]:
    """Return the phrases that an SR of the node lists without a box."""
    containers = (item for item in walk_tree(ds) if is_named(item, codes.QUALITATIVE_EVALUATIONS.value))
    phrases = (item for container in containers for item in container.ContentSequence)
    return [
        ReadRemark(read_text(phrase, "TextValue"), _coded(phrase, codes.STATUS.value) or "")
        for phrase in phrases
        if find_child(phrase, codes.STATUS.value) is not None
    ]


def _read_group(group: Dataset) -> ReadBox:
    region = _child(group, codes.IMAGE_REGION.value)
    image = read_items(region.ContentSequence[0], "ReferencedSOPSequence")[0]
    certainty = read_items(_child(group, codes.CERTAINTY.value), "MeasuredValueSequence")[0]
    finding = find_child(group, codes.FINDING.value)
    return ReadBox(
        read_text(_child(group, codes.COMMENT.value), "TextValue"),
        read_text(image, "ReferencedSOPInstanceUID"),
        _read_corners(region),
        (read_number(certainty, "NumericValue") or 0.0) / 100.0,
        read_text(_child(group, codes.TRACKING_UID.value), "UID"),
        read_concept(finding, "ConceptCodeSequence") if finding is not None else None,
    )


def _read_graphics(ds: Dataset) -> Iterator[ReadBox]:
    annotations = read_items(ds, "GraphicAnnotationSequence")
    labels = {
        read_text(text, "TrackingUID"): read_text(text, "UnformattedTextValue")
        for annotation in annotations
        for text in read_items(annotation, "TextObjectSequence")
    }
    for annotation in annotations:
        image = read_text(annotation.ReferencedImageSequence[0], "ReferencedSOPInstanceUID")
        for graphic in read_items(annotation, "GraphicObjectSequence"):
            uid = read_text(graphic, "TrackingUID")
            yield ReadBox(labels.get(uid, ""), image, _read_corners(graphic), None, uid)


def _read_corners(item: Dataset) -> Box:
    values = [float(value) for value in item.GraphicData]
    columns, rows = values[0::2], values[1::2]
    return Box(min(columns), min(rows), max(columns), max(rows))


def _child(item: Dataset, code: str) -> Dataset:
    child = find_child(item, code)
    if child is None:
        raise ValueError(f"the content item has no child named {code}: this is no result of the node")
    return child


def find_child(item: Dataset, code: str) -> Dataset | None:
    """Return the first item below `item` whose concept name has this code."""
    return next((child for child in read_items(item, "ContentSequence") if is_named(child, code)), None)


def _coded(item: Dataset, code: str) -> str | None:
    child = find_child(item, code)
    value = read_concept(child, "ConceptCodeSequence") if child is not None else None
    return value.code if value is not None else None


def is_named(item: Dataset, code: str) -> bool:
    """Tell whether the concept name of a content item has this code."""
    name = read_concept(item, "ConceptNameCodeSequence")
    return name is not None and name.code == code
