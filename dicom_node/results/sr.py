"""The Structured Report that a study's findings go back in (PS3.16 TID 1500), as `docs/results.md` describes it.

highdicom builds the modules; what it gets wrong or leaves out is put right here, step by step with the reason.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import highdicom as hd
from highdicom.sr import CodedConcept, ContentSequence
from pydicom.config import disable_value_validation
from pydicom.dataset import Dataset
from pydicom.uid import UID

from dicom_node.errors import PermanentError
from dicom_node.header import DECODE_ERRORS, MANUFACTURER, MODEL_NAME, PRIVATE_SCHEME, copy_identity, read_text
from dicom_node.results import codes, sr_tree
from dicom_node.results.identity import ResultUids, device_uid, result_uids
from dicom_node.results.modules import add_equipment, copy_for_writing, stamp
from dicom_node.results.values import (
    GSPS_SOP_CLASS,
    SR_SOP_CLASSES,
    Mark,
    Reference,
    Remark,
    ResultInput,
    has_gsps,
    select_result_marks,
)

SERIES_NUMBER = 9001
SERIES_DESCRIPTION = "AI phrase grounding"

_CLASSES = {"comprehensive_3d": hd.sr.Comprehensive3DSR, "comprehensive": hd.sr.ComprehensiveSR}


def build_sr(result: ResultInput) -> Dataset | None:
    """Return the SR of `result`, or None where nothing is localized and no document is wanted then.

    An SR that replaces another is always written: its boxes would stand in the archive otherwise. Raises PermanentError
    where image or report cannot be referred to.
    """
    marks, remarks = select_result_marks(result)
    if not marks and result.options.when_nothing_localized == "none" and not result.predecessors:
        return None
    try:
        with disable_value_validation():
            return _build(result, marks, remarks)
    except DECODE_ERRORS as error:
        image = result.images[0]
        raise PermanentError(
            f"no SR can be written for image {read_text(image, 'SOPInstanceUID')} of SOP class "
            f"{read_text(image, 'SOPClassUID')}: its header cannot be referred to ({type(error).__name__})"
        ) from error


def recast_sr(sr: Dataset, result: ResultInput) -> Dataset:
    """Return what `build_sr` makes of `result`, from the SR that it made of the same in another class.

    Only the identity differs, and which SR of an earlier revision it replaces; the content is shared.
    """
    uids, recast = result_uids(result), Dataset()
    for element in sr:
        recast[element.tag] = element
    recast.file_meta = copy.copy(sr.file_meta)
    sop_class_uid = SR_SOP_CLASSES[result.sr_class]
    recast.file_meta.MediaStorageSOPClassUID = UID(sop_class_uid)
    recast.file_meta.MediaStorageSOPInstanceUID = UID(uids.sr_instance)
    recast.add_new("SOPClassUID", "UI", sop_class_uid)
    recast.add_new("SOPInstanceUID", "UI", uids.sr_instance)
    recast.add_new("SeriesInstanceUID", "UI", uids.sr_series)
    if result.predecessors:
        recast.add_new("PredecessorDocumentsSequence", "SQ", [_make_predecessor(_choose_predecessor(result))])
    return recast


def _build(result: ResultInput, marks: Sequence[Mark], remarks: Sequence[Remark]) -> Dataset:
    uids = result_uids(result)
    gsps_uids = [uid if has_gsps(result, index, marks) else None for index, uid in enumerate(uids.gsps_instances)]
    root = _build_root(result, marks, remarks, gsps_uids)
    ds: Dataset = _CLASSES[result.sr_class](
        evidence=_collect_evidence(result, uids, gsps_uids),
        content=_without_children(root),
        series_instance_uid=uids.sr_series,
        series_number=SERIES_NUMBER,
        sop_instance_uid=uids.sr_instance,
        instance_number=result.revision,
        manufacturer=MANUFACTURER,
        manufacturer_model_name=MODEL_NAME,
        software_versions=result.equipment.software_version,
        device_serial_number=device_uid(result.grounding.model),
        institution_name=result.equipment.institution or None,
        series_description=SERIES_DESCRIPTION,
        is_complete=True,
        is_final=False,
        is_verified=False,
        specific_character_set="ISO_IR 192",
    )
    ds["ContentSequence"] = root["ContentSequence"]
    _copy_identity(ds, result)
    add_equipment(ds, result)
    _add_references(ds, result)
    stamp(ds, result, ("InstanceCreation", "Content", "Series"))
    return ds


def _without_children(root: Dataset) -> Dataset:
    """Return the root alone: highdicom copies what it is given, and searches it several times over."""
    bare = Dataset()
    for element in root:
        bare[element.tag] = element
    bare.add_new("ContentSequence", "SQ", [])
    return bare


def _build_root(
    result: ResultInput, marks: Sequence[Mark], remarks: Sequence[Remark], gsps_uids: Sequence[str | None]
) -> Dataset:
    root = _build_template(result, marks)
    items = list(root.ContentSequence)
    place = next(n for n, item in enumerate(items) if item.name == codes.IMAGING_MEASUREMENTS)
    if not marks:
        del items[place]
    items.insert(place, sr_tree.build_image_library(result, gsps_uids))
    items.append(sr_tree.build_qualitative_evaluations(result, remarks))
    root.ContentSequence = ContentSequence(items)
    if not marks and (result.options.when_nothing_localized != "tid1500" or not remarks):
        # OHIF up to 3.14 fails on a measurement report without measurements: the document takes another title
        root.ConceptNameCodeSequence = [CodedConcept.from_code(codes.LOCALIZATION_REPORT)]
        del root.ContentTemplateSequence
    sr_tree.separate(root)
    return root


def _build_template(result: ResultInput, marks: Sequence[Mark]) -> Dataset:
    """Return the root of TID 1500. highdicom refuses a report without groups: a stub stands in, to be removed."""
    stub = hd.sr.MeasurementsAndQualitativeEvaluations(
        hd.sr.TrackingIdentifier(uid=device_uid(result.grounding.model), identifier="none")
    )
    report = hd.sr.MeasurementReport(
        observation_context=sr_tree.build_observer(result, device_uid(result.grounding.model)),
        imaging_measurements=[sr_tree.build_measurement_group(result, mark) for mark in marks] or [stub],
        title=codes.MEASUREMENT_REPORT,
        procedure_reported=codes.PROCEDURE,
        language_of_content_item_and_descendants=hd.sr.LanguageOfContentItemAndDescendants(_language(result)),
    )
    root: Dataset = report[0]
    return root


def _language(result: ResultInput) -> CodedConcept:
    """Return the language of the phrases, which is the report's."""
    stated = codes.to_code(result.report.language) if result.report.language is not None else None
    return CodedConcept.from_code(stated or codes.ENGLISH)


