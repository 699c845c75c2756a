"""Random changes of training pictures: boxes go where the pixels go, and values stay in range."""

from __future__ import annotations

import numpy as np
import pytest

from grounding.training.augment import Affine, AffineRange, draw_affine, vary_exposure

BOX = (0.4, 0.55, 0.2, 0.3)


def picture() -> np.ndarray:
    image = np.zeros((200, 200), np.float32)
    image[80:140, 60:100] = 1  # BOX
    return image


@pytest.mark.parametrize(
    "move",
    [
        Affine(1.0, 1.0, 0.0, 0.0, 0.0, False),
        Affine(1.2, 0.9, 0.05, -0.1, 0.0, False),
        Affine(1.0, 1.0, 0.0, 0.0, 0.0, True),
        Affine(0.8, 1.1, -0.07, 0.03, 0.0, True),
        Affine(1.0, 1.0, 0.02, 0.02, 0.12, False),
        Affine(1.1, 0.9, 0.0, 0.0, -0.12, True),
    ],
)
def test_the_box_goes_where_the_pixels_go(move: Affine) -> None:
    moved = move.draw(picture(), 100)
    rows, columns = np.nonzero(moved > 0.5)
    cx, cy, w, h = move.box(BOX)
    tolerance = 0.02 + abs(move.radians) * 0.2
    assert (columns.min() + columns.max() + 1) / 200 == pytest.approx(cx, abs=0.02)
    assert (rows.min() + rows.max() + 1) / 200 == pytest.approx(cy, abs=0.02)
    assert (columns.max() + 1 - columns.min()) / 100 == pytest.approx(w, abs=tolerance)
    assert (rows.max() + 1 - rows.min()) / 100 == pytest.approx(h, abs=tolerance)


def test_a_random_move_keeps_every_box_in_the_picture() -> None:
    boxes = [BOX, (0.05, 0.05, 0.1, 0.1), (0.9, 0.9, 0.2, 0.2)]
    for seed in range(50):
        rng = np.random.default_rng(seed)
        move = draw_affine(rng, AffineRange(0.2, 0.1, 8), boxes, mirrored=bool(seed % 2))
        for box in boxes:
            cx, cy, w, h = move.box(box)
            assert w * h >= 0.69 * box[2] * box[3] * move.scale_x * move.scale_y
            assert (
                cx - w / 2 + 1e-9 >= 0 and cx + w / 2 <= 1 + 1e-9 and cy - h / 2 + 1e-9 >= 0 and cy + h / 2 <= 1 + 1e-9
            )


def test_exposure_keeps_shape_type_and_range() -> None:
    for seed in range(20):
        out = vary_exposure(np.random.default_rng(seed), picture(), 1.0)
        assert out.shape == (200, 200) and out.dtype == np.float32 and out.min() >= 0 and out.max() <= 1
