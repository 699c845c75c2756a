"""`knowmvg demo` as a user runs it: everything arrives and agrees, or it says what did not; nothing is left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image as PilImage
from pydicom import dcmread

from dicom_node.results.reading import read_boxes

ROOT = Path(__file__).parents[2]


def run_demo(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the demonstration with its temporary files under `folder`/tmp and its results in `folder`/out."""
    (folder / "tmp").mkdir()
    return subprocess.run(
        [sys.executable, "-m", "dicom_node.cli", "demo", "--out", str(folder / "out")],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.timeout(400)
def test_the_demonstration_delivers_results_that_agree(tmp_path: Path) -> None:
    done = run_demo(tmp_path)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if "DELIVERED" in line]
    document = json.loads((tmp_path / "out" / "findings.json").read_text())
    boxes = [tuple(box["xyxy"]) for finding in document["findings"] for box in finding["boxes"]]
    assert boxes
    assert any(finding["negated"] for finding in document["findings"])
    for finding in document["findings"]:
        assert finding["phrase"] in done.stdout
    for name in ("result.sr.dcm", "result.gsps.dcm"):
        ds = dcmread(tmp_path / "out" / name)
        assert ds.StudyInstanceUID == document["study_instance_uid"]
        read = sorted(found.box.xyxy for found in read_boxes(ds))
        assert read == [pytest.approx(box, abs=0.01) for box in sorted(boxes)]
    with PilImage.open(tmp_path / "out" / "overlay.png") as picture:
        assert picture.height >= document["images"][0]["rows"]
    assert list((tmp_path / "tmp").glob("knowmvg-*")) == []


@pytest.mark.timeout(200)
def test_a_demonstration_that_fails_says_why_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = run_demo(tmp_path, KNOWMVG__MODEL__PATH=str(tmp_path / "no-model"))
    assert done.returncode == 1
    assert "no-model" in done.stderr
    assert "FAILED" in done.stderr
    assert "Traceback" not in done.stderr.splitlines()[-1]
    assert list((tmp_path / "tmp").glob("knowmvg-*")) == []
    assert not (tmp_path / "out").exists()
