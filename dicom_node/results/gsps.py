"""The Grayscale Softcopy Presentation State of an image: its boxes and labels for viewers that draw no SR.

One per image. Coordinates are those of the SR, in PIXEL units; the labels are short, the phrases are in the SR.
"""

from __future__ import annotations

from collections.abc import Sequence

import highdicom as hd
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from dicom_node.errors import PermanentError
from dicom_node.header import DECODE_ERRORS, MANUFACTURER, MODEL_NAME, copy_identity, read_text, read_value
from dicom_node.results import luts
from dicom_node.results.identity import device_uid, result_uids, tracking_uid
from dicom_node.results.labels import Rect, place_labels
from dicom_node.results.modules import add_equipment, copy_for_writing, stamp
from dicom_node.results.shapes import trace_corners
from dicom_node.results.sr_tree import read_spacing, refer_to, tracking_identifier
from dicom_node.results.values import Mark, ResultInput, has_gsps, read_size, select_result_marks

SERIES_NUMBER = 9002
SERIES_DESCRIPTION = "AI phrase grounding overlay"
CONTENT_LABEL = "AI GROUNDING"
CREATOR = "KnowMVG^Node"

LABEL_HEIGHT = 0.025
"""Height of a line of text as a share of the image's rows; at least 12 pixels."""

CHARACTER_WIDTH = 0.6
"""Mean width of a character as a share of the line's height."""

_GREEN = hd.color.CIELabColor(85.0, -50.0, 80.0)
_WHITE = 65535
_UNPAIRED = (
    "ABDOMEN", "ABDOMENPELVIS", "AORTA", "BLADDER", "BRAIN", "CERVIX", "CHEST", "CHESTABDOMEN",
    "CHESTABDPELVIS", "COCCYX", "COLON", "CSPINE", "CTSPINE", "DUODENUM", "ESOPHAGUS", "FACE", "GALLBLADDER",
    "HEAD", "HEADNECK", "HEART", "JAW", "JEJUNUM", "LARYNX", "LIVER", "LSPINE", "LSSPINE", "MAXILLA",
    "MEDIASTINUM", "MOUTH", "NECK", "NECKCHEST", "NECKCHESTABDOMEN", "NOSE", "PANCREAS", "PELVIS", "PENIS",
    "PHARYNX", "PROSTATE", "RECTUM", "SKULL", "SPINE", "SPLEEN", "SSPINE", "STERNUM", "STOMACH", "THYMUS",
    "THYROID", "TLSPINE", "TONGUE", "TRACHEA", "TSPINE", "UTERUS", "VAGINA", "WHOLEBODY",
)  # fmt: skip
"""Defined terms of PS3.16 Annex L that are not paired, as validators know them: THORAX is no such term."""


def build_gsps(result: ResultInput, image_index: int) -> Dataset | None:
    """Return the presentation state of one image, or None where it has no box or is a colour image.

    Raises PermanentError where the image cannot be referred to.
    """
    marks, _ = select_result_marks(result)
    if not has_gsps(result, image_index, marks):
        return None
    try:
        with disable_value_validation():
            return _build(result, image_index, [mark for mark in marks if mark.finding.image == image_index])
    except DECODE_ERRORS as error:
        image = result.images[image_index]
        raise PermanentError(
            f"no presentation state can be written for image {read_text(image, 'SOPInstanceUID')} of SOP class "
            f"{read_text(image, 'SOPClassUID')}: its header cannot be referred to ({type(error).__name__})"
        ) from error


def _build(result: ResultInput, image_index: int, marks: Sequence[Mark]) -> Dataset:
    image = result.images[image_index]
    header = copy_for_writing(image)
    # highdicom looks there for the grey scale of multi-frame images; these have it, if at all, in the header itself
    header.SharedFunctionalGroupsSequence, header.PerFrameFunctionalGroupsSequence = [Dataset()], []
    uids = result_uids(result)
    layers = _build_layers()
    voi = luts.build_voi(image) if result.options.window == "image" else None
    groups = [hd.pr.GraphicGroup(number, _write_label(mark.label)) for number, mark in enumerate(marks, 1)]
    ds: Dataset = hd.pr.GrayscaleSoftcopyPresentationState(
        referenced_images=[header],
        series_instance_uid=uids.gsps_series,
        series_number=SERIES_NUMBER,
        sop_instance_uid=uids.gsps_instances[image_index],
        instance_number=(result.revision - 1) * len(result.images) + image_index + 1,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=result.equipment.software_version,
        device_serial_number=device_uid(result.grounding.model),
        institution_name=result.equipment.institution or None,
        content_label=CONTENT_LABEL,
        content_description=SERIES_DESCRIPTION,
        content_creator_name=CREATOR,
        graphic_annotations=_build_annotations(result, image, header, marks, layers, groups),
        graphic_layers=layers,
        graphic_groups=groups,
        series_description=SERIES_DESCRIPTION,
        modality_lut_transformation=luts.build_modality(image),
        voi_lut_transformations=[voi] if voi is not None else None,
        presentation_lut_transformation=luts.build_presentation(image),
        specific_character_set="ISO_IR 192",
    )
    _refer_to_frame(ds, image)
    _complete(ds, result, image)
    return ds


