"""The KnowMVG network: image and text to boxes, component by component, each with a switch in the configuration."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from grounding.config import KnowMVGConfig
from grounding.knowledge import KnowledgeBank
from grounding.network.answering import PhraseStates
from grounding.network.backbone import ImageFeatures, VisionBackbone
from grounding.network.decoder import BoxDecoder, DecodedBoxes
from grounding.network.image_text import ImageTextModel
from grounding.network.language import LanguageModel
from grounding.network.prompter import KnowledgePrompter
from grounding.network.sam import SamBackbone
from grounding.tokens import GroundingTokenizer


@dataclass(frozen=True, slots=True)
class TextBatch:
    """S token sequences on B images, and the N phrases in them that are followed by <BOX>.

    `token_ids` int64[S, T] right-padded with `mask` bool[S, T]; `image_of_text` int64[S]; `labels` int64[S, T] are
    the next tokens to learn (-100: none). `text_of_phrase` int64[N], `phrase_start` and `phrase_end` int64[N]: its
    token positions [start, end). `log_prior` float32[N, M] comes from the knowledge bank.
    """

    token_ids: Tensor
    mask: Tensor
    labels: Tensor
    image_of_text: Tensor
    text_of_phrase: Tensor
    phrase_start: Tensor
    phrase_end: Tensor
    log_prior: Tensor


@dataclass(frozen=True, slots=True)
class NetworkOutput:
    """What a teacher-forced pass gives: boxes, bank scores float32[N, M] or None, and language logits float32[L, V].

    The logits are those of the L labelled positions, in the order of the texts.
    """

    logits: Tensor
    boxes: DecodedBoxes | None
    row_scores: Tensor | None


@dataclass(frozen=True, slots=True)
class SeenImages(ImageFeatures):
    """Features of B images, and `tokens` [B, n, d]: what the language model's texts on each of them begin with."""

    tokens: Tensor


