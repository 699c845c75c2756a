"""ChestX-Det10 and ChestX-Det (Deepwise): boxes by three radiologists on NIH pictures, as their JSON files have them.

Polygons are not read. The published split is by picture: most of its test patients also stand in train.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from grounding.sets.annotations import XYWH, Annotation, AnnotationError, Entry, group_by_phrase, read_json
from grounding.sets.nih import NIH_LICENSE, NIH_SIZE, finding_phrase, nih_patient
from grounding.sets.splits import Part

WHAT = "a file of ChestX-Det10 or ChestX-Det (a list of file_name, syms, boxes)"


def read_chestx_det(files: Mapping[Part, Path]) -> list[Annotation]:
    """The findings of the files of train and test; a picture without any gives one annotation that states so.

    ChestX-Det10 names pictures as NIH does, so that patients are known; the numbers of ChestX-Det tell no patient.

    Raises:
        AnnotationError: a file is not of that form, or a value in it is wrong.
    """
    return group_by_phrase(one for part, path in files.items() for one in _read_file(path, part))


def _read_file(path: Path, part: Part) -> Iterator[Annotation]:
    document = read_json(path, WHAT)
    if not isinstance(document, list) or not document:
        raise AnnotationError(f"{path}, line 1: not a list of pictures; this is not {WHAT}")
    for number, content in enumerate(document):
        entry = Entry(path, f"entry {number}", content)
        findings = list(_findings(entry))
        for label, box in findings:
            yield _annotation(entry, part, finding_phrase(label), label, (box,))
        if not findings:
            yield _annotation(entry, part, "no finding", f"No finding ({_classes(entry)} ChestX-Det classes)", ())


def _findings(entry: Entry) -> Iterator[tuple[str, XYWH]]:
    labels, boxes = entry.list_of("syms"), entry.list_of("boxes")
    if len(labels) != len(boxes):
        raise entry.wrong("boxes", f"{len(boxes)} boxes for {len(labels)} findings")
    for label, value in zip(labels, boxes, strict=True):
        if not isinstance(label, str) or not label:
            raise entry.wrong("syms", f"must hold texts, not {str(label)[:40]!r}")
        x1, y1, x2, y2 = entry.four("boxes", value)
        yield label, (x1, y1, x2 - x1, y2 - y1)


def _classes(entry: Entry) -> int:
    """The kinds of findings that were looked for; the files with 13 have polygons."""
    return 13 if "polygons" in entry.content else 10


def _annotation(entry: Entry, part: Part, phrase: str, label: str, boxes: tuple[XYWH, ...]) -> Annotation:
    name = PurePosixPath(entry.text("file_name")).name
    patient, stem = nih_patient(name), PurePosixPath(name).stem
    terms = "annotations Apache-2.0" if _classes(entry) == 13 else "annotations ChestX-Det10, no licence stated"
    fields = {
        "phrase_source": "label",
        "quality": "three-radiologist-box",
        "patient": patient,
        "split": part,
        "license": f"{NIH_LICENSE}; {terms}",
        "source": f"ChestX-Det {name}; boxes {entry.path.name}",
    }
    return Annotation(
        id=f"nih_{stem}-det" if patient else f"chestxdet_{stem}-det",
        pictures=(name,),
        size=NIH_SIZE,
        phrase=phrase,
        label=label,
        boxes=boxes,
        fields={key: value for key, value in fields.items() if value},
    )
