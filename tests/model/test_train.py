"""Training: a tiny network learns squares by heart, and a run can be stopped and taken up again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import grounding
from grounding.checkpoint import load_predictor
from grounding.network.boxes import paired_iou
from grounding.training.examples import Example
from grounding.training.losses import losses
from grounding.training.recipe import LossWeights, RecipeError, read_recipe
from grounding.training.scoring import raster, region_iou
from grounding.training.train import _Training, fallen, train
from tests.model.networks import make_batch, make_examples, make_network, prompt, square_box, tiny_image
from tests.model.pretrained import production_config, save_family, save_sam

SQUARES = [(6, 8, 30, 30), (34, 10, 60, 40), (8, 36, 26, 58)]


def test_a_tiny_network_learns_three_squares_by_heart() -> None:
    torch.manual_seed(0)
    network = make_network(decoder={"slots": 2}).train()
    examples = [
        Example(tiny_image(square, seed), (prompt("There is a nodule.", "nodule", square_box(square)),))
        for seed, square in enumerate(SQUARES)
    ]
    batch = make_batch(examples)
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3)
    for _ in range(110):
        terms = losses(network(batch.pixels, batch.text), batch.text.labels, batch.targets, LossWeights())
        optimizer.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    boxes = network(batch.pixels, batch.text).boxes
    assert boxes is not None
    best = boxes.presence_logits.argmax(1)
    found = boxes.refined[torch.arange(3), best]
    assert paired_iou(found, batch.targets.boxes[:, 0])[0].min() > 0.7
    assert float(terms["language"].detach()) < 0.1


def recipe_at(folder: Path, **changes: Any) -> Path:
    content: dict[str, Any] = {
        "model": {
            "frame": {"canvas": 64},
            "vision": {
                "model_type": "resnet", "num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 16, 16, 16],
                "depths": [1, 1, 1, 1], "layer_type": "basic", "out_features": ["stage2", "stage3", "stage4"],
            },
            "language_model": {
                "model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
                "num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True,
            },
            "decoder": {"width": 32, "heads": 2, "depth": 1, "mlp_width": 32},
        },
        "vocabulary": 600, "tokenizer_reports": 20, "run_dir": str(folder / "run"), "seed": 3, "minutes": 0.005,
        "batch": {"phantoms": 2, "real": 1, "prompts": 2, "real_prompts": 1, "lessons": 1}, "fresh_share": 1.0,
        "absent_share": 0.5, "keep": 10, "processes": 1, "threads": 1, "checkpoint_minutes": 10, "validation": 2,
        "optimizer": {
            "rate": 1e-3, "language_rate": 1e-3, "decay": 0.0, "warmup_steps": 2, "clip": 1.0, "ema": 0.9,
        },
        "real": {"root": str(folder / "absent"), "manifests": ["a.jsonl"], "validation_share": 0.2},
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content | changes), encoding="utf-8")
    return path


@pytest.mark.filterwarnings("ignore")
def test_a_run_ends_with_a_model_and_can_be_taken_up_again(tmp_path: Path) -> None:
    train(recipe_at(tmp_path))
    best = tmp_path / "run" / "best"
    first = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert first["step"] >= 1
    assert load_predictor(best).ground_phrases(np.zeros((30, 30), np.float32), ["nodule"])
    train(recipe_at(tmp_path, minutes=0.01))
    second = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert second["step"] > first["step"] and second["elapsed_s"] > first["elapsed_s"]


@pytest.mark.filterwarnings("ignore")
def test_a_production_model_is_trained_by_steps_and_taken_up_again(tmp_path: Path) -> None:
    family, sam = save_family(tmp_path / "llava", "llava"), save_sam(tmp_path / "sam")
    made = production_config(family, sam).model_dump(exclude={"knowledge_sha256"})
    recipe = recipe_at(
        tmp_path, model=made, minutes=100, steps=2, accumulate=2, precision="bfloat16", gradient_checkpointing=True,
        device="cpu",
    )  # fmt: skip
    train(recipe)
    best = tmp_path / "run" / "best"
    assert len(load_predictor(best).ground_phrases(np.zeros((30, 30), np.float32), ["nodule"])) == 1
    first = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert first["step"] == 2 and not any("vision_tower" in name or "encoder" in name for name in first["network"])
    assert list((tmp_path / "run" / "tb").glob("events.*"))
    train(recipe_at(tmp_path, **yaml.safe_load(recipe.read_text()) | {"steps": 3}))
    second = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert second["step"] == 3
    moved = [n for n, v in first["network"].items() if not torch.equal(v, second["network"][n])]
    assert any("lora_B" in n for n in moved) and "language.new_outputs" in moved and "box_query.0.weight" in moved


@pytest.mark.filterwarnings("ignore")
def test_a_run_out_of_patience_ends(tmp_path: Path) -> None:
    train(recipe_at(tmp_path, minutes=1000, checkpoint_minutes=1e-6, patience=2, tensorboard=False))
    saved = torch.load(tmp_path / "run" / "state.pt", weights_only=True)
    assert saved["elapsed_s"] >= 60_000 and 3 <= saved["step"] < 500
    assert not (tmp_path / "run" / "tb").exists()


def test_batches_of_a_step_count_as_one_batch(tmp_path: Path) -> None:
    """Two equal batches accumulated move the weights as one of them does."""
    after = []
    for count in (1, 2):
        (tmp_path / str(count)).mkdir()
        torch.manual_seed(0)
        run = _Training(read_recipe(recipe_at(tmp_path / str(count), accumulate=count)), tmp_path / str(count), rank=1)
        run._one_step([run.batcher.collate(make_examples())] * count, 0.0)
        after.append(dict(run.network.named_parameters()))
    assert all(torch.equal(value, after[1][name]) for name, value in after[0].items())


def test_a_frozen_reader_hands_no_gradient_to_the_picture(tmp_path: Path) -> None:
    run = _Training(read_recipe(recipe_at(tmp_path, train_language=False)), tmp_path, rank=1)
    before = {name: value.clone() for name, value in run.network.own_state().items()}
    run._one_step([run.batcher.collate(make_examples())], 0.0)
    after = run.network.own_state()
    moved = {name.partition(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert "language" not in moved and {"backbone", "box_query", "decoder"} <= moved

    unasked = Example(tiny_image(), (prompt("No effusion.", "effusion", negated=True),))
    weights = {name: value.clone() for name, value in run.network.named_parameters()}
    run._one_step([run.batcher.collate([unasked])], 0.0)
    assert all(torch.equal(value, weights[name]) for name, value in run.network.named_parameters())


def test_the_rate_falls_from_one_to_nothing() -> None:
    for shape in ("cosine", "linear"):
        assert fallen(shape, 0) == 1 and fallen(shape, 0.5) == pytest.approx(0.5) and fallen(shape, 1) == 0
    assert fallen("cosine", 0.25) > fallen("linear", 0.25)


def test_a_recipe_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"recipe\.yaml.*processes.*colour"):
        train(recipe_at(tmp_path, processes=0, colour="blue"))
    with pytest.raises(RecipeError, match="cannot be read"):
        train(tmp_path / "nowhere.yaml")


def test_the_shipped_recipes_can_be_read() -> None:
    configs = Path(grounding.__file__).parent / "configs"
    recipe = read_recipe(configs / "small.yaml")
    assert recipe.model.knowledge.prompts and recipe.processes >= 1
    full = read_recipe(configs / "full.yaml").model
    assert full.sam is not None and full.image_text is not None and full.decoder.width == 256


def test_region_iou_is_of_unions() -> None:
    batch = make_batch([Example(tiny_image(), (prompt("A nodule.", "nodule", (0.25, 0.5, 0.5, 1.0)),))])
    halves = torch.tensor([[[0.125, 0.5, 0.25, 1.0], [0.375, 0.5, 0.25, 1.0], [0.9, 0.9, 0.1, 0.1]]])
    assert region_iou(halves, torch.tensor([[True, True, False]]), batch).item() == pytest.approx(1)
    assert region_iou(halves, torch.tensor([[True, False, False]]), batch).item() == pytest.approx(0.5)
    assert region_iou(halves, torch.tensor([[False, False, False]]), batch).item() == 0
    assert raster(halves, torch.tensor([[True, True, True]])).shape == (1, 128, 128)
