"""Model folders: what is saved is what is loaded, and damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from grounding.checkpoint import CONFIG, FILES, WEIGHTS, digest, load_predictor, read_config, save_checkpoint
from grounding.knowledge import load_bank
from grounding.network.model import KnowMVG
from grounding.types import ModelError, ReportText, Span
from tests.model.networks import make_network, stir, tiny_image, tiny_tokens


@pytest.fixture
def network() -> KnowMVG:
    made = make_network()
    stir(made)
    with torch.no_grad():
        for weight in made.state_dict().values():
            if weight.is_floating_point():
                weight.copy_(weight.half().float())
    return made


@pytest.fixture
def folder(network: KnowMVG, tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "model", network, tiny_tokens(), load_bank())
    return tmp_path / "model"


def test_what_is_saved_is_what_is_loaded(network: KnowMVG, folder: Path) -> None:
    loaded = load_predictor(folder)._network.state_dict()
    assert set(loaded) == set(network.state_dict())
    assert all(torch.equal(value, loaded[name]) for name, value in network.state_dict().items())


def test_loading_twice_gives_the_same_answer_and_identity(folder: Path) -> None:
    first, second = load_predictor(folder), load_predictor(str(folder))
    text = "There is a small left pleural effusion."
    report = ReportText(text, (Span(0, len(text)),))
    assert first.ground([tiny_image()], report) == second.ground([tiny_image()], report)
    assert first.identity.sha256 == digest(folder)


def test_other_weights_are_another_identity(network: KnowMVG, folder: Path) -> None:
    before = digest(folder)
    with torch.no_grad():
        network.decoder.heat.bias.add_(1)
    save_checkpoint(folder, network, tiny_tokens(), load_bank())
    assert digest(folder) != before


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_with_its_remedy(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"{name} is missing; .*knowmvg train"):
        load_predictor(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="nowhere"):
        load_predictor(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS, "tokenizer.json"])
@pytest.mark.parametrize("damage", [b"", b"\x00\xffgarbage", b'{"format": 99}'])
def test_a_damaged_file_is_named(folder: Path, name: str, damage: bytes) -> None:
    (folder / name).write_bytes(damage)
    with pytest.raises(ModelError, match=name):
        load_predictor(folder)


def test_truncated_weights_are_refused(folder: Path) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=WEIGHTS):
        load_predictor(folder)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    content = json.loads((folder / CONFIG).read_text())
    content["decoder"]["width"] = 64
    (folder / CONFIG).write_text(json.dumps(content))
    with pytest.raises(ModelError, match="does not fit"):
        load_predictor(folder)


def test_weights_that_lack_a_component_are_refused(folder: Path) -> None:
    save_checkpoint(folder, make_network(attention={"two_pass": False}), tiny_tokens(), load_bank())
    content = json.loads((folder / CONFIG).read_text())
    content["attention"]["two_pass"] = True
    (folder / CONFIG).write_text(json.dumps(content))
    with pytest.raises(ModelError, match=r"does not fit .*decoder\."):
        load_predictor(folder)


def test_an_unknown_key_of_the_configuration_is_refused(folder: Path) -> None:
    content = json.loads((folder / CONFIG).read_text()) | {"colour": "blue"}
    (folder / CONFIG).write_text(json.dumps(content))
    with pytest.raises(ModelError, match="colour"):
        read_config(folder)


def test_another_knowledge_bank_is_refused(folder: Path) -> None:
    content = json.loads((folder / CONFIG).read_text()) | {"knowledge_sha256": "0" * 64}
    (folder / CONFIG).write_text(json.dumps(content))
    with pytest.raises(ModelError, match="knowledge bank"):
        load_predictor(folder)


def test_a_device_that_is_not_there_is_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="is not a device"):
        load_predictor(folder, "abacus")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="no CUDA device"):
            load_predictor(folder, "cuda")


def test_weights_take_half_precision(folder: Path) -> None:
    from safetensors.numpy import load_file

    kinds = {value.dtype for value in load_file(folder / WEIGHTS).values()}
    assert kinds <= {np.dtype(np.float16), np.dtype(np.int64)}
