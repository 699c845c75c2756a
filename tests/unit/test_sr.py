"""The Structured Report: numbers, tree, identity, UIDs, and headers that highdicom would not take."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta, timezone
from io import BytesIO
from pathlib import Path
from typing import Any

import highdicom as hd
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from dicom_node.errors import PermanentError
from dicom_node.header import PRIVATE_SCHEME
from dicom_node.report import read_plain_report
from dicom_node.results.identity import result_uids
from dicom_node.results.reading import read_boxes, read_remarks
from dicom_node.results.sr import build_sr, recast_sr
from dicom_node.results.sr_tree import walk_tree
from dicom_node.results.values import Equipment, Reference, ResultInput, ResultOptions, clip_box, select_marks
from grounding.types import Box, Concept
from tests.builders import (
    COMPREHENSIVE_3D_SR,
    COMPREHENSIVE_SR,
    CR_STORAGE,
    MARKS,
    MODEL,
    MULTI_FRAME_SC,
    decode,
    encode,
    make_cxr_dataset,
    make_finding,
    make_findings,
    make_report_dataset,
    make_result_input,
)

DATA = Path(__file__).parents[3] / "shared" / "data" / "dicom"


def build(*images: Dataset, **values: Any) -> Dataset:
    """Return the SR of `make_result_input`, written and read back."""
    ds = build_sr(make_result_input(*images, **values))
    assert ds is not None
    return decode(encode(ds))


@pytest.mark.parametrize("taken", [(), (COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR), (COMPREHENSIVE_SR,)])
@pytest.mark.parametrize("findings", [None, []])
def test_the_sr_of_another_class_is_that_which_would_be_built(taken: tuple[str, ...], findings: Any) -> None:
    study = make_cxr_dataset().StudyInstanceUID
    result = make_result_input(
        findings=make_findings() if findings is None else findings, revision=2,
        predecessors=tuple(Reference(uid, f"2.25.{n}", "2.25.8", study) for n, uid in enumerate(taken)),
    )  # fmt: skip
    other = replace(result, sr_class="comprehensive")
    first, built = build_sr(result), build_sr(other)
    assert first is not None
    assert built is not None
    before = encode(first)
    assert encode(recast_sr(first, other)) == encode(built)
    assert encode(first) == before != encode(built)


def find_items(ds: Dataset, name: str) -> list[Dataset]:
    """Return the content items of a code value as name."""
    return [item for item in walk_tree(ds) if item.ConceptNameCodeSequence[0].CodeValue == name]


def check_tree(ds: Dataset) -> None:
    """What viewers need of the tree, whatever is in it."""
    for item in walk_tree(ds):
        if item.ValueType == "CONTAINER":
            assert item.ContinuityOfContent == "SEPARATE"
        if item.ValueType == "SCOORD":
            assert [child.ValueType for child in item.ContentSequence] == ["IMAGE"]
            assert len(item.GraphicData) == 10
            assert list(item.GraphicData[:2]) == list(item.GraphicData[-2:])
    groups = find_items(ds, "125007")
    for group in groups:
        kinds = [child.ConceptNameCodeSequence[0].CodeValue for child in group.ContentSequence]
        assert [kinds.count(name) for name in ("111030", "112039", "112040", "111012", "121106")] == [1] * 5
        certainty = next(child for child in group.ContentSequence if child.ValueType == "NUM")
        assert [child.ValueType for child in certainty.ContentSequence] == ["SCOORD"]
        assert not [child for child in group.ContentSequence if child.ValueType == "TEXT" and _name(child) == "121071"]
    uids = [item.UID for item in find_items(ds, "112040")]
    assert len(set(uids)) == len(uids)


def _name(item: Dataset) -> str:
    return str(item.ConceptNameCodeSequence[0].CodeValue)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("sop_class_uid", [CR_STORAGE, "1.2.840.10008.5.1.4.1.1.1.1"])
def test_boxes_are_exactly_those_that_were_found(photometric, sop_class_uid):
    image = make_cxr_dataset(photometric=photometric, sop_class_uid=sop_class_uid)
    ds = build(image)
    boxes = read_boxes(ds)
    assert [box.box.xyxy for box in boxes] == [MARKS["effusion"], MARKS["pneumothorax"]]
    assert [box.score for box in boxes] == [0.83, 0.41]
    assert [box.text for box in boxes] == ["Small left pleural effusion", "Right apical pneumothorax measuring 2 cm"]
    assert {box.sop_instance_uid for box in boxes} == {image.SOPInstanceUID}
    scoord = find_items(ds, "111030")[0]
    x0, y0, x1, y1 = MARKS["effusion"]
    assert list(scoord.GraphicData) == [x0, y0, x1, y0, x1, y1, x0, y1, x0, y0]
    check_tree(ds)


def test_phrases_without_a_box_are_listed_with_the_reason():
    ds = build()
    assert [(remark.phrase, remark.status) for remark in read_remarks(ds)] == [
        ("Heart size is normal", "negated"),
        ("Left effusion", "nogrounding"),
    ]
    check_tree(ds)


def test_negated_phrase_has_no_positive_code():
    assert "8186001" not in {
        code.CodeValue for item in walk_tree(build()) for code in item.get("ConceptCodeSequence", [])
    }


def test_phrase_without_a_concept_has_a_box_and_no_code():
    ds = build(findings=[make_finding("Left effusion", (1, 2, 30, 40))])
    (box,) = read_boxes(ds)
    assert (box.text, box.finding) == ("Left effusion", None)
    check_tree(ds)


def test_site_and_side_are_coded():
    sites = find_items(build(), "363698007")
    assert [site.ConceptCodeSequence[0].CodeValue for site in sites] == ["3120008", "3120008"]
    sides = [site.ContentSequence[0].ConceptCodeSequence[0].CodeMeaning for site in sites]
    assert sides == ["Left", "Right"]


def test_phrase_names_its_place_and_the_report_it_comes_from():
    result = make_result_input()
    ds = build_sr(result)
    assert ds is not None
    assert [item.TextValue for item in find_items(ds, "srcpath")] == ["1.5.1", "1.5.1", "1.5.2", "1.6.1"]
    sources = find_items(ds, "128225")
    assert {source.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for source in sources} == {
        result.report_header.SOPInstanceUID  # type: ignore[union-attr]
    }


def test_document_is_preliminary_unverified_and_in_its_own_series():
    result = make_result_input()
    ds = build_sr(result)
    assert ds is not None
    assert (ds.CompletionFlag, ds.VerificationFlag, ds.PreliminaryFlag) == ("COMPLETE", "UNVERIFIED", "PRELIMINARY")
    assert (ds.Modality, ds.SeriesDescription) == ("SR", "AI phrase grounding")
    assert ds.SeriesNumber >= 9000
    assert ds.SeriesInstanceUID != result.images[0].SeriesInstanceUID
    assert ds.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert ds.SpecificCharacterSet == "ISO_IR 192"


def test_patient_and_study_are_the_images():
    image = make_cxr_dataset(
        PatientName="Yamada^Tarou=山田^太郎=やまだ^たろう", SpecificCharacterSet=["", "ISO 2022 IR 87"]
    )
    report = make_report_dataset(image=image, PatientName="Other^Name", AccessionNumber="OTHER")
    ds = build(decode(encode(image)), report=report)
    for keyword in (
        "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate", "StudyTime",
        "AccessionNumber", "StudyID", "StudyDescription",
    ):  # fmt: skip
        assert ds[keyword].value == image[keyword].value, keyword


def test_model_is_named_as_contributing_equipment_and_in_every_group():
    ds = build()
    (equipment,) = ds.ContributingEquipmentSequence
    assert (equipment.PurposeOfReferenceCodeSequence[0].CodeValue, equipment.SoftwareVersions) == ("109102", "1.2.3")
    assert equipment.DeviceUID.startswith("2.25.")
    assert [item.TextValue for item in find_items(ds, "111001")] == [MODEL.name] * 2
    assert any(MODEL.sha256 in item.TextValue for item in find_items(ds, "111002"))


def test_evidence_names_image_report_and_presentation_state():
    result = make_result_input()
    ds = build_sr(result)
    assert ds is not None
    (study,) = ds.CurrentRequestedProcedureEvidenceSequence
    listed = {
        item.ReferencedSOPInstanceUID
        for series in study.ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    gsps = result_uids(result).gsps_instances[0]
    assert listed == {result.images[0].SOPInstanceUID, result.report_header.SOPInstanceUID, gsps}  # type: ignore[union-attr]
    (reference,) = ds.ReferencedInstanceSequence
    assert reference.PurposeOfReferenceCodeSequence[0].CodeValue == "121335"


def test_presentation_state_that_is_not_written_is_not_named():
    ds = build(options=ResultOptions(gsps=False))
    assert "1.2.840.10008.5.1.4.1.1.11.1" not in str(ds)


def test_report_of_another_study_is_other_evidence():
    ds = build(make_cxr_dataset(study="1"), report=make_report_dataset(study="2"))
    assert ds.PertinentOtherEvidenceSequence[0].StudyInstanceUID == make_report_dataset(study="2").StudyInstanceUID


def test_report_that_is_plain_text_is_not_referred_to():
    report = read_plain_report("FINDINGS: Small left pleural effusion.")
    result = replace(make_result_input(findings=make_findings(report)), report_header=None, report=report)
    ds = build_sr(result)
    assert ds is not None
    assert "ReferencedInstanceSequence" not in ds
    assert not find_items(ds, "128225")
    check_tree(ds)


def test_predecessor_is_replaced():
    study = make_cxr_dataset().StudyInstanceUID
    ds = build(revision=2, predecessors=(Reference(COMPREHENSIVE_3D_SR, "2.25.7", "2.25.8", study),))
    series = ds.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0]
    (instance,) = series.ReferencedSOPSequence
    assert (series.SeriesInstanceUID, instance.ReferencedSOPInstanceUID) == ("2.25.8", "2.25.7")
    assert instance.PurposeOfReferenceCodeSequence[0].CodeValue == "121360"
    assert ds.InstanceNumber == 2


def test_predecessor_is_named_in_the_class_that_the_same_archive_took():
    study = make_cxr_dataset().StudyInstanceUID
    taken = tuple(
        Reference(uid, f"2.25.{n}", "2.25.8", study) for n, uid in enumerate((COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR))
    )
    for sr_class, expected in (("comprehensive_3d", "2.25.0"), ("comprehensive", "2.25.1")):
        ds = build(revision=2, predecessors=taken, sr_class=sr_class)
        (instance,) = ds.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
        assert instance.ReferencedSOPInstanceUID == expected
        assert ds.SeriesInstanceUID == "2.25.8"
    only = build(revision=2, predecessors=taken[1:])
    (instance,) = only.PredecessorDocumentsSequence[0].ReferencedSeriesSequence[0].ReferencedSOPSequence
    assert instance.ReferencedSOPInstanceUID == "2.25.1"


def test_sr_that_replaces_another_is_written_even_where_nothing_is_localized():
    """The boxes of the one it replaces would stand in the archive otherwise."""
    values = {"findings": make_findings()[2:], "options": ResultOptions(when_nothing_localized="none")}
    assert build_sr(make_result_input(**values)) is None
    study = make_cxr_dataset().StudyInstanceUID
    ds = build(**values, revision=2, predecessors=(Reference(COMPREHENSIVE_3D_SR, "2.25.7", "2.25.8", study),))
    assert ds.SeriesInstanceUID == "2.25.8"
    assert "ContentTemplateSequence" not in ds
    assert read_boxes(ds) == []


def test_private_scheme_is_declared_and_language_is_the_reports():
    ds = build()
    assert ds.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == PRIVATE_SCHEME
    assert find_items(ds, "121049")[0].ConceptCodeSequence[0].CodeValue == "en"
    result = make_result_input()
    german = replace(result, report=replace(result.report, language=Concept("de", "RFC5646", "German")))
    sr = build_sr(german)
    assert sr is not None
    assert find_items(sr, "121049")[0].ConceptCodeSequence[0].CodeValue == "de"


def test_several_images_share_one_document():
    images = make_cxr_dataset(instance=1), make_cxr_dataset(instance=2, Rows=140, Columns=96)
    findings = [make_finding("Left effusion", (1, 2, 30, 40), image=0), make_finding("Left effusion", image=1),
                make_finding("right pneumothorax", (3, 4, 50, 60), image=1)]  # fmt: skip
    ds = build(*images, findings=findings)
    assert [box.sop_instance_uid for box in read_boxes(ds)] == [image.SOPInstanceUID for image in images]
    assert read_remarks(ds) == []
    assert len(find_items(ds, "126200")[0].ContentSequence) == 2
    check_tree(ds)


def test_several_boxes_of_a_phrase_are_several_groups():
    ds = build(findings=[make_finding("Left effusion", (1, 2, 30, 40), (50, 60, 70, 80))])
    assert [(box.text, box.box.xyxy) for box in read_boxes(ds)] == [
        ("Left effusion", (1, 2, 30, 40)),
        ("Left effusion", (50, 60, 70, 80)),
    ]
    check_tree(ds)


def test_multi_frame_image_is_referred_to_by_its_first_frame():
    ds = build(make_cxr_dataset(NumberOfFrames=3, SOPClassUID=MULTI_FRAME_SC))
    references = [item.ReferencedSOPSequence[0] for item in walk_tree(ds) if item.ValueType == "IMAGE"]
    assert {reference.ReferencedFrameNumber for reference in references} == {1}


def test_image_of_a_single_frame_class_names_no_frame():
    ds = build(make_cxr_dataset(NumberOfFrames=3))
    assert "ReferencedFrameNumber" not in str(ds).replace(" ", "")


@pytest.mark.parametrize("tracking", ["cornerstone", "plain"])
def test_tracking_identifier_is_as_configured(tracking):
    ds = build(options=ResultOptions(tracking=tracking))
    names = [item.TextValue for item in find_items(ds, "112039")][:2]
    prefix = {"cornerstone": "Cornerstone3DTools@^0.1.0:RectangleROI:", "plain": "Finding "}[tracking]
    assert names == [f"{prefix}1", f"{prefix}2"]


# ---- nothing localized


def test_nothing_localized_gives_no_document_if_so_configured():
    assert (
        build_sr(make_result_input(findings=make_findings()[2:], options=ResultOptions(when_nothing_localized="none")))
        is None
    )


def test_nothing_localized_gives_a_text_document_by_default():
    ds = build(findings=make_findings()[2:])
    assert ds.ConceptNameCodeSequence[0].CodeValue == "groundrep"
    assert "ContentTemplateSequence" not in ds
    assert len(read_remarks(ds)) == 2
    assert not find_items(ds, "126010")
    check_tree(ds)


def test_nothing_localized_gives_a_strict_document_if_so_configured():
    ds = build(findings=make_findings()[2:], options=ResultOptions(when_nothing_localized="tid1500"))
    assert ds.ConceptNameCodeSequence[0].CodeValue == "126000"
    assert ds.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert len(read_remarks(ds)) == 2
    check_tree(ds)


@pytest.mark.parametrize("mode", ["text", "tid1500"])
def test_report_without_phrases_is_said_so(mode):
    ds = build(findings=[], options=ResultOptions(when_nothing_localized=mode))
    assert ds.ConceptNameCodeSequence[0].CodeValue == "groundrep"
    assert "names no finding" in find_items(ds, "121106")[0].TextValue


def test_boxes_below_the_threshold_are_listed_as_such():
    ds = build(options=ResultOptions(min_confidence=0.5))
    assert [box.score for box in read_boxes(ds)] == [0.83]
    assert ("Right apical pneumothorax measuring 2 cm", "lowconfidence") in [
        (remark.phrase, remark.status) for remark in read_remarks(ds)
    ]


# ---- coordinates


def test_box_beyond_the_image_is_clipped():
    (box,) = read_boxes(build(findings=[make_finding("Left effusion", (-5.5, -1.0, 96.4, 200.0))]))
    assert box.box.xyxy == (0.0, 0.0, 96.0, 140.0)


@pytest.mark.parametrize("box", [(10, 10, 10.5, 40), (10, 10, 40, 10.99), (95.5, 0, 200, 50), (-9, -9, -1, -1)])
def test_box_of_less_than_a_pixel_is_not_localized(box):
    ds = build(findings=[make_finding("Left effusion", box)])
    assert read_boxes(ds) == []
    assert [remark.status for remark in read_remarks(ds)] == ["nogrounding"]


@given(*[st.floats(-50, 3000) for _ in range(4)], st.integers(2, 2500), st.integers(2, 2500))
def test_clipped_box_is_inside_and_at_least_a_pixel(x, y, width, height, rows, columns):
    box = clip_box(Box(x, y, x + abs(width), y + abs(height)), rows, columns)
    if box is not None:
        assert 0 <= box.x1 < box.x2 <= columns
        assert 0 <= box.y1 < box.y2 <= rows
        assert min(box.x2 - box.x1, box.y2 - box.y1) >= 1


def test_marks_are_numbered_over_all_findings():
    marks, remarks = select_marks(make_findings(), {0: (140, 96)})
    assert [mark.label for mark in marks] == ["1 Pleural effusion", "2 Pneumothorax"]
    assert len(remarks) == 2


# ---- the same in, the same out


def test_same_input_gives_the_same_bytes():
    first, second = (build_sr(make_result_input()) for _ in range(2))
    assert first is not None
    assert second is not None
    assert encode(first) == encode(second)


def test_instants_are_those_of_the_job():
    result = make_result_input()
    ds = build(local_timezone=result.local_timezone)
    for prefix in ("InstanceCreation", "Content", "Series"):
        assert ds[f"{prefix}Date"].value + ds[f"{prefix}Time"].value[:6] == "20260102123015"
    assert "TimezoneOffsetFromUTC" not in ds


def test_timezone_of_the_image_holds_for_the_result():
    ds = build(make_cxr_dataset(TimezoneOffsetFromUTC="+0930"))
    assert (ds.TimezoneOffsetFromUTC, ds.ContentTime[:6]) == ("+0930", "220015")


def test_local_timezone_is_used_where_the_image_names_none():
    assert build(local_timezone=timezone(timedelta(hours=-5))).ContentTime[:6] == "073015"


CHANGES: dict[str, dict[str, Any]] = {
    "revision": {"revision": 2},
    "equipment": {"equipment": Equipment(station="OTHER")},
    "options": {"options": ResultOptions(tracking="plain")},
    "findings": {"findings": make_findings()[:1]},
    "score": {"findings": [make_finding("Left effusion", (1, 2, 30, 40), score=0.5)]},
    "box": {"findings": [make_finding("Left effusion", (1, 2, 30, 41), score=0.5)]},
    "predecessor": {"predecessors": (Reference(COMPREHENSIVE_3D_SR, "2.25.7", "2.25.8", "2.25.9"),)},
}


def test_changed_content_never_shares_a_uid():
    uids = [result_uids(make_result_input(**values)) for values in ({}, *CHANGES.values())]
    assert len({uid.sr_instance for uid in uids}) == len(uids)
    assert len({uid.gsps_instances for uid in uids}) == len(uids)
    assert len({uid.gsps_series for uid in uids}) == 1
    assert {uid.sr_series for uid in uids} == {uids[0].sr_series, "2.25.8"}  # the predecessor stands in that one


def test_other_model_gives_other_uids():
    result = make_result_input()
    other = replace(result, grounding=replace(result.grounding, model=replace(MODEL, sha256="cd" * 32)))
    assert result_uids(result).sr_instance != result_uids(other).sr_instance


def test_amended_report_stays_in_the_series_of_its_study():
    image = make_cxr_dataset()
    first, second = (
        result_uids(make_result_input(image, report=make_report_dataset(instance=n, image=image))) for n in (1, 2)
    )
    assert (first.sr_series, first.gsps_series) == (second.sr_series, second.gsps_series)
    assert first.sr_instance != second.sr_instance
    assert first.gsps_instances != second.gsps_instances
    other = result_uids(make_result_input(make_cxr_dataset(study="2")))
    assert {other.sr_series, other.gsps_series}.isdisjoint({first.sr_series, first.gsps_series})


def test_time_of_writing_changes_no_uid():
    result = make_result_input()
    assert result_uids(result) == result_uids(replace(result, created_at=result.created_at + timedelta(days=1)))


def test_fallback_class_is_another_instance_with_the_same_content():
    preferred, fallback = build(), build(sr_class="comprehensive")
    assert (preferred.SOPClassUID, fallback.SOPClassUID) == (COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR)
    assert preferred.SOPInstanceUID != fallback.SOPInstanceUID
    assert read_boxes(preferred) == read_boxes(fallback)
    assert preferred.ContentSequence == fallback.ContentSequence


def test_highdicom_reads_it_back():
    document = hd.sr.srread(BytesIO(encode(build())))
    groups = document.content.get_planar_roi_measurement_groups()
    assert [group.finding_type.CodeValue for group in groups] == ["60046008", "36118008"]
    assert groups[0].roi.value.tolist()[0] == [60.0, 100.0]


# ---- text and headers as they come


@pytest.mark.parametrize("phrase", ["左胸水貯留", "Выпот", "a\\b\r\nc", "x" * 3000, "<b>&amp;", "'; drop table"])
def test_any_phrase_is_written_verbatim(phrase):
    (box,) = read_boxes(build(findings=[make_finding(phrase, (1, 2, 30, 40))]))
    assert box.text == phrase


ODD: dict[str, list[Any]] = {
    "PatientName": [None, "", "A^B^C^D^E^F"],
    "PatientID": [None, "", "P" * 100],
    "PatientSex": [None, "", "U", "f", "M"],
    "PatientBirthDate": [None, "", "19601350", "1960.01.02", "unknown"],
    "StudyDate": [None, "", "20269999", "2026"],
    "StudyTime": [None, "", "256060", "10:11:12", "1011", "101112.5"],
    "StudyID": [None, ""],
    "AccessionNumber": [None, "", "A" * 30],
    "ReferringPhysicianName": [None, ""],
    "PatientAge": [None, "42", "042Y"],
    "PatientOrientation": [None, "", ["L", ""], ["A", "F"]],
    "ImagerPixelSpacing": [None, [0, 0], ["0.000", "0.000"], [0.1, 0.2]],
    "PixelSpacing": [None, [0, 0], [0.143, 0.143]],
    "Modality": [None, "OT", "CR"],
    "BodyPartExamined": [None, "", "HAND", "CHEST"],
    "Laterality": [None, "", "L", "x"],
    "SpecificCharacterSet": [None, "ISO_IR 100", ["", "ISO 2022 IR 87"], "GB18030", "WRONG"],
    "TimezoneOffsetFromUTC": [None, "", "+0100", "-0330", "noon", "+9999"],
    "WindowCenter": [None, "", [1, 2]],
    "WindowWidth": [None, "", "0"],
    "FrameOfReferenceUID": [None, "", "1.2.3"],
    "NumberOfFrames": [None, "1", "0", "2"],
}


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in ODD.items()}))
def test_any_header_gives_a_document(attributes):
    image = make_cxr_dataset(**attributes)
    ds = build_sr(make_result_input(image))
    assert ds is not None
    check_tree(ds)
    assert [box.box.xyxy for box in read_boxes(ds)] == [MARKS["effusion"], MARKS["pneumothorax"]]
    assert ds.PatientSex in ("M", "F", "O", "")
    encode(ds)


@pytest.mark.parametrize(("written", "kept"), [("1960.01.02", "19600102"), ("19601350", ""), ("unknown", "")])
def test_dates_are_normal_or_blank(written, kept):
    assert build_result(PatientBirthDate=written).PatientBirthDate == kept


def build_result(**attributes: Any) -> Dataset:
    ds = build_sr(make_result_input(make_cxr_dataset(**attributes)))
    assert isinstance(ds, Dataset)
    return ds


@pytest.mark.parametrize(
    ("attributes", "spacing"),
    [
        ({"ImagerPixelSpacing": [0.3, 0.2]}, ["0.2", "0.3"]),
        ({"ImagerPixelSpacing": [0.3, 0.2], "PixelSpacing": [0.15, 0.1]}, ["0.1", "0.15"]),
        ({"ImagerPixelSpacing": [0.3, 0.2], "PixelSpacing": [0, 0]}, ["0.2", "0.3"]),
        ({"ImagerPixelSpacing": [0, 0]}, []),
        ({"ImagerPixelSpacing": None}, []),
    ],
)
def test_image_library_holds_usable_spacing_only(attributes, spacing):
    ds = build_result(**attributes)
    items = [item for name in ("111026", "111066") for item in find_items(ds, name)]
    assert [item.MeasuredValueSequence[0].NumericValue for item in items] == [pytest.approx(float(x)) for x in spacing]


def test_unknown_image_class_is_refused_in_plain_words():
    with pytest.raises(PermanentError, match="no SR can be written for image"):
        build_sr(make_result_input(make_cxr_dataset(SOPClassUID="1.2.3.4")))


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared radiographs are not here")
@pytest.mark.parametrize(
    "name", ["cxr/NIH-DX-11129", "cxr/RG1_J2KI", "cxr/RG1_JLSN", "cxr/dx_image", "other_radiographs/RG2_J2KI"]
)
def test_real_radiographs_give_a_document(name):
    image = pydicom.dcmread(DATA / f"{name}.dcm", stop_before_pixels=True)
    ds = build(
        image, report=make_report_dataset(image=image), findings=[make_finding("Left effusion", (11, 22, 133, 144))]
    )
    assert [box.box.xyxy for box in read_boxes(ds)] == [(11, 22, 133, 144)]
    assert str(ds.PatientID) == str(image.PatientID)
    check_tree(ds)


def test_input_is_not_changed():
    result: ResultInput = make_result_input()
    before = encode(result.images[0])
    build_sr(result)
    assert encode(result.images[0]) == before
