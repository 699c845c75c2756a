"""The figures of an evaluation as one Markdown table with a few lines beneath it. Text only; nothing is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Figures = Mapping[str, Any]

TITLES = {"free": "free-running: image and report", "phrase": "phrase given", "forced": "teacher-forced"}
CONTROL_TITLES = {
    "blind": "control: no pixels",
    "other_picture": "control: another patient's picture",
    "prior": "control: median boxes by phrase, no pixels",
    "mirrored": "mirrored picture, left and right swapped in the words",
}
COLUMNS = ("", "n", "AP10", "AP30", "AP50 (95 %)", "mIoU (95 %)", "no box", "mIoU, no pixels")


def markdown(answer: Figures) -> str:
    """The answer of an evaluation as Markdown: protocols and controls, then each finding of the first protocol."""
    rows = [*_protocol_rows(answer), *_finding_rows(answer)]
    lines = [_line(COLUMNS), _line(["---", *["---:"] * (len(COLUMNS) - 1)]), *map(_line, rows)]
    remarks = list(_remarks(answer))
    return "\n".join([*lines, *(["", *remarks] if remarks else [])]) + "\n"


def _line(cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def _protocol_rows(answer: Figures) -> Iterator[list[str]]:
    first = answer["protocol"]
    for name, figures in answer.get("protocols", {first: answer}).items():
        yield _row(f"**{TITLES[name]}**", figures, figures.get("blind"))
        if "first" in figures:
            yield _row("– the first box of the report instead", figures["first"])
    controls = {"blind": answer["blind"]} if "blind" in answer else {}
    controls |= answer.get("controls", {})
    for name, title in CONTROL_TITLES.items():
        if name in controls:
            yield _row(title, controls[name])


def _finding_rows(answer: Figures) -> Iterator[list[str]]:
    blind = answer.get("blind", {}).get("by_label", {})
    for label, figures in sorted(answer["by_label"].items(), key=lambda item: (-item[1]["n"], item[0])):
        yield _row(label, figures, blind.get(label))


def _row(title: str, figures: Figures, blind: Figures | None = None) -> list[str]:
    return [
        title,
        str(figures["n"]),
        _number(figures["ap10"]),
        _number(figures["ap30"]),
        _with_interval(figures, "ap50"),
        _with_interval(figures, "miou"),
        _number(figures["no_box_rate"]),
        _number(blind["miou"]) if blind else "",
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _with_interval(figures: Figures, name: str) -> str:
    interval = figures.get(f"{name}_ci")
    bounds = f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else ""
    return _number(figures[name]) + bounds


def _remarks(answer: Figures) -> Iterator[str]:
    """A line for each further figure that was measured."""
    if answer["absent"]:
        yield f"- Phrases that the picture does not show: {answer['false_groundings']} of {answer['absent']} localised."
    if "phrase_recall" in answer:
        yield (
            f"- Phrases read: precision {_number(answer['phrase_precision'])}, recall "
            f"{_number(answer['phrase_recall'])}; negated phrases localised: "
            f"{answer['negated_grounded']} of {answer['negated']}."
        )
    if answer.get("hallucinations"):
        yield f"- Phrases that no word of the report supports: {answer['hallucinations']}, dropped."
    laterality = answer["laterality"]
    if laterality["n"]:
        yield (
            f"- Wrong side of the patient: {laterality['errors']} of {laterality['n']} localised phrases that name a "
            f"side (of the reference boxes: {laterality['reference_errors']})."
        )
    yield from _confidence_remark(answer["calibration"])
    yield from _counterfactual_remarks(answer.get("controls", {}))


def _confidence_remark(calibration: Figures) -> Iterator[str]:
    if not calibration["n"]:
        return
    quarters = ", ".join(_number(value) for value in calibration["error_by_quartile"])
    yield (
        f"- Confidence: ECE {_number(calibration['ece'])} (bins of equal count: "
        f"{_number(calibration['ece_adaptive'])}), AURC {_number(calibration['aurc'])}; error of the quarters from the "
        f"least to the most confident: {quarters}."
    )


def _counterfactual_remarks(controls: Figures) -> Iterator[str]:
    swapped, mirrored = controls.get("swapped_words"), controls.get("mirrored")
    if swapped and swapped["n"]:
        yield (
            f"- Left and right swapped in the words alone: of {swapped['n']} localised phrases that name a side "
            f"{swapped['flipped']} follow the words to the other side and {swapped['gone']} are no longer localised."
        )
    if mirrored and mirrored["equivariance_n"]:
        yield (
            f"- Picture mirrored as well: mean IoU {_number(mirrored['equivariance_miou'])} with the mirrored boxes of "
            f"the same {mirrored['equivariance_n']} phrases."
        )
