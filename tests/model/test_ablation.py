"""The ablation: features frozen once, equal runs from equal seeds, folds kept apart, finished runs skipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image as PillowImage
from safetensors.torch import load_file, save_file

from grounding.checkpoint import digest, save_checkpoint
from grounding.knowledge import load_bank
from grounding.training.ablation import ablate, answer, load_trunk, make_network, make_pool, read_plan, row_config
from grounding.training.frozen import Deck, FrozenPicture, Picture, Trunk, freeze_all, gather
from grounding.training.locks import locked
from grounding.training.medians import score_medians
from grounding.training.recipe import RecipeError
from grounding.types import ModelError
from tests.model.networks import OFF, make_batch, make_examples, tiny_image, tiny_tokens
from tests.model.networks import make_network as make_tiny

SQUARE = [10, 20, 20, 30]


@pytest.fixture(scope="module")
def trunk_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trunk")
    save_checkpoint(folder, make_tiny(), tiny_tokens(), load_bank())
    return folder


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four films of four patients, one phrase on each."""
    root = tmp_path_factory.mktemp("films")
    lines = []
    for number in range(4):
        PillowImage.fromarray((tiny_image(seed=number) * 255).astype(np.uint8)).save(root / f"{number}.png")
        lines.append({"id": str(number), "image": f"{number}.png", "width": 64, "height": 64, "phrase": "nodule",
                      "label": "Nodule", "present": True, "boxes": [SQUARE], "patient": f"p-{number}"})  # fmt: skip
    (root / "set.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return root


def plan_at(folder: Path, trunk: Path, films: Path, **changes: Any) -> Path:
    content: dict[str, Any] = {
        "trunk": str(trunk), "run_dir": str(folder / "run"), "seeds": [5, 6],
        "steps": {"count": 2, "phantoms": 1, "real": 1, "warmup": 1},
        "material": {
            "phantoms": 2, "test_phantoms": 2, "copies": 1, "prompts": 1, "tests": ["set.jsonl"],
            "real": {"root": str(films), "manifests": ["set.jsonl"], "licences": "any"},
        },
        "references": ["MedGround"],
        "rows": [{"name": "MedGround", "changes": OFF}, {"name": "TransVG", "network": "transvg"}, {"name": "Full"}],
    }  # fmt: skip
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


def runs_in(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in sorted((folder / "run" / "runs").glob("*.json"))}


def test_an_ablation_tests_every_patient_once_and_is_the_same_twice(
    tmp_path: Path, trunk_folder: Path, films: Path
) -> None:
    plan = plan_at(tmp_path, trunk_folder, films)
    table = ablate(plan)
    runs = runs_in(tmp_path)
    assert set(runs) == {f"{row}.seed{seed}" for row in ("medground", "transvg", "full") for seed in (5, 6)}
    for row in ("medground", "transvg", "full"):
        tested = [s[0] for seed in (5, 6) for s in runs[f"{row}.seed{seed}"]["sets"]["set"]]
        assert sorted(tested) == ["0", "1", "2", "3"]
        assert len(runs[f"{row}.seed5"]["sets"]["phantom-test"]) == len(runs[f"{row}.seed6"]["sets"]["phantom-test"])
    assert "### set" in table and "| Full | 2 |" in table and "0 runs missing" in table
    # Run again: what is there stays; what is deleted comes back the same.
    file = tmp_path / "run" / "runs" / "full.seed5.json"
    kept = (tmp_path / "run" / "runs" / "full.seed6.json").stat().st_mtime_ns
    file.unlink()
    assert "1 runs missing" in ablate(plan, train=False)
    assert ablate(plan) == table
    again = json.loads(file.read_text())
    assert again["sets"] == runs["full.seed5"]["sets"] and again["losses"] == runs["full.seed5"]["losses"]
    assert (tmp_path / "run" / "runs" / "full.seed6.json").stat().st_mtime_ns == kept
    # Other steps are other runs.
    assert "6 runs missing" in ablate(
        plan_at(tmp_path, trunk_folder, films, steps={"count": 3, "phantoms": 1, "real": 1}), train=False
    )


def test_the_prior_row_is_the_median_of_the_boxes_that_others_train_on() -> None:
    def picture(*phrases: tuple[str, list[list[float]]]) -> FrozenPicture:
        boxes, valid = torch.zeros(len(phrases), 2, 4), torch.zeros(len(phrases), 2, dtype=torch.bool)
        for row, (_, found) in enumerate(phrases):
            boxes[row, : len(found)], valid[row, : len(found)] = torch.tensor(found).reshape(-1, 4), True
        names = tuple(phrase for phrase, _ in phrases)
        return FrozenPicture({"boxes": boxes, "valid": valid}, 0, slice(0, len(phrases)), "film", "p", names, names)

    square, wide = [0.3, 0.6, 0.2, 0.2], [0.6, 0.6, 0.4, 0.2]
    known = [picture(("right nodule", [square]), ("enlarged heart", [wide])), picture(("right nodule", [square]))]
    half = [0.3, 0.55, 0.2, 0.1]
    tests = [picture(("right nodule", [square])), picture(("enlarged heart", [wide]), ("right nodule", [half]))]
    scores = score_medians([*known, picture(("left nodule", []))], tests)
    assert [(label, round(iou, 3), has_box) for _, label, iou, has_box in scores] == [
        ("right nodule", 1.0, True), ("enlarged heart", 1.0, True), ("right nodule", 0.5, True)
    ]  # fmt: skip


def test_sets_are_also_reported_together(tmp_path: Path, trunk_folder: Path, films: Path) -> None:
    rows = [{"name": "Prior", "network": "prior"}]
    table = ablate(plan_at(tmp_path, trunk_folder, films, rows=rows, references=[], together=[["set", "phantom-test"]]))
    alone = {name: len(s) for name, s in runs_in(tmp_path)["prior.seed5"]["sets"].items()}
    assert f"### set + phantom-test ({alone['set'] + alone['phantom-test']}" in table


def test_a_set_that_is_not_tested_cannot_be_reported_together(tmp_path: Path, trunk_folder: Path, films: Path) -> None:
    with pytest.raises(RecipeError, match=r"sett.*are none of"):
        read_plan(plan_at(tmp_path, trunk_folder, films, together=[["set", "sett"]]))


def test_the_prior_row_runs_beside_the_others(tmp_path: Path, trunk_folder: Path, films: Path) -> None:
    plan = plan_at(tmp_path, trunk_folder, films, rows=[{"name": "Prior", "network": "prior"}], references=[])
    assert "| Prior | 2 |" in ablate(plan)
    runs = runs_in(tmp_path)
    assert all(len(runs[f"prior.seed{seed}"]["sets"]["set"]) == 2 for seed in (5, 6))


def test_a_run_that_another_process_has_in_hand_is_left_to_it(tmp_path: Path, trunk_folder: Path, films: Path) -> None:
    plan = plan_at(tmp_path, trunk_folder, films, seeds=[5])
    (tmp_path / "run" / "runs").mkdir(parents=True)
    with locked(tmp_path / "run" / "runs" / "full.seed5.lock") as mine:
        assert mine
        ablate(plan, only=["Full"])
    assert runs_in(tmp_path) == {}
    ablate(plan, only=["Full"])
    assert set(runs_in(tmp_path)) == {"full.seed5"}


def test_training_never_draws_a_patient_of_its_fold(tmp_path: Path, trunk_folder: Path, films: Path) -> None:
    plan = read_plan(plan_at(tmp_path, trunk_folder, films))
    network, tokens = load_trunk(trunk_folder)
    pool = make_pool(plan, network, tokens, digest(trunk_folder))
    patients = {p.patient for p in pool.real}
    assert patients == {"p-0", "p-1", "p-2", "p-3"} and set.union(*pool.folds) == patients
    assert not pool.folds[0] & pool.folds[1]
    assert {p.patient for p in pool.tests["set"]} == patients and not {p.patient for p in pool.phantoms} & patients
    for fold in pool.folds:
        drawn = Deck([p for p in pool.real if p.patient not in fold], np.random.default_rng(0)).draw(20)
        assert drawn and not {p.patient for p in drawn} & fold


def frozen_examples(folder: Path, trunk_folder: Path) -> tuple[Trunk, list[FrozenPicture]]:
    network, tokens = load_trunk(trunk_folder)
    trunk = Trunk(network, tokens, load_bank())
    examples = make_examples()
    return trunk, freeze_all(trunk, folder / "f", 3, lambda n: Picture(examples[n], str(n), labels=("x",)))


def test_frozen_features_give_what_the_whole_network_gives(tmp_path: Path, trunk_folder: Path) -> None:
    trunk, pictures = frozen_examples(tmp_path, trunk_folder)
    assert [p.name for p in pictures] == ["0", "1"]  # the third has no phrase to ground
    batch = make_batch()
    frozen = gather(pictures, batch.targets.row_boxes)
    with torch.inference_mode():
        whole = trunk.network(batch.pixels, batch.text).boxes
        boxes = answer(trunk.network, frozen).boxes
    assert whole is not None and boxes is not None
    assert torch.allclose(boxes.refined, whole.refined, atol=5e-3)
    assert torch.equal(frozen.targets.boxes, batch.targets.boxes)
    assert torch.equal(frozen.targets.row_match, batch.targets.row_match)
    assert frozen.word_mask.sum(1).tolist() == (batch.text.phrase_end - batch.text.phrase_start).tolist()


def test_what_is_frozen_is_not_made_again(tmp_path: Path, trunk_folder: Path) -> None:
    trunk, first = frozen_examples(tmp_path, trunk_folder)

    def unmade(number: int) -> Picture:
        raise AssertionError(f"picture {number} was made again")

    again = freeze_all(trunk, tmp_path / "f", 3, unmade)
    assert [p.name for p in again] == [p.name for p in first]


def test_a_deck_deals_everything_before_it_repeats(tmp_path: Path, trunk_folder: Path) -> None:
    _, pictures = frozen_examples(tmp_path, trunk_folder)
    deck = Deck(pictures * 3, np.random.default_rng(0))
    assert sorted(p.name for p in deck.draw(6)) == ["0"] * 3 + ["1"] * 3
    assert len(deck.draw(5)) == 5 and Deck([], np.random.default_rng(0)).draw(5) == []


def test_rows_share_the_trunk_and_train_nothing_of_it(tmp_path: Path, trunk_folder: Path, films: Path) -> None:
    plan = read_plan(plan_at(tmp_path, trunk_folder, films))
    trunk, tokens = load_trunk(trunk_folder)
    Trunk(trunk, tokens, load_bank())
    medground, transvg, full = (make_network(row, trunk, tokens, 5) for row in plan.rows)
    assert full.backbone is trunk.backbone and full.language is trunk.language
    learned = {name for name, p in full.named_parameters() if p.requires_grad}
    assert learned and not any(name.startswith(("backbone.", "language.")) for name in learned)
    assert len(list(transvg.parameters())) > 10
    count = [sum(p.numel() for p in n.parameters() if p.requires_grad) for n in (medground, full)]
    assert count[0] < count[1]
    twice = make_network(plan.rows[2], trunk, tokens, 5).state_dict()
    assert all(torch.equal(value, twice[name]) for name, value in full.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": []}, "rows"),
        ({"rows": [{"name": "A"}, {"name": "A"}]}, "different names"),
        ({"references": ["B"]}, r"\['B'\]"),
        ({"colour": "blue"}, "colour"),
        ({"rows": [{"name": "A", "losses": {"mood": 1}}], "references": []}, "mood"),
    ],
)
def test_a_plan_that_cannot_be_used_says_why(
    tmp_path: Path, trunk_folder: Path, films: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        read_plan(plan_at(tmp_path, trunk_folder, films, **changes))


def test_a_row_that_changes_what_is_not_there_is_refused(tmp_path: Path, trunk_folder: Path, films: Path) -> None:
    rows = [{"name": "A", "changes": {"decoder": {"colour": "blue"}}}]
    plan = read_plan(plan_at(tmp_path, trunk_folder, films, rows=rows, references=[]))
    with pytest.raises(RecipeError, match=r"'A'.*colour"):
        row_config(load_trunk(trunk_folder)[0].config, plan.rows[0])
    with pytest.raises(RecipeError, match="no row called B"):
        ablate(plan_at(tmp_path, trunk_folder, films), only=["B"])
    with pytest.raises(RecipeError, match="cannot be read"):
        ablate(tmp_path / "nowhere.yaml")


def test_a_folder_without_its_backbone_is_no_trunk(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, make_tiny(), tiny_tokens(), load_bank())
    weights = load_file(tmp_path / "model.safetensors")
    del weights["backbone.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match="damaged or not the file"):
        load_trunk(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "weights_sha256": ""}))
    with pytest.raises(ModelError, match=r"backbone\.norm\.weight"):
        load_trunk(tmp_path)


