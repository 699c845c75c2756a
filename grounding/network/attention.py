"""Global-local attention: a semantic mask and the prior map steer wide, the coarse box steers near.

Both act as a bias in log space on the decoder's second pass (attention is re-weighted, never cut off), and again when
each box query gathers from the whole grid and from its own region before the box is refined.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grounding.config import KnowMVGConfig
from grounding.network.boxes import grid_code, region_grid, sample_per_image, sample_per_phrase, soft_indicator


@dataclass(frozen=True, slots=True)
class Cues:
    """Log-space biases: `wide` float32[N, H, W] or None, `near` float32[N, M, H, W] or None."""

    wide: Tensor | None
    near: Tensor | None


class GlobalLocalAttention(nn.Module):
    """Builds the cues of the second pass and gathers what each box query needs for its refinement."""

    def __init__(self, config: KnowMVGConfig) -> None:
        super().__init__()
        self.settings = config.attention
        width, heads, cells = config.decoder.width, config.decoder.heads, config.attention.roi_size**2
        self.heads = heads
        self.global_weight = nn.Parameter(torch.tensor(0.5))
        self.local_weight = nn.Parameter(torch.tensor(1.0))
        self.wide = nn.MultiheadAttention(width, heads, batch_first=True)
        self.near = nn.MultiheadAttention(width, heads, batch_first=True)
        self.near_code = nn.Parameter(torch.randn(cells, width) * 0.02)
        self.near_reduce = nn.Linear(width, 32)
        self.near_layout = nn.Sequential(nn.Linear(32 * cells, width), nn.ReLU(), nn.Linear(width, width))
        self.gate = nn.Linear(2 * width, width)
        self.scale = nn.Parameter(torch.tensor(0.5))

    def cues(self, mask: Tensor | None, prior: Tensor | None, coarse_boxes: Tensor, size: int) -> Cues:
        """mask and prior float32[N, H, W] in [0, 1] or None, coarse_boxes float32[N, M, 4] (no gradient)."""
        wide = near = None
        if self.settings.use_global and (mask is not None or prior is not None):
            rho = self.settings.rho if mask is not None and prior is not None else float(mask is not None)
            seen = (rho * mask if mask is not None else 0.0) + ((1 - rho) * prior if prior is not None else 0.0)
            wide = self.global_weight * torch.log(self.settings.eps + torch.as_tensor(seen))
        if self.settings.use_local and self.settings.box_cue in ("bias", "both"):
            inside = soft_indicator(coarse_boxes.detach(), size, self.settings.local_softness, self.settings.local_grow)
            near = self.local_weight * torch.log(self.settings.eps + inside)
        return Cues(wide, near)

    def bias(self, cues: Cues, slots: slice, tokens: int) -> Tensor | None:
        """float32[N, 1, tokens, HW] for the two-way transformer; each box query has its own local part.

        `slots` are the places of the box queries, which may hold each slot several times over (its hypotheses).
        """
        given = cues.near if cues.near is not None else cues.wide
        if given is None:
            return None
        n, cells = given.shape[0], given.shape[-1] * given.shape[-2]
        total = given.new_zeros((n, tokens, cells))
        if cues.wide is not None:
            total = total + cues.wide.flatten(1).unsqueeze(1)
        if cues.near is not None:
            near = cues.near.flatten(2)
            anywhere = near.amax(1, keepdim=True)
            before, after = slots.start, tokens - slots.stop
            near = near.repeat(1, (slots.stop - slots.start) // near.shape[1], 1)
            total = total + torch.cat([anywhere.expand(-1, before, -1), near, anywhere.expand(-1, after, -1)], 1)
        return total.unsqueeze(1)

    def forward(
        self, queries: Tensor, feature: Tensor, fine: Tensor, image_index: Tensor, boxes: Tensor, cues: Cues
    ) -> Tensor:
        """queries float32[N, M, C], feature float32[N, C, H, W], fine float32[B, C, 2H, 2W] -> float32[N, M, C]."""
        local = self.settings.use_local and self.settings.box_cue in ("roi", "both")
        gathered_near = self._near(queries, feature, fine, image_index, boxes) if local else None
        gathered_wide = self._wide(queries, feature, cues) if self.settings.use_global else None
        if gathered_near is None or gathered_wide is None:
            only = gathered_near if gathered_near is not None else gathered_wide
            return queries if only is None else queries + self.scale * only
        gate = torch.sigmoid(self.gate(torch.cat([gathered_wide, gathered_near], -1)))
        return queries + self.scale * (gate * gathered_wide + (1 - gate) * gathered_near)

    def _wide(self, queries: Tensor, feature: Tensor, cues: Cues) -> Tensor:
        values = feature.flatten(2).transpose(1, 2)
        code = grid_code(feature.shape[-1], feature.shape[1], feature.device).flatten(2).transpose(1, 2)
        bias = None
        if cues.wide is not None:
            n, m = queries.shape[:2]
            bias = cues.wide.flatten(1)[:, None, None].expand(n, self.heads, m, -1).reshape(n * self.heads, m, -1)
        gathered: Tensor = self.wide(queries, values + code, values, attn_mask=bias, need_weights=False)[0]
        return gathered

    def _near(self, queries: Tensor, feature: Tensor, fine: Tensor, image_index: Tensor, boxes: Tensor) -> Tensor:
        grid = region_grid(boxes.detach(), self.settings.roi_size, self.settings.roi_grow)
        region = sample_per_phrase(feature, grid) + sample_per_image(fine, grid, image_index)
        n, m, cells, width = region.shape
        region = (region + self.near_code).reshape(n * m, cells, width)
        asked = queries.reshape(n * m, 1, width)
        seen = self.near(asked, region, region, need_weights=False)[0]
        layout = self.near_layout(torch.relu(self.near_reduce(region + asked)).flatten(1))
        gathered: Tensor = (seen.squeeze(1) + layout).reshape(n, m, width)
        return gathered
