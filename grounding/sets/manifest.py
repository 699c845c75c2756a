"""Grounding sets on disk: the manifest (JSON Lines, one row per phrase), its pictures, and sets of generated studies.

Pictures are PNG or JPEG; a DICOM file is read by the function that the caller passes in, for nothing here knows DICOM.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PilImage

from grounding.phantoms.study import PhantomStudy, make_study
from grounding.types import Box, Image

DicomReader = Callable[[Path], Image]
DicomSizeReader = Callable[[Path], tuple[int, int]]
"""Width and height of the picture in a DICOM file."""

MAX_SIDE = 1_000_000
"""Pixels; no picture is wider or higher."""


class ManifestError(ValueError):
    """A manifest or one of its pictures cannot be used; the text names the file, the line and the field."""


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """One phrase of one picture. `image` is the path to open; `boxes` are in pixels of the stored image.

    `phrase_source` says what the phrase was made from, `license` the terms of picture and boxes. `negated` says whether
    the report denies the phrase; a set that says so of every row of a report names all phrases of that report.
    """

    id: str
    image: Path
    width: int
    height: int
    phrase: str
    boxes: tuple[Box, ...]
    present: bool
    report: str | None = None
    label: str | None = None
    patient: str | None = None
    split: str | None = None
    quality: str | None = None
    license: str | None = None
    phrase_source: str | None = None
    negated: bool | None = None

    @property
    def patient_name(self) -> str:
        """The patient; a picture without one counts as a patient of its own."""
        return self.patient or self.image.stem


def read_manifest(path: Path) -> list[ManifestRow]:
    """Read and check every row of a manifest.

    Raises:
        ManifestError: the file cannot be read, or a row is not as the contract says; names line and field.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # splitlines would also part at U+2028, which JSON allows
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"cannot read the manifest {path}: {error}") from error
    rows = [_Line(path, number, text).row() for number, text in enumerate(lines, 1) if text.strip()]
    if not rows:
        raise ManifestError(f"the manifest {path} has no rows; it needs one JSON object per line")
    return rows


class _Line:
    """One line of a manifest, with the place to name in an error."""

    def __init__(self, path: Path, number: int, text: str) -> None:
        self.path, self.number = path, number
        try:
            fields = json.loads(text)
        except json.JSONDecodeError as error:
            raise ManifestError(f"{path}, line {number}: not JSON ({error.msg}, column {error.colno})") from error
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"{path}, line {number}: cannot be read as JSON ({error})") from error
        if not isinstance(fields, dict):
            raise ManifestError(f"{path}, line {number}: expected a JSON object, not {type(fields).__name__}")
        self.fields: dict[str, Any] = fields

    def row(self) -> ManifestRow:
        width, height = self._size("width"), self._size("height")
        present = self._of("present", bool)
        boxes = self._boxes(width, height)
        if present != bool(boxes):
            raise self._wrong("boxes", "must hold a box where present is true, and none where it is false")
        return ManifestRow(
            id=self._of("id", str),
            image=self._picture(),
            width=width,
            height=height,
            phrase=self._phrase(),
            boxes=boxes,
            present=present,
            report=self._optional("report"),
            label=self._optional("label"),
            patient=self._optional("patient"),
            split=self._optional("split"),
            quality=self._optional("quality"),
            license=self._optional("license"),
            phrase_source=self._optional("phrase_source"),
            negated=self._flag("negated"),
        )

    def _wrong(self, field: str, reason: str) -> ManifestError:
        return ManifestError(f"{self.path}, line {self.number}, field {field!r}: {reason}")

    def _of(self, field: str, kind: type) -> Any:
        if field not in self.fields:
            raise self._wrong(field, "is missing")
        value = self.fields[field]
        if type(value) is not kind:
            raise self._wrong(field, f"must be {_PLAIN[kind]}, not {_shown(value)}")
        return value

    def _optional(self, field: str) -> str | None:
        value = self.fields.get(field)
        if value is not None and not isinstance(value, str):
            raise self._wrong(field, f"must be text, not {_shown(value)}")
        return value or None

    def _flag(self, field: str) -> bool | None:
        return None if self.fields.get(field) is None else bool(self._of(field, bool))

    def _phrase(self) -> str:
        phrase = str(self._of("phrase", str)).strip()
        if not phrase:
            raise self._wrong("phrase", "is empty")
        return phrase

    def _size(self, field: str) -> int:
        value = int(self._of(field, int))
        if not 1 <= value <= MAX_SIDE:
            raise self._wrong(field, f"must be 1 to {MAX_SIDE}, not {_shown(value)}")
        return value

    def _picture(self) -> Path:
        picture = self.path.parent / str(self._of("image", str))
        try:
            found = picture.is_file()
        except OSError as error:  # a name that is too long, a folder that may not be read
            raise self._wrong("image", f"cannot be looked up: {error}") from error
        if not found:
            raise self._wrong("image", f"no such file: {picture}")
        return picture

    def _boxes(self, width: int, height: int) -> tuple[Box, ...]:
        return tuple(self._box(value, width, height) for value in self._of("boxes", list))

    def _box(self, value: object, width: int, height: int) -> Box:
        if not (isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))):
            raise self._wrong("boxes", f"a box must be four finite numbers [x, y, w, h], not {_shown(value)}")
        x, y, w, h = (float(number) for number in value)
        if w <= 0 or h <= 0:
            raise self._wrong("boxes", f"width and height of a box must be above 0, not {value!r}")
        if x < 0 or y < 0 or x + w > width or y + h > height:
            raise self._wrong("boxes", f"{value!r} lies outside the image of {width} x {height} pixels")
        return Box(x, y, x + w, y + h)


