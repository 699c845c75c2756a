"""findings.json, as the contract describes it."""

from __future__ import annotations

import json
from dataclasses import replace

from dicom_node.results.findings import GroundedImage, findings_document
from grounding.types import Box, Concept, Finding, Grounding, ModelIdentity, ScoredBox, Site, Span

MODEL = ModelIdentity("knowmvg-small", "1", "ab" * 32)
IMAGES = (GroundedImage("1.2.3", 3056, 2544), GroundedImage(None, 10, 20))
PNEUMOTHORAX = Finding(
    phrase="small right apical pneumothorax",
    source=Span(112, 143),
    image=0,
    boxes=(ScoredBox(Box(311.0, 120.5, 905.0, 640.0), 0.83), ScoredBox(Box(1, 2, 3, 4), 0.2)),
    localized=True,
    negated=False,
    finding=Concept("36118008", "SCT", "Pneumothorax"),
    site=Site(Concept("39607008", "SCT", "Lung"), "right"),
    uncertainty=0.07,
)
EFFUSION = Finding("no effusion", None, 1, (), localized=False, negated=True)


def test_the_document_has_the_keys_of_the_contract() -> None:
    assert findings_document(Grounding(MODEL, (PNEUMOTHORAX, EFFUSION)), IMAGES, "1.2") == {
        "model": {"name": "knowmvg-small", "version": "1", "sha256": "ab" * 32},
        "study_instance_uid": "1.2",
        "images": [
            {"sop_instance_uid": "1.2.3", "rows": 3056, "columns": 2544},
            {"sop_instance_uid": None, "rows": 10, "columns": 20},
        ],
        "findings": [
            {
                "phrase": "small right apical pneumothorax",
                "source": {"start": 112, "end": 143},
                "image": 0,
                "boxes": [
                    {"xyxy": [311.0, 120.5, 905.0, 640.0], "score": 0.83, "laterality_conflict": False},
                    {"xyxy": [1, 2, 3, 4], "score": 0.2, "laterality_conflict": False},
                ],
                "localized": True,
                "negated": False,
                "finding": {"code": "36118008", "scheme": "SCT", "meaning": "Pneumothorax"},
                "site": {"code": "39607008", "scheme": "SCT", "meaning": "Lung", "laterality": "right"},
                "uncertainty": 0.07,
            },
            {
                "phrase": "no effusion",
                "source": None,
                "image": 1,
                "boxes": [],
                "localized": False,
                "negated": True,
                "finding": None,
                "site": None,
                "uncertainty": None,
            },
        ],
        "dropped_phrases": 0,
    }


def test_the_document_counts_the_phrases_that_the_model_made_up() -> None:
    assert findings_document(Grounding(MODEL, (), hallucinations=3), IMAGES, None)["dropped_phrases"] == 3


def test_boxes_below_the_wanted_confidence_are_left_out() -> None:
    grounding = Grounding(MODEL, (PNEUMOTHORAX,))
    (half,) = findings_document(grounding, IMAGES, None, min_confidence=0.5)["findings"]
    assert [box["score"] for box in half["boxes"]] == [0.83]
    assert half["localized"]
    (none,) = findings_document(grounding, IMAGES, None, min_confidence=0.9)["findings"]
    assert none["boxes"] == []
    assert not none["localized"]


def test_the_document_is_json() -> None:
    document = findings_document(Grounding(MODEL, (PNEUMOTHORAX, EFFUSION)), IMAGES, None)
    assert json.loads(json.dumps(document)) == document


def test_a_box_on_the_other_side_is_marked() -> None:
    boxes = (ScoredBox(Box(2000, 100, 2500, 900), 0.9),)
    document = findings_document(Grounding(MODEL, (replace(PNEUMOTHORAX, boxes=boxes),)), IMAGES, None)
    assert [box["laterality_conflict"] for box in document["findings"][0]["boxes"]] == [True]
