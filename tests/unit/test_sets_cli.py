"""`knowmvg dataset`: from the published files to a manifest, what it prints, and how it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dicom_node.cli import main
from dicom_node.cli.datasets import make_png, read_dicom_size
from grounding.sets.manifest import ManifestError, load_image, read_manifest
from tests.builders import make_cxr_dataset, write

Run = Callable[..., tuple[int, str, str]]

BOXES = """Image Index,Finding Label,Bbox [x,y,w,h],,,
00000211_000.png,Mass,100,100,200,200,,,
00000013_000.png,Nodule,800,900,20,20,,,
00000013_001.png,Nodule,800,900,20,20,,,
"""


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command line in a folder with pictures; return its exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    for name in ("00000211_000.png", "00000013_000.png"):
        Image.new("L", (1024, 1024)).save(tmp_path / "images" / name)
    (tmp_path / "boxes.csv").write_text(BOXES, encoding="utf-8")

    def _run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["knowmvg", "dataset", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        written = capsys.readouterr()
        return int(caught.value.code or 0), written.out, written.err

    return _run


RAY8 = ("chestx-ray8", "--annotations", "boxes.csv", "--images", "images", "--out", "sets/ray8.jsonl")


@pytest.mark.parametrize("name", ["ms-cxr", "chestx-ray8", "chestx-det", "rsna"])
def test_every_set_explains_itself(run: Run, name: str) -> None:
    status, out, _ = run(name, "--help")
    assert status == 0
    for option in ("--images", "--out", "--strict"):
        assert option in out
    if name == "chestx-ray8":
        assert "where the true box is" in " ".join(out.split())


def test_chestx_ray8_prints_splits_and_what_is_missing(run: Run, tmp_path: Path) -> None:
    status, out, err = run(*RAY8)
    assert (status, err) == (0, "")
    assert [line.split() for line in out.splitlines()[:4]] == [
        ["SPLIT", "ROWS", "IMAGES", "PATIENTS"], ["test", "1", "1", "1"], ["train", "1", "1", "1"],
        ["all", "2", "2", "2"],
    ]  # fmt: skip
    assert "1 pictures are missing: 00000013_001.png" in out
    mass, nodule = read_manifest(tmp_path / "sets" / "ray8.jsonl")
    assert (mass.phrase, nodule.phrase) == ("Mass, position: right top", "Nodule, position: left bottom")
    assert mass.image.samefile(tmp_path / "images" / "00000211_000.png")


def test_json_says_the_same(run: Run) -> None:
    status, out, _ = run(*RAY8, "--json", "--phrases", "finding")
    document = json.loads(out)
    assert status == 0
    assert document["missing"] == ["00000013_001.png"]
    assert document["splits"]["test"] == {"rows": 1, "images": 1, "patients": 1}


def test_strict_fails_and_writes_nothing(run: Run, tmp_path: Path) -> None:
    status, out, err = run(*RAY8, "--strict")
    assert (status, out) == (1, "")
    assert err.startswith("knowmvg: nothing is written") and "00000013_001.png" in err
    assert not (tmp_path / "sets" / "ray8.jsonl").exists()


def test_the_original_split_comes_from_a_list(run: Run, tmp_path: Path) -> None:
    status, _, err = run(*RAY8, "--split", "original")
    assert status == 2 and "--list" in err
    (tmp_path / "val.txt").write_text("00000211_000.png\n00000013_001.png\n")
    (tmp_path / "test.txt").write_text("00000211_000.png\n")
    status, _, err = run(*RAY8, "--split", "original", "--list", "val.txt", "--list", "test.txt")
    assert status == 0
    assert "1 images are listed in several splits" in err and "1 rows are left out: no list names" in err
    fields = json.loads((tmp_path / "sets" / "ray8.jsonl").read_text())
    assert (fields["split"], fields["split_patient"]) == ("test", "train")


def test_a_pickled_list_is_refused_in_one_sentence(run: Run, tmp_path: Path) -> None:
    (tmp_path / "train.pth").write_bytes(b"\x80\x04.")
    status, out, err = run(*RAY8, "--list", "train.pth")
    assert (status, out) == (1, "")
    assert err.startswith("knowmvg: train.pth is a pickled or packed file, which is not opened")


def test_another_file_is_refused_in_one_sentence(run: Run) -> None:
    status, _, err = run("rsna", *RAY8[1:])
    assert status == 1
    assert err == (
        "knowmvg: boxes.csv, line 1: column 'patientId' is missing; this is not the labels of the RSNA challenge "
        "(stage_2_train_labels.csv)\n"
    )


def test_chestx_det_keeps_train_and_test(run: Run, tmp_path: Path) -> None:
    for name in ("36199.png", "36200.png"):
        Image.new("L", (512, 512)).save(tmp_path / "images" / name)
    entry = {"file_name": "36199.png", "syms": ["Nodule"], "boxes": [[100, 100, 200, 300]], "polygons": [[]]}
    (tmp_path / "a.json").write_text(json.dumps([entry]))
    (tmp_path / "b.json").write_text(json.dumps([entry | {"file_name": "36200.png", "syms": [], "boxes": []}]))
    files = ("--train", "a.json", "--test", "b.json")
    status, out, _ = run("chestx-det", *files, "--images", "images", "--out", "det.jsonl")
    assert status == 0 and "stored in another size" in out
    nodule, normal = read_manifest(tmp_path / "det.jsonl")
    assert (nodule.split, nodule.boxes[0].xyxy, normal.split, normal.present) == (
        "train", (50, 50, 100, 150), "test", False,
    )  # fmt: skip
    assert run("chestx-det", "--images", "images", "--out", "det.jsonl")[0] == 2


def test_ms_cxr_with_reports(run: Run, tmp_path: Path) -> None:
    study = "files/p10/p10000032/s50414267"
    for folder in ("images", "reports"):
        (tmp_path / folder / study).mkdir(parents=True)
    Image.new("L", (1000, 800)).save(tmp_path / "images" / study / "02aa.jpg")
    (tmp_path / "reports" / f"{study}.txt").write_text("FINAL REPORT\nFINDINGS: Small effusion.\nINDICATION: Fever.")
    (tmp_path / "mscxr.csv").write_text(
        "category_name,label_text,path,x,y,w,h,dicom_id,image_width,image_height\n"
        f"Pleural Effusion,small effusion,{study}/02aa.jpg,1,2,30,40,02aa,1000,800\n"
    )
    arguments = ("--annotations", "mscxr.csv", "--images", "images", "--out", "mscxr.jsonl", "--reports", "reports")
    status, out, _ = run("ms-cxr", *arguments)
    assert status == 0 and "1 rows have a report" in out
    (row,) = read_manifest(tmp_path / "mscxr.jsonl")
    assert (row.report, row.split, row.patient) == ("Small effusion.", None, "mimic-p10000032")


def test_rsna_reads_the_size_of_dicom_files_and_makes_png(run: Run, tmp_path: Path) -> None:
    write(make_cxr_dataset(), tmp_path / "images" / "one.dcm")
    (tmp_path / "images" / "two.dcm").write_text("damaged")
    (tmp_path / "labels.csv").write_text(
        "patientId,x,y,width,height,Target\none,512,0,512,512,1\ntwo,1,1,5,5,1\nthree,,,,,0\n"
    )
    arguments = ("rsna", "--annotations", "labels.csv", "--images", "images", "--out", "rsna.jsonl")
    status, out, _ = run(*arguments)
    assert status == 0 and "1 pictures cannot be read: two.png" in out
    (row,) = read_manifest(tmp_path / "rsna.jsonl")
    assert (row.width, row.height, row.boxes[0].xyxy) == (96, 140, (48, 0, 96, 70))
    assert run(*arguments, "--png", "png")[0] == 0
    (row,) = read_manifest(tmp_path / "rsna.jsonl")
    assert row.image == tmp_path / "png" / "one.png"
    assert load_image(row.image).shape == (140, 96)


def test_png_is_what_the_node_sees_and_is_made_once(tmp_path: Path) -> None:
    from dicom_node.cli.evaluation import read_radiograph

    path = write(make_cxr_dataset(), tmp_path / "one.dcm")
    made = make_png(path, tmp_path / "png")
    np.testing.assert_allclose(load_image(made), read_radiograph(path), atol=0.5 / 255 + 1e-6)
    made.write_bytes(b"kept")
    assert make_png(path, tmp_path / "png").read_bytes() == b"kept"
    Image.new("L", (3, 2)).save(tmp_path / "plain.png")
    assert make_png(tmp_path / "plain.png", tmp_path / "png") == tmp_path / "plain.png"


def test_dicom_without_a_picture_is_named(tmp_path: Path) -> None:
    ds = make_cxr_dataset()
    del ds.Rows
    with pytest.raises(ManifestError, match=r"one\.dcm has no Rows and Columns"):
        read_dicom_size(write(ds, tmp_path / "one.dcm"))
