"""From published annotations and a folder of pictures to a manifest, with an account of what was changed or left out.

Boxes follow a picture that was stored smaller or larger than published, and are clipped to it. DICOM is read by the
functions that the caller passes in.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from grounding.sets.annotations import XYWH, Annotation, AnnotationError
from grounding.sets.manifest import DicomSizeReader, ManifestError, read_size

TOLERANCE = 1e-6
"""Pixels by which a box may leave the picture before it counts as clipped."""


class PictureFolder:
    """A folder of pictures: finds them by name, at any depth with `deep`, and reads their sizes once.

    `prepare` turns a path into the one that the manifest names, such as the PNG made of a DICOM file.
    """

    def __init__(
        self,
        root: Path,
        *,
        deep: bool = True,
        read_dicom_size: DicomSizeReader | None = None,
        prepare: Callable[[Path], Path] | None = None,
    ) -> None:
        if not root.is_dir():
            raise AnnotationError(f"there is no folder of pictures {root}")
        self.root, self.deep, self.read_dicom_size, self.prepare = root, deep, read_dicom_size, prepare
        self._found: dict[tuple[str, ...], tuple[Path, tuple[int, int]] | None] = {}

    def find(self, names: tuple[str, ...]) -> tuple[Path, tuple[int, int]] | None:
        """Path, and width and height, of the first of the names that is there; None if none is.

        Raises ManifestError where the file is no picture.
        """
        if names not in self._found:
            path = self._path(names)
            if path is not None and self.prepare is not None:
                path = self.prepare(path)
            self._found[names] = None if path is None else (path, read_size(path, self.read_dicom_size))
        return self._found[names]

    def _path(self, names: tuple[str, ...]) -> Path | None:
        direct = next((self.root / name for name in names if (self.root / name).is_file()), None)
        if direct is not None or not self.deep:
            return direct
        return next((self._index[name] for name in names if name in self._index), None)

    @cached_property
    def _index(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for folder, folders, files in os.walk(self.root):
            folders.sort()
            for name in files:
                found.setdefault(name, Path(folder, name))
        return found


@dataclass
class Account:
    """What a conversion did. `splits` counts rows, pictures and patients of each split (None: of no split).

    `missing` and `unreadable` are pictures, in order; `shared_patients` stand both in train and in test.
    """

    rows: int = 0
    images: int = 0
    patients: int = 0
    with_report: int = 0
    splits: dict[str | None, tuple[int, int, int]] = field(default_factory=dict)
    shared_patients: int = 0
    missing: dict[str, None] = field(default_factory=dict)
    unreadable: dict[str, None] = field(default_factory=dict)
    empty_boxes: list[str] = field(default_factory=list)
    rows_left_out: int = 0
    clipped: int = 0
    resized: int = 0

    @property
    def faults(self) -> list[str]:
        """One sentence for each kind of thing that was left out, the first five of them named."""
        kinds = (
            ("pictures are missing", self.missing),
            ("pictures cannot be read", self.unreadable),
            ("boxes have no area in their picture", self.empty_boxes),
        )
        return [f"{len(names)} {what}: {_first(list(names))}" for what, names in kinds if names]


def _first(names: Sequence[str], count: int = 5) -> str:
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")


def write_manifest(
    annotations: Iterable[Annotation], folder: PictureFolder, out: Path, *, strict: bool = False
) -> Account:
    """Write the manifest of all annotations whose picture is in `folder`; returns what was done.

    Raises:
        AnnotationError: no picture is there; the file cannot be written; with `strict`, also if anything is left out.
    """
    account = Account()
    rows = [row for one in annotations if (row := _row(one, folder, out, account)) is not None]
    if not rows:
        raise AnnotationError(f"no row is left for {out}: " + ("; ".join(account.faults) or "nothing is annotated"))
    if strict and account.faults:
        raise AnnotationError(f"nothing is written, since something would be left out: {'; '.join(account.faults)}")
    _count(rows, account)
    _write(rows, out)
    return account


def _row(one: Annotation, folder: PictureFolder, out: Path, account: Account) -> dict[str, object] | None:
    try:
        found = folder.find(one.pictures)
    except ManifestError:
        found = None
        kind = account.unreadable
    else:
        kind = account.missing
    if found is None:
        kind[one.pictures[0]] = None
        account.rows_left_out += 1
        return None
    path, size = found
    boxes = [box for box in (_fitted(one, box, size, account) for box in one.boxes) if box is not None]
    if one.boxes and not boxes:
        account.rows_left_out += 1
        return None
    account.resized += size != one.size
    return {
        "id": one.id,
        "image": Path(os.path.relpath(path.parent.resolve() / path.name, out.parent.resolve())).as_posix(),
        "width": size[0],
        "height": size[1],
        "phrase": one.phrase,
        "label": one.label,
        "present": bool(boxes),
        "boxes": boxes,
        **one.fields,
    }


def _fitted(one: Annotation, box: XYWH, size: tuple[int, int], account: Account) -> list[float] | None:
    """A published box in pixels of the stored picture, clipped to it; None where nothing is left of it."""
    (width, height), (published_width, published_height) = size, one.size
    across, down = width / published_width, height / published_height
    x1, y1 = box[0] * across, box[1] * down
    x2, y2 = x1 + box[2] * across, y1 + box[3] * down
    left, top, right, bottom = max(x1, 0.0), max(y1, 0.0), min(x2, width), min(y2, height)
    x, y = round(left, 3), round(top, 3)
    w, h = _extent(x, right, width), _extent(y, bottom, height)
    if w <= 0 or h <= 0:
        account.empty_boxes.append(one.id)
        return None
    account.clipped += max(left - x1, top - y1, x2 - right, y2 - bottom) > TOLERANCE
    return [_plain(x), _plain(y), w, h]


def _extent(start: float, end: float, limit: int) -> float:
    """The length from `start` to `end` in thousandths, such that their sum as a float does not pass `limit`.

    It is not positive where nothing lies between them, as of a box outside the picture.
    """
    length = round(end - start, 3)
    while length > 0 and start + length > limit:
        length = math.nextafter(length, 0)
    return _plain(length)


def _plain(value: float) -> float:
    return int(value) if value == int(value) else value


def _count(rows: Sequence[dict[str, object]], account: Account) -> None:
    account.rows, account.images, account.patients = _sizes(rows)
    account.with_report = sum("report" in row for row in rows)
    names = sorted({str(row["split"]) for row in rows if "split" in row})
    members: dict[str | None, list[dict[str, object]]] = {
        name: [row for row in rows if row.get("split") == name] for name in (*names, None)
    }
    account.splits = {name: _sizes(found) for name, found in members.items() if found}
    patients = {name: {row["patient"] for row in found if "patient" in row} for name, found in members.items()}
    account.shared_patients = len(patients.get("test", set()) & patients.get("train", set()))


def _sizes(rows: Sequence[dict[str, object]]) -> tuple[int, int, int]:
    return len(rows), len({row["image"] for row in rows}), len({row["patient"] for row in rows if "patient" in row})


def _write(rows: Sequence[dict[str, object]], out: Path) -> None:
    """Write all or nothing: a manifest that is there stays until the new one is whole."""
    unfinished = out.with_name(out.name + ".part")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        unfinished.replace(out)
    except OSError as error:
        raise AnnotationError(f"the manifest cannot be written to {out}: {error}") from error