_PLAIN = {str: "text", int: "a whole number", bool: "true or false", list: "a list"}


def _is_number(value: object) -> bool:
    if isinstance(value, int):  # of any size: what no float holds is no coordinate either
        return not isinstance(value, bool) and abs(value) <= MAX_SIDE
    return isinstance(value, float) and math.isfinite(value)


def _shown(value: object, longest: int = 80) -> str:
    """A wrong value for an error message, which a number of a thousand digits would fill."""
    text = repr(value)
    return text if len(text) <= longest else text[:longest] + "…"


def load_image(path: Path, read_dicom: DicomReader | None = None) -> Image:
    """Read a picture as float32[H, W] in [0, 1].

    8-bit pictures keep their grey levels; 16-bit ones, which carry no display window, are stretched from their darkest
    to their brightest pixel. Colour becomes luminance. A DICOM file goes to `read_dicom`.

    Raises:
        ManifestError: the file is no picture, damaged, or DICOM without a reader.
    """
    try:
        if _is_dicom(path):
            if read_dicom is None:
                raise ManifestError(f"{path} is a DICOM file, and nothing here reads DICOM; {_MAKE_PNG}")
            return read_dicom(path)
        with PilImage.open(path) as picture:
            return _grey(picture)
    except (OSError, SyntaxError, PilImage.DecompressionBombError) as error:
        raise ManifestError(f"cannot read the picture {path}: {error}") from error


def read_size(path: Path, read_dicom_size: DicomSizeReader | None = None) -> tuple[int, int]:
    """Width and height of a picture by its header, without its pixels.

    Raises:
        ManifestError: the file is no picture, or DICOM without a reader.
    """
    try:
        if _is_dicom(path):
            if read_dicom_size is None:
                raise ManifestError(f"{path} is a DICOM file, and nothing here reads DICOM; {_MAKE_PNG}")
            return read_dicom_size(path)
        with PilImage.open(path) as picture:
            return picture.size
    except (OSError, SyntaxError, PilImage.DecompressionBombError) as error:
        raise ManifestError(f"cannot read the picture {path}: {error}") from error


_MAKE_PNG = "pass a reader, or make PNG files of a whole folder (`knowmvg dataset rsna --png DIR`)"


def _is_dicom(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def _grey(picture: PilImage.Image) -> Image:
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        deep = np.asarray(picture, dtype=np.float32)
        low, high = float(deep.min()), float(deep.max())
        return np.asarray((deep - low) / max(high - low, 1.0), dtype=np.float32)
    return np.asarray(picture.convert("L"), dtype=np.float32) / np.float32(255)


def write_phantom_set(out_dir: Path, seeds: Iterable[int], size: int = 256) -> Path:
    """Write the studies of `seeds` as 8-bit PNG with a manifest; the path of the manifest is returned."""
    (out_dir / "images").mkdir(parents=True, exist_ok=True)
    manifest = out_dir / "manifest.jsonl"
    with manifest.open("w", encoding="utf-8") as file:
        for seed in seeds:
            study = make_study(seed, size)
            name = f"images/phantom_{seed:06d}.png"
            PilImage.fromarray(np.round(study.image * 255).astype(np.uint8)).save(out_dir / name)
            file.writelines(json.dumps(row) + "\n" for row in _phantom_rows(study, seed, name))
    return manifest


def _phantom_rows(study: PhantomStudy, seed: int, name: str) -> list[dict[str, object]]:
    height, width = study.image.shape
    return [
        {
            "id": f"phantom-{seed:06d}-{index}",
            "image": name,
            "width": width,
            "height": height,
            "phrase": phrase.phrase,
            "label": phrase.label,
            "present": phrase.present,
            "negated": phrase.negated,
            "boxes": [[box.x1, box.y1, box.x2 - box.x1, box.y2 - box.y1] for box in phrase.boxes],
            "patient": f"phantom-{seed:06d}",
            "report": study.report.text,
        }
        for index, phrase in enumerate(study.phrases)
    ]
