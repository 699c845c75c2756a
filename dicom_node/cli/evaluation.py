"""What `knowmvg evaluate` runs, and the table it prints. DICOM pictures are read as the node reads them."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from pydicom import dcmread
from pydicom.errors import InvalidDicomError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from dicom_node.errors import NodeError
from dicom_node.pixels import render
from grounding import evaluate as evaluation
from grounding.dataset import load_image, read_manifest
from grounding.types import Image

FIRST_TEST_SEED = 0
"""Generated studies from here on are for testing: those of training and validation have far higher seeds."""

Answer = Mapping[str, Any]


def evaluate_manifest(manifest: Path, model: str, device: str, protocol: Literal["free", "phrase"]) -> Answer:
    """Return the figures of the model on the rows of `manifest`; raises ManifestError, ModelError or NodeError."""
    rows = read_manifest(manifest)
    from grounding.checkpoint import load_predictor  # torch: seconds, which a wrong manifest need not wait

    predictor = load_predictor(model, device)
    read = functools.partial(load_image, read_dicom=read_radiograph)
    with progress_bar() as progress:
        return evaluation.evaluate(predictor, rows, protocol, read_image=read, progress=progress)


def evaluate_phantoms(count: int, model: str, device: str) -> Answer:
    """Return the figures of the model, free-running, on `count` generated studies."""
    from grounding.checkpoint import load_predictor

    predictor = load_predictor(model, device)
    seeds = range(FIRST_TEST_SEED, FIRST_TEST_SEED + count)
    with progress_bar() as progress:
        return evaluation.evaluate_phantoms(predictor, seeds, progress=progress)


def read_radiograph(path: Path) -> Image:
    """Return the picture in a DICOM file as the node's worker sees it."""
    try:
        return render(dcmread(path))
    except (OSError, InvalidDicomError) as error:
        raise NodeError(f"{path} cannot be read as DICOM: {error}") from error


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
