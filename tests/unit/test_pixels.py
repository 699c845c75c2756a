"""Pixels as a reader would see them: range, polarity, windows, encodings, and what cannot be decoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from dicom_node.errors import NotApplicableError
from dicom_node.pixels import UnreadablePixelsError, render
from tests.builders import MARKS, make_cxr_dataset, make_item, make_pixels

DATA = Path(__file__).parents[3] / "shared" / "data" / "dicom"
RAMP = np.arange(4096, dtype=np.uint16).reshape(32, 128)


def make_ramp(**attributes: Any) -> Dataset:
    values = {"pixels": RAMP, "WindowCenter": None, "WindowWidth": None, **attributes}
    return make_cxr_dataset(**values)


def make_lut(first: int, entries: int, bits: int, **attributes: Any) -> Dataset:
    """Return a LUT item that runs backwards, so that its use shows."""
    table = np.linspace(2**bits - 1, 0, entries).astype(np.uint16)
    lut = Dataset()
    lut.add_new("LUTDescriptor", "US", [entries, first, bits])
    lut.add_new("LUTData", "OW", table.tobytes())
    for keyword, value in attributes.items():
        setattr(lut, keyword, value)
    return lut


def test_rendered_image_has_size_range_and_type():
    image = render(make_cxr_dataset())
    assert (image.shape, image.dtype) == ((140, 96), np.float32)
    assert image.min() >= 0.0
    assert image.max() <= 1.0
    assert image.flags.c_contiguous


def test_bright_marks_stay_where_they_are_stored():
    image = render(make_cxr_dataset())
    for column0, row0, column1, row1 in MARKS.values():
        assert (image[row0:row1, column0:column1] > 0.99).all()


@pytest.mark.parametrize("window", [(2048, 4096), (1500, 800), (None, None)])
def test_monochrome1_is_one_minus_monochrome2(window):
    pixels = make_pixels()
    attributes = {"pixels": pixels, "WindowCenter": window[0], "WindowWidth": window[1]}
    straight = render(make_cxr_dataset(photometric="MONOCHROME2", **attributes))
    inverse = render(make_cxr_dataset(photometric="MONOCHROME1", **attributes))
    np.testing.assert_allclose(straight, 1.0 - inverse, atol=1e-6)


def test_same_chest_stored_either_way_looks_the_same():
    np.testing.assert_allclose(
        render(make_cxr_dataset(photometric="MONOCHROME1")), render(make_cxr_dataset()), atol=2e-3
    )


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_constant_image_is_mid_grey(photometric):
    pixels = np.full((8, 6), 700, np.uint16)
    assert (render(make_cxr_dataset(pixels=pixels, photometric=photometric)) == 0.5).all()


def test_window_maps_its_edges_to_black_and_white():
    image = render(make_ramp(WindowCenter=2048, WindowWidth=1025)).ravel()
    assert image[2047 - 512] == 0.0
    assert image[2047 + 513] == 1.0
    assert image[2047] == pytest.approx(0.5, abs=1e-3)


def test_linear_exact_and_sigmoid_functions_are_followed():
    exact = render(make_ramp(WindowCenter=2048, WindowWidth=1000, VOILUTFunction="LINEAR_EXACT")).ravel()
    sigmoid = render(make_ramp(WindowCenter=2048, WindowWidth=1000, VOILUTFunction="SIGMOID")).ravel()
    assert exact[2298] == pytest.approx(0.75)
    assert sigmoid[2048] == pytest.approx(0.5)
    assert sigmoid[2298] == pytest.approx(1 / (1 + np.exp(-1)), abs=1e-5)


def test_first_of_several_windows_is_used():
    several = make_ramp(WindowCenter=[2048, 100], WindowWidth=[1025, 50])
    np.testing.assert_array_equal(render(several), render(make_ramp(WindowCenter=2048, WindowWidth=1025)))


@pytest.mark.parametrize(
    "window",
    [("90000", "100"), ("2048", "0"), ("2048", "-5"), ("", ""), ("-1e300", "1e-300"), ("2048", None)],
)
def test_useless_window_gives_way_to_percentiles(window):
    image = render(make_ramp(WindowCenter=window[0], WindowWidth=window[1]))
    np.testing.assert_allclose(image, render(make_ramp()), atol=1e-6)
    assert image.std() > 0.2


def test_voi_lut_is_used_where_there_is_no_window():
    image = render(make_ramp(VOILUTSequence=[make_lut(0, 4096, 12)])).ravel()
    assert image[0] == pytest.approx(1.0)
    assert image[-1] == pytest.approx(0.0)


def test_window_wins_over_a_voi_lut_beside_it():
    both = make_ramp(WindowCenter=2048, WindowWidth=4096, VOILUTSequence=[make_lut(0, 4096, 12)])
    assert render(both).ravel()[-1] == pytest.approx(1.0)


def test_broken_voi_lut_gives_way_to_percentiles():
    lut = make_lut(0, 4096, 12)
    del lut.LUTData
    np.testing.assert_allclose(render(make_ramp(VOILUTSequence=[lut])), render(make_ramp()), atol=1e-6)


def test_modality_lut_wins_over_rescale():
    lut = make_lut(0, 4096, 12, ModalityLUTType="US")
    image = render(make_ramp(ModalityLUTSequence=[lut], RescaleSlope=2, RescaleIntercept=5)).ravel()
    assert image[0] > image[-1]


def test_rescale_is_applied_before_the_window():
    image = render(make_ramp(RescaleSlope=2, RescaleIntercept=-1000, WindowCenter=1000, WindowWidth=2001)).ravel()
    assert image[1000] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("rescale", [("0", "0"), ("1", None), ("1e308", "1e308")])
def test_useless_rescale_is_left_out(rescale):
    image = render(make_ramp(RescaleSlope=rescale[0], RescaleIntercept=rescale[1]))
    assert image.std() > 0.2


def test_padding_is_black_and_does_not_count_in_the_grey_range():
    pixels = RAMP % 1000 + 1000
    pixels[:, :40] = 65000
    image = render(make_ramp(pixels=pixels, BitsStored=16, HighBit=15, PixelPaddingValue=65000))
    assert (image[:, :40] == 0.0).all()
    assert image[:, 40:].std() > 0.2


def test_padding_range_covers_all_its_values():
    pixels = RAMP % 1000 + 1000
    pixels[:, :10], pixels[:, 10:20] = 0, 20
    image = render(make_ramp(pixels=pixels, PixelPaddingValue=0, PixelPaddingRangeLimit=20, photometric="MONOCHROME1"))
    assert (image[:, :20] == 0.0).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
def test_signed_and_unsigned_depths_render_alike(dtype):
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    pixels = np.linspace(low, high, 48 * 32).reshape(32, 48).astype(dtype)
    bits = pixels.dtype.itemsize * 8
    image = render(
        make_cxr_dataset(pixels=pixels, BitsStored=bits, HighBit=bits - 1, WindowCenter=None, WindowWidth=None)
    )
    assert (np.diff(image.ravel()) >= 0).all()
    assert image.std() > 0.25


def test_colour_is_reduced_to_luminance():
    pixels = np.zeros((4, 5, 3), np.uint8)
    pixels[..., 1] = 255
    ds = make_cxr_dataset(pixels=pixels, photometric="RGB")
    assert render(ds) == pytest.approx(np.full((4, 5), 0.587), abs=1e-6)


def test_first_of_several_frames_is_rendered():
    frames = np.stack([make_pixels(), 4095 - make_pixels()])
    ds = make_cxr_dataset(NumberOfFrames=2)
    ds.PixelData = frames.tobytes()
    np.testing.assert_array_equal(render(ds), render(make_cxr_dataset()))


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"PixelData": None}, "has no pixels"),
        ({"Rows": None}, "no radiograph has that size"),
        ({"Rows": 65535, "Columns": 65535}, "no radiograph has that size"),
        ({"PixelData": b"\0\1"}, "cannot be decoded"),
        ({"BitsAllocated": 9}, "cannot be decoded"),
        ({"PhotometricInterpretation": None}, "cannot be decoded"),
        ({"PixelRepresentation": None}, "cannot be decoded"),
        ({"SamplesPerPixel": 3}, "cannot be decoded"),
    ],
)
def test_unusable_pixels_are_refused_in_plain_words(attributes, words):
    with pytest.raises(UnreadablePixelsError, match=words) as caught:
        render(make_cxr_dataset(**attributes))
    assert make_cxr_dataset().SOPInstanceUID in str(caught.value)
    assert isinstance(caught.value, NotApplicableError)


def test_unsupported_transfer_syntax_is_named():
    ds = make_cxr_dataset()
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
    with pytest.raises(UnreadablePixelsError, match=r"MPEG2 .* not supported; have it sent uncompressed"):
        render(ds)


def test_missing_transfer_syntax_is_refused():
    ds = make_cxr_dataset()
    del ds.file_meta
    with pytest.raises(UnreadablePixelsError, match="transfer syntax none"):
        render(ds)


def test_report_has_no_pixels():
    with pytest.raises(UnreadablePixelsError, match="no image that can be grounded"):
        render(make_item("TEXT"))


_ODD = st.sampled_from(["", "0", "-1", "1", "7", "16", "33", "70000", "1e308", "nan", "RGB", "PALETTE COLOR", None])
_KEYWORDS = ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel")
_TEXTS = ("PhotometricInterpretation", "WindowCenter", "WindowWidth", "RescaleSlope", "RescaleIntercept")


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(_KEYWORDS + _TEXTS + ("PixelPaddingValue", "NumberOfFrames")), _ODD, max_size=3))
def test_any_header_renders_or_is_refused(attributes):
    ds = make_cxr_dataset(pixels=RAMP)
    for keyword, value in attributes.items():
        ds.pop(keyword, None)
        if value is not None:
            ds.add_new(keyword, "LO", value)
    try:
        image = render(ds)
    except UnreadablePixelsError:
        return
    assert np.isfinite(image).all()
    assert image.min() >= 0.0
    assert image.max() <= 1.0


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared radiographs are not here")
@pytest.mark.parametrize("name", ["NIH-DX-11129.dcm", "RG1_J2KI.dcm", "RG1_JLSN.dcm", "dx_image.dcm"])
def test_real_radiographs_render_with_contrast(name):
    ds = pydicom.dcmread(DATA / "cxr" / name)
    image = render(ds)
    assert image.shape == (ds.Rows, ds.Columns)
    assert image.std() > 0.1


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared radiographs are not here")
def test_malformed_files_render_or_are_refused():
    outcomes = set()
    for path in sorted((DATA / "malformed").glob("*.dcm")):
        try:
            ds = pydicom.dcmread(path, force=True)
        except Exception:  # noqa: BLE001 - which files pydicom itself refuses is not what is tested
            continue
        try:
            outcomes.add(bool(render(ds).ndim == 2))
        except UnreadablePixelsError:
            outcomes.add(False)
    assert outcomes == {True, False}


def test_damaged_palette_is_refused():
    ds = make_cxr_dataset(photometric="PALETTE COLOR")
    with pytest.raises(UnreadablePixelsError, match="are damaged"):
        render(ds)


def test_palette_is_reduced_to_luminance():
    ds = make_cxr_dataset(pixels=np.arange(16, dtype=np.uint8).reshape(4, 4), photometric="PALETTE COLOR")
    for colour in ("Red", "Green", "Blue"):
        ds.add_new(f"{colour}PaletteColorLookupTableDescriptor", "US", [256, 0, 8])
        ds.add_new(f"{colour}PaletteColorLookupTableData", "OW", bytes(range(256)))
    assert render(ds).ravel() == pytest.approx(np.arange(16) / 255, abs=1e-6)