def test_the_plan_that_ships_has_every_row_and_control() -> None:
    plan = read_plan(Path(__file__).parents[2] / "grounding" / "configs" / "ablation.yaml")
    trunk = make_tiny().config
    configs = {row.name: row_config(trunk, row) for row in plan.rows}
    assert len(plan.seeds) >= 3 and plan.references == ["MedGround", "uMedGround"]
    off, full = configs["MedGround"], configs["6 full"]
    assert configs["uMedGround"].decoder.hypotheses == 3 and not off.decoder.mask_head and full.decoder.mask_head
    seen = {
        (k.prompts, k.prior_map, a.use_global, a.use_local, a.two_pass)
        for k, a in ((c.knowledge, c.attention) for c in configs.values())
    }
    rows = [(0, 0, 0, 0, 0), (1, 0, 0, 0, 0), (1, 1, 1, 0, 1), (0, 0, 1, 0, 1), (0, 0, 0, 1, 1), (0, 0, 1, 1, 1),
            (1, 1, 1, 1, 1), (0, 0, 0, 0, 1)]  # fmt: skip
    assert {tuple(map(bool, row)) for row in rows} <= seen
    assert {c.knowledge.control for c in configs.values()} == {"none", "random_rows", "shuffled_locations"}
    assert {row.network for row in plan.rows} == {"knowmvg", "transvg", "prior"}
    # What the paper does not have is in a row of its own: rows 0 to 6 differ in its components alone.
    assert [name for name, c in configs.items() if c.decoder.uncertainty] == [
        "TransVG",
        "Prior only",
        "6 + expected IoU",
    ]


def test_the_other_readings_are_rows_beside_the_full_network() -> None:
    plan = read_plan(Path(__file__).parents[2] / "grounding" / "configs" / "readings.yaml")
    trunk = make_tiny().config
    full, *others = (row_config(trunk, row) for row in plan.rows)
    assert plan.references == ["6 full"] and all(other != full for other in others)


def test_a_trunk_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"model\.safetensors.*train that model first"):
        load_trunk(tmp_path / "nowhere")
