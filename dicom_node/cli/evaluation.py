"""What `knowmvg evaluate` runs, and the table it prints. DICOM pictures are read as the node reads them."""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from dicom_node.cli.ground import read_dicom
from dicom_node.errors import NodeError
from dicom_node.pixels import render
from grounding.evaluation import evaluate as evaluation
from grounding.evaluation import prior
from grounding.evaluation.cases import PhantomCases, manifest_cases
from grounding.evaluation.controls import CONTROLS
from grounding.evaluation.documents import write_documents
from grounding.evaluation.records import Case, Predictor
from grounding.evaluation.records import Progress as ProgressFunction
from grounding.knowledge import load_bank
from grounding.sets.manifest import ManifestRow, load_image, read_manifest
from grounding.types import Image

log = logging.getLogger(__name__)

FIRST_TEST_SEED = 0
"""Generated studies from here on are for testing: those of training and validation have far higher seeds."""

FIRST_PRIOR_SEED, PRIOR_STUDIES = 502_000, 400
"""Generated studies of the validation seeds that the median boxes are taken from."""

ALL = "all"
CHOSEN_CONTROLS = {"none": (), "blind": ("blind",), ALL: tuple(CONTROLS)}

Answer = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What an evaluation is asked for. `prior_from` are manifests to take median boxes from; `report` is a folder."""

    protocol: Literal["free", "phrase", "forced", "all"] = "free"
    controls: Literal["none", "blind", "all"] = "blind"
    prior_from: tuple[Path, ...] = ()
    report: Path | None = None


def evaluate_manifest(
    manifest: Path,
    model: str,
    device: str,
    wishes: Wishes = Wishes(),
    *,
    unseen: bool = False,
    split: str | None = None,
) -> Answer:
    """Return the figures of the model on the rows of `manifest`; raises ManifestError, ModelError or NodeError.

    `unseen` leaves out the rows of patients that the model was trained or chosen on, and counts them. `split` takes the
    rows of that part alone; the others then serve the median boxes of the prior-only control, if no set is named.
    """
    _prepare(wishes)
    rows, others = _part(read_manifest(manifest), split)
    known = _prior_phrases(wishes, rows) or prior.manifest_phrases(_of_others(others, rows))
    if wishes.controls == ALL and not known:
        log.warning("the prior-only control is left out: name a set for its median boxes with --prior-from")
    # torch: seconds, which a wrong manifest need not wait
    from grounding.checkpoint import load_predictor, read_training_patients

    predictor = load_predictor(model, device)
    read = functools.partial(load_image, read_dicom=read_radiograph)
    seen = read_training_patients(model) if unseen else frozenset()
    kept = [row for row in rows if row.patient_name not in seen]
    answer = assess(predictor, manifest_cases(kept, read), wishes, known)
    return {**answer, "left_out_as_seen": len(rows) - len(kept)}


def evaluate_phantoms(count: int, model: str, device: str, wishes: Wishes = Wishes()) -> Answer:
    """Return the figures of the model on `count` generated studies; raises ManifestError, ModelError or NodeError."""
    _prepare(wishes)
    known = _prior_phrases(wishes, ())
    if wishes.controls == ALL and not known:
        known = prior.phantom_phrases(range(FIRST_PRIOR_SEED, FIRST_PRIOR_SEED + PRIOR_STUDIES))
    from grounding.checkpoint import load_predictor

    predictor = load_predictor(model, device)
    return assess(predictor, PhantomCases(range(FIRST_TEST_SEED, FIRST_TEST_SEED + count)), wishes, known)


def assess(
    predictor: Predictor, cases: Sequence[Case], wishes: Wishes, known: Sequence[prior.Known] = ()
) -> dict[str, Any]:
    """Return the figures of a predictor on cases, and write the report if one is wished.

    `known` phrases with their boxes make the table of median boxes; without any, that control is left out.
    """
    protocols = evaluation.applicable_protocols(predictor, cases) if wishes.protocol == "all" else (wishes.protocol,)
    table = prior.PriorPredictor(prior.build_table(known, load_bank())) if known else None
    course = evaluation.Course(protocols, CHOSEN_CONTROLS[wishes.controls], table)
    with progress_bar() as progress:
        result = evaluation.examine(predictor, cases, course, progress)
    identity = predictor.identity
    model = {"name": identity.name, "version": identity.version, "sha256": identity.sha256}
    answer: dict[str, Any] = {"model": model, **result.figures()}
    if wishes.report is not None:
        write_documents(wishes.report, answer, result, cases)
    return answer


def _prepare(wishes: Wishes) -> None:
    """Make the folder of the report, before hours are spent on what could not be written there."""
    if wishes.report is None:
        return
    if importlib.util.find_spec("matplotlib") is None:
        raise NodeError("--report draws with matplotlib, which is not installed: pip install 'knowmvg-node[train]'")
    try:
        wishes.report.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NodeError(f"the folder {wishes.report} of --report cannot be made: {error.strerror}") from error


def _part(rows: list[ManifestRow], split: str | None) -> tuple[list[ManifestRow], list[ManifestRow]]:
    """The rows of a split, and those of all others; without a split all rows, and none."""
    if split is None:
        return rows, []
    names = sorted({row.split for row in rows if row.split})
    if split not in names:
        raise NodeError(f"--split {split}: the set has no such part; it has {', '.join(names) or 'no parts'}")
    return [row for row in rows if row.split == split], [row for row in rows if row.split != split]


def _of_others(rows: Sequence[ManifestRow], tested: Sequence[ManifestRow]) -> list[ManifestRow]:
    """Those of `rows` whose patient and picture are not under test."""
    patients, pictures = {row.patient_name for row in tested}, {row.image.resolve() for row in tested}
    return [row for row in rows if row.patient_name not in patients and row.image.resolve() not in pictures]


def _prior_phrases(wishes: Wishes, tested: Sequence[ManifestRow]) -> list[prior.Known]:
    """Phrases of the manifests for the median boxes, without the patients and pictures under test."""
    rows = [row for path in wishes.prior_from for row in read_manifest(path)]
    known = prior.manifest_phrases(_of_others(rows, tested))
    if wishes.prior_from and not known:
        raise NodeError("--prior-from has no boxes of patients that are not under test; give a set of other patients")
    return known


def read_radiograph(path: Path) -> Image:
    """Return the picture in a DICOM file as the node's worker sees it."""
    return render(read_dicom(path))


