"""The picture that people look at: the radiograph with its boxes, and beside it what was said and what was not found.

A rendering for the demo, the console and `knowmvg ground`; never sent to an archive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from dicom_node.results.labels import place_labels
from dicom_node.results.values import Mark, Remark, select_marks
from grounding.types import Finding, Image

NOTE = "Research model - unverified. Not for diagnosis."
MIN_HEIGHT = 900
"""Pixels; smaller radiographs are enlarged, as labels in them could not be read."""

MAX_SIDE = 3200
_COLOURS = ("#ffd166", "#06d6a0", "#4cc9f0", "#f78c6b", "#c77dff", "#a7e34b", "#ff6b9d", "#9db4ff")
_PANEL, _TEXT, _FAINT = "#12161c", "#eef2f6", "#9aa7b4"

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of the legend; `swatch` is the colour of its box."""

    text: str
    colour: str = _TEXT
    swatch: str | None = None


def draw_overlay(
    image: Image, findings: Sequence[Finding], *, image_index: int = 0, min_confidence: float = 0.0
) -> PillowImage.Image:
    """Return an RGB picture of `image` (float32[H, W] in [0, 1]) with the boxes on it and a legend at its right.

    `findings` are all of the study: boxes are numbered as in SR and GSPS. Small images are enlarged, huge ones reduced.
    """
    rows, columns = image.shape
    others = {finding.image: (1_000_000, 1_000_000) for finding in findings}
    marks, remarks = select_marks(findings, {**others, image_index: (rows, columns)}, min_confidence)
    scale = min(max(1.0, MIN_HEIGHT / rows), MAX_SIDE / max(rows, columns))
    picture = _enlarge(image, scale)
    size = max(16, round(picture.height * 0.02))
    font = ImageFont.load_default(size)
    shown = [mark for mark in marks if mark.finding.image == image_index]
    _draw_boxes(picture, shown, scale, font, size)
    return _add_legend(picture, _write_legend(shown, remarks), font, size)


def _enlarge(image: Image, scale: float) -> PillowImage.Image:
    grey = np.round(np.clip(np.nan_to_num(image), 0.0, 1.0) * 255.0).astype(np.uint8)
    picture = PillowImage.fromarray(grey).convert("RGB")
    if scale == 1.0:
        return picture
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, PillowImage.Resampling.BICUBIC)


def _draw_boxes(picture: PillowImage.Image, marks: Sequence[Mark], scale: float, font: Font, size: int) -> None:
    draw = ImageDraw.Draw(picture)
    stroke = max(2, size // 7)
    boxes = [tuple(value * scale for value in mark.box.xyxy) for mark in marks]
    for mark, (x1, y1, x2, y2) in zip(marks, boxes, strict=True):
        right, bottom = max(x1, min(x2, picture.width - 1)), max(y1, min(y2, picture.height - 1))
        draw.rectangle((x1, y1, right, bottom), outline="#101010", width=stroke + 2)
        draw.rectangle((x1, y1, right, bottom), outline=_colour(mark.number), width=stroke)
    labels = [_fit(f"{mark.label} {mark.score:.0%}", font, picture.width - size) for mark in marks]
    sizes = [(font.getlength(label) + size * 0.6, size * 1.4) for label in labels]
    places = place_labels([(b[0], b[1], b[2], b[3]) for b in boxes], sizes, picture.width, picture.height)
    for mark, label, place in zip(marks, labels, places, strict=True):
        draw.rectangle(place, fill=_colour(mark.number))
        draw.text((place[0] + size * 0.3, place[1] + size * 0.12), label, fill="#101010", font=font)


def _write_legend(marks: Sequence[Mark], remarks: Sequence[Remark]) -> list[_Line]:
    lines = [_Line("Localized", _FAINT)] if marks else [_Line("Nothing localized on this image", _FAINT)]
    lines += [
        _Line(f"{mark.number} {mark.finding.phrase} ({mark.score:.0%})", swatch=_colour(mark.number)) for mark in marks
    ]
    titles: dict[str, list[_Line]] = {}
    for remark in remarks:
        titles.setdefault(remark.status.meaning, []).append(_Line(f"- {remark.finding.phrase}"))
    for title, entries in titles.items():
        lines += [_Line(""), _Line(title, _FAINT), *entries]
    return [*lines, _Line(""), _Line(NOTE, "#ff9f9f")]


def _add_legend(picture: PillowImage.Image, lines: Sequence[_Line], font: Font, size: int) -> PillowImage.Image:
    margin, step = size, round(size * 1.5)
    width = max(22 * size, picture.width // 3)
    wrapped = [
        (line, text, row == 0)
        for line in lines
        for row, text in enumerate(_wrap(line.text, font, width - 2 * margin - size))
    ]
    height = max(picture.height, 2 * margin + step * len(wrapped))
    canvas = PillowImage.new("RGB", (picture.width + width, height), _PANEL)
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    left = picture.width + margin
    for row, (line, text, is_first) in enumerate(wrapped):
        top = margin + row * step
        if line.swatch is not None and is_first:
            draw.rectangle((left, top + size * 0.3, left + size * 0.6, top + size * 0.9), fill=line.swatch)
        draw.text((left + size, top), text, fill=line.colour, font=font)
    return canvas


def _wrap(text: str, font: Font, width: float) -> list[str]:
    """Break `text` into lines of at most `width` pixels; a single longer word is broken where it must."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        lines += [word] if lines[-1] else []
        lines[-1] = lines[-1] or word
        while font.getlength(lines[-1]) > width and len(lines[-1]) > 1:
            head = _longest_head(lines[-1], font, width)
            lines[-1:] = [head, lines[-1][len(head) :]]
    return lines


def _fit(text: str, font: Font, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    return _longest_head(text, font, width - font.getlength("...")) + "..."


def _longest_head(text: str, font: Font, width: float) -> str:
    length = 1
    while length < len(text) and font.getlength(text[: length + 1]) <= width:
        length += 1
    return text[:length]


def _colour(number: int) -> str:
    return _COLOURS[(number - 1) % len(_COLOURS)]
