"""Annotations and pictures to manifests: each one reads back, and what was changed or left out is accounted for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from grounding.sets.annotations import XYWH, Annotation, AnnotationError
from grounding.sets.conversion import Account, PictureFolder, _fitted, write_manifest
from grounding.sets.manifest import ManifestError, load_image, read_manifest
from grounding.types import Box


def annotation(name: str, *boxes: XYWH, size: tuple[int, int] = (100, 80), **fields: str) -> Annotation:
    return Annotation(f"{name}-0", (f"{name}.png", f"{name}.dcm"), size, "lung mass", "Mass", boxes, fields)


def picture(folder: Path, name: str, size: tuple[int, int] = (100, 80)) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", size).save(folder / name)
    return folder / name


def test_a_manifest_reads_back_as_it_was_annotated(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "images_001" / "images", "a.png")
    fields = {"patient": "nih-1", "split": "train", "license": "NIH no restriction", "phrase_source": "label"}
    rows = [annotation("a", (10, 20, 30, 40.5), (1, 2, 3, 4), **fields), annotation("a", report="Clear.")]
    account = write_manifest(rows, PictureFolder(tmp_path / "images"), tmp_path / "sets" / "one.jsonl")
    first, second = read_manifest(tmp_path / "sets" / "one.jsonl")
    assert first.boxes == (Box(10, 20, 40, 60.5), Box(1, 2, 4, 6)) and first.present and not second.present
    assert (first.patient, first.split, first.license, first.phrase_source) == (
        "nih-1", "train", "NIH no restriction", "label",
    )  # fmt: skip
    assert (account.rows, account.images, account.patients, account.with_report, account.faults) == (2, 1, 1, 1, [])
    assert account.splits == {"train": (1, 1, 1), None: (1, 1, 0)}
    assert not json.loads((tmp_path / "sets" / "one.jsonl").read_text().splitlines()[0])["image"].startswith("/")


def test_boxes_follow_a_picture_of_another_size_and_are_clipped(tmp_path: Path) -> None:
    picture(tmp_path, "a.png", (50, 160))
    rows = [annotation("a", (10, 20, 30, 40)), annotation("a", (90, -10, 30, 40))]
    account = write_manifest(rows, PictureFolder(tmp_path), tmp_path / "one.jsonl")
    first, second = read_manifest(tmp_path / "one.jsonl")
    assert (first.boxes, second.boxes) == ((Box(5, 40, 20, 120),), (Box(45, 0, 50, 60),))
    assert (account.clipped, account.resized) == (1, 2)


def test_what_is_missing_unreadable_or_outside_is_left_out_and_named(tmp_path: Path) -> None:
    picture(tmp_path, "good.png")
    (tmp_path / "bad.png").write_text("no picture")
    rows = [annotation(name, (1, 1, 5, 5)) for name in ("good", "bad", "gone", "gone", *"abcdef")]
    rows += [annotation("good", (200, 1, 5, 5)), annotation("good", (1, 1, 0, 5), (1, 1, 2, 2))]
    out = tmp_path / "one.jsonl"
    account = write_manifest(rows, PictureFolder(tmp_path), out)
    assert [row.boxes for row in read_manifest(out)] == [(Box(1, 1, 6, 6),), (Box(1, 1, 3, 3),)]
    assert account.faults == [
        "7 pictures are missing: gone.png, a.png, b.png, c.png, d.png, …",
        "1 pictures cannot be read: bad.png",
        "2 boxes have no area in their picture: good-0, good-0",
    ]
    assert account.rows_left_out == 10
    before = out.read_bytes()
    with pytest.raises(AnnotationError, match=r"nothing is written.*7 pictures are missing"):
        write_manifest(rows[:3] * 2 + rows, PictureFolder(tmp_path), out, strict=True)
    assert out.read_bytes() == before


def test_a_set_without_any_picture_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match=r"no row is left .*1 pictures are missing: gone\.png"):
        write_manifest([annotation("gone", (1, 1, 5, 5))], PictureFolder(tmp_path), tmp_path / "one.jsonl")
    assert not (tmp_path / "one.jsonl").exists()
    with pytest.raises(AnnotationError, match="there is no folder of pictures"):
        PictureFolder(tmp_path / "nowhere")


def test_patients_in_train_and_test_are_counted(tmp_path: Path) -> None:
    picture(tmp_path, "a.png")
    rows = [annotation("a", patient=patient, split=split) for patient, split in
            [("p", "train"), ("p", "test"), ("q", "train"), ("r", "test")]]  # fmt: skip
    assert write_manifest(rows, PictureFolder(tmp_path), tmp_path / "one.jsonl").shared_patients == 1


def test_dicom_goes_to_the_functions_that_were_passed(tmp_path: Path) -> None:
    (tmp_path / "a.dcm").write_bytes(bytes(128) + b"DICM")
    account = write_manifest(
        [annotation("a", (1, 1, 5, 5))],
        PictureFolder(tmp_path, read_dicom_size=lambda path: (100, 80)),
        tmp_path / "one.jsonl",
    )
    (row,) = read_manifest(tmp_path / "one.jsonl")
    assert (row.image.name, row.width, account.faults) == ("a.dcm", 100, [])
    with pytest.raises(ManifestError, match=r"nothing here reads DICOM; .*knowmvg dataset rsna --png"):
        load_image(row.image)
    made = picture(tmp_path / "png", "a.png")
    write_manifest(
        [annotation("a")], PictureFolder(tmp_path, deep=False, prepare=lambda path: made), tmp_path / "two.jsonl"
    )
    assert read_manifest(tmp_path / "two.jsonl")[0].image == tmp_path / "png" / "a.png"


def test_a_manifest_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    picture(tmp_path, "a.png")
    (tmp_path / "file").touch()
    with pytest.raises(AnnotationError, match=r"cannot be written to .*one\.jsonl"):
        write_manifest([annotation("a")], PictureFolder(tmp_path), tmp_path / "file" / "one.jsonl")


@given(
    st.tuples(st.floats(-50, 1100), st.floats(-50, 1100), st.floats(0, 1200), st.floats(0, 1200)),
    st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
)
@example((1044.28, 0.0, 10.0, 10.0), (2013, 2013))  # outside: start and negative length add up to more than the width
def test_a_box_is_always_one_that_a_manifest_may_hold(box: XYWH, size: tuple[int, int]) -> None:
    fitted = _fitted(annotation("a", size=(1024, 1024)), box, size, Account())
    if fitted is not None:
        x, y, w, h = fitted
        assert x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= size[0] and y + h <= size[1]
