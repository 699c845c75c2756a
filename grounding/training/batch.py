"""Examples to tensors: token sequences with their labels, and the truth of each phrase to ground."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from grounding.knowledge import KnowledgeBank
from grounding.network.model import TextBatch
from grounding.predictor import to_device
from grounding.tokens import GroundingTokenizer, TextTokens
from grounding.training.examples import Answer, Example, Prompt
from grounding.training.losses import Targets


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """Pixels float32[B, 1, S, S], texts and truth."""

    pixels: Tensor
    text: TextBatch
    targets: Targets

    def on(self, device: torch.device) -> TrainingBatch:
        """The batch on a device."""
        if device.type == "cpu":
            return self
        return TrainingBatch(self.pixels.to(device), to_device(self.text, device), to_device(self.targets, device))


@dataclass(frozen=True, slots=True)
class LabelledText:
    """One text as token ids with labels, and its phrases as (start, end, answer)."""

    ids: list[int]
    labels: list[int]
    phrases: list[tuple[int, int, Answer]]


class Batcher:
    """Turns examples into batches for one tokenizer and one knowledge bank; remembers what it read of phrases."""

    def __init__(self, tokens: GroundingTokenizer, bank: KnowledgeBank, slots: int, limit: int) -> None:
        self.tokens, self.bank, self.slots, self.limit = tokens, bank, slots, limit
        self.row_boxes = torch.from_numpy(bank.main_boxes())
        self._readings: dict[str, tuple[Tensor, Tensor]] = {}

    def reading(self, phrase: str) -> tuple[Tensor, Tensor]:
        """log-prior float32[M] and matching rows bool[M] of a phrase."""
        if phrase not in self._readings:
            if len(self._readings) > 20_000:
                self._readings.clear()
            prior, rows = self.bank.log_prior(phrase), self.bank.entity_mask(phrase)
            self._readings[phrase] = (torch.from_numpy(prior), torch.from_numpy(rows))
        return self._readings[phrase]

    def sequence(self, prompt: Prompt) -> LabelledText:
        """Token ids of a prompt with its answers; answers beyond the cut of the text are left out."""
        text = self.tokens.encode(prompt.text, self.limit)
        ids = self.tokens.prompt_ids(text)
        labels, phrases = [-100] * (len(ids) - 1), []
        for answer in prompt.answers:
            piece = self._copied(text, answer)
            if not piece:
                continue
            if not answer.negated and answer.boxes is not None:
                phrases.append((len(ids), len(ids) + len(piece), answer))
            ids += [*piece, self.tokens.neg if answer.negated else self.tokens.box]
        ids.append(self.tokens.eos)
        labels += ids[len(labels) + 1 :]
        return LabelledText(ids, [*labels, -100], phrases)

    @staticmethod
    def _copied(text: TextTokens, answer: Answer) -> list[int]:
        first, last = text.span_tokens(answer.start, answer.end)
        return list(text.ids[first:last])

    def collate(self, examples: Sequence[Example]) -> TrainingBatch:
        """A batch of whole examples."""
        prompts = [(index, prompt) for index, example in enumerate(examples) for prompt in example.prompts]
        sequences = [self.sequence(prompt) for _, prompt in prompts]
        phrases = [(s, *found) for s, sequence in enumerate(sequences) for found in sequence.phrases]
        readings = [self.reading(prompts[s][1].text[a.start : a.end]) for s, _, _, a in phrases]
        rows = len(self.bank.rows)
        text = TextBatch(
            *self._padded(sequences),
            image_of_text=torch.tensor([index for index, _ in prompts]),
            text_of_phrase=torch.tensor([p[0] for p in phrases], dtype=torch.long),
            phrase_start=torch.tensor([p[1] for p in phrases], dtype=torch.long),
            phrase_end=torch.tensor([p[2] for p in phrases], dtype=torch.long),
            log_prior=torch.stack([r[0] for r in readings]) if readings else torch.zeros(0, rows),
        )
        boxes, valid = self._truth([p[3] for p in phrases])
        match = torch.stack([r[1] for r in readings]) if readings else torch.zeros(0, rows, dtype=torch.bool)
        pixels = torch.from_numpy(np.stack([example.image for example in examples])).unsqueeze(1)
        return TrainingBatch(pixels, text, Targets(boxes, valid, match, self.row_boxes))

    def _padded(self, sequences: Sequence[LabelledText]) -> tuple[Tensor, Tensor, Tensor]:
        longest = max(len(s.ids) for s in sequences)
        ids = torch.full((len(sequences), longest), self.tokens.pad)
        labels = torch.full((len(sequences), longest), -100)
        mask = torch.zeros(len(sequences), longest, dtype=torch.bool)
        for row, sequence in enumerate(sequences):
            n = len(sequence.ids)
            ids[row, :n], labels[row, :n] = torch.tensor(sequence.ids), torch.tensor(sequence.labels)
            mask[row, :n] = True
        return ids, mask, labels

    def _truth(self, answers: Sequence[Answer]) -> tuple[Tensor, Tensor]:
        boxes = torch.full((len(answers), self.slots, 4), 0.5)
        valid = torch.zeros(len(answers), self.slots, dtype=torch.bool)
        for row, answer in enumerate(answers):
            largest = sorted(answer.boxes or (), key=lambda b: -b[2] * b[3])[: self.slots]
            for column, box in enumerate(largest):
                boxes[row, column], valid[row, column] = torch.tensor(box), True
        return boxes, valid
