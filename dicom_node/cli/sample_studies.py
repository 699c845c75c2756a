"""What `knowmvg sample-pack` writes: studies with their results, drawn and validated, as a connectathon asks for.

Films and reports are generated, and the boxes are those that the generator painted, so that the pack depends on no
model: the same version of the node writes the same bytes, but for the logs of the validators.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import JPEG2000

from dicom_node.cli.demo_study import make_image_dataset, make_report_dataset
from dicom_node.cli.ground import number_name, save_dicom
from dicom_node.cli.validators import Verdict, validate
from dicom_node.clock import derive_uid
from dicom_node.errors import NodeError
from dicom_node.report import Report, read_report
from dicom_node.results.gsps import build_gsps
from dicom_node.results.rendering import draw_presentation_state, draw_report
from dicom_node.results.sr import build_sr
from dicom_node.results.values import ResultInput, ResultOptions
from grounding.knowledge import KnowledgeBank, load_bank
from grounding.phantoms.study import PhantomPhrase, PhantomStudy, make_study
from grounding.types import Finding, Grounding, ModelIdentity, ScoredBox, Span

AT = datetime(2026, 1, 2, 12, tzinfo=UTC)
"""When everything in the pack was made."""

SHAPE, SECOND_SHAPE = (1152, 960), (1024, 1024)
"""Rows and columns."""

IDENTITY = ModelIdentity("KnowMVG phantom (no model)", "1", hashlib.sha256(b"generated").hexdigest())
MARK = ".knowmvg-sample-pack"
"""A file in the folder: what may be removed before a pack is written anew."""


@dataclass(frozen=True, slots=True)
class Case:
    """A study of the pack: its seed, what it shows, and what is changed about its film."""

    name: str
    says: str
    seed: int
    patient: str = "Phantom^Sample"
    images: int = 1
    change: Callable[[Dataset], None] = lambda ds: None
    ascii_only: bool = True


def invert(ds: Dataset) -> None:
    """Store a film as MONOCHROME1: bright is little."""
    pixels = np.frombuffer(ds.PixelData, "<u2")
    ds.PixelData = (2**ds.BitsStored - 1 - pixels).astype("<u2").tobytes()
    ds.PhotometricInterpretation, ds.PresentationLUTShape = "MONOCHROME1", "INVERSE"
    ds.PixelIntensityRelationshipSign = -1


def compress(ds: Dataset) -> None:
    """Compress a film with loss, by JPEG 2000 to about a tenth."""
    before = len(ds.PixelData)
    ds.compress(JPEG2000, j2k_cr=[10], generate_instance_uid=False)
    ds.ImageType = ["DERIVED", "PRIMARY", ""]
    ds.LossyImageCompression, ds.LossyImageCompressionMethod = "01", "ISO_15444_1"
    ds.LossyImageCompressionRatio = f"{before / len(ds.PixelData):.2f}"
    ds.DerivationDescription = "Lossy compressed"


CASES = (
    Case("right-apical-pneumothorax", "one box, at the apex of the right lung", 702922),
    Case("bilateral-effusion", "one phrase with two boxes, one on each side", 700235),
    Case("negated-only", "nothing is localised: an SR of text, and the same as a measurement report", 700009),
    Case("two-images", "two films of one study, a presentation state for each", 700237, images=2),
    Case("monochrome1", "a film that is stored inverted", 700459, change=invert),
    Case("lossy", "a film compressed by JPEG 2000 with loss", 700398, change=compress),
    Case(
        "names",
        "a patient with a name in three scripts",
        700228,
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
        ascii_only=False,
    ),
)


@dataclass(slots=True)
class Written:
    """The files of a case by kind, as names in its folder."""

    images: list[str] = field(default_factory=list)
    report: str = "report.dcm"
    documents: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)


def write_pack(out: Path, cases: Sequence[Case] = CASES) -> list[Verdict]:
    """Write the pack into `out`, and return what the validators say. Raises OSError, and NodeError where `out` is used.

    What an earlier pack left there is removed.
    """
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).exists():
            raise NodeError(f"{out} holds something that is no sample pack: name a new folder")
        for path in out.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()
    bank = load_bank()
    verdicts = []
    for case in cases:
        folder = out / case.name
        folder.mkdir()
        written = write_case(case, folder, bank)
        verdicts += _validate(case, folder, written)
    _write_readme(out, cases, verdicts)
    _write_manifest(out)
    return verdicts


def write_case(case: Case, folder: Path, bank: KnowledgeBank) -> Written:
    """Write the study and the results of a case into its folder."""
    phantoms = [make_study(case.seed, shape=shape) for shape in (SHAPE, SECOND_SHAPE)[: case.images]]
    images = [_make_film(case, phantom, number) for number, phantom in enumerate(phantoms, 1)]
    report = make_report_dataset(phantoms[0], images[0], case.name, AT)
    report.PatientName, report.PatientID = images[0].PatientName, images[0].PatientID
    report.AccessionNumber = images[0].AccessionNumber
    written = Written()
    for number, image in enumerate(images, 1):
        written.images.append(number_name("image.dcm", number))
        save_dicom(image, folder / written.images[-1])
    save_dicom(report, folder / written.report)
    text = read_report(report)
    findings = tuple(_find(phantoms, text, bank))
    result = ResultInput(tuple(images), report, text, Grounding(IDENTITY, findings), AT)
    _write_results(result, folder, written)
    return written


def _make_film(case: Case, phantom: PhantomStudy, number: int) -> Dataset:
    ds = make_image_dataset(phantom.image, case.name, AT)
    ds.PatientName, ds.PatientID = case.patient, f"SAMPLE-{case.seed}"
    ds.AccessionNumber, ds.InstanceNumber = f"S{case.seed}", number
    if number > 1:
        ds.SOPInstanceUID = derive_uid("sample", case.name, str(number))
        ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    case.change(ds)
    return ds


def _find(phantoms: list[PhantomStudy], report: Report, bank: KnowledgeBank) -> Iterator[Finding]:
    """Yield what the generator painted, phrase by phrase, in each of the films; a phrase is named once."""
    named: set[str] = set()
    for rows in zip(*(phantom.phrases for phantom in phantoms), strict=True):
        said: PhantomPhrase = rows[0]
        start = report.text.find(said.phrase)
        if start < 0 or said.phrase in named:
            continue
        named.add(said.phrase)
        reading = bank.read_phrase(said.phrase)
        for index, row in enumerate(rows):
            boxes = tuple(ScoredBox(box, 1.0) for box in row.boxes) if not row.negated else ()
            yield Finding(
                phrase=said.phrase, source=Span(start, start + len(said.phrase)), image=index, boxes=boxes,
                localized=bool(boxes), negated=said.negated,
                finding=None if said.negated else reading.concept, site=bank.site(reading),
            )  # fmt: skip


def _write_results(result: ResultInput, folder: Path, written: Written) -> None:
    """Write every form of the SR, the presentation states, and what both look like."""
    plain = replace(result, sr_class="comprehensive")
    forms = {"sr.3d.dcm": result, "sr.dcm": plain}
    if not any(finding.localized for finding in result.grounding.findings):
        strict = ResultOptions(when_nothing_localized="tid1500")
        forms["sr.tid1500.dcm"] = replace(result, options=strict)
    for name, form in forms.items():
        if (ds := build_sr(form)) is not None:
            save_dicom(ds, folder / name)
            written.documents.append(name)
            for number, image in enumerate(result.images, 1):
                picture = number_name(f"{name.removesuffix('.dcm')}.png", number)
                draw_report(ds, image).save(folder / picture)
    for index, image in enumerate(result.images):
        if (state := build_gsps(result, index)) is not None:
            name = number_name("gsps.dcm", index + 1)
            save_dicom(state, folder / name)
            written.states.append(name)
            draw_presentation_state(state, image).save(folder / f"{name.removesuffix('.dcm')}.png")


def _validate(case: Case, folder: Path, written: Written) -> list[Verdict]:
    """Have every validator read what it can; dcmpschk takes names of more than ASCII for errors, and is not asked."""
    everything = [*written.images, written.report, *written.documents, *written.states]
    asked = [("dciodvfy", [name]) for name in everything]
    asked += [("dcentvfy", everything)]
    asked += [("dsrdump", [name]) for name in (written.report, *written.documents)]
    asked += [("DicomSRValidator", [name]) for name in written.documents]
    asked += [("dcmpschk", [name]) for name in written.states if case.ascii_only]
    logs = folder / "logs"
    logs.mkdir()
    verdicts = []
    for tool, files in asked:
        verdict = validate(tool, folder, files)
        verdicts.append(replace(verdict, files=tuple(f"{case.name}/{name}" for name in files)))
        name = files[0] if len(files) == 1 else "all"
        (logs / f"{tool}.{name}.log").write_text(
            "\n".join((*verdict.lines, f"-- {verdict.summary}", "")), encoding="utf-8"
        )
    return verdicts


def _write_readme(out: Path, cases: Sequence[Case], verdicts: list[Verdict]) -> None:
    listed = "\n".join(f"  {case.name}/\n      {case.says}" for case in cases)
    text = README.format(cases=listed, at=AT.isoformat())
    (out / "README.txt").write_text(text, encoding="utf-8")
    (out / "validators.log").write_text("".join(f"{verdict.summary}\n" for verdict in verdicts), encoding="utf-8")


def _write_manifest(out: Path) -> None:
    """Write the digest of every file but the logs, which name versions of tools and take times."""
    files = sorted(path for path in out.rglob("*") if path.is_file() and path.suffix != ".log" and path.name != MARK)
    digests = {path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (out / "manifest.json").write_text(json.dumps(digests, indent=1) + "\n", encoding="utf-8")


README = """\
Sample pack of KnowMVG Node: studies, and what the node makes of them.

