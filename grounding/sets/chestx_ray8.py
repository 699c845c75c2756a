"""ChestX-ray8 (NIH): the 984 boxes of `BBox_List_2017.csv`, and the phrases that the predecessor made of them.

A phrase with a position says in words where the true box is, quantised: what a model finds with it is partly read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from grounding.sets.annotations import XYWH, Annotation, TableRow, group_by_phrase, read_table
from grounding.sets.nih import NIH_LICENSE, NIH_SIZE, finding_phrase, nih_patient

WHAT = "the box list of ChestX-ray8 (BBox_List_2017.csv)"
BOX_COLUMNS = ("Bbox [x", "y", "w", "h]")
"""The header is `Image Index,Finding Label,Bbox [x,y,w,h],,,`: its brackets fall into the columns' names."""

Phrases = Literal["position", "finding"]


def read_chestx_ray8(path: Path, phrases: Phrases = "position") -> list[Annotation]:
    """The phrases of ChestX-ray8 with their boxes.

    `position` makes phrases as the predecessor did ("Atelectasis, position: right bottom"), `finding` ones that do not
    tell the place ("atelectasis"); boxes of one picture with the same phrase are one annotation.

    Raises:
        AnnotationError: the file is not that list, or a value in it is wrong.
    """
    rows = read_table(path, ("Image Index", "Finding Label", *BOX_COLUMNS), WHAT)
    return group_by_phrase(_annotation(row, phrases) for row in rows)


def _annotation(row: TableRow, phrases: Phrases) -> Annotation:
    name, label = row.text("Image Index"), row.text("Finding Label")
    patient = nih_patient(name)
    if patient is None:
        raise row.wrong("Image Index", f"must be a name like 00013118_008.png, not {name[:40]!r}")
    x, y, w, h = (row.number(column) for column in BOX_COLUMNS)
    return Annotation(
        id=f"nih_{name.removesuffix('.png')}-bbox",
        pictures=(name,),
        size=NIH_SIZE,
        phrase=positioned_phrase(label, (x, y, w, h)) if phrases == "position" else finding_phrase(label),
        label=label,
        boxes=((x, y, w, h),),
        fields={
            "phrase_source": "label+position" if phrases == "position" else "label",
            "quality": "nih-official-box",
            "patient": patient,
            "license": NIH_LICENSE,
            "source": f"NIH ChestX-ray14 {name}; boxes BBox_List_2017.csv",
        },
    )


def positioned_phrase(label: str, box: XYWH) -> str:
    """The predecessor's phrase of a finding and its box in pixels of `NIH_SIZE`; the heart has no position."""
    if label.lower() == "cardiomegaly":
        return label
    x, y, w, h = box
    return f"{label}, position: {position((x + w / 2) / NIH_SIZE[0], (y + h / 2) / NIH_SIZE[1])}"


def position(cx: float, cy: float) -> str:
    """Side of the patient and level of a box centre, which is given in shares of the picture's width and height.

    Right below 0.45 (the patient's right is on the left of the picture), left above 0.55; top below 0.30, bottom above
    0.60; "middle" where neither is said.
    """
    side = "right" if cx < 0.45 else "left" if cx > 0.55 else ""
    level = "top" if cy < 0.30 else "bottom" if cy > 0.60 else ""
    return f"{side} {level}".strip() or "middle"
