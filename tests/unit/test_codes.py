"""Concepts of the results against the published tables."""

from __future__ import annotations

import pydicom.sr._concepts_dict as tables
import pytest
from highdicom.sr.coding import CodedConcept
from pydicom.sr.coding import Code

from dicom_node.header import PRIVATE_SCHEME
from dicom_node.results import codes
from grounding.types import Concept

ALL = {name: value for name, value in vars(codes).items() if isinstance(value, Code)}
ALL |= {f"MODALITIES {key}": value for key, value in codes.MODALITIES.items()}
ALL |= {f"SIDES {key}": value for key, value in codes.SIDES.items()}
PUBLISHED = {name: code for name, code in ALL.items() if code.scheme_designator in ("DCM", "SCT")}

UNPUBLISHED = {
    "PROCEDURE": ("43468-8", "LN"),  # PS3.16 CID 100; pydicom has it in CID 7000 with that table's meaning
    "QUALITATIVE_EVALUATIONS": ("C0034375", "UMLS"),  # PS3.16 TID 1500 row 12
    "ENGLISH": ("en", "RFC5646"),  # RFC 5646
    "PERCENT": ("%", "UCUM"),  # UCUM, meanings as PS3.16 CID 82 writes them
    "PIXELS": ("{pixels}", "UCUM"),
    "MILLIMETER": ("mm", "UCUM"),
}


def _find_meanings(code: Code) -> set[str]:
    """Return the meanings that the tables give a code."""
    concepts = tables.concepts[code.scheme_designator].values()
    return {entries[code.value][0].removesuffix(" (attribute)") for entries in concepts if code.value in entries}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_dcm_and_snomed_codes_mean_what_the_tables_say(name):
    code = PUBLISHED[name]
    assert code.meaning.lower() in {meaning.lower() for meaning in _find_meanings(code)}, code


def test_every_other_code_is_private_or_listed_with_its_source():
    others = {name: code for name, code in ALL.items() if name not in PUBLISHED}
    private = {name for name, code in others.items() if code.scheme_designator == PRIVATE_SCHEME}
    assert {
        name: (others[name].value, others[name].scheme_designator) for name in others.keys() - private
    } == UNPUBLISHED


def test_procedure_code_is_the_published_x_ray():
    assert "43468-8" in {code for entries in tables.concepts["LN"].values() for code in entries}


@pytest.mark.parametrize("name", ["IMAGING_MEASUREMENTS", "MEASUREMENT_GROUP", "TRACKING_IDENTIFIER", "TRACKING_UID"])
def test_meanings_that_viewers_match_are_spelled_exactly(name):
    spelled = {
        "IMAGING_MEASUREMENTS": "Imaging Measurements",
        "MEASUREMENT_GROUP": "Measurement Group",
        "TRACKING_IDENTIFIER": "Tracking Identifier",
        "TRACKING_UID": "Tracking Unique Identifier",
    }
    assert getattr(codes, name).meaning == spelled[name]


def test_values_and_meanings_fit_their_attributes():
    for name, code in ALL.items():
        assert len(code.value) <= 16, name
        assert 0 < len(code.meaning) <= 64, name


@pytest.mark.parametrize("concept", [Concept("", "SCT", "x"), Concept("1", " ", "x"), Concept("1", "SCT", "")])
def test_incomplete_concept_is_left_out(concept):
    assert codes.to_code(concept) is None


def test_long_meaning_is_cut_and_long_value_is_kept():
    code = codes.to_code(Concept("1" * 20, "SCT", "word " * 20))
    assert code is not None
    assert len(code.meaning) <= 64
    assert CodedConcept.from_code(code).LongCodeValue == "1" * 20
