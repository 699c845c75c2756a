"""The picture: boxes where they were found, labels and legend that can be read at any size."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dicom_node.orientation import Orientation
from dicom_node.pixels import render
from dicom_node.results.overlay import draw_overlay
from grounding.types import Site
from tests.builders import MARKS, PLEURA, make_cxr_dataset, make_finding, make_findings

GREY = np.full((140, 96), 0.4, np.float32)


def to_array(picture: Image.Image) -> NDArray[np.int16]:
    return np.asarray(picture.convert("RGB"), np.int16)


def find_coloured(pixels: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Return where a picture is not grey."""
    return np.ptp(pixels, axis=2) > 40


def test_box_is_drawn_where_it_was_found():
    box = (20.0, 30.0, 60.0, 90.0)
    picture = to_array(draw_overlay(GREY, [make_finding("x", box)]))
    scale = picture.shape[0] / 140
    rows, columns = np.nonzero(find_coloured(picture[:, : round(96 * scale)]))
    left, top, right, bottom = (value * scale for value in box)
    half = 2  # of the stroke, whose middle is the edge of the box
    assert columns.min() == pytest.approx(left - half, abs=1)
    assert columns.max() >= right
    assert rows.max() + 1 == pytest.approx(bottom + half, abs=1)
    inside = picture[round(top) + 15 : round(bottom) - 15, round(left) + 15 : round(right) - 15]
    assert not find_coloured(inside).any()


@pytest.mark.parametrize("rows", [40, 400, 1000, 3000, 6000])
def test_picture_is_legible_at_any_size(rows):
    image = np.full((rows, rows * 4 // 5), 0.3, np.float32)
    picture = draw_overlay(image, [make_finding("Left effusion", (2, 3, rows / 3, rows / 2))])
    assert picture.mode == "RGB"
    assert 900 <= picture.height <= 3300
    assert picture.width > picture.height * 4 // 5


@pytest.mark.parametrize("shape", [(2, 3000), (3000, 2), (1, 1)])
def test_strange_shapes_are_drawn(shape):
    picture = draw_overlay(np.zeros(shape, np.float32), [make_finding("x" * 400, (0, 0, shape[1], shape[0]))])
    assert max(picture.size) < 6000


def test_legend_names_everything_that_was_not_localized():
    """Each further phrase makes the legend longer: nothing is left out of it."""
    several = [make_finding(f"phrase number {n}") for n in range(60)]
    heights = [draw_overlay(GREY, several[:n]).height for n in (1, 45, 60)]
    assert heights[0] < heights[1] < heights[2]


def test_note_is_always_there():
    picture = to_array(draw_overlay(GREY, []))
    reddish = (picture[..., 0] - picture[..., 1] > 60).sum()
    assert reddish > 100


def test_boxes_of_another_image_are_not_drawn():
    findings = [make_finding("x", (20, 30, 60, 90), image=1)]
    assert not find_coloured(to_array(draw_overlay(GREY, findings))[:, :600]).any()
    assert find_coloured(to_array(draw_overlay(GREY, findings, image_index=1))[:, :600]).any()


def test_boxes_below_the_threshold_are_not_drawn():
    findings = [make_finding("x", (20, 30, 60, 90), score=0.2)]
    assert not find_coloured(to_array(draw_overlay(GREY, findings, min_confidence=0.5))[:, :600]).any()


def test_same_input_gives_the_same_picture():
    image = render(make_cxr_dataset())
    first, second = (draw_overlay(image, make_findings()).tobytes() for _ in range(2))
    assert first == second


def test_image_itself_is_shown():
    picture = to_array(draw_overlay(render(make_cxr_dataset()), []))
    scale = picture.shape[0] / 140
    column0, row0, column1, row1 = (round(value * scale) for value in MARKS["effusion"])
    assert picture[row0 + 8 : row1 - 8, column0 + 8 : column1 - 8].min() > 240


@pytest.mark.parametrize("phrase", ["左胸水貯留を認める", "a\nb\tc", "", "word " * 100])
def test_any_phrase_is_drawn(phrase):
    assert draw_overlay(GREY, [make_finding(phrase, (1, 2, 90, 100)), make_finding(phrase + "x")]).height >= 900


def test_the_side_is_judged_by_how_the_film_is_stored():
    sided, unsided = (
        make_finding("Left effusion", (5.0, 30.0, 30.0, 90.0), site=site) for site in (Site(PLEURA, "left"), None)
    )
    plain = to_array(draw_overlay(GREY, [unsided]))
    assert np.array_equal(to_array(draw_overlay(GREY, [sided], orientation=Orientation(mirrored=True))), plain)
    assert not np.array_equal(to_array(draw_overlay(GREY, [sided])), plain)  # "(check side)"
