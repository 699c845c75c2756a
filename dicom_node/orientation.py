"""How a frontal image is stored against how films hang, and the way to the model and back.

The model knows chests as films hang: rows run to the patient's left, columns to the feet. An image that Patient
Orientation (PS3.3 C.7.6.1.1.1) calls mirrored or rotated is turned for it, and the boxes are turned back, so that every
box outside is one of the stored pixel matrix. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from dicom_node.header import read_value
from grounding.types import Box, Finding, Grounder, Grounding, Image, ReportText

_ACROSS, _ALONG = ("L", "R"), ("F", "H")


@dataclass(frozen=True, slots=True)
class Orientation:
    """What takes the stored matrix to the usual view, in this order: rows and columns exchanged, left and right
    reversed, top and bottom reversed."""

    transposed: bool = False
    mirrored: bool = False
    upended: bool = False

    def turn(self, pixels: Image) -> Image:
        """Return the stored pixels [Rows, Columns] in the usual view."""
        turned = pixels.T if self.transposed else pixels
        turned = turned[:, ::-1] if self.mirrored else turned
        return np.ascontiguousarray(turned[::-1] if self.upended else turned)

    def to_stored(self, box: Box, rows: int, columns: int) -> Box:
        """Return a box of the usual view as one of the stored matrix of `rows` x `columns`."""
        height, width = (columns, rows) if self.transposed else (rows, columns)
        return self._exchange(self._reverse(box, height, width))

    def from_stored(self, box: Box, rows: int, columns: int) -> Box:
        """Return a box of the stored matrix of `rows` x `columns` as one of the usual view."""
        height, width = (columns, rows) if self.transposed else (rows, columns)
        return self._reverse(self._exchange(box), height, width)

    def _exchange(self, box: Box) -> Box:
        return Box(box.y1, box.x1, box.y2, box.x2) if self.transposed else box

    def _reverse(self, box: Box, height: int, width: int) -> Box:
        x1, x2 = (width - box.x2, width - box.x1) if self.mirrored else (box.x1, box.x2)
        y1, y2 = (height - box.y2, height - box.y1) if self.upended else (box.y1, box.y2)
        return Box(x1, y1, x2, y2)


UPRIGHT = Orientation()


def is_coronal(directions: Sequence[str]) -> bool:
    """Tell whether Patient Orientation is that of a frontal view, however turned; one that is not told may be."""
    across, along = (sum(letter in axis for letter in _main(directions)) for axis in (_ACROSS, _ALONG))
    untold = _main(directions).count("")
    return across + along + untold == 2 and across < 2 and along < 2


def orientation_of(directions: Sequence[str]) -> Orientation:
    """Return how a frontal image is stored, by the directions of its rows and columns; one that is not told follows
    from the other, else from how films hang."""
    row, column = _main(directions)
    transposed = row in _ALONG or column in _ACROSS
    across, along = (column, row) if transposed else (row, column)
    return Orientation(transposed, across == "R", along == "H")


def read_orientation(image: Dataset) -> Orientation:
    """Return how the frontal image of a header is stored."""
    return orientation_of(_read_directions(image))


def tells_orientation(image: Dataset) -> bool:
    """Tell whether a header says how its frontal image is stored, rows and columns both."""
    return all(_main(_read_directions(image)))


def ground_stored(
    grounder: Grounder, images: Sequence[Image], orientations: Sequence[Orientation], report: ReportText
) -> Grounding:
    """Ground images as they are stored: the model sees each in the usual view, and the boxes are those of the stored
    matrix."""
    grounding = grounder.ground(turn_images(images, orientations), report)
    return as_stored(grounding, orientations, [(image.shape[0], image.shape[1]) for image in images])


def turn_images(images: Sequence[Image], orientations: Sequence[Orientation]) -> list[Image]:
    """Return images in the usual view."""
    return [orientation.turn(image) for image, orientation in zip(images, orientations, strict=True)]


def as_stored(grounding: Grounding, orientations: Sequence[Orientation], sizes: Sequence[tuple[int, int]]) -> Grounding:
    """Return what was found in the usual view of images, with boxes of their stored matrices, rows x columns each."""
    findings = tuple(_store(f, orientations[f.image], sizes[f.image]) for f in grounding.findings)
    return replace(grounding, findings=findings)


def _store(finding: Finding, orientation: Orientation, size: tuple[int, int]) -> Finding:
    boxes = tuple(replace(scored, box=orientation.to_stored(scored.box, *size)) for scored in finding.boxes)
    return replace(finding, boxes=boxes)


def _read_directions(image: Dataset) -> list[str]:
    value = read_value(image, "PatientOrientation")
    return [str(part).strip().upper() for part in value] if isinstance(value, MultiValue) else []


def _main(directions: Sequence[str]) -> tuple[str, str]:
    """Return the main direction of rows and of columns: the first letter, as in "LF"; "" where it is not told."""
    letters = [direction[:1] for direction in directions[:2]]
    return (letters[0], letters[1]) if len(letters) == 2 else ("", "")
