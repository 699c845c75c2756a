"""What a Grayscale Softcopy Presentation State of any maker says of one image: geometry, layers, graphics, texts.

Not read: overlay planes and shutters, compound graphics, and the styles of single lines and texts, which only decorate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_node.header import read_items, read_number, read_text, read_value
from dicom_node.results.labels import Rect
from dicom_node.results.regions import names_first_frame
from dicom_node.results.shapes import Points, Shape, read_points, read_shape
from dicom_node.results.values import read_size

DEFAULT_COLOUR = "#ffd166"
"""Of a layer that recommends neither colour nor grey."""

_ALIGNMENTS = {"LEFT": 0.0, "CENTER": 0.5, "RIGHT": 1.0}

WHITE_D50 = np.array([0.9642, 1.0, 0.8249])
XYZ_TO_SRGB = np.array(
    [[3.1338561, -1.6168667, -0.4906146], [-0.9787684, 1.9161415, 0.0334540], [0.0719453, -0.2289914, 1.4052427]]
)
"""From the profile connection space of ICC, which is D50, to linear sRGB (Bradford-adapted)."""


@dataclass(frozen=True, slots=True)
class View:
    """How an image lies on the screen: scaled to `width` x `height`, turned clockwise, then flipped (PS3.3 C.10.6).

    `area` is the displayed area (left, top, right, bottom) in stored pixels. The whole image is shown, whatever it is;
    it is what positions in DISPLAY units are fractions of.
    """

    columns: int
    rows: int
    width: int
    height: int
    quarter_turns: int
    is_flipped: bool
    area: Rect

    def turn(self, picture: NDArray[Any]) -> NDArray[Any]:
        """Return an array of `height` x `width` as it lies on the screen."""
        turned = np.rot90(picture, -self.quarter_turns)
        return np.fliplr(turned) if self.is_flipped else turned

    def place(self, points: Points, units: str = "PIXEL") -> Points:
        """Return screen positions of points in annotation units (PS3.3 C.10.5)."""
        if units == "DISPLAY":
            corners = self.place(np.reshape(self.area, (2, 2)))
            low, high = corners.min(axis=0), corners.max(axis=0)
            return np.asarray(low + points * (high - low))
        x, y = points[:, 0] * (self.width / self.columns), points[:, 1] * (self.height / self.rows)
        width, height = self.width, self.height
        for _ in range(self.quarter_turns):
            x, y, width, height = height - y, x, height, width
        return np.stack([width - x if self.is_flipped else x, y], axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class Writing:
    """A text object on the screen: its bounding box, or the point that it is anchored at.

    `anchor` is the point that a line is drawn to from the text, None for no line; `align` as in `canvas.draw_text`.
    """

    lines: tuple[str, ...]
    box: Rect
    anchor: Points | None
    align: float

    @property
    def is_boxed(self) -> bool:
        """Whether the text has a bounding box."""
        return self.box[0] < self.box[2] and self.box[1] < self.box[3]


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A graphic layer with what is on it, on the screen."""

    colour: str
    shapes: tuple[Shape, ...]
    writings: tuple[Writing, ...]


def refers_to_image(ds: Dataset, image: Dataset, *, when_absent: bool) -> bool:
    """Tell whether the Referenced Image Sequence of `ds` names the image, and its first frame if it names frames."""
    references = read_items(ds, "ReferencedImageSequence")
    uid = read_text(image, "SOPInstanceUID")
    named = [item for item in references if read_text(item, "ReferencedSOPInstanceUID") == uid]
    return any(names_first_frame(item) for item in named) if references else when_absent


def select_item(state: Dataset, keyword: str, image: Dataset) -> Dataset | None:
    """Return the first item of a sequence that holds for the image: one without references holds for all."""
    return next(iter(_select_items(state, keyword, image)), None)


def read_aspect(state: Dataset, image: Dataset) -> float:
    """Return height by width of a pixel (PS3.3 C.10.4), 1.0 where the state does not say it or it is absurd."""
    area = select_item(state, "DisplayedAreaSelectionSequence", image)
    for keyword in ("PresentationPixelSpacing", "PresentationPixelAspectRatio"):
        pair = read_points(area, keyword) if area is not None else np.empty((0, 2))
        if len(pair) == 1 and (pair > 0).all() and 0.2 <= pair[0, 0] / pair[0, 1] <= 5.0:
            return float(pair[0, 0] / pair[0, 1])
    return 1.0


def read_view(state: Dataset, image: Dataset, width: int, height: int) -> View:
    """Return the view of an image that is `width` x `height` on the screen before it is turned."""
    rows, columns = read_size(image)
    turns = round((read_number(state, "ImageRotation") or 0.0) / 90.0) % 4
    is_flipped = read_text(state, "ImageHorizontalFlip") == "Y"
    area = _read_area(state, image) or (0.0, 0.0, float(columns), float(rows))
    return View(columns, rows, width, height, turns, is_flipped, area)


