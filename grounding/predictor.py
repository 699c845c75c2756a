"""The callable product: images and a report in, findings with boxes out. The only reader of its inputs is the network.

The report's sentences are read in one batch (a very long report in several), all phrases of an image are decoded in
one batch, and an image is encoded once. No reference box or phrase can reach `ground`.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from grounding.copying import Emission
from grounding.knowledge import KnowledgeBank, swap_sides
from grounding.negation import ReportGuard, is_negated
from grounding.network.answering import PhraseStates
from grounding.network.decoder import DecodedBoxes
from grounding.network.model import KnowMVG, SeenImages
from grounding.network.views import average_views, draw_views
from grounding.phrases import settle
from grounding.processor import Processor
from grounding.tokens import GroundingTokenizer, TextTokens
from grounding.types import Finding, Grounding, Image, ModelIdentity, ReportText, ScoredBox, Span

READ_AT_ONCE = 64
"""Sentences that are read in one batch, so that memory does not grow with the report, and time grows as it does."""


@dataclass(frozen=True, slots=True)
class ReadPhrase:
    """A phrase that was read out of a text: its words, its place in the report, and whether it is negated."""

    phrase: str
    source: Span | None
    negated: bool


class Predictor:
    """A loaded KnowMVG; implements `grounding.types.Grounder`."""

    def __init__(
        self, network: KnowMVG, tokens: GroundingTokenizer, bank: KnowledgeBank, identity: ModelIdentity
    ) -> None:
        self._network = network.eval()
        self._processor = Processor(network.config, tokens, bank)
        self._bank = bank
        self._identity = identity

    @property
    def identity(self) -> ModelIdentity:
        """Name, version and digest of the model."""
        return self._identity

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next(self._network.parameters()).device

    @torch.inference_mode()
    def ground(self, images: Sequence[Image], report: ReportText) -> Grounding:
        """Find the diagnostic phrases of `report` and the boxes of each in every image of `images`."""
        pieces = [(s, piece) for s in report.sentences for piece in self._processor.pieces(s, report.text)]
        if not images or not pieces:
            return Grounding(self._identity, ())
        words = [report.text[piece.start : piece.end] for _, piece in pieces]
        texts = [(text, self._processor.encode(text)) for text in words]
        features = [self._encode(image) for image in images]
        answers, states, made_up = self._read(features[0], texts)
        phrases = read_phrases(report.text, pieces, answers)
        keep = first_of_each(phrases)
        findings: list[Finding] = []
        for number, image in enumerate(images):
            seen = states if number == 0 else self._forced(features[number], texts, answers)
            findings += self._findings(number, image, features[number], seen, phrases, keep)
        return Grounding(self._identity, tuple(findings), made_up)

    @torch.inference_mode()
    def ground_phrases(self, image: Image, phrases: Sequence[str]) -> tuple[Finding, ...]:
        """Boxes of each of `phrases` in `image`, in the same order. A phrase that negates itself is not looked for."""
        if not phrases:
            return ()
        texts = [(phrase, self._processor.encode(phrase)) for phrase in phrases]
        answers = [[Emission(0, len(phrase), False)] for phrase in phrases]
        features = self._encode(image)
        states = self._forced(features, texts, answers)
        read = [ReadPhrase(phrase, None, is_negated(phrase, 0, len(phrase))) for phrase in phrases]
        return tuple(self._findings(0, image, features, states, read, list(range(len(read)))))

    @torch.inference_mode()
    def ground_spans(self, image: Image, report: ReportText, spans: Sequence[Span]) -> tuple[Finding, ...]:
        """Boxes of the phrases at `spans` of `report`, in the same order, each forced where it stands in its sentence.

        Teacher forcing, for evaluation: the model does not choose the phrases. What the report negates is not looked
        for. A span that no sentence holds is read alone, as `ground_phrases` does.
        """
        if not spans:
            return ()
        pieces = [piece for s in report.sentences for piece in self._processor.pieces(s, report.text)]
        rows = forced_rows(spans, pieces)
        guard = ReportGuard(report.text)
        read = [_read_span(report, span, guard) for span in spans]
        texts = [(text, self._processor.encode(text)) for text in (report.text[p.start : p.end] for p, _ in rows)]
        answers = [
            [Emission(spans[i].start - piece.start, spans[i].end - piece.start, read[i].negated) for i in indices]
            for piece, indices in rows
        ]
        features = self._encode(image)
        states = self._forced(features, texts, answers)
        order = [i for _, indices in rows for i in indices]
        found = self._findings(0, image, features, states, [read[i] for i in order], list(range(len(order))))
        return tuple(found[order.index(i)] for i in range(len(spans)))

    def uncalibrated(self) -> Predictor:
        """The same model, whose scores are the plain presence probabilities that a calibration is fitted on."""
        return self._deciding(calibration=())

    def unguarded(self) -> Predictor:
        """The same model, asked even of a picture of one grey: for the control that measures what it says then."""
        return self._deciding(blank_guard=False)

    def assuming_shown(self) -> Predictor:
        """The same model, told that every phrase it is given is in the picture: it always gives its surest box.

        For measuring beside regressors, which cannot say that they found nothing.
        """
        return self._deciding(assume_shown=True)

    def _deciding(self, **changes: object) -> Predictor:
        twin = copy(self)
        twin._processor = self._processor.deciding(**changes)
        return twin

    def _encode(self, image: Image) -> SeenImages:
        """Features of all views of an image; the first is the image as it is, which alone is read with the text."""
        pixels = self._processor.pixels(image).to(self.device)
        seen = self._network.encode_images(draw_views(pixels, self._processor.views))
        return replace(seen, blank=not bool(pixels.any()))

    def _read(
        self, features: SeenImages, texts: Sequence[tuple[str, TextTokens]]
    ) -> tuple[list[list[Emission]], PhraseStates, int]:
        """What the model reads in the texts, settled, the states of those phrases, and how many it made up."""
        answers: list[list[Emission]] = []
        states: list[PhraseStates] = []
        made_up = 0
        for first in range(0, len(texts), READ_AT_ONCE):
            part = texts[first : first + READ_AT_ONCE]
            copied, seen = self._network.language.generate(
                features.tokens[:1], [tokens for _, tokens in part], self._processor.tokens
            )
            held = [[emission for emission in found if emission.is_supported] for found in copied]
            made_up += sum(map(len, copied)) - sum(map(len, held))
            settled = [settle(text, found, self._bank) for (text, _), found in zip(part, held, strict=True)]
            answers += settled
            states.append(seen if settled == copied else self._forced(features, part, settled))
        return answers, joined(states), made_up

    def _forced(
        self, features: SeenImages, texts: Sequence[tuple[str, TextTokens]], answers: Sequence[Sequence[Emission]]
    ) -> PhraseStates:
        """States of phrases that are already decided, on another image or without a report."""
        given = [(text, tokens, found) for (text, tokens), found in zip(texts, answers, strict=True)]
        states: list[PhraseStates] = []
        for first in range(0, len(given), READ_AT_ONCE):
            batch = to_device(self._processor.forced_batch(given[first : first + READ_AT_ONCE]), self.device)
            read = self._network.language(features.tokens[batch.image_of_text], batch.token_ids, batch.mask)
            states.append(self._network.phrase_states(read, batch))
        return joined(states)

    def _findings(
        self, number: int, image: Image, features: SeenImages, states: PhraseStates, phrases: Sequence[ReadPhrase],
        keep: Sequence[int],
    ) -> list[Finding]:  # fmt: skip
        wanted = [i for i in keep if not phrases[i].negated]
        hidden = features.blank and self._processor.config.decision.blank_guard
        boxes = None if hidden else self._decode(features, states, [phrases[i] for i in wanted], wanted)
        frame = self._processor.frame(image)
        findings = []
        for i in keep:
            if phrases[i].negated:
                if number == 0:
                    findings.append(self._finding(phrases[i], number, (), None))
                continue
            if boxes is None:
                findings.append(self._finding(phrases[i], number, (), None))
                continue
            row = wanted.index(i)
            findings.append(
                self._finding(
                    phrases[i], number, self._processor.scored_boxes(boxes, row, frame), uncertainty(boxes, row)
                )
            )
        return findings

    def _decode(
        self, features: SeenImages, states: PhraseStates, phrases: Sequence[ReadPhrase], wanted: Sequence[int]
    ) -> DecodedBoxes | None:
        if not wanted:
            return None
        index = torch.tensor(wanted, device=self.device)
        chosen = PhraseStates(states.box[index], states.phrase[index])
        words = [phrase.phrase for phrase in phrases]
        views = self._processor.views
        if len(views) == 1:
            prior = self._processor.log_prior(words).to(self.device)
            return self._network.decode(features, torch.zeros_like(index), chosen, prior)[0]
        return self._decode_views(features, chosen, words)

    def _decode_views(self, features: SeenImages, states: PhraseStates, words: Sequence[str]) -> DecodedBoxes:
        """Boxes of phrases as the mean of all views; in a mirror each is read alone, with left for right."""
        views = self._processor.views
        swapped = [swap_sides(phrase) for phrase in words]
        parts = [self._mirrored(features, i, swapped) if view.mirrored else states for i, view in enumerate(views)]
        plain, other = self._processor.log_prior(words), self._processor.log_prior(swapped)
        prior = torch.cat([other if view.mirrored else plain for view in views]).to(self.device)
        index = torch.arange(len(views), device=self.device).repeat_interleave(len(words))
        boxes = self._network.decode(features, index, joined(parts), prior)[0]
        alike = torch.tensor([self._bank.has_mirror(phrase) for phrase in words])
        seen = torch.stack([alike if view.mirrored else torch.ones_like(alike) for view in views])
        return average_views(boxes, views, seen.to(self.device))

    def _mirrored(self, features: SeenImages, view: int, phrases: Sequence[str]) -> PhraseStates:
        texts = [(phrase, self._processor.encode(phrase)) for phrase in phrases]
        one = SeenImages(
            features.fine[view : view + 1], features.coarse[view : view + 1], features.tokens[view : view + 1]
        )
        return self._forced(one, texts, [[Emission(0, len(phrase), False)] for phrase in phrases])

    def _finding(self, read: ReadPhrase, number: int, boxes: tuple[ScoredBox, ...], doubt: float | None) -> Finding:
        reading = self._bank.read_phrase(read.phrase)
        return Finding(
            phrase=read.phrase, source=read.source, image=number, boxes=boxes, localized=bool(boxes),
            negated=read.negated, finding=reading.entity.concept if reading.entity else None,
            site=self._bank.site(reading), uncertainty=doubt if boxes else None,
        )  # fmt: skip


def forced_rows(spans: Sequence[Span], pieces: Sequence[Span]) -> list[tuple[Span, list[int]]]:
    """Texts to force phrases in, each (place in the report, indices of its spans in order of the text).

    The phrases of a piece stand in one text, as the model would copy them; one that overlaps another, in another.
    """
    rows: list[tuple[Span, list[int]]] = []
    for i in sorted(range(len(spans)), key=lambda index: spans[index].start):
        span = spans[i]
        piece = next((p for p in pieces if p.start <= span.start and span.end <= p.end), span)
        row = next((held for p, held in rows if p == piece and spans[held[-1]].end <= span.start), None)
        if row is None:
            rows.append((piece, [i]))
        else:
            row.append(i)
    return rows


def _read_span(report: ReportText, span: Span, guard: ReportGuard) -> ReadPhrase:
    sentence = next((s for s in report.sentences if s.start <= span.start and span.end <= s.end), span)
    negated = guard.is_negated(sentence, span.start, span.end)
    return ReadPhrase(report.text[span.start : span.end], span, negated)


def read_phrases(
    text: str, pieces: Sequence[tuple[Span, Span]], answers: Sequence[Sequence[Emission]]
) -> list[ReadPhrase]:
    """The phrases that were read in the pieces of a report's `text`, each given as (its sentence, the piece)."""
    guard = ReportGuard(text)
    phrases = []
    for (sentence, piece), emissions in zip(pieces, answers, strict=True):
        for emission in emissions:
            start, end = piece.start + emission.start, piece.start + emission.end
            negated = emission.negated or guard.is_negated(sentence, start, end)
            phrases.append(ReadPhrase(text[start:end], Span(start, end), negated))
    return phrases


