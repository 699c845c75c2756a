"""The small multimodal language model: pooled image tokens and a text in, phrases and <BOX> tokens out.

Layout of a sequence: image tokens, <s>, text, <ground>, then the answer: phrase <BOX> phrase <NEG> ... </s>.
The state that stands for a box is the one that predicts <BOX>. Teacher forcing and cached generation share one
network call, and generation can only copy contiguous words of its prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from grounding.config import KnowMVGConfig
from grounding.copying import Emission
from grounding.network.answering import Answers, PhraseStates
from grounding.network.backbone import ImageFeatures
from grounding.network.rewriting import constraints, find_aligner
from grounding.tokens import TextTokens

LENGTH_GROUPS = 3
"""Into how many groups of like length the texts of a batch are parted."""


class LanguageModel(nn.Module):
    """A causal language model of transformers, built anew, that reads image tokens through a projector."""

    borrowed: frozenset[str] = frozenset()
    """Names of weights that belong to a pretrained folder and are not kept with the model: none."""

    def __init__(self, config: KnowMVGConfig) -> None:
        super().__init__()
        settings: dict[str, Any] = dict(config.language_model)
        models: Any = AutoModelForCausalLM
        self.lm = models.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))
        self.side = config.language.image_tokens_side
        self.max_answer_tokens = config.language.max_answer_tokens
        self.align = find_aligner(config.language.constrained)
        self.width = int(self.lm.config.hidden_size)
        self.projector = nn.Sequential(
            nn.Linear(config.decoder.width, self.width), nn.GELU(), nn.Linear(self.width, self.width)
        )

    @property
    def image_token_count(self) -> int:
        """Image tokens at the start of each sequence."""
        return self.side * self.side

    def look(self, pixels: Tensor, features: ImageFeatures) -> Tensor:
        """What the texts on an image begin with, float32[B, n, d]: here tokens of the backbone's features."""
        return self.image_tokens(features.coarse)

    def image_tokens(self, coarse: Tensor) -> Tensor:
        """float32[B, C, H, W] -> float32[B, side * side, d]."""
        pooled = nn.functional.adaptive_avg_pool2d(coarse, self.side)
        projected: Tensor = self.projector(pooled.flatten(2).transpose(1, 2))
        return projected

    def embed(self, token_ids: Tensor) -> Tensor:
        """int64[...] -> float32[..., d]."""
        embedded: Tensor = self.lm.get_input_embeddings()(token_ids)
        return embedded

    def forward(self, image_tokens: Tensor, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Teacher forcing: float32[S, n, d], int64[S, T] right-padded, bool[S, T] -> states float32[S, T, d].

        Texts of like length are read together, so that little is spent on padding; states of padding are zero.
        """
        lengths = mask.sum(1)
        order = lengths.argsort()
        states: Tensor | None = None
        for rows in order.chunk(LENGTH_GROUPS):
            longest = int(lengths[rows].max())
            read = self._read(image_tokens[rows], token_ids[rows, :longest], mask[rows, :longest])
            if states is None:
                states = read.new_zeros((*token_ids.shape, read.shape[-1]))
            states[rows, :longest] = read
        if states is None:
            raise ValueError("there is no text to read")
        return states

    def _read(self, image_tokens: Tensor, token_ids: Tensor, mask: Tensor) -> Tensor:
        inputs = torch.cat([image_tokens, self.embed(token_ids)], dim=1)
        whole = torch.cat([mask.new_ones(image_tokens.shape[:2]), mask], dim=1)
        states: Tensor = self.lm.model(inputs_embeds=inputs, attention_mask=whole.long()).last_hidden_state
        return states[:, image_tokens.shape[1] :]

    def logits(self, states: Tensor) -> Tensor:
        """float32[..., d] -> float32[..., V]."""
        scores: Tensor = self.lm.lm_head(states)
        return scores

    def generate(
        self, image_tokens: Tensor, prompts: Sequence[TextTokens], tokens: Any, images: Sequence[int] = ()
    ) -> tuple[list[list[Emission]], PhraseStates]:
        """Greedy, cached and constrained answers to prompts on images, whose tokens are float32[B, n, d].

        `images` names each prompt's image; without it, all are on the first. Returns for each prompt its emissions in
        order, and the states of all emissions of all prompts in that order.
        """
        rows = constraints(prompts, tokens, self.align)
        seen = image_tokens[list(images) or [0] * len(prompts)]
        reading = _CachedReading(self, seen, [tokens.prompt_ids(prompt) for prompt in prompts], tokens.pad)
        return Answers(reading, rows, self.logits).run(self.max_answer_tokens)

    def checkpoint_gradients(self) -> None:
        """Keep no activations for the backward pass: compute them again there."""
        self.lm.activation_checkpointing_enable({"use_reentrant": False})


class _CachedReading:
    """One batch of texts, each on its image (float32[S, n, d]), as far as read: the cache and the newest states."""

    def __init__(self, language: LanguageModel, image_tokens: Tensor, ids: list[list[int]], pad: int) -> None:
        self.language = language
        self.cache = DynamicCache()
        longest = max(len(row) for row in ids)
        count, device = image_tokens.shape[1], image_tokens.device
        padded = torch.tensor([[pad] * (longest - len(row)) + row for row in ids], device=device)
        text = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids], device=device)
        # Left padding keeps the last column the newest token of every row; it lies before the image tokens.
        embedded = language.embed(padded)
        inputs, masks = [], []
        for row in range(len(ids)):
            n = longest - len(ids[row])
            inputs.append(torch.cat([embedded[row, :n], image_tokens[row], embedded[row, n:]]))
            masks.append(torch.cat([text[row, :n], text.new_ones(count), text[row, n:]]))
        self.mask = torch.stack(masks)
        self.hidden = self._advance(torch.stack(inputs), (self.mask.cumsum(1) - 1).clamp_min(0))

    def _advance(self, inputs: Tensor, positions: Tensor) -> Tensor:
        out = self.language.lm.model(
            inputs_embeds=inputs, attention_mask=self.mask, position_ids=positions, past_key_values=self.cache,
            use_cache=True,
        )  # fmt: skip
        last: Tensor = out.last_hidden_state[:, -1]
        return last

    def feed(self, chosen: list[int]) -> None:
        """Read one more token of each text."""
        ids = torch.tensor(chosen, device=self.mask.device)[:, None]
        self.mask = torch.cat([self.mask, torch.ones_like(ids)], dim=1)
        self.hidden = self._advance(self.language.embed(ids), self.mask.sum(1, keepdim=True) - 1)
