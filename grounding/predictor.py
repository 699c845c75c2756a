"""The callable product: images and a report in, findings with boxes out. The only reader of its inputs is the network.

Of all studies that are asked at once, the images are encoded together, the reports' sentences are read together and the
phrases are decoded together, in batches that are bounded; an image is encoded once. No reference box or phrase can
reach `ground`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy, deepcopy
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any, TypeVar

import torch

from grounding.copying import Emission
from grounding.geometry import Frame
from grounding.knowledge import KnowledgeBank, swap_sides
from grounding.negation import ReportGuard, is_negated
from grounding.network.answering import PhraseStates
from grounding.network.decoder import DecodedBoxes
from grounding.network.model import KnowMVG, SeenImages
from grounding.network.views import average_views, draw_views
from grounding.phrases import settle
from grounding.processor import Processor, said, said_box
from grounding.reading import ReadPhrase, first_of_each, forced_rows, read_phrases, read_span
from grounding.tokens import GroundingTokenizer, TextTokens
from grounding.types import Finding, Grounding, Image, ModelIdentity, ReportText, Span

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Batches:
    """Images, sentences and phrases of one batch: memory does not grow with studies and reports, but time does."""

    images: int = 8
    sentences: int = 64
    phrases: int = 256


ON_PROCESSOR = Batches(images=4, phrases=32)
"""A processor is fastest with what its caches hold; texts, whose tokens are many small steps, it reads all at once."""

SMALLEST = Batches(1, 1, 4)
"""Where memory is short."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Images as the network has seen them: V views of each, image by image; `blank`: nothing can be seen on it."""

    features: SeenImages
    blank: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Canvas:
    """An image as the network takes it, float32[1, 1, S, S] in the processor's memory, and the way back to it."""

    pixels: torch.Tensor
    frame: Frame


@dataclass(frozen=True, slots=True)
class Study:
    """Images and a report, prepared: `pieces` are what is read of it, (sentence, part of it). It is small: the canvases
    stand for the images. A study of which nothing is read has none."""

    canvases: tuple[Canvas, ...]
    report: ReportText
    pieces: tuple[tuple[Span, Span], ...]

    def words(self) -> list[str]:
        """The texts of the pieces."""
        return [self.report.text[piece.start : piece.end] for _, piece in self.pieces]


@dataclass(frozen=True, slots=True)
class Asked:
    """Phrases that are looked for in one image, with a row of `states` each.

    The image, which lies in `frame`, is the `picture`-th of those that were encoded, and the `number`-th of its study.
    """

    frame: Frame
    number: int
    picture: int
    phrases: tuple[ReadPhrase, ...]
    states: PhraseStates


