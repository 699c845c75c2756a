"""Which documents are reports, and what codes and headings mean."""

from __future__ import annotations

import pydicom.sr._concepts_dict as tables
import pytest

from dicom_node.header import MODEL_NAME, OWN_TITLE
from dicom_node.report_codes import _OTHER_DOCUMENTS, _SECTION_CODES, find_heading, find_section, is_report
from grounding.types import Concept
from tests.builders import (
    BASIC_TEXT_SR,
    COMPREHENSIVE_3D_SR,
    COMPREHENSIVE_SR,
    ENHANCED_SR,
    CodeTuple,
    make_code,
    make_cxr_dataset,
    make_item,
    make_report_dataset,
)


@pytest.mark.parametrize("sop_class_uid", [BASIC_TEXT_SR, ENHANCED_SR, COMPREHENSIVE_SR, COMPREHENSIVE_3D_SR])
def test_documents_of_the_general_classes_are_reports(sop_class_uid):
    assert is_report(make_report_dataset(sop_class_uid=sop_class_uid))


@pytest.mark.parametrize(
    "sop_class_uid",
    [
        "1.2.840.10008.5.1.4.1.1.88.67",  # X-Ray Radiation Dose
        "1.2.840.10008.5.1.4.1.1.88.59",  # Key Object Selection
        "1.2.840.10008.5.1.4.1.1.88.65",  # Chest CAD
        "1.2.840.10008.5.1.4.1.1.88.50",  # Mammography CAD
        "1.2.840.10008.5.1.4.1.1.88.40",  # Procedure Log
        "1.2.840.10008.5.1.4.1.1.104.1",  # Encapsulated PDF
    ],
)
def test_documents_of_other_classes_are_no_reports(sop_class_uid):
    assert not is_report(make_report_dataset(sop_class_uid=sop_class_uid))


@pytest.mark.parametrize(
    "title",
    [
        ("126000", "DCM", "Imaging Measurement Report"),
        ("113701", "DCM", "X-Ray Radiation Dose Report"),
        ("112000", "DCM", "Chest CAD Report"),
        ("113000", "DCM", "Of Interest"),
        ("113039", "DCM", "Key object title"),
        ("121120", "DCM", "Cath Lab Procedure Log"),
        OWN_TITLE,
    ],
)
def test_documents_of_other_titles_are_no_reports(title: CodeTuple):
    ds = make_report_dataset(sop_class_uid=ENHANCED_SR, ConceptNameCodeSequence=[make_code(*title)])
    assert not is_report(ds)


def test_measurement_template_is_no_report():
    template = make_item("", None, None, MappingResource="DCMR", TemplateIdentifier="1500")
    assert not is_report(make_report_dataset(ContentTemplateSequence=[template]))


def test_own_document_is_no_report():
    assert not is_report(make_report_dataset(ManufacturerModelName=MODEL_NAME))


def test_report_of_an_unknown_title_or_none_is_a_report():
    assert is_report(make_report_dataset(ConceptNameCodeSequence=[make_code("X", "99LOCAL", "Radiology note")]))
    assert is_report(make_report_dataset(ConceptNameCodeSequence=None))


def test_image_is_no_report():
    assert not is_report(make_cxr_dataset())


def test_document_codes_are_in_the_published_table():
    published = {code for concepts in tables.concepts["DCM"].values() for code in concepts}
    assert {code for code, scheme in _OTHER_DOCUMENTS if scheme == "DCM"} <= published


def test_section_codes_agree_with_the_published_meanings():
    """What the table of PS3.16 calls a code is read as the same section as the code itself."""
    compared = 0
    for scheme in ("DCM", "LN"):
        for concepts in tables.concepts[scheme].values():
            for code, (meaning, _) in concepts.items():
                section, by_words = _SECTION_CODES.get((code, scheme)), find_heading(meaning)
                if section is not None and by_words is not None:
                    assert section == by_words, (code, meaning)
                    compared += 1
    assert compared >= 25


def test_code_decides_before_the_words():
    assert find_section(Concept("18834-2", "LN", "Findings")) == "comparison"
    assert find_section(Concept("?", "99LOCAL", "Liver")) is None


@pytest.mark.timeout(20)
def test_words_without_end_are_no_heading() -> None:
    assert find_heading("observer " * 100_000 + "\n!") is None
