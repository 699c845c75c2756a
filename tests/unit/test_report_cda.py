"""CDA documents encapsulated in DICOM: the narrative is read as a report, and nothing in it can harm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.errors import NodeError, NotApplicableError, PermanentError
from dicom_node.instance import read_instance
from dicom_node.report import read_report
from dicom_node.report_cda import DamagedDocumentError, read_cda
from tests.builders import encode, make_cda_dataset, make_cxr_dataset

DOCUMENT = """<?xml version="1.0" encoding="UTF-8"?>
<ClinicalDocument xmlns="urn:hl7-org:v3">
  <title>Chest radiograph</title>
  <languageCode code="en-US"/>
  <recordTarget><patientRole><id extension="SECRET"/>
    <patient><name>SECRET Name</name></patient></patientRole></recordTarget>
  <component><structuredBody>
    <component><section>
      <code code="18785-6" codeSystem="2.16.840.1.113883.6.1" displayName="Indications"/>
      <title>Indications</title><text>Rule out pneumonia.</text>
    </section></component>
    <component><section>
      <code code="18782-3" codeSystem="2.16.840.1.113883.6.1" displayName="Study observation"/>
      <title>Findings</title>
      <text>
        <paragraph>Small left pleural
           effusion. <content styleCode="Bold">No pneumothorax.</content></paragraph>
        <list><item>Nodule &lt; 5 mm at the right apex</item><item><content revised="delete">Left mass</content>Old rib
          fracture</item></list>
        <table><tbody><tr><td>Cardiothoracic ratio</td><td>0.58</td></tr></tbody></table>
        <renderMultiMedia referencedObject="X"><caption>Image 1</caption></renderMultiMedia>
      </text>
      <component><section><title>Heart</title><text>The heart is enlarged.</text></section></component>
    </section></component>
    <component><section><title>Impression</title><text>Left effusion.<br/>Cardiomegaly.</text></section></component>
  </structuredBody></component>
</ClinicalDocument>"""


def wrap(body: str) -> bytes:
    """A document of these sections."""
    return (
        f"<ClinicalDocument><component><structuredBody>{body}</structuredBody></component></ClinicalDocument>".encode()
    )


def test_the_narrative_is_read_section_by_section() -> None:
    report = read_report(make_cda_dataset(DOCUMENT))
    said = [(one.section, one.item_path, report.text[one.start : one.end]) for one in report.sentences]
    assert said == [
        ("findings", "1.2", "Small left pleural effusion."),
        ("findings", "1.2", "No pneumothorax."),
        ("findings", "1.2", "Nodule < 5 mm at the right apex"),
        ("findings", "1.2", "Old rib fracture"),
        ("findings", "1.2", "Cardiothoracic ratio 0.58"),
        ("findings", "1.2.1", "The heart is enlarged."),
        ("impression", "1.3", "Left effusion."),
        ("impression", "1.3", "Cardiomegaly."),
    ]
    assert "SECRET" not in report.text and "Left mass" not in report.text and "Image 1" not in report.text
    assert report.language is not None and report.language.code == "en-US"


def test_it_is_filed_as_a_report_about_its_images() -> None:
    image = make_cxr_dataset()
    instance = read_instance(encode(make_cda_dataset(DOCUMENT, image=image)))
    assert (instance.role, instance.evidence) == ("report", (image.SOPInstanceUID,))
    assert instance.patient_id == image.PatientID


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"%PDF-1.4",
        b"<ClinicalDocument><component>",
        b"<html><body>Effusion.</body></html>",
        b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><ClinicalDocument><title>&b;</title></ClinicalDocument>',
        b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><ClinicalDocument/>',
        b'<?xml version="1.0" encoding="no-such"?><ClinicalDocument/>',
        wrap("<component><section>" * 3000 + "</section></component>" * 3000),
        wrap("<component><section><text>" + "<content>" * 3000 + "</content>" * 3000 + "</text></section></component>"),
    ],
    ids=["empty", "pdf", "cut", "html", "entities", "external", "encoding", "deep sections", "deep text"],
)  # fmt: skip
def test_a_damaged_or_hostile_document_is_refused_by_name(document: bytes) -> None:
    with pytest.raises(DamagedDocumentError):
        read_cda(document)
    with pytest.raises(PermanentError, match=r"the CDA document of report .* cannot be read"):
        read_report(make_cda_dataset(document))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_entities_are_refused_in_every_encoding(encoding: str) -> None:
    declared = '<!DOCTYPE x [<!ENTITY a "Left mass.">]>' + wrap("<component/>").decode()
    document = '<?xml version="1.0" encoding="UTF-16"?>' + declared
    marked = document if encoding == "utf-16" else "\ufeff" + document
    with pytest.raises(DamagedDocumentError, match="declares"):
        read_cda(marked.encode(encoding))


def test_a_document_in_utf_16_is_read() -> None:
    document = DOCUMENT.replace("UTF-8", "UTF-16").encode("utf-16")
    assert "No pneumothorax." in read_report(make_cda_dataset(document)).text


def test_what_only_speaks_of_a_declaration_is_no_declaration() -> None:
    assert read_cda(b"<!-- <!DOCTYPE html> -->" + wrap("<component/>")).sections == ()


def test_a_break_ends_no_section_that_is_typed_into_the_text() -> None:
    body = (
        "<component><section><title>Findings</title><text>INDICATION: cough<br/>known left pleural effusion<br/>"
        "FINDINGS: Lungs clear.<br/>There is a right<br/>rib fracture.</text></section></component>"
    )
    report = read_report(make_cda_dataset(wrap(body)))
    assert [report.text[one.start : one.end] for one in report.sentences] == [
        "Lungs clear.",
        "There is a right rib fracture.",
    ]


def test_a_document_without_a_narrative_says_so() -> None:
    scan = (
        "<ClinicalDocument><component><nonXMLBody><text representation='B64'>JVBERg==</text></nonXMLBody></component>"
    )
    with pytest.raises(NotApplicableError, match="holds no text"):
        read_report(make_cda_dataset(scan + "</ClinicalDocument>"))


def test_other_encodings_are_those_of_xml() -> None:
    latin = DOCUMENT.replace("UTF-8", "ISO-8859-1").replace("Small", "F\u00fcnf-mm").encode("latin-1")
    report = read_report(make_cda_dataset(latin))
    assert "F\u00fcnf-mm left pleural effusion." in report.text


@given(st.binary(max_size=300))
def test_any_bytes_give_a_report_or_a_clear_refusal(content: bytes) -> None:
    try:
        read_report(make_cda_dataset(b"<ClinicalDocument>" + content + b"</ClinicalDocument>"))
    except NodeError as error:
        assert str(error)


@pytest.mark.timeout(20)
def test_a_table_of_nothing_costs_no_more_than_its_length() -> None:
    (section,) = read_cda(
        wrap("<component><section><text>" + "<td/>" * 150_000 + "x</text></section></component>")
    ).sections
    assert section.text.strip() == "x"
