"""Which rows of a set train, choose and test a model: by patient, or as a published list has it.

The split by patient hangs on the patient's name alone, so that it never moves, whatever pictures are there, and so that
sets with the same patients (ChestX-ray8, ChestX-Det, RSNA by its mapping) put them in the same part.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from grounding.sets.annotations import Annotation, AnnotationError, read_lines, read_table

Part = Literal["train", "val", "test"]
SplitKind = Literal["patient", "original"]

_SYNONYMS: Mapping[str, Part | None] = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validate": "val", "validation": "val",
    "test": "test", "testing": "test", "dev": None, "": None,
}  # fmt: skip
_NAMED = re.compile(r"(?:^|[^a-z])(train|val|valid|validate|validation|test)(?:[^a-z]|$)")
_IMAGE_COLUMNS = ("image", "image index", "image_name", "file_name", "filename", "dicom_id", "patientid")
_LABEL_COLUMNS = ("label", "finding", "finding label", "category_name")
_STRONGEST: tuple[Part, ...] = ("test", "val", "train")


def read_part(text: str | None) -> Part | None:
    """The part that a split's name means; None for none and for `dev`, which leave it open. Raises ValueError."""
    word = (text or "").strip().lower()
    if word not in _SYNONYMS:
        raise ValueError(f"must be train, val, test or dev, not {text!r}")
    return _SYNONYMS[word]


def patient_part(patient: str) -> Part:
    """70 % of all patients train, 10 % are val and 20 % test, by a hash of the patient's name."""
    place = int.from_bytes(hashlib.sha256(patient.encode()).digest()[:8]) / 2**64
    return "train" if place < 0.7 else "val" if place < 0.8 else "test"


@dataclass(frozen=True)
class SplitList:
    """The parts of pictures as a list has them; `contested` counts the pictures that stand in several.

    Such a picture goes where it is held back furthest (test, then val), unless the list tells its findings apart.
    """

    pictures: Mapping[str, Part]
    findings: Mapping[tuple[str, str], Part]
    contested: int

    def part(self, picture: str, label: str) -> Part | None:
        """The part of a finding in a picture (its name, with or without folder and ending); None if not listed."""
        key = _key(picture)
        return self.findings.get((key, label.lower())) or self.pictures.get(key)


def read_split_list(paths: Iterable[Path]) -> SplitList:
    """Read lists of pictures: tables with a column `split`, or one list a part, which its file name says.

    A table names the picture (`image`, `Image Index`, `dicom_id`, `patientId` …) and may name the finding (`label`); it
    may be gzipped. A plain list has one picture a line, alone or as the first of several columns.

    Raises:
        AnnotationError: a file is pickled, empty, not readable, or says of no picture where it belongs.
    """
    listed: list[tuple[str, str, Part]] = []
    for path in paths:
        listed += _read_list(path)
    parts: dict[str, set[Part]] = {}
    for picture, label, part in listed:
        if not label:
            parts.setdefault(picture, set()).add(part)
    strongest = {picture: next(p for p in _STRONGEST if p in found) for picture, found in parts.items()}
    findings = {(picture, label): part for picture, label, part in listed if label}
    return SplitList(strongest, findings, sum(len(found) > 1 for found in parts.values()))


def assign_splits(
    annotations: Sequence[Annotation], kind: SplitKind | None, listed: SplitList | None = None
) -> list[Annotation]:
    """The annotations with the split of `kind` as `split`, and the other one as `split_patient` or `split_original`.

    `original` is the split of `listed`, else the published one, which readers leave in `split`; what `listed` does not
    name is left out. Without a `kind` it is `patient` where all patients are known.

    Raises:
        AnnotationError: the split by patient is asked for and a patient is not known; `listed` names no picture.
    """
    unknown = next((one.id for one in annotations if "patient" not in one.fields), None)
    kind = kind or ("patient" if unknown is None else "original")
    if kind == "patient" and unknown is not None:
        raise AnnotationError(f"the patient of {unknown} is not known, so that no split by patient can be made")
    other = "split_original" if kind == "patient" else "split_patient"
    assigned = []
    for one in annotations:
        original = listed.part(one.pictures[0], one.label) if listed else one.fields.get("split")
        patient = one.fields.get("patient")
        by_patient = patient_part(patient) if patient else None
        chosen, second = (by_patient, original) if kind == "patient" else (original, by_patient)
        if chosen or not listed:
            named = {"split": chosen, other: second}
            kept = {name: value for name, value in one.fields.items() if name != "split"}
            assigned.append(replace(one, fields={**kept, **{name: value for name, value in named.items() if value}}))
    if annotations and not assigned:
        raise AnnotationError("the lists of splits name none of the pictures; are they of this set?")
    return assigned


def _read_list(path: Path) -> list[tuple[str, str, Part]]:
    lines = read_lines(path)
    columns = [cell.strip().lower() for cell in lines[0].split(",")]
    if "split" in columns:
        return _read_split_table(path, columns)
    named = _NAMED.search(path.name.lower())
    part = read_part(named[1]) if named else None
    if part is None:
        raise AnnotationError(
            f"{path}, line 1: no column 'split', and the file's name does not say which of train, val and test it lists"
        )
    names = [line.split(",")[0].strip() for line in lines if line.strip()]
    return [(_key(name), "", part) for name in names if name and name.lower() not in _IMAGE_COLUMNS]


def _read_split_table(path: Path, columns: list[str]) -> list[tuple[str, str, Part]]:
    image = next((name for name in _IMAGE_COLUMNS if name in columns), None)
    label = next((name for name in _LABEL_COLUMNS if name in columns), None)
    if image is None:
        raise AnnotationError(f"{path}, line 1: no column that names a picture: {', '.join(_IMAGE_COLUMNS)}")
    listed = []
    for row in read_table(path, [image, "split"], "a list of splits"):
        try:
            part = read_part(row.text("split"))
        except ValueError as error:
            raise row.wrong("split", str(error)) from error
        if part is not None:
            listed.append((_key(row.text(image)), row.text(label).lower() if label else "", part))
    return listed


def _key(picture: str) -> str:
    name = picture.replace("\\", "/").rsplit("/", 1)[-1].lower()
    return re.sub(r"\.(png|jpe?g|dcm)$", "", name)
