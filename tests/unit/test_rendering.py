"""Pictures drawn from the DICOM objects alone: where the boxes are, which grey is shown, and what is refused."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image as PilImage
from pydicom.dataset import Dataset

from dicom_node.errors import PermanentError
from dicom_node.header import DECODE_ERRORS
from dicom_node.pixels import UnreadablePixelsError, render
from dicom_node.report import read_plain_report
from dicom_node.results.gsps import build_gsps
from dicom_node.results.overlay import draw_overlay
from dicom_node.results.regions import read_listed, read_regions
from dicom_node.results.rendering import draw_presentation_state, draw_report
from dicom_node.results.sr import build_sr
from dicom_node.results.sr_tree import walk_tree
from dicom_node.results.state import convert_cielab, read_colour
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

DATA = Path(__file__).parents[3] / "shared" / "data" / "dicom"
GSPS = "1.2.840.10008.5.1.4.1.1.11.1"
GROUP = ("125007", "DCM", "Measurement Group")
REGION = ("111030", "DCM", "Image Region")

Levels = NDArray[np.float64]


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


def to_array(picture: PilImage.Image) -> NDArray[np.int16]:
    return np.asarray(picture.convert("RGB"), np.int16)


def read_edges(line: Levels) -> tuple[float, float]:
    """Return the middles of the first and the last coloured run of a line of pixels, weighted by colour."""
    coloured = np.flatnonzero(line > 8)
    runs = np.split(coloured, np.flatnonzero(np.diff(coloured) > 1) + 1)
    first, last = (float(np.average(run + 0.5, weights=line[run])) for run in (runs[0], runs[-1]))
    return first, last


def read_box(picture: PilImage.Image, around: Sequence[float]) -> tuple[float, float, float, float]:
    """Return the box that is drawn through the column and the row in the middle of `around`, in screen pixels."""
    colour = np.ptp(to_array(picture), axis=2).astype(float)
    column, row = round((around[0] + around[2]) / 2), round((around[1] + around[3]) / 2)
    left, right = read_edges(colour[row])
    # from the right quarter: the label stands at the left, above or below
    column = round(around[2] - (around[2] - around[0]) / 16)
    top, bottom = read_edges(colour[:, column])
    return left, top, right, bottom


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


# ---- grey


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


def make_state(image: Dataset, **attributes: Any) -> Dataset:
    """Return a presentation state of another maker, with nothing in it but what is given."""
    ds, reference, series = Dataset(), Dataset(), Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = GSPS, "1.2.3", "PR"
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = image.SOPClassUID, image.SOPInstanceUID
    series.SeriesInstanceUID, series.ReferencedImageSequence = image.SeriesInstanceUID, [reference]
    ds.ReferencedSeriesSequence = [series]
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


def make_voi(**attributes: Any) -> Dataset:
    voi = Dataset()
    for keyword, value in attributes.items():
        setattr(voi, keyword, value)
    return voi


def make_lut(entries: Sequence[int], first: int = 0, bits: int = 8) -> Dataset:
    lut = Dataset()
    lut.add_new("LUTDescriptor", "US", [len(entries), first, bits])
    lut.add_new("LUTData", "OW", np.asarray(entries, "<u2").tobytes())
    return lut


RAMP = np.tile(np.arange(256, dtype=np.uint8), (900, 4))
REVERSED = list(range(255, -1, -1))


def show_ramp(image: Dataset | None = None, **attributes: Any) -> list[int]:
    """Return the 256 levels that a state shows the stored values 0 to 255 in."""
    image = image or make_cxr_dataset(pixels=RAMP)
    picture = to_array(draw_presentation_state(make_state(image, **attributes), image))
    assert picture.shape == (900, 1024, 3)
    assert (picture == picture[:1, :, :1]).all()
    return picture[0, :256, 0].tolist()


def test_what_the_state_does_not_say_is_an_identity_whatever_the_image_says():
    image = make_cxr_dataset(
        pixels=RAMP, photometric="MONOCHROME1", RescaleSlope=3, WindowCenter=9, WindowWidth=4,
        PresentationLUTShape="INVERSE",
    )  # fmt: skip
    assert show_ramp(image) == list(range(256))


def test_identity_spans_what_can_be_stored_signed_or_not():
    values = np.tile(np.arange(-128, 128, dtype=np.int8), (900, 4))
    assert show_ramp(make_cxr_dataset(pixels=values)) == list(range(256))
    twelve_bits = np.tile(np.arange(0, 4096, 16, dtype=np.uint16), (900, 4))
    assert show_ramp(make_cxr_dataset(pixels=twelve_bits)) == pytest.approx(
        np.arange(0, 4096, 16) / 4095 * 255, abs=0.5
    )


def test_identity_spans_the_values_of_float_pixels():
    image = make_cxr_dataset(pixels=RAMP, BitsAllocated=32)
    del image.PixelData
    image.FloatPixelData = (np.tile(np.arange(256, dtype=np.float32), (900, 4)) / 256).tobytes()
    assert show_ramp(image) == list(range(256))


def test_inverse_shape_turns_black_to_white():
    assert show_ramp(PresentationLUTShape="INVERSE") == REVERSED


def test_lookup_tables_follow_each_other():
    """Modality, VOI and presentation LUT each reverse the values: three times is once."""
    voi = make_voi(VOILUTSequence=[make_lut(REVERSED)])
    tables = {
        "ModalityLUTSequence": [make_lut(REVERSED)],
        "SoftcopyVOILUTSequence": [voi],
        "PresentationLUTSequence": [make_lut(REVERSED)],
    }
    assert show_ramp(**tables) == REVERSED
    assert show_ramp(**{keyword: tables[keyword] for keyword in list(tables)[:2]}) == list(range(256))


def test_rescale_of_the_state_comes_before_its_window():
    voi = make_voi(WindowCenter=1128, WindowWidth=256)
    levels = show_ramp(RescaleSlope=10, RescaleIntercept=0, SoftcopyVOILUTSequence=[voi])
    expected = np.clip((np.arange(256) * 10 - 1127.5) / 255 + 0.5, 0, 1) * 255
    np.testing.assert_allclose(levels, expected, atol=0.5)


def test_rescale_alone_spans_its_own_range():
    assert show_ramp(RescaleSlope=-2, RescaleIntercept=7) == REVERSED


@pytest.mark.parametrize(("function", "at"), [("LINEAR", 64), ("LINEAR_EXACT", 64), ("SIGMOID", 64)])
def test_window_has_its_function(function, at):
    levels = show_ramp(SoftcopyVOILUTSequence=[make_voi(WindowCenter=100, WindowWidth=100, VOILUTFunction=function)])
    expected = {
        "LINEAR": (at - 99.5) / 99 + 0.5,
        "LINEAR_EXACT": (at - 100) / 100 + 0.5,
        "SIGMOID": 1 / (1 + np.exp(-4 * (at - 100) / 100)),
    }
    assert levels[at] == pytest.approx(expected[function] * 255, abs=0.5)


def test_window_of_one_value_is_a_step():
    levels = show_ramp(SoftcopyVOILUTSequence=[make_voi(WindowCenter=100, WindowWidth=1)])
    assert levels == [0] * 100 + [255] * 156


def test_window_of_another_image_is_not_applied():
    other = Dataset()
    other.ReferencedSOPClassUID, other.ReferencedSOPInstanceUID = GSPS, "9.9"
    voi = make_voi(WindowCenter=100, WindowWidth=1, ReferencedImageSequence=[other])
    assert show_ramp(SoftcopyVOILUTSequence=[voi]) == list(range(256))


# ---- geometry and graphics of other makers


def make_graphic(kind: str, points: Sequence[float], units: str = "PIXEL", **attributes: Any) -> Dataset:
    graphic = Dataset()
    graphic.GraphicAnnotationUnits, graphic.GraphicType = units, kind
    graphic.GraphicData, graphic.GraphicFilled = list(points), "N"
    for keyword, value in attributes.items():
        setattr(graphic, keyword, value)
    return graphic


def annotate(image: Dataset, *graphics: Dataset, texts: Sequence[Dataset] = (), **attributes: Any) -> NDArray[np.int16]:
    """Return the picture of a foreign state with these graphics and texts."""
    annotation = Dataset()
    annotation.GraphicLayer = "ONLY"
    annotation.GraphicObjectSequence, annotation.TextObjectSequence = list(graphics), list(texts)
    state = make_state(image, GraphicAnnotationSequence=[annotation], **attributes)
    return to_array(draw_presentation_state(decode_state(state), image))


def decode_state(state: Dataset) -> Dataset:
    """Return `state` as it is read from a file."""
    state.file_meta = make_cxr_dataset().file_meta
    return decode(encode(state))


def extent(picture: NDArray[np.int16]) -> tuple[float, float, float, float]:
    """Return the outer corners of all that is coloured."""
    rows, columns = np.nonzero(np.ptp(picture, axis=2) > 8)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def make_grey(rows: int = 1000, columns: int = 800, **attributes: Any) -> Dataset:
    return make_cxr_dataset(pixels=np.full((rows, columns), 100, np.uint8), **attributes)


STROKE = 2
"""Half of the stroke in pictures of 900 to 1,000 pixels."""

TURNED = {
    (0, "N"): (100, 200, 300, 350),
    (90, "N"): (650, 100, 800, 300),
    (180, "N"): (500, 650, 700, 800),
    (270, "N"): (200, 500, 350, 700),
    (0, "Y"): (500, 200, 700, 350),
    (90, "Y"): (200, 100, 350, 300),
}
"""Where the box (100, 200, 300, 350) of an image of 1,000 rows and 800 columns is seen, turned and then flipped."""


@pytest.mark.parametrize(("turn", "seen"), TURNED.items())
def test_image_and_graphics_are_turned_and_flipped_together(turn, seen):
    image = make_grey()
    pixels = np.full((1000, 800), 100, np.uint8)
    pixels[200:350, 100:300] = 250
    image.PixelData = pixels.tobytes()
    box = make_graphic("POLYLINE", [100, 200, 300, 200, 300, 350, 100, 350, 100, 200])
    picture = annotate(image, box, ImageRotation=turn[0], ImageHorizontalFlip=turn[1])
    assert picture.shape[:2] == ((800, 1000) if turn[0] % 180 else (1000, 800))
    left, top, right, bottom = seen
    assert extent(picture) == pytest.approx((left - STROKE, top - STROKE, right + STROKE, bottom + STROKE), abs=1)
    assert (picture[top + 6 : bottom - 6, left + 6 : right - 6] == 250).all()
    assert (picture[..., 0] == 250).sum() < 150 * 200


def test_ellipse_in_display_units_lies_in_the_displayed_area():
    area = Dataset()
    area.DisplayedAreaTopLeftHandCorner, area.DisplayedAreaBottomRightHandCorner = [201, 101], [600, 900]
    ellipse = make_graphic("ELLIPSE", [0.25, 0.5, 0.75, 0.5, 0.5, 0.4, 0.5, 0.6], "DISPLAY")
    picture = annotate(make_grey(), ellipse, DisplayedAreaSelectionSequence=[area])
    centre, reach = (400, 500), (100, 80)
    assert extent(picture) == pytest.approx(
        (centre[0] - reach[0] - STROKE, centre[1] - reach[1] - STROKE,
         centre[0] + reach[0] + STROKE, centre[1] + reach[1] + STROKE), abs=1,
    )  # fmt: skip
    assert np.ptp(picture[500, 400]) == 0


@pytest.mark.parametrize(
    ("kind", "points", "seen"),
    [
        ("CIRCLE", [300, 400, 300, 500], (200, 300, 400, 500)),
        ("POINT", [300, 400], (288, 388, 312, 412)),
        ("INTERPOLATED", [100, 200, 300, 200, 300, 500], (100, 200, 300, 500)),
    ],
)
def test_every_kind_of_graphic_is_drawn(kind, points, seen):
    left, top, right, bottom = extent(annotate(make_grey(), make_graphic(kind, points)))
    assert (left + STROKE, top + STROKE, right - STROKE, bottom - STROKE) == pytest.approx(seen, abs=1)


def test_filled_graphic_is_seen_through():
    circle = make_graphic("CIRCLE", [300, 400, 300, 500], GraphicFilled="Y")
    assert 20 < np.ptp(annotate(make_grey(), circle)[400, 300]) < 120


@pytest.mark.parametrize(
    ("kind", "points"),
    [
        ("SPLINE", [1, 2, 3, 4]),
        ("POLYLINE", [1, 2]),
        ("POLYLINE", [float("nan")] * 4),
        ("POLYLINE", [1, 2, 3e38, 4]),
        ("POINT", [-90, 5]),
    ],
)
def test_graphic_that_is_none_is_left_out(kind, points):
    assert not np.ptp(annotate(make_grey(), make_graphic(kind, points)), axis=2).any()


def test_text_that_says_nothing_or_has_no_place_is_left_out():
    nowhere, silent = Dataset(), Dataset()
    nowhere.UnformattedTextValue = "Finding"
    silent.UnformattedTextValue, silent.AnchorPoint = " ", [10, 20]
    assert not np.ptp(annotate(make_grey(), texts=[nowhere, silent]), axis=2).any()


@pytest.mark.parametrize("corner", [(10, 20), (790, 990), (-50, 400), (700, -3)])
def test_texts_stay_in_the_picture_and_off_each_other(corner):
    texts = []
    for number in range(3):
        text = Dataset()
        text.UnformattedTextValue = f"Finding {number}\r\nsecond line"
        text.AnchorPointAnnotationUnits, text.AnchorPoint, text.AnchorPointVisibility = "PIXEL", list(corner), "N"
        texts.append(text)
    one = annotate(make_grey(), texts=texts[:1])
    several = annotate(make_grey(), texts=texts)
    assert extent(one)[0] > 0
    assert extent(one)[2] < 800
    single, all_three = ((np.ptp(picture, axis=2) > 8).sum() for picture in (one, several))
    assert all_three > 2.8 * single


def test_text_is_written_in_its_bounding_box_with_a_line_to_what_it_speaks_of():
    text = Dataset()
    text.UnformattedTextValue, text.BoundingBoxAnnotationUnits = "Spiculated mass", "PIXEL"
    text.BoundingBoxTopLeftHandCorner, text.BoundingBoxBottomRightHandCorner = [500, 100], [700, 140]
    text.BoundingBoxTextHorizontalJustification = "RIGHT"
    plain = extent(annotate(make_grey(), texts=[text]))
    assert 500 <= plain[0] < plain[2] <= 702
    assert plain[2] > 690
    assert 98 <= plain[1] < plain[3] <= 142
    text.AnchorPointAnnotationUnits, text.AnchorPoint, text.AnchorPointVisibility = "PIXEL", [300, 700], "Y"
    left, _, _, bottom = extent(annotate(make_grey(), texts=[text]))
    assert (left, bottom) == pytest.approx((300, 700), abs=6)


def test_pixels_that_are_no_squares_are_shown_in_their_proportions():
    area = Dataset()
    area.DisplayedAreaTopLeftHandCorner, area.DisplayedAreaBottomRightHandCorner = [1, 1], [800, 1000]
    area.PresentationPixelAspectRatio = [3, 2]
    box = make_graphic("POLYLINE", [100, 200, 300, 200, 300, 350, 100, 350, 100, 200])
    picture = annotate(make_grey(), box, DisplayedAreaSelectionSequence=[area])
    assert picture.shape[:2] == (1500, 800)
    assert extent(picture) == pytest.approx((98, 298, 302, 527), abs=3)


def make_layer(name: str, order: int, **attributes: Any) -> Dataset:
    layer = Dataset()
    layer.GraphicLayer, layer.GraphicLayerOrder = name, order
    for keyword, value in attributes.items():
        setattr(layer, keyword, value)
    return layer


def test_layers_are_drawn_in_their_order_and_colours():
    image, red, white = make_grey(), [35579, 53664, 50858], 65535
    line = make_graphic("POLYLINE", [100, 500, 700, 500])
    layers = [
        make_layer("UPPER", 2, GraphicLayerRecommendedDisplayCIELabValue=red),
        make_layer("LOWER", 1, GraphicLayerRecommendedDisplayGrayscaleValue=white),
    ]
    annotations = []
    for layer in layers:
        annotation = Dataset()
        annotation.GraphicLayer, annotation.GraphicObjectSequence = layer.GraphicLayer, [line]
        annotations.append(annotation)
    for orders, expected in (((2, 1), (255, 0, 0)), ((1, 2), (255, 255, 255))):
        layers[0].GraphicLayerOrder, layers[1].GraphicLayerOrder = orders
        state = make_state(image, GraphicLayerSequence=layers, GraphicAnnotationSequence=annotations)
        shown = to_array(draw_presentation_state(state, image))[500, 400]
        assert shown.tolist() == pytest.approx(expected, abs=2)


@pytest.mark.parametrize(
    ("lab", "colour"),
    [
        ((100.0, 0.0, 0.0), (255, 255, 255)),
        ((0.0, 0.0, 0.0), (0, 0, 0)),
        ((54.29, 80.81, 69.89), (255, 0, 0)),
        ((87.82, -79.27, 80.99), (0, 255, 0)),
        ((29.57, 68.30, -112.03), (0, 0, 255)),
        ((53.39, 0.0, 0.0), (127, 127, 127)),
    ],
)
def test_cielab_is_shown_as_icc_defines_it(lab, colour):
    encoded = [round(lab[0] * 655.35), round((lab[1] + 128) * 257), round((lab[2] + 128) * 257)]
    shown = bytes.fromhex(convert_cielab(encoded)[1:])
    assert list(shown) == pytest.approx(colour, abs=2)


def test_layer_that_recommends_nothing_has_a_colour():
    assert read_colour(Dataset()).startswith("#")


# ---- refused


def refuse(state: Dataset, image: Dataset, says: str) -> None:
    with pytest.raises(PermanentError, match=says):
        draw_presentation_state(state, image)


def test_state_of_something_else_is_refused():
    image, other = make_cxr_dataset(instance=1), make_cxr_dataset(instance=2)
    refuse(make_state(other), image, "does not refer to image")
    refuse(make_state(image, ReferencedSeriesSequence=[]), image, "does not refer to image")
    refuse(make_state(image, SOPClassUID="1.2.840.10008.5.1.4.1.1.11.2"), image, "no Grayscale Softcopy")
    colour = make_cxr_dataset(pixels=np.zeros((140, 96, 3), np.uint8), photometric="RGB")
    refuse(make_state(colour), colour, "in colour")


def test_state_of_another_frame_is_refused():
    image = make_cxr_dataset(pixels=np.full((140, 96), 100, np.uint8), SOPClassUID=MULTI_FRAME_SC)
    state = make_state(image)
    (reference,) = state.ReferencedSeriesSequence[0].ReferencedImageSequence
    reference.ReferencedFrameNumber = [2, 3]
    refuse(state, image, "does not refer to image")
    reference.ReferencedFrameNumber = [2, 1]
    assert draw_presentation_state(state, image).size


def test_image_without_pixels_and_damaged_state_are_refused():
    image = make_cxr_dataset()
    layer = make_layer("A", 1, GraphicLayerRecommendedDisplayCIELabValue=[1, 2, "x"])
    refuse(make_state(image, GraphicLayerSequence=[layer]), image, "is damaged")
    del image.PixelData
    with pytest.raises(UnreadablePixelsError):
        draw_presentation_state(make_state(image), image)


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
        ("Negated in source report", "Heart size is normal"),
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


def test_report_of_another_maker_is_drawn():
    """A group whose number holds the coordinates, a group without any, and a measurement outside of any group."""
    image = make_grey()
    by_reference = make_item(None, None, "SELECTED FROM", ReferencedContentItemIdentifier=[1, 1])  # type: ignore[arg-type]
    del by_reference.ValueType
    length = make_number("12.34", ("mm", "UCUM", "millimeter"), ("410668003", "SCT", "Length"))
    length.ContentSequence = [make_coordinates("POLYLINE", [100, 200, 300, 200], by_reference, "INFERRED FROM")]
    diameter = make_number("3", ("cm", "UCUM", "centimeter"), ("81827009", "SCT", "Diameter"))
    diameter.ContentSequence = [
        make_coordinates("CIRCLE", [400, 600, 450, 600], make_image_item(image), "INFERRED FROM")
    ]
    astray = make_item(None, None, "SELECTED FROM", ReferencedContentItemIdentifier=[1, 99])  # type: ignore[arg-type]
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


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared objects of other makers are not here")
def test_scrambled_pixels_are_unscrambled_by_the_tables_of_their_state():
    """A state whose three tables turn noise into a ramp: one transformation left out, or out of order, leaves noise."""
    folder = DATA / "presentation_states"
    state, image = (
        pydicom.dcmread(folder / f"org__dcm4che3__img__{name}.dcm") for name in ("prLUTs", "imageForPrLUTs")
    )
    ramp = to_array(draw_presentation_state(state, image))[100, :, 0]
    assert (np.diff(ramp) >= -1).all()
    assert (ramp[0], ramp[-1]) == pytest.approx((0, 255), abs=3)


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
