"""What `knowmvg evaluate` runs, and the table it prints. DICOM pictures are read as the node reads them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from dicom_node.cli.ground import read_dicom
from dicom_node.pixels import render
from grounding.evaluation import evaluate as evaluation
from grounding.sets.manifest import load_image, read_manifest
from grounding.types import Image

FIRST_TEST_SEED = 0
"""Generated studies from here on are for testing: those of training and validation have far higher seeds."""

Answer = Mapping[str, Any]


def evaluate_manifest(
    manifest: Path, model: str, device: str, protocol: Literal["free", "phrase"], *, unseen: bool = False
) -> Answer:
    """Return the figures of the model on the rows of `manifest`; raises ManifestError, ModelError or NodeError.

    `unseen` leaves out the rows of patients that the model was trained or chosen on, and counts them.
    """
    rows = read_manifest(manifest)
    # torch: seconds, which a wrong manifest need not wait
    from grounding.checkpoint import load_predictor, read_training_patients

    predictor = load_predictor(model, device)
    read = functools.partial(load_image, read_dicom=read_radiograph)
    seen = read_training_patients(model) if unseen else frozenset()
    kept = [row for row in rows if row.patient not in seen]
    with progress_bar() as progress:
        answer = evaluation.evaluate(predictor, kept, protocol, read_image=read, progress=progress)
    return {**answer, "left_out_as_seen": len(rows) - len(kept)}


def evaluate_phantoms(count: int, model: str, device: str) -> Answer:
    """Return the figures of the model, free-running, on `count` generated studies."""
    from grounding.checkpoint import load_predictor

    predictor = load_predictor(model, device)
    seeds = range(FIRST_TEST_SEED, FIRST_TEST_SEED + count)
    with progress_bar() as progress:
        return evaluation.evaluate_phantoms(predictor, seeds, progress=progress)


def read_radiograph(path: Path) -> Image:
    """Return the picture in a DICOM file as the node's worker sees it."""
    return render(read_dicom(path))


@contextmanager
def progress_bar() -> Iterator[evaluation.Progress]:
    """Give the function that moves a progress bar on standard error; it is shown on terminals only."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("pictures", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def figure_rows(answer: Answer) -> list[list[object]]:
    """Return a row for each figure: its value, its interval, and the same without pixels."""
    blind = answer.get("blind", {})
    rows = [
        [name, _show(value), _interval(answer.get(f"{name}_ci")), _show(blind.get(name))]
        for name, value in answer.items()
        if isinstance(value, int | float | str | None) and not name.endswith("_ci")
    ]
    labels = answer.get("by_label", {})
    return rows + [_label_row(label, figures, blind) for label, figures in sorted(labels.items())]


def _label_row(label: str, figures: Mapping[str, Any], blind: Answer) -> list[object]:
    control = blind.get("by_label", {}).get(label, {})
    return [f"miou of {label} (n={figures['n']})", _show(figures["miou"]), None, _show(control.get("miou"))]


def _show(value: object) -> object:
    return f"{value:.3f}" if isinstance(value, float) else value


def _interval(value: object) -> object:
    return f"{value[0]:.3f} to {value[1]:.3f}" if isinstance(value, list) else None
