"""What any SR says of one image: its regions with what is said of them, and what it lists without one.

For measurement reports of any maker (PS3.16 TID 1500); `reading` reads the node's own results back, strictly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydicom.dataset import Dataset

from dicom_node.header import read_items, read_number, read_text, read_value
from dicom_node.report_codes import read_concept
from dicom_node.results import codes
from dicom_node.results.reading import find_child, is_named
from dicom_node.results.shapes import Shape, read_shape
from dicom_node.results.sr_tree import walk_tree
from dicom_node.results.values import NOTE, write_label

UNLOCATED = "Listed without a region"
_VALUE_TYPES = ("TEXT", "CODE", "NUM")
_RATIOS: Mapping[str, float] = {"%": 100.0, "1": 1.0}
"""Units of a certainty, and what they are divided by."""


@dataclass(frozen=True, slots=True, eq=False)
class ReadRegion:
    """What a measurement group (or a single item with coordinates) marks on an image; score in [0, 1].

    `number` counts all groups of the document that mark something on any image, from 1. `label` is short.
    """

    number: int
    label: str
    text: str
    score: float | None
    shapes: tuple[Shape, ...]


def refers_to(report: Dataset, sop_instance_uid: str) -> bool:
    """Tell whether the SR lists an image as evidence (PS3.3 C.17.2), or an item of its content refers to it."""
    evidence = [
        instance
        for keyword in ("CurrentRequestedProcedureEvidenceSequence", "PertinentOtherEvidenceSequence")
        for study in read_items(report, keyword)
        for series in read_items(study, "ReferencedSeriesSequence")
        for instance in read_items(series, "ReferencedSOPSequence")
    ]
    content = [instance for item in walk_tree(report) for instance in read_items(item, "ReferencedSOPSequence")]
    return any(read_text(item, "ReferencedSOPInstanceUID") == sop_instance_uid for item in (*evidence, *content))


def read_regions(report: Dataset, sop_instance_uid: str) -> list[ReadRegion]:
    """Return what the SR marks on the first frame of an image, in the order of the document."""
    owners: dict[int, tuple[Dataset, list[Shape]]] = {}
    for owner, scoord in _find_coordinates(report, report):
        shapes = owners.setdefault(id(owner), (owner, []))[1]
        shape = read_shape(scoord)
        if shape is not None and _is_selected_from(report, scoord, sop_instance_uid):
            shapes.append(shape)
    return [
        _read_region(number, owner, _drop_copies(shapes))
        for number, (owner, shapes) in enumerate(owners.values(), 1)
        if shapes
    ]


def read_listed(report: Dataset) -> list[tuple[str, str]]:
    """Return why, and which text, for all that the SR lists without a region on any image; not what it is itself."""
    listed = []
    for item in walk_tree(report):
        if is_named(item, codes.QUALITATIVE_EVALUATIONS.value):
            texts = [(_read_reason(child), _write_value(child)) for child in _children(item)]
            listed += [(reason, text) for reason, text in texts if text not in ("", NOTE)]
        if is_named(item, codes.MEASUREMENT_GROUP.value) and not any(
            read_text(below, "ValueType") == "SCOORD" for below in walk_tree(item)
        ):
            listed.append((UNLOCATED, _describe(item)))
    return listed


def _find_coordinates(item: Dataset, owner: Dataset) -> Iterator[tuple[Dataset, Dataset]]:
    """Yield the SCOORD items below `item`, each with what it belongs to: a measurement group, else its parent."""
    for child in _children(item):
        if read_text(child, "ValueType") == "SCOORD":
            yield owner, child
        is_bound = is_named(owner, codes.MEASUREMENT_GROUP.value)
        yield from _find_coordinates(child, owner if is_bound else child)


def _is_selected_from(report: Dataset, scoord: Dataset, sop_instance_uid: str) -> bool:
    """Tell whether coordinates are SELECTED FROM the image, and from its first frame if frames are named."""
    for child in _children(scoord):
        source = _resolve(report, child)
        for reference in read_items(source, "ReferencedSOPSequence"):
            if read_text(reference, "ReferencedSOPInstanceUID") == sop_instance_uid:
                return names_first_frame(reference)
    return False


def names_first_frame(reference: Dataset) -> bool:
    """Tell whether a reference is to the first frame, or to all of them (PS3.3 Table 10-3)."""
    frames = read_value(reference, "ReferencedFrameNumber")
    if frames is None or frames == "":
        return True
    return 1 in [int(frame) for frame in (frames if isinstance(frames, Sequence) else [frames])]


def _resolve(report: Dataset, item: Dataset) -> Dataset:
    """Return the item that a by-reference relationship names by its place in the tree, from 1 (PS3.3 C.17.3.2.5)."""
    path = read_value(item, "ReferencedContentItemIdentifier")
    if not isinstance(path, Sequence):
        return item
    for place in path[1:]:
        children = _children(report)
        if not 1 <= int(place) <= len(children):
            return item
        report = children[int(place) - 1]
    return report


def _drop_copies(shapes: Sequence[Shape]) -> tuple[Shape, ...]:
    """Return each shape once: a group may hold its region, and a number of it a copy."""
    return tuple({(shape.kind, shape.points.tobytes()): shape for shape in shapes}.values())


def _read_region(number: int, owner: Dataset, shapes: tuple[Shape, ...]) -> ReadRegion:
    finding = find_child(owner, codes.FINDING.value)
    name = read_concept(finding, "ConceptCodeSequence") if finding is not None else None
    text = _describe(owner)
    label = write_label(number, name.meaning if name else text, _is_on_other_side(owner))
    return ReadRegion(number, label, text, _read_score(owner), shapes)


def _is_on_other_side(owner: Dataset) -> bool:
    check = find_child(owner, codes.LATERALITY_CHECK.value)
    found = read_concept(check, "ConceptCodeSequence") if check is not None else None
    return found is not None and found.code == codes.ON_OTHER_SIDE.value


def _describe(owner: Dataset) -> str:
    """Return what is said of a region: comment or finding, and what was measured in it."""
    if read_text(owner, "ValueType") in _VALUE_TYPES:
        return _write_value(owner)
    comment = find_child(owner, codes.COMMENT.value)
    finding = find_child(owner, codes.FINDING.value)
    said = [_write_value(item) for item in (comment or finding,) if item is not None]
    measured = [
        _write_value(item)
        for item in _children(owner)
        if read_text(item, "ValueType") == "NUM" and not is_named(item, codes.CERTAINTY.value)
    ]
    tracking = find_child(owner, codes.TRACKING_IDENTIFIER.value)
    parts = [part for part in (*said, *measured) if part]
    return ", ".join(parts) or (_write_value(tracking) if tracking is not None else "") or "Region"


def _write_value(item: Dataset) -> str:
    """Return the value of a TEXT, CODE or NUM item; what a number is of is said before it."""
    value_type = read_text(item, "ValueType")
    if value_type == "TEXT":
        return read_text(item, "TextValue")
    if value_type == "CODE":
        value = read_concept(item, "ConceptCodeSequence")
        return value.meaning if value is not None else ""
    name = read_concept(item, "ConceptNameCodeSequence")
    number, unit = _read_measured(item)
    if value_type != "NUM" or number is None:
        return ""
    return f"{name.meaning if name else ''} {number:.4g} {unit}".strip()


def _read_measured(item: Dataset) -> tuple[float | None, str]:
    """Return value and unit of a NUM item."""
    for measured in read_items(item, "MeasuredValueSequence")[:1]:
        unit = read_concept(measured, "MeasurementUnitsCodeSequence")
        return read_number(measured, "NumericValue"), unit.code if unit is not None else ""
    return None, ""


def _read_score(owner: Dataset) -> float | None:
    certainty = find_child(owner, codes.CERTAINTY.value)
    number, unit = _read_measured(certainty) if certainty is not None else (None, "")
    return number / _RATIOS[unit] if number is not None and unit in _RATIOS else None


def _read_reason(item: Dataset) -> str:
    """Return why a phrase has no region, as the node's own reports say it; a comment stands for itself."""
    if is_named(item, codes.COMMENT.value):
        return ""
    status = find_child(item, codes.STATUS.value)
    value = read_concept(status, "ConceptCodeSequence") if status is not None else None
    return value.meaning if value is not None else UNLOCATED


def _children(item: Dataset) -> list[Dataset]:
    return read_items(item, "ContentSequence")
