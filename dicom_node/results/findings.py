"""findings.json: a grounding as the document that `contract` describes, for files, scripts and the console. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from grounding.types import Concept, Finding, Grounding, ScoredBox, Site


@dataclass(frozen=True, slots=True)
class GroundedImage:
    """An image that boxes are pixels of; a picture that is no DICOM instance has no UID."""

    sop_instance_uid: str | None
    rows: int
    columns: int


def findings_document(
    grounding: Grounding,
    images: Sequence[GroundedImage],
    study_instance_uid: str | None,
    *,
    min_confidence: float = 0.0,
) -> dict[str, Any]:
    """Return the document; `images` in the order of `Finding.image`, boxes scored below `min_confidence` left out."""
    return {
        "model": asdict(grounding.model),
        "study_instance_uid": study_instance_uid,
        "images": [asdict(image) for image in images],
        "findings": [_write_finding(finding, min_confidence) for finding in grounding.findings],
        "dropped_phrases": grounding.hallucinations,
    }


def _write_finding(finding: Finding, min_confidence: float) -> dict[str, Any]:
    boxes = [_write_box(scored) for scored in finding.boxes if scored.score >= min_confidence]
    return {
        "phrase": finding.phrase,
        "source": asdict(finding.source) if finding.source else None,
        "image": finding.image,
        "boxes": boxes,
        "localized": finding.localized and bool(boxes),
        "negated": finding.negated,
        "finding": _write_concept(finding.finding),
        "site": _write_site(finding.site),
        "uncertainty": finding.uncertainty,
    }


def _write_box(scored: ScoredBox) -> dict[str, Any]:
    return {"xyxy": list(scored.box.xyxy), "score": scored.score}


def _write_concept(concept: Concept | None) -> dict[str, Any] | None:
    return asdict(concept) if concept else None


def _write_site(site: Site | None) -> dict[str, Any] | None:
    return {**asdict(site.concept), "laterality": site.laterality} if site else None
