"""Splits: by patient from the name alone, or from lists; what is listed twice, or not at all."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grounding.sets.annotations import Annotation, AnnotationError
from grounding.sets.splits import assign_splits, patient_part, read_part, read_split_list

ONE, TWO = "00000001_000.png", "00000002_000.png"


def annotation(name: str, label: str = "Mass", **fields: str) -> Annotation:
    return Annotation(name, (name,), (1024, 1024), label.lower(), label, ((1, 1, 5, 5),), fields)


def write(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


@pytest.mark.parametrize(
    ("name", "part"),
    [("train", "train"), ("Validate", "val"), ("valid", "val"), (" TEST ", "test"), ("dev", None), (None, None)],
)
def test_names_of_splits(name: str | None, part: str | None) -> None:
    assert read_part(name) == part


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="must be train, val, test or dev, not 'holdout'"):
        read_part("holdout")


def test_patients_fall_seven_to_one_to_two_and_stay_where_they_are() -> None:
    parts = [patient_part(f"nih-{n:08d}") for n in range(5000)]
    shares = [parts.count(part) / 5000 for part in ("train", "val", "test")]
    assert shares == pytest.approx([0.7, 0.1, 0.2], abs=0.02)
    fixed = [patient_part(patient) for patient in ("nih-00000013", "nih-00000211", "rsna-x", "mimic-p10000032")]
    assert fixed == FIXED


FIXED = ["test", "train", "test", "train"]
"""A published manifest must come out the same in years to come."""


@given(st.lists(st.sampled_from([f"{n:08d}_{k:03d}.png" for n in range(40) for k in range(3)]), min_size=1))
def test_no_patient_is_in_two_parts(names: list[str]) -> None:
    rows = assign_splits([annotation(name, patient=f"nih-{name[:8]}") for name in names], "patient")
    where: dict[str, set[str]] = {}
    for row in rows:
        where.setdefault(row.fields["patient"], set()).add(row.fields["split"])
    assert all(len(parts) == 1 for parts in where.values()) and len(rows) == len(names)


def test_lists_named_after_their_split(tmp_path: Path) -> None:
    listed = read_split_list(
        [write(tmp_path, "gpt_train.txt", f"image\nimages/{ONE}\n\n"), write(tmp_path, "test_list.csv", f"{TWO},x\n")]
    )
    assert (listed.part(ONE, "Mass"), listed.part(TWO, "Mass"), listed.part("other.png", "Mass")) == (
        "train", "test", None,
    )  # fmt: skip
    assert listed.contested == 0


def test_a_picture_in_two_lists_is_held_back(tmp_path: Path) -> None:
    paths = [write(tmp_path, f"{part}.txt", f"{ONE}\n") for part in ("train", "test", "val")]
    listed = read_split_list(paths)
    assert (listed.part(ONE, "Mass"), listed.contested) == ("test", 1)


def test_a_table_may_tell_the_findings_of_a_picture_apart(tmp_path: Path) -> None:
    table = f"Image Index,Finding,Split\n{ONE},Mass,train\n{ONE},Nodule,test\n"
    listed = read_split_list([write(tmp_path, "lists.csv", table)])
    assert (listed.part(ONE, "mass"), listed.part(ONE, "Nodule"), listed.contested) == ("train", "test", 0)


def test_the_split_of_mimic_cxr_is_read_gzipped(tmp_path: Path) -> None:
    path = tmp_path / "mimic-cxr-2.0.0-split.csv.gz"
    path.write_bytes(gzip.compress(b"dicom_id,study_id,subject_id,split\n02aa-804e,50414267,10000032,validate\n"))
    assert read_split_list([path]).part("files/p10/p10000032/s50414267/02aa-804e.jpg", "Edema") == "val"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("names.txt", ONE, "names.txt, line 1: no column 'split', and the file's name does not say"),
        ("lists.csv", "picture,split\na,train\n", "lists.csv, line 1: no column that names a picture"),
        ("lists.csv", "image,split\na.png,holdout\n", "lists.csv, line 2, column 'split': must be train"),
        ("train.pth", "x", "train.pth is a pickled or packed file"),
        ("train.txt", "\n", "train.txt is empty"),
    ],
)
def test_a_list_that_says_nothing_is_refused(tmp_path: Path, name: str, text: str, reason: str) -> None:
    with pytest.raises(AnnotationError, match=reason):
        read_split_list([write(tmp_path, name, text)])


def test_the_split_that_is_not_used_stands_beside(tmp_path: Path) -> None:
    rows = [annotation(ONE, patient="nih-00000211", split="test")]
    (by_patient,) = assign_splits(rows, "patient")
    assert (by_patient.fields["split"], by_patient.fields["split_original"]) == ("train", "test")
    (original,) = assign_splits(rows, "original")
    assert (original.fields["split"], original.fields["split_patient"]) == ("test", "train")


def test_rows_that_no_list_names_are_left_out(tmp_path: Path) -> None:
    listed = read_split_list([write(tmp_path, "train.txt", ONE)])
    rows = [annotation(ONE), annotation(TWO)]
    assert [row.id for row in assign_splits(rows, "original", listed)] == [ONE]
    with pytest.raises(AnnotationError, match="name none of the pictures"):
        assign_splits(rows[1:], "original", listed)


def test_without_patients_the_published_split_is_used_or_none() -> None:
    (row,) = assign_splits([annotation("36199.png", split="test")], None)
    assert dict(row.fields) == {"split": "test"}
    (row,) = assign_splits([annotation("36199.png")], None)
    assert dict(row.fields) == {}
    with pytest.raises(AnnotationError, match=r"patient of 36199\.png is not known"):
        assign_splits([annotation("36199.png", split="test")], "patient")