@contextmanager
def progress_bar() -> Iterator[ProgressFunction]:
    """Give the function that moves a progress bar on standard error; it is shown on terminals only."""
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("pictures", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def figure_table(answer: Answer) -> tuple[tuple[str, ...], list[list[object]]]:
    """Return columns and rows for people: one protocol with its control, or all protocols side by side."""
    if "protocols" in answer:
        names = tuple(answer["protocols"])
        return ("FIGURE", *(name.upper() for name in names), f"{names[0].upper()}, NO PIXELS"), _side_by_side(answer)
    return ("FIGURE", "VALUE", "95 % INTERVAL", "WITHOUT PIXELS"), figure_rows(answer)


def figure_rows(answer: Answer) -> list[list[object]]:
    """Return a row for each figure: its value, its interval, and the same without pixels."""
    flat, blind = _flat(answer), answer.get("blind", {})
    rows: list[list[object]] = [
        [name, _show(value), _interval(answer.get(f"{name}_ci")), _show(blind.get(name))]
        for name, value in flat.items()
    ]
    labels = answer.get("by_label", {})
    return rows + [_label_row(label, figures, blind) for label, figures in sorted(labels.items())]


def _side_by_side(answer: Answer) -> list[list[object]]:
    protocols = answer["protocols"]
    blind, flat = answer.get("blind", {}), {name: _flat(figures) for name, figures in protocols.items()}
    names = dict.fromkeys(name for figures in flat.values() for name in figures)
    rows: list[list[object]] = [
        [name, *(_valued(protocols[p], name, flat[p].get(name)) for p in protocols), _show(blind.get(name))]
        for name in names
    ]
    for label in sorted(answer.get("by_label", {})):
        found = [protocols[p]["by_label"].get(label) for p in protocols]
        control = blind.get("by_label", {}).get(label, {})
        cells = [f"{_show(figures['miou'])} (n={figures['n']})" if figures else None for figures in found]
        rows.append([f"miou of {label}", *cells, _show(control.get("miou"))])
    others = {name: answer[name] for name in ("controls", "seconds", "left_out_as_seen") if name in answer}
    return rows + [[name, _show(value)] + [None] * len(protocols) for name, value in _flat(others).items()]


def _valued(figures: Answer, name: str, value: object) -> object:
    interval = _interval(figures.get(f"{name}_ci"))
    return f"{_show(value)} ({interval})" if interval else _show(value)


def _flat(figures: Answer) -> dict[str, object]:
    """Single values by name, those of nested figures as `laterality.rate`; lists and what has rows of its own not."""
    flat: dict[str, object] = {}
    for name, value in figures.items():
        if isinstance(value, Mapping) and name not in ("model", "blind", "by_label", "protocols"):
            flat |= {f"{name}.{key}": inner for key, inner in _flat(value).items()}
        elif isinstance(value, int | float | str | None) and not name.endswith("_ci"):
            flat[name] = value
    return flat


def _label_row(label: str, figures: Mapping[str, Any], blind: Answer) -> list[object]:
    control = blind.get("by_label", {}).get(label, {})
    return [f"miou of {label} (n={figures['n']})", _show(figures["miou"]), None, _show(control.get("miou"))]


def _show(value: object) -> object:
    return f"{value:.3f}" if isinstance(value, float) else value


def _interval(value: object) -> str | None:
    return f"{value[0]:.3f} to {value[1]:.3f}" if isinstance(value, list) else None
