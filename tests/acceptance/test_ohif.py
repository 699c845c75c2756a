"""The results in OHIF: boxes at the markers, phrases in the measurements, the newest revision, and no failure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset

from dicom_node.results.gsps import build_gsps
from dicom_node.results.sr import SERIES_DESCRIPTION, build_sr
from dicom_node.results.values import NOTE, Reference, ResultInput
from grounding.types import Box
from tests.acceptance.ohif import VERSIONS, Viewer, run_viewer
from tests.acceptance.peers import Network, Orthanc, network, run_peer
from tests.builders import make_cxr_dataset, make_finding, make_report_dataset, make_result_input, write

ROWS, COLUMNS = 900, 700
MARKERS = ((100.0, 150.0, 260.0, 300.0), (420.0, 500.0, 610.0, 780.0))
PHRASES = ("Small left pleural effusion.", "Opacity in the right lower zone.")
TOLERANCE = 2.0
"""Screen pixels between the edge of a box and that of its marker."""


def make_film(study: str, photometric: str = "MONOCHROME2", **attributes: Any) -> Dataset:
    """Return a dark film, higher than wide, with bright rectangles at `MARKERS`."""
    pixels = np.full((ROWS, COLUMNS), 600, np.uint16)
    for x1, y1, x2, y2 in MARKERS:
        pixels[int(y1) : int(y2), int(x1) : int(x2)] = 3900
    stored = 4095 - pixels if photometric == "MONOCHROME1" else pixels
    values = {"WindowCenter": 2048, "WindowWidth": 4096, **attributes}
    return make_cxr_dataset(study=study, photometric=photometric, pixels=stored, **values)


def make_result(study: str, marked: tuple[int, ...], *others: Any, film: Dataset | None = None, **values: Any) -> Any:
    """Return a result whose boxes are the markers of these numbers."""
    image = film if film is not None else make_film(study)
    findings = [make_finding(PHRASES[n], MARKERS[n]) for n in marked]
    report = make_report_dataset(study=study, image=image)
    return make_result_input(image, report=report, findings=[*findings, *others], **values)


def make_revision(study: str) -> list[ResultInput]:
    """Return two revisions: the first marks one rectangle, the second, which names it, the other."""
    first = make_result(study, (0,))
    sr = build_sr(first)
    assert sr is not None
    replaced = Reference(sr.SOPClassUID, sr.SOPInstanceUID, sr.SeriesInstanceUID, sr.StudyInstanceUID)
    return [first, make_result(study, (1,), revision=2, predecessors=(replaced,))]


NEGATED = make_finding("pneumothorax", negated=True)
MISSED = make_finding("Faint nodule at the left apex.")

STUDIES: dict[str, Callable[[], list[ResultInput]]] = {
    "3D": lambda: [make_result("1", (0, 1), NEGATED)],
    "comprehensive, MONOCHROME1, stored mirrored": lambda: [
        make_result(
            "2",
            (0, 1),
            film=make_film("2", "MONOCHROME1", PatientOrientation=["R", "F"]),
            sr_class="comprehensive",
        )
    ],
    "revised": lambda: make_revision("3"),
    "nothing localized": lambda: [make_result("4", (), NEGATED, MISSED)],
    "no findings": lambda: [make_result("5", ())],
    "partly localized": lambda: [make_result("6", (1,), NEGATED, MISSED)],
}


@dataclass
class Archive:
    """Orthanc with all studies, in a network of its own."""

    network: Network
    orthanc: Orthanc
    studies: dict[str, str]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Archive]:
    folder = tmp_path_factory.mktemp("archive")
    with network() as held:
        orthanc = Orthanc(folder / "orthanc", held, 11112, dicomweb=True)
        try:
            studies, paths = {}, []
            for name, make in STUDIES.items():
                results = make()
                studies[name] = str(results[0].images[0].StudyInstanceUID)
                paths += [write(ds, folder / f"{ds.SOPInstanceUID}.dcm") for ds in list_instances(results)]
            command = ["storescu", "-R", "-aec", orthanc.ae_title, "127.0.0.1", str(orthanc.port)]
            run_peer([*held.enter, *command, *map(str, paths)])
            yield Archive(held, orthanc, studies)
        finally:
            orthanc.stop()


def list_instances(results: list[ResultInput]) -> list[Dataset]:
    """Return all instances of a study: images, report, and every revision's results."""
    held = [*results[0].images, results[0].report_header]
    for result in results:
        held += [build_sr(result), *(build_gsps(result, index) for index in range(len(result.images)))]
    return [ds for ds in held if ds is not None]


@pytest.fixture(scope="module", params=VERSIONS)
def viewer(
    request: pytest.FixtureRequest, archive: Archive, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Viewer]:
    folder = tmp_path_factory.mktemp("viewer")
    url = f"http://127.0.0.1:{archive.orthanc.http_port}"
    with run_viewer(request.param, archive.network, url, folder) as running:
        yield running


def assert_at(outlines: list[Box], markers: list[Box]) -> None:
    """Each outline lies on its marker, edge on edge."""
    assert len(outlines) == len(markers)
    for outline, marker in zip(outlines, markers, strict=True):
        assert np.abs(np.subtract(outline.xyxy, marker.xyxy)).max() <= TOLERANCE, (outline, marker)


def open_marked(viewer: Viewer, archive: Archive, name: str, marked: slice) -> str:
    """Open a study's report, whose boxes are to lie on the markers of `marked`, and return its measurements."""
    viewer.open(archive.studies[name])
    markers = viewer.markers()
    assert len(markers) == len(MARKERS)
    viewer.open_report(SERIES_DESCRIPTION)
    expected = markers[marked]
    assert_at(viewer.outlines(len(expected)), expected)
    said = viewer.hydrate(len(expected))
    assert_at(viewer.outlines(len(expected)), viewer.markers()[marked])  # the panel has moved the picture
    assert not viewer.has_crashed
    assert viewer.errors == []
    return said


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["3D", "comprehensive, MONOCHROME1, stored mirrored"])
def test_boxes_lie_on_the_markers_and_become_measurements_with_the_phrase(viewer, archive, name):
    said = open_marked(viewer, archive, name, slice(None))
    assert [phrase for phrase in PHRASES if phrase not in said] == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ["revised", "partly localized"])
def test_of_revisions_the_newest_is_shown_and_phrases_without_a_box_do_no_harm(viewer, archive, name):
    said = open_marked(viewer, archive, name, slice(1, None))
    assert PHRASES[1] in said
    assert PHRASES[0] not in said


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "nothing localized",
            ["Absent or normal in source report", "pneumothorax", "Not localized on image", "Faint nodule", NOTE],
        ),
        ("no findings", ["names no finding", NOTE]),
    ],
)
def test_a_result_without_boxes_is_shown_as_text(viewer, archive, name, words):
    viewer.open(archive.studies[name])
    viewer.open_report(SERIES_DESCRIPTION)
    viewer.page.get_by_text(words[0]).first.wait_for(timeout=30_000)
    said = viewer.text()
    assert [word for word in words if word not in said] == []
    assert "Finding:" not in said  # what is denied or not seen is not called one
    assert not viewer.has_crashed
    assert viewer.errors == []
