"""Films that are stored mirrored or rotated: to the model and back, in all eight ways."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from dicom_node.orientation import UPRIGHT, Orientation, ground_stored, is_coronal, orientation_of, read_orientation
from grounding.types import Box, Image, ReportText, Span
from tests.fakes import FakeGrounder

WAYS = [Orientation(*ways) for ways in itertools.product((False, True), repeat=3)]
DIRECTIONS = {
    ("L", "F"): Orientation(),
    ("R", "F"): Orientation(mirrored=True),
    ("L", "H"): Orientation(upended=True),
    ("R", "H"): Orientation(mirrored=True, upended=True),
    ("F", "L"): Orientation(transposed=True),
    ("F", "R"): Orientation(transposed=True, mirrored=True),
    ("H", "L"): Orientation(transposed=True, upended=True),
    ("H", "R"): Orientation(transposed=True, mirrored=True, upended=True),
}
"""Patient Orientation (to where rows and columns run) and how such an image lies."""


def patient(rows: int = 40, columns: int = 30) -> Image:
    """A film as it hangs: its own number in every pixel."""
    return np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)


def store(film: Image, directions: tuple[str, str]) -> Image:
    """A film as a matrix whose rows and columns run in these directions: by where each pixel of it lies in the
    patient."""
    rows, columns = film.shape
    along = {"L": np.arange(columns), "R": np.arange(columns)[::-1], "F": np.arange(rows), "H": np.arange(rows)[::-1]}
    row, column = directions
    if row in "LR":
        return film[np.ix_(along[column], along[row])]
    return film[np.ix_(along[row], along[column])].T


@pytest.mark.parametrize("directions", DIRECTIONS)
def test_a_stored_film_is_turned_as_films_hang(directions: tuple[str, str]) -> None:
    orientation = orientation_of(directions)
    assert orientation == DIRECTIONS[directions]
    turned = orientation.turn(store(patient(), directions))
    assert np.array_equal(turned, patient()) and turned.flags.c_contiguous


@given(
    st.sampled_from(WAYS), st.integers(1, 50), st.integers(1, 50),
    st.tuples(*[st.floats(0, 1, allow_subnormal=False)] * 4),
)  # fmt: skip
def test_there_and_back_is_the_same_box(
    way: Orientation, rows: int, columns: int, corners: tuple[float, float, float, float]
) -> None:
    (x1, x2), (y1, y2) = sorted(corners[:2]), sorted(corners[2:])
    box = Box(x1 * columns, y1 * rows, x2 * columns, y2 * rows)
    back = way.to_stored(way.from_stored(box, rows, columns), rows, columns)
    assert back.xyxy == pytest.approx(box.xyxy, abs=1e-9)


@given(st.sampled_from(WAYS), st.integers(2, 40), st.integers(2, 40), st.data())
def test_a_box_holds_the_same_pixels_in_both_views(
    way: Orientation, rows: int, columns: int, data: st.DataObject
) -> None:
    x1, x2 = sorted(data.draw(st.lists(st.integers(0, columns), min_size=2, max_size=2, unique=True)))
    y1, y2 = sorted(data.draw(st.lists(st.integers(0, rows), min_size=2, max_size=2, unique=True)))
    stored = patient(rows, columns)
    x3, y3, x4, y4 = (int(edge) for edge in way.from_stored(Box(x1, y1, x2, y2), rows, columns).xyxy)
    assert sorted(way.turn(stored)[y3:y4, x3:x4].flat) == sorted(stored[y1:y2, x1:x2].flat)


@pytest.mark.parametrize(
    ("directions", "expected"),
    [
        (("L", ""), UPRIGHT),
        (("", "F"), UPRIGHT),
        (("", "H"), Orientation(upended=True)),
        (("R", ""), Orientation(mirrored=True)),
        (("", "R"), Orientation(transposed=True, mirrored=True)),
        (("LH", "FL"), UPRIGHT),
        (("RP", "F"), Orientation(mirrored=True)),
        (("", ""), UPRIGHT),
        (("L",), UPRIGHT),
        ((), UPRIGHT),
    ],
)
def test_what_is_not_told_is_as_films_hang(directions: tuple[str, ...], expected: Orientation) -> None:
    assert is_coronal(directions)
    assert orientation_of(directions) == expected


@pytest.mark.parametrize(
    "directions", [("A", "F"), ("P", "F"), ("L", "R"), ("F", "F"), ("L", "P"), ("A", ""), ("X", "F")]
)
def test_what_is_no_frontal_view_is_known(directions: tuple[str, ...]) -> None:
    assert not is_coronal(directions)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(["r", " f "], Orientation(mirrored=True)), ("LF", UPRIGHT), (None, UPRIGHT), ("", UPRIGHT), (["L"], UPRIGHT)],
)
def test_the_header_is_read(value: object, expected: Orientation) -> None:
    ds = Dataset()
    if value is not None:
        ds.PatientOrientation = value
    assert read_orientation(ds) == expected


def test_the_model_sees_films_as_they_hang_and_boxes_are_of_the_stored_matrix() -> None:
    stored, grounder = store(patient(), ("F", "R")), FakeGrounder()
    assert stored.shape == (30, 40)
    report = ReportText("Effusion.", (Span(0, 9),))
    grounding = ground_stored(grounder, [stored], [orientation_of(("F", "R"))], report)
    assert np.array_equal(grounder.seen[0], patient())
    # The lower right quarter of the film: the patient's lower left, which this matrix has at its right and top.
    assert [scored.box for scored in grounding.findings[0].boxes] == [Box(20, 0, 40, 15)]
