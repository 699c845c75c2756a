"""Constrained copying: the language model may only emit contiguous words of its prompt, closed by <BOX> or <NEG>.

So every phrase has an exact place in the report and nothing is invented. The model chooses where a phrase starts
and ends, and which of the two closes it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from grounding.tokens import TextTokens


@dataclass(frozen=True, slots=True)
class Emission:
    """A closed phrase: characters [start, end) of the prompt's text, and whether the model negates it.

    No characters (`is_supported` False) stand for a phrase of a free answer that nothing in the text supports.
    """

    start: int
    end: int
    negated: bool

    @property
    def is_supported(self) -> bool:
        """Whether words of the text hold the phrase."""
        return self.start < self.end


class CopyConstraint:
    """The state of one answer: which places of the prompt the open phrase may come from."""

    def __init__(self, prompt: TextTokens, tokens: Any) -> None:
        self.prompt = prompt
        self.box, self.neg, self.eos = tokens.box, tokens.neg, tokens.eos
        self.closers = (self.box, self.neg)
        self.emissions: list[Emission] = []
        self.ended = False
        self._length = 0
        self._ends: list[int] = []
        self._closed = 0

    @property
    def in_phrase(self) -> bool:
        """Whether the last chosen token belongs to an open phrase."""
        return self._length > 0

    def allowed(self) -> set[int]:
        """Token ids that may come next."""
        ids = self.prompt.ids
        if not self._length:
            starts = {ids[i] for i in range(self._closed, len(ids)) if self.prompt.word_starts[i]}
            return starts | {self.eos}
        following = {ids[end] for end in self._ends if end < len(ids)}
        return following | (set(self.closers) if self._closable() else set())

    def choose(self, logits: Tensor) -> int:
        """The best allowed token for logits float32[V]; updates the state. An ended answer stays ended."""
        if self.ended:
            return int(self.eos)
        options = sorted(self.allowed())
        token = options[int(logits[options].argmax())]
        self._take(token)
        return token

    def _closable(self) -> list[int]:
        """Places where the open phrase may end: before a word, or at the end of the text."""
        starts, offsets = self.prompt.word_starts, self.prompt.offsets
        ends = [end for end in self._ends if end == len(starts) or starts[end]]
        return [end for end in ends if offsets[end - 1][0] < offsets[end - 1][1]]

    def _take(self, token: int) -> None:
        ids = self.prompt.ids
        if token == self.eos:
            self.ended = True
        elif token in self.closers:
            end = self._closable()[0]
            first = end - self._length
            offsets = self.prompt.offsets
            self.emissions.append(Emission(offsets[first][0], offsets[end - 1][1], token == self.neg))
            self._closed, self._length, self._ends = end, 0, []
        elif not self._length:
            places = range(self._closed, len(ids))
            self._ends = [i + 1 for i in places if ids[i] == token and self.prompt.word_starts[i]]
            self._length = 1
        else:
            self._ends = [end + 1 for end in self._ends if end < len(ids) and ids[end] == token]
            self._length += 1
