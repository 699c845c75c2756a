"""What `knowmvg ground` does: one study from files, grounded and written to files, without a node."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from dicom_node.clock import Clock
from dicom_node.config import Settings
from dicom_node.errors import NodeError, NotApplicableError
from dicom_node.header import DECODE_ERRORS, read_text
from dicom_node.language import check_language
from dicom_node.orientation import UPRIGHT, Orientation, ground_stored, read_orientation
from dicom_node.pixels import render
from dicom_node.report import Report, read_plain_report, read_report
from dicom_node.results.findings import GroundedImage, findings_document
from dicom_node.results.gsps import build_gsps
from dicom_node.results.overlay import draw_overlay
from dicom_node.results.rendering import draw_report
from dicom_node.results.sr import build_sr
from dicom_node.results.values import Equipment, ResultInput, ResultOptions
from grounding.sets.manifest import load_image
from grounding.types import Grounder, Grounding, Image

SR_NAME = "result.sr.dcm"

FIRST_GROUPS = (b"\x02\x00", b"\x08\x00")
"""How a file begins that has no preamble: file meta information, or the dataset, in little endian."""

ENCODINGS: dict[tuple[bool | None, bool | None], UID] = {
    (True, True): ImplicitVRLittleEndian,
    (False, True): ExplicitVRLittleEndian,
    (False, False): ExplicitVRBigEndian,
}
"""Transfer syntax of a dataset that does not name its own: (implicit VR, little endian) as pydicom found it."""


@dataclass(frozen=True)
class Picture:
    """An image to be grounded; `header` is its dataset, None for PNG and JPEG."""

    pixels: Image
    header: Dataset | None

    @property
    def orientation(self) -> Orientation:
        """How the picture is stored."""
        return read_orientation(self.header) if self.header is not None else UPRIGHT


@dataclass(frozen=True)
class Source:
    """The study as it was read: pictures, and a report with its dataset (None for plain text)."""

    pictures: tuple[Picture, ...]
    report: Report
    report_header: Dataset | None

    @property
    def headers(self) -> tuple[Dataset, ...]:
        """The image datasets, or nothing if one of the pictures is no DICOM: results can refer to all or none."""
        headers = tuple(picture.header for picture in self.pictures if picture.header is not None)
        return headers if len(headers) == len(self.pictures) else ()


@dataclass(frozen=True)
class Outcome:
    """The document of findings.json, the names of the files written, and what the reader should know about them."""

    document: dict[str, Any]
    files: tuple[str, ...]
    notes: tuple[str, ...]


def ground_source(source: Source, grounder: Grounder, settings: Settings, clock: Clock, out: Path) -> Outcome:
    """Ground a study and write its results into the folder `out`; raises NodeError if they cannot be written."""
    pixels = [picture.pixels for picture in source.pictures]
    orientations = [picture.orientation for picture in source.pictures]
    grounding = ground_stored(grounder, pixels, orientations, source.report.to_report_text())
    try:
        out.mkdir(parents=True, exist_ok=True)
        files = _write_results(source, grounding, settings, clock, out)
        report = read_dicom(out / SR_NAME) if SR_NAME in files else None
        files += _write_overlays(source, grounding, settings.results.min_confidence, report, out)
        document = _make_document(source, grounding, settings.results.min_confidence)
        (out / "findings.json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise NodeError(f"the results cannot be written to {out}: {error}") from error
    return Outcome(document, (*files, "findings.json"), _make_notes(source, files))


def read_source(images: Sequence[Path], report: Path) -> Source:
    """Return the study in the files.

    Raises NodeError that names the file at fault (ManifestError for a PNG or JPEG), or the first two DICOM files that
    are not of one patient and one study.
    """
    pictures = tuple(_read_picture(path) for path in images)
    header = read_dicom(report) if is_dicom(report) else None
    text = read_report(header) if header is not None else read_plain_report(_read_utf8(report))
    check_language(text)
    named = [(path, picture.header) for path, picture in zip(images, pictures, strict=True)] + [(report, header)]
    _refuse_strangers([(path, ds) for path, ds in named if ds is not None])
    return Source(pictures, text, header)


def is_dicom(path: Path) -> bool:
    """Tell whether a file is DICOM: by its preamble, or by the first element of a dataset that was kept without one."""
    with path.open("rb") as file:
        head = file.read(132)
    return head[128:] == b"DICM" or head[:2] in FIRST_GROUPS


def read_dicom(path: Path) -> Dataset:
    """Return the dataset of a file, with or without preamble; raises NodeError that names it."""
    try:
        ds = dcmread(path, force=True)
        if "TransferSyntaxUID" not in ds.file_meta:
            ds.file_meta.TransferSyntaxUID = ENCODINGS[ds.original_encoding]
    except DECODE_ERRORS as error:
        raise NodeError(f"{path} cannot be read as DICOM: {error}") from error
    if not read_text(ds, "SOPInstanceUID"):
        raise NodeError(f"{path} cannot be read as DICOM: it has no SOP Instance UID, or ends before it")
    return ds


def save_dicom(ds: Dataset, path: Path) -> None:
    """Write a result as a DICOM file."""
    ds.save_as(path, enforce_file_format=True)


def number_name(name: str, number: int) -> str:
    """Return `name` for the first of several files, `result.gsps.2.dcm` for the second."""
    stem, suffix = name.rsplit(".", 1)
    return name if number == 1 else f"{stem}.{number}.{suffix}"


def _read_picture(path: Path) -> Picture:
    if not is_dicom(path):
        return Picture(load_image(path), None)
    header = read_dicom(path)
    try:
        return Picture(render(header), header)
    except NotApplicableError as error:
        raise NodeError(f"{path}: {error}") from error


def _read_utf8(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise NodeError(f"{path} is neither a DICOM SR nor a text in UTF-8: {error}") from error


def _refuse_strangers(headers: Sequence[tuple[Path, Dataset]]) -> None:
    for keyword, what in (("PatientID", "patient"), ("StudyInstanceUID", "study")):
        for path, ds in headers[1:]:
            if read_text(ds, keyword) != read_text(headers[0][1], keyword):
                raise NodeError(f"{path} and {headers[0][0]} are not of the same {what} ({keyword} differs)")


def _write_results(source: Source, grounding: Grounding, settings: Settings, clock: Clock, out: Path) -> list[str]:
    if not source.headers:
        return []
    result = ResultInput(
        images=source.headers,
        report_header=source.report_header,
        report=source.report,
        grounding=grounding,
        created_at=clock(),
        equipment=Equipment(settings.node.institution, settings.node.station),
        options=ResultOptions.of(settings.results),
    )
    built = {SR_NAME: build_sr(result) if settings.results.sr else None}
    for index in range(len(source.headers)):
        built[number_name("result.gsps.dcm", index + 1)] = build_gsps(result, index)
    for name, ds in built.items():
        (out / name).unlink(missing_ok=True)
        if ds is not None:
            save_dicom(ds, out / name)
    return [name for name, ds in built.items() if ds is not None]


def _write_overlays(
    source: Source, grounding: Grounding, min_confidence: float, report: Dataset | None, out: Path
) -> list[str]:
    """Draw what the SR says, as a viewer reads it; the findings themselves only where no SR is written."""
    names = []
    for index, picture in enumerate(source.pictures):
        names.append(number_name("overlay.png", index + 1))
        if report is not None and picture.header is not None:
            drawn = draw_report(report, picture.header)
        else:
            drawn = draw_overlay(
                picture.pixels, grounding.findings, image_index=index, min_confidence=min_confidence,
                orientation=picture.orientation,
            )  # fmt: skip
        drawn.save(out / names[-1])
    return names


def _make_document(source: Source, grounding: Grounding, min_confidence: float) -> dict[str, Any]:
    images = [
        GroundedImage(
            read_text(picture.header, "SOPInstanceUID") if picture.header is not None else None,
            rows=picture.pixels.shape[0],
            columns=picture.pixels.shape[1],
            orientation=picture.orientation,
        )
        for picture in source.pictures
    ]
    header = source.pictures[0].header
    study = read_text(header, "StudyInstanceUID") if header is not None else None
    return findings_document(grounding, images, study, min_confidence=min_confidence)


def _make_notes(source: Source, files: Sequence[str]) -> tuple[str, ...]:
    if not source.headers:
        return ("No SR and no presentation state: they can refer to DICOM images only.",)
    notes = []
    if source.report_header is None and SR_NAME in files:
        notes.append("The SR names no source report, as a plain text has no UID to refer to.")
    if not any(name.startswith("result.gsps") for name in files):
        notes.append("No presentation state: no box was found, or results.gsps is false.")
    if SR_NAME not in files:
        notes.append("No SR: results.sr is false, or nothing was found and results.when_nothing_localized is none.")
    return tuple(notes)
