"""Content items of the SR (PS3.16 TID 1500, 1410, 1600): what is said, item by item. The modules are in `sr`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import highdicom as hd
import numpy as np
from highdicom.sr import (
    CodeContentItem,
    CodedConcept,
    CompositeContentItem,
    ContainerContentItem,
    ContentSequence,
    ImageContentItem,
    NumContentItem,
    ScoordContentItem,
    TextContentItem,
    UIDRefContentItem,
)
from highdicom.sr import RelationshipTypeValues as Relationship
from highdicom.sr.value_types import ContentItem
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code

from dicom_node.header import MANUFACTURER, read_number, read_text, read_value
from dicom_node.results import codes
from dicom_node.results.identity import remark_uid, tracking_uid
from dicom_node.results.shapes import trace_corners
from dicom_node.results.values import GSPS_SOP_CLASS, NOTE, Mark, Remark, ResultInput, read_size
from grounding.types import Finding

SINGLE_FRAME_CLASSES = frozenset(
    {
        "1.2.840.10008.5.1.4.1.1.1",  # CR
        "1.2.840.10008.5.1.4.1.1.1.1",  # DX for presentation
        "1.2.840.10008.5.1.4.1.1.1.1.1",  # DX for processing
        "1.2.840.10008.5.1.4.1.1.7",  # Secondary Capture
    }
)
"""Classes whose instances have one frame by definition, whatever a header says: no frame number may be named."""

NO_PHRASES = "The report names no finding that was looked for in the image."


@dataclass(frozen=True, slots=True)
class ImageReference:
    """How an image is referred to; `frames` is [1] for multi-frame images: the first frame is grounded."""

    sop_class_uid: str
    sop_instance_uid: str
    frames: list[int] | None


def refer_to(image: Dataset) -> ImageReference:
    """Return the reference to `image`; Referenced Frame Number only where there are several (PS3.3 Table 10-3)."""
    sop_class_uid = read_text(image, "SOPClassUID")
    has_frames = (read_number(image, "NumberOfFrames") or 1) > 1 and sop_class_uid not in SINGLE_FRAME_CLASSES
    return ImageReference(sop_class_uid, read_text(image, "SOPInstanceUID"), [1] if has_frames else None)


def read_spacing(image: Dataset) -> tuple[float, float] | None:
    """Return (row, column) spacing in mm: Pixel Spacing, else Imager Pixel Spacing; None where zero or absent."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing"):
        value = read_value(image, keyword)
        if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
            row, column = float(value[0]), float(value[1])
            if row > 0 and column > 0:
                return row, column
    return None


def tracking_identifier(result: ResultInput, number: int) -> str:
    """Return the human identifier of a box. OHIF before 3.12 takes a rectangle from exactly this tool name."""
    if result.options.tracking == "cornerstone":
        return f"Cornerstone3DTools@^0.1.0:RectangleROI:{number}"
    return f"Finding {number}"


def build_measurement_group(result: ResultInput, mark: Mark) -> hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations:
    """Return the TID 1410 group of one box."""
    finding = mark.finding
    image = refer_to(result.images[finding.image])
    points = trace_corners(mark.box)
    certainty = hd.sr.Measurement(name=codes.CERTAINTY, value=round(100.0 * float(mark.score), 1), unit=codes.PERCENT)
    group = hd.sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=tracking_uid(result, mark.number), identifier=tracking_identifier(result, mark.number)
        ),
        finding_type=codes.to_code(finding.finding) if finding.finding is not None else None,
        finding_sites=_build_sites(finding),
        algorithm_id=build_algorithm(result),
        referenced_region=hd.sr.ImageRegion(hd.sr.GraphicTypeValues.POLYLINE, points, _build_source_image(image)),
        geometric_purpose=codes.BOUNDED_BY,
        measurements=[certainty],
    )
    items = group[0].ContentSequence
    _attach_region(items, image, points)
    items.append(_build_phrase(result, finding))
    if mark.on_other_side:
        items.append(CodeContentItem(codes.LATERALITY_CHECK, codes.ON_OTHER_SIDE, Relationship.CONTAINS))
    path = result.report.find_item_path(finding.source)
    if path:
        items.append(TextContentItem(codes.SOURCE_PATH, path, Relationship.CONTAINS))
    return group


