"""Text to token ids and back to characters: every token knows its place in the text.

The tokenizer is a byte-level BPE of our own, or the fast tokenizer of a pretrained model with our tokens added.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from grounding.types import ModelError

PAD, BOS, EOS, GROUND, BOX, NEG = "<pad>", "<s>", "</s>", "<ground>", "<BOX>", "<NEG>"
CUTS = [re.compile(cut) for cut in (r"(?<=;)", r"(?<=,)(?=\s)", r"(?=\sand\s)", r"(?=\s)")]
"""Where a text that is too long for a prompt may be cut, best first."""

SPECIAL = [PAD, BOS, EOS, GROUND, BOX, NEG]
"""What the ids of a tokenizer of our own begin with."""


_UNREADABLE = re.compile("[<\ud800-\udfff]")
"""What the tokenizer must not see, each read as a space: the sign its special tokens begin with, and halves of
surrogate pairs, which a damaged text may hold and no encoding can."""


@dataclass(frozen=True, slots=True)
class TextTokens:
    """Token ids of a text, the characters [start, end) of each, whether a word starts there, and the whole text."""

    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    word_starts: tuple[bool, ...]
    text: str = ""

    def span_tokens(self, start: int, end: int) -> tuple[int, int]:
        """Indices [first, last) of the tokens that overlap characters [start, end)."""
        inside = [i for i, (a, b) in enumerate(self.offsets) if a < end and b > start]
        if not inside:
            return (0, 0)
        first = inside[0]
        led = first > 0 and self.offsets[first - 1] == (self.offsets[first][0],) * 2
        return (first - led, inside[-1] + 1)


class GroundingTokenizer:
    """The tokenizer of the language model and its special tokens.

    A prompt of a tokenizer of our own begins with <s>. With a pretrained one the image stands before the text, and
    `opening` is what its model expects at the very start, before the image.
    """

    def __init__(self, fast: Any) -> None:
        self.fast = fast
        self.ground, self.box, self.neg = (int(i) for i in fast.convert_tokens_to_ids([GROUND, BOX, NEG]))
        self.eos = int(fast.eos_token_id)
        self.pad = int(self.eos if fast.pad_token_id is None else fast.pad_token_id)
        self.bos = None if fast.bos_token_id is None else int(fast.bos_token_id)
        self._own = fast.convert_tokens_to_ids(SPECIAL) == list(range(len(SPECIAL)))
        if not self._own:
            # Signs of the pretrained model's own that stand in a report are words of the report.
            fast.backend_tokenizer.encode_special_tokens = True

    @property
    def opening(self) -> list[int]:
        """Ids at the start of a sequence of a pretrained model."""
        return [] if self.bos is None else [self.bos]

    def __len__(self) -> int:
        return len(self.fast)

    def encode(self, text: str, limit: int) -> TextTokens:
        """Tokens of a text (special tokens in it are read as plain characters), cut after `limit`."""
        encoded = self._encoding(text)
        placed = [(trim_start(text, a, b), b) for a, b in encoded.offsets[:limit]]
        kept = [i for i, (a, b) in enumerate(placed) if a < b or leads(placed, i)]
        offsets = tuple(placed[i] for i in kept)
        return TextTokens(tuple(encoded.ids[i] for i in kept), offsets, tuple(word_starts(text, offsets)), text)

    def count(self, text: str) -> int:
        """How many tokens a text has, before any cut."""
        return len(self._encoding(text).ids)

    def pieces(self, text: str, limit: int) -> list[tuple[int, int]]:
        """Characters [start, end) of the pieces of `text` of at most `limit` tokens, in order; only blanks are lost."""
        ends = [b for _, b in self._encoding(text).offsets]
        pieces: list[tuple[int, int]] = []
        start = trim_start(text, 0, len(text))
        while start < len(text):
            last = bisect_right(ends, start) + limit - 1
            end = len(text) if last >= len(ends) - 1 else ends[last]
            end = self._cut(text, start, end, limit)
            if any(letter.isalnum() for letter in text[start:end]):
                pieces.append((start, end))
            start = trim_start(text, end, len(text))
        return pieces

    def _cut(self, text: str, start: int, end: int, limit: int) -> int:
        """Where a piece of `limit` tokens that begins at `start` and may reach to `end` is best cut."""
        while end > start + 1 and self.count(text[start:end]) > limit:
            end -= 1
        if end == len(text):
            return end
        for cut in CUTS:
            places = [found.start() for found in cut.finditer(text, start + 1, end + 1) if found.start() <= end]
            if places:
                return places[-1]
        return end

    def _encoding(self, text: str) -> Any:
        return self.fast.backend_tokenizer.encode(_UNREADABLE.sub(" ", text), add_special_tokens=False)

    def plain_ids(self, text: str) -> list[int]:
        """All token ids of a text, blanks too."""
        return list(self._encoding(text).ids) if text else []

    def decode(self, ids: Sequence[int]) -> str:
        """The words of token ids, without special tokens."""
        return str(self.fast.decode(list(ids), skip_special_tokens=True))

    def prompt_ids(self, text: TextTokens) -> list[int]:
        """<s> text <ground>; <s> with a tokenizer of our own only."""
        return [*(self.opening if self._own else []), *text.ids, self.ground]

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json."""
        self.fast.save_pretrained(str(folder))

    @classmethod
    def load(cls, folder: Path) -> GroundingTokenizer:
        """Read what `save` wrote."""
        return cls(PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True))

    @classmethod
    def pretrained(cls, folder: Path) -> GroundingTokenizer:
        """The tokenizer of a pretrained model's folder, with <ground>, <BOX> and <NEG> added.

        Raises:
            ModelError: the folder has no fast tokenizer.
        """
        if not (folder / "tokenizer.json").is_file():
            raise ModelError(f"{folder} has no tokenizer.json; save its tokenizer there with AutoTokenizer")
        fast = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
        fast.add_tokens([AddedToken(token, special=True, normalized=False) for token in (GROUND, BOX, NEG)])
        return cls(fast)

    @classmethod
    def train(cls, texts: Iterable[str], vocabulary: int) -> GroundingTokenizer:
        """Learn a lower-casing byte-level BPE from texts."""
        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=SPECIAL, show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )  # fmt: skip
        tokenizer.train_from_iterator(texts, trainer)
        tokenizers: Any = PreTrainedTokenizerFast
        fast = tokenizers(
            tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS,
            extra_special_tokens={"ground_token": GROUND, "box_token": BOX, "neg_token": NEG},
        )  # fmt: skip
        return cls(fast)


def leads(offsets: Sequence[tuple[int, int]], index: int) -> bool:
    """Whether the token is a space of its own, without characters, at once before a word; other spaces mean nothing."""
    a, b = offsets[index]
    return a == b and index + 1 < len(offsets) and offsets[index + 1][0] == a < offsets[index + 1][1]


def word_starts(text: str, offsets: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether a word, or a sign of its own, begins at each token; not in the midst of a character or of a word."""
    starts: list[bool] = []
    last = 0
    for index, (a, b) in enumerate(offsets):
        opened = index > 0 and offsets[index - 1] == (a, a)
        apart = a == 0 or not (text[a - 1].isalnum() and text[a].isalnum())
        starts.append(apart and a >= last and not opened)
        last = max(last, b)
    return starts


def trim_start(text: str, start: int, end: int) -> int:
    """A byte-level token carries the space before it; its place in the text starts after that space."""
    while start < end and text[start].isspace():
        start += 1
    return start
