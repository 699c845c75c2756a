"""The box decoder: SAM's two-way transformer with several box queries, a mask head and box heads.

With every switch of knowledge and attention off, one pass over the image with learned tokens and the phrase's query
is all there is: the predecessor's decoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SamMaskDecoderConfig
from transformers.models.sam.modeling_sam import SamTwoWayTransformer

from grounding.config import KnowMVGConfig
from grounding.network.attention import Cues, GlobalLocalAttention
from grounding.network.backbone import ImageFeatures
from grounding.network.boxes import cell_centres, grid_code


@dataclass(frozen=True, slots=True)
class DecodedBoxes:
    """Boxes cxcywh of the canvas: `coarse` and `refined` float32[N, M, 4]; logits float32[N, M]; mask logits or None.

    `quality_logits` estimate the IoU of each refined box with the truth; None when the uncertainty head is off.
    """

    coarse: Tensor
    refined: Tensor
    presence_logits: Tensor
    quality_logits: Tensor | None
    mask_logits: Tensor | None


class MaskHead(nn.Module):
    """Semantic mask of a phrase: features up-scaled four times against a hyper-network of the mask token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up1 = nn.ConvTranspose2d(width, width // 4, 2, stride=2)
        self.norm = nn.GroupNorm(1, width // 4)
        self.up2 = nn.ConvTranspose2d(width // 4, width // 8, 2, stride=2)
        self.hyper = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width // 8))
        self.bias = nn.Parameter(torch.tensor(-2.0))

    def forward(self, token: Tensor, feature: Tensor) -> Tensor:
        """token float32[N, C], feature float32[N, C, H, W] -> logits float32[N, 4H, 4W]."""
        up = F.gelu(self.up2(F.gelu(self.norm(self.up1(feature)))))
        return torch.einsum("nc,nchw->nhw", self.hyper(token), up) + self.bias


class BoxDecoder(nn.Module):
    """Phrase queries and image features to boxes, in one pass or two."""

    def __init__(self, config: KnowMVGConfig) -> None:
        super().__init__()
        settings = config.decoder
        self.slots = settings.slots
        self.two_pass = config.attention.two_pass
        width = settings.width
        sam = SamMaskDecoderConfig(
            hidden_size=width, num_attention_heads=settings.heads, num_hidden_layers=settings.depth,
            mlp_dim=settings.mlp_width,
        )  # fmt: skip
        sam._attn_implementation = "sdpa"
        self.transformer: Any = SamTwoWayTransformer(sam)
        self.learned_tokens = nn.Parameter(torch.randn(1 + settings.slots, width) * 0.5)
        self.heat = nn.Linear(width, width)
        self.coarse_head = small_head(width, 4, start=(0.0, 0.0, -1.0, -1.0))
        self.mask_head = MaskHead(width) if settings.mask_head else None
        self.attention = GlobalLocalAttention(config) if self.two_pass else None
        self.delta_head = small_head(width, 4, start=(0.0, 0.0, 0.0, 0.0)) if self.two_pass else None
        self.score_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1 + settings.uncertainty))

    def forward(
        self, features: ImageFeatures, image_index: Tensor, query: Tensor, sparse: Tensor | None, prior: Tensor | None
    ) -> DecodedBoxes:
        """query float32[N, C], sparse float32[N, k, C] or None, prior float32[N, H, W] or None."""
        learned = self.learned_tokens + query.unsqueeze(1)
        parts = [learned, query.unsqueeze(1)] + ([sparse] if sparse is not None else [])
        tokens, image = torch.cat(parts, 1), features.coarse[image_index]
        out, feature = self._pass(tokens, image, None)
        coarse = self._coarse_boxes(out[:, 1 : 1 + self.slots], feature)
        mask = self.mask_head(out[:, 0], feature) if self.mask_head is not None else None
        if self.attention is None or self.delta_head is None:
            return self._decoded(coarse, coarse, out[:, 1 : 1 + self.slots], mask)
        size = feature.shape[-1]
        seen = F.adaptive_avg_pool2d(mask.unsqueeze(1), size).squeeze(1).sigmoid() if mask is not None else None
        cues = self.attention.cues(seen, prior, coarse, size)
        out, feature = self._pass(tokens, image, self.attention.bias(cues, slice(1, 1 + self.slots), tokens.shape[1]))
        gathered = self._gather(out, feature, features, image_index, coarse, cues)
        refined = move_box(coarse.detach(), self.delta_head(gathered))
        return self._decoded(coarse, refined, gathered, mask)

    def _gather(
        self, out: Tensor, feature: Tensor, features: ImageFeatures, image_index: Tensor, boxes: Tensor, cues: Cues
    ) -> Tensor:
        if self.attention is None:
            raise RuntimeError("a single-pass decoder gathers nothing")
        queries = out[:, 1 : 1 + self.slots]
        gathered: Tensor = self.attention(queries, feature, features.fine, image_index, boxes, cues)
        return gathered

    def _pass(self, tokens: Tensor, image: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        size = image.shape[-1]
        code = grid_code(size, image.shape[1], image.device).expand(image.shape[0], -1, -1, -1)
        out, keys = self.transformer(
            point_embeddings=tokens.unsqueeze(1), image_embeddings=image, image_positional_embeddings=code,
            attention_similarity=bias,
        )  # fmt: skip
        return out.squeeze(1), keys.squeeze(1).transpose(1, 2).reshape(image.shape)

    def _coarse_boxes(self, queries: Tensor, feature: Tensor) -> Tensor:
        """A spatial softmax gives each query its place; the head adds an offset and the size."""
        size, width = feature.shape[-1], feature.shape[1]
        heat = torch.einsum("nmc,nchw->nmhw", self.heat(queries), feature) / width**0.5
        share = heat.flatten(2).softmax(-1).unflatten(2, (size, size))
        centres = cell_centres(size, feature.device)
        place = torch.stack([(share.sum(2) * centres).sum(-1), (share.sum(3) * centres).sum(-1)], -1)
        offset = self.coarse_head(queries)
        centre = torch.sigmoid(torch.logit(place.clamp(0.01, 0.99)) + offset[..., :2])
        return torch.cat([centre, torch.sigmoid(offset[..., 2:])], -1)

    def _decoded(self, coarse: Tensor, refined: Tensor, queries: Tensor, mask: Tensor | None) -> DecodedBoxes:
        scores = self.score_head(queries)
        quality = scores[..., 1] if scores.shape[-1] > 1 else None
        return DecodedBoxes(coarse, refined, scores[..., 0], quality, mask)


def small_head(width: int, outputs: int, start: tuple[float, ...]) -> nn.Sequential:
    """Two layers, of which the last begins with no weight: whatever comes in, `start` comes out at first."""
    last = nn.Linear(width, outputs)
    nn.init.zeros_(last.weight)
    with torch.no_grad():
        last.bias.copy_(torch.tensor(start))
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), last)


def move_box(box: Tensor, delta: Tensor) -> Tensor:
    """Shift and scale cxcywh float32[..., 4] in units of its own size; a zero delta changes nothing."""
    centre = box[..., :2] + delta[..., :2] * box[..., 2:]
    size = box[..., 2:] * torch.exp(delta[..., 2:].clamp(-3, 3))
    return torch.cat([centre, size], -1)