def build_algorithm(result: ResultInput) -> hd.sr.AlgorithmIdentification:
    """Return the TID 4019 identification of the model."""
    model = result.grounding.model
    parameters = [
        f"checkpoint sha256={model.sha256}",
        "certainty=score of the box in percent",
        f"min_confidence={result.options.min_confidence:g}",
    ]
    return hd.sr.AlgorithmIdentification(model.name, model.version, parameters=parameters, manufacturer=MANUFACTURER)


def build_qualitative_evaluations(result: ResultInput, remarks: Sequence[Remark]) -> ContainerContentItem:
    """Return the container of the phrases that have no box (TID 1500 rows 12 and 14), with what the document is."""
    items = [_build_remark(result, number, remark) for number, remark in enumerate(remarks, 1)]
    if not result.grounding.findings:
        items = [_text(codes.COMMENT, NO_PHRASES)]
    return _contain(codes.QUALITATIVE_EVALUATIONS, [*items, _text(codes.COMMENT, NOTE)])


def build_image_library(result: ResultInput, gsps_uids: Sequence[str | None]) -> ContainerContentItem:
    """Return the TID 1600 library; `gsps_uids` name the presentation state of each image, None for none.

    By hand: highdicom's class fails on ordinary CR images without Imager Pixel Spacing or Patient Orientation.
    """
    entries = [_build_library_entry(image, uid) for image, uid in zip(result.images, gsps_uids, strict=True)]
    return _contain(codes.IMAGE_LIBRARY, [_contain(codes.IMAGE_LIBRARY_GROUP, entries)])


def build_observer(result: ResultInput, uid: str) -> hd.sr.ObservationContext:
    """Return the TID 1001 context: a device observed, not a person."""
    model = result.grounding.model
    attributes = hd.sr.DeviceObserverIdentifyingAttributes(
        uid=uid,
        name=result.equipment.station or model.name,
        manufacturer_name=MANUFACTURER,
        model_name=model.name,
        serial_number=model.version,
    )
    return hd.sr.ObservationContext(
        observer_device_context=hd.sr.ObserverContext(
            observer_type=CodedConcept.from_code(codes.DEVICE), observer_identifying_attributes=attributes
        )
    )


def separate(root: Dataset) -> None:
    """Mark every container SEPARATE: highdicom writes CONTINUOUS, which renderers run together without names."""
    for item in walk_tree(root):
        if read_text(item, "ValueType") == "CONTAINER":
            item.ContinuityOfContent = "SEPARATE"


def walk_tree(root: Dataset) -> Iterable[Dataset]:
    """Yield `root` and all content items below it, parents first."""
    stack = [root]
    while stack:
        item = stack.pop()
        yield item
        stack.extend(reversed(list(item.get("ContentSequence", []))))


def _build_sites(finding: Finding) -> list[hd.sr.FindingSite] | None:
    if finding.site is None or (concept := codes.to_code(finding.site.concept)) is None:
        return None
    side = codes.SIDES[finding.site.laterality] if finding.site.laterality is not None else None
    return [hd.sr.FindingSite(concept, laterality=side)]


def _build_source_image(image: ImageReference) -> hd.sr.SourceImageForRegion:
    return hd.sr.SourceImageForRegion(
        image.sop_class_uid, image.sop_instance_uid, referenced_frame_numbers=image.frames
    )


def _attach_region(items: ContentSequence, image: ImageReference, points: NDArray[np.float32]) -> None:
    """Give the certainty its own copy of the region: OHIF hydrates a box only from a number with coordinates."""
    number = next(item for item in items if item.ValueType == "NUM")
    region = ScoordContentItem(
        codes.IMAGE_REGION,
        hd.sr.GraphicTypeValues.POLYLINE,
        points,
        relationship_type=Relationship.INFERRED_FROM,
    )
    region.ContentSequence = ContentSequence([_build_source_image(image)])
    number.ContentSequence = ContentSequence([region])


def _build_phrase(result: ResultInput, finding: Finding) -> TextContentItem:
    phrase = _text(codes.COMMENT, finding.phrase)
    source = _build_source_report(result)
    if source:
        phrase.ContentSequence = ContentSequence(source)
    return phrase


def _build_source_report(result: ResultInput) -> list[CompositeContentItem]:
    if result.report_header is None:
        return []
    return [
        CompositeContentItem(
            codes.SOURCE_REPORT,
            referenced_sop_class_uid=read_text(result.report_header, "SOPClassUID"),
            referenced_sop_instance_uid=read_text(result.report_header, "SOPInstanceUID"),
            relationship_type=Relationship.INFERRED_FROM,
        )
    ]


