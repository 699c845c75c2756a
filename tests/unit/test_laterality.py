"""The side of a box against the side that its phrase names: never swapped, always said."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.laterality import contradicts
from dicom_node.orientation import Orientation
from dicom_node.results.codes import LATERALITY_CHECK
from dicom_node.results.reading import is_named
from dicom_node.results.regions import read_regions
from dicom_node.results.sr import build_sr
from dicom_node.results.sr_tree import walk_tree
from dicom_node.results.values import ResultInput, select_result_marks
from grounding.types import Box, Laterality, Site
from tests.builders import EFFUSION, MARKS, PLEURA, make_cxr_dataset, make_finding, make_result_input

LEFT_OF_PICTURE, RIGHT_OF_PICTURE = Box(0, 0, 40, 50), Box(60, 0, 100, 50)


@pytest.mark.parametrize(
    ("side", "box", "conflict"),
    [
        ("right", LEFT_OF_PICTURE, False),
        ("left", LEFT_OF_PICTURE, True),
        ("right", RIGHT_OF_PICTURE, True),
        ("left", RIGHT_OF_PICTURE, False),
        ("bilateral", LEFT_OF_PICTURE, False),
        (None, LEFT_OF_PICTURE, False),
        ("left", Box(40, 0, 51, 50), False),  # 45.5 of 100: within the dead zone
        ("left", Box(39, 0, 50, 50), True),
        ("right", Box(50, 0, 61, 50), True),
    ],
)
def test_as_films_hang_the_left_of_the_patient_is_at_the_right(
    side: Laterality | None, box: Box, conflict: bool
) -> None:
    assert contradicts(side, box, 80, 100) is conflict


@given(
    st.sampled_from([Orientation(t, m, u) for t in (False, True) for m in (False, True) for u in (False, True)]),
    st.sampled_from(["left", "right"]), st.floats(0, 90), st.floats(0, 60),
)  # fmt: skip
def test_the_side_is_that_of_the_patient_however_the_film_is_stored(
    way: Orientation, side: Laterality, x: float, y: float
) -> None:
    usual = Box(x, y, x + 10, y + 10)
    rows, columns = (100, 80) if way.transposed else (80, 100)
    assert contradicts(side, way.to_stored(usual, rows, columns), rows, columns, way) == contradicts(
        side, usual, 80, 100
    )


def opposed_input(**attributes: Any) -> ResultInput:
    finding = make_finding("Right effusion", MARKS["effusion"], finding=EFFUSION, site=Site(PLEURA, "right"))
    return make_result_input(make_cxr_dataset(**attributes), findings=[finding])


def test_a_conflict_is_said_in_the_report_and_beside_the_box() -> None:
    result = opposed_input()
    (mark,), _ = select_result_marks(result)
    assert mark.on_other_side and mark.label == "1 Pleural effusion (check side)"
    sr = build_sr(result)
    assert sr is not None
    checks = [item for item in walk_tree(sr) if is_named(item, LATERALITY_CHECK.value)]
    assert [item.ConceptCodeSequence[0].CodeMeaning for item in checks] == ["Region on other side than phrase says"]
    (region,) = read_regions(sr, str(result.images[0].SOPInstanceUID))
    assert region.label == mark.label


def test_on_a_film_stored_mirrored_the_same_box_is_on_the_side_that_is_named() -> None:
    result = opposed_input(PatientOrientation=["R", "F"])
    (mark,), _ = select_result_marks(result)
    assert not mark.on_other_side
    sr = build_sr(result)
    assert sr is not None
    assert not any(is_named(item, LATERALITY_CHECK.value) for item in walk_tree(sr))


def test_the_side_of_a_line_is_where_it_enters_and_is_not_checked() -> None:
    tip = make_finding(
        "left internal jugular catheter terminates in the SVC", (10, 20, 30, 44), site=Site(PLEURA, "left")
    )
    (mark,), _ = select_result_marks(make_result_input(findings=[tip]))
    assert not mark.on_other_side
