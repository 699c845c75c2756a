"""The model card says what the shipped checkpoint is."""

from __future__ import annotations

import json
import re
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "grounding" / "checkpoints" / "default"
CARD = " ".join((FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8").split())
CONFIG = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))


def number_before(words: str) -> int:
    found = re.search(rf"(\d+) {words}", CARD)
    assert found, words
    return int(found[1])


def test_the_card_names_the_model_that_ships() -> None:
    assert f"({CONFIG['version']})" in CARD.partition("##")[0]
    side = CONFIG["frame"]["canvas"]
    assert f"{side} x {side} pixels" in CARD
    assert f"(top {CONFIG['knowledge']['top_k']} of " in CARD
    assert f"Presence threshold ({CONFIG['decision']['presence']})" in CARD
    words = {1: "once", 2: "twice"}, {3: "three"}
    assert f"looked at {words[0][CONFIG['decision']['views']]}" in CARD
    assert f"{words[1][CONFIG['decoder']['slots']]} boxes per phrase" in CARD
    assert CONFIG["language_model"]["num_hidden_layers"] == 3
    assert "Llama of three layers" in CARD


def test_the_patients_that_the_card_counts_are_those_that_are_named() -> None:
    named = (FOLDER / "training_patients.txt").read_text(encoding="utf-8").split()
    trained, chosen = number_before("patients, whose films"), number_before(r"more \(22 pictures\)")
    assert len(set(named)) == trained + chosen
    sizes = (FOLDER / "model.safetensors").stat().st_size / 1e6
    assert round(sizes) == number_before("MB, runs on a CPU")
