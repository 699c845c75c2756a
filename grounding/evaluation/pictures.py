"""Pictures of an evaluation: reliability, error against coverage, and a page of best, median and worst cases.

Drawn with matplotlib, which only `--report` needs: it is imported when a picture is drawn.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grounding.evaluation.records import Case, Prediction
from grounding.geometry import resize
from grounding.types import Image

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
CHART, WIDE_CHART = (7.0, 6.0), (9.5, 5.0)
TILE = 4.2
"""Inches: of the charts, and of the side of one picture of the page."""

EACH = 4
"""Cases of each kind on the page."""

LARGEST = 800
"""Pixels of the longer side of a picture on the page."""

REFERENCE, PREDICTED, FAINT = "#ffb000", "#35d0ff", "#8a8f98"
BLUE, RED = "#1f5fa8", "#b5382a"


@dataclass(frozen=True, slots=True)
class Exhibit:
    """A prediction to be shown and its picture, float32[H, W]."""

    prediction: Prediction
    image: Image


def choose_cases(predictions: Sequence[Prediction], each: int = EACH) -> dict[str, list[Prediction]]:
    """The best, median and worst of the phrases that the pictures show, by IoU; no finding of a picture twice.

    Among equals the more confident come first, best and worst alike: those are the telling ones.
    """
    shown = {(p.case, p.reference.boxes): p for p in predictions if p.reference.boxes}
    order = sorted(shown.values(), key=lambda p: (-p.iou, -(p.confidence or 0)))
    each = min(each, max(1, len(order) // 3))
    worst = sorted(order[each:], key=lambda p: (p.iou, -(p.confidence or 0)))[:each]
    rest = order[each : len(order) - len(worst)]
    middle = max(0, len(rest) - each) // 2
    return {"best": order[:each], "median": rest[middle : middle + each], "worst": worst}


def load_exhibits(chosen: Mapping[str, Sequence[Prediction]], cases: Sequence[Case]) -> dict[str, list[Exhibit]]:
    """Read the pictures of chosen predictions, reduced to what a page can show."""
    return {kind: [Exhibit(p, _reduced(cases[p.case].load())) for p in found] for kind, found in chosen.items()}


def _reduced(image: Image) -> Image:
    longest = max(image.shape)
    if longest <= LARGEST:
        return image
    height, width = (max(1, round(side * LARGEST / longest)) for side in image.shape)
    return resize(image, height, width)


def draw_reliability(calibration: Mapping[str, Any], path: Path) -> None:
    """Accuracy against confidence, with the number of phrases of each bin beneath."""
    figure = _figure(CHART)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    bins = calibration["bins"]
    lows, widths = [b[0] for b in bins], [b[1] - b[0] for b in bins]
    upper.plot([0, 1], [0, 1], color=FAINT, linestyle="--", label="confidence = accuracy")
    upper.bar(lows, [b[4] for b in bins], widths, align="edge", color=BLUE, alpha=0.35, edgecolor=BLUE)
    upper.plot([b[3] for b in bins], [b[4] for b in bins], "o", color=BLUE, label="phrases of a bin")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="share with IoU of at least 0.5")
    upper.set_title(f"Reliability: ECE {_show(calibration['ece'])}, {calibration['n']} localised phrases")
    upper.legend(loc="upper left", frameon=False)
    lower.bar(lows, [b[2] for b in bins], widths, align="edge", color=FAINT)
    lower.set(xlabel="confidence (score of the best box)", ylabel="phrases")
    for axes in (upper, lower):
        axes.grid(alpha=0.25)
    figure.savefig(path)


def draw_risk_coverage(calibration: Mapping[str, Any], path: Path) -> None:
    """Error among the surest phrases against their share, and the error of each quarter by confidence."""
    figure = _figure(WIDE_CHART)
    left, right = figure.subplots(1, 2, width_ratios=[3, 2], sharey=True)
    curve = calibration["risk_coverage"]
    left.plot([c for c, _ in curve], [e for _, e in curve], color=RED, linewidth=2, marker="." if curve else None)
    left.set(xlim=(0, 1), ylim=(0, 1), xlabel="share of the phrases kept, surest first", ylabel="error (IoU below 0.5)")
    left.set_title(f"Error against coverage: AURC {_show(calibration['aurc'])}")
    quarters = calibration["error_by_quartile"]
    names = (
        ["least\nsure", "2nd", "3rd", "surest"] if len(quarters) == 4 else [str(i + 1) for i in range(len(quarters))]
    )
    bars = right.bar(names, quarters, color=RED, alpha=0.55)
    right.bar_label(bars, [f"{value:.2f}" for value in quarters])
    right.set_title("Error by quarter of confidence")
    for axes in (left, right):
        axes.grid(alpha=0.25)
    figure.savefig(path)


def draw_cases(exhibits: Mapping[str, Sequence[Exhibit]], path: Path) -> None:
    """A page with a row of pictures for each kind of case: reference boxes dashed, predicted boxes solid."""
    from matplotlib.lines import Line2D

    shown = {kind: found for kind, found in exhibits.items() if found}
    rows, columns = max(1, len(shown)), max([1, *map(len, shown.values())])
    figure = _figure((TILE * columns, (TILE + 0.75) * rows + 0.5), facecolor="white")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (kind, found) in zip(grid, shown.items(), strict=False):
        for axes, exhibit in zip(line, found, strict=False):
            _draw_exhibit(axes, exhibit, kind)
    handles = [
        Line2D([], [], color=REFERENCE, linestyle="--", linewidth=2.5, label="reference"),
        Line2D([], [], color=PREDICTED, linewidth=2.5, label="predicted"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False, fontsize=13)
    figure.savefig(path)


def _draw_exhibit(axes: Axes, exhibit: Exhibit, kind: str) -> None:
    prediction, (rows, columns) = exhibit.prediction, exhibit.prediction.size
    axes.imshow(exhibit.image, cmap="gray", vmin=0, vmax=1, extent=(0, columns, rows, 0))
    for box in prediction.reference.boxes:
        _draw_box(axes, box.xyxy, REFERENCE, "--")
    for box in prediction.region:
        _draw_box(axes, box.xyxy, PREDICTED, "-")
    axes.set_title(_caption(prediction, kind), fontsize=10.5, loc="left")


def _draw_box(axes: Axes, xyxy: tuple[float, float, float, float], colour: str, style: str) -> None:
    """A box with a dark edge beneath, so that it shows on bright and on dark ground."""
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = xyxy
    for line_colour, width in (("black", 4.0), (colour, 2.2)):
        linestyle = "-" if line_colour == "black" and style == "-" else style
        axes.add_patch(
            Rectangle(
                (x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=line_colour, linewidth=width, linestyle=linestyle
            )
        )


def _caption(prediction: Prediction, kind: str) -> str:
    wanted, read = prediction.reference.phrase, prediction.phrase
    confidence = "not localised" if prediction.confidence is None else f"confidence {prediction.confidence:.2f}"
    lines = [f"{kind}: IoU {prediction.iou:.2f}, {confidence}", *_wrapped(wanted, 2)]
    if read is None:
        lines.append("(the phrase was not read)")
    elif read.lower() != wanted.lower():
        lines += _wrapped(f"(read: {read})", 1)
    return "\n".join(lines).replace("$", r"\$")


def _wrapped(text: str, most: int) -> list[str]:
    return textwrap.wrap(text, 50, max_lines=most, placeholder=" …") or [""]


def _figure(inches: tuple[float, float], **style: Any) -> Figure:
    """A figure of its own, which no window and no global state knows of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, dpi=DPI, layout="constrained", **style)
    FigureCanvasAgg(figure)
    return figure


def _show(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"