def read_layers(state: Dataset, image: Dataset, view: View) -> list[Layer]:
    """Return the layers with what they hold for the image, in the order they are drawn (PS3.3 C.10.7)."""
    annotations = _select_items(state, "GraphicAnnotationSequence", image)
    declared = {read_text(item, "GraphicLayer"): item for item in read_items(state, "GraphicLayerSequence")}
    ordered = sorted(declared, key=lambda name: read_number(declared[name], "GraphicLayerOrder") or 0.0)
    undeclared = [name for item in annotations if (name := read_text(item, "GraphicLayer")) not in declared]
    return [
        _read_layer(
            read_colour(declared.get(name, Dataset())),
            [item for item in annotations if read_text(item, "GraphicLayer") == name],
            view,
        )
        for name in (*ordered, *dict.fromkeys(undeclared))
    ]


def read_colour(layer: Dataset) -> str:
    """Return the colour that a graphic layer recommends: CIELab, else grey (PS3.3 C.10.7)."""
    lab = read_value(layer, "GraphicLayerRecommendedDisplayCIELabValue")
    if isinstance(lab, Sequence) and len(lab) == 3:
        return convert_cielab([int(value) for value in lab])
    grey = read_number(layer, "GraphicLayerRecommendedDisplayGrayscaleValue")
    if grey is None:
        return DEFAULT_COLOUR
    level = round(min(max(grey, 0.0), 65535.0) / 257.0)
    return f"#{level:02x}{level:02x}{level:02x}"


def convert_cielab(encoded: Sequence[int]) -> str:
    """Return the sRGB colour of L*a*b* as DICOM encodes it in 16 bits (PS3.3 C.10.7.1.1), the nearest there is."""
    lightness, a, b = (
        encoded[0] * 100.0 / 65535.0,
        encoded[1] * 255.0 / 65535.0 - 128.0,
        encoded[2] * 255.0 / 65535.0 - 128.0,
    )
    middle = (lightness + 16.0) / 116.0
    ratios = np.array([middle + a / 500.0, middle, middle - b / 200.0])
    xyz = WHITE_D50 * np.where(ratios > 6.0 / 29.0, ratios**3, (ratios - 4.0 / 29.0) * 3.0 * (6.0 / 29.0) ** 2)
    linear = np.clip(XYZ_TO_SRGB @ xyz, 0.0, 1.0)
    levels = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1.0 / 2.4) - 0.055)
    return "#" + "".join(f"{round(level * 255.0):02x}" for level in levels)


def _select_items(state: Dataset, keyword: str, image: Dataset) -> list[Dataset]:
    return [item for item in read_items(state, keyword) if refers_to_image(item, image, when_absent=True)]


def _read_area(state: Dataset, image: Dataset) -> Rect | None:
    """Return the displayed area in stored pixels; its corners are pixels counted from 1 (PS3.3 C.10.4)."""
    area = select_item(state, "DisplayedAreaSelectionSequence", image)
    corners = [
        read_points(area if area is not None else Dataset(), f"DisplayedArea{corner}HandCorner")
        for corner in ("TopLeft", "BottomRight")
    ]
    if any(len(corner) != 1 for corner in corners):
        return None
    low, high = np.minimum(*corners)[0] - 1.0, np.maximum(*corners)[0]
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _read_layer(colour: str, annotations: Sequence[Dataset], view: View) -> Layer:
    graphics = [graphic for item in annotations for graphic in read_items(item, "GraphicObjectSequence")]
    shapes = [
        replace(shape, points=view.place(shape.points, read_text(graphic, "GraphicAnnotationUnits")))
        for graphic in graphics
        if (shape := read_shape(graphic)) is not None
    ]
    texts = [text for item in annotations for text in read_items(item, "TextObjectSequence")]
    writings = [writing for text in texts if (writing := _read_writing(text, view)) is not None]
    return Layer(colour, tuple(shapes), tuple(writings))


def _read_writing(text: Dataset, view: View) -> Writing | None:
    """Return a text object (PS3.3 C.10.5.1.1), None where it says nothing or has no place."""
    lines = tuple(line.strip() for line in read_text(text, "UnformattedTextValue").splitlines() if line.strip())
    anchor = view.place(read_points(text, "AnchorPoint")[:1], read_text(text, "AnchorPointAnnotationUnits"))
    corners = [read_points(text, f"BoundingBox{corner}HandCorner")[:1] for corner in ("TopLeft", "BottomRight")]
    box = view.place(np.concatenate(corners), read_text(text, "BoundingBoxAnnotationUnits"))
    extent = box if len(box) == 2 else anchor
    if not lines or not len(extent):
        return None
    (left, top), (right, bottom) = extent.min(axis=0), extent.max(axis=0)
    return Writing(
        lines=lines,
        box=(float(left), float(top), float(right), float(bottom)),
        anchor=anchor if len(anchor) and read_text(text, "AnchorPointVisibility") == "Y" else None,
        align=_ALIGNMENTS.get(read_text(text, "BoundingBoxTextHorizontalJustification"), 0.0),
    )
