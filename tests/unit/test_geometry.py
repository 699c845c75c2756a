"""Coordinates: the way to the model and back, inside the image, for every size."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from grounding.geometry import Frame, box_map, iou, resize, stretch_contrast
from grounding.types import Box

sizes = st.integers(1, 5000)
modes = st.sampled_from(["fill", "letterbox"])
shares = st.floats(0, 1)


@st.composite
def framed_boxes(draw: st.DrawFn) -> tuple[Frame, Box]:
    frame = Frame(draw(sizes), draw(sizes), draw(st.sampled_from([64, 224, 1024])), draw(modes))
    x1, x2 = sorted((draw(shares) * frame.width, draw(shares) * frame.width))
    y1, y2 = sorted((draw(shares) * frame.height, draw(shares) * frame.height))
    return frame, Box(x1, y1, x2, y2)


@given(framed_boxes())
def test_to_the_model_and_back_is_the_same_box(framed: tuple[Frame, Box]) -> None:
    frame, box = framed
    back = frame.to_image(frame.to_model(box))
    extent = max(frame.width, frame.height)
    assert all(math.isclose(a, b, abs_tol=1e-4 + 1e-9 * extent) for a, b in zip(box.xyxy, back.xyxy, strict=True))


@given(framed_boxes())
def test_model_boxes_lie_on_the_canvas(framed: tuple[Frame, Box]) -> None:
    cx, cy, w, h = framed[0].to_model(framed[1])
    assert cx - w / 2 >= -1e-9 and cx + w / 2 <= 1 + 1e-9 and cy - h / 2 >= -1e-9 and cy + h / 2 <= 1 + 1e-9


@given(sizes, sizes, modes, st.lists(st.floats(-3, 3), min_size=4, max_size=4))
def test_whatever_the_model_says_the_box_is_in_the_image_and_in_order(
    height: int, width: int, mode: str, values: list[float]
) -> None:
    box = Frame(height, width, 224, mode).to_image(values)  # type: ignore[arg-type]
    assert 0 <= box.x1 <= box.x2 <= width and 0 <= box.y1 <= box.y2 <= height


def test_both_modes_mean_the_same_image_pixels() -> None:
    box = Box(100, 20, 300, 80)
    fill, letterbox = Frame(200, 400, 224), Frame(200, 400, 224, "letterbox")
    assert fill.to_model(box) == pytest.approx((0.5, 0.25, 0.5, 0.3))
    assert letterbox.to_model(box) == pytest.approx((0.5, 0.375, 0.5, 0.15))


@given(sizes, sizes)
def test_a_letterbox_keeps_the_aspect_ratio(height: int, width: int) -> None:
    left, top, w, h = Frame(height, width, 256, "letterbox").content
    assert max(w, h) == 256 and left >= 0 and top >= 0 and left + w <= 256 and top + h <= 256
    assert abs(w - width * 256 / max(height, width)) <= 1 and abs(h - height * 256 / max(height, width)) <= 1


@pytest.mark.parametrize("mode", ["fill", "letterbox"])
def test_what_is_drawn_is_where_the_box_says(mode: str) -> None:
    image = np.zeros((120, 300), np.float32)
    image[30:60, 100:200] = 1
    frame = Frame(120, 300, 96, mode)  # type: ignore[arg-type]
    drawn = frame.draw(image)
    assert drawn.shape == (96, 96) and drawn.dtype == np.float32
    rows, columns = np.nonzero(drawn > 0.5)
    cx, cy, w, h = (v * 96 for v in frame.to_model(Box(100, 30, 200, 60)))
    assert abs(columns.min() - (cx - w / 2)) <= 1 and abs(columns.max() + 1 - (cx + w / 2)) <= 1
    assert abs(rows.min() - (cy - h / 2)) <= 1 and abs(rows.max() + 1 - (cy + h / 2)) <= 1


def test_a_frame_needs_a_pixel() -> None:
    with pytest.raises(ValueError, match="at least one pixel"):
        Frame(0, 10, 224)


def test_contrast_is_stretched_to_the_whole_range_and_a_constant_image_is_black() -> None:
    image = np.linspace(0.4, 0.5, 10_000, dtype=np.float32).reshape(100, 100)
    stretched = stretch_contrast(image)
    assert stretched.min() == 0 and stretched.max() == 1 and stretched.dtype == np.float32
    assert not stretch_contrast(np.full((5, 5), 0.7, np.float32)).any()


def test_resizing_to_the_same_size_changes_nothing() -> None:
    image = np.random.default_rng(0).random((7, 9), np.float32)
    assert resize(image, 7, 9) is image
    assert resize(image, 14, 18).shape == (14, 18)


def test_iou_of_known_boxes() -> None:
    assert iou(Box(0, 0, 2, 2), Box(1, 0, 3, 2)) == pytest.approx(1 / 3)
    assert iou(Box(0, 0, 1, 1), Box(2, 2, 3, 3)) == 0
    assert iou(Box(1, 1, 1, 1), Box(1, 1, 1, 1)) == 0


def test_a_prior_map_is_one_in_its_box_and_small_far_away() -> None:
    prior = box_map([(0.25, 0.25, 0.75, 0.75)], 16, 0.03)
    assert prior.max() == 1 and prior[8, 8] > 0.99 and prior[0, 0] < 1e-3
    assert not box_map([], 8, 0.03).any()
