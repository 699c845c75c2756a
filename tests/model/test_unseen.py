"""Patients that a model has seen are left out of an evaluation that asks for it, and counted."""

from __future__ import annotations

from pathlib import Path

from dicom_node.cli.evaluation import Wishes, evaluate_manifest
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


def test_a_model_that_names_no_patients_has_seen_nobody(tmp_path: Path) -> None:
    assert read_training_patients(tmp_path) == frozenset()
