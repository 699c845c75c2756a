"""Manifests: every field is read, every fault is named with line and field; pictures of all usual kinds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage

from grounding.phantoms.study import make_study
from grounding.sets.manifest import ManifestError, load_image, read_manifest, read_size, write_phantom_set
from grounding.types import Box, Image

REAL = Path(__file__).parents[3] / "shared" / "data" / "grounding"
ROW = {
    "id": "one", "image": "a.png", "width": 20, "height": 10, "phrase": "small nodule", "boxes": [[1, 2, 3, 4.5]],
    "present": True, "report": "Small nodule.", "label": "nodule", "patient": "p", "split": "dev", "quality": "good",
    "license": "CC BY", "phrase_source": "report",
}  # fmt: skip


def write_manifest(folder: Path, *rows: object) -> Path:
    PilImage.new("L", (20, 10)).save(folder / "a.png")
    path = folder / "set.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_row_is_read_with_boxes_as_corners(tmp_path: Path) -> None:
    (row,) = read_manifest(write_manifest(tmp_path, ROW, ""))
    assert row.boxes == (Box(1, 2, 4, 6.5),)
    assert (row.id, row.image, row.width, row.height) == ("one", tmp_path / "a.png", 20, 10)
    assert (row.phrase, row.present, row.report, row.label) == ("small nodule", True, "Small nodule.", "nodule")
    assert (row.patient, row.split, row.quality) == ("p", "dev", "good")
    assert (row.license, row.phrase_source) == ("CC BY", "report")


def test_optional_fields_may_be_left_out_or_empty(tmp_path: Path) -> None:
    needed = {key: ROW[key] for key in ("id", "image", "width", "height", "phrase", "boxes", "present")}
    (row,) = read_manifest(write_manifest(tmp_path, needed | {"report": ""}))
    assert (row.report, row.label, row.patient, row.split, row.quality) == (None,) * 5
    assert (row.license, row.phrase_source) == (None, None)


@pytest.mark.parametrize(
    ("fault", "field"),
    [
        ({"image": "missing.png"}, "image"),
        ({"image": ""}, "image"),
        ({"image": "x" * 5000}, "image"),
        ({"image": "a\0.png"}, "image"),
        ({"boxes": [[15, 2, 6, 3]]}, "boxes"),
        ({"boxes": [[-1, 2, 3, 3]]}, "boxes"),
        ({"boxes": [[1, 2, 0, 3]]}, "boxes"),
        ({"boxes": [[1, 2, 3]]}, "boxes"),
        ({"boxes": [[1, 2, 3, "4"]]}, "boxes"),
        ({"boxes": [[1, 2, 3, float("nan")]]}, "boxes"),
        ({"boxes": [[1, 2, True, 3]]}, "boxes"),
        ({"boxes": [[1, 2, 10**400, 3]]}, "boxes"),
        ({"boxes": [[1, 2, float("inf"), 3]]}, "boxes"),
        ({"boxes": [1, 2, 3, 4]}, "boxes"),
        ({"boxes": []}, "boxes"),
        ({"boxes": "1 2 3 4"}, "boxes"),
        ({"present": False}, "boxes"),
        ({"present": "yes"}, "present"),
        ({"width": 0}, "width"),
        ({"width": 10**400}, "width"),
        ({"width": True}, "width"),
        ({"license": 4}, "license"),
        ({"height": 10.5}, "height"),
        ({"phrase": " "}, "phrase"),
        ({"phrase": 3}, "phrase"),
        ({"id": None}, "id"),
        ({"report": 5}, "report"),
    ],
)
def test_fault_is_named_with_line_and_field(tmp_path: Path, fault: dict[str, object], field: str) -> None:
    path = write_manifest(tmp_path, ROW, ROW | fault)
    with pytest.raises(ManifestError, match=rf"set\.jsonl, line 2, field '{field}'"):
        read_manifest(path)


@pytest.mark.parametrize("field", ["id", "image", "width", "height", "phrase", "boxes", "present"])
def test_missing_field_is_named(tmp_path: Path, field: str) -> None:
    row = {key: value for key, value in ROW.items() if key != field}
    with pytest.raises(ManifestError, match=f"line 1, field '{field}': is missing"):
        read_manifest(write_manifest(tmp_path, row))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{broken", "not JSON"),
        ("[1, 2]", "a JSON object, not list"),
        ("[" * 100_000, "cannot be read as JSON"),
        ('{"id": ' + "1" * 5000 + "}", "cannot be read as JSON"),
    ],
)
def test_broken_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    with pytest.raises(ManifestError, match=f"line 2: .*{reason}"):
        read_manifest(write_manifest(tmp_path, ROW, line))


def test_a_line_separator_inside_a_text_parts_no_line(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, json.dumps(ROW | {"report": "one\u2028two"}, ensure_ascii=False))
    assert read_manifest(path)[0].report == "one\u2028two"


def test_size_is_read_from_the_header(tmp_path: Path) -> None:
    PilImage.new("L", (20, 10)).save(tmp_path / "a.png")
    assert read_size(tmp_path / "a.png") == (20, 10)
    (tmp_path / "b.dcm").write_bytes(bytes(128) + b"DICM")
    assert read_size(tmp_path / "b.dcm", lambda path: (3, 4)) == (3, 4)
    for name, reason in (("b.dcm", "nothing here reads DICOM"), ("set.jsonl", "cannot read the picture")):
        (tmp_path / "set.jsonl").write_text("no picture", encoding="utf-8")
        with pytest.raises(ManifestError, match=reason):
            read_size(tmp_path / name)


def test_empty_missing_and_binary_manifests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="has no rows"):
        read_manifest(write_manifest(tmp_path, "", " "))
    with pytest.raises(ManifestError, match=r"cannot read the manifest .*nowhere"):
        read_manifest(tmp_path / "nowhere.jsonl")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match="cannot read the manifest"):
        read_manifest(tmp_path / "binary.jsonl")


def save(folder: Path, pixels: np.ndarray, name: str = "x.png") -> Path:
    PilImage.fromarray(pixels).save(folder / name)
    return folder / name


def test_eight_bit_grey_keeps_its_levels(tmp_path: Path) -> None:
    image = load_image(save(tmp_path, np.array([[0, 51], [102, 255]], np.uint8)))
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, [[0, 0.2], [0.4, 1]], atol=1e-6)


def test_sixteen_bit_grey_is_stretched(tmp_path: Path) -> None:
    image = load_image(save(tmp_path, np.array([[1000, 2000], [3000, 3000]], np.uint16)))
    np.testing.assert_allclose(image, np.array([[0, 0.5], [1, 1]]), atol=1e-6)


def test_constant_sixteen_bit_picture_is_black(tmp_path: Path) -> None:
    assert not load_image(save(tmp_path, np.full((4, 4), 700, np.uint16))).any()


def test_colour_becomes_luminance(tmp_path: Path) -> None:
    colours = np.array([[[255, 255, 255], [255, 0, 0]]], np.uint8)
    np.testing.assert_allclose(load_image(save(tmp_path, colours)), [[1, 0.298]], atol=0.01)


def test_jpeg_is_read(tmp_path: Path) -> None:
    grey = np.full((16, 24), 128, np.uint8)
    np.testing.assert_allclose(load_image(save(tmp_path, grey, "x.jpg")), grey / 255, atol=0.02)


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n broken"])
def test_file_that_is_no_picture_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "odd.png").write_bytes(content)
    with pytest.raises(ManifestError, match=r"odd\.png"):
        load_image(tmp_path / "odd.png")


def test_truncated_picture_is_refused(tmp_path: Path) -> None:
    whole = save(tmp_path, np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ManifestError, match=r"cut\.png"):
        load_image(tmp_path / "cut.png")


def test_dicom_goes_to_the_reader_that_was_passed(tmp_path: Path) -> None:
    path = tmp_path / "instance"
    path.write_bytes(bytes(128) + b"DICM")

    def read_dicom(asked: Path) -> Image:
        assert asked == path
        return np.ones((2, 3), np.float32)

    assert load_image(path, read_dicom).shape == (2, 3)
    with pytest.raises(ManifestError, match="nothing here reads DICOM"):
        load_image(path)


def test_phantom_set_reads_back_as_it_was_made(tmp_path: Path) -> None:
    seeds = [1, 2, 3]
    rows = read_manifest(write_phantom_set(tmp_path, seeds, 96))
    studies = [make_study(seed, 96) for seed in seeds]
    expected = [phrase for study in studies for phrase in study.phrases]
    assert [(row.phrase, row.boxes, row.present) for row in rows] == [(p.phrase, p.boxes, p.present) for p in expected]
    assert {row.report for row in rows} == {study.report.text for study in studies}
    np.testing.assert_allclose(load_image(rows[0].image), studies[0].image, atol=0.5 / 255 + 1e-6)


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared sets are not here")
def test_real_sets_are_read() -> None:
    manifests = sorted(REAL.glob("*/*.jsonl"))
    assert manifests
    for manifest in manifests:
        rows = read_manifest(manifest)
        image = load_image(rows[0].image)
        assert image.shape == (rows[0].height, rows[0].width)
