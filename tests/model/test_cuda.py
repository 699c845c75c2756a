"""The shipped model on a GPU, where there is one: what it tells there is what it tells on a processor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from grounding.checkpoint import load_predictor
from grounding.frugal import FrugalGrounder
from grounding.phantoms.study import make_study
from grounding.predictor import Predictor
from grounding.types import Finding, Grounding, Image, ReportText

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

CORNER = 1.5
"""Pixels of 1024 that corners may differ by: matrix units of a GPU round otherwise than a processor."""

SCORE = 0.01

STUDIES = 24


@pytest.fixture(scope="module")
def on_gpu() -> Predictor:
    return load_predictor("default", "cuda")


@pytest.fixture(scope="module")
def given() -> list[tuple[Sequence[Image], ReportText]]:
    studies = [make_study(7_000 + seed, 1024) for seed in range(STUDIES)]
    return [([study.image], study.report) for study in studies]


def findings(told: Sequence[Grounding]) -> list[Finding]:
    return [finding for one in told for finding in one.findings]


def hold_the_same(one: Sequence[Grounding], other: Sequence[Grounding], corner: float, score: float) -> None:
    """Phrases and their boxes are the same, up to rounding."""
    assert [f.phrase for f in findings(one)] == [f.phrase for f in findings(other)]
    assert [f.negated for f in findings(one)] == [f.negated for f in findings(other)]
    for a, b in zip(findings(one), findings(other), strict=True):
        assert len(a.boxes) == len(b.boxes)
        for mine, yours in zip(a.boxes, b.boxes, strict=True):
            assert mine.box.xyxy == pytest.approx(yours.box.xyxy, abs=corner)
            assert mine.score == pytest.approx(yours.score, abs=score)


def test_auto_takes_the_gpu() -> None:
    assert load_predictor("default", "auto").device.type == "cuda"


def test_a_gpu_tells_what_a_processor_tells(on_gpu: Predictor, given: list) -> None:
    told = on_gpu.ground_many(given)
    assert sum(len(f.boxes) for f in findings(told)) > STUDIES
    hold_the_same(told, load_predictor("default", "cpu").ground_many(given), CORNER, SCORE)


def test_a_batch_tells_what_each_study_gets_alone(on_gpu: Predictor, given: list) -> None:
    hold_the_same(on_gpu.ground_many(given), [on_gpu.ground(*study) for study in given], CORNER, SCORE)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """The process may use little more of the GPU than it holds already."""
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 8 * 2**20) / total)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


@pytest.mark.usefixtures("little_memory")
def test_a_study_that_does_not_fit_on_the_gpu_is_grounded_on_the_processor(on_gpu: Predictor, given: list) -> None:
    steps: list[str] = []
    told = FrugalGrounder(on_gpu, steps.append).ground(*given[0])
    assert "small batches" in steps
    hold_the_same([told], load_predictor("default", "cpu").ground_many(given[:1]), CORNER, SCORE)
