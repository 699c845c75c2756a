"""The box decoder: SAM's two-way transformer with several box queries, a mask head and box heads.

With every switch of knowledge and attention off, one pass over the image with learned tokens and the phrase's query
is all there is: the predecessor's decoder. With `hypotheses`, each slot is several tokens through one head.
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
from grounding.network.boxes import cell_centres, grid_code, point_code, to_xyxy


@dataclass(frozen=True, slots=True)
class DecodedBoxes:
    """Boxes cxcywh of the canvas: `coarse` and `refined` float32[N, M, 4]; logits float32[N, M]; mask logits or None.

    `quality_logits` estimate the IoU of each refined box with the truth; None when the uncertainty head is off.
    `hypotheses` float32[N, M, K, 4] are the boxes whose mean is `refined`; `attention` float32[N, M, H, W] is where the
    last pass of each box query looked. Both are None unless the configuration asks for them.
    """

    coarse: Tensor
    refined: Tensor
    presence_logits: Tensor
    quality_logits: Tensor | None
    mask_logits: Tensor | None
    hypotheses: Tensor | None = None
    attention: Tensor | None = None

    @property
    def variance(self) -> Tensor | None:
        """float32[N, M]: variance of the hypotheses, averaged over the four numbers of a box."""
        if self.hypotheses is None:
            return None
        return self.hypotheses.var(2, correction=0).mean(-1)


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


class SimilarityMask(nn.Module):
    """Semantic mask of a phrase: likeness of its query to each cell of the image. Nothing teaches it but the boxes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, width)
        self.scale = nn.Parameter(torch.tensor(5.0))

    def forward(self, query: Tensor, image: Tensor) -> Tensor:
        """query float32[N, C], image float32[N, C, H, W] -> logits float32[N, H, W]."""
        asked = F.normalize(self.projection(query), dim=-1)
        return self.scale * torch.einsum("nc,nchw->nhw", asked, F.normalize(image, dim=1))


