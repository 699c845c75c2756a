"""The production vision backbone: the image encoder of SAM or MedSAM, frozen, with a small learned neck.

SAM gives one grid; the neck makes the finer one of it. A SAM folder can also start the box decoder's transformer,
whose shapes are SAM's at width 256. The prompt encoder is not used: the decoder's prompts come from text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, SamVisionModel

from grounding.config import KnowMVGConfig, SamSettings
from grounding.network.backbone import ImageFeatures
from grounding.network.pretrained import (
    add_lora,
    dtype_of,
    find_pretrained,
    read_tensors,
    read_whole,
    untrained_names,
)
from grounding.types import ModelError

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the pixels that SAM was trained on, per channel."""


class SamBackbone(nn.Module):
    """Pixels float32[B, 1, S, S] in [0, 1] to SAM's grid (`coarse`) and one of twice its side (`fine`)."""

    def __init__(self, config: KnowMVGConfig, settings: SamSettings) -> None:
        super().__init__()
        folder = find_pretrained(settings)
        if AutoConfig.from_pretrained(folder, local_files_only=True).model_type not in ("sam", "sam_vision_model"):
            raise ModelError(f"{folder} is not a SAM model; name the folder of one, or of MedSAM")
        held_in = dtype_of(settings) if settings.frozen else torch.float32
        self.encoder: Any = read_whole(folder, SamVisionModel.from_pretrained, dtype=held_in)
        self.encoder.requires_grad_(not settings.frozen)
        if settings.lora is not None:
            add_lora(self.encoder, settings.lora, "vision_encoder")
        self.learns = any(value.requires_grad for value in self.encoder.parameters())
        width, channels = config.decoder.width, int(self.encoder.config.output_channels)
        self.dense = nn.Parameter(no_mask(folder, channels))
        self.project = nn.Identity() if channels == width else nn.Conv2d(channels, width, 1)
        self.enlarge = nn.Sequential(
            nn.ConvTranspose2d(width, width, 2, stride=2), nn.GroupNorm(8, width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )  # fmt: skip
        unit = settings.pixels == "unit"
        self.register_buffer("mean", _channels((0.0,) * 3 if unit else MEAN), persistent=False)
        self.register_buffer("deviation", _channels((1.0,) * 3 if unit else DEVIATION), persistent=False)
        self.borrowed = frozenset(f"encoder.{name}" for name in untrained_names(self.encoder))
        """Names of weights that belong to the pretrained folder and are not kept with the model."""

    def coarse_size(self, canvas: int) -> int:
        """Cells of a side of the coarse grid, whatever the canvas: pictures are brought to SAM's size."""
        return int(self.encoder.config.image_size) // int(self.encoder.config.patch_size)

    def checkpoint_gradients(self) -> None:
        """Keep no activations of the encoder for the backward pass."""
        if self.learns:
            self.encoder.activation_checkpointing_enable({"use_reentrant": False})

    def forward(self, pixels: Tensor) -> ImageFeatures:
        """Encode, without gradient unless the encoder learns, and bring to the decoder's width."""
        side = int(self.encoder.config.image_size)
        if pixels.shape[-1] != side:
            pixels = F.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True)
        images = (pixels - self.get_buffer("mean")) / self.get_buffer("deviation")
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.learns):
            grid = self.encoder(images.to(self.encoder.dtype)).last_hidden_state
        coarse = self.project(grid.float() + self.dense)
        return ImageFeatures(self.enlarge(coarse), coarse)


def _channels(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)


def no_mask(folder: Path, channels: int) -> Tensor:
    """What SAM adds to its grid when no mask is given, float32[1, C, 1, 1]; zero where the folder has no decoder."""
    held = read_tensors(folder, ("prompt_encoder.no_mask_embed.weight",))
    return next(iter(held.values())).view(1, channels, 1, 1) if held else torch.zeros(1, channels, 1, 1)


def start_from_sam(decoder: nn.Module, folder: Path) -> int:
    """Begin the box decoder with the weights of SAM's mask decoder; returns how many tensors were taken.

    The two-way transformer is taken whole where all its shapes are SAM's, and not at all otherwise; of the rest
    (learned tokens and the up-scaling of the mask) what fits. The positional code stays ours.
    """
    held = {name.removeprefix("mask_decoder."): v for name, v in read_tensors(folder, ("mask_decoder.",)).items()}
    own = decoder.state_dict()
    transformer = {name: held.get(name) for name in own if name.startswith("transformer.")}
    taken = {k: v for k, v in transformer.items() if v is not None and v.shape == own[k].shape}
    if not taken or len(taken) < len(transformer):
        return 0
    for ours, theirs in {"up1": "upscale_conv1", "up2": "upscale_conv2", "norm": "upscale_layer_norm"}.items():
        for part in ("weight", "bias"):
            taken[f"mask_head.{ours}.{part}"] = held[f"{theirs}.{part}"]
    tokens = held.get("mask_tokens.weight")
    if tokens is not None and "learned_tokens" in own and len(tokens) >= len(own["learned_tokens"]):
        taken["learned_tokens"] = tokens[: len(own["learned_tokens"])]
    fitting = {k: v for k, v in taken.items() if k in own and own[k].shape == v.shape}
    decoder.load_state_dict(fitting, strict=False)
    return len(fitting)
