"""Coded concepts of the results, each with where it is defined; a test compares them with the published tables.

CodedConcepts of findings and sites come from the model's knowledge; here are those of the documents themselves.
"""

from __future__ import annotations

from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicom_node.header import OWN_TITLE, PRIVATE_SCHEME
from grounding.types import Concept, Laterality

# PS3.16 Annex D, DCM
ALGORITHM_MANUFACTURER = Code("122405", "DCM", "Algorithm Manufacturer")
CERTAINTY = Code("111012", "DCM", "Certainty of Finding")
COMMENT = Code("121106", "DCM", "Comment")
DEVICE = Code("121007", "DCM", "Device")
FINDING = Code("121071", "DCM", "Finding")
FRAME_OF_REFERENCE_UID = Code("112227", "DCM", "Frame of Reference UID")
IMAGE_LIBRARY = Code("111028", "DCM", "Image Library")
IMAGE_LIBRARY_GROUP = Code("126200", "DCM", "Image Library Group")
IMAGE_REGION = Code("111030", "DCM", "Image Region")
IMAGING_MEASUREMENTS = Code("126010", "DCM", "Imaging Measurements")
MEASUREMENT_GROUP = Code("125007", "DCM", "Measurement Group")
MEASUREMENT_REPORT = Code("126000", "DCM", "Imaging Measurement Report")
MODALITY = Code("121139", "DCM", "Modality")
PATIENT_ORIENTATION_COLUMN = Code("111043", "DCM", "Patient Orientation Column")
PATIENT_ORIENTATION_ROW = Code("111044", "DCM", "Patient Orientation Row")
PIXEL_COLUMNS = Code("110911", "DCM", "Pixel Data Columns")
PIXEL_ROWS = Code("110910", "DCM", "Pixel Data Rows")
PIXEL_SPACING_HORIZONTAL = Code("111026", "DCM", "Horizontal Pixel Spacing")
PIXEL_SPACING_VERTICAL = Code("111066", "DCM", "Vertical Pixel Spacing")
PROCESSING_EQUIPMENT = Code("109102", "DCM", "Processing Equipment")
REPLACED_REPORT = Code("121360", "DCM", "Replaced report")
SOURCE_DOCUMENT = Code("121335", "DCM", "Source Document")
SOURCE_REPORT = Code("128225", "DCM", "Source report")
TRACKING_IDENTIFIER = Code("112039", "DCM", "Tracking Identifier")
TRACKING_UID = Code("112040", "DCM", "Tracking Unique Identifier")

MODALITIES = {
    "CR": Code("CR", "DCM", "Computed Radiography"),
    "DX": Code("DX", "DCM", "Digital Radiography"),
    "RG": Code("RG", "DCM", "Radiographic imaging"),
}
"""PS3.16 CID 29."""

# SNOMED CT, as PS3.16 cites it
BOUNDED_BY = Code("75958009", "SCT", "Bounded by")
FINDING_SITE = Code("363698007", "SCT", "Finding Site")
LATERALITY = Code("272741003", "SCT", "Laterality")
SOURCE = Code("260753009", "SCT", "Source")
SIDES: dict[Laterality, Code] = {
    "left": Code("7771000", "SCT", "Left"),
    "right": Code("24028007", "SCT", "Right"),
    "bilateral": Code("51440002", "SCT", "Bilateral"),
}
"""PS3.16 CID 244."""

# LOINC, UMLS, UCUM, RFC 5646
PROCEDURE = Code("43468-8", "LN", "XR unspecified body region")
"""PS3.16 CID 100; the meaning is the one of LOINC. In CID 7000 the same code is a document title."""
QUALITATIVE_EVALUATIONS = Code("C0034375", "UMLS", "Qualitative Evaluations")
"""PS3.16 TID 1500 row 12."""
PERCENT = Code("%", "UCUM", "Percent")
PIXELS = Code("{pixels}", "UCUM", "Pixels")
MILLIMETER = Code("mm", "UCUM", "millimeter")
ENGLISH = Code("en", "RFC5646", "English")

# private: the scheme is declared in Coding Scheme Identification Sequence
LOCALIZATION_REPORT = Code(*OWN_TITLE)
STATUS = Code("groundstatus", PRIVATE_SCHEME, "Localization status")
NOT_LOCALIZED = Code("nogrounding", PRIVATE_SCHEME, "Not localized on image")
NEGATED = Code("negated", PRIVATE_SCHEME, "Absent or normal in source report")
LOW_CONFIDENCE = Code("lowconfidence", PRIVATE_SCHEME, "Localized below confidence threshold")
LATERALITY_CHECK = Code("sidecheck", PRIVATE_SCHEME, "Laterality check")
ON_OTHER_SIDE = Code("otherside", PRIVATE_SCHEME, "Region on other side than phrase says")
SOURCE_PATH = Code("srcpath", PRIVATE_SCHEME, "Content item path in source report")

SCHEME_NAME = "KnowMVG Node private codes"


def to_code(concept: Concept) -> Code | None:
    """Return the concept as highdicom takes it, its meaning cut to 64 characters; None where a part is missing."""
    code, scheme, meaning = (part.strip() for part in (concept.code, concept.scheme, concept.meaning))
    return Code(code, scheme, meaning[:64].strip()) if code and scheme and meaning else None


def make_code_item(code: Code) -> Dataset:
    """Return the item of a code sequence (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme_designator, code.meaning
    return item
