"""A phrase-given box regressor in the manner of TransVG and MedRPG, as a baseline: it finds no phrase by itself.

A fusion transformer reads a [REG] token, the picture's cells and the phrase's words; a small head turns the state of
[REG] into one box. The paper's networks are larger and pretrained; what is kept is their design.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from grounding.config import KnowMVGConfig
from grounding.network.backbone import ImageFeatures, VisionBackbone
from grounding.network.boxes import grid_code
from grounding.network.decoder import DecodedBoxes
from grounding.network.model import NetworkOutput, TextBatch

PRESENT = 10.0
"""Presence logit of every phrase: this network always gives one box."""


class PhraseRegressor(nn.Module):
    """[REG], cells and words through `layers` layers of a transformer to one box of each phrase."""

    def __init__(self, config: KnowMVGConfig, word_width: int, layers: int = 3, longest: int = 24) -> None:
        super().__init__()
        settings = config.decoder
        width = settings.width
        self.regress = nn.Parameter(torch.randn(width) * 0.02)
        self.place = nn.Parameter(torch.randn(longest, width) * 0.02)
        self.word_projection = nn.Sequential(nn.Linear(word_width, width), nn.LayerNorm(width))
        self.cell_projection = nn.Linear(width, width)
        layer = nn.TransformerEncoderLayer(
            width, settings.heads, settings.mlp_width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.fusion = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 4)
        )

    def forward(self, features: ImageFeatures, image_index: Tensor, words: Tensor, mask: Tensor) -> DecodedBoxes:
        """words float32[N, L, d] with mask bool[N, L] -> one box of each of the N phrases."""
        words, mask = words[:, : len(self.place)], mask[:, : len(self.place)]
        coarse = features.coarse
        cells = coarse + grid_code(coarse.shape[-1], coarse.shape[1], coarse.device)
        seen = self.cell_projection(cells.flatten(2).transpose(1, 2))[image_index]
        read = self.word_projection(words) + self.place[: words.shape[1]]
        first = self.regress.expand(len(words), 1, -1)
        hidden = mask.new_zeros(len(words), 1 + seen.shape[1])
        state = self.fusion(torch.cat([first, seen, read], 1), src_key_padding_mask=torch.cat([hidden, ~mask], 1))[:, 0]
        boxes = self.head(state).sigmoid().unsqueeze(1)
        return DecodedBoxes(boxes, boxes, boxes.new_full(boxes.shape[:2], PRESENT), None, None)


class TransVG(nn.Module):
    """The whole baseline with its own vision backbone and word embeddings; its batches are those of KnowMVG."""

    def __init__(self, config: KnowMVGConfig) -> None:
        super().__init__()
        width = config.decoder.width
        self.backbone = VisionBackbone(config)
        self.words = nn.Embedding(int(config.language_model["vocab_size"]), width)
        self.regressor = PhraseRegressor(config, width)

    def forward(self, pixels: Tensor, batch: TextBatch) -> NetworkOutput:
        """Pixels float32[B, 1, S, S] and texts -> boxes; no language is learned, so there are no logits."""
        ids, mask = phrase_words(batch.token_ids, batch)
        logits = pixels.new_zeros((0, self.words.num_embeddings))
        if len(ids) == 0:
            return NetworkOutput(logits, None, None)
        image_index = batch.image_of_text[batch.text_of_phrase]
        boxes = self.regressor(self.backbone(pixels), image_index, self.words(ids), mask)
        return NetworkOutput(logits, boxes, None)


def phrase_words(of_tokens: Tensor, batch: TextBatch) -> tuple[Tensor, Tensor]:
    """What belongs to the tokens of each phrase: [S, T, ...] -> [N, L, ...] from the left, and its mask bool[N, L]."""
    if len(batch.text_of_phrase) == 0:
        return of_tokens.new_zeros((0, 1, *of_tokens.shape[2:])), torch.zeros(0, 1, dtype=torch.bool)
    lengths = batch.phrase_end - batch.phrase_start
    offset = torch.arange(int(lengths.max()), device=of_tokens.device)
    mask = offset < lengths[:, None]
    position = (batch.phrase_start[:, None] + offset).clamp_max(of_tokens.shape[1] - 1)
    return of_tokens[batch.text_of_phrase[:, None], position], mask
