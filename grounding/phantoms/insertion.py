"""Findings painted into real radiographs: the film of a patient, a generated report, and boxes that are known exactly.

The painters of `lesions` work in the frame of a chest that is laid over the film's own lungs. Only findings that the
film's own shadows cannot be taken for are painted; what the film itself shows is neither named nor denied here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from grounding.phantoms.anatomy import LEFT, RIGHT, Chest, Frame, sample_anatomy
from grounding.phantoms.lesions import AIRSPACE, LUNG_LABELS, Canvas, Lesion, paint
from grounding.phantoms.report import write_report
from grounding.phantoms.study import PhantomStudy
from grounding.types import Box, Image

INSERTED = {
    "nodule": 2.0, "mass": 1.5, "pneumothorax": 1.5, "pleural_effusion": 1.5, "atelectasis": 1.5, "consolidation": 1.0,
    "central_line": 2.0, "endotracheal_tube": 1.0, "nasogastric_tube": 1.0, "pacemaker": 0.8,
}  # fmt: skip
"""Relative weights of what is painted."""


@dataclass(frozen=True, slots=True)
class Lungs:
    """Boxes of a film's lungs in its pixels (image left = patient right)."""

    right: Box
    left: Box


def insert_findings(rng: np.random.Generator, film: Image, lungs: Lungs, *, clear: bool) -> PhantomStudy | None:
    """Paint one to three findings into `film` float32[H, W] in [0, 1]; None where none of them would be visible.

    `clear` says that the lungs show nothing: only then are shadows of the air spaces painted.
    """
    canvas = Canvas.blank(_chest(rng, film.shape, lungs))
    lesions: list[Lesion] = []
    for label in _chosen(rng, clear):
        taken = [box for lesion in lesions if lesion.label in LUNG_LABELS for box in lesion.boxes]
        side = int(rng.choice([RIGHT, LEFT]))
        lesion = paint(label, canvas, rng, (side,), taken if label in LUNG_LABELS else [])
        if lesion is not None:
            lesions.append(lesion)
    if not lesions:
        return None
    written = write_report(rng, lesions)
    return PhantomStudy(_exposed(rng, film, canvas), written.report, written.phrases, written.sections, anatomy=())


def _chosen(rng: np.random.Generator, clear: bool) -> list[str]:
    labels = [label for label in INSERTED if clear or label not in AIRSPACE]
    weights = np.array([INSERTED[label] for label in labels])
    count = int(rng.choice([1, 2, 3], p=[0.4, 0.4, 0.2]))
    return [labels[i] for i in rng.choice(len(labels), count, replace=False, p=weights / weights.sum())]


def _chest(rng: np.random.Generator, shape: tuple[int, ...], lungs: Lungs) -> Chest:
    """A chest whose lungs lie where those of the film do."""
    left_edge, right_edge = lungs.right.x1, lungs.left.x2
    top, bottom = min(lungs.right.y1, lungs.left.y1), max(lungs.right.y2, lungs.left.y2)
    half_width, height = (right_edge - left_edge) / 2, bottom - top
    frame = Frame(
        shape=(int(shape[0]), int(shape[1])), centre=((left_edge + right_edge) / 2, (top + bottom) / 2),
        half_width=half_width, height=height, angle=0.0,
    )  # fmt: skip
    gap = (lungs.left.x1 - lungs.right.x2) / 2 / half_width
    anatomy = replace(sample_anatomy(rng, cardiomegaly=False), mediastinum=float(np.clip(gap, 0.1, 0.22)))
    return Chest(frame, anatomy)


def _exposed(rng: np.random.Generator, film: Image, canvas: Canvas) -> Image:
    """The film with what was painted: shadows weaken towards white, fluid covers, free air has no vessels."""
    gain = float(rng.uniform(0.8, 1.4))
    bare = canvas.bare * np.clip(1.5 - 1.5 * film, 0, 1)
    smooth = ndimage.gaussian_filter(film, 0.03 * min(film.shape))
    out = film * (1 - 0.8 * bare) + 0.8 * bare * np.minimum(film, smooth)
    added = gain * canvas.added
    out = out + np.where(added > 0, added * (1 - 0.6 * np.clip(out, 0, 1)), added)
    inside = canvas.opaque * (canvas.chest.lung[RIGHT] + canvas.chest.lung[LEFT]).clip(0, 1)
    out = out * (1 - 0.85 * inside) + 0.85 * inside * float(rng.uniform(0.68, 0.92))
    lines = canvas.lines * gain
    return np.asarray(np.clip(out + lines * (1 - 0.4 * np.clip(out, 0, 1)), 0, 1), dtype=np.float32)
