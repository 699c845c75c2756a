"""The node between foreign peers: films and reports sent by DCMTK, results delivered to an Orthanc and read back.

The films are real where `../shared/data` is there, generated otherwise. One node and one Orthanc serve all tests, in a
network of their own; each test has its own study.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from dicom_node.results.reading import read_boxes
from grounding.phantoms.study import make_study
from tests.acceptance.peers import ROOT, Node, Orthanc, network, require, validate
from tests.builders import (
    DX_PRESENTATION_STORAGE,
    FINDINGS,
    IMPRESSION,
    make_cxr_dataset,
    make_report_dataset,
    make_section,
    write,
)

pytestmark = [pytest.mark.timeout(300)]

DATA = ROOT.parent / "shared" / "data"
SR_CLASSES = ("1.2.840.10008.5.1.4.1.1.88.33", "1.2.840.10008.5.1.4.1.1.88.34")
GSPS = "1.2.840.10008.5.1.4.1.1.11.1"
METASTASES, EFFUSION = "iu-3855", "iu-576"


@dataclass
class Site:
    """A hospital: the node, its archive, and a folder for what is fetched back."""

    node: Node
    orthanc: Orthanc
    folder: Path

    def fetch(self, study_instance_uid: str) -> dict[str, Dataset]:
        """Return what the archive holds of a study, by SOP Instance UID, and check each with dciodvfy."""
        folder = self.folder / study_instance_uid / str(self.orthanc.count())
        paths = self.orthanc.fetch(study_instance_uid, folder)
        faults = {path.name: errors for path in paths if (errors := validate(path))}
        assert not faults
        return {ds.SOPInstanceUID: ds for ds in map(pydicom.dcmread, paths)}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    require("storescu", "echoscu", "getscu", "Orthanc", "dciodvfy")
    folder = tmp_path_factory.mktemp("site")
    with network() as net:
        archive = {"name": "orthanc", "ae_title": "ORTHANC", "host": "127.0.0.1", "port": Orthanc.port}
        node = Node(folder / "node", net.enter, destinations=[archive])
        orthanc = Orthanc(folder / "orthanc", net, node.port)
        try:
            node.start()
            yield Site(node, orthanc, folder / "fetched")
        finally:
            node.stop()
            orthanc.stop()


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A JPEG-LS and a JPEG 2000 film of one study, and an uncompressed one of another patient."""
    folder = tmp_path_factory.mktemp("films")
    real = DATA / "dicom" / "cxr"
    if not real.is_dir():
        drawn = {"jpeg-ls": ("a", 1), "jpeg-2000": ("a", 2), "plain": ("b", 1)}
        return {
            name: write(make_phantom_film(study, number), folder / f"{name}.dcm")
            for name, (study, number) in drawn.items()
        }
    nih = pydicom.dcmread(real / "NIH-DX-11129.dcm")  # sent as a secondary capture by its owner; it is a DX
    nih.SOPClassUID = nih.file_meta.MediaStorageSOPClassUID = DX_PRESENTATION_STORAGE
    nih.ImageType, nih.PresentationIntentType = ["ORIGINAL", "PRIMARY", ""], "FOR PRESENTATION"
    nih.ViewPosition, nih.PatientOrientation, nih.BodyPartExamined = "PA", ["L", "F"], "CHEST"
    nih.PatientAge = "081Y"
    return {
        "jpeg-ls": real / "RG1_JLSN.dcm",
        "jpeg-2000": real / "RG1_J2KI.dcm",
        "plain": write(nih, folder / "nih.dcm"),
    }


def make_phantom_film(study: str, number: int) -> Dataset:
    image = make_study(7, 512).image
    return make_cxr_dataset(study=study, instance=number, pixels=np.asarray(image * 4095, np.uint16))


def make_report(film: Path, report: str, **changes: Any) -> Dataset:
    """Return the SR of an Indiana University report (a generated one without the data), in the study of `film`."""
    texts = find_report(report)
    sections = [make_section(FINDINGS, [texts["findings"]]), make_section(IMPRESSION, [texts["impression"]])]
    image = pydicom.dcmread(film, stop_before_pixels=True)
    return make_report_dataset(sections, study=f"{report} of {image.StudyInstanceUID}", image=image, **changes)


def find_report(report: str) -> dict[str, str]:
    file = DATA / "reports" / "indiana_reports.jsonl"
    if not file.exists():
        titles = {title.lower(): text for title, text in make_study(7, 512).sections}
        return {"findings": titles["findings"], "impression": titles.get("impression", "As above.")}
    rows = (json.loads(line) for line in file.read_text(encoding="utf-8").splitlines())
    return next(row for row in rows if row["id"] == report)


def study_of(path: Path) -> str:
    return str(pydicom.dcmread(path, stop_before_pixels=True).StudyInstanceUID)


def structured_reports(held: dict[str, Dataset]) -> list[Dataset]:
    return [ds for ds in held.values() if ds.SOPClassUID in SR_CLASSES]


def check_identity(ds: Dataset, film: Dataset) -> None:
    """Same study and same patient as the film."""
    assert ds.StudyInstanceUID == film.StudyInstanceUID
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber"):
        assert str(ds.get(keyword, "")) == str(film.get(keyword, "")), keyword


def boxes_of_job(job: dict[str, Any]) -> list[tuple[str, tuple[float, ...]]]:
    """Return (phrase, corners) of every box of `jobs show --json`."""
    return sorted((finding["phrase"], tuple(box["xyxy"])) for finding in job["findings"] for box in finding["boxes"])


def boxes_of_result(ds: Dataset) -> list[tuple[str, tuple[float, ...]]]:
    return sorted((read.text, read.box.xyxy) for read in read_boxes(ds))


