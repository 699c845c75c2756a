"""Knowledge-enhanced prompting: chooses the k rows of the knowledge bank that suit a phrase, as location prompts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grounding.config import KnowMVGConfig
from grounding.knowledge import KnowledgeBank
from grounding.network.boxes import point_code


@dataclass(frozen=True, slots=True)
class LocationPrompts:
    """`sparse` float32[N, k, C] for the decoder, `prior` float32[N, H, W], `query` float32[N, C], `scores` [N, M]."""

    sparse: Tensor
    prior: Tensor
    query: Tensor
    scores: Tensor


class KnowledgePrompter(nn.Module):
    """Scores bank rows against the phrase and mixes the best k into prompts, a prior map and the query."""

    def __init__(self, config: KnowMVGConfig, language_width: int, bank: KnowledgeBank, grid: int) -> None:
        super().__init__()
        width = config.decoder.width
        self.top_k = min(config.knowledge.top_k, len(bank.rows))
        self.temperature = config.knowledge.temperature
        self.query_projection = nn.Linear(language_width + width, width)
        self.query_norm = nn.LayerNorm(width)
        self.key_projection = nn.Linear(language_width, width)
        self.key_norm = nn.LayerNorm(width)
        self.text_projection = nn.Linear(language_width, width)
        self.place_projection = nn.Linear(2 * width, width)
        self.prior_weight = nn.Parameter(torch.ones(()))
        self.attention = nn.MultiheadAttention(width, config.decoder.heads, batch_first=True)
        self.gamma = nn.Parameter(torch.zeros(()))
        corners = torch.from_numpy(bank.main_boxes())
        code = point_code(corners.view(-1, 2, 2), width).flatten(1)
        self.register_buffer("place_code", code, persistent=False)
        self.register_buffer("maps", torch.from_numpy(bank.maps(grid)), persistent=False)

    def forward(self, query: Tensor, phrase: Tensor, row_text: Tensor, log_prior: Tensor) -> LocationPrompts:
        """query float32[N, C], phrase float32[N, d], row_text float32[M, d], log_prior float32[N, M]."""
        asked = self.query_norm(self.query_projection(torch.cat([phrase, query], -1)))
        keys = self.key_norm(self.key_projection(row_text))
        scores = asked @ keys.T / asked.shape[-1] ** 0.5 + self.prior_weight * log_prior
        best, index = scores.topk(self.top_k, dim=-1)
        weights = torch.softmax(best / self.temperature, -1)
        place_code, maps = self.get_buffer("place_code"), self.get_buffer("maps")
        rows = self.text_projection(row_text) + self.place_projection(place_code)
        chosen = rows[index]
        prior = torch.einsum("nk,nkhw->nhw", weights, maps[index])
        mixed = self.attention(query.unsqueeze(1), chosen, chosen, need_weights=False)[0].squeeze(1)
        return LocationPrompts(weights.unsqueeze(-1) * chosen, prior, query + self.gamma * mixed, scores)