def first_of_each(phrases: Sequence[ReadPhrase]) -> list[int]:
    """Indices of the phrases to report: the first of those that say the same in the same words."""
    seen: dict[tuple[str, bool], int] = {}
    for index, phrase in enumerate(phrases):
        seen.setdefault((" ".join(phrase.phrase.lower().split()), phrase.negated), index)
    return sorted(seen.values())


def uncertainty(boxes: DecodedBoxes, row: int) -> float | None:
    """Doubt in [0, 1] about the surest box of a phrase: 1 minus its expected IoU where the network estimates that.

    Else the standard deviation of its hypotheses, in shares of the canvas; None for a network with neither.
    """
    best = int(boxes.presence_logits[row].argmax())
    if boxes.quality_logits is not None:
        return 1.0 - float(boxes.quality_logits[row, best].float().sigmoid())
    return None if boxes.variance is None else min(1.0, float(boxes.variance[row, best]) ** 0.5)


def joined(states: Sequence[PhraseStates]) -> PhraseStates:
    """The states of several batches, in order."""
    return PhraseStates(torch.cat([part.box for part in states]), torch.cat([part.phrase for part in states]))


def to_device(value: Any, device: torch.device) -> Any:
    """A dataclass of tensors, moved."""
    return replace(value, **{f.name: getattr(value, f.name).to(device) for f in fields(value)})