class CornerPrompts(nn.Module):
    """The coarse boxes as tokens of the second pass: two corners each, the way SAM codes a box prompt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.projection = nn.Linear(width, width)
        self.corner = nn.Parameter(torch.randn(2, width) * 0.02)

    def forward(self, boxes: Tensor) -> Tensor:
        """cxcywh float32[N, M, 4] (no gradient) -> float32[N, 2 * M, C]."""
        corners = to_xyxy(boxes.detach()).unflatten(-1, (2, 2))
        tokens: Tensor = self.projection(point_code(corners, self.corner.shape[-1])) + self.corner
        return tokens.flatten(1, 2)


class BoxDecoder(nn.Module):
    """Phrase queries and image features to boxes, in one pass or two."""

    def __init__(self, config: KnowMVGConfig) -> None:
        super().__init__()
        settings, cues = config.decoder, config.attention
        self.slots, self.hypotheses = settings.slots, settings.hypotheses
        self.boxes = slice(1, 1 + settings.slots * settings.hypotheses)
        width = settings.width
        self.transformer: Any = make_transformer(config)
        self.learned_tokens = nn.Parameter(torch.randn(1 + settings.slots, width) * 0.5)
        self.heat = nn.Linear(width, width)
        self.coarse_head = small_head(width, 4, start=(0.0, 0.0, -1.0, -1.0))
        has_head = settings.mask_head and cues.mask_source == "head"
        self.mask_head = MaskHead(width) if has_head else None
        self.attention = GlobalLocalAttention(config) if cues.two_pass else None
        self.delta_head = small_head(width, 4, start=(0.0, 0.0, 0.0, 0.0)) if cues.two_pass else None
        self.score_head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1 + settings.uncertainty))
        more = settings.slots * (settings.hypotheses - 1)
        self.hypothesis_tokens = nn.Parameter(torch.randn(more, width) * 0.5) if more else None
        similar = cues.two_pass and cues.use_global and cues.mask_source == "similarity"
        self.similarity = SimilarityMask(width) if similar else None
        cornered = cues.two_pass and cues.use_local and cues.box_cue == "prompt"
        self.corners = CornerPrompts(width) if cornered else None
        self.maps = cues.maps

    def forward(
        self, features: ImageFeatures, image_index: Tensor, query: Tensor, sparse: Tensor | None, prior: Tensor | None
    ) -> DecodedBoxes:
        """query float32[N, C], sparse float32[N, k, C] or None, prior float32[N, H, W] or None."""
        tokens, image = self._tokens(query, sparse), features.coarse[image_index]
        out, feature, seen = self._pass(tokens, image, None)
        coarse = self._coarse_boxes(out[:, self.boxes], feature)
        mask = self.mask_head(out[:, 0], feature) if self.mask_head is not None else None
        if self.attention is None or self.delta_head is None:
            return self._decoded(coarse, coarse, out[:, self.boxes], mask, seen)
        coarse = coarse[:, : self.slots]
        cues = self.attention.cues(self._semantic(mask, query, image), prior, coarse, feature.shape[-1])
        if self.corners is not None:
            tokens = torch.cat([tokens, self.corners(coarse)], 1)
        out, feature, seen = self._pass(tokens, image, self.attention.bias(cues, self.boxes, tokens.shape[1]))
        start = coarse.repeat(1, self.hypotheses, 1)
        gathered = self._gather(out, feature, features, image_index, start, cues)
        refined = move_box(start.detach(), self.delta_head(gathered))
        return self._decoded(coarse, refined, gathered, mask, seen)

    def _tokens(self, query: Tensor, sparse: Tensor | None) -> Tensor:
        """Mask token, box queries (slot by slot, hypothesis after hypothesis), the phrase's query, prompts."""
        learned: Tensor = self.learned_tokens
        if self.hypothesis_tokens is not None:
            learned = torch.cat([learned, self.hypothesis_tokens])
        parts = [learned + query.unsqueeze(1), query.unsqueeze(1)] + ([sparse] if sparse is not None else [])
        return torch.cat(parts, 1)

    def _semantic(self, mask: Tensor | None, query: Tensor, image: Tensor) -> Tensor | None:
        """Semantic mask float32[N, H, W] in [0, 1], from the mask head's logits or from likeness."""
        if self.similarity is not None:
            likeness: Tensor = self.similarity(query, image)
            return likeness.sigmoid()
        if mask is None:
            return None
        return F.adaptive_avg_pool2d(mask.unsqueeze(1), image.shape[-1]).squeeze(1).sigmoid()

    def _gather(
        self, out: Tensor, feature: Tensor, features: ImageFeatures, image_index: Tensor, boxes: Tensor, cues: Cues
    ) -> Tensor:
        if self.attention is None:
            raise RuntimeError("a single-pass decoder gathers nothing")
        gathered: Tensor = self.attention(out[:, self.boxes], feature, features.fine, image_index, boxes, cues)
        return gathered

    def _pass(self, tokens: Tensor, image: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Tokens float32[N, T, C] and features float32[N, C, H, W] of one pass, and where box queries looked."""
        size, looked = image.shape[-1], []
        code = grid_code(size, image.shape[1], image.device).expand(image.shape[0], -1, -1, -1)
        last = self.transformer.layers[-1].cross_attn_token_to_image
        watch = last.register_forward_hook(lambda _, __, given: looked.append(given[1])) if self.maps else None
        out, keys = self.transformer(
            point_embeddings=tokens.unsqueeze(1), image_embeddings=image, image_positional_embeddings=code,
            attention_similarity=bias,
        )  # fmt: skip
        if watch is not None:
            watch.remove()
        seen = looked[0].mean(1)[:, self.boxes.start : self.boxes.start + self.slots] if looked else None
        seen = None if seen is None else seen.unflatten(-1, (size, size))
        return out.squeeze(1), keys.squeeze(1).transpose(1, 2).reshape(image.shape), seen

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

    def _decoded(
        self, coarse: Tensor, boxes: Tensor, queries: Tensor, mask: Tensor | None, seen: Tensor | None
    ) -> DecodedBoxes:
        scores = self.score_head(queries[:, : self.slots])
        quality = scores[..., 1] if scores.shape[-1] > 1 else None
        first = coarse[:, : self.slots]
        if self.hypotheses == 1:
            return DecodedBoxes(first, boxes, scores[..., 0], quality, mask, None, seen)
        several = boxes.unflatten(1, (self.hypotheses, self.slots)).transpose(1, 2)
        return DecodedBoxes(first, several.mean(2), scores[..., 0], quality, mask, several, seen)


def make_transformer(config: KnowMVGConfig) -> SamTwoWayTransformer:
    """SAM's two-way transformer in the decoder's size; it gives its attention away only where maps are wanted."""
    settings = config.decoder
    sam = SamMaskDecoderConfig(
        hidden_size=settings.width, num_attention_heads=settings.heads, num_hidden_layers=settings.depth,
        mlp_dim=settings.mlp_width,
    )  # fmt: skip
    sam._attn_implementation = "eager" if config.attention.maps else "sdpa"
    return SamTwoWayTransformer(sam)


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
