"""Reports to text: sections, nesting, code and number items, character sets, flags, and what cannot be read."""

from __future__ import annotations

import json
from pathlib import Path

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from dicom_node.errors import NodeError, NotApplicableError, PermanentError
from dicom_node.report import MAX_DEPTH, MAX_TEXT, Report, read_plain_report, read_report
from grounding.types import Concept, Span
from tests.builders import (
    BASIC_TEXT_SR,
    COMPARISON,
    COMPREHENSIVE_3D_SR,
    COMPREHENSIVE_SR,
    ENHANCED_SR,
    FINDINGS,
    IMPRESSION,
    INDICATION,
    TECHNIQUE,
    decode,
    encode,
    make_code,
    make_coded_item,
    make_item,
    make_language,
    make_number,
    make_report_dataset,
    make_section,
    make_text,
)

SHARED = Path(__file__).parents[3] / "shared" / "data"
FREE = ("T-1", "99LOCAL", "Text")


def texts(report: Report) -> list[str]:
    """Return the sentences that may be grounded."""
    return [report.text[sentence.start : sentence.end] for sentence in report.sentences]


def places(report: Report) -> dict[str, tuple[str, str]]:
    """Return section and item path of every sentence."""
    return {report.text[s.start : s.end]: (s.section, s.item_path) for s in report.all_sentences}


def check_order(report: Report) -> None:
    """Sentences are in order, do not overlap, and are not empty."""
    end = 0
    for sentence in report.all_sentences:
        assert end <= sentence.start < sentence.end <= len(report.text)
        assert report.text[sentence.start : sentence.end].strip()
        end = sentence.end


@pytest.mark.parametrize("sop_class_uid", [BASIC_TEXT_SR, ENHANCED_SR, COMPREHENSIVE_SR, COMPREHENSIVE_3D_SR])
def test_findings_and_impression_are_used_and_nothing_else(sop_class_uid):
    report = read_report(decode(encode(make_report_dataset(sop_class_uid=sop_class_uid))))
    assert texts(report) == [
        "Small left pleural effusion.",
        "Right apical pneumothorax measuring 2 cm.",
        "Heart size is normal.",
        "Left effusion and right pneumothorax.",
    ]
    for unused in ("Cough and fever", "PA chest radiograph", "right lower lobe mass"):
        assert unused in report.text
    check_order(report)


def test_every_sentence_knows_its_section_and_content_item():
    found = places(read_report(make_report_dataset()))
    assert found["Cough and fever."] == ("indication", "1.2.1")
    assert found["PA chest radiograph."] == ("technique", "1.3.1")
    assert found["Right apical pneumothorax measuring 2 cm."] == ("findings", "1.5.1")
    assert found["Heart size is normal."] == ("findings", "1.5.2")
    assert found["Left effusion and right pneumothorax."] == ("impression", "1.6.1")


def test_item_path_of_a_phrase_is_that_of_the_item_it_stands_in():
    report = read_report(make_report_dataset())
    start = report.text.index("right pneumothorax")
    assert report.find_item_path(Span(start, start + 5)) == "1.6.1"
    assert report.find_item_path(None) is None
    assert report.find_item_path(Span(0, 3)) is None


def test_model_gets_the_spans_that_may_be_grounded():
    report = read_report(make_report_dataset())
    text = report.to_report_text()
    assert text.text == report.text
    assert [report.text[span.start : span.end] for span in text.sentences] == texts(report)


