"""What SR and presentation state have in common: equipment, instants, the header they are built from."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from highdicom import _standard_utils, base, base_content, content
from highdicom.sr import content as sr_content
from pydicom.dataset import Dataset

from dicom_node.header import MANUFACTURER, copy_identity, read_text, read_timezone
from dicom_node.results import codes
from dicom_node.results.identity import device_uid
from dicom_node.results.values import ResultInput, read_size

_does_iod_have_pixel_data = functools.cache(_standard_utils.does_iod_have_pixel_data)
base_content.does_iod_have_pixel_data = content.does_iod_have_pixel_data = _does_iod_have_pixel_data
base.is_attribute_in_iod = sr_content.is_attribute_in_iod = functools.cache(_standard_utils.is_attribute_in_iod)
"""highdicom goes through all attributes of a SOP class for each reference to an image: a fifth of writing results."""


def copy_for_writing(ds: Dataset) -> Dataset:
    """Return what highdicom needs of a received header, safe: it raises on absent or odd attributes.

    Without the names of people: highdicom puts names that it doubts into warnings. They are added afterwards.
    """
    header = copy_identity(ds)
    header.PatientName = header.ReferringPhysicianName = ""
    for keyword in ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "Modality"):
        setattr(header, keyword, read_text(ds, keyword))
    header.Rows, header.Columns = read_size(ds)
    header.SamplesPerPixel = 1
    return header


def add_equipment(ds: Dataset, result: ResultInput) -> None:
    """Name the model as the contributing equipment (IHE AIR), with a Device UID per version, and the node's station."""
    model = result.grounding.model
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = [codes.make_code_item(codes.PROCESSING_EQUIPMENT)]
    item.Manufacturer, item.ManufacturerModelName = MANUFACTURER, model.name
    item.SoftwareVersions, item.DeviceUID = model.version, device_uid(model)
    ds.ContributingEquipmentSequence = [item]
    if result.equipment.station:
        ds.StationName = result.equipment.station[:16]


def stamp(ds: Dataset, result: ResultInput, prefixes: Sequence[str]) -> None:
    """Write the instant of the job into every date and time: highdicom reads the clock.

    Local time, because the study's dates are; Timezone Offset From UTC is written where the image has it, as it then
    holds for the copied dates too (PS3.3 C.12.1.1.8).
    """
    stated = read_timezone(result.images[0])
    instant = result.created_at.astimezone(stated or result.local_timezone)
    for prefix in prefixes:
        setattr(ds, f"{prefix}Date", instant.strftime("%Y%m%d"))
        setattr(ds, f"{prefix}Time", instant.strftime("%H%M%S.%f"))
    if stated is not None:
        ds.TimezoneOffsetFromUTC = instant.strftime("%z")
