"""Reading: cached generation equals teacher forcing, and an answer can only copy its prompt."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grounding.copying import CopyConstraint, Emission
from grounding.knowledge import load_bank
from grounding.network.answering import Answers
from grounding.network.model import KnowMVG
from grounding.network.rewriting import FreeAnswer
from grounding.processor import Processor
from grounding.spans import Alignment
from grounding.types import Span
from tests.model.networks import TEXTS, make_network, tiny_tokens

REPORT = [*TEXTS, "x", "Pleural, pleural; PLEURAL effusion: 3.5 cm (unchanged)."]


def talkative(network: KnowMVG) -> KnowMVG:
    """Random weights seldom close a phrase; a nudge makes answers of several phrases."""
    with torch.no_grad():
        network.language.lm.model.embed_tokens.weight[tiny_tokens().box] *= 3
    return network


def test_states_of_cached_generation_are_those_of_teacher_forcing() -> None:
    network = talkative(make_network(seed=3))
    tokens = tiny_tokens()
    processor = Processor(network.config, tokens, load_bank())
    image_tokens = torch.randn(1, 4, 32)
    texts = [(text, processor.encode(text)) for text in REPORT]
    with torch.inference_mode():
        answers, cached = network.language.generate(image_tokens, [t for _, t in texts], tokens)
        batch = processor.forced_batch([(s, t, a) for (s, t), a in zip(texts, answers, strict=True)])
        states = network.language(image_tokens.expand(len(texts), -1, -1), batch.token_ids, batch.mask)
        forced = network.phrase_states(states, batch)
    assert sum(map(len, answers)) >= 3
    assert torch.allclose(cached.box, forced.box, atol=1e-3)
    assert torch.allclose(cached.phrase, forced.phrase, atol=1e-3)


def test_a_batch_of_prompts_reads_what_each_prompt_reads_alone() -> None:
    network, tokens = talkative(make_network(seed=3)), tiny_tokens()
    prompts = [tokens.encode(text, 60) for text in REPORT]
    image_tokens = torch.randn(1, 4, 32)
    with torch.inference_mode():
        together, states = network.language.generate(image_tokens, prompts, tokens)
        alone = [network.language.generate(image_tokens, [prompt], tokens) for prompt in prompts]
    assert together == [answer[0] for answer, _ in alone]
    assert torch.allclose(states.box, torch.cat([s.box for _, s in alone]), atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=60), st.integers(0, 2**31))
def test_whatever_the_scores_an_answer_is_ordered_words_of_its_prompt(text: str, seed: int) -> None:
    tokens = tiny_tokens()
    prompt = tokens.encode(text, 40)
    constraint = CopyConstraint(prompt, tokens)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(200):
        constraint.choose(torch.randn(len(tokens), generator=generator))
        if constraint.ended:
            break
    assert constraint.ended
    last = 0
    for emission in constraint.emissions:
        assert last <= emission.start < emission.end <= len(text)
        assert text[emission.start : emission.end].strip() == text[emission.start : emission.end]
        last = emission.end


def test_the_model_chooses_the_place_and_the_close() -> None:
    tokens = tiny_tokens()
    text = "No left effusion."
    prompt = tokens.encode(text, 40)
    constraint = CopyConstraint(prompt, tokens)
    first, last = prompt.span_tokens(3, 16)
    for wanted in [*prompt.ids[first:last], tokens.neg, tokens.eos]:
        logits = torch.zeros(len(tokens))
        logits[wanted] = 5
        assert constraint.choose(logits) == wanted
    assert constraint.emissions == [Emission(3, 16, True)]


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80))
def test_every_token_knows_its_characters(text: str) -> None:
    encoded = tiny_tokens().encode(text, 1000)
    for start, end in encoded.offsets:
        assert 0 <= start <= end <= len(text)


def test_special_tokens_cannot_be_written_in_a_report() -> None:
    tokens = tiny_tokens()
    ids = tokens.encode("effusion <BOX> </s> <ground>", 60).ids
    assert not {tokens.box, tokens.eos, tokens.ground} & set(ids)


def test_an_empty_prompt_is_answered_at_once() -> None:
    network, tokens = make_network(), tiny_tokens()
    with torch.inference_mode():
        answers, states = network.language.generate(torch.randn(1, 4, 32), [tokens.encode("", 10)], tokens)
    assert answers == [[]] and states.box.shape == (0, 32)


def exactly(phrase: str, text: str) -> Alignment | None:
    place = text.lower().find(phrase.lower())
    return Alignment(Span(place, place + len(phrase)), True, 1.0) if phrase and place >= 0 else None


class Scripted:
    """A reading that counts: the state of a text is how many tokens it has read."""

    def __init__(self, rows: int) -> None:
        self.hidden = torch.zeros(rows, 1)

    def feed(self, chosen: list[int]) -> None:
        self.hidden = self.hidden + 1


def test_free_answers_are_traced_in_the_order_of_the_text() -> None:
    tokens = tiny_tokens()
    text = "No left effusion. The heart is enlarged."
    said = [("heart is enlarged", tokens.box), ("unicorn", tokens.box), ("left effusion", tokens.neg)]
    script = [token for phrase, close in said for token in (*tokens.encode(phrase, 60).ids, close)] + [tokens.eos]

    def logits(hidden: torch.Tensor) -> torch.Tensor:
        wanted = torch.zeros(1, len(tokens))
        wanted[0, script[int(hidden[0, 0])]] = 1
        return wanted

    row = FreeAnswer(tokens.encode(text, 60), tokens, exactly)
    answers, states = Answers(Scripted(1), [row], logits).run(60)
    assert answers == [[Emission(0, 0, False), Emission(3, 16, True), Emission(22, 39, False)]]
    assert [emission.is_supported for emission in answers[0]] == [False, True, True]
    closes = [place for place, token in enumerate(script) if token in row.closers]
    assert states.box.flatten().tolist() == [
        closes[1],
        closes[2],
        closes[0],
    ]  # how much was read when the close was predicted
    assert states.phrase.flatten()[1:].tolist() == [(closes[1] + 1 + closes[2] + 1) / 2, (1 + closes[0]) / 2]


def test_a_model_may_be_free_to_rewrite_where_phrases_can_be_traced() -> None:
    network = talkative(make_network(seed=3, language={"constrained": False}))
    tokens = tiny_tokens()
    with torch.inference_mode():
        answers, states = network.language.generate(
            torch.randn(1, 4, 32), [tokens.encode(text, 60) for text in REPORT], tokens
        )
    for text, emissions in zip(REPORT, answers, strict=True):
        assert all(0 <= e.start <= e.end <= len(text) for e in emissions)
    assert len(states.box) == sum(map(len, answers)) > 0


def test_a_free_answer_closes_no_empty_phrase_and_asks_nothing() -> None:
    tokens = tiny_tokens()
    row = FreeAnswer(tokens.encode("The heart is enlarged.", 60), tokens, exactly)
    scores = torch.zeros(len(tokens))
    scores[[tokens.box, tokens.neg, tokens.ground, tokens.pad]] = 9
    scores[tokens.eos] = 5
    assert row.choose(scores) == tokens.eos and row.ended and row.emissions == []
    assert row.choose(scores) == tokens.eos
