"""Lossy JPEG of 8 and 12 bits as DCMTK writes it, decoded to the pixels that DCMTK itself decodes it to."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest

from dicom_node.jpeg_extended import EXTENDED, FULL_PROGRESSION, SPECTRAL_SELECTION
from dicom_node.pixels import decode_frame
from tests.acceptance.peers import require, run_peer
from tests.builders import make_cxr_dataset, write

PROCESSES = {EXTENDED: "+ee", SPECTRAL_SELECTION: "+es", FULL_PROGRESSION: "+ep"}


@pytest.mark.parametrize(("bits", "depth"), [(8, "+be"), (12, "+bt")])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(("syntax", "option"), PROCESSES.items())
def test_lossy_jpeg_decodes_as_dcmtk_decodes_it(syntax, option, photometric, bits, depth, tmp_path):
    require("dcmcjpeg", "dcmdjpeg")
    native = write(make_cxr_dataset(photometric=photometric), tmp_path / "native.dcm")
    run_peer(["dcmcjpeg", option, "+q", "90", depth, str(native), str(tmp_path / "jpeg.dcm")])
    run_peer(["dcmdjpeg", str(tmp_path / "jpeg.dcm"), str(tmp_path / "decoded.dcm")])
    encoded = pydicom.dcmread(tmp_path / "jpeg.dcm")
    assert encoded.file_meta.TransferSyntaxUID == syntax
    assert encoded.BitsStored == bits
    reference = pydicom.dcmread(tmp_path / "decoded.dcm").pixel_array
    assert reference.std() > 10
    np.testing.assert_array_equal(decode_frame(encoded), reference)
