"""Builders of tiny pretrained folders, in the very formats of the large ones: SAM, LLaVA, Qwen 2.5 VL and Gemma 3.

Every weight is random and every size is small; what is read is what `save_pretrained` wrote, by the code that reads
the large ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    SamConfig,
    SamModel,
)

from grounding.config import KnowMVGConfig
from grounding.knowledge import load_bank
from tests.model.networks import TEXTS, tiny_config

CANVAS = 64
FAMILIES = ("llava", "qwen", "gemma")
SPECIAL = {
    "llava": ["<unk>", "<s>", "</s>", "<pad>", "<image>"],
    "qwen": ["<|endoftext|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"],
    "gemma": ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_image>", "<end_of_image>", "<image_soft_token>"],
}
ENDS: dict[str, dict[str, str]] = {
    "llava": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"},
    "qwen": {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    "gemma": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
}
IMAGE_TOKENS = {
    "llava": {"image_token": "<image>"},
    "qwen": {},
    "gemma": {
        "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>",
    },
}  # fmt: skip
"""How a family's processor finds its tokens."""

VOCABULARY = 700
"""Rows of the embedding: more than the tokenizer's, as in many pretrained models."""

TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip


def save_tokenizer(folder: Path, family: str) -> PreTrainedTokenizerFast:
    """A small vocabulary in the family's manner: byte-level (Qwen), or words that begin with a low line."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=family != "qwen", unk_token=ENDS[family].get("unk_token")))
    special, alphabet = SPECIAL[family], []
    if family == "qwen":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        replaced = normalizers.Replace(" ", "\u2581")
        tokenizer.normalizer = (
            normalizers.Sequence([normalizers.Prepend("\u2581"), replaced]) if family == "llava" else replaced
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
        tokenizer.decoder = decoders.Replace("\u2581", " ")
        special = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=620, special_tokens=special, show_progress=False, initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator([*TEXTS, *(row.text for row in load_bank().rows)], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, extra_special_tokens=IMAGE_TOKENS[family], **ENDS[family]
    )
    fast.save_pretrained(str(folder))
    return fast


def save_llava(folder: Path) -> Path:
    """LLaVA 1.5: a CLIP tower and a Llama."""
    fast = save_tokenizer(folder, "llava")
    vision = {
        "model_type": "clip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 14, "projection_dim": 16,
    }  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config={"model_type": "llama", **TEXT},
        image_token_index=fast.convert_tokens_to_ids("<image>"), image_seq_length=4,
    )  # fmt: skip
    LlavaForConditionalGeneration(config).save_pretrained(str(folder))
    size = {"height": 28, "width": 28}
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=size).save_pretrained(str(folder))
    return folder


def save_qwen(folder: Path) -> Path:
    """Qwen 2.5 VL: its own tower, positions in three axes, a head tied to the vocabulary."""
    fast = save_tokenizer(folder, "qwen")
    ids = {key: fast.convert_tokens_to_ids(f"<|{key}|>") for key in ("vision_start", "vision_end")}
    vision = {
        "depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 14, "out_hidden_size": 32,
        "fullatt_block_indexes": [1], "window_size": 56, "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    ends = {"bos_token_id": None, "eos_token_id": fast.eos_token_id, "pad_token_id": fast.pad_token_id}
    rope = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    config = Qwen2_5_VLConfig(
        vision_config=vision, text_config={**TEXT, **ends, "rope_parameters": rope, "tie_word_embeddings": True},
        image_token_id=fast.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=fast.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=ids["vision_start"], vision_end_token_id=ids["vision_end"], tie_word_embeddings=True,
    )  # fmt: skip
    Qwen2_5_VLForConditionalGeneration(config).save_pretrained(str(folder))
    pictures = Qwen2VLImageProcessorPil(
        patch_size=14, merge_size=2, temporal_patch_size=2, min_pixels=56 * 56, max_pixels=56 * 56
    )
    pictures.save_pretrained(str(folder))
    return folder


def save_gemma(folder: Path) -> Path:
    """Gemma 3 (MedGemma): a SigLIP tower, attention both ways within the image, sliding windows, a tied head."""
    fast = save_tokenizer(folder, "gemma")
    vision = {
        "model_type": "siglip_vision_model", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 7, "vision_use_head": False,
    }  # fmt: skip
    text = {
        **TEXT, "head_dim": 16, "sliding_window": 256, "layer_types": ["sliding_attention", "full_attention"],
        "query_pre_attn_scalar": 16,
    }  # fmt: skip
    config = Gemma3Config(
        vision_config=vision, text_config=text, mm_tokens_per_image=4,
        boi_token_index=fast.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=fast.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=fast.convert_tokens_to_ids("<image_soft_token>"),
    )  # fmt: skip
    Gemma3ForConditionalGeneration(config).save_pretrained(str(folder))
    Gemma3ImageProcessorPil(size={"height": 28, "width": 28}).save_pretrained(str(folder))
    return folder


SAVERS = {"llava": save_llava, "qwen": save_qwen, "gemma": save_gemma}


def save_sam(folder: Path, width: int = 32) -> Path:
    """SAM: encoder, prompt encoder and mask decoder, of a decoder that is the tests' own at width 32."""
    size = {"image_size": CANVAS, "patch_size": 16}
    config = SamConfig(
        vision_config={
            "hidden_size": 16, "output_channels": width, "num_hidden_layers": 2, "num_attention_heads": 2,
            "mlp_dim": 24, "num_pos_feats": width // 2, "window_size": 2, "global_attn_indexes": [1], **size,
        },
        prompt_encoder_config={"hidden_size": width, "mask_input_channels": 4, **size},
        mask_decoder_config={
            "hidden_size": width, "num_attention_heads": 2, "num_hidden_layers": 1, "mlp_dim": 32,
            "iou_head_hidden_dim": 16,
        },
    )  # fmt: skip
    SamModel(config).save_pretrained(str(folder))
    return folder


def production_config(family: Path, sam: Path, **sections: dict[str, Any]) -> KnowMVGConfig:
    """The tiny configuration on pretrained folders; sections change it."""
    given = tiny_config(
        **{name: change for name, change in sections.items() if name not in ("vision", "language_model")}
    )
    content = given.model_dump()
    content["vision"] = {"model_type": "sam", "pretrained": str(sam), **sections.get("vision", {})}
    content["language_model"] = {"pretrained": str(family), **sections.get("language_model", {})}
    return KnowMVGConfig.model_validate(content)


def save_family(folder: Path, family: str, seed: int = 0) -> Path:
    """The tiny model of a family."""
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    return SAVERS[family](folder)
