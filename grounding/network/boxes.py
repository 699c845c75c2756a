"""Differentiable boxes, as tensors: forms, IoU, soft indicators, positional codes and region sampling."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def to_xyxy(cxcywh: Tensor) -> Tensor:
    """float32[..., 4] centre form -> corner form."""
    centre, size = cxcywh[..., :2], cxcywh[..., 2:]
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def to_cxcywh(xyxy: Tensor) -> Tensor:
    """float32[..., 4] corner form -> centre form."""
    return torch.cat([(xyxy[..., :2] + xyxy[..., 2:]) / 2, xyxy[..., 2:] - xyxy[..., :2]], dim=-1)


def paired_iou(a_cxcywh: Tensor, b_cxcywh: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and GIoU of boxes that broadcast against each other, in float32; sides are at least 1e-3."""
    a, b = (to_xyxy(torch.cat([x[..., :2], x[..., 2:].clamp_min(1e-3)], -1).float()) for x in (a_cxcywh, b_cxcywh))
    inside = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp_min(0).prod(-1)
    union = (a[..., 2:] - a[..., :2]).prod(-1) + (b[..., 2:] - b[..., :2]).prod(-1) - inside
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    iou = inside / union
    return iou, iou - (hull - union) / hull


def cell_centres(size: int, device: torch.device) -> Tensor:
    """float32[size]: centres of the cells of a grid, in [0, 1]."""
    return (torch.arange(size, dtype=torch.float32, device=device) + 0.5) / size


def soft_indicator(cxcywh: Tensor, size: int, softness: float, grow: float = 1.0) -> Tensor:
    """float32[..., 4] -> float32[..., size, size]: 1 inside the grown box, 0 outside, logistic edges."""
    x1, y1, x2, y2 = to_xyxy(torch.cat([cxcywh[..., :2], cxcywh[..., 2:] * grow], -1)).unsqueeze(-1).unbind(-2)
    grid = cell_centres(size, cxcywh.device)
    across = torch.sigmoid((grid - x1) / softness) * torch.sigmoid((x2 - grid) / softness)
    down = torch.sigmoid((grid - y1) / softness) * torch.sigmoid((y2 - grid) / softness)
    return down.unsqueeze(-1) * across.unsqueeze(-2)


def point_code(points: Tensor, width: int) -> Tensor:
    """Sinusoidal code of points float32[..., 2] in [0, 1] -> float32[..., width]: half for x, half for y."""
    quarter = width // 4
    frequencies = 2 * math.pi * torch.exp2(torch.linspace(-1, 5, quarter, device=points.device))
    angles = points.unsqueeze(-1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def grid_code(size: int, width: int, device: torch.device) -> Tensor:
    """float32[1, width, size, size]: the code of each cell's centre."""
    centres = cell_centres(size, device)
    down, across = torch.meshgrid(centres, centres, indexing="ij")
    return point_code(torch.stack([across, down], -1), width).permute(2, 0, 1).unsqueeze(0)


def region_grid(cxcywh: Tensor, size: int, grow: float) -> Tensor:
    """Sampling points of size x size cells over each grown box: float32[..., 4] -> float32[..., size, size, 2]."""
    steps = (cell_centres(size, cxcywh.device) - 0.5) * grow
    x = cxcywh[..., 0, None] + steps * cxcywh[..., 2, None]
    y = cxcywh[..., 1, None] + steps * cxcywh[..., 3, None]
    shape = (*cxcywh.shape[:-1], size, size)
    points = torch.stack([x.unsqueeze(-2).expand(shape), y.unsqueeze(-1).expand(shape)], -1)
    return points * 2 - 1


def sample_per_phrase(feature: Tensor, grid: Tensor) -> Tensor:
    """feature float32[N, C, H, W] at grid float32[N, M, s, s, 2] -> float32[N, M, s * s, C]."""
    n, m, s = grid.shape[:3]
    sampled = F.grid_sample(feature, grid.reshape(n, m * s, s, 2), padding_mode="border", align_corners=False)
    return sampled.reshape(n, -1, m, s * s).permute(0, 2, 3, 1)


def sample_per_image(feature: Tensor, grid: Tensor, image_index: Tensor) -> Tensor:
    """Like sample_per_phrase, but feature float32[B, C, H, W] belongs to images: no copy of it per phrase."""
    images = feature.shape[0]
    counts = torch.bincount(image_index, minlength=images)
    order = torch.argsort(image_index, stable=True)
    first = counts.cumsum(0) - counts
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device) - first[image_index[order]]
    padded = grid.new_zeros((images, int(counts.max()), *grid.shape[1:]))
    padded[image_index, place] = grid
    b, p, m, s = padded.shape[:4]
    sampled = F.grid_sample(feature, padded.reshape(b, p * m * s, s, 2), padding_mode="border", align_corners=False)
    return sampled.reshape(b, -1, p, m, s * s).permute(0, 2, 3, 4, 1)[image_index, place]
