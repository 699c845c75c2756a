"""`knowmvg dataset`: published box lists and folders of pictures to manifests for training and evaluation.

What is in docs/datasets.md. Nothing is downloaded: the files are the user's, under the terms that they came with.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dicom_node.cli.options import JsonOption
from dicom_node.cli.terminal import print_json, print_table
from dicom_node.errors import NodeError

if TYPE_CHECKING:
    from grounding.sets.annotations import Annotation
    from grounding.sets.conversion import Account, PictureFolder
    from grounding.sets.splits import SplitKind, SplitList

app = typer.Typer(
    help="Turn published box lists and their pictures into manifests for training and evaluation.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


class SplitChoice(StrEnum):
    """Whose split training uses."""

    patient = "patient"
    original = "original"


class PhraseChoice(StrEnum):
    """What the phrases of ChestX-ray8 say."""

    position = "position"
    finding = "finding"


def _file(metavar: str, help_text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(exists=True, dir_okay=False, metavar=metavar, help=help_text)
    return option


ImagesOption = Annotated[
    Path, typer.Option("--images", exists=True, file_okay=False, metavar="DIR", help="The folder of the pictures.")
]
OutOption = Annotated[Path, typer.Option("--out", dir_okay=False, metavar="FILE.jsonl", help="The manifest to write.")]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Fail, and write nothing, if a picture or a box would be left out.")
]
ListOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--list",
        exists=True,
        dir_okay=False,
        metavar="FILE",
        help="The original split: a table with the columns image and split (may be .csv.gz), or one list of image "
        "names for each split, named after it. May be given several times.",
    ),
]
SplitOption = Annotated[
    SplitChoice | None,
    typer.Option(
        "--split",
        help="Which split training uses; the other one, where there is one, is written beside it. "
        "patient: 70 % train, 10 % val, 20 % test, no patient in two of them.",
    ),
]


@app.command("ms-cxr")
def ms_cxr(  # noqa: PLR0913 - one parameter per option
    annotations: Annotated[Path, _file("FILE", "MS_CXR_Local_Alignment_v1.0.0 or v1.1.0, .csv or .json.")],
    images: ImagesOption,
    out: OutOption,
    reports: Annotated[
        Path | None,
        typer.Option(exists=True, file_okay=False, metavar="DIR", help="MIMIC-CXR's report texts, for the reports."),
    ] = None,
    lists: ListOption = None,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """MS-CXR (PhysioNet): phrases of reports with boxes, on pictures of MIMIC-CXR-JPG.

    Several boxes of a phrase become one row. The split is the one of version 1.1.0 or of --list; without one, training
    holds patients out by itself.
    """
    with plain_errors():
        from grounding.sets.ms_cxr import read_ms_cxr

        read = _assigned(read_ms_cxr(annotations, reports), SplitChoice.original, _read_lists(lists))
        _convert(read, _open_folder(images, deep=False), out, strict, as_json)


@app.command("chestx-ray8")
def chestx_ray8(  # noqa: PLR0913 - one parameter per option
    annotations: Annotated[Path, _file("FILE", "BBox_List_2017.csv.")],
    images: ImagesOption,
    out: OutOption,
    phrases: Annotated[
        PhraseChoice,
        typer.Option(
            help="position: the predecessor's phrases, which say in words where the true box is, quantised; what a "
            "model finds with them is partly read. finding: the finding alone."
        ),
    ] = PhraseChoice.position,
    split: SplitOption = SplitChoice.patient,
    lists: ListOption = None,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """ChestX-ray8 (NIH): the 984 boxes of 8 findings.

    The predecessor's own split leaks: 59 of its 189 test patients are also in its train. --split original needs --list.
    """
    if split == SplitChoice.original and not lists:
        raise typer.BadParameter("--split original needs the predecessor's lists: --list FILE")
    with plain_errors():
        from grounding.sets.chestx_ray8 import read_chestx_ray8

        read = _assigned(read_chestx_ray8(annotations, phrases.value), split, _read_lists(lists))
        _convert(read, _open_folder(images), out, strict, as_json)


@app.command("chestx-det")
def chestx_det(  # noqa: PLR0913 - one parameter per option
    images: ImagesOption,
    out: OutOption,
    train: Annotated[Path | None, _file("FILE", "train.json of ChestX-Det10, or ChestX_Det_train.json.")] = None,
    test: Annotated[Path | None, _file("FILE", "test.json of ChestX-Det10, or ChestX_Det_test.json.")] = None,
    split: SplitOption = None,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """ChestX-Det10 and ChestX-Det: boxes by three radiologists on NIH pictures, and pictures without a finding.

    The published split leaks: 269 of the 427 test patients of ChestX-Det10 are also in its train. The split is by
    patient where pictures have NIH names (ChestX-Det10), and the published one where they have numbers (ChestX-Det).
    """
    if train is None and test is None:
        raise typer.BadParameter("give --train FILE, --test FILE, or both")
    with plain_errors():
        from grounding.sets.chestx_det import read_chestx_det
        from grounding.sets.splits import Part

        files: dict[Part, Path] = {}
        files |= {"train": train} if train else {}
        files |= {"test": test} if test else {}
        _convert(_assigned(read_chestx_det(files), split, None), _open_folder(images), out, strict, as_json)


@app.command("rsna")
def rsna(  # noqa: PLR0913 - one parameter per option
    annotations: Annotated[Path, _file("FILE", "stage_2_train_labels.csv.")],
    images: ImagesOption,
    out: OutOption,
    classes: Annotated[Path | None, _file("FILE", "stage_2_detailed_class_info.csv.")] = None,
    mapping: Annotated[
        Path | None,
        _file("FILE", "pneumonia-challenge-dataset-mappings_2018.json: which pictures are of one NIH patient."),
    ] = None,
    absent: Annotated[
        bool, typer.Option("--absent", help="Also the pictures without an opacity (20,672 of 26,684).")
    ] = False,
    png: Annotated[
        Path | None,
        typer.Option(file_okay=False, metavar="DIR", help="Write 8-bit PNG of the DICOM files here, for training."),
    ] = None,
    strict: StrictOption = False,
    as_json: JsonOption = False,
) -> None:
    """RSNA Pneumonia Detection Challenge 2018: opacities suspicious for pneumonia, on DICOM files.

    The split is by patient; without --mapping a picture counts as a patient, though NIH's patients have several.
    """
    with plain_errors():
        from grounding.sets.rsna import read_rsna

        read = _assigned(read_rsna(annotations, classes, mapping, absent=absent), SplitChoice.patient, None)
        _convert(read, _open_folder(images, png=png), out, strict, as_json)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what is wrong with the files into NodeError, which `main` prints as one sentence."""
    from grounding.sets.annotations import AnnotationError

    try:
        yield
    except AnnotationError as error:
        raise NodeError(str(error)) from error


