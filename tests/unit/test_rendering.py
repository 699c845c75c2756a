"""Pictures drawn from the DICOM objects alone: where the boxes are, which grey is shown, and what is refused."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image as PilImage
from pydicom.dataset import Dataset

from dicom_node.errors import PermanentError
from dicom_node.header import DECODE_ERRORS
from dicom_node.pixels import render
from dicom_node.report import read_plain_report
from dicom_node.results.gsps import build_gsps
from dicom_node.results.overlay import draw_overlay
from dicom_node.results.regions import read_listed, read_regions
from dicom_node.results.rendering import draw_presentation_state, draw_report
from dicom_node.results.sr import build_sr
from dicom_node.results.sr_tree import walk_tree
from dicom_node.results.values import ResultInput
from grounding.types import Box, Finding, Grounding, Image, ReportText, ScoredBox
from tests.builders import (
    COMPREHENSIVE_SR,
    CREATED_AT,
    MARKS,
    MODEL,
    MULTI_FRAME_SC,
    decode,
    encode,
    make_coded_item,
    make_cxr_dataset,
    make_finding,
    make_findings,
    make_item,
    make_number,
    make_report_dataset,
    make_result_input,
    make_section,
    make_text,
)
from tests.fakes import FakeGrounder
from tests.pictures import make_grey, read_box, to_array

DATA = Path(__file__).parents[3] / "shared" / "data" / "dicom"
GROUP = ("125007", "DCM", "Measurement Group")
REGION = ("111030", "DCM", "Image Region")


# ---- a phantom with a marker of known stored pixels, through the node and back out of the picture


@dataclass(frozen=True)
class Pixels:
    """How a phantom is stored."""

    dtype: str
    bits: int
    photometric: str = "MONOCHROME2"


STORED = [
    Pixels("u1", 8),
    Pixels("u1", 8, "MONOCHROME1"),
    Pixels("u2", 12),
    Pixels("u2", 12, "MONOCHROME1"),
    Pixels("u2", 16, "MONOCHROME1"),
    Pixels("i2", 16),
    Pixels("i2", 12, "MONOCHROME1"),
]


def make_phantom(marker: tuple[int, int, int, int], rows: int, columns: int, stored: Pixels) -> Dataset:
    """Return an image that is grey but for a white marker, with a window over all its values."""
    picture = np.full((rows, columns), 0.4)
    picture[marker[1] : marker[3], marker[0] : marker[2]] = 1.0
    if stored.photometric == "MONOCHROME1":
        picture = 1.0 - picture
    low = -(2 ** (stored.bits - 1)) if stored.dtype[0] == "i" else 0
    return make_cxr_dataset(
        pixels=np.rint(low + picture * (2**stored.bits - 1)).astype(stored.dtype),
        photometric=stored.photometric,
        BitsStored=stored.bits,
        HighBit=stored.bits - 1,
        WindowCenter=low + 2 ** (stored.bits - 1),
        WindowWidth=2**stored.bits,
    )


class MarkerGrounder(FakeGrounder):
    """A fake model that finds what is white in the first image, for every sentence."""

    def ground(self, images: Sequence[Image], report: ReportText) -> Grounding:
        """Return one finding per sentence."""
        rows, columns = np.nonzero(images[0] > 0.95)
        box = Box(float(columns.min()), float(rows.min()), float(columns.max()) + 1, float(rows.max()) + 1)
        said = [report.text[span.start : span.end] for span in report.sentences]
        return Grounding(MODEL, tuple(make_finding(phrase, box.xyxy) for phrase in said))


def ground(image: Dataset) -> ResultInput:
    """Return what a fake model finds in `image`."""
    report = read_plain_report("Mass.")
    return ResultInput(
        (image,), None, report, MarkerGrounder().ground([render(image)], report.to_report_text()), CREATED_AT
    )


def draw_sr(result: ResultInput) -> PilImage.Image:
    """Return the picture of the SR, written and read back, without its legend."""
    sr, image = build_sr(result), decode(encode(result.images[0]))
    assert sr is not None
    page = draw_report(decode(encode(sr)), image)
    scale = min(max(1.0, 900 / image.Rows), 3200 / image.Rows)
    return page.crop((0, 0, round(image.Columns * scale), round(image.Rows * scale)))


def draw_gsps(result: ResultInput) -> PilImage.Image:
    """Return the picture of the presentation state, written and read back."""
    state = build_gsps(result, 0)
    assert state is not None
    return draw_presentation_state(decode(encode(state)), decode(encode(result.images[0])))


@pytest.mark.parametrize("draw", [draw_sr, draw_gsps])
@pytest.mark.parametrize("stored", STORED, ids=str)
def test_boxes_are_on_the_markers_to_a_fraction_of_a_stored_pixel(stored, draw):
    marker = (101, 333, 640, 801)
    result = ground(make_phantom(marker, 960, 720, stored))
    assert read_box(draw(result), marker) == pytest.approx(marker, abs=0.25)


@pytest.mark.parametrize("draw", [draw_sr, draw_gsps])
@pytest.mark.parametrize(("rows", "columns"), [(140, 96), (300, 517), (401, 320)])
def test_boxes_of_enlarged_images_are_on_the_markers_to_a_screen_pixel(rows, columns, draw):
    marker = (columns // 8, rows // 3, columns - 9, rows - 11)
    picture = draw(ground(make_phantom(marker, rows, columns, Pixels("u2", 12))))
    expected = [value * 900 / rows for value in marker]
    assert read_box(picture, expected) == pytest.approx(expected, abs=1.0)


@pytest.mark.parametrize("draw", [draw_sr, draw_gsps])
def test_boxes_of_reduced_images_are_on_the_markers_to_a_screen_pixel(draw):
    marker = (150, 1000, 903, 3801)
    picture = draw(ground(make_phantom(marker, 4000, 1000, Pixels("u1", 8))))
    expected = [value * 0.8 for value in marker]
    assert read_box(picture, expected) == pytest.approx(expected, abs=1.0)


@pytest.mark.parametrize("window", [{}, {"WindowCenter": None, "WindowWidth": None}])
def test_both_polarities_of_a_picture_look_the_same(window):
    one, other = (
        to_array(draw_gsps(make_result_input(make_cxr_dataset(photometric=photometric, **window))))
        for photometric in ("MONOCHROME1", "MONOCHROME2")
    )
    assert np.abs(one - other).max() <= 1
    grey = one[np.ptp(one, axis=2) == 0]
    assert grey.min() < 90
    assert grey.max() > 200


@pytest.mark.parametrize("draw", [draw_presentation_state, draw_report])
def test_damaged_object_is_drawn_or_refused(draw):
    result, damage = make_result_input(), random.Random(7)
    built = build_gsps(result, 0) if draw is draw_presentation_state else build_sr(result)
    assert built is not None
    content, outcomes = encode(built), Counter[str]()
    for _ in range(40):
        damaged = bytearray(content)
        for _ in range(damage.randint(4, 20)):
            damaged[damage.randrange(600, len(damaged))] = damage.randrange(256)
        try:
            ds = decode(bytes(damaged))
        except DECODE_ERRORS:
            continue
        try:
            draw(ds, result.images[0])
            outcomes["drawn"] += 1
        except PermanentError:
            outcomes["refused"] += 1
    assert outcomes["drawn"]
    assert outcomes["refused"]


# ---- SR


def test_report_that_was_written_looks_like_the_findings_it_was_written_from():
    result = make_result_input()
    sr, image = build_sr(result), result.images[0]
    assert sr is not None
    drawn = draw_report(decode(encode(sr)), image)
    assert (to_array(drawn) == to_array(draw_overlay(render(image), result.grounding.findings))).all()


def test_each_image_shows_its_own_boxes_numbered_over_all():
    images = make_cxr_dataset(instance=1), make_cxr_dataset(instance=2)
    findings = [make_finding("a", (1, 2, 30, 40), image=0), make_finding("b", (5, 6, 70, 80), image=1)]
    sr = build_sr(make_result_input(*images, findings=findings))
    assert sr is not None
    assert [[region.label for region in read_regions(sr, image.SOPInstanceUID)] for image in images] == [
        ["1 a"],
        ["2 b"],
    ]


def test_report_without_boxes_is_a_picture_with_a_list():
    result = make_result_input(findings=make_findings()[2:])
    sr = build_sr(result)
    assert sr is not None
    assert read_listed(sr) == [
        ("Absent or normal in source report", "Heart size is normal"),
        ("Not localized on image", "Left effusion"),
    ]
    page = to_array(draw_report(decode(encode(sr)), result.images[0]))
    picture, legend = np.split(page, [round(96 * 900 / 140)], axis=1)
    assert not np.ptp(picture, axis=2).any()
    assert (legend[..., 0] - legend[..., 1] > 60).sum() > 100  # the note


def test_report_without_phrases_says_so():
    sr = build_sr(make_result_input(findings=[]))
    assert sr is not None
    assert read_listed(sr) == [("", "The report names no finding that was looked for in the image.")]


def test_box_of_another_frame_is_not_drawn():
    image = make_cxr_dataset(NumberOfFrames=3, SOPClassUID=MULTI_FRAME_SC)
    sr = build_sr(make_result_input(image))
    assert sr is not None
    assert len(read_regions(sr, image.SOPInstanceUID)) == 2
    for item in walk_tree(sr):
        if item.ValueType == "IMAGE":
            item.ReferencedSOPSequence[0].ReferencedFrameNumber = 2
    assert read_regions(sr, image.SOPInstanceUID) == []


def test_report_of_another_image_is_refused():
    sr = build_sr(make_result_input())
    assert sr is not None
    with pytest.raises(PermanentError, match="does not refer to image"):
        draw_report(sr, make_cxr_dataset(instance=7))


def make_coordinates(kind: str, points: Sequence[float], child: Dataset, relationship: str = "CONTAINS") -> Dataset:
    return make_item(
        "SCOORD", REGION, relationship, GraphicType=kind, GraphicData=list(points), ContentSequence=[child]
    )


def make_image_item(image: Dataset, relationship: str = "SELECTED FROM") -> Dataset:
    reference = Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    return make_item("IMAGE", None, relationship, ReferencedSOPSequence=[reference])


def make_item_by_reference(*place: int) -> Dataset:
    """Return the relationship to the item at `place` in the tree, which has no value of its own (PS3.3 C.17.3.2.5)."""
    item = Dataset()
    item.RelationshipType, item.ReferencedContentItemIdentifier = "SELECTED FROM", list(place)
    return item


def test_report_of_another_maker_is_drawn():
    """A group whose number holds the coordinates, a group without any, and a measurement outside of any group."""
    image = make_grey()
    length = make_number("12.34", ("mm", "UCUM", "millimeter"), ("410668003", "SCT", "Length"))
    library_image = make_item_by_reference(1, 1)
    length.ContentSequence = [make_coordinates("POLYLINE", [100, 200, 300, 200], library_image, "INFERRED FROM")]
    diameter = make_number("3", ("cm", "UCUM", "centimeter"), ("81827009", "SCT", "Diameter"))
    diameter.ContentSequence = [
        make_coordinates("CIRCLE", [400, 600, 450, 600], make_image_item(image), "INFERRED FROM")
    ]
    astray = make_item_by_reference(1, 99)
    diameter.ContentSequence.append(make_coordinates("POINT", [1, 2], astray, "INFERRED FROM"))
    nodule = make_coded_item(("27925004", "SCT", "Nodule"))
    report = make_report_dataset(
        [
            make_image_item(image, "CONTAINS"),
            make_section(GROUP, [nodule, length]),
            make_section(GROUP, [make_text("Seen on the lateral view only", ("121106", "DCM", "Comment"))]),
            diameter,
        ],
        image=image,
        sop_class_uid=COMPREHENSIVE_SR,
    )
    regions = read_regions(report, image.SOPInstanceUID)
    assert [(region.label, region.text, region.score) for region in regions] == [
        ("1 Nodule", "Nodule, Length 12.34 mm", None),
        ("2 Diameter 3 cm", "Diameter 3 cm", None),
    ]
    assert read_listed(report) == [("Listed without a region", "Seen on the lateral view only")]
    page = to_array(draw_report(decode(encode(report)), image))
    colour = np.ptp(page[:, :800], axis=2)
    assert colour[200, 101:299].min() > 60
    assert colour[600, [350, 450]].min() > 60
    assert not (page[..., 0] - page[..., 1] > 110).sum() > 5000  # no note of ours


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared objects of other makers are not here")
@pytest.mark.parametrize(("name", "labels"), [
    ("sr_document", ["1 Spinal cord"]),
    ("structured_report", ["1 ExampleText", "2 AREA 4806 mm2", "3 Long Axis 93.9 mm, Short Axis 47 mm",
                           "4 Length 39.37 mm"]),
])  # fmt: skip
def test_real_reports_of_other_makers_are_read(name, labels):
    report = pydicom.dcmread(DATA / "structured_reports" / f"{name}.dcm")
    images = [item.ReferencedSOPSequence[0] for item in walk_tree(report) if item.get("ValueType") == "IMAGE"]
    uid = images[0].ReferencedSOPInstanceUID
    assert [region.label for region in read_regions(report, uid)] == labels
    assert draw_report(report, make_grey(512, 512, SOPInstanceUID=uid)).height == 900


@pytest.mark.parametrize("text", ["", "a\tb", "左胸水貯留", "x" * 3000])
def test_any_phrase_is_drawn(text):
    sr = build_sr(
        make_result_input(
            findings=[
                make_finding(text or "-", MARKS["effusion"]),
                Finding(text or "-", None, 0, (ScoredBox(Box(1, 2, 30, 40), 0.5),), True, False),
            ]
        )
    )
    assert sr is not None
    assert draw_report(sr, make_cxr_dataset()).height >= 900
