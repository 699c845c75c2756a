"""Findings painted into films: they lie where their boxes say, in the lungs of the film, and the film stays itself."""

from __future__ import annotations

import numpy as np

from grounding.phantoms.insertion import Lungs, insert_findings
from grounding.phantoms.study import PhantomStudy, make_study
from grounding.types import Box

SIZE = 160


def make_film(seed: int) -> tuple[np.ndarray, Lungs]:
    """A generated film stands for a real one: its picture, and the boxes of its lungs."""
    study = make_study(seed, SIZE)
    anatomy = dict(study.anatomy)
    return study.image, Lungs(anatomy["right lung"], anatomy["left lung"])


def painted(count: int, *, clear: bool = True) -> list[tuple[np.ndarray, PhantomStudy]]:
    films = [(seed, *make_film(seed)) for seed in range(count)]
    found = [(film, insert_findings(np.random.default_rng(s), film, lungs, clear=clear)) for s, film, lungs in films]
    return [(film, study) for film, study in found if study is not None]


def test_the_same_seed_paints_the_same() -> None:
    film, lungs = make_film(1)
    first, second = (insert_findings(np.random.default_rng(4), film, lungs, clear=True) for _ in range(2))
    assert first is not None and second is not None
    np.testing.assert_array_equal(first.image, second.image)
    assert first.phrases == second.phrases


def test_every_box_lies_on_pixels_that_were_changed_and_the_rest_is_left_alone() -> None:
    studies = painted(25)
    assert len(studies) > 15
    for film, study in studies:
        change = np.abs(study.image - film)
        rest = np.ones(change.shape, dtype=bool)
        inside = []
        for box in (box for phrase in study.phrases for box in phrase.boxes):
            rows, columns = slice(int(box.y1), int(np.ceil(box.y2))), slice(int(box.x1), int(np.ceil(box.x2)))
            inside.append(change[rows, columns].mean())
            rest[rows, columns] = False
        assert inside and min(inside) > 0.002  # a thin tube fills little of its box
        assert change[rest].mean() < 0.002


def test_shadows_of_the_air_spaces_are_painted_into_clear_lungs_only() -> None:
    labels = {phrase.label for _, study in painted(40, clear=False) for phrase in study.phrases if phrase.boxes}
    assert "consolidation" not in labels and {"nodule", "central_line"} <= labels


def test_phrases_stand_in_the_report() -> None:
    for _, study in painted(10):
        for phrase in study.phrases:
            assert study.report.text[phrase.source.start : phrase.source.end] == phrase.phrase


def test_lungs_that_lie_apart_are_followed() -> None:
    film = np.full((SIZE, SIZE), 0.3, dtype=np.float32)
    lungs = Lungs(Box(10, 20, 60, 120), Box(100, 20, 150, 120))
    for seed in range(12):
        study = insert_findings(np.random.default_rng(seed), film, lungs, clear=True)
        for phrase in study.phrases if study else ():
            if phrase.label in ("nodule", "mass", "atelectasis"):
                for box in phrase.boxes:
                    assert box.x1 >= 5 and box.x2 <= 155 and box.y1 >= 12 and box.y2 <= 128
