"""The folder of an evaluation: its figures as JSON and Markdown, and its pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grounding.evaluation.evaluate import Evaluation
from grounding.evaluation.pictures import (
    choose_cases,
    draw_cases,
    draw_reliability,
    draw_risk_coverage,
    load_exhibits,
)
from grounding.evaluation.records import Case
from grounding.evaluation.tables import markdown

FILES = ("figures.json", "figures.md", "reliability.png", "risk_coverage.png", "cases.png")


def write_documents(folder: Path, answer: Mapping[str, Any], evaluation: Evaluation, cases: Sequence[Case]) -> None:
    """Write `FILES` to a folder that exists. `answer` is what `evaluation.figures` gave, with whatever was added.

    Confidence and cases are those of the first protocol; their pictures are read from `cases` again.
    """
    (folder / "figures.json").write_text(json.dumps(answer, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "figures.md").write_text(markdown(answer), encoding="utf-8")
    draw_reliability(answer["calibration"], folder / "reliability.png")
    draw_risk_coverage(answer["calibration"], folder / "risk_coverage.png")
    draw_cases(load_exhibits(choose_cases(evaluation.predictions), cases), folder / "cases.png")
