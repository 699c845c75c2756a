"""Published box lists as they are read: tables, JSON, and the `Annotation` that every reader makes of them.

Nothing here looks at a picture. What is not the expected file is refused with its name, line and column; pickled files
are refused unread, for reading them can run code.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

XYWH = tuple[float, float, float, float]
"""Left, top, width and height in pixels."""

_PICKLED = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
_PICKLED_NAMES = {".pth", ".pt", ".pkl", ".pickle", ".bin"}


class AnnotationError(ValueError):
    """A published file or its pictures cannot be used; the text names file, line and column, or what to do."""


@dataclass(frozen=True, slots=True)
class Annotation:
    """One phrase of one picture as its publishers have it; `id` is unique once `group_by_phrase` has numbered it.

    `pictures` are the names under which the picture may lie in the folder, the likeliest first. `boxes` are in pixels
    of a picture of `size` (width, height), and none where the picture does not show it. `fields` go into the manifest.
    """

    id: str
    pictures: tuple[str, ...]
    size: tuple[int, int]
    phrase: str
    label: str
    boxes: tuple[XYWH, ...]
    fields: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row of a table, with the place to name in an error; column names are in lower case."""

    path: Path
    line: int
    cells: Mapping[str, str]

    def wrong(self, column: str, reason: str) -> AnnotationError:
        """The error that says what is wrong with a cell."""
        return AnnotationError(f"{self.path}, line {self.line}, column {column!r}: {reason}")

    def text(self, column: str) -> str:
        """What stands in a column; raises AnnotationError where nothing does."""
        value = self.cells.get(column.lower(), "").strip()
        if not value:
            raise self.wrong(column, "is empty")
        return value

    def number(self, column: str) -> float:
        """The finite number in a column; raises AnnotationError."""
        text = self.text(column)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise self.wrong(column, f"must be a number, not {text[:40]!r}")
        return value

    def size(self, width: str, height: str) -> tuple[int, int]:
        """Whole width and height of at least 1 from two columns; raises AnnotationError."""
        for column in (width, height):
            if self.number(column) < 1:
                raise self.wrong(column, f"must be at least 1, not {self.text(column)}")
        return round(self.number(width)), round(self.number(height))


@dataclass(frozen=True, slots=True)
class Entry:
    """One object of a JSON file, with the place to name in an error."""

    path: Path
    place: str
    content: Any

    def wrong(self, key: str, reason: str) -> AnnotationError:
        """The error that says what is wrong with a key."""
        return AnnotationError(f"{self.path}, {self.place}, key {key!r}: {reason}")

    def get(self, key: str) -> Any:
        """What a key holds; raises AnnotationError where it is missing."""
        if not isinstance(self.content, dict) or key not in self.content:
            raise self.wrong(key, "is missing")
        return self.content[key]

    def text(self, key: str) -> str:
        """The text of a key, not empty; raises AnnotationError."""
        value = self.get(key)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(key, f"must be text, not {str(value)[:40]!r}")
        return value.strip()

    def whole(self, key: str) -> int:
        """The whole number of a key, at least 0; raises AnnotationError."""
        value = self.get(key)
        if type(value) is not int or value < 0:
            raise self.wrong(key, f"must be a whole number of at least 0, not {str(value)[:40]!r}")
        return value

    def entries(self, key: str) -> list[Entry]:
        """The objects of the list that a key holds; raises AnnotationError."""
        return [Entry(self.path, f"{key}[{n}]", one) for n, one in enumerate(self.list_of(key))]

    def list_of(self, key: str) -> list[Any]:
        """The list that a key holds; raises AnnotationError."""
        value = self.get(key)
        if not isinstance(value, list):
            raise self.wrong(key, f"must be a list, not {str(value)[:40]!r}")
        return value

    def four(self, key: str, value: object) -> XYWH:
        """Four finite numbers; raises AnnotationError that names `key`."""
        if not (isinstance(value, list) and len(value) == 4 and all(map(_is_finite, value))):
            raise self.wrong(key, f"a box must be four finite numbers, not {str(value)[:80]}")
        first, second, third, fourth = (float(number) for number in value)
        return first, second, third, fourth


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9


def read_table(path: Path, columns: Sequence[str], what: str) -> list[TableRow]:
    """The rows of a CSV file (or `.csv.gz`) that has at least `columns`; `what` names the file that was expected.

    Raises:
        AnnotationError: it cannot be read, lacks a column, or has no rows.
    """
    reader = csv.reader(line + "\n" for line in read_lines(path))
    try:
        header = [cell.strip().lower() for cell in next(reader, [])]
        for column in columns:
            if column.lower() not in header:
                raise AnnotationError(f"{path}, line 1: column {column!r} is missing; this is not {what}")
        rows = [
            TableRow(path, reader.line_num, dict(zip(header, cells, strict=False)))
            for cells in reader
            if any(cell.strip() for cell in cells)
        ]
    except csv.Error as error:
        raise AnnotationError(f"{path}, line {reader.line_num}: not CSV ({error})") from error
    if not rows:
        raise AnnotationError(f"{path} has a header and no rows; this is not {what}")
    return rows


def read_lines(path: Path) -> list[str]:
    """The lines of a text file in UTF-8, plain or gzipped, at least one; raises AnnotationError."""
    lines = _read_text(path).split("\n")
    if not any(line.strip() for line in lines):
        raise AnnotationError(f"{path} is empty")
    return lines


def read_json(path: Path, what: str) -> Any:
    """What a JSON file holds; `what` names the file that was expected. Raises AnnotationError."""
    try:
        return json.loads(_read_text(path))
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise AnnotationError(f"{path}, {place}: not JSON ({error.msg}); this is not {what}") from error
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{path} cannot be read as JSON ({error}); this is not {what}") from error


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
        if path.suffix.lower() in _PICKLED_NAMES or content.startswith(_PICKLED):
            raise AnnotationError(
                f"{path} is a pickled or packed file, which is not opened, because opening one can run code hidden in "
                "it; write what it lists into a text or CSV file first"
            )
        if content.startswith(b"\x1f\x8b"):
            content = gzip.decompress(content)
        return content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise AnnotationError(f"{path} cannot be read as text: {error}") from error


def group_by_phrase(annotations: Iterable[Annotation]) -> list[Annotation]:
    """Annotations of the same picture and phrase as one with all their boxes, in the order of the first ones.

    Their ids, so far the same for all phrases of a picture, are numbered from 0.
    """
    grouped: dict[tuple[object, ...], Annotation] = {}
    numbers: Counter[str] = Counter()
    for one in annotations:
        key = (one.pictures, one.phrase)
        if key in grouped:
            first = grouped[key]
            grouped[key] = replace(first, boxes=tuple(dict.fromkeys((*first.boxes, *one.boxes))))
        else:
            grouped[key] = replace(one, id=f"{one.id}-{numbers[one.id]}")
            numbers[one.id] += 1
    return list(grouped.values())
