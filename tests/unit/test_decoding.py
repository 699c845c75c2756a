"""The process that decodes: a frame that ends it, or keeps it, costs one image and nothing else."""

from __future__ import annotations

import os
import signal
import struct

import numpy as np
import pytest
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import JPEG2000Lossless, RLELossless

from dicom_node import decoding
from dicom_node.decoding import DecodingError, decode_apart
from dicom_node.errors import TransientError
from dicom_node.jpeg_extended import EXTENDED
from dicom_node.pixels import UnreadablePixelsError, render
from tests.builders import make_cxr_dataset, make_pixels


@pytest.fixture
def compressed():
    """An image in JPEG 2000, and its frame."""
    ds = make_cxr_dataset()
    ds.compress(JPEG2000Lossless, generate_instance_uid=False)
    return ds, get_frame(ds.PixelData, 0, number_of_frames=1)


def decode(compressed):
    ds, frame = compressed
    return decode_apart(ds, frame, str(JPEG2000Lossless), ("pylibjpeg",))


def running():
    """Return the process that decodes."""
    process = decoding._decoder._process
    assert process is not None
    return process


def test_frames_are_decoded_by_one_process(compressed):
    np.testing.assert_array_equal(decode(compressed), make_pixels())
    process = running()
    np.testing.assert_array_equal(decode(compressed), make_pixels())
    assert running() is process


def test_what_cannot_be_decoded_leaves_the_process_as_it_is(compressed):
    decode(compressed)
    process = running()
    with pytest.raises(DecodingError, match="RuntimeError"):
        decode_apart(compressed[0], compressed[1][:60], str(JPEG2000Lossless), ("pylibjpeg", "pillow"))
    assert running() is process


def test_a_frame_that_makes_the_decoder_panic_is_named_and_the_next_is_decoded(compressed):
    ds = make_cxr_dataset()
    ds.compress(RLELossless, generate_instance_uid=False)
    frame = get_frame(ds.PixelData, 0, number_of_frames=1)
    segment = int.from_bytes(frame[4:8], "little")
    too_long = frame[:segment] + b"\x81\x00" * 120 + frame[segment:]  # more than the segment has
    ds.PixelData = encapsulate([struct.pack("<II", 2, 64) + too_long[8:]])
    ds["PixelData"].is_undefined_length = True
    with pytest.raises(UnreadablePixelsError, match="cannot be decoded"):
        render(ds)
    np.testing.assert_array_equal(decode(compressed), make_pixels())


def test_a_frame_that_ends_gdcm_is_named_and_the_next_is_decoded(compressed):
    sof = b"\xff\xc1\x00\x0b\x0c" + struct.pack(">HHB", 140, 96, 1) + b"\x01\x11\x00"
    ds = make_cxr_dataset()
    ds.file_meta.TransferSyntaxUID = EXTENDED
    ds.PixelData = encapsulate([b"\xff\xd8" + sof + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00\xff\xd9"])
    ds["PixelData"].is_undefined_length = True
    with pytest.raises(UnreadablePixelsError, match="cannot be decoded"):
        render(ds)
    np.testing.assert_array_equal(decode(compressed), make_pixels())


def test_a_decoder_that_takes_too_long_is_ended(compressed, monkeypatch):
    decode(compressed)
    os.kill(running().pid, signal.SIGSTOP)
    monkeypatch.setattr(decoding, "DECODE_S", 0.2)
    with pytest.raises(DecodingError, match="takes too long"):
        decode(compressed)
    monkeypatch.undo()
    np.testing.assert_array_equal(decode(compressed), make_pixels())


def test_a_decoder_that_was_killed_is_no_fault_of_the_frame(compressed):
    decode(compressed)
    os.kill(running().pid, signal.SIGKILL)
    with pytest.raises(TransientError, match="killed"):
        decode(compressed)
    np.testing.assert_array_equal(decode(compressed), make_pixels())


def test_a_decoder_that_talks_nonsense_is_replaced(compressed, monkeypatch):
    decode(compressed)
    process = running()
    monkeypatch.setattr(decoding, "_exchange", lambda *_: (_ for _ in ()).throw(KeyError("dtype")))
    with pytest.raises(DecodingError):
        decode(compressed)
    monkeypatch.undo()
    assert process.poll() is not None
    np.testing.assert_array_equal(decode(compressed), make_pixels())
