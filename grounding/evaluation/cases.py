"""Cases out of the rows of a manifest or out of generated studies. Pictures are read when their turn comes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import groupby
from typing import overload

from grounding.evaluation.laterality import lungs_midline, picture_midline
from grounding.evaluation.records import Case, Midline, Reference
from grounding.phantoms.study import make_study
from grounding.sets.manifest import ManifestError, ManifestRow, load_image
from grounding.text import read_plain_report
from grounding.types import Box, Image

ImageReader = Callable[..., Image]
"""Reads the picture at a path as float32[H, W] in [0, 1]."""

RIGHT_LUNG, LEFT_LUNG = "right lung", "left lung"


def manifest_cases(rows: Sequence[ManifestRow], read_image: ImageReader = load_image) -> list[Case]:
    """A case for each picture with each of its reports; `load` raises ManifestError as `read_image` does."""
    midlines = _midlines(rows)
    return [_manifest_case(group, read_image, midlines[str(group[0].image)]) for group in _grouped(rows)]


def _grouped(rows: Sequence[ManifestRow]) -> list[list[ManifestRow]]:
    """Rows of one picture and one report together, so that each pair is run once."""

    def key(row: ManifestRow) -> tuple[str, str]:
        return str(row.image), row.report or ""

    return [list(group) for _, group in groupby(sorted(rows, key=key), key=key)]


def _manifest_case(rows: Sequence[ManifestRow], read_image: ImageReader, midline: Midline) -> Case:
    first = rows[0]

    def load() -> Image:
        image = read_image(first.image)
        for row in rows:
            if image.shape != (row.height, row.width):
                size = f"{image.shape[1]} x {image.shape[0]}"
                raise ManifestError(f"row {row.id}: {row.image} is {size} pixels, not {row.width} x {row.height}")
        return image

    return Case(
        name=str(first.image),
        load=load,
        report=read_plain_report(first.report or ""),
        references=tuple(Reference(r.phrase, r.label or "unlabelled", r.boxes, bool(r.negated)) for r in rows),
        midline=midline,
        patient=first.patient,
        complete=all(row.negated is not None for row in rows),
    )


def _midlines(rows: Sequence[ManifestRow]) -> dict[str, Midline]:
    """The midline of each picture: of its lungs, where rows name them, else its middle."""
    widths = {str(row.image): row.width for row in rows}
    lungs: dict[str, dict[str, Box]] = defaultdict(dict)
    for row in rows:
        if len(row.boxes) == 1:
            lungs[str(row.image)].setdefault(row.phrase.strip().lower(), row.boxes[0])
    return {image: _midline(lungs[image], width) for image, width in widths.items()}


def _midline(structures: dict[str, Box], width: int) -> Midline:
    right, left = structures.get(RIGHT_LUNG), structures.get(LEFT_LUNG)
    return picture_midline(width) if right is None or left is None else lungs_midline(right, left)


class PhantomCases(Sequence[Case]):
    """The generated studies of `seeds`, each made when it is asked for, so that a thousand need no memory."""

    def __init__(self, seeds: Sequence[int], size: int = 256) -> None:
        self.seeds, self.size = seeds, size

    def __len__(self) -> int:
        return len(self.seeds)

    @overload
    def __getitem__(self, index: int) -> Case: ...
    @overload
    def __getitem__(self, index: slice) -> PhantomCases: ...
    def __getitem__(self, index: int | slice) -> Case | PhantomCases:
        """The case of one seed, or those of some."""
        if isinstance(index, slice):
            return PhantomCases(self.seeds[index], self.size)
        return phantom_case(self.seeds[index], self.size)


@lru_cache(maxsize=4)
def phantom_case(seed: int, size: int = 256) -> Case:
    """The generated study of `seed`, whose every phrase is known. The last few are kept: each run asks for its own."""
    study = make_study(seed, size)
    return Case(
        name=f"phantom-{seed}",
        load=lambda: study.image,
        report=study.report,
        references=tuple(Reference(p.phrase, p.label, p.boxes, p.negated, p.source) for p in study.phrases),
        midline=_midline(dict(study.anatomy), size),
        patient=f"phantom-{seed}",
        complete=True,
    )
