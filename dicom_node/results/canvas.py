"""Strokes, text and the size of pictures: what every picture that people look at is drawn with.

Coordinates are those of DICOM scaled to the screen, 0 the outer corner of the first screen pixel: the middle of a
stroke lies where its points say, to a fraction of a pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from dicom_node.results.labels import Rect
from dicom_node.results.shapes import Points

MIN_HEIGHT = 900
"""Screen pixels; smaller radiographs are enlarged, as labels in them could not be read."""

MAX_SIDE = 3200
DARK = "#101010"
HALO = 1.5
"""Screen pixels of dark on either side of a stroke: it is seen on bone as well as on air."""

LINE_HEIGHT = 1.25
"""Distance between lines of text as a multiple of its size."""

TEXT_MARGIN = 0.2
"""Free at the left and at the right of a text, where its rim is, as a multiple of its size."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def fit_scale(rows: float, columns: float) -> float:
    """Return how much a picture is enlarged or reduced to be legible."""
    return min(max(1.0, MIN_HEIGHT / rows), MAX_SIDE / max(rows, columns))


def make_picture(
    grey: NDArray[np.floating], width: int, height: int, extent: tuple[float, float] | None = None
) -> PillowImage.Image:
    """Return the RGB picture, `width` x `height`, of grey values in [0, 1].

    `extent`: how many columns and rows of the values the picture shows, where the last ones reach beyond its edge.
    """
    picture = PillowImage.fromarray(to_bytes(grey))
    if picture.size != (width, height):
        box = (0.0, 0.0, *extent) if extent else None
        picture = picture.resize((width, height), PillowImage.Resampling.BICUBIC, box)
    return picture.convert("RGB")


def to_bytes(grey: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Return grey values in [0, 1] as those of a screen."""
    return np.asarray(np.round(np.clip(np.nan_to_num(grey), 0.0, 1.0) * 255.0), np.uint8)


def text_size(picture: PillowImage.Image) -> int:
    """Return the height of text that can be read when the whole picture is looked at."""
    return max(16, round(picture.height * 0.02))


def stroke_width(size: int) -> int:
    """Return the width of lines that go with text of `size`; even, so that a whole coordinate is between two pixels."""
    return max(2, 2 * round(size / 12))


def draw_lines(picture: PillowImage.Image, lines: Sequence[Points], colour: str, width: float) -> None:
    """Stroke `lines` with a dark rim."""
    for shade, breadth in ((DARK, width + 2 * HALO), (colour, width)):
        for line in lines:
            _stroke(picture, line, shade, breadth)


def cross_points(lines: Sequence[Points], width: float) -> list[Points]:
    """Return lines that can be seen when stroked: each of a single point becomes a cross."""
    return [part for line in lines for part in (_make_cross(line[0], 3.0 * width) if len(line) == 1 else [line])]


def fill_area(picture: PillowImage.Image, line: Points, colour: str, opacity: float = 0.3) -> None:
    """Cover the inside of a closed line, so that the radiograph is still seen through it."""
    mask = PillowImage.new("L", picture.size)
    ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in line], fill=round(255 * opacity))
    picture.paste(colour, (0, 0), mask)


def draw_text(
    picture: PillowImage.Image, place: Rect, lines: Sequence[str], size: int, colour: str, align: float = 0.0
) -> None:
    """Write lines of text with a dark rim into `place`; `align` 0 at its left, 0.5 in its middle, 1 at its right."""
    draw, font, margin = ImageDraw.Draw(picture), load_font(size), size * TEXT_MARGIN
    for row, text in enumerate(lines):
        left = place[0] + margin + align * (place[2] - place[0] - 2 * margin - font.getlength(text))
        top = place[1] + row * LINE_HEIGHT * size
        draw.text((left, top), text, fill=colour, font=font, stroke_width=max(1, size // 10), stroke_fill=DARK)


def measure_text(lines: Sequence[str], size: int) -> tuple[float, float]:
    """Return width and height of the place that `draw_text` needs."""
    font = load_font(size)
    return max(font.getlength(line) for line in lines) + 2 * size * TEXT_MARGIN, LINE_HEIGHT * size * len(lines)


def draw_tag(picture: PillowImage.Image, place: Rect, text: str, size: int, colour: str) -> None:
    """Write dark text on a plate of `colour`."""
    draw = ImageDraw.Draw(picture)
    draw.rectangle(place, fill=colour)
    draw.text((place[0] + size * 0.3, place[1] + size * 0.12), text, fill=DARK, font=load_font(size))


def measure_tag(text: str, size: int) -> tuple[float, float]:
    """Return width and height of the plate that `draw_tag` writes `text` on."""
    return load_font(size).getlength(text) + size * 0.6, size * 1.4


def load_font(size: int) -> Font:
    """Return the font that all pictures are written in."""
    return ImageFont.load_default(size)


def wrap_text(text: str, font: Font, width: float) -> list[str]:
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


def cut_text(text: str, font: Font, width: float) -> str:
    """Return as much of `text` as fits into `width` pixels."""
    if font.getlength(text) <= width:
        return text
    return _longest_head(text, font, width - font.getlength("...")) + "..."


def _longest_head(text: str, font: Font, width: float) -> str:
    length = 1
    while length < len(text) and font.getlength(text[: length + 1]) <= width:
        length += 1
    return text[:length]


def _make_cross(centre: Points, reach: float) -> list[Points]:
    return [centre + np.array([[-x, -y], [x, y]]) for x, y in ((reach, 0.0), (0.0, reach))]


def _stroke(picture: PillowImage.Image, line: Points, colour: str, width: float) -> None:
    """Draw the segments of `line`: a screen pixel is covered as far as its middle lies within half of `width`."""
    for start, end in pairwise(line):
        left, top = np.floor(np.minimum(start, end) - width / 2 - 1).clip(0, picture.size)
        right, bottom = np.ceil(np.maximum(start, end) + width / 2 + 1).clip(0, picture.size)
        if left >= right or top >= bottom:
            continue
        columns, rows = np.arange(left, right) + 0.5, np.arange(top, bottom)[:, None] + 0.5
        cover = np.clip(width / 2 + 0.5 - _distance(columns, rows, start, end), 0.0, 1.0)
        picture.paste(colour, (int(left), int(top)), PillowImage.fromarray(np.rint(cover * 255).astype(np.uint8)))


def _distance(columns: NDArray[np.float64], rows: NDArray[np.float64], start: Points, end: Points) -> Points:
    """Return the distances of a grid of points to the segment; square ends, so that the corner of a box is sharp."""
    along = end - start
    length = float(np.hypot(*along)) or 1.0
    x, y = along / length
    forward = (columns - start[0]) * x + (rows - start[1]) * y
    aside = np.abs((rows - start[1]) * x - (columns - start[0]) * y)
    return np.asarray(np.maximum(aside, np.maximum(-forward, forward - length)))
