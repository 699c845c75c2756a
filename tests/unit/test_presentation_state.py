"""Presentation states of any maker, drawn: which grey is shown, where graphics and texts lie, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.errors import PermanentError
from dicom_node.pixels import UnreadablePixelsError
from dicom_node.results.rendering import draw_presentation_state
from dicom_node.results.state import convert_cielab, read_colour
from tests.builders import MULTI_FRAME_SC, decode, encode, make_cxr_dataset
from tests.pictures import make_grey, to_array

DATA = Path(__file__).parents[3] / "shared" / "data" / "dicom"
GSPS = "1.2.840.10008.5.1.4.1.1.11.1"


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