def _complete(ds: Dataset, result: ResultInput, image: Dataset) -> None:
    """Add what highdicom leaves out."""
    for element in copy_identity(image):
        ds[element.tag] = element
    for layer in ds.GraphicLayerSequence:
        layer.GraphicLayerRecommendedDisplayGrayscaleValue = _WHITE  # older viewers know no colour
    _add_body_part(ds, image)
    _set_displayed_area(ds, image)
    add_equipment(ds, result)
    stamp(ds, result, ("InstanceCreation", "PresentationCreation", "Series"))


def _build_layers() -> list[hd.pr.GraphicLayer]:
    return [
        hd.pr.GraphicLayer("AIBOX", 1, "AI phrase grounding boxes", _GREEN),
        hd.pr.GraphicLayer("AITEXT", 2, "AI phrase grounding labels", _GREEN),
    ]


def _build_annotations(
    result: ResultInput,
    image: Dataset,
    header: Dataset,
    marks: Sequence[Mark],
    layers: Sequence[hd.pr.GraphicLayer],
    groups: Sequence[hd.pr.GraphicGroup],
) -> list[hd.pr.GraphicAnnotation]:
    boxes, texts = [], []
    for mark, group, place in zip(marks, groups, _place_texts(image, marks), strict=True):
        points = trace_corners(mark.box)
        tracking = tracking_identifier(result, mark.number)
        uid = tracking_uid(result, mark.number)
        box = hd.pr.GraphicObject(
            "POLYLINE", points.astype(float), "PIXEL", tracking_id=tracking, tracking_uid=uid, graphic_group=group
        )
        boxes.append(box)
        text = hd.pr.TextObject(
            _write_label(mark.label),
            "PIXEL",
            bounding_box=place,
            anchor_point=(float(points[0, 0]), float(points[0, 1])),
            text_justification="LEFT",
            anchor_point_visible=False,
            tracking_id=tracking,
            tracking_uid=uid,
            graphic_group=group,
        )
        texts.append(text)
    return [
        hd.pr.GraphicAnnotation([header], layers[0], graphic_objects=boxes),
        hd.pr.GraphicAnnotation([header], layers[1], text_objects=texts),
    ]


def _write_label(label: str) -> str:
    """Return `label` as LO and ST hold it: no backslash (highdicom refuses it), no line break."""
    return " ".join(label.replace("\\", "/").split())


def _place_texts(image: Dataset, marks: Sequence[Mark]) -> list[Rect]:
    rows, columns = read_size(image)
    height = min(max(12.0, rows * LABEL_HEIGHT), float(rows))
    sizes = [(CHARACTER_WIDTH * height * len(mark.label), height) for mark in marks]
    return place_labels([mark.box.xyxy for mark in marks], sizes, columns, rows)


def _refer_to_frame(ds: Dataset, image: Dataset) -> None:
    """Name the frame of a multi-frame image wherever the image is referred to."""
    frames = refer_to(image).frames
    if frames is None:
        return
    for annotation in ds.GraphicAnnotationSequence:
        for reference in annotation.ReferencedImageSequence:
            reference.ReferencedFrameNumber = frames[0]
    for series in ds.ReferencedSeriesSequence:
        for reference in series.ReferencedImageSequence:
            reference.ReferencedFrameNumber = frames[0]


def _add_body_part(ds: Dataset, image: Dataset) -> None:
    """Copy the body part; Laterality is of Type 2C, wanted unless the part is known to be unpaired (PS3.3 C.7.3.1)."""
    body_part, laterality = read_text(image, "BodyPartExamined"), read_text(image, "Laterality")
    if body_part:
        ds.BodyPartExamined = body_part
    if laterality in ("L", "R") or body_part not in _UNPAIRED:
        ds.Laterality = laterality if laterality in ("L", "R") else ""


def _set_displayed_area(ds: Dataset, image: Dataset) -> None:
    """Show the whole image, with its spacing if it has a usable one, else its aspect ratio (PS3.3 C.10.4)."""
    rows, columns = read_size(image)
    area = Dataset()
    area.DisplayedAreaTopLeftHandCorner = [1, 1]
    area.DisplayedAreaBottomRightHandCorner = [columns, rows]
    area.PresentationSizeMode = "SCALE TO FIT"
    spacing, ratio = read_spacing(image), read_value(image, "PixelAspectRatio")
    if spacing is not None:
        area.PresentationPixelSpacing = [f"{value:.10g}" for value in spacing]
    elif isinstance(ratio, MultiValue) and len(ratio) == 2 and all(int(part) > 0 for part in ratio):
        area.PresentationPixelAspectRatio = [int(part) for part in ratio]
    else:
        area.PresentationPixelAspectRatio = [1, 1]
    ds.DisplayedAreaSelectionSequence = [area]
