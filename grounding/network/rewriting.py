"""Free answers: the model words its phrases as it likes, and each is then traced to the words that it means.

A phrase that cannot be traced becomes an emission without characters, which the predictor drops and counts, so that
every finding still has its place in the report. Copying (`grounding.copying`) is the default; this is for models that
were trained to rewrite.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from grounding.copying import CopyConstraint, Emission
from grounding.network.answering import Constraint
from grounding.spans import Alignment, align
from grounding.tokens import GroundingTokenizer, TextTokens
from grounding.types import Span

Aligner = Callable[[str, str], Alignment | None]
"""A phrase and the text that it is about -> the place in the text that supports it, or None."""


def find_aligner(constrained: bool) -> Aligner | None:
    """What traces free answers; None where answers only copy."""
    return None if constrained else align


def constraints(prompts: Sequence[TextTokens], tokens: GroundingTokenizer, align: Aligner | None) -> list[Constraint]:
    """One for each prompt: of copying, or with an aligner free."""
    if align is None:
        return [CopyConstraint(prompt, tokens) for prompt in prompts]
    return [FreeAnswer(prompt, tokens, align) for prompt in prompts]


class FreeAnswer:
    """The state of one free answer; what it may not say: <ground>, padding, and a close without a phrase."""

    def __init__(self, prompt: TextTokens, tokens: GroundingTokenizer, align: Aligner) -> None:
        self.prompt, self.tokens, self.align = prompt, tokens, align
        self.closers = (tokens.box, tokens.neg)
        self.emissions: list[Emission] = []
        self.ended = False
        self._open: list[int] = []

    @property
    def in_phrase(self) -> bool:
        """Whether the last chosen token belongs to an open phrase."""
        return bool(self._open)

    def choose(self, logits: Tensor) -> int:
        """The best token for logits float32[V]; updates the state. An ended answer stays ended."""
        if self.ended:
            return self.tokens.eos
        barred = {self.tokens.ground, self.tokens.pad} - {self.tokens.eos}
        barred |= set() if self._open else set(self.closers)
        token = int(logits.index_fill(0, torch.tensor(sorted(barred)), -torch.inf).argmax())
        if token == self.tokens.eos:
            self.ended, self._open = True, []
        elif token in self.closers:
            self._close(token == self.tokens.neg)
        else:
            self._open.append(token)
        return token

    def _close(self, negated: bool) -> None:
        found = self.align(self.tokens.decode(self._open).strip(), self.prompt.text)
        span = found.span if found is not None else Span(0, 0)
        self.emissions.append(Emission(span.start, span.end, negated))
        self._open = []
