"""`knowmvg ground` as a user runs it, with the shipped model, on generated and on real radiographs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PilImage
from pydicom import dcmread

from dicom_node.results.reading import read_boxes
from grounding.phantoms.study import make_study
from tests.builders import make_report_dataset, write

ROOT = Path(__file__).parents[2]
RADIOGRAPHS = ROOT.parent / "shared" / "data" / "dicom" / "cxr"

CONTRACT_KEYS = {"phrase", "source", "image", "boxes", "localized", "negated", "finding", "site", "uncertainty"}


def run_ground(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `knowmvg ground` with the built-in defaults."""
    command = [sys.executable, "-m", "dicom_node.cli", "ground", *map(str, arguments)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("KNOWMVG__")}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def check_document(document: dict[str, Any], text: str | None) -> None:
    """Check what the contract promises of any findings.json."""
    assert set(document) == {"model", "study_instance_uid", "images", "findings", "dropped_phrases"}
    assert len(document["model"]["sha256"]) == 64
    for finding in document["findings"]:
        assert set(finding) == CONTRACT_KEYS
        image = document["images"][finding["image"]]
        assert finding["localized"] == bool(finding["boxes"])
        for box in finding["boxes"]:
            x1, y1, x2, y2 = box["xyxy"]
            assert 0 <= x1 < x2 <= image["columns"]
            assert 0 <= y1 < y2 <= image["rows"]
            assert 0 <= box["score"] <= 1
        if text is not None and finding["source"] is not None:
            assert text[finding["source"]["start"] : finding["source"]["end"]] == finding["phrase"]


def test_a_picture_and_a_text_give_findings_at_their_place(tmp_path: Path) -> None:
    study = make_study(900_019, shape=(576, 480))
    PilImage.fromarray(np.rint(study.image * 255).astype(np.uint8)).save(tmp_path / "image.png")
    text = study.report.text
    (tmp_path / "report.txt").write_text(text, encoding="utf-8")
    done = run_ground(
        *("--image", tmp_path / "image.png", "--report", tmp_path / "report.txt", "--out", tmp_path / "out", "--json")
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document == json.loads((tmp_path / "out" / "findings.json").read_text())
    assert document["images"] == [{"sop_instance_uid": None, "rows": 576, "columns": 480}]
    check_document(document, text)
    assert any(finding["localized"] for finding in document["findings"])
    assert any(finding["negated"] for finding in document["findings"])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["findings.json", "overlay.png"]


@pytest.mark.parametrize("name", ["NIH-DX-11129.dcm", "CR-MONO1-10-chest.dcm"])
def test_a_real_radiograph_gives_results_in_its_own_study(tmp_path: Path, name: str) -> None:
    if not (RADIOGRAPHS / name).is_file():
        pytest.skip(f"{name} is not at hand")
    image = dcmread(RADIOGRAPHS / name, force=True)  # one of them has no preamble
    patient = image.get("PatientID", "")
    text = "Findings: Small left pleural effusion. No pneumothorax."
    report = make_report_dataset(text, image=image, PatientID=patient)
    write(report, tmp_path / "report.dcm")
    done = run_ground(
        *("--image", RADIOGRAPHS / name, "--report", tmp_path / "report.dcm", "--out", tmp_path / "out"),
    )
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "out" / "findings.json").read_text())
    check_document(document, None)
    assert document["images"] == [
        {"sop_instance_uid": image.SOPInstanceUID, "rows": image.Rows, "columns": image.Columns}
    ]
    sr = dcmread(tmp_path / "out" / "result.sr.dcm")
    assert (sr.StudyInstanceUID, sr.PatientID) == (image.StudyInstanceUID, patient)
    boxes = [tuple(box["xyxy"]) for finding in document["findings"] for box in finding["boxes"]]
    assert [found.box.xyxy for found in read_boxes(sr)] == [pytest.approx(box, abs=0.01) for box in boxes]


def test_a_file_that_is_no_image_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "report.txt").write_text("Findings: Nodule.")
    done = run_ground(
        *("--image", tmp_path / "report.txt", "--report", tmp_path / "report.txt", "--out", tmp_path / "out", "--json")
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("knowmvg: cannot read the picture")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
