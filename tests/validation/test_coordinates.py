"""Boxes through the whole chain: stored film, model, back, SR and presentation state, and the pictures of them."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from random import Random

import highdicom as hd
import numpy as np
import pytest
from PIL import Image as PilImage

from dicom_node.orientation import ground_stored, read_orientation
from dicom_node.pixels import render
from dicom_node.report import read_report
from dicom_node.results.canvas import fit_scale
from dicom_node.results.gsps import build_gsps
from dicom_node.results.reading import read_boxes
from dicom_node.results.rendering import draw_presentation_state, draw_report
from dicom_node.results.sr import build_sr
from dicom_node.results.values import SR_SOP_CLASSES, ResultInput
from grounding.processor import Processor
from grounding.types import Box
from tests.builders import CREATED_AT, decode, encode, make_report_dataset
from tests.pictures import read_box
from tests.validation.conftest import MOST, SUM
from tests.validation.films import Film, draw_film, make_film
from tests.validation.sight import SightedGrounder, load_model

TOLERANCE = 0.5
"""Stored pixels."""


def make_processor(dice: Random) -> Processor:
    """Return the shipped model's processor with another canvas, frame and number of views."""
    shipped = load_model()._processor
    frame = shipped.config.frame.model_copy(
        update={"canvas": dice.choice((224, 448, 1024)), "mode": dice.choice(("fill", "letterbox"))}
    )
    decision = shipped.config.decision.model_copy(update={"views": dice.choice((1, 2, 6)), "calibration": ()})
    config = shipped.config.model_copy(update={"frame": frame, "decision": decision})
    return Processor(config, shipped.tokens, shipped.bank)


def ground(film: Film, number: int, grounder: SightedGrounder) -> ResultInput:
    """Return what is found in a film that was sent, received and decoded."""
    image = decode(encode(make_film(film, str(number))))
    header = make_report_dataset("White marker.", study=str(number), image=image)
    report = read_report(header)
    grounding = ground_stored(grounder, [render(image)], [read_orientation(image)], report.to_report_text())
    return ResultInput((image,), header, report, grounding, CREATED_AT)


def error(box: Box, film: Film) -> float:
    """Return the largest distance of an edge from the marker's, in stored pixels."""
    return float(np.abs(np.subtract(box.xyxy, film.marker)).max())


def written_boxes(result: ResultInput) -> list[Box]:
    """Return the box as SR of both classes and the presentation state have it, and as highdicom reads it."""
    boxes = []
    for sr_class in SR_SOP_CLASSES:
        sr = build_sr(replace(result, sr_class=sr_class))
        assert sr is not None
        content = encode(sr)
        (read,) = read_boxes(decode(content))
        boxes.append(read.box)
        (group,) = hd.sr.srread(BytesIO(content)).content.get_planar_roi_measurement_groups()
        corners = group.roi.value
        boxes.append(Box(*(float(v) for v in (*corners.min(axis=0), *corners.max(axis=0)))))
    state = build_gsps(result, 0)
    assert state is not None
    (read,) = read_boxes(decode(encode(state)))
    return [*boxes, read.box]


def drawn_errors(result: ResultInput, film: Film) -> list[float]:
    """Return how far the boxes in the pictures of SR and presentation state are off, in stored pixels."""
    image = decode(encode(result.images[0]))
    sr, state = build_sr(result), build_gsps(result, 0)
    assert sr is not None and state is not None
    page = draw_report(decode(encode(sr)), image)
    scale = fit_scale(film.rows, film.columns)  # beside the image stands what the report says
    page = page.crop((0, 0, round(film.columns * scale), round(film.rows * scale)))
    pictures = page, draw_presentation_state(decode(encode(state)), image)
    return [_drawn_error(picture, film) for picture in pictures]


def _drawn_error(picture: PilImage.Image, film: Film) -> float:
    """Return the largest distance of a drawn edge from the marker's, in stored pixels.

    Edges on the border are left out: half of their stroke is outside the picture.
    """
    scale = np.array([picture.width / film.columns, picture.height / film.rows] * 2)
    distances = np.abs(np.array(read_box(picture, film.marker * scale)) / scale - film.marker)
    is_inside = np.not_equal(film.marker, (0, 0, film.columns, film.rows))
    return float(distances[is_inside].max())


@pytest.mark.timeout(900)
def test_boxes_come_through_to_half_a_stored_pixel(seeds, record_property):
    written, drawn = 0.0, 0.0
    for number in seeds:
        dice = Random(number)
        grounder = SightedGrounder(make_processor(dice))
        film = draw_film(number, touches=len(grounder.processor.views) == 1)
        result = ground(film, number, grounder)
        written = max(written, *(error(box, film) for box in written_boxes(result)))
        drawn = max(drawn, *drawn_errors(result, film))
    record_property(f"{MOST}: error of a written box in stored pixels", written)
    record_property(f"{MOST}: error of a drawn box in stored pixels", drawn)
    record_property(f"{SUM}: films taken through the whole chain", len(seeds))
    assert written <= TOLERANCE
    assert drawn <= TOLERANCE
