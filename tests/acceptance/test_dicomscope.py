"""The presentation state in DICOMscope, beside the picture that the node's own renderer draws of it."""

from __future__ import annotations

import numpy as np
import pytest

from dicom_node.results.gsps import build_gsps
from dicom_node.results.rendering import draw_presentation_state
from tests.acceptance.dicomscope import draw
from tests.builders import make_cxr_dataset, make_finding, make_result_input, write
from tests.pictures import find_box, read_box

ROWS, COLUMNS = 1000, 800
BOXES = ((100.0, 150.0, 360.0, 330.0), (420.0, 500.0, 710.0, 880.0))
TOLERANCE = 2.0
"""Pixels. DICOMscope 3.6 takes 1 off every coordinate of a graphic twice, so that it draws exactly 2 image pixels too
far left and up (PS3.3 C.10.5 takes the corner of the first pixel as 0, 0, and so does the node)."""


@pytest.mark.timeout(300)
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_dicomscope_draws_the_boxes_and_the_grey_of_our_renderer(photometric, tmp_path):
    row, column = np.mgrid[0:ROWS, 0:COLUMNS]
    stored = (200 + 2800 * (row / ROWS + column / COLUMNS) / 2).astype(np.uint16)  # nothing is white but what is drawn
    pixels = 4095 - stored if photometric == "MONOCHROME1" else stored
    image = make_cxr_dataset(photometric=photometric, pixels=pixels)
    result = make_result_input(image, findings=[make_finding("Left effusion", box) for box in BOXES])
    state = build_gsps(result, 0)
    assert state is not None

    paths = write(image, tmp_path / "image.dcm"), write(state, tmp_path / "state.dcm")
    theirs = draw(*paths, tmp_path / "dicomscope.png").astype(float)
    ours = draw_presentation_state(state, image)
    assert (ours.width, ours.height) == (COLUMNS, ROWS)

    white = (theirs == 255).all(axis=2) * 255.0
    for box in BOXES:
        difference = np.subtract(find_box(white, np.subtract(box, 2)), read_box(ours, box))
        assert np.abs(difference).max() <= TOLERANCE + 0.01, difference
    is_plain = (np.ptp(np.asarray(ours, float), axis=2) == 0) & (white == 0)
    difference = np.abs(theirs[..., 0] - np.asarray(ours, float)[..., 0])[is_plain]
    assert np.percentile(difference, 95) <= 1.0  # the rest is the soft edge of its letters
    assert is_plain.mean() > 0.9
