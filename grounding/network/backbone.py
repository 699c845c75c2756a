"""The vision backbone: any transformers backbone with feature maps, and a neck that fuses them to two grids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig

from grounding.config import KnowMVGConfig


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """`fine` float32[B, C, 2H, 2W] for regions, `coarse` float32[B, C, H, W] for the decoder."""

    fine: Tensor
    coarse: Tensor


class VisionBackbone(nn.Module):
    """Pixels float32[B, 1, S, S] in [0, 1] to two fused grids of the decoder's width (strides 8 and 16 by default).

    Of three maps the first two become the grids. A fourth, of twice the resolution, is folded into the fine grid (each
    cell takes its four pixels as channels): thin lines are seen there at little cost.
    """

    borrowed: frozenset[str] = frozenset()
    """Names of weights that belong to a pretrained folder and are not kept with the model: none."""

    def __init__(self, config: KnowMVGConfig) -> None:
        super().__init__()
        settings: dict[str, Any] = dict(config.vision)
        vision = AutoConfig.for_model(settings.pop("model_type"), **settings)
        backbones: Any = AutoBackbone
        self.tower = backbones.from_config(vision)
        width = config.decoder.width
        *finer, first, second, third = self.tower.channels
        self.laterals = nn.ModuleList(nn.Conv2d(channels, width, 1) for channels in (first, second, third))
        self.detail = nn.Conv2d(4 * finer[0], width, 1) if finer else None
        if self.detail is not None:  # begins as nothing: a model that was trained without it goes on where it was
            nn.init.zeros_(self.detail.weight)
            if self.detail.bias is not None:
                nn.init.zeros_(self.detail.bias)
        self.smooth_fine = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU())
        self.smooth_coarse = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU())
        self.norm = nn.GroupNorm(1, width)
        # Convolutions are faster on CPUs with the channels innermost; weights keep their shape.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def coarse_size(self, canvas: int) -> int:
        """Cells of a side of the coarse grid of a picture of `canvas` pixels."""
        with torch.no_grad():
            return int(self.eval()(torch.zeros(1, 1, canvas, canvas)).coarse.shape[-1])

    def checkpoint_gradients(self) -> None:
        """A small tower keeps its activations: there is nothing to save."""

    def forward(self, pixels: Tensor) -> ImageFeatures:
        """Top-down fusion: the last map is the widest view, the two before it are the grids that come out."""
        channels = int(self.tower.config.num_channels)
        images = ((pixels - 0.5) / 0.25).expand(-1, channels, -1, -1)
        maps = self.tower(images.contiguous(memory_format=torch.channels_last)).feature_maps
        fused = [lateral(feature) for lateral, feature in zip(self.laterals, maps[-3:], strict=True)]
        if self.detail is not None:
            fused[0] = fused[0] + self.detail(nn.functional.pixel_unshuffle(maps[0], 2))
        for index in range(len(fused) - 2, -1, -1):
            above = nn.functional.interpolate(fused[index + 1], size=fused[index].shape[-2:], mode="nearest")
            fused[index] = fused[index] + above
        return ImageFeatures(self.smooth_fine(fused[0]), self.norm(self.smooth_coarse(fused[1])).contiguous())
