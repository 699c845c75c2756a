"""MS-CXR (PhysioNet): the published table or COCO file of phrases and boxes on MIMIC-CXR pictures.

One row of the files is one box; rows of the same picture and text are one phrase with several boxes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from grounding.sets.annotations import XYWH, Annotation, AnnotationError, Entry, group_by_phrase, read_json, read_table
from grounding.sets.splits import read_part
from grounding.text import read_plain_report

WHAT = "the box list of MS-CXR (MS_CXR_Local_Alignment_v1.0.0 or v1.1.0, csv or json)"
COLUMNS = (
    "category_name", "label_text", "path", "x", "y", "w", "h", "dicom_id", "image_width", "image_height",
)  # fmt: skip
LICENSE = "PhysioNet Credentialed Health Data License 1.5.0"

_PATIENT = re.compile(r"(?:^|/)(p\d{5,})(?:/|$)")


@dataclass(frozen=True, slots=True)
class BoxRow:
    """One box of the published files."""

    dicom_id: str
    path: str
    size: tuple[int, int]
    category: str
    text: str
    box: XYWH
    split: str | None


def read_ms_cxr(path: Path, reports: Path | None = None) -> list[Annotation]:
    """The phrases of MS-CXR with their boxes; `reports` is the folder of MIMIC-CXR's report texts.

    Raises:
        AnnotationError: the file is not MS-CXR's, or a value in it is wrong.
    """
    rows = list(_coco_rows(path) if path.suffix.lower() == ".json" else _table_rows(path))
    texts = {row.path: _read_report(reports, row.path) for row in rows} if reports else {}
    return group_by_phrase(_annotation(row, texts.get(row.path)) for row in rows)


def _annotation(row: BoxRow, report: str | None) -> Annotation:
    patient = _PATIENT.search(row.path)
    fields = {
        "phrase_source": "report",
        "quality": "radiologist-box",
        "patient": f"mimic-{patient[1]}" if patient else None,
        "split": row.split,
        "report": report,
        "license": LICENSE,
        "source": f"MS-CXR; MIMIC-CXR-JPG {row.path}",
    }
    return Annotation(
        id=f"mscxr-{row.dicom_id}",
        pictures=_pictures(row),
        size=row.size,
        phrase=row.text,
        label=row.category,
        boxes=(row.box,),
        fields={name: value for name, value in fields.items() if value},
    )


def _pictures(row: BoxRow) -> tuple[str, ...]:
    """Where the picture may lie: as in MIMIC-CXR-JPG, in its folder `files`, or all pictures in one folder."""
    places = (row.path, row.path.removeprefix("files/"), row.dicom_id + ".jpg")
    endings = (".jpg", ".png", ".dcm")
    return tuple(dict.fromkeys(str(PurePosixPath(place).with_suffix(end)) for end in endings for place in places))


def _table_rows(path: Path) -> Iterator[BoxRow]:
    for row in read_table(path, COLUMNS, WHAT):
        try:
            split = read_part(row.cells.get("split"))
        except ValueError as error:
            raise row.wrong("split", str(error)) from error
        yield BoxRow(
            dicom_id=row.text("dicom_id"),
            path=row.text("path").replace("\\", "/"),
            size=row.size("image_width", "image_height"),
            category=row.text("category_name"),
            text=" ".join(row.text("label_text").split()),
            box=(row.number("x"), row.number("y"), row.number("w"), row.number("h")),
            split=split,
        )


def _coco_rows(path: Path) -> Iterator[BoxRow]:
    document = Entry(path, "the document", read_json(path, WHAT))
    if not isinstance(document.content, dict) or not {"images", "annotations", "categories"} <= set(document.content):
        raise AnnotationError(f"{path}, line 1: no 'images', 'annotations' and 'categories'; this is not {WHAT}")
    images = {one.whole("id"): one for one in document.entries("images")}
    categories = {one.whole("id"): one.text("name") for one in document.entries("categories")}
    for one in document.entries("annotations"):
        image, category = one.whole("image_id"), one.whole("category_id")
        if image not in images:
            raise one.wrong("image_id", f"there is no image {image}")
        if category not in categories:
            raise one.wrong("category_id", f"there is no category {category}")
        yield _coco_row(one, images[image], categories[category])


def _coco_row(one: Entry, image: Entry, category: str) -> BoxRow:
    width, height = image.whole("width"), image.whole("height")
    if min(width, height) < 1:
        raise image.wrong("width", "width and height must be at least 1")
    try:
        split = read_part(one.content.get("split") or image.content.get("split"))
    except (ValueError, AttributeError) as error:
        raise one.wrong("split", str(error)) from error
    return BoxRow(
        dicom_id=PurePosixPath(image.text("file_name")).stem,
        path=image.text("path").replace("\\", "/"),
        size=(width, height),
        category=category,
        text=" ".join(one.text("label_text").split()),
        box=one.four("bbox", one.get("bbox")),
        split=split,
    )


def _read_report(folder: Path, picture: str) -> str | None:
    """Findings and impression of the report beside a picture's study folder; None where there is no such file."""
    study = str(PurePosixPath(picture).parent) + ".txt"
    for name in (study, study.removeprefix("files/")):
        file = folder / name
        if file.is_file():
            try:
                return stated_text(file.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                raise AnnotationError(f"cannot read the report {file}: {error}") from error
    return None


def stated_text(text: str) -> str:
    """Findings and impression of a MIMIC-CXR report as running text; "" where it has neither."""
    report = read_plain_report(text.split("FINAL REPORT")[-1])
    return " ".join(" ".join(report.text[span.start : span.end].split()) for span in report.sentences)
