"""Knowledge-enhanced prompting: chooses the k rows of the knowledge bank that suit a phrase, as location prompts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grounding.config import KnowMVGConfig
from grounding.knowledge import KnowledgeBank
from grounding.network.boxes import grid_code, point_code


@dataclass(frozen=True, slots=True)
class LocationPrompts:
    """`sparse` float32[N, k, C] for the decoder, `prior` float32[N, H, W], `query` float32[N, C], `scores` [N, M]."""

    sparse: Tensor
    prior: Tensor
    query: Tensor
    scores: Tensor


class KnowledgePrompter(nn.Module):
    """Scores bank rows against the phrase and mixes the best k into prompts, a prior map and the query.

    The prompts are the rows themselves or the k best cells of the prior map, as `knowledge.prompt_type` says.
    """

    def __init__(self, config: KnowMVGConfig, language_width: int, bank: KnowledgeBank, grid: int) -> None:
        super().__init__()
        width = config.decoder.width
        self.top_k = min(config.knowledge.top_k, len(bank.rows))
        self.temperature = config.knowledge.temperature
        self.query_projection = nn.Linear(language_width + width, width)
        self.query_norm = nn.LayerNorm(width)
        self.key_projection = nn.Linear(language_width, width)
        self.key_norm = nn.LayerNorm(width)
        self.points = PointPrompts(width, self.top_k) if config.knowledge.prompt_type == "points" else None
        if self.points is None:
            self.text_projection = nn.Linear(language_width, width)
            self.place_projection = nn.Linear(2 * width, width)
        self.prior_weight = nn.Parameter(torch.ones(()))
        self.attention = nn.MultiheadAttention(width, config.decoder.heads, batch_first=True)
        self.gamma = nn.Parameter(torch.zeros(()))
        corners = torch.from_numpy(bank.main_boxes())
        code = point_code(corners.view(-1, 2, 2), width).flatten(1)
        text_order, place_order = content_orders(len(bank.rows), config.knowledge.control)
        self.register_buffer("text_order", text_order, persistent=False)
        self.register_buffer("place_code", code[place_order], persistent=False)
        self.register_buffer("maps", torch.from_numpy(bank.maps(grid))[place_order], persistent=False)

    def forward(self, query: Tensor, phrase: Tensor, row_text: Tensor, log_prior: Tensor) -> LocationPrompts:
        """query float32[N, C], phrase float32[N, d], row_text float32[M, d], log_prior float32[N, M]."""
        asked = self.query_norm(self.query_projection(torch.cat([phrase, query], -1)))
        keys = self.key_norm(self.key_projection(row_text))
        scores = asked @ keys.T / asked.shape[-1] ** 0.5 + self.prior_weight * log_prior
        best, index = scores.topk(self.top_k, dim=-1)
        weights = torch.softmax(best / self.temperature, -1)
        prior = torch.einsum("nk,nkhw->nhw", weights, self.get_buffer("maps")[index])
        if self.points is not None:
            weights, chosen = self.points(prior)
        else:
            content = row_text[self.get_buffer("text_order")]
            rows = self.text_projection(content) + self.place_projection(self.get_buffer("place_code"))
            chosen = rows[index]
        mixed = self.attention(query.unsqueeze(1), chosen, chosen, need_weights=False)[0].squeeze(1)
        return LocationPrompts(weights.unsqueeze(-1) * chosen, prior, query + self.gamma * mixed, scores)


class PointPrompts(nn.Module):
    """The best cells of a prior map as point prompts, the way SAM codes a point."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.count = count
        self.projection = nn.Linear(width, width)

    def forward(self, prior: Tensor) -> tuple[Tensor, Tensor]:
        """float32[N, H, W] -> shares of the points float32[N, k] and their tokens float32[N, k, C]."""
        size, width = prior.shape[-1], self.projection.in_features
        best, index = prior.flatten(1).topk(min(self.count, size * size), dim=-1)
        code = grid_code(size, width, prior.device)[0].flatten(1).T
        return best / best.sum(-1, keepdim=True).clamp_min(1e-6), self.projection(code)[index]


def content_orders(rows: int, control: str) -> tuple[Tensor, Tensor]:
    """Whose text and whose place each of the `rows` carries, int64[M] both; for a control never its own."""
    own = torch.arange(rows)
    cycle = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    other = torch.empty_like(own)
    other[cycle] = cycle.roll(1)
    return (other if control == "random_rows" else own, own if control == "none" else other)