The films and reports are generated, the patients do not exist, and the boxes are those that the generator painted: no
model was asked. Everything is dated {at}. Not for diagnosis.

Cases:
{cases}

In each folder:
  image.dcm        Digital X-Ray Image, For Presentation (image.2.dcm: the second film)
  report.dcm       Basic Text SR: the report whose phrases are marked
  sr.3d.dcm        Comprehensive 3D SR, TID 1500, which archives are sent first
  sr.dcm           Comprehensive SR with the same content, for archives that refuse the former
  sr.tid1500.dcm   only where nothing is localised: the same as a measurement report (when_nothing_localized: tid1500)
  sr*.png          what the SR says, drawn from the object (sr.3d.2.png: on the second film)
  gsps.dcm         Grayscale Softcopy Presentation State of image.dcm (gsps.2.dcm: of image.2.dcm)
  gsps.png         the image as that presentation state shows it, drawn from the object
  logs/            what dciodvfy, dcentvfy, dsrdump, dcmpschk and DicomSRValidator say; the last line counts errors

validators.log has all their verdicts, one a line; "not installed" where a tool was not there. dcmpschk is not asked of
the patient with a name in three scripts: it takes more than ASCII for an error. One error of DicomSRValidator is not
counted: its table of procedures (PS3.16 CID 100) is older than the code of the procedure.

manifest.json has the SHA-256 of every file but the logs. How to read SR and presentation state: docs/results.md; how
the node speaks DICOM: docs/conformance.md.
"""
