"""Builders of tiny networks and batches: seconds on one core, every component in its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch

from grounding.config import KnowMVGConfig
from grounding.knowledge import KnowledgeBank, load_bank
from grounding.network.model import KnowMVG
from grounding.predictor import Predictor
from grounding.processor import Processor
from grounding.tokens import GroundingTokenizer
from grounding.training.batch import Batcher, TrainingBatch
from grounding.training.examples import Answer, Example, Prompt
from grounding.types import ModelIdentity

OFF: dict[str, Any] = {
    "knowledge": {"prompts": False, "prior_map": False},
    "attention": {"use_global": False, "use_local": False, "two_pass": False},
    "decoder": {"mask_head": False},
}
"""All of the paper's components off: the predecessor's decoder."""

TEXTS = (
    "There is a small left pleural effusion.",
    "No pneumothorax. The heart is enlarged.",
    "Opacity in the right upper lung zone and a nodule in the left lower lobe.",
)


@lru_cache(maxsize=1)
def tiny_tokens() -> GroundingTokenizer:
    """A tokenizer that knows a few sentences and the bank."""
    return GroundingTokenizer.train([*TEXTS, *(row.text for row in load_bank().rows)], 400)


def tiny_config(**sections: dict[str, Any]) -> KnowMVGConfig:
    """A network of about a hundred thousand weights on a canvas of 64 pixels."""
    tokens = tiny_tokens()
    content: dict[str, Any] = {
        "frame": {"canvas": 64},
        "vision": {
            "model_type": "resnet", "num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 16, 16, 16],
            "depths": [1, 1, 1, 1], "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"],
        },
        "language_model": {
            "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 256,
            "vocab_size": len(tokens), "pad_token_id": tokens.pad, "tie_word_embeddings": True,
        },
        "language": {"image_tokens_side": 2, "max_answer_tokens": 24},
        "decoder": {"width": 32, "heads": 2, "depth": 1, "mlp_width": 32},
        "decision": {"presence": 0.3},
    }  # fmt: skip
    for name, changes in sections.items():
        content[name] = {**content.get(name, {}), **changes}
    return KnowMVGConfig.model_validate(content)


def make_network(bank: KnowledgeBank | None = None, seed: int = 0, **sections: dict[str, Any]) -> KnowMVG:
    """A random tiny network in evaluation mode; sections change its configuration."""
    torch.manual_seed(seed)
    return KnowMVG(tiny_config(**sections), bank or load_bank(), tiny_tokens()).eval()


def copy_weights(source: KnowMVG, target: KnowMVG) -> None:
    """Give `target` every weight of `source` that it has a place for."""
    held = target.state_dict()
    fitting = {k: v for k, v in source.state_dict().items() if k in held and held[k].shape == v.shape}
    target.load_state_dict(fitting, strict=False)


def stir(network: KnowMVG, seed: int = 1) -> None:
    """Open the gates that start closed, so that every branch has a say."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith(("gamma", "attention.scale")):
                weight.fill_(0.7)
            if "delta_head.2" in name or "coarse_head.2.weight" in name:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)


def make_predictor(**sections: dict[str, Any]) -> Predictor:
    """A random tiny network as the callable product; it often closes a phrase with a box."""
    network = make_network(seed=3, **sections)
    stir(network)
    with torch.no_grad():
        network.language.lm.model.embed_tokens.weight[tiny_tokens().box] *= 3
    return Predictor(network, tiny_tokens(), load_bank(), ModelIdentity("tiny", "0", "0" * 64))


@contextmanager
def computing_in_double(predictor: Predictor) -> Iterator[None]:
    """Let a predictor (which is of no other use afterwards) compute in float64: rounding then says nothing."""
    processor = predictor._processor
    usual = torch.get_default_dtype()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        patch.setattr(processor, "pixels", lambda image: Processor.pixels(processor, image).double())
        patch.setattr(processor, "log_prior", lambda phrases: Processor.log_prior(processor, phrases).double())
        predictor._network.double()
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(usual)


def tiny_image(square: tuple[int, int, int, int] = (10, 20, 30, 50), seed: int = 0) -> np.ndarray[Any, Any]:
    """float32[64, 64]: a bright square (x1, y1, x2, y2) on noise."""
    image = np.random.default_rng(seed).uniform(0.1, 0.3, (64, 64)).astype(np.float32)
    x1, y1, x2, y2 = square
    image[y1:y2, x1:x2] += 0.6
    return image


def square_box(square: tuple[int, int, int, int]) -> tuple[float, float, float, float]:
    """cxcywh of a square of `tiny_image`."""
    x1, y1, x2, y2 = (v / 64 for v in square)
    return ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1)


def prompt(text: str, phrase: str, *boxes: tuple[float, float, float, float], negated: bool = False) -> Prompt:
    """A text with one phrase of it."""
    start = text.index(phrase)
    return Prompt(text, (Answer(start, start + len(phrase), negated, boxes),))


def make_examples() -> list[Example]:
    """Three pictures: with three phrases to ground, with one that is not there, and with none at all."""
    a, b = (10, 20, 30, 50), (36, 30, 60, 44)
    return [
        Example(
            tiny_image(a),
            (
                prompt(TEXTS[0], "small left pleural effusion", square_box(a)),
                Prompt(
                    TEXTS[2],
                    (
                        Answer(0, 37, False, (square_box(a), square_box(b))),
                        Answer(44, 72, False, (square_box(b),)),
                    ),
                ),
            ),
        ),
        Example(tiny_image(b, 1), (prompt("The heart is enlarged.", "heart is enlarged"),)),
        Example(tiny_image(b, 2), (prompt("No pneumothorax.", "pneumothorax", negated=True),)),
    ]


def make_batcher() -> Batcher:
    """The batcher of the tiny networks."""
    return Batcher(tiny_tokens(), load_bank(), slots=3, limit=60)


def make_batch(examples: list[Example] | None = None) -> TrainingBatch:
    """A batch of `make_examples`, or of other examples."""
    return make_batcher().collate(examples or make_examples())
