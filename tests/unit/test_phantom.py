"""Generated radiographs: pure functions of the seed, boxes that fit what is drawn, findings of every kind."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grounding.phantoms.lesions import DEVICE_LABELS, LABELS, Lesion
from grounding.phantoms.study import PhantomStudy, contact_sheet, draw, make_study
from grounding.types import Box

SHAPE = (160, 160)


@pytest.fixture(scope="module")
def studies() -> list[PhantomStudy]:
    return [make_study(seed, 96) for seed in range(300)]


@pytest.mark.parametrize("seed", [0, 7, 123456])
def test_study_is_the_same_for_the_same_seed(seed: int) -> None:
    first, second = make_study(seed, 96), make_study(seed, 96)
    np.testing.assert_array_equal(first.image, second.image)
    assert (first.report, first.phrases, first.sections) == (second.report, second.phrases, second.sections)


def test_studies_of_other_seeds_differ() -> None:
    assert not np.array_equal(make_study(1, 96).image, make_study(2, 96).image)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), rows=st.integers(64, 200), columns=st.integers(64, 200))
def test_any_seed_and_shape_gives_a_valid_study(seed: int, rows: int, columns: int) -> None:
    study = make_study(seed, shape=(rows, columns))
    assert study.image.shape == (rows, columns)
    assert study.image.dtype == np.float32
    assert 0.0 <= study.image.min() < study.image.max() <= 1.0
    for phrase in study.phrases:
        for box in phrase.boxes:
            assert 0 <= box.x1 < box.x2 <= columns
            assert 0 <= box.y1 < box.y2 <= rows


def test_words_do_not_change_with_the_number_of_pixels() -> None:
    labels = [[phrase.label for phrase in make_study(seed, size).phrases] for seed in range(30) for size in (128, 256)]
    same = sum(small == large for small, large in zip(labels[::2], labels[1::2], strict=True))
    assert same >= 24  # a finding at the edge of being visible may be dropped at one size and kept at the other


def test_boxes_scale_with_the_image() -> None:
    """Seed 1 at two sizes: the same finding lies in the same place of the film."""
    (small,), (large,) = (
        [lesion.boxes[0] for lesion in draw(1, (side, side)).lesions if lesion.label == "cardiomegaly"]
        for side in (128, 512)
    )
    np.testing.assert_allclose(np.array(large.xyxy), 4 * np.array(small.xyxy), atol=8)


def drawn_lesions(count: int) -> list[tuple[int, Lesion]]:
    return [(seed, lesion) for seed in range(count) for lesion in draw(seed, SHAPE).lesions]


def change(seed: int, box: Box) -> tuple[float, float]:
    """Mean grey-level change that the findings of `seed` cause inside `box`, and outside all boxes."""
    picture = draw(seed, SHAPE)
    healthy = draw(seed, SHAPE, with_findings=False)
    assert healthy.lesions == []
    difference = np.abs(picture.image - healthy.image)
    rest = np.ones(SHAPE, dtype=bool)
    for other in (other for lesion in picture.lesions for other in lesion.boxes):
        rest[int(other.y1) : int(np.ceil(other.y2)), int(other.x1) : int(np.ceil(other.x2))] = False
    inside = difference[int(box.y1) : int(np.ceil(box.y2)), int(box.x1) : int(np.ceil(box.x2))]
    return float(inside.mean()), float(difference[rest].mean())


def test_every_box_lies_on_pixels_that_its_finding_changed() -> None:
    checked: Counter[str] = Counter()
    for seed, lesion in drawn_lesions(60):
        if lesion.label == "cardiomegaly":  # the heart's width is anatomy, see the next test
            continue
        for box in lesion.boxes:
            inside, outside = change(seed, box)
            assert inside > 0.004, (seed, lesion.label)
            assert inside > 3 * outside, (seed, lesion.label)
            checked[lesion.label] += 1
    assert len(checked) >= 10


def test_box_of_a_large_heart_is_wide_and_of_its_own_grey() -> None:
    """The heart is at least half as wide as the chest, and brighter than the lungs beside it."""
    hearts = [(seed, lesion) for seed, lesion in drawn_lesions(60) if lesion.label == "cardiomegaly"]
    assert len(hearts) >= 5
    for _, lesion in hearts:
        box = lesion.boxes[0]
        assert box.x2 - box.x1 > 0.33 * SHAPE[1]


def test_boxes_are_tight() -> None:
    """A margin of pixels around the box of a lone finding is untouched: no smaller than what is seen, no larger."""
    checked = 0
    for seed in range(150):
        picture = draw(seed, SHAPE)
        if [lesion.label for lesion in picture.lesions] not in (["nodule"], ["mass"]):
            continue
        changed = np.abs(picture.image - draw(seed, SHAPE, with_findings=False).image) > 0.05
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(picture.lesions[0].boxes[0].xyxy, seen, atol=6)
        checked += 1
    assert checked >= 3


def test_every_kind_of_finding_and_device_occurs(studies: list[PhantomStudy]) -> None:
    labels = {phrase.label for study in studies for phrase in study.phrases if phrase.present}
    assert labels == set(LABELS)
    assert len(labels - set(DEVICE_LABELS)) >= 8


def test_shares_of_normal_several_absent_and_negated(studies: list[PhantomStudy]) -> None:
    findings = [
        len({p.label for p in study.phrases if p.present and p.label not in DEVICE_LABELS}) for study in studies
    ]
    assert 0.10 < np.mean([count == 0 for count in findings]) < 0.30
    assert np.mean([count >= 2 for count in findings]) > 0.25
    asserted = [p for study in studies for p in study.phrases if not p.negated]
    assert 0.015 < np.mean([not p.present for p in asserted]) < 0.07
    negated = [p for study in studies for p in study.phrases if p.negated]
    assert len(negated) > 0.2 * len(asserted)
    assert not any(p.boxes or p.present for p in negated)


def test_words_of_side_are_true(studies: list[PhantomStudy]) -> None:
    """A phrase that says left has its box on the patient's left: the right half of the lungs in the picture."""
    lung = set(LABELS) - set(DEVICE_LABELS) - {"cardiomegaly"}
    sided: dict[str, list[float]] = {"left": [], "right": []}
    for phrase in (p for study in studies for p in study.phrases if p.label in lung and p.present):
        for side, centres in sided.items():
            if side in phrase.phrase.lower().replace("-", " ").split():
                centres += [(box.x1 + box.x2) / 2 / 96 for box in phrase.boxes]
    assert len(sided["left"]) > 30
    assert len(sided["right"]) > 30
    assert max(sided["right"]) < 0.6
    assert min(sided["left"]) > 0.4
    assert np.mean(sided["left"]) - np.mean(sided["right"]) > 0.3


def test_negated_labels_are_not_drawn(studies: list[PhantomStudy]) -> None:
    for study in studies:
        asserted = {phrase.label for phrase in study.phrases if not phrase.negated}
        assert not asserted & {phrase.label for phrase in study.phrases if phrase.negated}


def test_contact_sheet_shows_the_boxes() -> None:
    sheet = np.asarray(contact_sheet(range(1, 3), 96, columns=2))
    assert sheet.shape == (96, 192, 3)
    box = next(p.boxes[0] for p in make_study(1, 96).phrases if p.present)
    assert tuple(sheet[int(box.y1), int((box.x1 + box.x2) / 2)]) == (255, 220, 0)