@pytest.mark.parametrize(
    ("name", "section"),
    [
        (("121070", "DCM", "Findings"), "findings"),
        (("18782-3", "LN", "Radiology Study observation"), "findings"),
        (("121072", "DCM", "Impressions"), "impression"),
        (("55110-1", "LN", "Conclusions"), "impression"),
        (("X1", "99LOCAL", "FINDINGS"), "findings"),
        (("X1", "99LOCAL", "Befund"), "findings"),
        (("X1", "99LOCAL", "所見"), "findings"),
        (("X1", "99LOCAL", "Conclusion"), "impression"),
        (("55107-7", "LN", "Addendum"), "addendum"),
        (("11329-0", "LN", "History"), "history"),
        (("121060", "DCM", "History"), "history"),
        (("X1", "99LOCAL", "Reason for study"), "indication"),
        (("X1", "99LOCAL", "Clinical History"), "history"),
        (("18834-2", "LN", "Previous Findings"), "comparison"),
        (("X1", "99LOCAL", "Comparison studies"), "comparison"),
        (("55111-9", "LN", "Current Procedure Descriptions"), "technique"),
        (("18783-1", "LN", "Recommendations"), "recommendation"),
        (("X1", "99LOCAL", "Observer Organization Name"), "other"),
    ],
)
def test_section_is_known_by_code_or_by_the_words_of_its_name(name, section):
    report = read_report(
        make_report_dataset([make_section(name, ["Opacity on the left."]), make_section(FINDINGS, ["Clear lungs."])])
    )
    assert places(report)["Opacity on the left."] == (section, "1.1.1")
    assert ("Opacity on the left." in texts(report)) == (section in ("findings", "impression", "addendum"))


def test_finding_named_in_a_comparison_stays_a_comparison():
    report = read_report(
        make_report_dataset([make_section(COMPARISON, ["Old mass."]), make_section(FINDINGS, ["Clear."])])
    )
    assert texts(report) == ["Clear."]


def test_comparison_named_item_in_findings_is_not_used():
    item = make_text("Unchanged since last year.", ("121069", "DCM", "Previous Finding"))
    report = read_report(make_report_dataset([make_section(FINDINGS, ["Left effusion.", item])]))
    assert texts(report) == ["Left effusion."]


def test_sections_may_be_nested_in_containers():
    inner = make_section(FINDINGS, [make_section(("L", "99LOCAL", "Lungs"), ["Left effusion."]), "Normal heart."])
    report = read_report(make_report_dataset([make_section(("R", "99LOCAL", "Body"), [inner])]))
    assert places(report) == {
        "Left effusion.": ("findings", "1.1.1.1.1"),
        "Normal heart.": ("findings", "1.1.1.2"),
    }


def test_flat_report_without_sections_is_used_whole():
    report = read_report(make_report_dataset([make_text("Left effusion. Normal heart.", FREE)]))
    assert places(report) == {
        "Left effusion.": ("unsectioned", "1.1"),
        "Normal heart.": ("unsectioned", "1.1"),
    }
    assert texts(report) == ["Left effusion.", "Normal heart."]


def test_text_outside_sections_is_left_when_a_section_has_findings():
    report = read_report(make_report_dataset([make_text("Ward 7.", FREE), make_section(FINDINGS, ["Left effusion."])]))
    assert texts(report) == ["Left effusion."]


def test_text_before_an_impression_counts_where_no_findings_are_named():
    report = read_report(make_report_dataset([make_text("Left effusion.\nIMPRESSION: Effusion.", FREE)]))
    assert texts(report) == ["Left effusion.", "Effusion."]


