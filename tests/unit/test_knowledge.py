"""The knowledge bank: what phrases are read as, priors of rows, and codes that the published tables confirm."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.sr import _concepts_dict

import grounding
from grounding.knowledge import BANK_PATH, Entity, Location, load_bank, parse_bank, read_level, read_side
from grounding.phantoms.lesions import LABELS
from grounding.phantoms.study import make_study
from grounding.types import Concept, ModelError

BANK = load_bank()


@pytest.mark.parametrize(
    ("phrase", "entity", "side", "level"),
    [
        ("small right apical pneumothorax", "pneumothorax", "right", "upper"),
        ("Left-sided pleural effusion", "pleural_effusion", "left", None),
        ("bibasilar atelectasis", "atelectasis", "bilateral", "lower"),
        ("opacity in the right and left mid lung", "opacity", "bilateral", "middle"),
        ("ground-glass opacity in the left lung", "ground_glass", "left", None),
        ("enlarged cardiac silhouette", "cardiomegaly", None, None),
        ("right upper lobe mass", "mass", "right", "upper"),
        ("ET tube", "endotracheal_tube", None, None),
        ("right lung", "lung", "right", None),
        ("heart and mediastinum", "heart_and_mediastinum", None, None),
        ("retrocardiac consolidation", "consolidation", "left", "lower"),
        ("airspace disease extending from upper to lower zone", "consolidation", None, None),
        ("purple monkey", None, None, None),
        ("", None, None, None),
    ],
)
def test_reading_of_a_phrase(phrase: str, entity: str | None, side: str | None, level: str | None) -> None:
    reading = BANK.read_phrase(phrase)
    assert (reading.entity.id if reading.entity else None, reading.side, reading.level) == (entity, side, level)


def test_the_positions_of_chestx_ray8_are_read() -> None:
    bank = load_bank()
    reading = bank.read_phrase("Atelectasis, position: right bottom")
    assert (reading.side, reading.level) == ("right", "lower")
    assert bank.read_phrase("Mass, position: left top").level == "upper"


def test_words_inside_words_are_not_sides() -> None:
    assert read_side("upright film, brightly leftover") is None
    assert read_level("lowermost") is None


def test_every_finding_of_the_phantoms_is_an_entity() -> None:
    assert {*LABELS} <= {entity.id for entity in BANK.entities}


def test_asserted_phrases_of_phantoms_are_read_as_their_finding_or_one_that_looks_alike() -> None:
    read, right = 0, 0
    for seed in range(40):
        for phrase in make_study(seed, 64).phrases:
            entity, truth = BANK.read_phrase(phrase.phrase).entity, BANK.entity(phrase.label)
            assert truth is not None
            if not phrase.negated:
                read += 1
                right += entity is not None and entity.family == truth.family
    assert right / read > 0.95


def test_the_named_place_has_the_best_prior() -> None:
    prior = BANK.log_prior("left apical pneumothorax")
    best = BANK.rows[int(prior.argmax())]
    assert (best.entity.id, best.location.id) == ("pneumothorax", "left apex")


def test_a_contradicted_side_loses_and_an_unknown_entity_prefers_none() -> None:
    prior = dict(zip([(r.entity.id, r.location.id) for r in BANK.rows], BANK.log_prior("right nodule"), strict=True))
    assert prior[("nodule", "right upper zone")] > prior[("nodule", "left upper zone")] + 2
    assert not BANK.log_prior("purple monkey").any()
    assert BANK.entity_mask("purple monkey").all()


def test_maps_are_on_the_side_that_they_name() -> None:
    maps = BANK.maps(16)
    assert maps.shape == (len(BANK.rows), 16, 16) and np.allclose(maps.max((1, 2)), 1)
    for row, prior in zip(BANK.rows, maps, strict=True):
        if row.location.id.startswith("right "):
            assert prior[:, :8].sum() > prior[:, 8:].sum(), (
                row.location.id
            )  # the patient's right is on the image's left
        if row.location.id.startswith("left "):
            assert prior[:, 8:].sum() > prior[:, :8].sum(), row.location.id


def test_probabilities_of_places_sum_to_one() -> None:
    for entity in BANK.entities:
        assert sum(entity.locations.values()) == pytest.approx(1, abs=0.05), entity.id


def concepts() -> list[Concept]:
    found = [e.concept for e in BANK.entities] + [e.site for e in BANK.entities] + [x.concept for x in BANK.locations]
    return [concept for concept in found if concept is not None]


OUTSIDE = {
    "8186001": "Cardiomegaly", "46621007": "Atelectasis", "95436008": "Lung consolidation", "233604007": "Pneumonia",
    "87433001": "Pulmonary emphysema", "125605004": "Fracture of bone", "84089009": "Hiatal hernia",
}  # fmt: skip
"""Codes of SNOMED CT that PS3.16 does not cite. Each was found stated with this meaning in at least two published code
lists that do not depend on each other (vocabularies of OMOP and FHIR projects, label maps of radiograph models)."""

CODED = sorted(set(concepts()), key=lambda c: c.code)


@pytest.mark.parametrize("concept", CODED, ids=lambda c: c.meaning)
def test_every_code_is_in_the_published_tables_with_its_meaning_or_listed_here(concept: Concept) -> None:
    tables: dict[str, dict[str, dict[str, Any]]] = _concepts_dict.concepts  # type: ignore[assignment]
    meanings = {entry[concept.code][0] for entry in tables[concept.scheme].values() if concept.code in entry}
    assert concept.meaning in (meanings or {OUTSIDE.get(concept.code)})


@pytest.mark.parametrize("concept", [c for c in CODED if c.scheme == "SCT"], ids=lambda c: c.meaning)
def test_the_check_digit_of_every_snomed_code_is_right(concept: Concept) -> None:
    """By Verhoeff, as SNOMED CT identifiers are checked: the dihedral group of ten, a permutation by place."""
    permutation = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)
    total = 0
    for place, digit in enumerate(map(int, reversed(concept.code))):
        for _ in range(place % 8):
            digit = permutation[digit]
        turn = (total + digit) % 5 if total < 5 else 5 + (total - digit) % 5
        total = turn if digit < 5 else ((total + digit) % 5 + 5 if total < 5 else (total - digit) % 5)
    assert total == 0


def test_words_that_say_less_than_a_code_have_none() -> None:
    for entity in BANK.entities:
        assert entity.uncoded < set(entity.synonyms), entity.id
        for name in entity.synonyms:
            reading = BANK.read_phrase(name)
            if reading.entity == entity:
                assert reading.concept == (None if name in entity.uncoded else entity.concept), name
    assert BANK.read_phrase("tracheostomy tube in place").concept is None
    assert BANK.read_phrase("blunting of the costophrenic angle").concept is None
    coded = BANK.read_phrase("small effusion with blunting of the left costophrenic angle").concept
    assert coded is not None and coded.meaning == "Pleural effusion"


def test_the_site_is_the_zone_that_the_words_name() -> None:
    site = BANK.site(BANK.read_phrase("right upper lobe opacity"))
    assert site is not None and (site.concept.meaning, site.laterality) == ("Upper zone of lung", "right")
    pleura = BANK.site(BANK.read_phrase("left basal effusion"))
    assert pleura is not None and (pleura.concept.meaning, pleura.laterality) == ("Pleura", "left")
    assert BANK.site(BANK.read_phrase("purple monkey")) is None


def test_an_unknown_location_is_refused() -> None:
    content = json.loads(BANK_PATH.read_text())
    content["entities"][0]["locations"] = {"the moon": 1.0}
    with pytest.raises(ModelError, match="the moon"):
        parse_bank(content)


def test_a_damaged_bank_is_named(tmp_path: Path) -> None:
    (tmp_path / "bank.json").write_text("{")
    with pytest.raises(ModelError, match=r"bank\.json cannot be read"):
        load_bank(tmp_path / "bank.json")


def test_codes_do_not_change_what_the_model_depends_on() -> None:
    content = json.loads(BANK_PATH.read_text())
    for entity in content["entities"]:
        entity["code"] = None
    assert parse_bank(content).sha256 == BANK.sha256
    content["entities"][0]["locations"] = {"heart": 0.5}
    assert parse_bank(content).sha256 != BANK.sha256


FINDINGS = [entity for entity in BANK.entities if entity.family != "anatomy"]


@pytest.mark.parametrize("entity", FINDINGS, ids=lambda e: e.id)
def test_every_finding_is_complete(entity: Entity) -> None:
    assert len(entity.synonyms) >= 3 and len(set(entity.synonyms)) == len(entity.synonyms)
    assert set(entity.attributes) == {"shape", "density", "size", "border"} and all(entity.attributes.values())
    assert entity.locations and all(0 < share <= 1 for share in entity.locations.values())
    assert all(name == name.lower() for name in entity.synonyms)


def test_the_findings_and_regions_of_the_reference_design_are_there() -> None:
    assert {"cardiomegaly", "pleural_effusion", "pneumothorax", "atelectasis", "consolidation", "pneumonia", "opacity",
            "infiltrate", "edema", "nodule", "mass"} <= {entity.id for entity in FINDINGS}  # fmt: skip
    sided = ("lung", "upper zone", "middle zone", "lower zone", "apex", "hilum", "costophrenic angle", "hemidiaphragm",
             "clavicle", "cardiophrenic angle", "upper abdomen", "cardiac border")  # fmt: skip
    single = ("heart", "retrocardiac region", "mediastinum", "upper mediastinum", "trachea", "carina", "aortic arch",
              "descending aorta", "superior vena cava", "cavoatrial junction", "right atrium", "spine",
              "abdomen")  # fmt: skip
    places = {location.id for location in BANK.locations}
    assert {f"{side} {name}" for name in sided for side in ("right", "left")} <= places and set(single) <= places


@pytest.mark.parametrize("location", BANK.locations, ids=lambda x: x.id)
def test_every_place_has_its_boxes_on_its_side(location: Location) -> None:
    assert location.boxes and all(0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 for x1, y1, x2, y2 in location.boxes)
    middles = [(x1 + x2) / 2 for x1, _, x2, _ in location.boxes]
    if location.side in ("right", "left"):  # the patient's right is on the picture's left
        assert all((middle < 0.5) == (location.side == "right") or middle == 0.5 for middle in middles)
    if location.side == "bilateral":
        assert min(middles) < 0.5 < max(middles)


def test_no_code_that_the_published_tables_have_is_missing() -> None:
    tables: dict[str, dict[str, dict[str, Any]]] = _concepts_dict.concepts  # type: ignore[assignment]
    names = {found[0].lower() for entry in tables["SCT"].values() for found in entry.values()}
    uncoded = {entity.id for entity in FINDINGS if entity.concept is None and entity.meaning.lower() in names}
    assert uncoded == set()


def test_every_code_names_its_source() -> None:
    content = json.loads(BANK_PATH.read_text())
    coded = [*content["entities"], *content["locations"].values()]
    codes = [entry[key] for entry in coded for key in ("code", "site") if entry.get(key)]
    assert codes and all(code["source"] and code["value"] and code["scheme"] in ("SCT", "DCM") for code in codes)


def test_the_shipped_model_belongs_to_this_bank() -> None:
    folder = Path(grounding.__file__).parent / "checkpoints" / "default"
    assert json.loads((folder / "config.json").read_text())["knowledge_sha256"] == BANK.sha256
