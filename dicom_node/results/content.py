"""The content tree of any SR as text for people (PS3.3 C.17.3): what each item is called and what it says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicom_node.errors import PermanentError
from dicom_node.header import DECODE_ERRORS, read_items, read_number, read_text, read_value
from dicom_node.report_codes import read_concept
from dicom_node.results.shapes import read_points

MAX_ITEMS = 20_000
MAX_DEPTH = 60
"""Items and levels; the node's results have some hundreds, and six."""

MAX_POINTS = 8
"""Of a graphic; more are counted."""


@dataclass(frozen=True, slots=True)
class ContentItem:
    """A content item. `path` is its place in the tree ("1.3.2"), `code` that of its name ("121071 DCM")."""

    path: str
    relationship: str
    value_type: str
    name: str
    code: str
    value: str
    children: tuple[ContentItem, ...]

    @property
    def gist(self) -> str:
        """What a container is about: the comment in it, else the finding that it names."""
        said = {child.name: child.value for child in self.children if child.value_type in ("TEXT", "CODE")}
        return said.get("Comment") or said.get("Finding") or ""

    @property
    def count(self) -> int:
        """How many items there are below."""
        return len(self.children) + sum(child.count for child in self.children)


def read_content(ds: Dataset) -> ContentItem:
    """Return the root of the content tree of an SR; raises PermanentError where it is damaged or without measure."""
    left = [MAX_ITEMS]
    try:
        return _read_item(ds, "1", left)
    except DECODE_ERRORS as error:
        uid = read_text(ds, "SOPInstanceUID")
        raise PermanentError(f"the content of {uid} is damaged and cannot be read ({type(error).__name__})") from error


def _read_item(item: Dataset, path: str, left: list[int]) -> ContentItem:
    left[0] -= 1
    children = read_items(item, "ContentSequence")
    if left[0] < 0 or (children and path.count(".") >= MAX_DEPTH):
        raise PermanentError(f"the SR has more than {MAX_ITEMS} content items or {MAX_DEPTH} levels; it is not shown")
    name, value_type = read_concept(item, "ConceptNameCodeSequence"), read_text(item, "ValueType")
    return ContentItem(
        path=path,
        relationship=read_text(item, "RelationshipType"),
        value_type=value_type,
        name=name.meaning if name else "",
        code=f"{name.code} {name.scheme}" if name else "",
        value=_write_value(item, value_type),
        children=tuple(_read_item(child, f"{path}.{n}", left) for n, child in enumerate(children, 1)),
    )


def _write_value(item: Dataset, value_type: str) -> str:
    reference = read_value(item, "ReferencedContentItemIdentifier")
    if reference is not None:
        return "see item " + ".".join(str(part) for part in (reference if _is_many(reference) else [reference]))
    write = _VALUES.get(value_type)
    return write(item) if write else ""


def _is_many(value: object) -> bool:
    return hasattr(value, "__iter__") and not isinstance(value, str)


def _code(item: Dataset) -> str:
    value = read_concept(item, "ConceptCodeSequence")
    return f"{value.meaning} ({value.code}, {value.scheme})" if value else ""


def _number(item: Dataset) -> str:
    for measured in read_items(item, "MeasuredValueSequence")[:1]:
        number, unit = read_number(measured, "NumericValue"), read_concept(measured, "MeasurementUnitsCodeSequence")
        return f"{number:g} {unit.code if unit else ''}".strip() if number is not None else ""
    return "no value"


def _reference(item: Dataset) -> str:
    named = []
    for one in read_items(item, "ReferencedSOPSequence"):
        frames = read_value(one, "ReferencedFrameNumber")
        kind = UID(read_text(one, "ReferencedSOPClassUID")).name
        named.append(f"{kind} {read_text(one, 'ReferencedSOPInstanceUID')}" + (f", frame {frames}" if frames else ""))
    return "; ".join(named)


def _graphic(item: Dataset) -> str:
    points = read_points(item, "GraphicData")
    shown = " ".join(f"({column:.1f}, {row:.1f})" for column, row in points[:MAX_POINTS])
    more = f" and {len(points) - MAX_POINTS} more" if len(points) > MAX_POINTS else ""
    return f"{read_text(item, 'GraphicType')} {shown}{more}"


def _text(keyword: str) -> Callable[[Dataset], str]:
    return lambda item: read_text(item, keyword)


_VALUES: Mapping[str, Callable[[Dataset], str]] = {
    "TEXT": _text("TextValue"), "CODE": _code, "NUM": _number, "UIDREF": _text("UID"), "DATE": _text("Date"),
    "TIME": _text("Time"), "DATETIME": _text("DateTime"), "PNAME": _text("PersonName"), "IMAGE": _reference,
    "COMPOSITE": _reference, "WAVEFORM": _reference, "SCOORD": _graphic, "SCOORD3D": _text("GraphicType"),
    "TCOORD": _text("TemporalRangeType"),
}  # fmt: skip
