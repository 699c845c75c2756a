"""Images and texts to tensors for one grounding, and boxes back to image pixels. Holds no weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from grounding.config import KnowMVGConfig
from grounding.copying import Emission
from grounding.evaluation.calibration import calibrated
from grounding.geometry import Frame, iou, stretch_contrast
from grounding.knowledge import KnowledgeBank
from grounding.network.decoder import DecodedBoxes
from grounding.network.model import TextBatch
from grounding.network.views import VIEWS, View
from grounding.tokens import GroundingTokenizer, TextTokens
from grounding.types import Box, Image, ScoredBox, Span

LARGEST = 1 << 25
"""Pixels of an image that is resampled at once; a larger one is averaged in whole blocks first."""

DECIMALS = 4

STRIP = 1 << 23
"""Pixels that are read at once from a very large image."""


class Processor:
    """Everything between the world's values and the network's tensors, for one configuration."""

    def __init__(self, config: KnowMVGConfig, tokens: GroundingTokenizer, bank: KnowledgeBank) -> None:
        self.config, self.tokens, self.bank = config, tokens, bank

    def frame(self, image: Image) -> Frame:
        """Where the image lies on the canvas; an image that is not two-dimensional and filled raises ValueError."""
        if image.ndim != 2 or 0 in image.shape:
            raise ValueError(f"an image needs rows and columns, not the shape {image.shape}: pass float32[H, W]")
        return Frame(image.shape[0], image.shape[1], self.config.frame.canvas, self.config.frame.mode)

    def pixels(self, image: Image) -> Tensor:
        """float32[1, 1, S, S] in [0, 1], contrast stretched."""
        drawn = self.frame(image).draw(shrink(image, self.config.frame.canvas))
        return torch.from_numpy(stretch_contrast(drawn))[None, None]

    @property
    def views(self) -> tuple[View, ...]:
        """How each picture is looked at."""
        return VIEWS[: self.config.decision.views]

    def encode(self, text: str) -> TextTokens:
        """Tokens of a text, cut at the longest prompt."""
        return self.tokens.encode(text, self.config.language.max_prompt_tokens)

    def pieces(self, sentence: Span, text: str) -> list[Span]:
        """The sentence of a report's `text`, in pieces that fit a prompt: one, unless it is very long."""
        words = text[sentence.start : sentence.end]
        cuts = self.tokens.pieces(words, self.config.language.max_prompt_tokens)
        return [Span(sentence.start + start, sentence.start + end) for start, end in cuts]

    def forced_batch(self, texts: Sequence[tuple[str, TextTokens, Sequence[Emission]]]) -> TextBatch:
        """Texts on one image with their phrases already decided, for teacher forcing; phrases in order."""
        rows: list[list[int]] = []
        where: list[tuple[int, int, int]] = []
        phrases: list[str] = []
        for number, (text, tokens, emissions) in enumerate(texts):
            ids = self.tokens.prompt_ids(tokens)
            for emission in emissions:
                first, last = tokens.span_tokens(emission.start, emission.end)
                where.append((number, len(ids), len(ids) + last - first))
                ids += [*tokens.ids[first:last], self.tokens.neg if emission.negated else self.tokens.box]
                phrases.append(text[emission.start : emission.end])
            rows.append(ids)
        padded, mask = pad_rows(rows, self.tokens.pad)
        text_of, starts, ends = (torch.tensor([w[i] for w in where], dtype=torch.long) for i in range(3))
        zeros = torch.zeros(len(rows), dtype=torch.long)
        labels = torch.full_like(padded, -100)
        return TextBatch(padded, mask, labels, zeros, text_of, starts, ends, self.log_prior(phrases))

    def log_prior(self, phrases: Sequence[str]) -> Tensor:
        """float32[N, M] of the knowledge bank."""
        if not phrases:
            return torch.zeros(0, len(self.bank.rows))
        return torch.from_numpy(np.stack([self.bank.log_prior(phrase) for phrase in phrases]))

    def scored_boxes(self, boxes: DecodedBoxes, index: int, frame: Frame) -> tuple[ScoredBox, ...]:
        """Boxes of phrase `index` whose presence passes the threshold, best first, near duplicates left out.

        Where the phrase is known to be shown (`assume_shown`), the surest box is given if none passes. The score is the
        presence or, where the model has a calibration, the probability that the box is right.
        """
        presence = boxes.presence_logits[index].float().sigmoid().tolist()
        scores = self._scores(boxes, index, presence)
        decision = self.config.decision
        kept: list[ScoredBox] = []
        for slot in sorted(range(len(presence)), key=lambda i: -presence[i]):
            if presence[slot] < decision.presence and (kept or not decision.assume_shown):
                break
            box = frame.to_image(boxes.refined[index, slot].tolist())
            if box.area > 0 and all(iou(box, other.box) < decision.duplicate_iou for other in kept):
                kept.append(ScoredBox(box, scores[slot]))
        return tuple(sorted(kept, key=lambda scored: -scored.score))

    def _scores(self, boxes: DecodedBoxes, index: int, presence: list[float]) -> list[float]:
        numbers = self.config.decision.calibration
        if not numbers:
            return presence
        logits = boxes.quality_logits
        quality = None if logits is None else logits[index].float().sigmoid().tolist()
        return [float(score) for score in calibrated(presence, quality, numbers)]

    def deciding(self, **changes: object) -> Processor:
        """The same, with other settings of `decision`."""
        decision = self.config.decision.model_copy(update=changes)
        return Processor(self.config.model_copy(update={"decision": decision}), self.tokens, self.bank)


