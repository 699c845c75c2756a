"""Cross-validation: every patient is tested once, by a model that never saw that patient; the table holds all folds."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image as PillowImage

from grounding.checkpoint import read_training_patients
from grounding.training.crossvalidation import crossvalidate, folder_of, pooled, table
from grounding.training.recipe import Recipe, RecipeError, read_recipe
from tests.model.networks import tiny_image

PATIENTS = ("cohen-1", "cohen-2", "cohen-3", "nih-1", "nih-2")


def write_set(root: Path) -> None:
    rows = []
    for number, patient in enumerate(PATIENTS):
        square = (8 + 2 * number, 12, 30 + 2 * number, 40)
        PillowImage.fromarray((tiny_image(square, number) * 255).astype("uint8")).save(root / f"{patient}.png")
        for phrase, source in (("nodule in the right lung", "report"), ("lung mass", "label")):
            rows.append({
                "id": f"{patient}-{source}", "image": f"{patient}.png", "width": 64, "height": 64, "phrase": phrase,
                "label": "Nodule", "present": True, "boxes": [[square[0], 12, 22, 28]], "patient": patient,
                "phrase_source": source, "report": "There is a nodule in the right lung.", "license": "unspecified",
            })  # fmt: skip
    (root / "set.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    write_set(tmp_path)
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
            "decoder": {"width": 32, "heads": 2, "depth": 1, "mlp_width": 32, "slots": 2},
        },
        "vocabulary": 330, "tokenizer_reports": 2, "run_dir": str(tmp_path / "run"), "minutes": 0.001, "select": "last",
        "batch": {"phantoms": 1, "real": 2, "lessons": 1}, "validation": 1,
        "optimizer": {"rate": 1e-3, "language_rate": 1e-3},
        "real": {"root": str(tmp_path), "manifests": ["set.jsonl"], "licences": "any", "folds": 2,
                 "validation_share": 0},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")
    return read_recipe(tmp_path / "recipe.yaml")


def test_every_patient_is_tested_once_and_never_by_a_model_that_saw_it(recipe: Recipe) -> None:
    crossvalidate(recipe, range(2))
    tested = Counter(Path(score.image).stem for score in pooled(recipe)["set"]["phrase"])
    assert tested == dict.fromkeys(PATIENTS, 2)
    for fold in range(2):
        folder = folder_of(recipe, fold)
        scored = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        here = {Path(score["image"]).stem for score in scored["set"]["phrase"]}
        assert here and not here & read_training_patients(folder / "best")


def test_the_table_has_the_controls_beside_the_model_and_a_done_fold_is_not_done_again(recipe: Recipe) -> None:
    crossvalidate(recipe, [0])
    weights = folder_of(recipe, 0) / "best" / "model.safetensors"
    weights.unlink()
    crossvalidate(recipe, [0])
    assert not weights.exists()
    lines = table(pooled(recipe)).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| set", "| set, report phrases"]
    scored = pooled(recipe)["set, report phrases"]
    assert set(scored) == {"phrase", "shown", "free", "prior", "blind"}
    assert all(score.has_box for score in scored["shown"])
    assert len(scored["free"]) == len(scored["phrase"])


def test_a_fold_that_is_not_there_is_named(recipe: Recipe) -> None:
    with pytest.raises(RecipeError, match="there is no fold 5"):
        crossvalidate(recipe, [5])
