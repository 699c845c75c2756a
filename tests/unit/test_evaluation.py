"""The table of an evaluation, and how pictures are read for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dicom_node.cli.evaluation import figure_rows, progress_bar, read_radiograph
from dicom_node.errors import NodeError
from tests.builders import make_cxr_dataset, write

ANSWER = {
    "protocol": "free",
    "n": 3,
    "ap50": 0.7514,
    "ap50_ci": [0.5, 1.0],
    "by_label": {"nodule": {"n": 2, "miou": 0.5}, "mass": {"n": 1, "miou": 0.25}},
    "no_box_rate": None,
    "blind": {"n": 3, "ap50": 0.1, "by_label": {"nodule": {"n": 2, "miou": 0.125}}},
}


def test_each_figure_stands_beside_its_control() -> None:
    assert figure_rows(ANSWER) == [
        ["protocol", "free", None, None],
        ["n", 3, None, 3],
        ["ap50", "0.751", "0.500 to 1.000", "0.100"],
        ["no_box_rate", None, None, None],
        ["miou of mass (n=1)", "0.250", None, None],
        ["miou of nodule (n=2)", "0.500", None, "0.125"],
    ]


def test_a_dicom_picture_is_read_as_the_node_reads_it(tmp_path: Path) -> None:
    picture = read_radiograph(write(make_cxr_dataset(), tmp_path / "image.dcm"))
    assert picture.dtype == np.float32
    assert picture.shape == (140, 96)
    (tmp_path / "text.dcm").write_text("no image")
    with pytest.raises(NodeError, match=r"text\.dcm cannot be read as DICOM"):
        read_radiograph(tmp_path / "text.dcm")


def test_progress_goes_to_standard_error_only(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar() as progress:
        progress(1, 2)
    assert capsys.readouterr().out == ""