def said(value: float) -> float:
    """A share of a picture's side, or a probability, as it is told: in steps far finer than the model is sure of, and
    far coarser than the rounding by which a computation in a batch differs from one alone."""
    return round(value, DECIMALS)


def said_box(scored: ScoredBox, frame: Frame) -> ScoredBox:
    """A box of the image in `frame`, and its score, as they are told."""
    xs = [said(x / frame.width) * frame.width for x in (scored.box.x1, scored.box.x2)]
    ys = [said(y / frame.height) * frame.height for y in (scored.box.y1, scored.box.y2)]
    return ScoredBox(Box(xs[0], ys[0], xs[1], ys[1]), said(scored.score))


def shrink(image: Image, canvas: int) -> Image:
    """float32[H, W] without NaN and infinities, of about `LARGEST` pixels at most; no side falls below `canvas`.

    An image that is so already is returned itself. Very large ones are averaged in blocks, strip by strip, so that a
    picture of 400 million pixels takes seconds and little memory beyond itself. Up to one block at the right and bottom
    edges is left out.
    """
    height, width = image.shape
    down = min(math.ceil(math.sqrt(height * width / LARGEST)), max(1, height // canvas))
    across = min(math.ceil(height * width / LARGEST / down), max(1, width // canvas))
    down = min(math.ceil(height * width / LARGEST / across), max(1, height // canvas))
    if down * across <= 1:
        return _finite(image)
    rows, columns = height // down, width // across
    means = np.empty((rows, columns), np.float32)
    step = max(1, STRIP // (down * width))
    for first in range(0, rows, step):
        last = min(rows, first + step)
        strip = _finite(image[first * down : last * down, : columns * across])
        total = means[first:last]
        total[:] = 0.0
        for y in range(down):
            for x in range(across):
                total += strip[y::down, x::across]
        total /= down * across
    return means


def _finite(image: Image) -> Image:
    given = np.asarray(image, np.float32)
    if np.isfinite(given).all():
        return given
    finite: Image = np.nan_to_num(given, nan=0.0, posinf=1.0, neginf=0.0)
    return finite


def pad_rows(rows: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """int64[S, T] right-padded and its mask bool[S, T]."""
    longest = max(len(row) for row in rows)
    padded = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in rows])
    return padded, mask
