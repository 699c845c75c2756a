"""What a KnowMVG network is made of: one frozen, validated value, stored as config.json beside the weights.

Every component of the paper has a switch here; "off" means that the branch is skipped, not that its weight is zero.
Backbones are named the way transformers names them (`model_type` and its own settings), so a larger one is a
change of configuration.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """A part of the configuration: immutable, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FrameSettings(Section):
    """The square canvas that images are brought to."""

    canvas: int = Field(default=256, ge=32)
    mode: Literal["fill", "letterbox"] = "fill"


class KnowledgeSettings(Section):
    """Top-k location prompts and the prior map of the knowledge bank (components 1a and 1b)."""

    prompts: bool = True
    prior_map: bool = True
    top_k: int = Field(default=5, ge=0)
    temperature: float = Field(default=1.0, gt=0)


class AttentionSettings(Section):
    """Global-local attention (component 2). `two_pass` alone is the control: a second pass without any bias."""

    use_global: bool = True
    use_local: bool = True
    two_pass: bool = True
    rho: float = Field(default=0.5, ge=0, le=1)
    eps: float = Field(default=1e-4, gt=0)
    local_grow: float = Field(default=1.25, gt=0)
    local_softness: float = Field(default=0.02, gt=0)
    roi_grow: float = Field(default=1.5, gt=0)
    roi_size: int = Field(default=7, ge=2)


class DecoderSettings(Section):
    """The box decoder: a SAM two-way transformer with `slots` box queries per phrase."""

    width: int = Field(default=128, ge=16)
    heads: int = Field(default=4, ge=1)
    depth: int = Field(default=2, ge=1)
    mlp_width: int = Field(default=384, ge=16)
    slots: int = Field(default=3, ge=1)
    mask_head: bool = True
    uncertainty: bool = True


class LanguageSettings(Section):
    """How the language model sees the image and how long its answers may be."""

    image_tokens_side: int = Field(default=3, ge=1)
    max_prompt_tokens: int = Field(default=160, ge=8)
    max_answer_tokens: int = Field(default=96, ge=4)


class DecisionSettings(Section):
    """Thresholds of the callable product, chosen on validation."""

    presence: float = Field(default=0.5, ge=0, le=1)
    duplicate_iou: float = Field(default=0.6, ge=0, le=1)


class KnowMVGConfig(Section):
    """The whole network. `vision` and `language_model` are transformers configurations with their `model_type`."""

    format: Literal[1] = 1
    name: str = "KnowMVG"
    version: str = "0.0.0"
    frame: FrameSettings = FrameSettings()
    vision: dict[str, Any]
    language_model: dict[str, Any]
    language: LanguageSettings = LanguageSettings()
    knowledge: KnowledgeSettings = KnowledgeSettings()
    attention: AttentionSettings = AttentionSettings()
    decoder: DecoderSettings = DecoderSettings()
    decision: DecisionSettings = DecisionSettings()
    knowledge_sha256: str = ""
