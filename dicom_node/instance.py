"""The identity of a received instance, and the facts that decisions about its study need. Pure: bytes in, values out.

Only the header is read, never pixels or a report's content. Texts may be of any length and any content here; what a
decision cannot use is empty or None, and only the UIDs are required.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from io import BytesIO
from itertools import chain, islice
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, Literal

from pydicom.tag import Tag

from dicom_node.errors import InvalidInstanceError
from dicom_node.head import Extent, Head, is_valid_uid, read_head, read_only_item
from dicom_node.header import (
    MANUFACTURER,
    read_items,
    read_number,
    read_plain_codes,
    read_plain_number,
    read_plain_text,
    read_text,
    read_value,
    tag_of,
)

Role = Literal["image", "report", "other"]

CR_STORAGE = "1.2.840.10008.5.1.4.1.1.1"
DX_PRESENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.1.1"
DX_PROCESSING_STORAGE = "1.2.840.10008.5.1.4.1.1.1.1.1"
IMAGE_CLASSES = (CR_STORAGE, DX_PRESENTATION_STORAGE)

REPORT_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.88.11",  # Basic Text SR
    "1.2.840.10008.5.1.4.1.1.88.22",  # Enhanced SR
    "1.2.840.10008.5.1.4.1.1.88.33",  # Comprehensive SR
    "1.2.840.10008.5.1.4.1.1.88.34",  # Comprehensive 3D SR
    "1.2.840.10008.5.1.4.1.1.104.2",  # Encapsulated CDA
)
"""SOP classes that may hold a radiologist's report; the others (dose, CAD, key objects, logs) never do."""

DOCUMENT_CLASSES = ("1.2.840.10008.5.1.4.1.1.88.", "1.2.840.10008.5.1.4.1.1.11.")
"""Beginnings of the SOP Class UIDs of structured reports and presentation states: what the node itself writes."""

NOT_REPORT_TITLES = {
    ("126000", "DCM"),  # Imaging Measurement Report: TID 1500, software writes it
    ("126001", "DCM"),  # Oncology Measurement Report
    ("113701", "DCM"),  # X-Ray Radiation Dose Report
    ("113811", "DCM"),  # Comprehensive X-Ray Radiation Dose Report
    ("111036", "DCM"),  # Mammography CAD Report
    ("112000", "DCM"),  # Chest CAD Report
    ("112220", "DCM"),  # Colon CAD Report
    ("121144", "DCM"),  # Document Title of a Procedure Log
}
"""Document titles under which no radiologist writes, whatever the SOP class."""

MAX_TEXT = 256
"""Characters of a header text that are kept; PS3.5 6.2 allows 64."""

MAX_VALUES = 16
MAX_REFERENCES = 1000
MAX_STUDIES = 8
"""Other studies that a report may be about: further ones are not followed."""

