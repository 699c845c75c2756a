"""The table of an evaluation, and how pictures are read for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dicom_node.cli.evaluation import figure_rows, figure_table, progress_bar, read_radiograph
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


def test_single_figures_of_what_is_nested_have_rows_of_their_own() -> None:
    nested = {"laterality": {"n": 4, "rate": 0.25, "against_reference": {"errors": 1}}, "calibration": {"bins": [[1]]}}
    assert figure_rows({"n": 1, **nested, "model": {"name": "x"}}) == [
        ["n", 1, None, None],
        ["laterality.n", 4, None, None],
        ["laterality.rate", "0.250", None, None],
        ["laterality.against_reference.errors", 1, None, None],
    ]


def test_protocols_stand_side_by_side_free_first() -> None:
    phrase = {"n": 2, "ap50": 0.5, "ap50_ci": [0.25, 0.75], "by_label": {"nodule": {"n": 2, "miou": 0.125}}}
    free = {key: ANSWER[key] for key in ("n", "ap50", "ap50_ci", "by_label", "blind")}
    answer = {**ANSWER, "protocols": {"free": free, "phrase": phrase}, "controls": {"prior": {"n": 7}}, "seconds": 3}
    assert figure_table(answer) == (
        ("FIGURE", "FREE", "PHRASE", "FREE, NO PIXELS"),
        [
            ["n", 3, 2, 3],
            ["ap50", "0.751 (0.500 to 1.000)", "0.500 (0.250 to 0.750)", "0.100"],
            ["miou of mass", "0.250 (n=1)", None, None],
            ["miou of nodule", "0.500 (n=2)", "0.125 (n=2)", "0.125"],
            ["controls.prior.n", 7, None, None],
            ["seconds", 3, None, None],
        ],
    )
    assert figure_table(ANSWER) == (("FIGURE", "VALUE", "95 % INTERVAL", "WITHOUT PIXELS"), figure_rows(ANSWER))


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
