"""A generated study as a modality and a reporting system would send it: one DX image, one Basic Text SR report.

The patient does not exist; everything derives from the phantom and the instant given.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from dicom_node.clock import derive_uid

if TYPE_CHECKING:
    from grounding.phantoms.study import PhantomStudy
    from grounding.types import Image

DX_PRESENTATION_STORAGE = "1.2.840.10008.5.1.4.1.1.1.1"
BASIC_TEXT_SR_STORAGE = "1.2.840.10008.5.1.4.1.1.88.11"
BITS_STORED = 12
PIXEL_SPACING_MM = 0.35

SECTION_CODES = {
    "FINDINGS": ("59776-5", "LN", "Findings"),
    "IMPRESSION": ("19005-8", "LN", "Impressions"),
    "INDICATION": ("18785-6", "LN", "Indications for Procedure"),
    "CLINICAL HISTORY": ("11329-0", "LN", "History"),
    "HISTORY": ("11329-0", "LN", "History"),
    "TECHNIQUE": ("55111-9", "LN", "Current Procedure Descriptions"),
    "COMPARISON": ("18834-2", "LN", "Previous Findings"),
}
"""Section titles of generated reports to codes of CID 7001."""

OTHER_SECTION = ("121070", "DCM", "Findings")


def make_image_dataset(image: Image, study: str, now: datetime) -> Dataset:
    """Return the DX image of `image` (float32[H, W] in [0, 1]); `study` names the study, and so its UIDs."""
    ds = _make_header(study, "image", DX_PRESENTATION_STORAGE, "DX", now)
    ds.ImageType = ["ORIGINAL", "PRIMARY", ""]
    ds.AcquisitionDate, ds.AcquisitionTime = ds.StudyDate, ds.StudyTime
    ds.PresentationIntentType = "FOR PRESENTATION"
    ds.BodyPartExamined, ds.ViewPosition, ds.PatientOrientation = ("CHEST", "PA", ["L", "F"])
    ds.ImageLaterality, ds.DetectorType, ds.PositionerType = "U", "DIRECT", "NONE"
    ds.AcquisitionContextSequence = []
    ds.AnatomicRegionSequence = [_make_code("51185008", "SCT", "Chest")]
    ds.ViewCodeSequence = [_make_code("272479007", "SCT", "postero-anterior")]
    ds.ViewCodeSequence[0].ViewModifierCodeSequence = []
    ds.ImagerPixelSpacing = [PIXEL_SPACING_MM, PIXEL_SPACING_MM]
    ds.BurnedInAnnotation, ds.LossyImageCompression = "NO", "00"
    _add_pixels(ds, image)
    return ds


def make_report_dataset(phantom: PhantomStudy, image: Dataset, study: str, now: datetime) -> Dataset:
    """Return the Basic Text SR with the sections of the phantom's report, in the study of `image`."""
    ds = _make_header(study, "report", BASIC_TEXT_SR_STORAGE, "SR", now)
    ds.ContentDate, ds.ContentTime = ds.StudyDate, ds.StudyTime
    ds.CompletionFlag, ds.VerificationFlag, ds.PreliminaryFlag = ("COMPLETE", "UNVERIFIED", "FINAL")
    ds.ReferencedPerformedProcedureStepSequence = []
    ds.PerformedProcedureCodeSequence = []
    ds.CurrentRequestedProcedureEvidenceSequence = [_make_evidence(image)]
    ds.ValueType, ds.ContinuityOfContent = "CONTAINER", "SEPARATE"
    ds.ConceptNameCodeSequence = [_make_code("18748-4", "LN", "Diagnostic Imaging Report")]
    ds.ContentSequence = [_make_section(title, text) for title, text in phantom.sections]
    return ds


def _make_header(study: str, what: str, sop_class_uid: str, modality: str, now: datetime) -> Dataset:
    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class_uid, derive_uid("demo", study, what)
    ds.StudyInstanceUID = derive_uid("demo", study)
    ds.SeriesInstanceUID = derive_uid("demo", study, what, "series")
    ds.SeriesNumber, ds.InstanceNumber = 1 if modality == "DX" else 2, 1
    ds.Modality, ds.Manufacturer = modality, "KnowMVG phantom"
    ds.StudyDate, ds.StudyTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"
    ds.StudyID, ds.AccessionNumber, ds.StudyDescription = ("1", "DEMO-1", "Generated chest radiograph")
    ds.PatientName, ds.PatientID = "Phantom^Demo", "DEMO-PATIENT"
    ds.PatientBirthDate, ds.PatientSex, ds.ReferringPhysicianName = "", "O", ""
    ds.TimezoneOffsetFromUTC = "+0000"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    return ds


def _add_pixels(ds: Dataset, image: Image) -> None:
    highest = 2**BITS_STORED - 1
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = (1, "MONOCHROME2", 0)
    ds.Rows, ds.Columns = image.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, BITS_STORED, BITS_STORED - 1
    ds.PixelIntensityRelationship, ds.PixelIntensityRelationshipSign = "LOG", 1
    ds.RescaleIntercept, ds.RescaleSlope, ds.RescaleType = 0, 1, "US"
    ds.PresentationLUTShape = "IDENTITY"
    ds.WindowCenter, ds.WindowWidth = 2 ** (BITS_STORED - 1), 2**BITS_STORED
    ds.add_new("PixelData", "OW", np.rint(image * highest).astype("<u2").tobytes())


def _make_evidence(image: Dataset) -> Dataset:
    instance, series, study = Dataset(), Dataset(), Dataset()
    instance.ReferencedSOPClassUID, instance.ReferencedSOPInstanceUID = (image.SOPClassUID, image.SOPInstanceUID)
    series.SeriesInstanceUID, series.ReferencedSOPSequence = (image.SeriesInstanceUID, [instance])
    study.StudyInstanceUID, study.ReferencedSeriesSequence = (image.StudyInstanceUID, [series])
    return study


def _make_section(title: str, text: str) -> Dataset:
    item, section = Dataset(), Dataset()
    item.RelationshipType, item.ValueType, item.TextValue = "CONTAINS", "TEXT", text
    item.ConceptNameCodeSequence = [_make_code("121071", "DCM", "Finding")]
    section.RelationshipType, section.ValueType, section.ContinuityOfContent = ("CONTAINS", "CONTAINER", "SEPARATE")
    section.ConceptNameCodeSequence = [_make_code(*SECTION_CODES.get(title.upper(), OTHER_SECTION))]
    section.ContentSequence = [item]
    return section


def _make_code(value: str, scheme: str, meaning: str) -> Dataset:
    ds = Dataset()
    ds.CodeValue, ds.CodingSchemeDesignator, ds.CodeMeaning = value, scheme, meaning
    return ds
