"""What a KnowMVG network is made of: one frozen, validated value, stored as config.json beside the weights.

Every component of the paper has a switch here; "off" means that the branch is skipped, not that its weight is zero.
Backbones are named the way transformers names them (`model_type` and its own settings), so a larger one is a
change of configuration.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator


class Section(BaseModel):
    """A part of the configuration: immutable, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FrameSettings(Section):
    """The square canvas that images are brought to."""

    canvas: int = Field(default=256, ge=32)
    mode: Literal["fill", "letterbox"] = "fill"


class KnowledgeSettings(Section):
    """Top-k location prompts and the prior map of the knowledge bank (components 1a and 1b).

    `prompt_type` `points` gives the best cells of the prior map as prompts instead of the rows. The controls keep all
    weights and scores but give each row another row's content: `random_rows` its text and its place,
    `shuffled_locations` its place alone.
    """

    prompts: bool = True
    prior_map: bool = True
    prompt_type: Literal["rows", "points"] = "rows"
    control: Literal["none", "random_rows", "shuffled_locations"] = "none"
    top_k: int = Field(default=5, ge=0)
    temperature: float = Field(default=1.0, gt=0)


class AttentionSettings(Section):
    """Global-local attention (component 2). `two_pass` alone is the control: a second pass without any bias.

    `mask_source` `similarity` takes the semantic mask from phrase and image alone, without supervision, and then there
    is no mask head. `box_cue` says how the coarse box acts: `roi` (features of its region), `bias` (on the second
    pass), `both`, or `prompt` (its corners as tokens of the second pass). `maps` keeps the second pass's attention for
    `loss_attention`, which is slower.
    """

    use_global: bool = True
    use_local: bool = True
    two_pass: bool = True
    mask_source: Literal["head", "similarity"] = "head"
    box_cue: Literal["roi", "bias", "prompt", "both"] = "both"
    maps: bool = False
    rho: float = Field(default=0.5, ge=0, le=1)
    eps: float = Field(default=1e-4, gt=0)
    local_grow: float = Field(default=1.25, gt=0)
    local_softness: float = Field(default=0.02, gt=0)
    roi_grow: float = Field(default=1.5, gt=0)
    roi_size: int = Field(default=7, ge=2)


class DecoderSettings(Section):
    """The box decoder: a SAM two-way transformer with `slots` box queries per phrase.

    `uncertainty` is the head of the expected IoU. `hypotheses` above 1 gives each slot so many boxes through one head:
    their mean is the prediction and their variance its uncertainty (uMedGround has 3).
    """

    width: int = Field(default=128, ge=16)
    heads: int = Field(default=4, ge=1)
    depth: int = Field(default=2, ge=1)
    mlp_width: int = Field(default=384, ge=16)
    slots: int = Field(default=3, ge=1)
    mask_head: bool = True
    uncertainty: bool = True
    hypotheses: int = Field(default=1, ge=1)


Precision = Literal["float32", "bfloat16", "float16"]
"""In what a pretrained part is held; weights that are trained are always float32."""


class LoraSettings(Section):
    """Low-rank updates of a pretrained part's linear layers, by the last part of their names."""

    r: int = Field(default=8, ge=1)
    alpha: int = Field(default=16, ge=1)
    dropout: float = Field(default=0.05, ge=0, lt=1)
    targets: tuple[str, ...] = Field(min_length=1)


class PretrainedSettings(Section):
    """A folder (or name) of pretrained weights. `sha256` is the digest that they must have; empty: not yet named."""

    pretrained: str = Field(min_length=1)
    sha256: str = ""
    local_files_only: bool = True
    dtype: Precision = "float32"


class SamSettings(PretrainedSettings):
    """The image encoder of SAM or MedSAM. `pixels`: normalised as SAM was trained, or left in [0, 1] as MedSAM was.

    `lora` trains low-rank updates of the encoder's attention; `frozen` False trains all of it.
    """

    model_type: Literal["sam"]
    frozen: bool = True
    lora: LoraSettings | None = None
    pixels: Literal["sam", "unit"] = "sam"


class ImageTextSettings(PretrainedSettings):
    """An image-text-to-text model of transformers; `lora` is of its language model, None leaves all of it frozen.

    `cache` is of the answers under way: `growing`; `static`, of fixed sizes; or `compiled`, static with steps that are
    compiled at the first texts of each size and that a GPU replays as one graph.
    """

    cache: Literal["growing", "static", "compiled"] = "growing"
    lora: LoraSettings | None = LoraSettings(targets=("q_proj", "v_proj"))
    instruction: str = "Name each finding of the report that can be seen and ground it.\n"


class LanguageSettings(Section):
    """How the language model sees the image, how long its answers may be, and whether they may only copy the text.

    `image_tokens_side` is of the small model; a pretrained one sees the image through its own tower.
    """

    constrained: bool = True
    image_tokens_side: int = Field(default=3, ge=1)
    max_prompt_tokens: int = Field(default=160, ge=8)
    max_answer_tokens: int = Field(default=96, ge=4)


Slope = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class DecisionSettings(Section):
    """Thresholds of the callable product, chosen on validation.

    `calibration` turns a box's presence and expected IoU into the reported score, the probability that the box is
    right: (constant, slope of the presence's log-odds, slope of the expected IoU's), as `grounding.training.calibrate`
    fits them. Empty: the score is the presence. `assume_shown` gives the surest box where none passes `presence`: for
    measuring alone, on phrases that are known to be in the picture. `blank_guard` gives no
    box on a picture of one grey, whatever the network says; `views` is how many looks at each picture are
    averaged (`grounding.network.views`).
    """

    presence: float = Field(default=0.5, ge=0, le=1)
    duplicate_iou: float = Field(default=0.6, ge=0, le=1)
    assume_shown: bool = False
    blank_guard: bool = True
    views: int = Field(default=1, ge=1, le=6)
    calibration: tuple[()] | tuple[FiniteFloat, Slope, Slope] = ()


class KnowMVGConfig(Section):
    """The whole network. `vision` and `language_model` are transformers configurations with their `model_type`.

    Where one of them names a `pretrained` folder instead, it is read as SamSettings or ImageTextSettings.
    """

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
    weights_sha256: str = ""
    """Of the file that was saved beside this configuration; empty where that was not noted."""

    @field_validator("vision")
    @classmethod
    def _check_vision(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "pretrained" in value or value.get("model_type") == "sam":
            SamSettings.model_validate(value)
        return value

    @field_validator("language_model")
    @classmethod
    def _check_language_model(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "pretrained" in value:
            ImageTextSettings.model_validate(value)
        return value

    @property
    def sam(self) -> SamSettings | None:
        """Settings of the pretrained vision backbone; None where a small one is built."""
        return SamSettings.model_validate(self.vision) if "pretrained" in self.vision else None

    @property
    def image_text(self) -> ImageTextSettings | None:
        """Settings of the pretrained language model; None where a small one is built."""
        return ImageTextSettings.model_validate(self.language_model) if "pretrained" in self.language_model else None
