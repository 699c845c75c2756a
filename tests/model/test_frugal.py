"""Memory that runs out: smaller batches, then the processor, then the study is named. Bugs are not mistaken for it."""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
import pytest
import torch

from grounding.frugal import FrugalGrounder, is_out_of_memory
from grounding.predictor import SMALLEST, Predictor
from grounding.types import DeviceLostError, OutOfMemoryError, ReportText, Span
from tests.model.networks import computing_in_double, make_predictor, tiny_image

TEXT = "There is a small left effusion. The heart is enlarged."
REPORT = ReportText(TEXT, (Span(0, 31), Span(32, 54)))

CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
HOST = RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried")


class ShortOfMemory(Predictor):
    """A predictor whose memory runs out: `fits` tells whether it does not. `where` stands for its device."""

    def set_up(self, error: Exception, fits: Any, where: str) -> ShortOfMemory:
        self.error, self.fits, self.where = error, fits, where
        return self

    def ground_prepared(self, studies: Any) -> Any:
        if not self.fits(self):
            raise self.error
        return super().ground_prepared(studies)

    def on_cpu(self) -> Predictor:
        twin = copy(self)
        twin.where, twin._batches = "cpu", SMALLEST
        return twin


class Grounder(FrugalGrounder):
    """Asks a predictor that has no GPU as if it had the one it says."""

    @property
    def device(self) -> torch.device:
        return torch.device(self._predictor.where)


def make(error: Exception, fits: Any, device: str = "cpu") -> tuple[FrugalGrounder, list[str]]:
    predictor = make_predictor()
    predictor.__class__ = ShortOfMemory
    assert isinstance(predictor, ShortOfMemory)
    told: list[str] = []
    return Grounder(predictor.set_up(error, fits, device), told.append), told


@pytest.mark.parametrize("error", [CUDA, HOST, MemoryError()])
def test_smaller_batches_are_tried_first(error: Exception) -> None:
    grounder, told = make(error, lambda predictor: predictor._batches == SMALLEST, "cuda")
    assert grounder.ground([tiny_image()], REPORT).model == grounder.identity
    assert told == ["small batches"]


def test_then_the_processor() -> None:
    grounder, told = make(CUDA, lambda predictor: predictor.where == "cpu", "cuda")
    grounder.ground([tiny_image()], REPORT)
    assert told == ["small batches", "processor"]


def test_then_the_study_is_named() -> None:
    grounder, _ = make(HOST, lambda predictor: False)
    with pytest.raises(OutOfMemoryError, match=r"images of \d+ x \d+; 2 sentences"):
        grounder.ground([tiny_image()], REPORT)


def test_a_bug_is_no_want_of_memory() -> None:
    grounder, told = make(RuntimeError("shapes cannot be multiplied"), lambda predictor: False)
    with pytest.raises(RuntimeError, match="multiplied"):
        grounder.ground([tiny_image()], REPORT)
    assert told == [] and not is_out_of_memory(ValueError("out of memory"))


def test_small_batches_and_a_copy_on_the_processor_say_the_same() -> None:
    predictor = make_predictor()
    with computing_in_double(predictor):
        whole = predictor.ground([tiny_image(), tiny_image(seed=1)], REPORT)
        small = predictor.in_small_batches().ground([tiny_image(), tiny_image(seed=1)], REPORT)
        copied = predictor.on_cpu().ground([tiny_image(), tiny_image(seed=1)], REPORT)
    for other in (small, copied):
        assert [one.phrase for one in other.findings] == [one.phrase for one in whole.findings]
        for one, same in zip(other.findings, whole.findings, strict=True):
            assert len(one.boxes) == len(same.boxes)
            for box, twin in zip(one.boxes, same.boxes, strict=True):
                assert box.box.xyxy == pytest.approx(twin.box.xyxy, abs=1e-6)


def test_a_copy_on_the_processor_takes_no_memory_where_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a GPU is full, weights that were first copied there would find no place."""
    predictor = make_predictor()

    def is_full(tensor: torch.Tensor, memo: dict[int, Any]) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.Tensor, "__deepcopy__", is_full)
    monkeypatch.setattr(torch.nn.Parameter, "__deepcopy__", is_full)
    copied = predictor.on_cpu()
    own = {tensor.data_ptr() for tensor in predictor._network.parameters()}
    assert not own & {tensor.data_ptr() for tensor in copied._network.parameters()}
    assert copied.ground([tiny_image()], REPORT).model == predictor.identity


def test_studies_that_do_not_fit_together_are_asked_for_one_by_one_and_each_is_tried_with_less() -> None:
    grounder, told = make(CUDA, lambda predictor: predictor._batches == SMALLEST, "cuda")
    studies = [grounder.prepare([tiny_image(seed=seed)], REPORT) for seed in range(2)]
    with pytest.raises(OutOfMemoryError, match="2 studies do not fit into memory together"):
        grounder.ground_prepared(studies)
    assert told == ["one by one"]
    assert [grounder.ground_prepared([study])[0].model for study in studies] == [grounder.identity] * 2
    assert told == ["one by one", "small batches", "small batches"]


def test_studies_that_fit_are_grounded_together() -> None:
    grounder, told = make(CUDA, lambda predictor: True)
    studies = [grounder.prepare([tiny_image(seed=seed)], REPORT) for seed in range(2)]
    assert len(grounder.ground_prepared(studies)) == 2
    assert told == []


def test_a_study_that_cannot_even_be_prepared_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    grounder, _ = make(HOST, lambda predictor: True)

    def run_short(image: object) -> None:
        raise MemoryError

    monkeypatch.setattr(grounder._predictor._processor, "pixels", run_short)
    with pytest.raises(OutOfMemoryError, match=r"images of 64 x 64; 2 sentences"):
        grounder.prepare([tiny_image()], REPORT)


@pytest.mark.parametrize("method", ["prepare", "ground_prepared"])
def test_a_bug_of_a_batch_is_no_want_of_memory(method: str) -> None:
    grounder, told = make(RuntimeError("shapes cannot be multiplied"), lambda predictor: False)
    with pytest.raises((RuntimeError, ValueError), match=r"multiplied|float32"):
        if method == "prepare":
            grounder.prepare([np.zeros((0, 5), np.float32)], REPORT)
        else:
            grounder.ground_prepared([grounder.prepare([tiny_image()], REPORT)] * 2)
    assert told == []


def test_a_device_that_is_lost_is_told_apart_from_a_bug_and_from_want_of_memory() -> None:
    grounder, told = make(torch.AcceleratorError("CUDA error: an illegal memory access\nmore"), lambda predictor: False)
    study = grounder.prepare([tiny_image()], REPORT)
    for studies in ([study], [study, study]):
        with pytest.raises(DeviceLostError, match=r"^CUDA error: an illegal memory access$"):
            grounder.ground_prepared(studies)
    assert told == []
