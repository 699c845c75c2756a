"""Folders of pretrained weights as `save_pretrained` writes them: found, checked, and named by their digest.

Pickle is never read and no code of a folder is run. Nothing is fetched unless the configuration allows it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import logging

from grounding.config import KnowMVGConfig, LoraSettings, PretrainedSettings
from grounding.types import ModelError

PARTS = ("*.json", "*.safetensors", "*.txt")
"""What a folder's digest is over; texts are vocabularies."""

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def find_pretrained(settings: PretrainedSettings) -> Path:
    """The folder that `settings` means: a path, or a name that transformers has in its cache (or may fetch).

    Raises:
        ModelError: it is not there, or holds no safetensors.
    """
    path = Path(settings.pretrained).expanduser()
    if path.is_file():
        raise ModelError(f"{path} is a file, not a folder; {_conversion(path)}")
    if not path.is_dir():
        path = _cached(settings)
    if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
        held = [p for p in sorted(path.iterdir()) if p.suffix in PICKLES]
        remedy = _conversion(held[0]) if held else "save the model there with save_pretrained"
        raise ModelError(f"{path} holds no config.json with safetensors; {remedy}")
    return path


def _conversion(path: Path) -> str:
    if path.suffix in PICKLES:
        return f"{path.name} is pickle, which is refused: convert it with save_pretrained of transformers"
    return "name the folder that save_pretrained of transformers wrote"


def _cached(settings: PretrainedSettings) -> Path:
    from huggingface_hub import snapshot_download

    try:
        found = snapshot_download(
            settings.pretrained, local_files_only=settings.local_files_only, allow_patterns=list(PARTS)
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the pretrained folder {settings.pretrained} is missing; put it there, or change `pretrained` in the "
            "configuration to where it is"
        ) from error
    return Path(found)


def digest_of_folder(folder: Path) -> str:
    """SHA-256 over the names and contents of the folder's configuration, vocabulary and weights."""
    whole = hashlib.sha256()
    for path in sorted({p for pattern in PARTS for p in folder.glob(pattern)}):
        with path.open("rb") as content:
            whole.update(f"{path.name}:{hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def with_digests(config: KnowMVGConfig) -> KnowMVGConfig:
    """The configuration with the digest of every pretrained folder named; those that are named are checked.

    Raises:
        ModelError: a folder is missing, or holds something else than the configuration says.
    """
    parts: dict[str, PretrainedSettings | None] = {"vision": config.sam, "language_model": config.image_text}
    named = {}
    for key, settings in parts.items():
        if settings is None:
            continue
        folder = find_pretrained(settings)
        found = digest_of_folder(folder)
        if settings.sha256 not in ("", found):
            raise ModelError(
                f"{folder} is not the pretrained folder that the model was trained on (digest {found[:12]}, "
                f"not {settings.sha256[:12]}); restore it, or change `{key}.pretrained` to where the right one is"
            )
        named[key] = {**getattr(config, key), "sha256": found}
    return config.model_copy(update=named)


def read_whole(folder: Path, read: Callable[..., Any], **options: Any) -> Any:
    """`from_pretrained` of a folder, in which every weight must be found."""
    try:
        with _quietly():
            model, report = read(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True, **options
            )  # fmt: skip
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"{folder} cannot be read ({' '.join(str(error).split())[:200]}); restore it") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(f"{folder} lacks the weight {missing[0]}; restore it, or name the folder of another model")
    return model


@contextmanager
def _quietly() -> Iterator[None]:
    """Without a bar, and without a list of the weights that are of no use here."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def add_lora(model: nn.Module, settings: LoraSettings, within: str) -> None:
    """Freeze `model` and give its linear layers `targets` below the module named `within` low-rank updates."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ModelError("low-rank updates need peft; install the package with its extra `train`") from error
    places = "|".join(settings.targets)
    low_rank = LoraConfig(
        r=settings.r, lora_alpha=settings.alpha, lora_dropout=settings.dropout,
        target_modules=rf"(.*\.)?{within}\.(.*\.)?({places})",
    )  # fmt: skip
    try:
        inject_adapter_in_model(low_rank, model)
    except ValueError as error:
        raise ModelError(f"no layer of the pretrained model is called {' or '.join(settings.targets)}") from error
    for name, value in model.named_parameters():
        value.requires_grad_("lora_" in name)
        if "lora_" in name:
            value.data = value.data.float()


def untrained_names(module: nn.Module) -> Iterator[str]:
    """Names in the state of `module` that are not parameters with a gradient."""
    trained = {name for name, value in module.named_parameters(remove_duplicate=False) if value.requires_grad}
    return (name for name in module.state_dict() if name not in trained)


def dtype_of(settings: PretrainedSettings) -> torch.dtype:
    """What the part is held in."""
    dtype: torch.dtype = getattr(torch, settings.dtype)
    return dtype


def read_tensors(folder: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors of a folder whose names begin with one of `prefixes`, in float32."""
    from safetensors import safe_open

    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as held:
            found |= {name: held.get_tensor(name).float() for name in held.keys() if name.startswith(prefixes)}  # noqa: SIM118
    return found
