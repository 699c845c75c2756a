"""The presentation state: boxes, labels, polarity, grey scale, and the image's own header facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from dicom_node.pixels import render
from dicom_node.results.gsps import build_gsps
from dicom_node.results.identity import result_uids
from dicom_node.results.labels import place_labels
from dicom_node.results.reading import read_boxes
from dicom_node.results.sr import build_sr
from dicom_node.results.values import Equipment, ResultOptions
from tests.builders import (
    CR_STORAGE,
    MARKS,
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


def build(*images: Dataset, index: int = 0, **values: Any) -> Dataset:
    """Return the presentation state of `make_result_input`, written and read back."""
    ds = build_gsps(make_result_input(*images, **values), index)
    assert ds is not None
    return decode(encode(ds))


def read_label_places(ds: Dataset) -> list[tuple[float, ...]]:
    """Return the rectangles of the labels."""
    texts = ds.GraphicAnnotationSequence[1].TextObjectSequence
    return [(*text.BoundingBoxTopLeftHandCorner, *text.BoundingBoxBottomRightHandCorner) for text in texts]


def make_lut_item(entries: int, first: int, bits: int) -> Dataset:
    lut = Dataset()
    lut.add_new("LUTDescriptor", "SS" if first < 0 else "US", [entries, first, bits])
    lut.add_new("LUTData", "OW", np.arange(entries, dtype=np.uint16).tobytes())
    return lut


@pytest.mark.parametrize(("window", "kept"), [("image", True), ("reader", False)])
def test_window_is_kept_or_left_to_the_reader(window, kept):
    ds = build(options=ResultOptions(window=window))
    assert ("SoftcopyVOILUTSequence" in ds) == kept
    assert [box.box for box in read_boxes(ds)] == [box.box for box in read_boxes(build())]


@pytest.mark.parametrize("absent", [(), ("WindowCenter", "WindowWidth"), ("RescaleSlope", "RescaleIntercept")])
def test_multi_frame_image_without_a_window_or_a_rescale_is_referred_to(absent):
    image = make_cxr_dataset(NumberOfFrames=2, SOPClassUID=MULTI_FRAME_SC, **dict.fromkeys(absent))
    ds = build(image)
    assert ("SoftcopyVOILUTSequence" in ds) == ("WindowCenter" not in absent)
    assert ("RescaleSlope" in ds) == ("RescaleSlope" not in absent)
    (reference,) = ds.ReferencedSeriesSequence[0].ReferencedImageSequence
    assert reference.ReferencedFrameNumber == 1


@pytest.mark.parametrize(("photometric", "shape"), [("MONOCHROME1", "INVERSE"), ("MONOCHROME2", "IDENTITY")])
@pytest.mark.parametrize("sop_class_uid", [CR_STORAGE, "1.2.840.10008.5.1.4.1.1.1.1"])
def test_boxes_and_polarity_are_exact(photometric, shape, sop_class_uid):
    image = make_cxr_dataset(photometric=photometric, sop_class_uid=sop_class_uid)
    ds = build(image)
    assert [box.box.xyxy for box in read_boxes(ds)] == [MARKS["effusion"], MARKS["pneumothorax"]]
    assert {box.sop_instance_uid for box in read_boxes(ds)} == {image.SOPInstanceUID}
    assert ds.PresentationLUTShape == shape
    graphic = ds.GraphicAnnotationSequence[0].GraphicObjectSequence[0]
    x0, y0, x1, y1 = MARKS["effusion"]
    assert list(graphic.GraphicData) == [x0, y0, x1, y0, x1, y1, x0, y1, x0, y0]
    assert (graphic.GraphicType, graphic.GraphicAnnotationUnits, graphic.GraphicFilled) == ("POLYLINE", "PIXEL", "N")


@pytest.mark.parametrize(("photometric", "shape"), [("MONOCHROME1", "INVERSE"), ("MONOCHROME2", "IDENTITY")])
def test_polarity_is_that_of_the_photometric_interpretation_whatever_the_image_says_besides(photometric, shape):
    contradiction = "IDENTITY" if shape == "INVERSE" else "INVERSE"
    image = make_cxr_dataset(photometric=photometric, PresentationLUTShape=contradiction)
    assert build(image).PresentationLUTShape == shape
    np.testing.assert_array_equal(render(image), render(make_cxr_dataset(photometric=photometric)))


def test_boxes_are_those_of_the_report_document():
    result = make_result_input()
    sr, gsps = build_sr(result), build_gsps(result, 0)
    assert sr is not None
    assert gsps is not None
    for one, other in zip(read_boxes(sr), read_boxes(gsps), strict=True):
        assert (one.box, one.tracking_uid, one.sop_instance_uid) == (
            other.box,
            other.tracking_uid,
            other.sop_instance_uid,
        )


def test_boxes_and_labels_have_layers_of_their_own():
    ds = build()
    layers = {layer.GraphicLayer: layer.GraphicLayerOrder for layer in ds.GraphicLayerSequence}
    assert layers == {"AIBOX": 1, "AITEXT": 2}
    boxes, texts = ds.GraphicAnnotationSequence
    assert (boxes.GraphicLayer, texts.GraphicLayer) == ("AIBOX", "AITEXT")
    assert all(layer.GraphicLayerRecommendedDisplayGrayscaleValue == 65535 for layer in ds.GraphicLayerSequence)
    assert [text.UnformattedTextValue for text in texts.TextObjectSequence] == ["1 Pleural effusion", "2 Pneumothorax"]
    assert {text.AnchorPointVisibility for text in texts.TextObjectSequence} == {"N"}


def test_labels_anchor_at_their_box_and_share_its_group():
    ds = build()
    boxes, texts = ds.GraphicAnnotationSequence
    for graphic, text in zip(boxes.GraphicObjectSequence, texts.TextObjectSequence, strict=True):
        assert list(text.AnchorPoint) == list(graphic.GraphicData[:2])
        assert (text.GraphicGroupID, text.TrackingUID) == (graphic.GraphicGroupID, graphic.TrackingUID)
    assert len(ds.GraphicGroupSequence) == 2


def test_many_labels_stay_in_the_picture_and_off_each_other():
    image = make_cxr_dataset(Rows=2500, Columns=2000)
    findings = [make_finding(f"Opacity {n}", (90 * n, 40 * n, 90 * n + 200, 40 * n + 150)) for n in range(20)]
    places = read_label_places(build(image, findings=findings))
    for n, (left, top, right, bottom) in enumerate(places):
        assert 0 <= left < right <= 2000
        assert 0 <= top < bottom <= 2500
        for other in places[:n]:
            assert right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top


RECT = st.tuples(*[st.floats(0, 1) for _ in range(4)]).map(
    lambda v: (min(v[0], v[2]) * 300, min(v[1], v[3]) * 200, max(v[0], v[2]) * 300, max(v[1], v[3]) * 200)
)


@given(st.lists(RECT, min_size=1, max_size=8), st.floats(5, 500), st.floats(4, 60))
def test_labels_are_always_in_the_picture(boxes, width, height):
    for left, top, right, bottom in place_labels(boxes, [(width, height)] * len(boxes), 300, 200):
        assert 0 <= left < right <= 300 + 1e-9
        assert 0 <= top < bottom <= 200 + 1e-9


def test_label_is_above_its_box_where_there_is_room_and_below_where_not():
    (above,) = place_labels([(50, 60, 90, 90)], [(30, 10)], 300, 200)
    (below,) = place_labels([(50, 4, 90, 90)], [(30, 10)], 300, 200)
    assert above == (50, 50, 80, 60)
    assert below == (50, 90, 80, 100)


def test_label_keeps_off_other_boxes_and_takes_the_corner_wished_for():
    boxes = [(50.0, 60.0, 90.0, 90.0), (60.0, 40.0, 80.0, 62.0)]
    assert place_labels(boxes, [(30, 10), (30, 10)], 300, 200) == [(50, 90, 80, 100), (60, 30, 90, 40)]
    wished = place_labels(boxes, [(30, 10), (30, 10)], 300, 200, [(50, 50), (52, 52)])
    assert wished == [(50, 50, 80, 60), (60, 30, 90, 40)]


def test_whole_image_is_displayed_with_its_spacing():
    (area,) = build().DisplayedAreaSelectionSequence
    assert list(area.DisplayedAreaTopLeftHandCorner) == [1, 1]
    assert list(area.DisplayedAreaBottomRightHandCorner) == [96, 140]
    assert [float(value) for value in area.PresentationPixelSpacing] == [0.4, 0.4]
    assert "PresentationPixelAspectRatio" not in area
    assert "PixelOriginInterpretation" not in area
    assert "ReferencedImageSequence" not in area


@pytest.mark.parametrize(("ratio", "written"), [(None, [1, 1]), ([3, 2], [3, 2]), ([0, 0], [1, 1]), ([1], [1, 1])])
def test_aspect_ratio_stands_in_for_absent_spacing(ratio, written):
    (area,) = build(make_cxr_dataset(ImagerPixelSpacing=None, PixelAspectRatio=ratio)).DisplayedAreaSelectionSequence
    assert list(area.PresentationPixelAspectRatio) == written
    assert "PresentationPixelSpacing" not in area


def test_first_window_of_the_image_is_written():
    ds = build(make_cxr_dataset(WindowCenter=[1000, 2], WindowWidth=[500, 3], VOILUTFunction="SIGMOID"))
    (voi,) = ds.SoftcopyVOILUTSequence
    assert (float(voi.WindowCenter), float(voi.WindowWidth), voi.VOILUTFunction) == (1000, 500, "SIGMOID")


def test_window_wins_over_a_voi_lut():
    (voi,) = build(make_cxr_dataset(VOILUTSequence=[make_lut_item(4096, 0, 12)])).SoftcopyVOILUTSequence
    assert "VOILUTSequence" not in voi


@pytest.mark.parametrize(("first", "bits"), [(0, 12), (-100, 12), (5, 16)])
def test_voi_lut_is_written_where_there_is_no_window(first, bits):
    image = make_cxr_dataset(WindowCenter=None, WindowWidth=None, VOILUTSequence=[make_lut_item(4096, first, bits)])
    (voi,) = build(image).SoftcopyVOILUTSequence
    (lut,) = voi.VOILUTSequence
    assert list(lut.LUTDescriptor) == [4096, first, 16]
    assert np.frombuffer(lut.LUTData, np.uint16)[-1] == {12: 65535, 16: 4095}[bits]


@pytest.mark.parametrize("width", [None, "", "0", "-4", "nan"])
def test_unusable_window_is_left_out(width):
    assert "SoftcopyVOILUTSequence" not in build(make_cxr_dataset(WindowWidth=width))


def test_modality_lut_wins_over_rescale():
    lut = make_lut_item(4096, 0, 12)
    lut.ModalityLUTType = "US"
    ds = build(make_cxr_dataset(ModalityLUTSequence=[lut]))
    assert list(ds.ModalityLUTSequence[0].LUTDescriptor) == [4096, 0, 16]
    assert np.frombuffer(ds.ModalityLUTSequence[0].LUTData, np.uint16)[-1] == 4095
    assert "RescaleSlope" not in ds


def test_rescale_of_the_image_is_written():
    ds = build(make_cxr_dataset(RescaleSlope="2.5", RescaleIntercept="-10"))
    assert (float(ds.RescaleSlope), float(ds.RescaleIntercept), ds.RescaleType) == (2.5, -10, "US")


def test_image_without_modality_transformation_gets_none():
    ds = build(make_cxr_dataset(RescaleSlope=None, RescaleIntercept=None, RescaleType=None))
    assert "RescaleSlope" not in ds
    assert "ModalityLUTSequence" not in ds


@pytest.mark.parametrize(
    ("attributes", "body_part", "laterality"),
    [
        ({}, "CHEST", None),
        ({"Laterality": "L"}, "CHEST", "L"),
        ({"BodyPartExamined": None}, None, ""),
        ({"BodyPartExamined": "CHESTABDOMEN"}, "CHESTABDOMEN", None),
        ({"BodyPartExamined": "THORAX"}, "THORAX", ""),
        ({"BodyPartExamined": "HAND", "Laterality": "R"}, "HAND", "R"),
        ({"BodyPartExamined": "HAND", "Laterality": "x"}, "HAND", ""),
    ],
)
def test_body_part_and_laterality_follow_the_image(attributes, body_part, laterality):
    ds = build(make_cxr_dataset(**attributes))
    assert (ds.get("BodyPartExamined"), ds.get("Laterality")) == (body_part, laterality)


def test_patient_study_and_equipment_are_named():
    image = make_cxr_dataset(PatientName="Müller^Åsa")
    ds = build(image, equipment=Equipment("Hospital", "STATION", "9.8.7"))
    assert (str(ds.PatientName), ds.StudyInstanceUID) == ("Müller^Åsa", image.StudyInstanceUID)
    assert (ds.InstitutionName, ds.StationName, ds.SoftwareVersions) == ("Hospital", "STATION", "9.8.7")
    assert ds.ContentLabel == "AI GROUNDING"
    assert ds.ContributingEquipmentSequence[0].DeviceUID.startswith("2.25.")


def test_instants_are_those_of_the_job():
    ds = build()
    for prefix in ("InstanceCreation", "PresentationCreation", "Series"):
        assert ds[f"{prefix}Date"].value + ds[f"{prefix}Time"].value[:6] == "20260102123015"


def test_same_input_gives_the_same_bytes():
    first, second = (build_gsps(make_result_input(), 0) for _ in range(2))
    assert first is not None
    assert second is not None
    assert encode(first) == encode(second)


def test_each_image_has_a_state_of_its_own():
    images = make_cxr_dataset(instance=1), make_cxr_dataset(instance=2)
    findings = [make_finding("a", (1, 2, 30, 40), image=0), make_finding("b", (5, 6, 70, 80), image=1)]
    result = make_result_input(*images, findings=findings)
    for index, image in enumerate(images):
        ds = build_gsps(result, index)
        assert ds is not None
        assert ds.SOPInstanceUID == result_uids(result).gsps_instances[index]
        assert (
            ds.ReferencedSeriesSequence[0].ReferencedImageSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
        )
        assert [box.text for box in read_boxes(ds)] == [["1 a"], ["2 b"]][index]


def test_multi_frame_image_is_referred_to_by_its_first_frame():
    ds = build(make_cxr_dataset(NumberOfFrames=2, SOPClassUID=MULTI_FRAME_SC))
    references = [annotation.ReferencedImageSequence[0] for annotation in ds.GraphicAnnotationSequence]
    references.append(ds.ReferencedSeriesSequence[0].ReferencedImageSequence[0])
    assert [reference.ReferencedFrameNumber for reference in references] == [1, 1, 1]


@pytest.mark.parametrize(
    "values",
    [
        {"findings": make_findings()[2:]},
        {"options": ResultOptions(min_confidence=0.9)},
        {"options": ResultOptions(gsps=False)},
        {"findings": [make_finding("a", (10, 10, 10.5, 40))]},
    ],
)
def test_image_without_boxes_has_no_state(values):
    assert build_gsps(make_result_input(**values), 0) is None


def test_colour_image_has_no_state():
    image = make_cxr_dataset(pixels=np.zeros((140, 96, 3), np.uint8), photometric="RGB")
    assert build_gsps(make_result_input(image), 0) is None


@pytest.mark.parametrize("phrase", ["a\\b\r\nc", "左胸水貯留", "x" * 500])
def test_any_phrase_makes_a_label(phrase):
    ds = build(findings=[make_finding(phrase, (10, 20, 60, 70))])
    (text,) = ds.GraphicAnnotationSequence[1].TextObjectSequence
    assert len(text.UnformattedTextValue) <= 60
    assert "\\" not in text.UnformattedTextValue


ODD: dict[str, list[Any]] = {
    "PatientName": [None, ""],
    "PatientSex": [None, "U"],
    "PatientBirthDate": [None, "19601350"],
    "StudyTime": [None, "256060"],
    "SpecificCharacterSet": [None, ["", "ISO 2022 IR 87"], "WRONG"],
    "ImagerPixelSpacing": [None, [0, 0]],
    "PixelAspectRatio": [None, [1, 2], [0, 0]],
    "WindowCenter": [None, "", [1, 2], "1e30"],
    "WindowWidth": [None, "", "0", "1e30"],
    "VOILUTFunction": [None, "", "WRONG"],
    "VOILUTSequence": [None, [], [Dataset()], [make_lut_item(16, 0, 12)], [make_lut_item(4096, 0, 12)]],
    "ModalityLUTSequence": [None, [], [Dataset()], [make_lut_item(256, 0, 8)]],
    "RescaleSlope": [None, "0", "2", "nan"],
    "RescaleIntercept": [None, "", "1"],
    "RescaleType": [None, "", "HU"],
    "BodyPartExamined": [None, "", "HAND"],
    "NumberOfFrames": [None, "0", "2"],
    "SamplesPerPixel": [None, 1],
}


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in ODD.items()}))
def test_any_header_gives_a_state(attributes):
    ds = build_gsps(make_result_input(make_cxr_dataset(**attributes)), 0)
    assert ds is not None
    assert [box.box.xyxy for box in read_boxes(ds)] == [MARKS["effusion"], MARKS["pneumothorax"]]
    encode(ds)


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared radiographs are not here")
@pytest.mark.parametrize("name", ["cxr/NIH-DX-11129", "cxr/RG1_J2KI", "cxr/dx_image", "transfer_syntaxes/mlut_18"])
def test_real_images_give_a_state(name):
    image = pydicom.dcmread(DATA / f"{name}.dcm", stop_before_pixels=True)
    ds = build(image, report=make_report_dataset(image=image), findings=[make_finding("a", (11, 22, 133, 144))])
    assert [box.box.xyxy for box in read_boxes(ds)] == [(11, 22, 133, 144)]
    inverse = image.PhotometricInterpretation == "MONOCHROME1"
    assert ds.PresentationLUTShape == ("INVERSE" if inverse else "IDENTITY")
