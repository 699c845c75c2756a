"""The identity of a received instance, and the facts that decisions about its study need. Pure: bytes in, values out.

Only the header is read, never pixels or a report's content. Texts may be of any length and any content here; what a
decision cannot use is empty or None, and only the UIDs are required.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields, replace
from io import BytesIO
from itertools import chain, islice
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal

from pydicom.dataset import Dataset
from pydicom.tag import Tag

from dicom_node.errors import InvalidInstanceError
from dicom_node.head import Extent, is_valid_uid, read_head, read_only_item
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


_FACTS = tuple(field.name for field in fields(Instance))
_VALUES_OF = attrgetter(*_FACTS)


def read_instance(source: Path | bytes) -> Instance:
    """Return the identity and facts of the DICOM file `source`. Total: raises InvalidInstanceError and nothing else."""
    try:
        return _read(source)
    except InvalidInstanceError:
        raise
    except Exception as error:  # pydicom raises many kinds on damaged input: the one broad catch of the node
        raise InvalidInstanceError(f"not a readable DICOM instance: {type(error).__name__}") from error


def with_c_store_priority(instance: Instance, priority: int) -> Instance:
    """Return the instance with the Priority (0000,0700) of the C-STORE request that it came in (PS3.7 E.1)."""
    return replace(instance, c_store_priority={0: "MEDIUM", 1: "HIGH", 2: "LOW"}.get(priority, ""))


def _read(source: Path | bytes) -> Instance:
    if isinstance(source, bytes):
        return _describe(*read_head(BytesIO(source), _EXTENT))
    with source.open("rb") as file:
        return _describe(*read_head(file, _EXTENT))


def _describe(ds: Dataset, transfer_syntax_uid: str) -> Instance:
    sop_class_uid = _required_uid(ds, "SOPClassUID")
    return Instance(
        sop_class_uid=sop_class_uid,
        sop_instance_uid=_required_uid(ds, "SOPInstanceUID"),
        study_instance_uid=_required_uid(ds, "StudyInstanceUID"),
        series_instance_uid=_required_uid(ds, "SeriesInstanceUID"),
        transfer_syntax_uid=transfer_syntax_uid,
        modality=_text(ds, "Modality"),
        patient_id=_text(ds, "PatientID"),
        patient_id_issuer=_text(ds, "IssuerOfPatientID").upper(),
        patient_birth_date=_text(ds, "PatientBirthDate"),
        patient_sex=_text(ds, "PatientSex").upper(),
        accession_number=_text(ds, "AccessionNumber"),
        is_own_result=sop_class_uid.startswith(DOCUMENT_CLASSES) and _is_made_here(ds),
        image_type=_texts(ds, "ImageType"),
        presentation_intent=_text(ds, "PresentationIntentType").upper(),
        rows=_number(ds, "Rows"),
        columns=_number(ds, "Columns"),
        view_position=_text(ds, "ViewPosition").upper(),
        view_code=_code(ds, "ViewCodeSequence"),
        patient_orientation=_texts(ds, "PatientOrientation"),
        body_part=_text(ds, "BodyPartExamined").upper(),
        description=f"{_text(ds, 'SeriesDescription')} {_text(ds, 'ProtocolName')}".strip().upper(),
        series_number=_number(ds, "SeriesNumber"),
        instance_number=_number(ds, "InstanceNumber"),
        title=_code(ds, "ConceptNameCodeSequence"),
        completion_flag=_text(ds, "CompletionFlag").upper(),
        verification_flag=_text(ds, "VerificationFlag").upper(),
        preliminary_flag=_text(ds, "PreliminaryFlag").upper(),
        content_datetime=_text(ds, "ContentDate") + _text(ds, "ContentTime").replace(":", ""),
        evidence=_evidence(ds),
        evidence_studies=_evidence_studies(ds),
        procedure_priority=_procedure_priority(ds),
    )


def _required_uid(ds: Dataset, keyword: str) -> str:
    uid = _text(ds, keyword)
    if not uid:
        raise InvalidInstanceError(f"it has no {keyword}")
    if not is_valid_uid(uid):
        raise InvalidInstanceError(f"its {keyword} is not a UID of at most 64 digits and dots")
    return uid


def _is_made_here(ds: Dataset) -> bool:
    """Tell by General Equipment and Contributing Equipment whether this node, or one like it, wrote the instance."""
    return any(
        _text(equipment, "Manufacturer") == MANUFACTURER
        for equipment in (ds, *read_items(ds, "ContributingEquipmentSequence"))
    )


def _evidence(ds: Dataset) -> tuple[str, ...]:
    items = (
        instance
        for study in read_items(ds, "CurrentRequestedProcedureEvidenceSequence")
        for series in read_items(study, "ReferencedSeriesSequence")
        for instance in read_items(series, "ReferencedSOPSequence")
    )
    uids = (_text(one, "ReferencedSOPInstanceUID") for one in chain(items, read_items(ds, "SourceInstanceSequence")))
    return tuple(islice(filter(is_valid_uid, uids), MAX_REFERENCES))


def _evidence_studies(ds: Dataset) -> tuple[str, ...]:
    items = read_items(ds, "CurrentRequestedProcedureEvidenceSequence")
    uids = dict.fromkeys(_text(item, "StudyInstanceUID") for item in items[:MAX_REFERENCES])
    if _text(ds, "StudyInstanceUID") in uids:
        return ()  # what else it names are comparisons: its boxes must not come onto older films
    return tuple(islice((uid for uid in uids if uid and is_valid_uid(uid)), MAX_STUDIES))


def _procedure_priority(ds: Dataset) -> str:
    """Return Requested Procedure Priority (PS3.3 C.4.11), of the header or a request in it; else Study Priority ID."""
    requests = [*read_items(ds, "RequestAttributesSequence"), *read_items(ds, "ReferencedRequestSequence")]
    said = [_text(one, "RequestedProcedurePriority") for one in (ds, *requests[:MAX_VALUES])]
    return next(filter(None, [*said, _text(ds, "StudyPriorityID")]), "").upper()


def _code(ds: Dataset, keyword: str) -> tuple[str, str]:
    plain = read_only_item(
        ds._dict.get(tag_of(keyword)), _CODE_TAGS
    )  # pydicom takes as long for it as for all the rest
    if plain is not None and all(read_plain_text(plain, one) is not None for one in _CODE_KEYWORDS):
        items = [plain]
    else:
        items = read_items(ds, keyword)
    return (_text(items[0], "CodeValue"), _text(items[0], "CodingSchemeDesignator")) if items else ("", "")


def _text(ds: Dataset, keyword: str) -> str:
    plain = read_plain_text(ds, keyword)
    return _clean(read_text(ds, keyword)) if plain is None else plain[:MAX_TEXT].strip()


def _texts(ds: Dataset, keyword: str) -> tuple[str, ...]:
    value = read_plain_codes(ds, keyword) or read_value(ds, keyword)
    if not value:
        return ()
    values = [value] if isinstance(value, str) else list(value)[:MAX_VALUES]
    return tuple(_clean(str(single)).upper() for single in values)


def _clean(text: str) -> str:
    """Return `text` as any database can keep it: no control characters, no halves of surrogate pairs, not endless."""
    return _CONTROL.sub("", text[:MAX_TEXT]).encode("utf-8", "replace").decode().strip()


def _number(ds: Dataset, keyword: str) -> int | None:
    plain = read_plain_number(ds, keyword)
    value = read_number(ds, keyword) if plain is None else plain
    return int(value) if value is not None and abs(value) < 2**31 else None
