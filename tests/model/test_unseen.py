"""Patients that a model has seen are left out of an evaluation that asks for it, and counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dicom_node.cli.evaluation import Wishes, evaluate_manifest
from dicom_node.errors import NodeError
from grounding.checkpoint import read_training_patients, save_checkpoint, save_training_patients
from grounding.knowledge import load_bank
from grounding.sets.manifest import read_manifest, write_phantom_set
from tests.model.networks import make_network, tiny_tokens


def test_unseen_leaves_out_the_patients_of_the_training(tmp_path: Path) -> None:
    model = tmp_path / "model"
    save_checkpoint(model, make_network(), tiny_tokens(), load_bank())
    manifest = write_phantom_set(tmp_path / "set", range(4, 8), size=96)
    rows = read_manifest(manifest)
    seen = {str(rows[0].patient)}
    save_training_patients(model, [*seen, *seen, "another"])
    assert read_training_patients(model) == seen | {"another"}

    everyone = evaluate_manifest(manifest, str(model), "cpu", Wishes("phrase"))
    unseen = evaluate_manifest(manifest, str(model), "cpu", Wishes("phrase"), unseen=True)
    of_seen = sum(row.patient in seen for row in rows)
    assert everyone["left_out_as_seen"] == 0
    assert unseen["left_out_as_seen"] == of_seen > 0
    assert everyone["n"] + everyone["absent"] == len(rows)
    assert unseen["n"] + unseen["absent"] == len(rows) - of_seen


def test_a_part_of_a_set_is_measured_alone_and_the_rest_makes_the_table(tmp_path: Path) -> None:
    model = tmp_path / "model"
    save_checkpoint(model, make_network(), tiny_tokens(), load_bank())
    manifest = write_phantom_set(tmp_path / "set", range(4, 8), size=96)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    first = rows[0]["patient"]
    manifest.write_text(
        "\n".join(json.dumps({**r, "split": "test" if r["patient"] == first else "train"}) for r in rows)
    )
    whole = evaluate_manifest(manifest, str(model), "cpu", Wishes("phrase", "all"))
    part = evaluate_manifest(manifest, str(model), "cpu", Wishes("phrase", "all"), split="test")
    assert part["n"] + part["absent"] == sum(row["patient"] == first for row in rows) < whole["n"] + whole["absent"]
    assert "prior" in part["controls"] and "prior" not in whole["controls"]
    with pytest.raises(NodeError, match="no such part; it has test, train"):
        evaluate_manifest(manifest, str(model), "cpu", Wishes("phrase"), split="dev")


def test_a_picture_without_a_patient_is_seen_by_its_name(tmp_path: Path) -> None:
    model = tmp_path / "model"
    save_checkpoint(model, make_network(), tiny_tokens(), load_bank())
    manifest = write_phantom_set(tmp_path / "set", range(4, 6), size=96)
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    manifest.write_text("\n".join(json.dumps({k: v for k, v in row.items() if k != "patient"}) for row in rows))
    save_training_patients(model, [Path(rows[0]["image"]).stem])
    unseen = evaluate_manifest(manifest, str(model), "cpu", Wishes("phrase"), unseen=True)
    assert unseen["left_out_as_seen"] == sum(row["image"] == rows[0]["image"] for row in rows)


def test_a_model_that_names_no_patients_has_seen_nobody(tmp_path: Path) -> None:
    assert read_training_patients(tmp_path) == frozenset()