@pytest.mark.parametrize(
    "text",
    [
        "INDICATION: Cough. COMPARISON: None. TECHNIQUE: PA view. FINDINGS: Left effusion. IMPRESSION: Effusion.",
        "INDICATION: Cough.\r\nCOMPARISON: None.\r\nFINDINGS:\r\nLeft effusion.\r\nIMPRESSION:\r\nEffusion.",
        "Indication\nCough.\n\nFindings\nLeft effusion.\n\nImpression\nEffusion.",
        "Clinical history: cough.\nReason for exam: cough.\nComparison: none.\nFindings - Left effusion.\n"
        "Conclusion: Effusion.",
        "EXAM: CHEST PA\n\nHISTORY: Cough.\n\nLeft effusion.\n\nIMPRESSION: Effusion.",
        "FINDINGS/IMPRESSION: Left effusion. RECOMMENDATION: CT. IMPRESSION: Effusion.",
        "FINDINGS: Left effusion.\nCOMPARISON: Old film with a mass.\n\nIMPRESSION: Effusion.",
        "<p><b>TECHNIQUE:</b> PA view.</p><p><b>FINDINGS:</b><br/>Left effusion.</p><p>IMPRESSION:&nbsp;Effusion.</p>",
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", [FREE, ("121071", "DCM", "Finding")])
def test_headings_typed_into_one_block_of_text_are_followed(text, name):
    report = read_report(make_report_dataset([make_text(text, name)]))
    assert texts(report) == ["Left effusion.", "Effusion."]
    check_order(report)


def test_word_before_a_colon_is_no_section_unless_it_names_one():
    report = read_report(make_report_dataset([make_text("FINDINGS:\nLungs: left effusion.\nHeart: normal.", FREE)]))
    assert texts(report) == ["Lungs: left effusion.", "Heart: normal."]


def test_heading_in_an_indication_does_not_open_findings():
    report = read_report(
        make_report_dataset([make_section(INDICATION, ["Findings: old mass."]), make_section(IMPRESSION, ["Clear."])])
    )
    assert texts(report) == ["Clear."]


def test_hard_wrapped_lines_are_one_sentence_and_list_lines_are_several():
    text = (
        "There is a small left pleural\neffusion.\nNo pneumothorax\nCardiomegaly\n1. Left effusion\n2. Old rib fracture"
    )
    report = read_report(make_report_dataset([make_text(text, FREE)]))
    assert texts(report) == [
        "There is a small left pleural effusion.",
        "No pneumothorax",
        "Cardiomegaly",
        "Left effusion",
        "Old rib fracture",
    ]


def test_markup_entities_and_control_characters_are_cleaned():
    text = "Effusion &lt;2 cm<br>Nodule\x00\u200b of 3\u00a0mm.\x0b<b>Normal</b>\u00a0 heart."
    report = read_report(make_report_dataset([make_text(text, FREE)]))
    assert texts(report) == ["Effusion <2 cm", "Nodule of 3 mm.", "Normal heart."]


def test_comparison_signs_are_no_markup():
    report = read_report(make_report_dataset([make_text("Nodule <5 mm and > 2 mm. Effusion &amp; fluid.", FREE)]))
    assert "Nodule <5 mm and > 2 mm." in texts(report)
    assert "&amp;" in report.text


def test_code_and_number_items_read_as_text():
    side = make_item(
        "CODE",
        ("272741003", "SCT", "Laterality"),
        "HAS CONCEPT MOD",
        ConceptCodeSequence=[make_code("7771000", "SCT", "Left")],
    )
    effusion = make_coded_item(("60046008", "SCT", "Pleural effusion"))
    effusion.ContentSequence = [side]
    size = make_number("2.50", ("cm", "UCUM", "centimeter"), ("81827009", "SCT", "Diameter"))
    ratio = make_number("0.55", ("1", "UCUM", "no units"), ("R", "99LOCAL", "Cardiothoracic ratio"))
    report = read_report(make_report_dataset([make_section(FINDINGS, [effusion, size, ratio])]))
    assert places(report) == {
        "Pleural effusion, Left": ("findings", "1.1.1"),
        "Diameter: 2.50 cm": ("findings", "1.1.2"),
        "Cardiothoracic ratio: 0.55": ("findings", "1.1.3"),
    }


def test_context_items_are_no_text_of_the_report():
    observer = make_item(
        "TEXT", ("121013", "DCM", "Device Observer Name"), "HAS OBS CONTEXT", TextValue="Mass detector"
    )
    report = read_report(make_report_dataset([observer, make_language(), make_text("Left effusion.")]))
    assert report.text == "Left effusion."


def test_running_text_over_several_items_is_one_sentence():
    body = make_section(FINDINGS, [make_text("A mass of"), make_number("3", ("cm", "UCUM", "cm"), ("D", "99L", "size")),
                                   make_text("was seen.")])  # fmt: skip
    body.ContinuityOfContent = "CONTINUOUS"
    report = read_report(make_report_dataset([body]))
    assert places(report) == {"A mass of size: 3 cm was seen.": ("findings", "1.1.1")}


def test_flags_title_and_language_are_read():
    report = read_report(
        make_report_dataset(CompletionFlag="PARTIAL", VerificationFlag="VERIFIED", PreliminaryFlag="PRELIMINARY")
    )
    assert (report.completion_flag, report.verification_flag) == ("PARTIAL", "VERIFIED")
    assert report.preliminary_flag == "PRELIMINARY"
    assert report.title == Concept("18748-4", "LN", "Diagnostic Imaging Report")
    assert report.language == Concept("en", "RFC5646", "English")


def test_absent_flags_title_and_language_are_empty():
    ds = make_report_dataset(
        [make_text("Left effusion.")], PreliminaryFlag=None, CompletionFlag=None, ConceptNameCodeSequence=None
    )
    report = read_report(ds)
    assert (report.completion_flag, report.preliminary_flag, report.title, report.language) == ("", "", None, None)


@pytest.mark.parametrize(
    ("charset", "text"),
    [
        ("ISO_IR 100", "Épanchement pleural gauche."),
        ("ISO_IR 144", "Выпот слева."),
        ("ISO_IR 126", "Πλευριτική συλλογή."),
        ("ISO_IR 192", "左胸水 pleural effusion."),
        ("GB18030", "左侧胸腔积液。"),
        ("GBK", "左侧胸腔积液。"),
        (["", "ISO 2022 IR 87"], "左胸水貯留を認める。"),
        (["ISO 2022 IR 13", "ISO 2022 IR 87"], "左胸水貯留を認める。"),
        (["", "ISO 2022 IR 149"], "흉수."),
        (["ISO 2022 IR 100", "ISO 2022 IR 144"], "Выпот слева."),
    ],
)
def test_all_character_sets_are_read(charset, text):
    content = encode(make_report_dataset([make_section(FINDINGS, [text])], SpecificCharacterSet=charset))
    assert texts(read_report(decode(content))) == [text]


def test_gb2312_with_escape_sequences_is_read():
    """Written by hand: pydicom writes no escape sequences for this set."""
    raw = b"\x1b$)A" + "左侧胸腔积液".encode("gb2312") + b"\r\n\x1b$)A" + "正常".encode("gb2312")
    ds = make_report_dataset([make_text("x" * len(raw))], SpecificCharacterSet=["", "ISO 2022 IR 58"])
    content = encode(ds).replace(b"x" * len(raw), raw)
    assert texts(read_report(decode(content))) == ["左侧胸腔积液", "正常"]


def test_two_japanese_sentences_are_two():
    report = read_report(make_report_dataset([make_section(FINDINGS, ["左胸水貯留を認める。右気胸。"])]))
    assert texts(report) == ["左胸水貯留を認める。", "右気胸。"]


@pytest.mark.parametrize(
    "content", [[], [make_text("")], [make_text(" \r\n")], [make_section(FINDINGS, [])], [make_item("IMAGE")]]
)
def test_report_without_text_is_not_applicable(content):
    with pytest.raises(NotApplicableError, match="the report holds no text"):
        read_report(make_report_dataset(content))


def test_report_without_findings_says_what_it_holds():
    sections = [make_section(INDICATION, ["Cough."]), make_section(TECHNIQUE, ["PA."])]
    with pytest.raises(NotApplicableError, match=r"neither findings nor an impression .* only indication, technique"):
        read_report(make_report_dataset(sections))


def test_reason_holds_no_text_of_the_report():
    with pytest.raises(NotApplicableError) as caught:
        read_report(make_report_dataset([make_section(INDICATION, ["Secretword."])]))
    assert "Secretword" not in str(caught.value)


def test_image_is_no_report():
    with pytest.raises(NotApplicableError):
        read_report(Dataset())


def test_hostile_depth_is_refused_without_recursion():
    item = make_text("Left effusion.")
    for _ in range(MAX_DEPTH + 2000):
        item = make_section(None, [item])
    with pytest.raises(PermanentError, match="levels"):
        read_report(make_report_dataset([item]))


def test_depth_of_real_reports_is_no_trouble():
    item = make_text("Left effusion.")
    for _ in range(MAX_DEPTH - 5):
        item = make_section(None, [item])
    assert texts(read_report(make_report_dataset([item]))) == ["Left effusion."]


def test_endless_text_is_refused():
    with pytest.raises(PermanentError, match="longer than"):
        read_report(make_report_dataset([make_text("word " * (MAX_TEXT // 4))]))
    with pytest.raises(PermanentError, match="longer than"):
        read_plain_report("word " * (MAX_TEXT // 4))


def test_plain_text_reads_like_a_report():
    report = read_plain_report("INDICATION: Cough.\nFINDINGS: Left effusion.\nIMPRESSION: Effusion.")
    assert texts(report) == ["Left effusion.", "Effusion."]
    with pytest.raises(NotApplicableError):
        read_plain_report("  \n")


ITEMS = st.recursive(
    st.builds(
        make_item,
        st.sampled_from(["TEXT", "CODE", "NUM", "PNAME", "IMAGE", "", "SCOORD", "CONTAINER"]),
        st.sampled_from([None, FINDINGS, INDICATION, FREE, ("", "", ""), ("121071", "DCM", "Finding")]),
        st.sampled_from([None, "CONTAINS", "HAS OBS CONTEXT", "HAS PROPERTIES", "?"]),
        TextValue=st.one_of(st.none(), st.text(max_size=40), st.just("FINDINGS: a. b.\n\nTECHNIQUE:\nx\n\ny")),
        NumericValue=st.none(),
        ConceptCodeSequence=st.sampled_from([[], [Dataset()], [make_code("a", "b", "Mass")]]),
        MeasuredValueSequence=st.sampled_from([[], [Dataset()]]),
        ContinuityOfContent=st.sampled_from([None, "SEPARATE", "CONTINUOUS"]),
    ),
    lambda children: st.builds(
        make_item,
        st.sampled_from(["CONTAINER", "TEXT", "NUM"]),
        st.sampled_from([None, FINDINGS, COMPARISON]),
        ContinuityOfContent=st.sampled_from([None, "CONTINUOUS"]),
        ContentSequence=st.lists(children, max_size=4),
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(st.lists(ITEMS, max_size=5))
def test_any_tree_gives_a_report_or_a_clear_refusal(content):
    try:
        report = read_report(make_report_dataset(content))
    except NodeError:
        return
    check_order(report)
    assert set(report.sentences) <= set(report.all_sentences)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab.:\n\r\t <>p&;FINDGSCOMPARISON\uff1a"), max_size=200))
def test_any_text_gives_a_report_or_a_clear_refusal(text):
    try:
        report = read_plain_report(text)
    except NodeError:
        return
    check_order(report)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared reports are not here")
def test_real_reports_are_used_exactly():
    lines = (SHARED / "reports" / "indiana_reports.jsonl").read_text().splitlines()
    read = exact = 0
    for line in lines[:1000]:
        row = json.loads(line)
        said = [
            f"{key.upper()}: {row[key]}"
            for key in ("indication", "comparison", "technique", "findings", "impression")
            if row[key]
        ]
        try:
            report = read_plain_report("\n".join(said))
        except NotApplicableError:
            assert not row["findings"]
            assert not row["impression"]
            continue
        read += 1
        want = f"{row['findings'] or ''}{row['impression'] or ''}"
        exact += _letters("".join(texts(report))) == _letters(want)
    assert read > 900
    assert exact >= read - 2


def _letters(text: str) -> str:
    return "".join(character for character in text if character.isalpha())


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared reports are not here")
@pytest.mark.parametrize(
    "name", ["no-pixel-data.dcm", "reportsi.dcm", "reportsi_with_empty_number_tags.dcm", "test_SR.dcm"]
)
def test_foreign_reports_are_read(name):
    report = read_report(pydicom.dcmread(SHARED / "dicom" / "structured_reports" / name))
    assert report.sentences
    check_order(report)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared reports are not here")
def test_malformed_files_are_refused_clearly():
    read = 0
    for path in sorted((SHARED / "dicom" / "malformed").glob("*.dcm")):
        try:
            ds = pydicom.dcmread(path, force=True)
        except Exception:  # noqa: BLE001 - which files pydicom itself refuses is not what is tested
            continue
        read += 1
        with pytest.raises(NodeError):
            read_report(ds)
    assert read > 200


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Tip of the\nPICC line in the SVC", ["Tip of the PICC line in the SVC"]),
        ("Patchy opacity at the right base,\nCT advised.", ["Patchy opacity at the right base, CT advised."]),
        ("Effusion on the left\nNo pneumothorax", ["Effusion on the left", "No pneumothorax"]),
        (
            "THERE IS NO EVIDENCE OF PNEUMOTHORAX OR FOCAL\nCONSOLIDATION.",
            ["THERE IS NO EVIDENCE OF PNEUMOTHORAX OR FOCAL CONSOLIDATION."],
        ),
        ("there is no evidence of acute\nCHF or pneumonia.", ["there is no evidence of acute CHF or pneumonia."]),
        ("There is no\n2 cm nodule.", ["There is no 2 cm nodule."]),
        (
            "No pneumothorax since return from OR\nLeft pleural effusion",
            ["No pneumothorax since return from OR", "Left pleural effusion"],
        ),
        (
            "There is no focal consolidation, pleural effusion or pneumothorax\nLeft hilar mass",
            ["There is no focal consolidation, pleural effusion or pneumothorax", "Left hilar mass"],
        ),
    ],
)
def test_a_line_is_a_statement_unless_its_last_word_ends_none(text: str, sentences: list[str]) -> None:
    report = read_report(make_report_dataset([make_text(text, FREE)]))
    assert texts(report) == sentences


@pytest.mark.parametrize("text", ["a. " * 60_000, "Dr. " + "A. " * 60_000, "no. x " * 30_000, "AB CD " * 30_000])
def test_a_text_of_abbreviations_is_read_in_time_that_grows_as_it_does(text: str) -> None:
    # What costs the square of its length would take hours here; the limit of the test says so.
    assert read_report(make_report_dataset([make_text(text, FREE)])).text


def test_each_sentence_of_running_text_knows_its_item() -> None:
    items = [make_text(text) for text in ("Left effusion", "is small. No", "pneumothorax. Heart", "is normal.")]
    running = make_item("CONTAINER", FINDINGS, ContinuityOfContent="CONTINUOUS", ContentSequence=items)
    report = read_report(make_report_dataset([running]))
    assert [(report.text[one.start : one.end], one.item_path) for one in report.sentences] == [
        ("Left effusion is small.", "1.1.1"),
        ("No pneumothorax.", "1.1.2"),
        ("Heart is normal.", "1.1.3"),
    ]


@pytest.mark.timeout(30)
def test_running_text_of_many_items_costs_no_more_than_their_number() -> None:
    items = [make_text("Dull.")] * 60_000
    running = make_item("CONTAINER", FINDINGS, ContinuityOfContent="CONTINUOUS", ContentSequence=items)
    assert len(read_report(make_report_dataset([running])).sentences) == 60_000