_CONTENT_SEQUENCE = int(Tag("ContentSequence"))
_LAST_READ = int(Tag("ViewCodeSequence"))
"""Nothing is read behind this attribute, and of documents nothing from their content on."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")

_KEYWORDS = (
    "SpecificCharacterSet",
    "ImageType",
    "SOPClassUID",
    "SOPInstanceUID",
    "ContentDate",
    "ContentTime",
    "AccessionNumber",
    "Modality",
    "PresentationIntentType",
    "Manufacturer",
    "ContributingEquipmentSequence",
    "SeriesDescription",
    "ProtocolName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "BodyPartExamined",
    "ViewPosition",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "InstanceNumber",
    "PatientOrientation",
    "StudyPriorityID",
    "RequestedProcedurePriority",
    "RequestAttributesSequence",
    "ReferencedRequestSequence",
    "Rows",
    "Columns",
    "SourceInstanceSequence",
    "ViewCodeSequence",
    "ConceptNameCodeSequence",
    "CurrentRequestedProcedureEvidenceSequence",
    "CompletionFlag",
    "VerificationFlag",
    "PreliminaryFlag",
)
_EXTENT = Extent({tag.real: tag for tag in map(tag_of, _KEYWORDS)}, _LAST_READ + 1, frozenset({_CONTENT_SEQUENCE}))

_CODE_KEYWORDS = ("CodeValue", "CodingSchemeDesignator")
_CODE_TAGS = {tag.real: tag for tag in map(tag_of, _CODE_KEYWORDS)}


@dataclass(frozen=True, slots=True)
class Instance:
    """What is known of an instance from its header. Absent texts are empty, absent numbers None.

    `view_code` and `title` are code value and coding scheme designator; `content_datetime` is sortable text
    (YYYYMMDDHHMMSS.ffffff, local time as written); `evidence` the SOP Instance UIDs that a report says it is about
    (Current Requested Procedure Evidence, PS3.3 C.17.2; Source Instance Sequence of an encapsulated document, C.24.2),
    and `evidence_studies` the studies that these belong to, if its own is not among them. `procedure_priority` is that
    of the order, where the header has it, `c_store_priority` (LOW, MEDIUM, HIGH) that of the message it came in.
    """

    sop_class_uid: str
    sop_instance_uid: str
    study_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    modality: str = ""
    patient_id: str = ""
    patient_id_issuer: str = ""
    patient_birth_date: str = ""
    patient_sex: str = ""
    accession_number: str = ""
    is_own_result: bool = False
    image_type: tuple[str, ...] = ()
    presentation_intent: str = ""
    rows: int | None = None
    columns: int | None = None
    view_position: str = ""
    view_code: tuple[str, str] = ("", "")
    patient_orientation: tuple[str, ...] = ()
    body_part: str = ""
    description: str = ""
    series_number: int | None = None
    instance_number: int | None = None
    title: tuple[str, str] = ("", "")
    completion_flag: str = ""
    verification_flag: str = ""
    preliminary_flag: str = ""
    content_datetime: str = ""
    evidence: tuple[str, ...] = ()
    evidence_studies: tuple[str, ...] = ()
    procedure_priority: str = ""
    c_store_priority: str = ""

    @property
    def role(self) -> Role:
        """What the instance is to the node: an image to ground on, a report to ground, or neither."""
        if self.is_own_result:
            return "other"
        if self.sop_class_uid in IMAGE_CLASSES:
            return "other" if self.presentation_intent == "FOR PROCESSING" else "image"
        if self.sop_class_uid in REPORT_CLASSES and self.title not in NOT_REPORT_TITLES:
            return "report"
        return "other"

    def facts(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        values = zip(_FACTS, _VALUES_OF(self), strict=True)
        return {name: list(value) if type(value) is tuple else value for name, value in values}

    @classmethod
    def from_facts(cls, facts: dict[str, Any]) -> Instance:
        """Return the instance that `facts` came from; unknown facts of other versions are left out."""
        values: dict[str, Any] = {name: value for name, value in facts.items() if name in _FACTS}
        values |= {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return cls(**values)


_PRIORITIES = {0: "MEDIUM", 1: "HIGH", 2: "LOW", None: ""}

_FACTS = tuple(field.name for field in fields(Instance))
_VALUES_OF = attrgetter(*_FACTS)


def read_instance(source: Path | bytes | BinaryIO, c_store_priority: int | None = None) -> Instance:
    """Return the identity and facts of the DICOM file `source`. Total: raises InvalidInstanceError and nothing else.

    `c_store_priority` is the Priority (0000,0700) of the C-STORE request that it came in (PS3.7 E.1).
    """
    try:
        return _read(source, _PRIORITIES.get(c_store_priority, ""))
    except InvalidInstanceError:
        raise
    except Exception as error:  # pydicom raises many kinds on damaged input: the one broad catch of the node
        raise InvalidInstanceError(f"not a readable DICOM instance: {type(error).__name__}") from error


def _read(source: Path | bytes | BinaryIO, c_store_priority: str) -> Instance:
    if isinstance(source, Path):
        with source.open("rb") as file:
            return _describe(*read_head(file, _EXTENT), c_store_priority)
    return _describe(*read_head(BytesIO(source) if isinstance(source, bytes) else source, _EXTENT), c_store_priority)


def _describe(head: Head, transfer_syntax_uid: str, c_store_priority: str) -> Instance:
    sop_class_uid = _required_uid(head, "SOPClassUID")
    return Instance(
        sop_class_uid=sop_class_uid,
        sop_instance_uid=_required_uid(head, "SOPInstanceUID"),
        study_instance_uid=_required_uid(head, "StudyInstanceUID"),
        series_instance_uid=_required_uid(head, "SeriesInstanceUID"),
        transfer_syntax_uid=transfer_syntax_uid,
        modality=_text(head, "Modality"),
        patient_id=_text(head, "PatientID"),
        patient_id_issuer=_text(head, "IssuerOfPatientID").upper(),
        patient_birth_date=_text(head, "PatientBirthDate"),
        patient_sex=_text(head, "PatientSex").upper(),
        accession_number=_text(head, "AccessionNumber"),
        is_own_result=sop_class_uid.startswith(DOCUMENT_CLASSES) and _is_made_here(head),
        image_type=_texts(head, "ImageType"),
        presentation_intent=_text(head, "PresentationIntentType").upper(),
        rows=_number(head, "Rows"),
        columns=_number(head, "Columns"),
        view_position=_text(head, "ViewPosition").upper(),
        view_code=_code(head, "ViewCodeSequence"),
        patient_orientation=_texts(head, "PatientOrientation"),
        body_part=_text(head, "BodyPartExamined").upper(),
        description=f"{_text(head, 'SeriesDescription')} {_text(head, 'ProtocolName')}".strip().upper(),
        series_number=_number(head, "SeriesNumber"),
        instance_number=_number(head, "InstanceNumber"),
        title=_code(head, "ConceptNameCodeSequence"),
        completion_flag=_text(head, "CompletionFlag").upper(),
        verification_flag=_text(head, "VerificationFlag").upper(),
        preliminary_flag=_text(head, "PreliminaryFlag").upper(),
        content_datetime=_text(head, "ContentDate") + _text(head, "ContentTime").replace(":", ""),
        evidence=_evidence(head),
        evidence_studies=_evidence_studies(head),
        procedure_priority=_procedure_priority(head),
        c_store_priority=c_store_priority,
    )


def _required_uid(head: Head, keyword: str) -> str:
    uid = _text(head, keyword)
    if not uid:
        raise InvalidInstanceError(f"it has no {keyword}")
    if not is_valid_uid(uid):
        raise InvalidInstanceError(f"its {keyword} is not a UID of at most 64 digits and dots")
    return uid


def _is_made_here(head: Head) -> bool:
    """Tell by General Equipment and Contributing Equipment whether this node, or one like it, wrote the instance."""
    return any(
        _text(equipment, "Manufacturer") == MANUFACTURER
        for equipment in (head, *_items(head, "ContributingEquipmentSequence"))
    )


def _evidence(head: Head) -> tuple[str, ...]:
    items = (
        instance
        for study in _items(head, "CurrentRequestedProcedureEvidenceSequence")
        for series in _items(study, "ReferencedSeriesSequence")
        for instance in _items(series, "ReferencedSOPSequence")
    )
    uids = (_text(one, "ReferencedSOPInstanceUID") for one in chain(items, _items(head, "SourceInstanceSequence")))
    return tuple(islice(filter(is_valid_uid, uids), MAX_REFERENCES))


def _evidence_studies(head: Head) -> tuple[str, ...]:
    items = _items(head, "CurrentRequestedProcedureEvidenceSequence")
    uids = dict.fromkeys(_text(item, "StudyInstanceUID") for item in items[:MAX_REFERENCES])
    if _text(head, "StudyInstanceUID") in uids:
        return ()  # what else it names are comparisons: its boxes must not come onto older films
    return tuple(islice((uid for uid in uids if uid and is_valid_uid(uid)), MAX_STUDIES))


def _procedure_priority(head: Head) -> str:
    """Return Requested Procedure Priority (PS3.3 C.4.11), of the header or a request in it; else Study Priority ID."""
    requests = [*_items(head, "RequestAttributesSequence"), *_items(head, "ReferencedRequestSequence")]
    said = [_text(one, "RequestedProcedurePriority") for one in (head, *requests[:MAX_VALUES])]
    return next(filter(None, [*said, _text(head, "StudyPriorityID")]), "").upper()


def _code(head: Head, keyword: str) -> tuple[str, str]:
    plain = read_only_item(head.elements.get(tag_of(keyword)), _CODE_TAGS)  # pydicom takes as long as for all the rest
    if plain is not None and all(_is_plain(plain, one) for one in _CODE_KEYWORDS):
        items = [plain]
    else:
        items = _items(head, keyword)
    return (_text(items[0], "CodeValue"), _text(items[0], "CodingSchemeDesignator")) if items else ("", "")


def _is_plain(head: Head, keyword: str) -> bool:
    element = head.elements.get(tag_of(keyword))
    return element is None or read_plain_text(element, keyword) is not None


def _items(head: Head, keyword: str) -> list[Head]:
    is_there = tag_of(keyword) in head.elements
    return [Head.of(item) for item in read_items(head.dataset, keyword)] if is_there else []


def _text(head: Head, keyword: str) -> str:
    element = head.elements.get(tag_of(keyword))
    if element is None:
        return ""
    plain = read_plain_text(element, keyword)
    return _clean(read_text(head.dataset, keyword)) if plain is None else plain[:MAX_TEXT].strip()


def _texts(head: Head, keyword: str) -> tuple[str, ...]:
    element = head.elements.get(tag_of(keyword))
    if element is None:
        return ()
    value = read_plain_codes(element, keyword) or read_value(head.dataset, keyword)
    if not value:
        return ()
    values = [value] if isinstance(value, str) else list(value)[:MAX_VALUES]
    return tuple(_clean(str(single)).upper() for single in values)


def _clean(text: str) -> str:
    """Return `text` as any database can keep it: no control characters, no halves of surrogate pairs, not endless."""
    return _CONTROL.sub("", text[:MAX_TEXT]).encode("utf-8", "replace").decode().strip()


def _number(head: Head, keyword: str) -> int | None:
    element = head.elements.get(tag_of(keyword))
    if element is None:
        return None
    plain = read_plain_number(element, keyword)
    value = read_number(head.dataset, keyword) if plain is None else plain
    return int(value) if value is not None and abs(value) < 2**31 else None
