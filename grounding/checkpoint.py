"""A model folder: config.json, model.safetensors (half precision) and the tokenizer. Written whole, read with care.

A model with pretrained parts holds what was trained, and names the folders of the rest with their digests.

No pickle is ever read. A folder that is missing, damaged or not of one piece raises ModelError that names the file
and says what to do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from grounding.config import KnowMVGConfig
from grounding.knowledge import KnowledgeBank, load_bank
from grounding.network.model import KnowMVG
from grounding.network.pretrained import with_digests
from grounding.predictor import Predictor
from grounding.tokens import GroundingTokenizer
from grounding.types import ModelError, ModelIdentity

CONFIG, WEIGHTS = "config.json", "model.safetensors"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")
FILES = (CONFIG, WEIGHTS, *TOKENIZER)
PATIENTS = "training_patients.txt"
"""Beside the model, no part of it: the patients of its training and validation, one per line, as the sets name them."""
PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl"})
"""Endings of files that hold weights as a pickle."""
REMEDY = "restore the folder, train a model with `knowmvg train`, or set model.path to `default`"


def default_checkpoint() -> Path:
    """The folder of the model that ships with the package."""
    return Path(__file__).parent / "checkpoints" / "default"


def save_checkpoint(folder: Path, network: KnowMVG, tokens: GroundingTokenizer, bank: KnowledgeBank) -> None:
    """Write a model folder; weights in float16, each tensor once, without those that pretrained folders hold."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens.save(folder)
    weights, seen = {}, set()
    for name, value in network.own_state().items():
        if value.data_ptr() in seen and value.numel() > 1:
            continue
        seen.add(value.data_ptr())
        weights[name] = (value.half() if value.is_floating_point() else value).contiguous().clone()
    partial = folder / f"{WEIGHTS}.part"
    save_file(weights, partial)
    partial.chmod(0o644)  # the library keeps its files to their owner
    partial.replace(folder / WEIGHTS)
    digests = {"knowledge_sha256": bank.sha256, "weights_sha256": _sha256(folder / WEIGHTS)}
    config = with_digests(network.config).model_copy(update=digests)
    (folder / CONFIG).write_text(config.model_dump_json(indent=2) + "\n", encoding="utf-8")


def save_training_patients(folder: Path, patients: Iterable[str]) -> None:
    """Write down whom the model has seen, so that an evaluation can leave them out."""
    (folder / PATIENTS).write_text("".join(f"{patient}\n" for patient in sorted(set(patients))), encoding="utf-8")


def read_training_patients(path: Path | str) -> frozenset[str]:
    """Return the patients of a model's training and validation; empty where its folder does not name them."""
    file = find_folder(path) / PATIENTS
    return frozenset(file.read_text(encoding="utf-8").split()) if file.is_file() else frozenset()


def find_folder(path: Path | str) -> Path:
    """Return the model folder that `path` means: `default` is the shipped one."""
    return default_checkpoint() if str(path) == "default" else Path(path)


def load_predictor(path: Path | str, device: str = "auto") -> Predictor:
    """Read a model folder; `default` is the shipped one. `device` is `auto`, `cpu`, `cuda` or `cuda:N`.

    Raises:
        ModelError: a file is missing or damaged, or the parts do not belong together; names the file and the remedy.
    """
    folder = find_folder(path)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        raise ModelError(f"{folder / missing[0]} is missing{_pickles(folder)}; {REMEDY}")
    config, bank = read_config(folder), load_bank()
    if config.knowledge_sha256 != bank.sha256:
        raise ModelError(f"{folder / CONFIG} was trained with another knowledge bank than this package has; {REMEDY}")
    check_weights(folder, config)
    with_digests(config)
    tokens = _read_tokens(folder)
    network = _read_network(folder, config, bank, tokens).to(choose_device(device))
    return Predictor(network, tokens, bank, ModelIdentity(config.name, config.version, digest(folder)))


def read_config(folder: Path) -> KnowMVGConfig:
    """Read and check config.json."""
    try:
        return KnowMVGConfig.model_validate_json((folder / CONFIG).read_bytes())
    except (ValidationError, OSError) as error:
        raise ModelError(f"{folder / CONFIG} is not a model configuration ({_brief(error)}); {REMEDY}") from error


def check_weights(folder: Path, config: KnowMVGConfig) -> None:
    """Raise ModelError where the weights of a folder are not those that its configuration was saved with."""
    if config.weights_sha256 and config.weights_sha256 != _sha256(folder / WEIGHTS):
        raise ModelError(f"{folder / WEIGHTS} is damaged or not the file that {CONFIG} was saved with; {REMEDY}")


def digest(folder: Path) -> str:
    """SHA-256 over the names and contents of the model's files."""
    whole = hashlib.sha256()
    for name in FILES:
        whole.update(f"{name}:{_sha256(folder / name)}\n".encode())
    return whole.hexdigest()


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _pickles(folder: Path) -> str:
    """What to say of weights that are there as a pickle, which is a program and could do anything when it is read."""
    found = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLES)
    return f" ({found[0]} may be a pickle, which is never read: convert it to safetensors)" if found else ""


def choose_device(device: str) -> torch.device:
    """`auto` is the accelerator when there is one; a device that is not there raises ModelError."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise ModelError(f"model.device {device!r} is not a device; use auto, cpu or cuda") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"model.device is {device!r} but no CUDA device is there; use auto or cpu")
    return chosen


def _read_tokens(folder: Path) -> GroundingTokenizer:
    try:
        return GroundingTokenizer.load(folder)
    except Exception as error:
        raise ModelError(f"{folder / TOKENIZER[0]} cannot be read ({_brief(error)}); {REMEDY}") from error


def _read_network(folder: Path, config: KnowMVGConfig, bank: KnowledgeBank, tokens: GroundingTokenizer) -> KnowMVG:
    try:
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{folder / WEIGHTS} is damaged ({_brief(error)}); {REMEDY}") from error
    try:
        network = KnowMVG(config, bank, tokens)
        report = network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()},
                                         strict=False)  # fmt: skip
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder / WEIGHTS} does not fit {CONFIG} ({_brief(error)}); {REMEDY}") from error
    state, borrowed = network.state_dict(), network.borrowed()
    held = {state[name].data_ptr() for name in weights if name in state}
    missing = (name for name in report.missing_keys if name not in borrowed)
    absent = [name for name in missing if state[name].data_ptr() not in held]
    if absent or report.unexpected_keys:
        named = (absent or report.unexpected_keys)[0]
        raise ModelError(f"{folder / WEIGHTS} does not fit {CONFIG} (tensor {named}); {REMEDY}")
    return network


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
