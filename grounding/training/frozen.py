"""What a frozen trunk (vision backbone and language model) makes of pictures and phrases, computed once and kept.

Heads that are compared on it share every feature, as the predecessor shares its frozen encoder; a step then costs the
head alone. Features lie in shards on disk, in half precision; processes that share a folder share the work.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from grounding.knowledge import KnowledgeBank
from grounding.network.answering import PhraseStates
from grounding.network.backbone import ImageFeatures
from grounding.network.model import KnowMVG
from grounding.network.transvg import phrase_words
from grounding.tokens import GroundingTokenizer
from grounding.training.batch import Batcher
from grounding.training.examples import Example
from grounding.training.locks import locked
from grounding.training.losses import Targets

SHARD = 128
"""Pictures in one shard."""
LONGEST_PHRASE = 24
"""Words (tokens) of a phrase that are kept."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture to freeze: its example, its patient, and what identifies each phrase in a test, in order."""

    example: Example
    name: str
    patient: str = ""
    labels: tuple[str, ...] = ()


Maker = Callable[[int], Picture | None]
"""Makes the picture of a number, the same one each time; None where there is nothing to learn from it."""


@dataclass(frozen=True, slots=True)
class FrozenPicture:
    """Place of a picture: its shard, its row there, its phrases [first, last), its name, patient and labels.

    `asked` are the words of its phrases.
    """

    shard: dict[str, Tensor]
    row: int
    phrases: slice
    name: str
    patient: str
    labels: tuple[str, ...]
    asked: tuple[str, ...]

    def truth(self, phrase: int) -> Tensor:
        """float32[G, 4]: the true boxes of one phrase, cxcywh of the canvas."""
        row = self.phrases.start + phrase
        return self.shard["boxes"][row][self.shard["valid"][row]]


@dataclass(frozen=True, slots=True)
class FrozenBatch:
    """Everything a head needs of N phrases on B pictures; `words` float32[N, L, d] with `word_mask` bool[N, L]."""

    features: ImageFeatures
    image_index: Tensor
    states: PhraseStates
    words: Tensor
    word_mask: Tensor
    log_prior: Tensor
    targets: Targets