class KnowMVG(nn.Module):
    """Vision backbone, language model, knowledge prompter and box decoder.

    The first two are roles: small ones are built from their configuration, production ones read pretrained folders.
    """

    def __init__(self, config: KnowMVGConfig, bank: KnowledgeBank, tokens: GroundingTokenizer) -> None:
        super().__init__()
        self.config = config
        self.backbone: VisionBackbone | SamBackbone
        self.backbone = VisionBackbone(config) if config.sam is None else SamBackbone(config, config.sam)
        self.language: LanguageModel | ImageTextModel
        if config.image_text is None:
            self.language = LanguageModel(config)
        else:
            self.language = ImageTextModel(config, config.image_text, tokens)
        width = config.decoder.width
        self.box_query = nn.Sequential(
            nn.Linear(self.language.width, self.language.width), nn.ReLU(), nn.Linear(self.language.width, width)
        )
        self.prompter: KnowledgePrompter | None = None
        if (config.knowledge.prompts and config.knowledge.top_k > 0) or config.knowledge.prior_map:
            grid = self.backbone.coarse_size(config.frame.canvas)
            self.prompter = KnowledgePrompter(config, self.language.width, bank, grid)
            self._register_bank_text(bank, tokens)
        self.decoder = BoxDecoder(config)

    def _register_bank_text(self, bank: KnowledgeBank, tokens: GroundingTokenizer) -> None:
        rows = [tokens.encode(row.text, 64).ids for row in bank.rows]
        longest = max(len(row) for row in rows)
        padded = torch.tensor([[*row, *[tokens.pad] * (longest - len(row))] for row in rows])
        weights = torch.tensor([[1.0 / len(row)] * len(row) + [0.0] * (longest - len(row)) for row in rows])
        self.register_buffer("bank_ids", padded, persistent=False)
        self.register_buffer("bank_weights", weights, persistent=False)

    def bank_text(self) -> Tensor:
        """float32[M, d]: mean of the language model's input embeddings of each row's text."""
        embedded = self.language.embed(self.get_buffer("bank_ids"))
        return (embedded * self.get_buffer("bank_weights").unsqueeze(-1)).sum(1)

    def borrowed(self) -> set[str]:
        """Names of the weights that pretrained folders hold and that are neither trained nor kept with the model."""
        language = {f"language.{name}" for name in self.language.borrowed}
        return language | {f"backbone.{name}" for name in self.backbone.borrowed}

    def own_state(self) -> dict[str, Tensor]:
        """All weights but the borrowed ones, by name."""
        borrowed = self.borrowed()
        return {name: value for name, value in self.state_dict().items() if name not in borrowed}

    def own_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters but the borrowed ones, with their names."""
        borrowed = self.borrowed()
        return ((name, value) for name, value in self.named_parameters() if name not in borrowed)

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        """Take what `own_state` gave; raises RuntimeError where names or shapes differ."""
        report = self.load_state_dict(state, strict=False)
        wrong = sorted({*report.missing_keys, *report.unexpected_keys} - self.borrowed())
        if wrong:
            raise RuntimeError(f"the weights do not fit the network: {', '.join(wrong[:5])}")

    def checkpoint_gradients(self) -> None:
        """Trade time for memory in training: pretrained layers are computed again in the backward pass."""
        self.backbone.checkpoint_gradients()
        self.language.checkpoint_gradients()

    def encode_images(self, pixels: Tensor) -> SeenImages:
        """float32[B, 1, S, S] in [0, 1] -> features."""
        features: ImageFeatures = self.backbone(pixels)
        return SeenImages(features.fine.float(), features.coarse.float(), self.language.look(pixels, features))

    def decode(
        self, features: ImageFeatures, image_index: Tensor, states: PhraseStates, log_prior: Tensor
    ) -> tuple[DecodedBoxes, Tensor | None]:
        """Boxes of N phrases from their states; `image_index` int64[N] names each phrase's image.

        Places are computed in full precision, whatever the rest is computed in.
        """
        with torch.autocast(features.coarse.device.type, enabled=False):
            return self._decode(features, image_index, states, log_prior)

    def _decode(
        self, features: ImageFeatures, image_index: Tensor, states: PhraseStates, log_prior: Tensor
    ) -> tuple[DecodedBoxes, Tensor | None]:
        query = self.box_query(states.box)
        sparse = prior = scores = None
        if self.prompter is not None:
            prompts = self.prompter(query, states.phrase, self.bank_text(), log_prior)
            scores = prompts.scores
            if self.config.knowledge.prompts:
                query, sparse = prompts.query, prompts.sparse
            prior = prompts.prior if self.config.knowledge.prior_map else None
        return self.decoder(features, image_index, query, sparse, prior), scores

    def phrase_states(self, states: Tensor, batch: TextBatch) -> PhraseStates:
        """The state that predicts <BOX> and the mean over the phrase's tokens, from states float32[S, T, d]."""
        rows = states[batch.text_of_phrase]
        position = torch.arange(states.shape[1], device=states.device)
        inside = (position >= batch.phrase_start[:, None]) & (position < batch.phrase_end[:, None])
        weights = inside.float() / inside.sum(1, keepdim=True).clamp_min(1)
        last = rows[torch.arange(len(rows), device=rows.device), batch.phrase_end - 1]
        return PhraseStates(last, torch.einsum("nt,ntd->nd", weights, rows))

    def forward(self, pixels: Tensor, batch: TextBatch) -> NetworkOutput:
        """One teacher-forced pass: pixels float32[B, 1, S, S]."""
        features = self.encode_images(pixels)
        states = self._read(features.tokens, batch)
        logits = self.language.logits(states[batch.labels != -100]).float()
        if len(batch.text_of_phrase) == 0:
            return NetworkOutput(logits, None, None)
        image_index = batch.image_of_text[batch.text_of_phrase]
        boxes, scores = self.decode(features, image_index, self.phrase_states(states, batch), batch.log_prior)
        return NetworkOutput(logits, boxes, scores)

    def _read(self, image_tokens: Tensor, batch: TextBatch) -> Tensor:
        """States float32[S, T, d] of the texts.

        A frozen language model hands no gradient on to the image either: it would teach the backbone to talk to a
        reader that cannot answer, at a sixth of the time of a step.
        """
        learned = any(p.requires_grad for p in self.language.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and learned):
            states: Tensor = self.language(image_tokens[batch.image_of_text], batch.token_ids, batch.mask)
        return states.float()
