"""The page that people look at: a radiograph with its regions, and beside it what was said and what was not found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw

from dicom_node.results import canvas
from dicom_node.results.labels import Rect, place_labels
from dicom_node.results.shapes import Points
from grounding.types import Image

_COLOURS = ("#ffd166", "#06d6a0", "#4cc9f0", "#f78c6b", "#c77dff", "#a7e34b", "#ff6b9d", "#9db4ff")
_PANEL, _TEXT, _FAINT, _WARNING = "#12161c", "#eef2f6", "#9aa7b4", "#ff9f9f"


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """What is marked on the image: the lines that mark it, in stored pixels, and what is said of it.

    `label` stands beside the lines, `text` in the legend; `score` in [0, 1] is written behind both.
    """

    number: int
    label: str
    text: str
    score: float | None
    lines: tuple[Points, ...]

    @property
    def colour(self) -> str:
        """The colour of the lines; neighbours in number differ."""
        return _COLOURS[(self.number - 1) % len(_COLOURS)]


@dataclass(frozen=True, slots=True)
class Passage:
    """A phrase without a region, under the heading that says why; no heading: it stands alone."""

    heading: str
    text: str


@dataclass(frozen=True, slots=True)
class _Line:
    """A line of the legend; `swatch` is the colour of its region."""

    text: str
    colour: str = _TEXT
    swatch: str | None = None


def draw_page(
    image: Image, regions: Sequence[Region], passages: Sequence[Passage], *, note: str = ""
) -> PillowImage.Image:
    """Return an RGB picture of `image` (float32[H, W] in [0, 1]) with the regions on it and a legend at its right.

    Small images are enlarged, huge ones reduced. `note` ends the legend.
    """
    rows, columns = image.shape
    scale = canvas.fit_scale(rows, columns)
    picture = canvas.make_picture(image, max(1, round(columns * scale)), max(1, round(rows * scale)))
    size = canvas.text_size(picture)
    _draw_regions(picture, regions, np.array([picture.width / columns, picture.height / rows]), size)
    return _add_legend(picture, _write_legend(regions, passages, note), size)


def _draw_regions(picture: PillowImage.Image, regions: Sequence[Region], scale: Points, size: int) -> None:
    width = canvas.stroke_width(size)
    placed = [canvas.cross_points([line * scale for line in region.lines], width) for region in regions]
    for region, lines in zip(regions, placed, strict=True):
        canvas.draw_lines(picture, lines, region.colour, width)
    font = canvas.load_font(size)
    tags = [canvas.cut_text(_add_score(region.label, region.score), font, picture.width - size) for region in regions]
    sizes = [canvas.measure_tag(tag, size) for tag in tags]
    places = place_labels([_find_extent(lines, width / 2) for lines in placed], sizes, picture.width, picture.height)
    for region, tag, place in zip(regions, tags, places, strict=True):
        canvas.draw_tag(picture, place, tag, size, region.colour)


def _find_extent(lines: Sequence[Points], margin: float) -> Rect:
    corners = np.concatenate(lines)
    (left, top), (right, bottom) = corners.min(axis=0) - margin, corners.max(axis=0) + margin
    return float(left), float(top), float(right), float(bottom)


def _add_score(text: str, score: float | None) -> str:
    return text if score is None else f"{text} {score:.0%}"


def _write_legend(regions: Sequence[Region], passages: Sequence[Passage], note: str) -> list[_Line]:
    lines = [_Line("Localized" if regions else "Nothing localized on this image", _FAINT)]
    for region in regions:
        said = region.text if region.score is None else f"{region.text} ({region.score:.0%})"
        lines.append(_Line(f"{region.number} {said}", swatch=region.colour))
    headings: dict[str, list[_Line]] = {}
    for passage in passages:
        headings.setdefault(passage.heading, []).append(_Line(f"- {passage.text}"))
    for heading, entries in headings.items():
        lines += [_Line(""), *([_Line(heading, _FAINT)] if heading else []), *entries]
    return [*lines, _Line(""), _Line(note, _WARNING)] if note else lines


def _add_legend(picture: PillowImage.Image, lines: Sequence[_Line], size: int) -> PillowImage.Image:
    font, margin, step = canvas.load_font(size), size, round(size * 1.5)
    width = max(22 * size, picture.width // 3)
    wrapped = [
        (line, text, row == 0)
        for line in lines
        for row, text in enumerate(canvas.wrap_text(line.text, font, width - 2 * margin - size))
    ]
    height = max(picture.height, 2 * margin + step * len(wrapped))
    page = PillowImage.new("RGB", (picture.width + width, height), _PANEL)
    page.paste(picture, (0, 0))
    draw = ImageDraw.Draw(page)
    left = picture.width + margin
    for row, (line, text, is_first) in enumerate(wrapped):
        top = margin + row * step
        if line.swatch is not None and is_first:
            draw.rectangle((left, top + size * 0.3, left + size * 0.6, top + size * 0.9), fill=line.swatch)
        draw.text((left + size, top), text, fill=line.colour, font=font)
    return page