def _build_remark(result: ResultInput, number: int, remark: Remark) -> TextContentItem:
    """Return one phrase without a box. A positive code is never given to what the report denies.

    Its name is its status, not "Finding": the phrase of "no pleural effusion" is "pleural effusion", and viewers that
    drop child items would show that as a finding.
    """
    finding = remark.finding
    item = _text(remark.status, finding.phrase)
    identifier = hd.sr.TrackingIdentifier(uid=remark_uid(result, number), identifier=f"Phrase {number}")
    children = [*identifier, CodeContentItem(codes.STATUS, remark.status, Relationship.HAS_CONCEPT_MOD)]
    code = codes.to_code(finding.finding) if finding.finding is not None and not finding.negated else None
    if code is not None:
        children.append(CodeContentItem(codes.FINDING, code, Relationship.HAS_PROPERTIES))
    path = result.report.find_item_path(finding.source)
    if path:
        children.append(TextContentItem(codes.SOURCE_PATH, path, Relationship.HAS_PROPERTIES))
    item.ContentSequence = ContentSequence(children + _build_source_report(result))
    return item


def _build_library_entry(image: Dataset, gsps_uid: str | None) -> ImageContentItem:
    reference = refer_to(image)
    entry = ImageContentItem(
        name=codes.SOURCE,
        referenced_sop_class_uid=reference.sop_class_uid,
        referenced_sop_instance_uid=reference.sop_instance_uid,
        referenced_frame_numbers=reference.frames,
        relationship_type=Relationship.CONTAINS,
    )
    if gsps_uid is not None:
        state = Dataset()
        state.ReferencedSOPClassUID, state.ReferencedSOPInstanceUID = GSPS_SOP_CLASS, gsps_uid
        entry.ReferencedSOPSequence[0].ReferencedSOPSequence = [state]
    modality = codes.MODALITIES.get(read_text(image, "Modality"), codes.MODALITIES["RG"])
    children: list[ContentItem] = [CodeContentItem(codes.MODALITY, modality, Relationship.HAS_ACQ_CONTEXT)]
    if frame_of_reference := read_text(image, "FrameOfReferenceUID"):
        children.append(
            UIDRefContentItem(codes.FRAME_OF_REFERENCE_UID, frame_of_reference, Relationship.HAS_ACQ_CONTEXT)
        )
    entry.ContentSequence = ContentSequence(children + _build_geometry(image))
    return entry


def _build_geometry(image: Dataset) -> list[ContentItem]:
    rows, columns = read_size(image)
    items: list[ContentItem] = [
        _number(codes.PIXEL_ROWS, str(rows), codes.PIXELS),
        _number(codes.PIXEL_COLUMNS, str(columns), codes.PIXELS),
    ]
    orientation = read_value(image, "PatientOrientation")
    if orientation is not None and not isinstance(orientation, str) and len(orientation) == 2 and all(orientation):
        row, column = (str(direction) for direction in orientation)
        items += [
            TextContentItem(codes.PATIENT_ORIENTATION_ROW, row, Relationship.HAS_ACQ_CONTEXT),
            TextContentItem(codes.PATIENT_ORIENTATION_COLUMN, column, Relationship.HAS_ACQ_CONTEXT),
        ]
    spacing = read_spacing(image)
    if spacing is not None:
        items += [
            _number(codes.PIXEL_SPACING_HORIZONTAL, f"{spacing[1]:.10g}", codes.MILLIMETER),
            _number(codes.PIXEL_SPACING_VERTICAL, f"{spacing[0]:.10g}", codes.MILLIMETER),
        ]
    return items


def _number(name: Code, value: str, unit: Code) -> NumContentItem:
    """Return a number written as `value` says: pydicom writes 1000 as "1000.0"."""
    item = NumContentItem(name, float(value), unit, relationship_type=Relationship.HAS_ACQ_CONTEXT)
    item.MeasuredValueSequence[0].NumericValue = value
    return item


def _text(name: Code, value: str) -> TextContentItem:
    return TextContentItem(name, value, Relationship.CONTAINS)


def _contain(name: Code, items: Sequence[ContentItem]) -> ContainerContentItem:
    container = ContainerContentItem(name, relationship_type=Relationship.CONTAINS)
    container.ContentSequence = ContentSequence(items)
    return container
