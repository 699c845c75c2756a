"""RSNA Pneumonia Detection Challenge 2018: the labels of stage 2 as phrases with boxes.

`patientId` there is a picture, not a patient: only the mapping to NIH names tells which pictures are of one patient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from grounding.sets.annotations import (
    Annotation,
    AnnotationError,
    Entry,
    TableRow,
    group_by_phrase,
    read_json,
    read_table,
)
from grounding.sets.nih import NIH_SIZE, nih_patient

WHAT = "the labels of the RSNA challenge (stage_2_train_labels.csv)"
WHAT_CLASSES = "the classes of the RSNA challenge (stage_2_detailed_class_info.csv)"
WHAT_MAPPING = "RSNA's mapping to NIH names (pneumonia-challenge-dataset-mappings_2018.json)"
COLUMNS = ("patientId", "x", "y", "width", "height", "Target")
PHRASE = "lung opacity suspicious for pneumonia"
LICENSE = "RSNA 2018 challenge terms (attribution); images NIH, no restriction"


def read_rsna(
    path: Path, classes: Path | None = None, mapping: Path | None = None, *, absent: bool = False
) -> list[Annotation]:
    """The opacities of the challenge's pictures with their boxes; with `absent` also the pictures without any.

    `classes` tells normal pictures from otherwise abnormal ones, `mapping` which are of the same NIH patient.

    Raises:
        AnnotationError: a file is not the expected one, or a value in it is wrong.
    """
    kinds = _read_classes(classes) if classes else {}
    patients = _read_mapping(mapping) if mapping else {}
    rows = read_table(path, COLUMNS, WHAT)
    return group_by_phrase(_annotations(rows, kinds, patients, absent))


def _annotations(
    rows: list[TableRow], kinds: Mapping[str, str], patients: Mapping[str, str], absent: bool
) -> Iterator[Annotation]:
    for row in rows:
        name, target = row.text("patientId"), row.text("Target")
        if target not in ("0", "1"):
            raise row.wrong("Target", f"must be 0 or 1, not {target[:40]!r}")
        if target == "0" and not absent:
            continue
        shown = target == "1"
        box = (row.number("x"), row.number("y"), row.number("width"), row.number("height")) if shown else None
        yield Annotation(
            id=f"rsna_{name}",
            pictures=tuple(name + ending for ending in (".png", ".dcm", ".jpg")),
            size=NIH_SIZE,
            phrase=PHRASE,
            label="Lung Opacity" if shown else kinds.get(name, "No Lung Opacity"),
            boxes=(box,) if box else (),
            fields={
                "phrase_source": "label",
                "quality": "radiologist-consensus-box",
                "patient": patients.get(name, f"rsna-{name}"),
                "license": LICENSE,
                "source": f"RSNA 2018 {name}; boxes {row.path.name}",
            },
        )


def _read_classes(path: Path) -> dict[str, str]:
    return {row.text("patientId"): row.text("class") for row in read_table(path, ("patientId", "class"), WHAT_CLASSES)}


def _read_mapping(path: Path) -> dict[str, str]:
    document = read_json(path, WHAT_MAPPING)
    if not isinstance(document, list) or not document:
        raise AnnotationError(f"{path}, line 1: not a list; this is not {WHAT_MAPPING}")
    patients = {}
    for number, content in enumerate(document):
        entry = Entry(path, f"entry {number}", content)
        name = entry.text("img_id")
        patient = nih_patient(name)
        if patient is None:
            raise entry.wrong("img_id", f"must be a name like 00013118_008.png, not {name[:40]!r}")
        patients[entry.text("subset_img_id")] = patient
    return patients
