"""A training recipe is refused before the training begins, with everything that is wrong with it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from dicom_node.cli.recipe import check_recipe
from dicom_node.errors import NodeError

SHIPPED: dict[str, Any] = yaml.safe_load(files("grounding").joinpath("configs/small.yaml").read_text(encoding="utf-8"))


def write_recipe(folder: Path, recipe: object) -> Path:
    """Write a recipe file."""
    path = folder / "recipe.yaml"
    path.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe), encoding="utf-8")
    return path


def test_the_shipped_recipe_is_one(tmp_path: Path) -> None:
    check_recipe(write_recipe(tmp_path, SHIPPED))
    check_recipe(write_recipe(tmp_path, SHIPPED | {"minutes": 0.5, "run_dir": "runs/other"}))


@pytest.mark.parametrize(
    ("recipe", "says"),
    [
        ("run_dir: [", "recipe.yaml cannot be read as YAML"),
        ("", r"\(whole file\): must be a section with the keys model"),
        ({key: value for key, value in SHIPPED.items() if key != "run_dir"}, "run_dir: is missing"),
        (SHIPPED | {"batches": 1}, "batches: unknown key"),
        (SHIPPED | {"optimizer": {**SHIPPED["optimizer"], "rate": "fast"}}, "optimizer.rate: must be a float"),
        (SHIPPED | {"real": []}, "real: must be a section with the keys root"),
    ],
)
def test_anything_else_is_refused(tmp_path: Path, recipe: object, says: str) -> None:
    with pytest.raises(NodeError, match=says):
        check_recipe(write_recipe(tmp_path, recipe))


def test_all_faults_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(NodeError) as caught:
        check_recipe(write_recipe(tmp_path, SHIPPED | {"minutes": "long", "nonsense": 1}))
    assert "minutes" in str(caught.value)
    assert "nonsense" in str(caught.value)
