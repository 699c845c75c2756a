"""Phrases that are asked for and not there: without them a network learns that whatever is asked for is shown.

Each finding is asked for in vain in the same share of the times that it is asked for at all, in the very sentences that
speak of it elsewhere: neither its name nor the form of the text betrays the truth, only the picture does.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from grounding.knowledge import Entity, KnowledgeBank
from grounding.training.examples import Prompt, bare, without_boxes

SHADOWS = frozenset({"opacity", "edema", "nodule", "effusion", "calcification", "fibrosis"})
"""Families that can be taken for one another."""


class AbsentPhrases:
    """Prompts of earlier studies, to be asked of pictures that show nothing of the kind.

    `share` is that of the asked phrases of each finding that are not in the picture.
    """

    def __init__(self, bank: KnowledgeBank, share: float, keep: int = 200) -> None:
        self.bank, self.share, self.keep = bank, share, keep
        self._pool: dict[str, list[Prompt]] = defaultdict(list)
        self._asked: Counter[str] = Counter()
        self._in_vain: Counter[str] = Counter()
        self._kinds: dict[str, str] = {}

    def draw(self, rng: np.random.Generator, prompts: Sequence[Prompt], asked: Iterable[Prompt]) -> Prompt | None:
        """A prompt that is true of none of a study's `prompts`, where one is due; remembers the study.

        `asked` are those of its prompts that are asked for.
        """
        shown = [entity for prompt in prompts for entity in self._remember(prompt)]
        for prompt in asked:
            self._asked.update(e.id for e in self._entities(prompt) if e is not None)
        if None in shown:
            return None  # what it shows is not known
        kinds = {kind_of(entity) for entity in shown if entity is not None}
        due = {name: self._due(name) for name in sorted(self._pool) if self._kinds[name] not in kinds}
        due = {name: missing for name, missing in due.items() if missing >= 1}
        if not due:
            return None
        weights = np.array(list(due.values()))
        name = str(rng.choice(list(due), p=weights / weights.sum()))
        self._in_vain[name] += 1
        prompt = without_boxes(self._pool[name][int(rng.integers(len(self._pool[name])))])
        return bare(rng, prompt) if rng.random() < 0.5 else prompt

    def _due(self, name: str) -> float:
        """How many more times a finding should have been asked for in vain."""
        return self._asked[name] * self.share / (1 - self.share) - self._in_vain[name]

    def _entities(self, prompt: Prompt) -> list[Entity | None]:
        return [self.bank.read_phrase(prompt.text[a.start : a.end]).entity for a in prompt.answers if not a.negated]

    def _remember(self, prompt: Prompt) -> list[Entity | None]:
        """The findings that a prompt asserts; a prompt of one finding is kept."""
        found = self._entities(prompt)
        if len(found) == 1 and found[0] is not None:
            held = self._pool[found[0].id]
            self._kinds[found[0].id] = kind_of(found[0])
            if len(held) < self.keep:
                held.append(prompt)
        return found


def kind_of(entity: Entity) -> str:
    """What an entity looks like on a radiograph, coarsely."""
    return "shadow" if entity.family in SHADOWS else entity.family
