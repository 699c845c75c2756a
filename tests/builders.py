"""Datasets for tests, made from nothing: radiographs, reports, and their Part 10 bytes.

Everything is deterministic: UIDs derive from the names given (`study="a"`, `instance=2`). Any DICOM keyword may be
passed as an extra argument to replace a default; the value None removes the attribute.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.clock import derive_uid
from dicom_node.report import Report, read_report
from dicom_node.results.values import ResultInput
from grounding.types import Box, Concept, Finding, Grounding, ModelIdentity, ScoredBox, Site, Span

CR_STORAGE = "1.2.840.10008.5.1.4.1.1.1"
DX_PRESENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.1.1"
DX_PROCESSING_STORAGE = "1.2.840.10008.5.1.4.1.1.1.1.1"
MULTI_FRAME_SC = "1.2.840.10008.5.1.4.1.1.7.3"
BASIC_TEXT_SR = "1.2.840.10008.5.1.4.1.1.88.11"
ENHANCED_SR = "1.2.840.10008.5.1.4.1.1.88.22"
COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"
COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"
ENCAPSULATED_CDA = "1.2.840.10008.5.1.4.1.1.104.2"

FINDINGS = ("59776-5", "LN", "Findings")
IMPRESSION = ("19005-8", "LN", "Impressions")
INDICATION = ("18785-6", "LN", "Indications for Procedure")
TECHNIQUE = ("55111-9", "LN", "Current Procedure Descriptions")
COMPARISON = ("18834-2", "LN", "Previous Findings")
REPORT_TITLE = ("18748-4", "LN", "Diagnostic Imaging Report")

CodeTuple = tuple[str, str, str]
"""Code value, coding scheme designator, code meaning."""

MARKS = {"effusion": (60, 100, 74, 116), "pneumothorax": (12, 20, 30, 44), "nodule": (36, 60, 42, 66)}
"""Half-open pixel extents (column0, row0, column1, row1) of the bright rectangles in the default radiograph."""

MODEL = ModelIdentity("KnowMVG test", "1.2.3", "ab" * 32)
CREATED_AT = datetime(2026, 1, 2, 12, 30, 15, tzinfo=UTC)
EFFUSION = Concept("60046008", "SCT", "Pleural effusion")
PNEUMOTHORAX = Concept("36118008", "SCT", "Pneumothorax")
PLEURA = Concept("3120008", "SCT", "Pleura")


def make_pixels(rows: int = 140, columns: int = 96, bits: int = 12) -> NDArray[np.uint16]:
    """Return uint16[rows, columns] of a rough chest, bright bone, with the rectangles of `MARKS` at full scale."""
    row, column = np.mgrid[0:rows, 0:columns]
    chest = np.full((rows, columns), 0.75)
    for centre in (0.30, 0.70):
        chest[((column / columns - centre) / 0.17) ** 2 + ((row / rows - 0.45) / 0.33) ** 2 < 1] = 0.30
    for column0, row0, column1, row1 in MARKS.values():
        chest[row0:row1, column0:column1] = 1.0
    return np.asarray(chest * (2**bits - 1), np.uint16)


def make_cxr_dataset(
    *,
    study: str = "1",
    instance: int = 1,
    sop_class_uid: str = DX_PRESENTATION_STORAGE,
    photometric: str = "MONOCHROME2",
    pixels: NDArray[Any] | None = None,
    **attributes: Any,
) -> Dataset:
    """Return a chest radiograph (DX for presentation unless told otherwise) in Explicit VR Little Endian.

    `pixels` are stored as given, whatever `photometric` says; the default picture is inverted for MONOCHROME1.
    """
    if pixels is None:
        pixels = make_pixels()
        pixels = 4095 - pixels if photometric == "MONOCHROME1" else pixels
    ds = _make_header(study, f"image {instance}", sop_class_uid)
    ds.Modality = "CR" if sop_class_uid == CR_STORAGE else "DX"
    ds.SeriesInstanceUID = derive_uid("series", study, "image")
    ds.SeriesNumber, ds.InstanceNumber = 1, instance
    ds.ImageType = ["ORIGINAL", "PRIMARY"] if sop_class_uid == CR_STORAGE else ["ORIGINAL", "PRIMARY", ""]
    ds.PatientOrientation, ds.BodyPartExamined, ds.ViewPosition = ["L", "F"], "CHEST", "PA"
    ds.ImagerPixelSpacing = [0.4, 0.4]
    ds.WindowCenter, ds.WindowWidth = 2048, 4096
    ds.BurnedInAnnotation = "NO"
    if sop_class_uid in (DX_PRESENTATION_STORAGE, DX_PROCESSING_STORAGE):
        _add_dx_attributes(ds, sop_class_uid, photometric)
    _add_pixels(ds, pixels, photometric)
    return _with(ds, attributes)


def make_report_dataset(
    content: Sequence[Dataset] | str | None = None,
    *,
    study: str = "1",
    instance: int = 1,
    image: Dataset | None = None,
    sop_class_uid: str = BASIC_TEXT_SR,
    **attributes: Any,
) -> Dataset:
    """Return an SR report: `content` is the items under the root (see `make_section`), or a text for one flat item.

    Default: indication, technique, comparison, findings and impression. With `image`, study, patient and evidence
    are that image's, so that both belong together.
    """
    ds = _make_header(study, f"report {instance}", sop_class_uid)
    ds.Modality = "SR"
    ds.SeriesInstanceUID = derive_uid("series", study, "report")
    ds.SeriesNumber, ds.InstanceNumber = 99, instance
    ds.ReferencedPerformedProcedureStepSequence = []
    ds.PerformedProcedureCodeSequence = []
    ds.ContentDate, ds.ContentTime = "20260102", "113000"
    ds.CompletionFlag, ds.VerificationFlag, ds.PreliminaryFlag = "COMPLETE", "UNVERIFIED", "FINAL"
    ds.ValueType, ds.ContinuityOfContent = "CONTAINER", "SEPARATE"
    ds.ConceptNameCodeSequence = [make_code(*REPORT_TITLE)]
    if image is not None:
        _add_evidence(ds, image)
    if content is None:
        content = make_default_sections()
    elif isinstance(content, str):
        content = [make_text(content)]
    ds.ContentSequence = list(content)
    return _with(ds, attributes)


def make_cda_dataset(
    document: str | bytes, *, study: str = "1", instance: int = 1, image: Dataset | None = None, **attributes: Any
) -> Dataset:
    """Return a CDA document encapsulated in DICOM; with `image`, of its study and patient, and about it."""
    ds = _make_header(study, f"document {instance}", ENCAPSULATED_CDA)
    ds.Modality, ds.ConversionType = "DOC", "WSD"
    ds.SeriesInstanceUID = derive_uid("series", study, "document")
    ds.SeriesNumber, ds.InstanceNumber = 98, instance
    ds.ContentDate, ds.ContentTime, ds.BurnedInAnnotation = "20260102", "113000", "YES"
    ds.VerificationFlag, ds.DocumentTitle, ds.MIMETypeOfEncapsulatedDocument = (
        "UNVERIFIED",
        "Chest radiograph",
        "text/XML",
    )
    ds.ConceptNameCodeSequence = [make_code(*REPORT_TITLE)]
    content = document.encode() if isinstance(document, str) else document
    ds.EncapsulatedDocument = content + b"\0" * (len(content) % 2)
    if image is not None:
        ds.PatientID, ds.StudyInstanceUID = image.PatientID, image.StudyInstanceUID
        source = Dataset()
        source.ReferencedSOPClassUID, source.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
        ds.SourceInstanceSequence = [source]
    return _with(ds, attributes)


def make_default_sections() -> list[Dataset]:
    """Return the five usual sections of a chest report, as containers with text items."""
    return [
        make_language(),
        make_section(INDICATION, ["Cough and fever. Rule out pneumonia."]),
        make_section(TECHNIQUE, ["PA chest radiograph."]),
        make_section(COMPARISON, ["Chest radiograph of last year with a right lower lobe mass."]),
        make_section(
            FINDINGS,
            ["Small left pleural effusion. Right apical pneumothorax measuring 2 cm.", "Heart size is normal."],
        ),
        make_section(IMPRESSION, ["Left effusion and right pneumothorax."]),
    ]


def make_code(value: str, scheme: str, meaning: str) -> Dataset:
    """Return the item of a code sequence."""
    ds = Dataset()
    ds.CodeValue, ds.CodingSchemeDesignator, ds.CodeMeaning = value, scheme, meaning
    return ds


def make_item(
    value_type: str, name: CodeTuple | None = None, relationship: str | None = "CONTAINS", **attributes: Any
) -> Dataset:
    """Return a content item of any value type; value attributes are passed by keyword."""
    ds = Dataset()
    ds.ValueType = value_type
    if relationship is not None:
        ds.RelationshipType = relationship
    if name is not None:
        ds.ConceptNameCodeSequence = [make_code(*name)]
    return _with(ds, attributes)


def make_section(name: CodeTuple | None, content: Sequence[Dataset | str]) -> Dataset:
    """Return a container named `name`; strings in `content` become text items."""
    items = [make_text(item) if isinstance(item, str) else item for item in content]
    return make_item("CONTAINER", name, ContinuityOfContent="SEPARATE", ContentSequence=items)


def make_text(text: str, name: CodeTuple | None = ("121071", "DCM", "Finding")) -> Dataset:
    """Return a text item."""
    return make_item("TEXT", name, TextValue=text)


def make_coded_item(value: CodeTuple, name: CodeTuple = ("121071", "DCM", "Finding")) -> Dataset:
    """Return a code item."""
    return make_item("CODE", name, ConceptCodeSequence=[make_code(*value)])


def make_number(value: str, unit: CodeTuple, name: CodeTuple) -> Dataset:
    """Return a numeric item."""
    measured = Dataset()
    measured.NumericValue = value
    measured.MeasurementUnitsCodeSequence = [make_code(*unit)]
    return make_item("NUM", name, MeasuredValueSequence=[measured])


def make_language(code: CodeTuple = ("en", "RFC5646", "English")) -> Dataset:
    """Return the language modifier that stands first in a report."""
    name = ("121049", "DCM", "Language of Content Item and Descendants")
    return make_item("CODE", name, "HAS CONCEPT MOD", ConceptCodeSequence=[make_code(*code)])


def make_finding(
    phrase: str,
    *boxes: tuple[float, float, float, float],
    score: float = 0.8,
    image: int = 0,
    report: Report | None = None,
    **values: Any,
) -> Finding:
    """Return a finding with `boxes` (left, top, right, bottom), its source the first place of `phrase` in `report`."""
    start = report.text.find(phrase) if report is not None else -1
    source = Span(start, start + len(phrase)) if start >= 0 else None
    scored = tuple(ScoredBox(Box(*box), score) for box in boxes)
    values = {"localized": bool(boxes), "negated": False, **values}
    return Finding(phrase, source, image, scored, **values)


def make_findings(report: Report | None = None) -> tuple[Finding, ...]:
    """Return two findings with the boxes of `MARKS`, a negated phrase and one that was not found."""
    return (
        make_finding(
            "Small left pleural effusion",
            MARKS["effusion"],
            score=0.83,
            report=report,
            finding=EFFUSION,
            site=Site(PLEURA, "left"),
        ),
        make_finding(
            "Right apical pneumothorax measuring 2 cm",
            MARKS["pneumothorax"],
            score=0.41,
            report=report,
            finding=PNEUMOTHORAX,
            site=Site(PLEURA, "right"),
        ),
        make_finding(
            "Heart size is normal",
            report=report,
            negated=True,
            finding=Concept("8186001", "SCT", "Cardiomegaly"),
        ),
        make_finding("Left effusion", report=report, finding=EFFUSION),
    )


def make_result_input(
    *images: Dataset, report: Dataset | None = None, findings: Sequence[Finding] | None = None, **values: Any
) -> ResultInput:
    """Return what results are built from: one radiograph and its report with `make_findings`, unless told otherwise."""
    images = images or (make_cxr_dataset(),)
    header = report if report is not None else make_report_dataset(image=images[0])
    text = read_report(header)
    said = make_findings(text) if findings is None else tuple(findings)
    values = {"created_at": CREATED_AT, **values}
    return ResultInput(images, header, text, Grounding(MODEL, said), **values)


def encode(ds: Dataset) -> bytes:
    """Return the Part 10 bytes of `ds`."""
    buffer = BytesIO()
    pydicom.dcmwrite(buffer, ds, enforce_file_format=True)
    return buffer.getvalue()


def decode(content: bytes) -> Dataset:
    """Return the dataset of Part 10 bytes."""
    return pydicom.dcmread(BytesIO(content))


def write(ds: Dataset, path: Path) -> Path:
    """Write the Part 10 file of `ds` and return its path."""
    path.write_bytes(encode(ds))
    return path


def _make_header(study: str, what: str, sop_class_uid: str) -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = sop_class_uid
    ds.SOPInstanceUID = derive_uid("instance", study, what)
    ds.StudyInstanceUID = derive_uid("study", study)
    ds.StudyDate, ds.StudyTime = "20260102", "101112"
    ds.AccessionNumber, ds.StudyID = f"ACC-{study}"[:16], "S1"
    ds.StudyDescription = "XR CHEST PA"
    ds.ReferringPhysicianName = ""
    ds.PatientName, ds.PatientID = "Test^Synthetic", f"PID-{study}"
    ds.PatientBirthDate, ds.PatientSex = "19600101", "F"
    ds.Manufacturer = "Synthetic"
    _add_file_meta(ds)
    return ds


def _add_file_meta(ds: Dataset) -> None:
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID


def _add_dx_attributes(ds: Dataset, sop_class_uid: str, photometric: str) -> None:
    bright_is_dense = photometric != "MONOCHROME1"
    ds.AcquisitionDate, ds.AcquisitionTime = "20260102", "101112"
    ds.PresentationIntentType = "FOR PROCESSING" if sop_class_uid == DX_PROCESSING_STORAGE else "FOR PRESENTATION"
    ds.PixelIntensityRelationship = "LOG"
    ds.PixelIntensityRelationshipSign = 1 if bright_is_dense else -1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "US"
    ds.PresentationLUTShape = "IDENTITY" if bright_is_dense else "INVERSE"
    ds.LossyImageCompression = "00"
    ds.ImageLaterality, ds.DetectorType, ds.PositionerType = "U", "DIRECT", "NONE"
    ds.AcquisitionContextSequence = []
    ds.AnatomicRegionSequence = [make_code("51185008", "SCT", "Chest")]
    ds.ViewCodeSequence = [make_code("272479007", "SCT", "postero-anterior")]
    ds.ViewCodeSequence[0].ViewModifierCodeSequence = []


def _add_pixels(ds: Dataset, pixels: NDArray[Any], photometric: str) -> None:
    bits = pixels.dtype.itemsize * 8
    stored = 12 if pixels.dtype == np.uint16 else bits
    ds.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    if pixels.ndim == 3:
        ds.PlanarConfiguration = 0
    ds.PhotometricInterpretation = photometric
    ds.Rows, ds.Columns = pixels.shape[:2]
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = bits, stored, stored - 1
    ds.PixelRepresentation = int(np.issubdtype(pixels.dtype, np.signedinteger))
    ds.add_new("PixelData", "OB" if bits == 8 else "OW", np.ascontiguousarray(pixels).tobytes())


def _add_evidence(ds: Dataset, image: Dataset) -> None:
    for keyword in ("StudyInstanceUID", "StudyID", "StudyDate", "StudyTime", "AccessionNumber", "PatientName"):
        if keyword in image:
            setattr(ds, keyword, image[keyword].value)
    for keyword in ("PatientID", "PatientBirthDate", "PatientSex"):
        if keyword in image:
            setattr(ds, keyword, image[keyword].value)
    instance, series, study = Dataset(), Dataset(), Dataset()
    instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    series.SeriesInstanceUID, series.ReferencedSOPSequence = image.SeriesInstanceUID, [instance]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = image.StudyInstanceUID, [series]
    ds.CurrentRequestedProcedureEvidenceSequence = [study]


def _with(ds: Dataset, attributes: dict[str, Any]) -> Dataset:
    for keyword, value in attributes.items():
        if value is None:
            ds.pop(keyword, None)
        else:
            setattr(ds, keyword, value)
    if "file_meta" in ds.__dict__:
        ds.file_meta.MediaStorageSOPClassUID = ds.get("SOPClassUID", "")
        ds.file_meta.MediaStorageSOPInstanceUID = ds.get("SOPInstanceUID", "")
    return ds