class Trunk:
    """A network whose features are frozen, with what is needed to read phrases for it.

    `boxes` true boxes of a phrase are kept, the largest ones; as many as the decoder has slots unless it is given.
    """

    def __init__(
        self, network: KnowMVG, tokens: GroundingTokenizer, bank: KnowledgeBank, boxes: int | None = None
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        config = network.config
        self.batcher = Batcher(tokens, bank, boxes or config.decoder.slots, config.language.max_prompt_tokens)

    @torch.inference_mode()
    def freeze(self, pictures: Sequence[Picture]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """Tensors of a shard and a description of each picture in it."""
        parts, rows, first = [], [], 0
        for picture in pictures:
            found = self._one(picture.example)
            last = first + len(found["box"])
            rows.append({"name": picture.name, "patient": picture.patient, "labels": picture.labels,
                         "phrases": [first, last], "asked": self._asked(picture.example)})  # fmt: skip
            parts.append(found)
            first = last
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}, rows

    def _asked(self, example: Example) -> list[str]:
        """The words of the phrases, in the order of a batch."""
        found = [(prompt.text, self.batcher.sequence(prompt).phrases) for prompt in example.prompts]
        return [text[answer.start : answer.end] for text, phrases in found for _, _, answer in phrases]

    def _one(self, example: Example) -> dict[str, Tensor]:
        batch = self.batcher.collate([example])
        features = self.network.encode_images(batch.pixels)
        image_tokens = features.tokens[batch.text.image_of_text]
        states = self.network.language(image_tokens, batch.text.token_ids, batch.text.mask).float()
        read = self.network.phrase_states(states, batch.text)
        words, mask = phrase_words(states, batch.text)
        padded = words.new_zeros(len(words), LONGEST_PHRASE, words.shape[-1])
        kept = min(words.shape[1], LONGEST_PHRASE)
        padded[:, :kept] = words[:, :kept]
        half = torch.float16
        return {
            "coarse": features.coarse.to(half), "fine": features.fine.contiguous().to(half), "box": read.box.to(half),
            "phrase": read.phrase.to(half), "words": padded.to(half), "word_count": mask.sum(1).clamp_max(kept),
            "log_prior": batch.text.log_prior, "boxes": batch.targets.boxes, "valid": batch.targets.valid,
            "row_match": batch.targets.row_match,
        }  # fmt: skip


def freeze_all(trunk: Trunk, folder: Path, count: int, make: Maker) -> list[FrozenPicture]:
    """Frozen pictures of `make(0)` to `make(count - 1)`, kept in `folder`; what is there already is not made again.

    Another process at work on the same folder makes some of the shards; this one then waits for them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, count, SHARD)
    for wait in (False, True):
        for start in starts:
            path = folder / f"{start:06d}.safetensors"
            if path.exists():
                continue
            with locked(path.with_suffix(".lock"), wait=wait) as mine:
                if mine and not path.exists():
                    _write_shard(trunk, path, range(start, min(start + SHARD, count)), make)
    return [picture for start in starts for picture in _read_shard(folder / f"{start:06d}.safetensors")]


def _write_shard(trunk: Trunk, path: Path, numbers: range, make: Maker) -> None:
    made = [picture for picture in map(make, numbers) if picture is not None]
    tensors, rows = trunk.freeze(made) if made else ({}, [])
    path.with_suffix(".json").write_text(json.dumps(rows), encoding="utf-8")
    partial = path.with_suffix(".part")
    save_file({key: value.contiguous() for key, value in tensors.items()}, partial)
    partial.replace(path)


def _read_shard(path: Path) -> Iterator[FrozenPicture]:
    tensors = load_file(path)
    for row, told in enumerate(json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))):
        phrases = slice(*told["phrases"])
        if phrases.stop > phrases.start:
            names = tuple(told["labels"]), tuple(told["asked"])
            yield FrozenPicture(tensors, row, phrases, told["name"], told["patient"], *names)


def gather(pictures: Sequence[FrozenPicture], row_boxes: Tensor) -> FrozenBatch:
    """The batch of all phrases of some pictures."""

    def of_phrases(key: str) -> Tensor:
        found = torch.cat([p.shard[key][p.phrases] for p in pictures])
        return found.float() if found.dtype == torch.float16 else found

    def of_pictures(key: str) -> Tensor:
        return torch.stack([p.shard[key][p.row] for p in pictures]).float()

    counts = torch.tensor([p.phrases.stop - p.phrases.start for p in pictures])
    length = of_phrases("word_count")
    longest = int(length.max())
    return FrozenBatch(
        ImageFeatures(of_pictures("fine"), of_pictures("coarse")),
        torch.repeat_interleave(torch.arange(len(pictures)), counts),
        PhraseStates(of_phrases("box"), of_phrases("phrase")),
        of_phrases("words")[:, :longest],
        torch.arange(longest) < length[:, None],
        of_phrases("log_prior"),
        Targets(of_phrases("boxes"), of_phrases("valid"), of_phrases("row_match"), row_boxes),
    )


class Deck:
    """Endless draws of pictures without repeats until all have been drawn."""

    def __init__(self, pictures: Sequence[FrozenPicture], rng: np.random.Generator) -> None:
        self.pictures, self.rng = pictures, rng
        self._left: list[int] = []

    def draw(self, count: int) -> list[FrozenPicture]:
        """The next `count` pictures; none where the deck is empty."""
        if not self.pictures:
            return []
        while len(self._left) < count:
            self._left += self.rng.permutation(len(self.pictures)).tolist()
        drawn, self._left = self._left[:count], self._left[count:]
        return [self.pictures[index] for index in drawn]
