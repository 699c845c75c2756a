"""Manifests in training: splits are kept, patients are not shared, memory is bounded, and a wrong row is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImage

from grounding.sets.manifest import ManifestError
from grounding.training.examples import RealImage
from grounding.training.material import PictureFile, fold_patients, held_out, load_real, picture_side
from grounding.training.recipe import RealSettings
from grounding.types import Image


def row(number: int, patient: str | None, split: str | None = None, **changes: Any) -> dict[str, Any]:
    """A row of a picture of its own."""
    fields = {
        "id": f"row-{number}", "image": f"{number}.png", "width": 60, "height": 40, "phrase": "lung mass",
        "boxes": [[6, 4, 12, 8]], "present": True, "label": "Mass", "license": "CC BY", "phrase_source": "label",
    }  # fmt: skip
    named = {"patient": patient, "split": split}
    return fields | {name: value for name, value in named.items() if value} | changes


def write_set(folder: Path, *rows: dict[str, Any], name: str = "set.jsonl") -> None:
    for one in rows:
        if not (folder / one["image"]).exists():
            grey = np.full((one["height"], one["width"]), 100, np.uint8)
            PilImage.fromarray(grey).save(folder / one["image"])
    (folder / name).write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")


def load(folder: Path, *names: str, canvas: int = 64, **changes: Any) -> tuple[list[RealImage], list[RealImage]]:
    settings = RealSettings(root=folder, manifests=list(names or ["set.jsonl"]), validation_share=0.34)
    return load_real(settings.model_copy(update=changes), canvas)


def patients(images: list[RealImage]) -> list[str]:
    return [image.patient for image in images]


def test_the_splits_of_a_manifest_are_kept(tmp_path: Path) -> None:
    write_set(tmp_path, row(1, "a-1", "train"), row(2, "a-2", "val"), row(3, "a-3", "test"), row(4, "a-4", "train"))
    training, validation = load(tmp_path)
    assert (patients(training), patients(validation)) == (["a-1", "a-4"], ["a-2"])


def test_all_rows_of_a_test_patient_are_left_out_unless_the_split_is_taken_as_it_is(tmp_path: Path) -> None:
    write_set(tmp_path, row(1, "a-1", "train"), row(2, "a-1", "test"), row(3, "a-2", "train"), row(4, "a-3", "val"))
    write_set(tmp_path, row(5, "a-1"), row(6, "a-3"), name="other.jsonl")
    training, validation = load(tmp_path, "set.jsonl", "other.jsonl")
    assert (patients(training), patients(validation)) == (["a-2"], ["a-3", "a-3"])
    training, validation = load(tmp_path, split_unit="row")
    assert (patients(training), patients(validation)) == (["a-1", "a-2"], ["a-3"])


def test_one_picture_on_both_sides_of_a_published_split_keeps_its_rows_apart(tmp_path: Path) -> None:
    rows = [row(1, "a-1", "train"), row(1, "a-1", "test", phrase="lung nodule"), row(2, "a-2", "val")]
    write_set(tmp_path, *rows)
    training, _ = load(tmp_path, split_unit="row")
    assert [real.phrase for image in training for real in image.rows] == ["lung mass"]


def test_without_val_patients_are_held_out_of_train_but_never_of_test(tmp_path: Path) -> None:
    rows = [row(n, f"a-{n}", "train") for n in range(6)] + [row(6, "a-6", "test")]
    write_set(tmp_path, *rows)
    training, validation = load(tmp_path)
    expected = held_out([f"a-{n}" for n in range(6)], 0.34)
    assert set(patients(validation)) == expected and len(expected) == 2
    assert set(patients(training)) == {f"a-{n}" for n in range(6)} - expected


def test_dev_is_no_split(tmp_path: Path) -> None:
    write_set(tmp_path, *(row(n, f"a-{n}", "dev") for n in range(6)))
    training, validation = load(tmp_path)
    assert (len(training), len(validation)) == (4, 2)


def test_an_unknown_split_is_named_rather_than_trained_on(tmp_path: Path) -> None:
    write_set(tmp_path, row(1, "a-1"), row(2, "a-2", "holdout"))
    with pytest.raises(ManifestError, match=r"set\.jsonl, row 'row-2', field 'split': must be train, val, test or dev"):
        load(tmp_path)


def test_patients_that_stand_alone_in_their_set_are_held_out_together() -> None:
    names = [f"p1000{n}" for n in range(30)]
    assert 3 <= len(held_out(names, 0.15)) <= 6
    assert all(5 <= len(fold) <= 10 for fold in fold_patients(names, 4))
    known = [f"x-{n}" for n in range(20)]
    assert held_out([*known, "y-1"], 0.15) == held_out(known, 0.15)


def test_a_picture_without_a_patient_counts_as_one(tmp_path: Path) -> None:
    write_set(tmp_path, *(row(n, None) for n in range(6)))
    training, validation = load(tmp_path)
    assert sorted(patients(training) + patients(validation)) == [str(n) for n in range(6)]
    assert validation


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image": "gone.png"}, r"line 2, field 'image': no such file: .*gone\.png"),
        ({"boxes": [[50, 4, 12, 8]]}, "line 2, field 'boxes': .* lies outside the image of 60 x 40 pixels"),
        ({"boxes": [[6, float("nan"), 12, 8]]}, "line 2, field 'boxes': a box must be four finite numbers"),
        ({"boxes": [[6, 10**400, 12, 8]]}, "line 2, field 'boxes': a box must be four finite numbers"),
        ({"width": 10**400}, "line 2, field 'width': must be 1 to"),
        ({"width": "60"}, "line 2, field 'width': must be a whole number"),
        ({"image": "bad.png"}, r"row 'row-2': cannot read the picture .*bad\.png"),
        ({"image": "film.dcm"}, r"row 'row-2': .*film\.dcm is a DICOM file, and nothing here reads DICOM"),
        ({"width": 61}, "row 'row-2': .* has 60 x 40 pixels, and the manifest says 61 x 40"),
        ({"image": "1.png", "width": 80}, "row 'row-2': .*the manifest says 80 x 40"),
    ],
)
@pytest.mark.parametrize("memory_gb", [1.2, 0])
def test_bad_input_is_named_before_training_begins(
    tmp_path: Path, change: dict[str, Any], reason: str, memory_gb: float
) -> None:
    write_set(tmp_path, row(1, "a-1"), row(2, "a-1"))
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "film.dcm").write_bytes(bytes(128) + b"DICM")
    rows = [row(1, "a-1"), row(2, "a-1") | change]
    (tmp_path / "set.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    with pytest.raises(ManifestError, match=reason):
        load(tmp_path, memory_gb=memory_gb)


def test_pictures_are_bytes_at_a_side_that_follows_the_canvas(tmp_path: Path) -> None:
    write_set(tmp_path, row(1, "a-1"))
    for canvas, side in ((64, 320), (256, 320), (512, 640), (1000, 1250)):
        assert picture_side(canvas) == side
    ((image,), _) = load(tmp_path, canvas=512)
    assert isinstance(image.pixels, np.ndarray)
    assert (image.pixels.dtype, image.pixels.shape) == (np.uint8, (640, 640))
    np.testing.assert_allclose(image.image, 100 / 255, atol=1e-6)
    assert image.rows[0].boxes == ((0.2, 0.2, 0.2, 0.2),)


def test_pictures_beyond_the_memory_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    write_set(tmp_path, row(1, "a-1"), row(2, "a-2"), row(3, "a-3"))
    kept, _ = load(tmp_path, validation_share=0)
    some, _ = load(tmp_path, validation_share=0, memory_gb=2 * 320 * 320 / 1e9)
    assert [isinstance(image.pixels, PictureFile) for image in some] == [False, False, True]
    for one, other in zip(kept, some, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
    (tmp_path / "3.png").write_bytes(b"")
    with pytest.raises(ManifestError, match=r"row 'row-3': cannot read the picture .*3\.png"):
        _ = some[2].image


def test_ten_thousand_pictures_fit_into_the_default_memory() -> None:
    settings = RealSettings(root=Path(), manifests=[])
    assert 10_000 * picture_side(256) ** 2 <= settings.memory_gb * 1e9 <= 1.5e9


def test_dicom_pictures_go_to_a_reader(tmp_path: Path) -> None:
    write_set(tmp_path, row(1, "a-1"))
    (tmp_path / "1.png").write_bytes(bytes(128) + b"DICM")

    def read_dicom(path: Path) -> Image:
        assert path == tmp_path / "1.png"
        return np.full((40, 60), 0.25, np.float32)

    for memory_gb in (1.2, 0):
        settings = RealSettings(root=tmp_path, manifests=["set.jsonl"], memory_gb=memory_gb)
        ((image,), _) = load_real(settings, 64, read_dicom)
        np.testing.assert_allclose(image.image, 0.25, atol=0.5 / 255)


def test_rows_without_a_stated_licence_need_licences_any(tmp_path: Path) -> None:
    write_set(tmp_path, row(1, "a-1", license="PhysioNet Credentialed Health Data License 1.5.0"), row(2, "a-2"))
    assert patients(load(tmp_path, validation_share=0)[0]) == ["a-2"]
    assert patients(load(tmp_path, validation_share=0, licences="any")[0]) == ["a-1", "a-2"]


def test_a_normal_picture_of_chestx_det_has_none_of_its_findings(tmp_path: Path) -> None:
    normal = {"phrase": "no finding", "boxes": [], "present": False}
    write_set(
        tmp_path,
        row(1, "a-1", **normal, label="No finding (13 ChestX-Det classes)"),
        row(2, "a-2", **normal, label="No finding"),
    )
    ((image,), _) = load(tmp_path)
    assert {real.phrase for real in image.rows} >= {"pneumothorax", "lung mass"}
    assert not any(real.boxes for real in image.rows)


def test_an_absent_manifest_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_set(tmp_path, row(1, "a-1"))
    load(tmp_path, "set.jsonl", "gone.jsonl")
    assert "gone.jsonl" in caplog.text
