"""Pictures of the results, drawn from the DICOM objects alone: what a viewer shows of an SR or a presentation state.

Presentation states go through the grayscale pipeline of PS3.4 N.2; the whole image is shown, whatever area they zoom
to. Of several frames the first is drawn.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from PIL import Image as PillowImage
from pydicom.dataset import Dataset

from dicom_node.errors import PermanentError
from dicom_node.grayscale import (
    Values,
    apply_modality,
    apply_presentation,
    apply_voi_lut,
    apply_window,
    find_modality_range,
)
from dicom_node.header import DECODE_ERRORS, MANUFACTURER, MODEL_NAME, read_items, read_number, read_text
from dicom_node.pixels import decode_frame, render
from dicom_node.results import canvas
from dicom_node.results.film import Reduced
from dicom_node.results.labels import place_labels
from dicom_node.results.page import Passage, Region, draw_page
from dicom_node.results.regions import read_listed, read_regions, refers_to
from dicom_node.results.shapes import Shape, trace_shape
from dicom_node.results.state import (
    Layer,
    Writing,
    read_aspect,
    read_layers,
    read_view,
    refers_to_image,
    select_item,
)
from dicom_node.results.values import GSPS_SOP_CLASS, NOTE, is_grayscale, read_size

MAX_TEXT = 0.05
"""Height of a line of text as a share of the picture, however large its bounding box is."""


def draw_presentation_state(state: Dataset, image: Dataset, reduced: Reduced | None = None) -> PillowImage.Image:
    """Return the RGB picture of the image as the Grayscale Softcopy Presentation State shows it.

    `reduced` is the image's frame, decoded already and perhaps made smaller; the picture is then smaller, too. Raises
    PermanentError where the state is none of this image or is damaged, UnreadablePixelsError where the image is.
    """
    with _naming_damage(state):
        _refuse_other_state(state, image)
    frame = reduced or Reduced(decode_frame(image), 1)
    with _naming_damage(state):
        rows, columns = (size / frame.factor for size in read_size(image))
        aspect = read_aspect(state, image)
        scale = canvas.fit_scale(rows * aspect, columns)
        view = read_view(state, image, max(1, round(columns * scale)), max(1, round(rows * scale * aspect)))
        values = _apply_state(state, image, frame.values)
        grey = canvas.make_picture(values, view.width, view.height, (columns, rows))
        picture = PillowImage.fromarray(np.ascontiguousarray(view.turn(np.asarray(grey))))
        _draw_layers(picture, read_layers(state, image, view))
        return picture


def draw_report(report: Dataset, image: Dataset) -> PillowImage.Image:
    """Return the page of the image with what the SR (any of PS3.16 TID 1500) marks on it and what it lists besides.

    Raises PermanentError where the SR does not refer to this image or is damaged, UnreadablePixelsError where the
    image is.
    """
    pixels, uid = render(image), read_text(image, "SOPInstanceUID")
    with _naming_damage(report):
        if not refers_to(report, uid):
            raise PermanentError(
                f"the SR {read_text(report, 'SOPInstanceUID')} does not refer to image {uid}; "
                "draw it on an image of its evidence"
            )
        regions = [
            Region(
                region.number,
                region.label,
                region.text,
                region.score,
                tuple(line for shape in region.shapes for line in trace_shape(shape)),
            )
            for region in read_regions(report, uid)
        ]
        passages = [Passage(*listed) for listed in read_listed(report)]
    return draw_page(pixels, regions, passages, note=NOTE if _is_own(report) else "")


def _is_own(ds: Dataset) -> bool:
    return (read_text(ds, "Manufacturer"), read_text(ds, "ManufacturerModelName")) == (MANUFACTURER, MODEL_NAME)


@contextmanager
def _naming_damage(ds: Dataset) -> Iterator[None]:
    try:
        yield
    except DECODE_ERRORS as error:
        raise PermanentError(
            f"the {read_text(ds, 'Modality') or 'instance'} {read_text(ds, 'SOPInstanceUID')} is damaged and cannot be "
            f"drawn ({type(error).__name__}); ask its sender for it again"
        ) from error


def _refuse_other_state(state: Dataset, image: Dataset) -> None:
    uid, of_image = read_text(state, "SOPInstanceUID"), read_text(image, "SOPInstanceUID")
    if read_text(state, "SOPClassUID") != GSPS_SOP_CLASS:
        raise PermanentError(f"instance {uid} is no Grayscale Softcopy Presentation State; no other kind can be drawn")
    if not is_grayscale(image):
        raise PermanentError(f"image {of_image} is in colour; a grayscale presentation state cannot be applied to it")
    series = read_items(state, "ReferencedSeriesSequence")
    if not any(refers_to_image(item, image, when_absent=False) for item in series):
        raise PermanentError(
            f"the presentation state {uid} does not refer to image {of_image}; draw it on the image that it names"
        )


def _apply_state(state: Dataset, image: Dataset, frame: Values) -> Values:
    """Return P-values in [0, 1]: modality, VOI and presentation transformation of the state (PS3.4 N.2.1).

    What the image says of them is not looked at, nor is its photometric interpretation (PS3.4 N.2.1.4). What is absent
    from the state is an identity.
    """
    values = apply_modality(state, frame)
    voi = select_item(state, "SoftcopyVOILUTSequence", image)
    for picture in (apply_window(voi, values), apply_voi_lut(voi, values)) if voi is not None else ():
        if picture is not None:
            return apply_presentation(state, picture)
    low, high = find_modality_range(state, *_stored_range(image, frame))
    return apply_presentation(state, np.clip((values - low) / (high - low or 1.0), 0.0, 1.0))


def _stored_range(image: Dataset, frame: Values) -> tuple[float, float]:
    """Return the range of Bits Stored, signed or not; of float pixels, which have none, that of the frame."""
    if not np.issubdtype(frame.dtype, np.integer):
        return float(np.nanmin(frame)), float(np.nanmax(frame))
    bits = int(read_number(image, "BitsStored") or 8 * frame.dtype.itemsize)
    low = -(2.0 ** (bits - 1)) if read_number(image, "PixelRepresentation") == 1 else 0.0
    return low, low + 2.0**bits - 1.0


def _draw_layers(picture: PillowImage.Image, layers: Sequence[Layer]) -> None:
    """Draw what is on the layers, the first the lowest; no text covers another if there is room."""
    width = canvas.stroke_width(canvas.text_size(picture))
    texts = [writing for layer in layers for writing in layer.writings]
    sizes = [_fit_text(picture, writing) for writing in texts]
    extents = [canvas.measure_text(writing.lines, size) for writing, size in zip(texts, sizes, strict=True)]
    wished = [_find_corner(writing, extent) for writing, extent in zip(texts, extents, strict=True)]
    places = place_labels([writing.box for writing in texts], extents, picture.width, picture.height, wished)
    placed = iter(zip(sizes, places, strict=True))
    for layer in layers:
        for shape in layer.shapes:
            _draw_shape(picture, shape, layer.colour, width)
        # not strict: the places of the layers above are left
        for writing, (size, place) in zip(layer.writings, placed, strict=False):
            if writing.anchor is not None:
                near = np.clip(writing.anchor[0], place[:2], place[2:])
                canvas.draw_lines(picture, [np.stack([near, writing.anchor[0]])], layer.colour, width)
            canvas.draw_text(picture, place, writing.lines, size, layer.colour, writing.align)


def _draw_shape(picture: PillowImage.Image, shape: Shape, colour: str, width: float) -> None:
    lines = trace_shape(shape)
    if shape.is_filled:
        canvas.fill_area(picture, lines[0], colour)
    canvas.draw_lines(picture, canvas.cross_points(lines, width), colour, width)


def _fit_text(picture: PillowImage.Image, writing: Writing) -> int:
    """Return the size at which a text fills its bounding box, as far as it can be read and leaves the picture free."""
    least = canvas.text_size(picture)
    if not writing.is_boxed:
        return least
    left, top, right, bottom = writing.box
    width, height = canvas.measure_text(writing.lines, 100)
    size = min(100.0 * (right - left) / width, 100.0 * (bottom - top) / height, MAX_TEXT * picture.height)
    return max(round(size), round(0.8 * least))


def _find_corner(writing: Writing, extent: tuple[float, float]) -> tuple[float, float] | None:
    """Return where a text of `extent` begins in its bounding box."""
    left, top, right, _ = writing.box
    return (left + writing.align * (right - left - extent[0]), top) if writing.is_boxed else None
