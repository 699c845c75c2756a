"""The production language model: any image-text-to-text model of transformers, with LoRA and three tokens of ours.

Layout of a sequence: what the model itself begins an image with, the image's tokens, an instruction, then text,
<ground>, and the answer. The image goes through the model's own processor and tower once, frozen; in generation the
texts of an image share one cached prefix. The pretrained vocabulary stays as it is; the new tokens' rows are apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModelForImageTextToText

from grounding.config import ImageTextSettings, KnowMVGConfig
from grounding.copying import Emission
from grounding.network.answering import Answers, PhraseStates, Reading
from grounding.network.backbone import ImageFeatures
from grounding.network.pretrained import add_lora, dtype_of, find_pretrained, read_whole, untrained_names
from grounding.network.rewriting import constraints, find_aligner
from grounding.network.shared_reading import SharedReading, StaticSteps
from grounding.tokens import GroundingTokenizer, TextTokens
from grounding.types import ModelError

MARKS = (("boi_token_index", "eoi_token_index", "\n\n"), ("vision_start_token_id", "vision_end_token_id", ""))
"""Keys of configurations that name the tokens before and after an image (Gemma 3, Qwen 2.5 VL), and the blank there."""


class ImageTextModel(nn.Module):
    """A pretrained model that reads images and texts; has the surface of the small `LanguageModel`."""

    def __init__(self, config: KnowMVGConfig, settings: ImageTextSettings, tokens: GroundingTokenizer) -> None:
        super().__init__()
        folder = find_pretrained(settings)
        models: Any = AutoModelForImageTextToText
        self.lm: Any = read_whole(folder, models.from_pretrained, dtype=dtype_of(settings))
        if not hasattr(self.lm.model, "language_model") or not hasattr(self.lm.config, "image_token_id"):
            raise ModelError(f"{folder}: a {self.lm.config.model_type} model has no image tokens in its text")
        self.pictures: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True, backend="pil")
        self.lm.requires_grad_(False)
        if settings.lora is not None:
            add_lora(self.lm, settings.lora, "language_model")
        self.max_answer_tokens = config.language.max_answer_tokens
        self.align = find_aligner(config.language.constrained)
        self.steps = StaticSteps(self, settings.cache == "compiled") if settings.cache != "growing" else None
        self.width = int(self.lm.config.get_text_config().hidden_size)
        self.borrowed = frozenset(f"lm.{name}" for name in untrained_names(self.lm))
        """Names of weights that belong to the pretrained folder and are not kept with the model."""
        self.register_buffer("new_ids", torch.tensor([tokens.ground, tokens.box, tokens.neg]), persistent=False)
        self.new_inputs = self._new_rows(self.lm.get_input_embeddings(), torch.arange(64))
        self.new_outputs = nn.Parameter(self.lm.lm_head.weight.detach().float().mean(0).repeat(3, 1))
        before, after = image_marks(self.lm.config, tokens)
        self.before = [*tokens.opening, *before]
        self.after = [*after, *tokens.plain_ids(settings.instruction)]
        self.grid = self._prepared(torch.zeros(1, 1, config.frame.canvas, config.frame.canvas)).get("image_grid_thw")

    @staticmethod
    def _new_rows(table: Any, some: Tensor) -> nn.Parameter:
        """Three rows of the size of the others, unlike one another and close to their mean."""
        with torch.no_grad():
            usual = table(some.to(table.weight.device).clamp_max(table.weight.shape[0] - 1)).float()
            apart = torch.randn(3, usual.shape[-1]) * usual.std()
            return nn.Parameter(usual.mean(0) + 0.5 * apart)

    # ---- what is seen ------------------------------------------------------------------------------------------------

    def _prepared(self, pixels: Tensor) -> dict[str, Tensor]:
        """Inputs of the model's own tower for pixels float32[B, 1, S, S], by its own processor."""
        grey = (pixels.detach().float().cpu().clamp(0, 1) * 255).round().byte()
        images = [image.numpy() for image in grey.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)]
        made = self.pictures(images=images, return_tensors="pt", input_data_format="channels_last")
        return {key: made[key] for key in ("pixel_values", "image_grid_thw") if key in made}

    @torch.no_grad()
    def look(self, pixels: Tensor, features: ImageFeatures) -> Tensor:
        """The tokens of each image, [B, n, d], from the model's own tower; `features` are of no use to it."""
        inputs = {key: value.to(pixels.device) for key, value in self._prepared(pixels).items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(self.lm.dtype)
        seen = self.lm.model.get_image_features(**inputs, return_dict=True).pooler_output
        return torch.stack(list(seen))

    # ---- what is read ------------------------------------------------------------------------------------------------

    def embed(self, token_ids: Tensor) -> Tensor:
        """int64[...] -> [..., d] in the precision of the model."""
        new = token_ids.unsqueeze(-1) == self.get_buffer("new_ids")
        one = new.any(-1)
        known: Tensor = self.lm.get_input_embeddings()(token_ids.masked_fill(one, 0))
        ours = (new.to(self.new_inputs.dtype) @ self.new_inputs).to(known.dtype)
        return torch.where(one.unsqueeze(-1), ours, known)

    def logits(self, states: Tensor) -> Tensor:
        """[..., d] -> float32[..., V]; the new tokens have their own rows."""
        scores = self.lm.lm_head(states.to(self.lm.lm_head.weight.dtype)).float()
        new = self.get_buffer("new_ids")
        scores = F.pad(scores, (0, max(0, int(new.max()) + 1 - scores.shape[-1])))
        return scores.index_copy(-1, new, F.linear(states.float(), self.new_outputs).to(scores.dtype))

    def prefix(self, image_tokens: Tensor) -> Tensor:
        """What the texts on an image begin with, embedded: [B, n, d] -> [B, P, d]."""
        around = [self._embedded(ids, image_tokens) for ids in (self.before, self.after)]
        return torch.cat([around[0], image_tokens, around[1]], 1)

    def _embedded(self, ids: list[int], image_tokens: Tensor) -> Tensor:
        given = torch.tensor(ids, device=image_tokens.device, dtype=torch.long)
        return self.embed(given).expand(len(image_tokens), -1, -1)

    def kinds(self, count: int, device: torch.device) -> Tensor:
        """int64[1, P]: 1 where the prefix of an image of `count` tokens has the image, 0 elsewhere."""
        marks = [0] * len(self.before) + [1] * count + [0] * len(self.after)
        return torch.tensor([marks], device=device)

    def positions(self, count: int, device: torch.device) -> Tensor:
        """int64[A, 1, P]: positions of the prefix, on one axis, or three where an image has rows and columns."""
        kinds = self.kinds(count, device)
        if not hasattr(self.lm.model, "get_rope_index"):
            return torch.arange(kinds.shape[1], device=device).view(1, 1, -1)
        ids = kinds * int(self.lm.config.image_token_id)
        places: Tensor = self.lm.model.get_rope_index(ids, kinds, image_grid_thw=self._grid(device))[0]
        return places

    def _grid(self, device: torch.device) -> Tensor | None:
        return None if self.grid is None else self.grid.to(device)

    def run(self, inputs: Tensor, mask: Tensor, positions: Tensor, **options: Any) -> Tensor:
        """States [S, T, d] of embedded inputs; `positions` int64[A, S, T]."""
        places = positions if positions.shape[0] > 1 else positions[0]
        out = self.lm.model(inputs_embeds=inputs, attention_mask=mask, position_ids=places, **options)
        states: Tensor = out.last_hidden_state
        return states

    def image_options(self, kinds: Tensor) -> dict[str, Tensor]:
        """What tells a model that attends both ways within an image (Gemma 3) where the image is."""
        return {"token_type_ids": kinds} if self.lm.config.model_type.startswith("gemma") else {}

    def forward(self, image_tokens: Tensor, token_ids: Tensor, mask: Tensor) -> Tensor:
        """Teacher forcing: [S, n, d], int64[S, T] right-padded, bool[S, T] -> states float32[S, T, d]."""
        prefix, text = self.prefix(image_tokens), self.embed(token_ids)
        count, length, device = len(token_ids), prefix.shape[1], token_ids.device
        whole = torch.cat([mask.new_ones(count, length), mask], 1).long()
        begun = self.positions(image_tokens.shape[1], device)
        rest = begun.max() + 1 + torch.arange(token_ids.shape[1], device=device).expand(len(begun), count, -1)
        kinds = self.kinds(image_tokens.shape[1], device).expand(count, -1)
        options = self.image_options(F.pad(kinds, (0, token_ids.shape[1])))
        places = torch.cat([begun.expand(-1, count, -1), rest], -1)
        states = self.run(torch.cat([prefix, text.to(prefix.dtype)], 1), whole, places, use_cache=False, **options)
        return states[:, length:].float()

    def generate(
        self,
        image_tokens: Tensor,
        prompts: Sequence[TextTokens],
        tokens: GroundingTokenizer,
        images: Sequence[int] = (),
    ) -> tuple[list[list[Emission]], PhraseStates]:
        """Greedy and cached answers to prompts on images (tokens of B images, [B, n, d]), by the constraint.

        `images` names each prompt's image; without it, all are on the first. Returns for each prompt its emissions in
        order, and the states of all emissions of all prompts in that order.
        """
        rows = constraints(prompts, tokens, self.align)
        ids = [tokens.prompt_ids(prompt) for prompt in prompts]
        where = list(images) or [0] * len(prompts)
        reading: Reading
        if self.steps is None:
            reading = SharedReading(self, image_tokens, where, ids, tokens.pad)
        else:
            reading = self.steps.begin(image_tokens, where, ids, tokens.pad)
        return Answers(reading, rows, self.logits).run(self.max_answer_tokens)

    def checkpoint_gradients(self) -> None:
        """Keep no activations of the language model for the backward pass: compute them again there."""
        self.lm.model.language_model.activation_checkpointing_enable({"use_reentrant": False})


def image_marks(config: Any, tokens: GroundingTokenizer) -> tuple[list[int], list[int]]:
    """Token ids that the model's own processor sets before and after the tokens of an image."""
    for opening, closing, around in MARKS:
        if getattr(config, opening, None) is not None and getattr(config, closing, None) is not None:
            blank = tokens.plain_ids(around)
            return [*blank, int(getattr(config, opening))], [int(getattr(config, closing)), *blank]
    return [], []
