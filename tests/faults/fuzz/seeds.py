"""What is mutated: what the builders make, and the shared files where they lie beside the repository."""

from __future__ import annotations

import functools
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
)

from tests.builders import (
    COMPREHENSIVE_3D_SR,
    CR_STORAGE,
    encode,
    make_cda_dataset,
    make_code,
    make_cxr_dataset,
    make_pixels,
    make_report_dataset,
)

SHARED = Path(__file__).parents[4] / "shared" / "data" / "dicom"

CDA = """<?xml version="1.0" encoding="UTF-8"?>
<ClinicalDocument xmlns="urn:hl7-org:v3"><title>Chest radiograph</title><languageCode code="en"/>
<component><structuredBody>
<component><section><code code="59776-5" codeSystem="2.16.840.1.113883.6.1"/><title>Findings</title>
<text><paragraph>Small left pleural effusion.</paragraph><list><item>No pneumothorax.</item></list>
<table><tr><td>Heart</td><td>normal</td></tr></table></text>
<component><section><title>Lungs</title>
<text>Clear <content revised="delete">not</content>.</text></section></component>
</section></component>
<component><section><title>Impression</title><text>Left effusion.</text></section></component>
</structuredBody></component></ClinicalDocument>"""


def shared_files(folder: str) -> list[Path]:
    """Return the shared files of a folder, none where there is none."""
    return sorted((SHARED / folder).glob("*.dcm"))


@functools.cache
def datasets() -> tuple[bytes, ...]:
    """Return files of every kind, whole and broken ones."""
    image = make_cxr_dataset()
    made = (
        image, make_cxr_dataset(sop_class_uid=CR_STORAGE), make_report_dataset(image=image),
        make_cda_dataset(CDA, image=image),
        _in(make_cxr_dataset(), ImplicitVRLittleEndian), _in(make_report_dataset(image=image), ImplicitVRLittleEndian),
        _in(make_cxr_dataset(), ExplicitVRBigEndian), _in(make_cxr_dataset(), DeflatedExplicitVRLittleEndian),
    )  # fmt: skip
    return (*map(encode, made), *(path.read_bytes() for path in shared_files("malformed")))


@functools.cache
def reports() -> tuple[bytes, ...]:
    """Return structured reports and CDA documents, as files."""
    image = make_cxr_dataset()
    made = (
        make_report_dataset(image=image), make_report_dataset("FINDINGS: Left effusion.\n\nIMPRESSION: Effusion."),
        make_report_dataset(image=image, sop_class_uid=COMPREHENSIVE_3D_SR),
        _in(make_report_dataset(image=image), ImplicitVRLittleEndian), make_cda_dataset(CDA, image=image),
    )  # fmt: skip
    return (*map(encode, made), *(path.read_bytes() for path in shared_files("structured_reports")))


@functools.cache
def pictures() -> tuple[bytes, ...]:
    """Return images in the transfer syntaxes that the node decodes: all of them with the shared files."""
    made = (
        make_cxr_dataset(), make_cxr_dataset(photometric="MONOCHROME1", PixelPaddingValue=0), make_palette(),
        _in(make_cxr_dataset(), ImplicitVRLittleEndian), _in(make_cxr_dataset(), ExplicitVRBigEndian),
        _in(make_cxr_dataset(), DeflatedExplicitVRLittleEndian), make_luts(), make_baseline(),
        *(_compressed(make_cxr_dataset(), syntax) for syntax in (RLELossless, JPEG2000Lossless, JPEGLSLossless)),
    )  # fmt: skip
    return (*map(encode, made), *(path.read_bytes() for path in shared_files("transfer_syntaxes")))


def make_baseline() -> Dataset:
    """Return an image in JPEG baseline."""
    ds = make_cxr_dataset(pixels=(make_pixels() >> 4).astype(np.uint8))
    coded = BytesIO()
    Image.fromarray(ds.pixel_array).save(coded, "JPEG")
    ds.PixelData = encapsulate([coded.getvalue()])
    ds["PixelData"].is_undefined_length = True
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    return ds


def make_palette() -> Dataset:
    """Return an image whose values are indices of colours."""
    ds = make_cxr_dataset(pixels=(make_pixels() >> 4).astype(np.uint8), photometric="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(ds, f"{colour}PaletteColorLookupTableData", np.arange(256, dtype="<u2").tobytes())
    return ds


def make_luts() -> Dataset:
    """Return an image with a Modality LUT and a VOI LUT."""
    ds = make_cxr_dataset(RescaleSlope=None, RescaleIntercept=None, WindowCenter=None, WindowWidth=None)
    for keyword in ("ModalityLUTSequence", "VOILUTSequence"):
        lut = make_code("1", "99X", "LUT")
        lut.add_new("LUTDescriptor", "US", [4096, 0, 16])
        lut.add_new("LUTData", "OW", np.arange(0, 65536, 16, dtype="<u2").tobytes())
        lut.ModalityLUTType = "US"
        setattr(ds, keyword, [lut])
    return ds


def _in(ds: Dataset, syntax: UID) -> Dataset:
    """Return `ds` in another uncompressed transfer syntax."""
    ds.file_meta.TransferSyntaxUID = syntax
    if syntax == ExplicitVRBigEndian and "PixelData" in ds:
        ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    return ds


def _compressed(ds: Dataset, syntax: UID) -> Dataset:
    ds.compress(syntax, generate_instance_uid=False)
    return ds
