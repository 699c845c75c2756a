"""How an answer comes about, whatever model reads: token by token, each chosen under a constraint, to the end.

The state that stands for a phrase's box is the one that predicts its closing token; that is why the states are
collected here, where the choice is made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from grounding.copying import Emission


@dataclass(frozen=True, slots=True)
class PhraseStates:
    """`box` float32[N, d] predicts <BOX>; `phrase` float32[N, d] is the mean over the phrase's tokens."""

    box: Tensor
    phrase: Tensor

    def __getitem__(self, rows: slice | list[int]) -> PhraseStates:
        """The states of some of the phrases."""
        return PhraseStates(self.box[rows], self.phrase[rows])


class Reading(Protocol):
    """Texts that a model has read and may read on: `hidden` float32[S, d] are the states of the newest tokens."""

    hidden: Tensor

    def feed(self, chosen: list[int]) -> None:
        """Read one more token of each text."""
        ...


class Constraint(Protocol):
    """What may be said in one answer, and what has been said."""

    closers: tuple[int, int]
    emissions: list[Emission]
    ended: bool

    @property
    def in_phrase(self) -> bool:
        """Whether the last chosen token belongs to an open phrase."""
        ...

    def choose(self, logits: Tensor) -> int:
        """The best allowed token for logits float32[V]; updates the state."""
        ...


class Answers:
    """The answers to one batch of prompts, under way."""

    def __init__(self, reading: Reading, rows: Sequence[Constraint], logits: Callable[[Tensor], Tensor]) -> None:
        self.reading, self.rows, self.logits = reading, rows, logits
        self.collected: list[list[Tensor]] = [[] for _ in rows]
        self.found: list[list[PhraseStates]] = [[] for _ in rows]

    def run(self, limit: int) -> tuple[list[list[Emission]], PhraseStates]:
        """At most `limit` tokens of each; returns each row's emissions in order, and the states of all of them."""
        for _ in range(limit):
            if not self.step():
                break
        for index, row in enumerate(self.rows):
            self._sort(index, row)
        return [row.emissions for row in self.rows], self.states()

    def _sort(self, index: int, row: Constraint) -> None:
        """Emissions and their states in the order of the text, which a free answer need not keep."""
        order = sorted(range(len(row.emissions)), key=lambda place: row.emissions[place].start)
        self.found[index] = [self.found[index][place] for place in order]
        row.emissions[:] = [row.emissions[place] for place in order]

    def step(self) -> bool:
        """Choose one token for each row and read it; False when every row has ended."""
        logits = self.logits(self.reading.hidden).float().cpu()
        chosen = [self._choose(index, row, logits[index]) for index, row in enumerate(self.rows)]
        if all(row.ended for row in self.rows):
            return False
        self.reading.feed(chosen)
        for index, row in enumerate(self.rows):
            if row.in_phrase:
                self.collected[index].append(self.reading.hidden[index])
        return True

    def _choose(self, index: int, row: Constraint, logits: Tensor) -> int:
        said = len(row.emissions)
        token = row.choose(logits)
        if token in row.closers:
            if len(row.emissions) > said:
                run = torch.stack(self.collected[index])
                self.found[index].append(PhraseStates(run[-1], run.mean(0)))
            self.collected[index].clear()
        return token

    def states(self) -> PhraseStates:
        """States of all closed phrases of all rows."""
        found = [state for row in self.found for state in row]
        if not found:
            empty = self.reading.hidden.new_zeros((0, self.reading.hidden.shape[-1]))
            return PhraseStates(empty, empty)
        return PhraseStates(torch.stack([s.box for s in found]), torch.stack([s.phrase for s in found]))
