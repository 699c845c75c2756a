"""findings.json: a grounding as the document that `contract` describes, for files, scripts and the console. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from dicom_node.orientation import UPRIGHT, Orientation
from dicom_node.results.values import is_opposed
from grounding.types import Concept, Finding, Grounding, ScoredBox, Site


@dataclass(frozen=True, slots=True)
class GroundedImage:
    """An image that boxes are pixels of, and how it is stored; a picture that is no DICOM instance has no UID."""

    sop_instance_uid: str | None
    rows: int
    columns: int
    orientation: Orientation = UPRIGHT


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
        "images": [_write_image(image) for image in images],
        "findings": [_write_finding(f, images[f.image], min_confidence) for f in grounding.findings],
        "dropped_phrases": grounding.hallucinations,
    }


def _write_image(image: GroundedImage) -> dict[str, Any]:
    return {"sop_instance_uid": image.sop_instance_uid, "rows": image.rows, "columns": image.columns}


def _write_finding(finding: Finding, image: GroundedImage, min_confidence: float) -> dict[str, Any]:
    boxes = [_write_box(finding, scored, image) for scored in finding.boxes if scored.score >= min_confidence]
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


def _write_box(finding: Finding, scored: ScoredBox, image: GroundedImage) -> dict[str, Any]:
    opposed = is_opposed(finding, scored.box, (image.rows, image.columns), image.orientation)
    return {"xyxy": list(scored.box.xyxy), "score": scored.score, "laterality_conflict": opposed}


def _write_concept(concept: Concept | None) -> dict[str, Any] | None:
    return asdict(concept) if concept else None


def _write_site(site: Site | None) -> dict[str, Any] | None:
    return {**asdict(site.concept), "laterality": site.laterality} if site else None
