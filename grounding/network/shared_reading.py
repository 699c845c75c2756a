"""How an image-text model reads texts on images: each image once, into the cache of all of its texts.

`SharedReading` lets the cache grow. `StaticReading` moves it into one of fixed size before the answers are made, so
that every further token is the same computation on the same memory: it can be compiled, and a GPU can replay it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

ROWS, LENGTH = (8, 16, 32, 64), 128
"""A fixed cache has one of these numbers of rows (texts), and a multiple of this length (tokens)."""

CACHES = 2
"""Fixed caches that are kept for the next texts of like size: of a model of 7 billion weights, 64 rows take 20 GB."""


class ReaderOfImages(Protocol):
    """The part of `ImageTextModel` that reads."""

    lm: Any
    max_answer_tokens: int

    def prefix(self, image_tokens: Tensor) -> Tensor:
        """What the texts on an image begin with, embedded."""
        ...

    def kinds(self, count: int, device: torch.device) -> Tensor:
        """Where the prefix has the image."""
        ...

    def positions(self, count: int, device: torch.device) -> Tensor:
        """Positions of the prefix."""
        ...

    def image_options(self, kinds: Tensor) -> dict[str, Tensor]:
        """What else a model wants to know of the image."""
        ...

    def embed(self, token_ids: Tensor) -> Tensor:
        """Tokens, embedded."""
        ...

    def run(self, inputs: Tensor, mask: Tensor, positions: Tensor, **options: Any) -> Tensor:
        """States of embedded inputs."""
        ...


class SharedReading:
    """Texts on images as far as they have been read; `images` names the image of each text."""

    def __init__(
        self, language: ReaderOfImages, image_tokens: Tensor, images: Sequence[int], ids: list[list[int]], pad: int
    ) -> None:
        self.language = language
        self.cache: Any = DynamicCache()
        device = image_tokens.device
        places = self._look(image_tokens, images)
        self.first, self.axes = places.max() + 1, len(places)
        longest = max(len(row) for row in ids)
        padded = torch.tensor([[pad] * (longest - len(row)) + row for row in ids], device=device)
        # Padding lies between image and text, so that the last column is the newest token of every row.
        self.text = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids], device=device)
        self.seen = self.text.new_ones(len(ids), places.shape[-1])
        self.hidden = self._advance(padded, (self.text.cumsum(1) - 1).clamp_min(0))

    def _look(self, image_tokens: Tensor, images: Sequence[int]) -> Tensor:
        """Read the images; returns the positions int64[A, 1, P] of what was read of each."""
        language, device = self.language, image_tokens.device
        count, tokens = image_tokens.shape[:2]
        prefix, places = language.prefix(image_tokens), language.positions(tokens, device)
        options = language.image_options(language.kinds(tokens, device).expand(count, -1))
        mask = torch.ones(prefix.shape[:2], dtype=torch.long, device=device)
        language.run(
            prefix, mask, places.expand(-1, count, -1), past_key_values=self.cache, use_cache=True, **options
        )  # fmt: skip
        self.cache.batch_select_indices(torch.tensor(list(images), device=device))
        return places

    def _advance(self, ids: Tensor, order: Tensor) -> Tensor:
        places = (self.first + order).expand(self.axes, -1, -1)
        mask = torch.cat([self.seen, self.text], 1)
        states = self.language.run(self.language.embed(ids), mask, places, past_key_values=self.cache, use_cache=True)
        return states[:, -1].float()

    def feed(self, chosen: list[int]) -> None:
        """Read one more token of each text."""
        ids = torch.tensor(chosen, device=self.text.device)[:, None]
        self.text = torch.cat([self.text, torch.ones_like(ids)], 1)
        self.hidden = self._advance(ids, self.text.sum(1, keepdim=True) - 1)


class StaticReading:
    """Texts whose cache has its final size: further tokens fill it. `count` rows are texts, the rest is padding."""

    def __init__(self, steps: StaticSteps, begun: SharedReading, count: int, cache: StaticCache) -> None:
        self.steps, self.count, self.cache = steps, count, cache
        held: Any
        for held, grown in zip(cache.layers, begun.cache.layers, strict=True):
            held.update(grown.keys, grown.values)
        self.read = begun.seen.shape[1] + begun.text.shape[1]
        self.mask = begun.text.new_zeros(len(begun.text), steps.length_of(begun))
        self.mask[:, : self.read] = torch.cat([begun.seen, begun.text], 1)
        self.next = (begun.first + begun.text.sum(1, keepdim=True)).expand(begun.axes, -1, -1).clone()
        self.hidden = begun.hidden[:count]

    def feed(self, chosen: list[int]) -> None:
        """Read one more token of each text."""
        padded = [*chosen, *[chosen[0]] * (len(self.mask) - self.count)]
        self.mask[:, self.read] = 1
        states = self.steps.step(
            torch.tensor(padded, device=self.mask.device)[:, None], self.mask, self.next, self.cache
        )
        # A replayed graph writes its result to the same place every time.
        self.hidden = states[: self.count].clone()
        self.read += 1
        self.next += 1


class StaticSteps:
    """Further tokens over caches of fixed size, compiled once for each size if wanted."""

    def __init__(self, language: ReaderOfImages, compiled: bool) -> None:
        self.language = language
        self._caches: dict[tuple[int, int], StaticCache] = {}
        on_gpu = torch.cuda.is_available()
        self.step = (
            torch.compile(self._step, dynamic=False, mode="reduce-overhead" if on_gpu else None)
            if compiled else self._step
        )  # fmt: skip

    def begin(self, image_tokens: Tensor, images: Sequence[int], ids: list[list[int]], pad: int) -> StaticReading:
        """Read the texts so far; the rows that fill up a size repeat the first text."""
        missing = next((rows for rows in ROWS if rows >= len(ids)), len(ids)) - len(ids)
        begun = SharedReading(
            self.language, image_tokens, [*images, *[images[0]] * missing], [*ids, *[ids[0]] * missing], pad
        )
        return StaticReading(self, begun, len(ids), self._cache(len(begun.text), self.length_of(begun)))

    def length_of(self, begun: SharedReading) -> int:
        """Tokens that the cache of these texts must hold when their answers are complete, rounded up to a size."""
        needed = begun.seen.shape[1] + begun.text.shape[1] + self.language.max_answer_tokens
        return -(-needed // LENGTH) * LENGTH

    def _cache(self, rows: int, length: int) -> StaticCache:
        """An empty cache of this size; of those that are kept, the one that was used last is the last."""
        cache = self._caches.pop((rows, length), None)
        if cache is None:
            while len(self._caches) >= CACHES:
                self._caches.pop(next(iter(self._caches)))
            cache = StaticCache(config=self.language.lm.config, max_cache_len=length)
        else:
            cache.reset()
        self._caches[rows, length] = cache
        return cache

    def _step(self, ids: Tensor, mask: Tensor, places: Tensor, cache: StaticCache) -> Tensor:
        """States float32[S, d] of one more token of each text."""
        language = self.language
        states = language.run(language.embed(ids), mask, places, past_key_values=cache, use_cache=True)
        return states[:, -1].float()
