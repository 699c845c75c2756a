"""Films and SR content as the console shows them: reduced frames stay where they were, windows do what they say."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as PillowImage
from pydicom.dataset import Dataset

from dicom_node.console.films import FilmFacts, Recent
from dicom_node.console.findings import Passage, ShownBox, mark_text, show_findings
from dicom_node.console.pages.reading import lay_out
from dicom_node.errors import PermanentError
from dicom_node.orientation import UPRIGHT
from dicom_node.pixels import render
from dicom_node.results.content import ContentItem, read_content
from dicom_node.results.film import (
    COARSE_SIDE,
    FINE_SIDE,
    Reduced,
    Window,
    factors,
    find_aspect,
    read_film,
    reduce_frame,
    suggest_window,
)
from dicom_node.results.gsps import build_gsps
from dicom_node.results.rendering import draw_presentation_state
from dicom_node.results.sr import build_sr
from grounding.types import Span
from tests.builders import MARKS, make_cxr_dataset, make_finding, make_item, make_pixels, make_result_input, make_text


def open_png(content: bytes) -> np.ndarray:
    return np.asarray(PillowImage.open(BytesIO(content)))


# ---- films -----------------------------------------------------------------------------------------------------------


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), factor=st.integers(1, 7))
def test_a_reduced_frame_is_of_the_means_of_its_blocks(rows: int, columns: int, factor: int) -> None:
    frame = np.random.default_rng(rows * columns).integers(0, 4096, (rows, columns), np.uint16)
    reduced = reduce_frame(frame, factor)
    assert reduced.shape == (-(-rows // factor), -(-columns // factor))
    assert reduced.dtype == frame.dtype
    for row in range(reduced.shape[0]):
        for column in range(reduced.shape[1]):
            block = frame[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
            assert abs(float(reduced[row, column]) - block.mean()) <= 0.5


def test_a_colour_frame_is_reduced_sample_by_sample() -> None:
    frame = np.zeros((5, 4, 3), np.uint8)
    frame[..., 1] = 200
    reduced = reduce_frame(frame, 2)
    assert reduced.shape == (3, 2, 3)
    assert (reduced == np.array([0, 200, 0])).all()


@given(rows=st.integers(1, 20_000), columns=st.integers(1, 20_000))
def test_what_is_shown_is_bounded_and_fine_divides_coarse(rows: int, columns: int) -> None:
    fine, coarse = factors(rows, columns)
    assert -(-max(rows, columns) // fine) <= FINE_SIDE
    assert -(-max(rows, columns) // coarse) <= COARSE_SIDE
    assert coarse % fine == 0


def test_a_film_looks_as_the_node_renders_it() -> None:
    image = make_cxr_dataset()
    shown = open_png(read_film(make_cxr_dataset()).write_png(None, 1))
    assert np.array_equal(shown, np.round(render(image) * 255).astype(np.uint8))


def test_a_film_gives_its_pixel_data_away() -> None:
    assert "PixelData" not in read_film(make_cxr_dataset()).header


def test_a_window_shows_its_values_between_black_and_white() -> None:
    pixels = np.linspace(0, 4095, 96 * 140).reshape(140, 96).astype(np.uint16)
    film = read_film(make_cxr_dataset(pixels=pixels))
    shown = open_png(film.write_png(Window(1000.0, 200.0), 1))
    assert (shown[pixels < 898] == 0).all()
    assert (shown[pixels > 1101] == 255).all()
    assert 120 <= shown[np.abs(pixels.astype(int) - 1000) < 2].mean() <= 136


def test_a_window_of_an_inverted_film_is_inverted() -> None:
    film = read_film(make_cxr_dataset(photometric="MONOCHROME1"))
    low, high = (open_png(film.write_png(Window(centre, 100.0), 1)).mean() for centre in (100.0, 4000.0))
    assert low < high


@pytest.mark.parametrize(
    ("attributes", "aspect"),
    [
        ({}, 1.0),
        ({"ImagerPixelSpacing": [0.2, 0.4]}, 0.5),
        ({"PixelSpacing": [0.4, 0.2]}, 2.0),
        ({"ImagerPixelSpacing": None, "PixelAspectRatio": [3, 2]}, 1.5),
        ({"ImagerPixelSpacing": None, "PixelAspectRatio": [3]}, 1.0),
        ({"ImagerPixelSpacing": [0.001, 0.4]}, 1.0),
    ],
)
def test_a_pixel_is_as_high_as_its_spacing_says(attributes: dict[str, object], aspect: float) -> None:
    assert find_aspect(make_cxr_dataset(**attributes)) == pytest.approx(aspect)


def test_a_window_is_suggested_by_the_header_else_by_its_bits() -> None:
    assert suggest_window(make_cxr_dataset()) == Window(2048.0, 4096.0)
    bare = make_cxr_dataset(WindowCenter=None, WindowWidth=None, RescaleSlope=2, RescaleIntercept=-100)
    assert suggest_window(bare) == Window(2048.0 * 2 - 100, 8192.0)
    assert suggest_window(make_cxr_dataset(photometric="RGB", pixels=np.zeros((4, 4, 3), np.uint8))) is None


def test_a_presentation_state_on_a_reduced_film_is_where_it_is_on_the_whole_one() -> None:
    """The boxes of the picture of a film that was reduced by 3, whose last blocks reach beyond its edge."""
    pixels = np.repeat(np.repeat(make_pixels(), 8, 0), 8, 1)[:1117, :766]
    image = make_cxr_dataset(pixels=pixels)
    finding = make_finding("effusion", tuple(8.0 * edge for edge in MARKS["effusion"]))
    result = make_result_input(image, findings=[finding])
    (state,) = [build_gsps(result, index) for index in range(1)]
    assert state is not None
    whole = draw_presentation_state(state, image)
    reduced = draw_presentation_state(state, image, Reduced(reduce_frame(pixels, 3), 3))
    scaled = np.asarray(reduced.resize(whole.size), np.float64)
    assert np.abs(scaled - np.asarray(whole, np.float64)).mean() < 6.0
    assert reduced.height == 900  # as every small picture


# ---- content of an SR ------------------------------------------------------------------------------------------------


def walk(item: ContentItem) -> list[ContentItem]:
    return [item, *(below for child in item.children for below in walk(child))]


def test_the_content_of_a_result_is_read_from_the_object() -> None:
    sr = build_sr(make_result_input())
    root = read_content(sr)
    items = walk(root)
    assert root.name == "Imaging Measurement Report"
    assert root.count == len(items) - 1
    assert any(item.value_type == "SCOORD" and item.value.startswith("POLYLINE (60.0, 100.0)") for item in items)
    assert any(item.name == "Certainty of Finding" and item.value.endswith(" %") for item in items)
    groups = [item for item in items if item.name == "Measurement Group"]
    assert groups and all(item.gist for item in groups)
    assert len({item.path for item in items}) == len(items)


def test_values_of_every_kind_are_written() -> None:
    scoord = make_item("SCOORD", GraphicType="MULTIPOINT", GraphicData=[float(n) for n in range(24)])
    reference = make_item("IMAGE", None, "SELECTED FROM")
    named = Dataset()
    named.ReferencedSOPClassUID, named.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
    reference.ReferencedSOPSequence = [named]
    by_path = Dataset()
    by_path.RelationshipType, by_path.ReferencedContentItemIdentifier = "INFERRED FROM", [1, 2, 3]
    items = [
        make_text("Effusion."), scoord, reference, by_path, make_item("DATE", Date="20260102"),
        make_item("PNAME", PersonName="A^B"), make_item("NUM"), make_item("CONTAINER"),
    ]  # fmt: skip
    root = Dataset()
    root.ValueType, root.ContentSequence = "CONTAINER", items
    values = [child.value for child in read_content(root).children]
    assert values[0] == "Effusion."
    assert values[1].endswith("and 4 more")
    assert values[2] == "Computed Radiography Image Storage 1.2.3"
    assert values[3] == "see item 1.2.3"
    assert values[4:] == ["20260102", "A^B", "no value", ""]


def test_content_without_measure_is_refused() -> None:
    item = make_item("CONTAINER")
    for _ in range(80):
        item = make_item("CONTAINER", ContentSequence=[item])
    with pytest.raises(PermanentError, match="levels"):
        read_content(item)


# ---- findings --------------------------------------------------------------------------------------------------------

TEXT = "Small left effusion. No pneumothorax. A nodule."


def show(found: list, min_confidence: float = 0.0):
    spans = [Span(TEXT.find(one.phrase), TEXT.find(one.phrase) + len(one.phrase)) for one in found]
    placed = [replace(one, source=span) for one, span in zip(found, spans, strict=True)]
    return show_findings(placed, {0: (140, 96)}, {0: UPRIGHT}, min_confidence)


def make_shown():
    found = [make_finding("left effusion", (1.0, 2.0, 30.0, 40.0), (50.0, 50.0, 60.0, 70.0)),
             make_finding("pneumothorax", negated=True), make_finding("nodule")]  # fmt: skip
    return show(found)


def test_phrases_are_grounded_missing_or_negated() -> None:
    shown = make_shown()
    assert [(one.phrase, one.kind) for one in shown] == [
        ("left effusion", "grounded"), ("pneumothorax", "negated"), ("nodule", "missing"),
    ]  # fmt: skip
    assert [box.number for box in shown[0].boxes] == [1, 2]
    assert shown[1].why == "Absent or normal in source report"
    assert shown[2].why == "Not localized on image"


def test_a_box_below_the_confidence_that_is_written_is_not_shown() -> None:
    shown = show([make_finding("left effusion", (1.0, 2.0, 30.0, 40.0), score=0.3)], 0.5)
    assert shown[0].kind == "missing"
    assert shown[0].boxes == ()


def test_the_text_is_marked_where_phrases_stand_and_is_the_same_text() -> None:
    passages = mark_text(TEXT, make_shown())
    assert "".join(one.text for one in passages) == TEXT
    assert [(one.text, one.kind) for one in passages if one.kind] == [
        ("left effusion", "grounded"), ("pneumothorax", "negated"), ("nodule", "missing"),
    ]  # fmt: skip


def test_where_phrases_overlap_the_strongest_counts_and_all_are_named() -> None:
    one, _, other = make_shown()
    passages = mark_text("abcdef", [replace(one, source=Span(1, 4)), replace(other, source=Span(2, 99))])
    assert passages == (
        Passage("a"), Passage("b", "grounded", (1,)), Passage("cd", "grounded", (1, 3)), Passage("ef", "missing", (3,)),
    )  # fmt: skip


@given(spans=st.lists(st.tuples(st.integers(-5, 60), st.integers(-5, 60)), max_size=6))
def test_whatever_the_spans_are_no_letter_is_lost(spans: list[tuple[int, int]]) -> None:
    base = make_shown()[0]
    found = [replace(base, source=Span(min(span), max(span))) for span in spans]
    assert "".join(one.text for one in mark_text(TEXT, found)) == TEXT


def test_numbers_stand_inside_the_film_and_not_on_each_other() -> None:
    boxes = [(n, ShownBox(n, 0, 0.0, 0.0, 900.0, 900.0, 0.9, n == 2)) for n in (1, 2, 3)]
    film = lay_out("1.2", "/x", FilmFacts(1000, 900, 1.5, None), boxes)
    tags = [
        (one.tag_left, one.tag_top, one.tag_left + one.tag_width, one.tag_top + film.tag_size) for one in film.boxes
    ]
    assert all(left >= 0 and right <= 900.01 and top >= 0 and bottom <= 1500.01 for left, top, right, bottom in tags)
    assert film.boxes[1].tag == "2 check side"
    for first in range(3):
        for second in range(first):
            a, b = tags[first], tags[second]
            assert a[2] <= b[0] + 0.02 or b[2] <= a[0] + 0.02 or a[3] <= b[1] + 0.02 or b[3] <= a[1] + 0.02


def test_a_picture_covers_whole_blocks() -> None:
    film = lay_out("1.2", "/x", FilmFacts(4801, 3999, 1.0, None), [])
    assert film.factor == 4
    assert film.picture_size == (4000, 4804)


# ---- what is kept ----------------------------------------------------------------------------------------------------


def test_what_was_not_asked_for_longest_is_let_go() -> None:
    recent: Recent[int, str] = Recent(2)
    recent.keep(1, "one")
    recent.keep(2, "two")
    assert recent.get(1) == "one"
    recent.keep(3, "three")
    assert (recent.get(1), recent.get(2), recent.get(3)) == ("one", None, "three")
