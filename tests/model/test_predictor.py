"""The callable product with a tiny random network: shapes of answers, odd inputs, negation, several images."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from grounding import predictor
from grounding.copying import Emission
from grounding.network.language import PhraseStates
from grounding.predictor import Predictor
from grounding.reading import ReadPhrase, first_of_each
from grounding.text import read_plain_report
from grounding.tokens import TextTokens
from grounding.types import BatchGrounder, ReportText
from tests.model.networks import TEXTS, computing_in_double, make_predictor, tiny_image

REPORT = read_plain_report(" ".join(TEXTS))


PREDICTOR = make_predictor()


def test_it_is_a_grounder() -> None:
    grounder: BatchGrounder = PREDICTOR
    assert grounder.ground([tiny_image()], REPORT).model == PREDICTOR.identity


def test_nothing_but_images_and_text_can_be_passed_in() -> None:
    assert list(inspect.signature(Predictor.ground).parameters) == ["self", "images", "report"]
    assert list(inspect.signature(Predictor.ground_phrases).parameters) == ["self", "image", "phrases"]


def test_every_phrase_is_verbatim_in_the_report_and_inside_a_sentence() -> None:
    findings = PREDICTOR.ground([tiny_image()], REPORT).findings
    assert findings
    for finding in findings:
        source = finding.source
        assert source is not None and REPORT.text[source.start : source.end] == finding.phrase
        assert any(s.start <= source.start and source.end <= s.end for s in REPORT.sentences)
        assert finding.localized == bool(finding.boxes)


def test_what_a_free_model_makes_up_is_dropped_and_counted() -> None:
    free = make_predictor(language={"constrained": False, "max_answer_tokens": 24})
    grounding = free.ground([tiny_image()], REPORT)
    assert grounding.hallucinations > 0
    for finding in grounding.findings:
        source = finding.source
        assert source is not None and REPORT.text[source.start : source.end] == finding.phrase
    assert PREDICTOR.ground([tiny_image()], REPORT).hallucinations == 0


@pytest.mark.parametrize("views", [1, 4])
def test_studies_asked_at_once_get_what_each_gets_alone(views: int) -> None:
    model = make_predictor(decision={"views": views, "presence": 0.0})
    model._batches = predictor.Batches(images=2, sentences=5, phrases=3)
    images = [tiny_image(seed=seed) for seed in range(4)]
    studies = [
        ([images[0], images[1]], REPORT),
        ([], REPORT),
        ([images[2]], ReportText("", ())),
        ([np.zeros((40, 30), np.float32)], read_plain_report(TEXTS[1])),
        ([images[3]], read_plain_report(" ".join(TEXTS[1:]))),
    ]
    with computing_in_double(model):  # random weights magnify rounding, on one processor more than on another
        together = model.ground_many(studies)
        each = [model.ground(pictures, report) for pictures, report in studies]
    for found, alone in zip(together, each, strict=True):
        assert [f.phrase for f in found.findings] == [f.phrase for f in alone.findings]
        assert [(f.image, f.source, f.negated, len(f.boxes)) for f in found.findings] == [
            (f.image, f.source, f.negated, len(f.boxes)) for f in alone.findings
        ]
        ours, theirs = (np.array([b.box.xyxy for f in g.findings for b in f.boxes]) for g in (found, alone))
        assert np.allclose(ours, theirs, rtol=0, atol=1e-6)  # of 64 pixels
    assert len(together[0].findings) > len(together[4].findings) > 0
    assert {f.image for f in together[0].findings} == {0, 1}
    assert not together[1].findings and not together[2].findings
    assert together[3].findings and not any(f.localized for f in together[3].findings)


def test_studies_that_are_prepared_keep_no_picture_and_are_computed_in_one_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_predictor(decision={"presence": 0.0})
    calls: list[tuple[str, int]] = []

    def count(owner: object, name: str, size: Callable[..., int]) -> None:
        inner = getattr(owner, name)

        def counted(*given: Any) -> Any:
            calls.append((name, size(*given)))
            return inner(*given)

        monkeypatch.setattr(owner, name, counted)

    count(model._network, "encode_images", len)
    count(model._network.language, "generate", lambda images, prompts, *_: len(prompts))
    count(model._network, "decode", lambda features, index, *_: len(index))
    images = [np.repeat(np.repeat(tiny_image(seed=seed), 20, 0), 20, 1) for seed in range(3)]
    studies = [model.prepare([image], REPORT) for image in images]
    held = sum(canvas.pixels.numel() for study in studies for canvas in study.canvases)
    assert held == 3 * model._processor.config.frame.canvas**2 < sum(image.size for image in images) / 100
    together = model.ground_prepared(studies)
    assert [name for name, _ in calls] == ["encode_images", "generate", "decode"]
    assert [size for _, size in calls[:2]] == [3, sum(len(study.pieces) for study in studies)]
    assert [len(one.findings) for one in together] == [len(model.ground([image], REPORT).findings) for image in images]


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (700, 3), (64, 64), (211, 97)])
def test_boxes_lie_in_an_image_of_any_shape(shape: tuple[int, int]) -> None:
    image = np.random.default_rng(0).random(shape, np.float32)
    for finding in PREDICTOR.ground_phrases(image, ["left pleural effusion", "nodule", "heart"]):
        for scored in finding.boxes:
            x1, y1, x2, y2 = scored.box.xyxy
            assert 0 <= x1 < x2 <= shape[1] and 0 <= y1 < y2 <= shape[0] and 0 <= scored.score <= 1


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan"), float("inf")])
def test_an_image_without_content_is_no_accident(value: float) -> None:
    findings = PREDICTOR.ground([np.full((40, 30), value, np.float32)], REPORT).findings
    assert all(np.isfinite(b.box.xyxy).all() for f in findings for b in f.boxes)


def test_an_image_that_is_no_picture_is_refused() -> None:
    with pytest.raises(ValueError, match=r"float32\[H, W\]"):
        PREDICTOR.ground_phrases(np.zeros((0, 5), np.float32), ["effusion"])


def test_an_empty_report_has_no_findings() -> None:
    assert PREDICTOR.ground([tiny_image()], ReportText("", ())).findings == ()
    assert PREDICTOR.ground([], REPORT).findings == ()
    assert PREDICTOR.ground_phrases(tiny_image(), []) == ()


def test_a_negated_phrase_is_never_grounded() -> None:
    findings = PREDICTOR.ground_phrases(tiny_image(), ["No pneumothorax", "pneumothorax"])
    assert [f.negated for f in findings] == [True, False]
    assert findings[0].boxes == () and not findings[0].localized


def test_findings_of_several_images_name_their_image_and_agree_with_each_alone() -> None:
    one, two = tiny_image(), tiny_image((36, 30, 60, 44), 5)
    both = PREDICTOR.ground([one, two], REPORT).findings
    alone = PREDICTOR.ground([one], REPORT).findings
    first = [f for f in both if f.image == 0]
    assert [(f.phrase, f.source, f.negated) for f in first] == [(f.phrase, f.source, f.negated) for f in alone]
    for a, b in zip(first, alone, strict=True):
        assert [x.box.xyxy for x in a.boxes] == [pytest.approx(y.box.xyxy, abs=1e-3) for y in b.boxes]
    assert [f.phrase for f in both if f.image == 1] == [f.phrase for f in alone if not f.negated]


def test_phrases_in_a_batch_get_the_boxes_that_they_get_alone() -> None:
    phrases = ["left pleural effusion", "nodule in the left lower lobe", "enlarged heart"]
    together = PREDICTOR.ground_phrases(tiny_image(), phrases)
    for phrase, finding in zip(phrases, together, strict=True):
        (alone,) = PREDICTOR.ground_phrases(tiny_image(), [phrase])
        assert len(alone.boxes) == len(finding.boxes)
        for a, b in zip(alone.boxes, finding.boxes, strict=True):
            assert np.allclose(a.box.xyxy, b.box.xyxy, atol=1e-2)


def test_findings_are_coded_and_sited_from_their_words() -> None:
    effusion, unknown = PREDICTOR.ground_phrases(tiny_image(), ["small left pleural effusion", "zebra"])
    assert effusion.finding is not None and effusion.finding.code == "60046008"
    assert effusion.site is not None and effusion.site.laterality == "left"
    assert unknown.finding is None and unknown.site is None


def test_the_same_words_are_reported_once() -> None:
    said = [ReadPhrase("Left effusion", None, False), ReadPhrase("left  effusion", None, False)]
    assert first_of_each([*said, ReadPhrase("left effusion", None, True)]) == [0, 2]


def test_the_same_input_gives_the_same_answer() -> None:
    assert PREDICTOR.ground([tiny_image()], REPORT) == PREDICTOR.ground([tiny_image()], REPORT)


def asserts_everything(image_tokens: object, prompts: list[TextTokens], tokens: object, images: object) -> object:
    """Stands for a model that copies every text whole and negates none."""
    emissions = [[Emission(0, prompt.offsets[-1][1], False)] for prompt in prompts]
    states = torch.zeros(len(prompts), 32)
    return emissions, PhraseStates(states, states)


def test_the_rules_overrule_a_model_that_asserts_what_the_report_denies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PREDICTOR._network.language, "generate", asserts_everything)
    report = read_plain_report("No pneumothorax. Left effusion. Mass has resolved.")
    findings = PREDICTOR.ground([tiny_image()], report).findings
    assert [(f.phrase, f.negated) for f in findings] == [
        ("No pneumothorax.", True),
        ("Left effusion.", False),
        ("Mass has resolved.", True),
    ]
    assert all(not f.boxes for f in findings if f.negated)


def test_a_list_under_a_denial_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PREDICTOR._network.language, "generate", asserts_everything)
    report = read_plain_report("There is no evidence of:\n- pneumothorax\n- pleural effusion\n\nLeft nodule.")
    said = {f.phrase: f.negated for f in PREDICTOR.ground([tiny_image()], report).findings}
    assert said["pneumothorax"] and said["pleural effusion"] and not said["Left nodule."]


@pytest.mark.parametrize("start", ["Left effusion", "No effusion"])
def test_a_sentence_longer_than_the_prompt_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    monkeypatch.setattr(PREDICTOR._network.language, "generate", asserts_everything)
    text = start + ", nodule in the left lower lobe" * 60 + ", enlarged heart."
    findings = PREDICTOR.ground([tiny_image()], read_plain_report(text)).findings
    assert all(f.source is not None and text[f.source.start : f.source.end] == f.phrase for f in findings)
    assert max(f.source.end for f in findings if f.source) == len(text)
    assert {f.negated for f in findings} == {start.startswith("No")}