class Predictor:
    """A loaded KnowMVG; implements `grounding.types.BatchGrounder`."""

    def __init__(
        self, network: KnowMVG, tokens: GroundingTokenizer, bank: KnowledgeBank, identity: ModelIdentity
    ) -> None:
        self._network = network.eval()
        self._processor = Processor(network.config, tokens, bank)
        self._bank = bank
        self._identity = identity
        self._batches = ON_PROCESSOR if self.device.type == "cpu" else Batches()

    @property
    def identity(self) -> ModelIdentity:
        """Name, version and digest of the model."""
        return self._identity

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next(self._network.parameters()).device

    def ground(self, images: Sequence[Image], report: ReportText) -> Grounding:
        """Find the diagnostic phrases of `report` and the boxes of each in every image of `images`."""
        return self.ground_many([(images, report)])[0]

    def ground_many(self, studies: Sequence[tuple[Sequence[Image], ReportText]]) -> list[Grounding]:
        """Ground studies together, each (its images, its report): what `ground` gives for each, up to rounding."""
        return self.ground_prepared([self.prepare(images, report) for images, report in studies])

    def prepare(self, images: Sequence[Image], report: ReportText) -> Study:
        """A study as `ground_prepared` takes it; any thread may do this while another one computes."""
        pieces = [(s, piece) for s in report.sentences for piece in self._processor.pieces(s, report.text)]
        canvases = tuple(map(self._canvas, images)) if pieces else ()
        return Study(canvases, report, tuple(pieces) if canvases else ())

    @torch.inference_mode()
    def ground_prepared(self, studies: Sequence[Study]) -> list[Grounding]:
        """Ground prepared studies together: what each gets alone, up to rounding."""
        if not any(study.pieces for study in studies):
            return [Grounding(self._identity, ()) for _ in studies]
        pictures = self._see([canvas for study in studies for canvas in study.canvases])
        firsts = list(accumulate((len(study.canvases) for study in studies), initial=0))
        texts = [(text, self._processor.encode(text)) for study in studies for text in study.words()]
        where = [first for first, study in zip(firsts, studies, strict=False) for _ in study.pieces]
        answers, states, made_up = self._read(pictures, texts, where)
        asked: list[Asked] = []
        owners: list[int] = []
        read = told = 0
        invented = []
        for number, study in enumerate(studies):
            rows = slice(read, read := read + len(study.pieces))
            own = slice(told, told := told + sum(map(len, answers[rows])))
            invented.append(sum(made_up[rows]))
            found = self._ask(study, firsts[number], pictures, texts[rows], answers[rows], states[own])
            asked += found
            owners += [number] * len(found)
        findings: list[list[Finding]] = [[] for _ in studies]
        for owner, some in zip(owners, self._findings(pictures, asked), strict=True):
            findings[owner] += some
        return [Grounding(self._identity, tuple(found), count) for found, count in zip(findings, invented, strict=True)]

    def _canvas(self, image: Image) -> Canvas:
        return Canvas(self._processor.pixels(image), self._processor.frame(image))

    def _ask(
        self, study: Study, first: int, pictures: Pictures, texts: Sequence[tuple[str, TextTokens]],
        answers: Sequence[Sequence[Emission]], states: PhraseStates,
    ) -> list[Asked]:  # fmt: skip
        """The phrases of a study, to look for in each of its images, the `first`-th of all and those after it; on all
        but that one they are read again."""
        phrases = read_phrases(study.report.text, study.pieces, answers)
        keep = first_of_each(phrases)
        asked = []
        for number, canvas in enumerate(study.canvases):
            place = first + number
            seen = (
                states
                if number == 0
                else self._forced(pictures.features, texts, answers, [self._row(place)] * len(texts))
            )
            asked.append(Asked(canvas.frame, number, place, tuple(phrases[i] for i in keep), seen[keep]))
        return asked

    @torch.inference_mode()
    def ground_phrases(self, image: Image, phrases: Sequence[str]) -> tuple[Finding, ...]:
        """Boxes of each of `phrases` in `image`, in the same order. A phrase that negates itself is not looked for."""
        if not phrases:
            return ()
        texts = [(phrase, self._processor.encode(phrase)) for phrase in phrases]
        answers = [[Emission(0, len(phrase), False)] for phrase in phrases]
        canvas = self._canvas(image)
        pictures = self._see([canvas])
        states = self._forced(pictures.features, texts, answers, [0] * len(texts))
        read = tuple(ReadPhrase(phrase, None, is_negated(phrase, 0, len(phrase))) for phrase in phrases)
        return tuple(self._findings(pictures, [Asked(canvas.frame, 0, 0, read, states)])[0])

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
        read = [read_span(report, span, guard) for span in spans]
        texts = [(text, self._processor.encode(text)) for text in (report.text[p.start : p.end] for p, _ in rows)]
        answers = [
            [Emission(spans[i].start - piece.start, spans[i].end - piece.start, read[i].negated) for i in indices]
            for piece, indices in rows
        ]
        canvas = self._canvas(image)
        pictures = self._see([canvas])
        states = self._forced(pictures.features, texts, answers, [0] * len(texts))
        order = [i for _, indices in rows for i in indices]
        asked = Asked(canvas.frame, 0, 0, tuple(read[i] for i in order), states)
        found = self._findings(pictures, [asked])[0]
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

    def in_small_batches(self) -> Predictor:
        """The same model, a picture and a few phrases at a time: slower, in the least memory."""
        twin = copy(self)
        twin._batches = SMALLEST
        return twin

    def on_cpu(self) -> Predictor:
        """A copy of the model on the processor, in small batches; it takes no memory of the present device."""
        network, twin = self._network, self.in_small_batches()
        held: dict[int, Any] = {id(buffer): buffer.detach().to("cpu", copy=True) for buffer in network.buffers()}
        held |= {
            id(p): torch.nn.Parameter(p.detach().to("cpu", copy=True), p.requires_grad) for p in network.parameters()
        }
        twin._network = deepcopy(network, held)
        return twin

    def _deciding(self, **changes: object) -> Predictor:
        twin = copy(self)
        twin._processor = self._processor.deciding(**changes)
        return twin

    # ---- what is seen and read ---------------------------------------------------------------------------------------

    def _row(self, picture: int) -> int:
        """The row of an encoded image that shows it as it is, which alone is read with texts."""
        return picture * len(self._processor.views)

    def _see(self, canvases: Sequence[Canvas]) -> Pictures:
        """Features of all views of the images."""
        parts: list[SeenImages] = []
        blank = [not bool(canvas.pixels.any()) for canvas in canvases]
        for some in batched(canvases, self._batches.images):
            views = [draw_views(canvas.pixels.to(self.device), self._processor.views) for canvas in some]
            parts.append(self._network.encode_images(torch.cat(views)))
        return Pictures(parts[0] if len(parts) == 1 else concatenated(parts), tuple(blank))

    def _read(
        self, pictures: Pictures, texts: Sequence[tuple[str, TextTokens]], where: Sequence[int]
    ) -> tuple[list[list[Emission]], PhraseStates, list[int]]:
        """What the model reads in the texts, each on the image that `where` names: the answers, settled, the states of
        their phrases in that order, and how many phrases it made up in each."""
        answers: list[list[Emission]] = []
        states: list[PhraseStates] = []
        made_up: list[int] = []
        for some in batched(list(zip(texts, map(self._row, where), strict=True)), self._batches.sentences):
            part, rows = [text for text, _ in some], [row for _, row in some]
            used = sorted(set(rows))
            copied, seen = self._network.language.generate(
                pictures.features.tokens[used], [tokens for _, tokens in part], self._processor.tokens,
                [used.index(row) for row in rows],
            )  # fmt: skip
            held = [[emission for emission in found if emission.is_supported] for found in copied]
            made_up += [len(all_) - len(some_) for all_, some_ in zip(copied, held, strict=True)]
            settled = [settle(text, found, self._bank) for (text, _), found in zip(part, held, strict=True)]
            answers += settled
            states.append(seen if settled == copied else self._forced(pictures.features, part, settled, rows))
        return answers, joined(states), made_up

    def _forced(
        self, features: SeenImages, texts: Sequence[tuple[str, TextTokens]], answers: Sequence[Sequence[Emission]],
        rows: Sequence[int],
    ) -> PhraseStates:  # fmt: skip
        """States of phrases that are already decided, each text read on the row of `features` that `rows` names."""
        given = [(text, tokens, found) for (text, tokens), found in zip(texts, answers, strict=True)]
        states: list[PhraseStates] = []
        for some in batched(list(zip(given, rows, strict=True)), self._batches.sentences):
            batch = to_device(self._processor.forced_batch([text for text, _ in some]), self.device)
            images = torch.tensor([row for _, row in some], device=self.device)
            read = self._network.language(features.tokens[images], batch.token_ids, batch.mask)
            states.append(self._network.phrase_states(read, batch))
        return joined(states)

    # ---- what is found -----------------------------------------------------------------------------------------------

    def _findings(self, pictures: Pictures, asked: Sequence[Asked]) -> list[list[Finding]]:
        """The findings of each image, in the order of its phrases; denied ones stand with the first image alone."""
        wanted = [
            (a, i) for a, one in enumerate(asked) if not self._hidden(pictures, one)
            for i, phrase in enumerate(one.phrases) if not phrase.negated
        ]  # fmt: skip
        decoded: dict[tuple[int, int], tuple[DecodedBoxes, int]] = {}
        for part in batched(wanted, self._batches.phrases):
            boxes = self._decode(pictures.features, [(asked[a], i) for a, i in part])
            decoded |= {place: (boxes, row) for row, place in enumerate(part)}
        return [
            [
                self._finding(one, phrase, decoded.get((a, i)))
                for i, phrase in enumerate(one.phrases) if not phrase.negated or one.number == 0
            ]
            for a, one in enumerate(asked)
        ]  # fmt: skip

    def _hidden(self, pictures: Pictures, asked: Asked) -> bool:
        return pictures.blank[asked.picture] and self._processor.config.decision.blank_guard

    def _decode(self, features: SeenImages, wanted: Sequence[tuple[Asked, int]]) -> DecodedBoxes:
        """Boxes of phrases, each (what was asked of an image, which phrase of it), as the mean of all views.

        In a mirror each phrase is read alone, with left for right.
        """
        views = self._processor.views
        words = [asked.phrases[i].phrase for asked, i in wanted]
        first = torch.tensor([self._row(asked.picture) for asked, _ in wanted], device=self.device)
        states = joined([asked.states[[i]] for asked, i in wanted])
        plain = self._processor.log_prior(words)
        if len(views) == 1:
            return self._network.decode(features, first, states, plain.to(self.device))[0]
        swapped = [swap_sides(phrase) for phrase in words]
        other = self._processor.log_prior(swapped)
        parts = [
            self._mirrored(features, (first + v).tolist(), swapped) if view.mirrored else states
            for v, view in enumerate(views)
        ]
        prior = torch.cat([other if view.mirrored else plain for view in views]).to(self.device)
        index = torch.cat([first + v for v in range(len(views))])
        boxes = self._network.decode(features, index, joined(parts), prior)[0]
        alike = torch.tensor([self._bank.has_mirror(phrase) for phrase in words])
        seen = torch.stack([alike if view.mirrored else torch.ones_like(alike) for view in views])
        return average_views(boxes, views, seen.to(self.device))

    def _mirrored(self, features: SeenImages, rows: Sequence[int], phrases: Sequence[str]) -> PhraseStates:
        texts = [(phrase, self._processor.encode(phrase)) for phrase in phrases]
        return self._forced(features, texts, [[Emission(0, len(phrase), False)] for phrase in phrases], rows)

    def _finding(self, asked: Asked, read: ReadPhrase, decoded: tuple[DecodedBoxes, int] | None) -> Finding:
        found = () if decoded is None else self._processor.scored_boxes(*decoded, asked.frame)
        boxes = tuple(box for box in (said_box(scored, asked.frame) for scored in found) if box.box.area > 0)
        reading = self._bank.read_phrase(read.phrase)
        return Finding(
            phrase=read.phrase, source=read.source, image=asked.number, boxes=boxes, localized=bool(boxes),
            negated=read.negated, finding=reading.concept,
            site=self._bank.site(reading), uncertainty=uncertainty(*decoded) if decoded is not None and boxes else None,
        )  # fmt: skip


def uncertainty(boxes: DecodedBoxes, row: int) -> float | None:
    """Doubt in [0, 1] about the surest box of a phrase: 1 minus its expected IoU where the network estimates that.

    Else the standard deviation of its hypotheses, in shares of the canvas; None for a network with neither.
    """
    best = int(boxes.presence_logits[row].argmax())
    if boxes.quality_logits is not None:
        return said(1.0 - float(boxes.quality_logits[row, best].float().sigmoid()))
    return None if boxes.variance is None else said(min(1.0, float(boxes.variance[row, best]) ** 0.5))


def batched(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """The items in batches of at most `size`, in order."""
    return (items[first : first + size] for first in range(0, len(items), size))


def joined(states: Sequence[PhraseStates]) -> PhraseStates:
    """The states of several batches, in order."""
    return PhraseStates(torch.cat([part.box for part in states]), torch.cat([part.phrase for part in states]))


def concatenated(parts: Sequence[SeenImages]) -> SeenImages:
    """The features of several batches of images, in order."""
    return SeenImages(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(SeenImages)))


def to_device(value: Any, device: torch.device) -> Any:
    """A dataclass of tensors, moved."""
    return replace(value, **{f.name: getattr(value, f.name).to(device) for f in fields(value)})