def _collect_evidence(result: ResultInput, uids: ResultUids, gsps_uids: Sequence[str | None]) -> list[Dataset]:
    evidence = [copy_for_writing(image) for image in result.images]
    if result.report_header is not None:
        evidence.append(copy_for_writing(result.report_header))
    study = read_text(result.images[0], "StudyInstanceUID")
    references = [Reference(GSPS_SOP_CLASS, uid, uids.gsps_series, study) for uid in gsps_uids if uid is not None]
    return evidence + [_make_evidence(reference) for reference in references]


def _make_evidence(reference: Reference) -> Dataset:
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = reference.sop_class_uid, reference.sop_instance_uid
    ds.SeriesInstanceUID, ds.StudyInstanceUID = reference.series_instance_uid, reference.study_instance_uid
    return ds


def _copy_identity(ds: Dataset, result: ResultInput) -> None:
    """Take over patient and study as the image has them, also what highdicom leaves out."""
    for element in copy_identity(result.images[0]):
        ds[element.tag] = element


def _add_references(ds: Dataset, result: ResultInput) -> None:
    scheme = Dataset()
    scheme.CodingSchemeDesignator, scheme.CodingSchemeName = PRIVATE_SCHEME, codes.SCHEME_NAME
    scheme.CodingSchemeResponsibleOrganization = MANUFACTURER
    ds.CodingSchemeIdentificationSequence = [scheme]
    if result.report_header is not None:
        source = Dataset()
        source.ReferencedSOPClassUID = read_text(result.report_header, "SOPClassUID")
        source.ReferencedSOPInstanceUID = read_text(result.report_header, "SOPInstanceUID")
        source.PurposeOfReferenceCodeSequence = [codes.make_code_item(codes.SOURCE_DOCUMENT)]
        ds.ReferencedInstanceSequence = [source]
    if result.predecessors:
        ds.PredecessorDocumentsSequence = [_make_predecessor(_choose_predecessor(result))]


def _choose_predecessor(result: ResultInput) -> Reference:
    """Return the instance that an archive which takes this SOP class is likely to hold: that of the same class."""
    own = SR_SOP_CLASSES[result.sr_class]
    same = (reference for reference in result.predecessors if reference.sop_class_uid == own)
    return next(same, result.predecessors[0])


def _make_predecessor(predecessor: Reference) -> Dataset:
    """Return the item that says which SR of ours this one replaces; highdicom writes it without the purpose."""
    instance, series, study = Dataset(), Dataset(), Dataset()
    instance.ReferencedSOPClassUID = predecessor.sop_class_uid
    instance.ReferencedSOPInstanceUID = predecessor.sop_instance_uid
    instance.PurposeOfReferenceCodeSequence = [codes.make_code_item(codes.REPLACED_REPORT)]
    series.SeriesInstanceUID, series.ReferencedSOPSequence = predecessor.series_instance_uid, [instance]
    study.StudyInstanceUID, study.ReferencedSeriesSequence = predecessor.study_instance_uid, [series]
    return study