def _read_lists(paths: list[Path] | None) -> SplitList | None:
    from grounding.sets.splits import read_split_list

    listed = read_split_list(paths) if paths else None
    if listed and listed.contested:
        typer.echo(
            f"{listed.contested} images are listed in several splits; they go to test, else to val, since the lists do "
            "not tell their findings apart (a column `label` would)",
            err=True,
        )
    return listed


def _assigned(read: list[Annotation], split: SplitChoice | None, listed: SplitList | None) -> list[Annotation]:
    from grounding.sets.splits import assign_splits

    kind: SplitKind | None = split.value if split else None
    assigned = assign_splits(read, kind, listed)
    if len(assigned) < len(read):
        typer.echo(f"{len(read) - len(assigned)} rows are left out: no list names their image", err=True)
    return assigned


def _open_folder(images: Path, *, deep: bool = True, png: Path | None = None) -> PictureFolder:
    from grounding.sets.conversion import PictureFolder

    prepare = None if png is None else lambda path: make_png(path, png)
    return PictureFolder(images, deep=deep, read_dicom_size=read_dicom_size, prepare=prepare)


def read_dicom_size(path: Path) -> tuple[int, int]:
    """Return Columns and Rows of a DICOM file, without its pixels; raises ManifestError."""
    from pydicom import dcmread

    from dicom_node.header import DECODE_ERRORS, read_number
    from grounding.sets.manifest import ManifestError

    try:
        ds = dcmread(path, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
    except DECODE_ERRORS as error:
        raise ManifestError(f"{path} cannot be read as DICOM: {error}") from error
    columns, rows = read_number(ds, "Columns"), read_number(ds, "Rows")
    if not columns or not rows:
        raise ManifestError(f"{path} has no Rows and Columns: it holds no picture")
    return int(columns), int(rows)


def make_png(path: Path, folder: Path) -> Path:
    """Write a DICOM file's picture, as the node sees it, into `folder` as 8-bit PNG; return where it lies.

    PNG and JPEG files stay where they are, and what was written before is not written again. Raises ManifestError.
    """
    import numpy as np
    from PIL import Image

    from dicom_node.cli.evaluation import read_radiograph
    from dicom_node.cli.ground import is_dicom
    from dicom_node.errors import NotApplicableError
    from grounding.sets.manifest import ManifestError

    out = folder / f"{path.stem}.png"
    if not is_dicom(path):
        return path
    if not out.exists():
        try:
            pixels = np.rint(read_radiograph(path) * 255).astype(np.uint8)
            folder.mkdir(parents=True, exist_ok=True)
            unfinished = out.with_suffix(".part")
            Image.fromarray(pixels).save(unfinished, format="PNG")
            unfinished.replace(out)
        except (NodeError, NotApplicableError) as error:
            raise ManifestError(f"{path}: {error}") from error
        except OSError as error:
            raise NodeError(f"{out} cannot be written: {error}") from error
    return out


def _convert(read: list[Annotation], folder: PictureFolder, out: Path, strict: bool, as_json: bool) -> None:
    from grounding.sets.conversion import write_manifest

    account = write_manifest(read, folder, out, strict=strict)
    if as_json:
        print_json(account_document(account, out))
        return
    rows = [(name or "none", *sizes) for name, sizes in account.splits.items()]
    total = ("all", account.rows, account.images, account.patients)
    print_table(("SPLIT", "ROWS", "IMAGES", "PATIENTS"), [*rows, total])
    for line in account_lines(account):
        typer.echo(line)
    typer.echo(f"\nWritten to {out}")


def account_document(account: Account, out: Path) -> dict[str, object]:
    """Return what a conversion did as a JSON document."""
    counted = ("rows", "images", "patients")
    return {
        "manifest": str(out),
        **{name: getattr(account, name) for name in (*counted, "with_report", "shared_patients")},
        "splits": {name or "none": dict(zip(counted, sizes, strict=True)) for name, sizes in account.splits.items()},
        "missing": list(account.missing),
        "unreadable": list(account.unreadable),
        "empty_boxes": account.empty_boxes,
        **{name: getattr(account, name) for name in ("rows_left_out", "clipped", "resized")},
    }


def account_lines(account: Account) -> list[str]:
    """Return a sentence for everything about a conversion that its reader should know."""
    told = (
        (account.with_report, f"{account.with_report} rows have a report"),
        (account.clipped, f"{account.clipped} boxes were clipped to their image"),
        (account.resized, f"{account.resized} rows are of images stored in another size; their boxes follow"),
        (
            account.shared_patients,
            f"{account.shared_patients} patients stand both in train and in test: figures on this test are too good "
            "(training leaves out their train rows unless the recipe says split_unit: row)",
        ),
        (account.rows_left_out, f"{account.rows_left_out} rows were left out"),
    )
    return [line for count, line in told if count] + account.faults