def assert_same_boxes(read: list[tuple[str, tuple[float, ...]]], expected: list[tuple[str, tuple[float, ...]]]) -> None:
    """Equal to the hundredth of a pixel: results hold 32-bit numbers."""
    assert [phrase for phrase, _ in read] == [phrase for phrase, _ in expected]
    for (_, got), (_, want) in zip(read, expected, strict=True):
        assert got == pytest.approx(want, abs=0.01)


def test_a_film_and_its_report_come_back_as_results_with_the_boxes_of_the_database(
    site: Site, films: dict[str, Path]
) -> None:
    film, study = films["jpeg-ls"], study_of(films["jpeg-ls"])
    report = write(make_report(film, METASTASES), site.node.folder / "report.dcm")
    assert site.node.send(film, report).returncode == 0
    job = site.node.wait_for(study, "DELIVERED")
    held = site.fetch(study)

    assert sorted(held) == sorted(result["sop_instance_uid"] for result in job["deliveries"])
    assert {delivery["confirmed_by"] for delivery in job["deliveries"]} == {"commitment"}
    for ds in held.values():
        check_identity(ds, pydicom.dcmread(film, stop_before_pixels=True))
    (sr,) = structured_reports(held)
    (state,) = [ds for ds in held.values() if ds.SOPClassUID == GSPS]
    expected = boxes_of_job(job)
    assert expected, "the model found nothing on the film, so nothing was compared"
    assert_same_boxes(boxes_of_result(sr), expected)
    assert sorted(read.box.xyxy for read in read_boxes(state)) == sorted(read.box.xyxy for read in read_boxes(sr))
    assert {read.sop_instance_uid for read in read_boxes(sr)} == {pydicom.dcmread(film).SOPInstanceUID}


def test_a_study_sent_again_gives_nothing_new(site: Site, films: dict[str, Path]) -> None:
    ds = make_phantom_film("again", 1)
    report = make_report(write(ds, site.node.folder / "again.dcm"), EFFUSION)
    assert site.node.send_datasets(ds, report).returncode == 0
    job = site.node.wait_for(ds.StudyInstanceUID, "DELIVERED")
    count = site.orthanc.count()

    assert site.node.send_datasets(ds, report).returncode == 0
    later = make_phantom_film("later", 1)  # once this one is through, the repeat would have been, too
    assert site.node.send_datasets(later, make_report_dataset(image=later, study="later")).returncode == 0
    site.node.wait_for(later.StudyInstanceUID, "DELIVERED")

    assert [(again["job_id"], again["state"]) for again in site.node.jobs(ds.StudyInstanceUID)] == [
        (job["job_id"], "DELIVERED")
    ]
    assert set(site.fetch(ds.StudyInstanceUID)) == {result["sop_instance_uid"] for result in job["deliveries"]}
    assert site.orthanc.count() == count + len(site.fetch(later.StudyInstanceUID))


def test_a_report_that_comes_before_its_film_waits_for_it(site: Site, films: dict[str, Path]) -> None:
    film, study = films["plain"], study_of(films["plain"])
    assert site.node.send_datasets(make_report(film, EFFUSION)).returncode == 0
    assert site.node.wait_for(study, "RECEIVING")["instances"]

    assert site.node.send(film).returncode == 0
    job = site.node.wait_for(study, "DELIVERED")
    (sr,) = structured_reports(site.fetch(study))
    check_identity(sr, pydicom.dcmread(film, stop_before_pixels=True))
    assert_same_boxes(boxes_of_result(sr), boxes_of_job(job))


def test_a_final_report_long_after_the_preliminary_one_replaces_the_result(site: Site) -> None:
    ds = make_phantom_film("late", 1)
    film = write(ds, site.node.folder / "late.dcm")
    preliminary = make_report(film, METASTASES, PreliminaryFlag="PRELIMINARY")
    assert site.node.send_datasets(ds, preliminary).returncode == 0
    first = site.node.wait_for(ds.StudyInstanceUID, "DELIVERED", revision=1)

    final = make_report(film, EFFUSION, instance=2, ContentTime="180000")
    assert site.node.send_datasets(final).returncode == 0
    second = site.node.wait_for(ds.StudyInstanceUID, "DELIVERED", revision=2)

    assert (first["report"], second["report"]) != (None, None)
    assert first["report"] != second["report"]
    held = site.fetch(ds.StudyInstanceUID)
    old, new = (held[delivered_sr(job, held)] for job in (first, second))
    (study,) = new.PredecessorDocumentsSequence
    references = [item for series in study.ReferencedSeriesSequence for item in series.ReferencedSOPSequence]
    assert [item.ReferencedSOPInstanceUID for item in references] == [old.SOPInstanceUID]


def delivered_sr(job: dict[str, Any], held: dict[str, Dataset]) -> str:
    (uid,) = (
        delivery["sop_instance_uid"]
        for delivery in job["deliveries"]
        if held[delivery["sop_instance_uid"]].SOPClassUID in SR_CLASSES
    )
    return str(uid)


def test_a_late_film_of_a_delivered_study_opens_a_revision(site: Site, films: dict[str, Path]) -> None:
    film, study = films["jpeg-2000"], study_of(films["jpeg-2000"])
    report = write(make_report(films["jpeg-ls"], METASTASES), site.node.folder / "report.dcm")
    assert site.node.send(films["jpeg-ls"], report).returncode == 0
    site.node.wait_for(study, "DELIVERED", revision=1)

    assert site.node.send(film).returncode == 0
    job = site.node.wait_for(study, "DELIVERED", revision=2)
    held = site.fetch(study)
    assert len(structured_reports(held)) == 2
    assert {delivery["sop_instance_uid"] for delivery in job["deliveries"]} <= set(held)
