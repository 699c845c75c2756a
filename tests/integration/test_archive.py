"""The demonstration's stand-in archive, as the node's own sender sees it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from dicom_node.cli.archive import StandInArchive
from dicom_node.config import DestinationSettings
from dicom_node.scu import STUDY_ROOT_FIND, Candidate, connect, echo
from tests.builders import COMPREHENSIVE_SR, make_report_dataset, write


@pytest.fixture
def archive() -> Iterator[StandInArchive]:
    """An archive that listens."""
    archive = StandInArchive("ARCHIVE")
    yield archive
    archive.stop()


def as_destination(archive: StandInArchive) -> DestinationSettings:
    """Return the settings of a destination that is `archive`."""
    return DestinationSettings(name="archive", ae_title="ARCHIVE", host="127.0.0.1", port=archive.port)


def test_it_takes_results_and_finds_them_again(archive: StandInArchive, tmp_path: Path) -> None:
    ds = make_report_dataset(sop_class_uid=COMPREHENSIVE_SR)
    path = write(ds, tmp_path / "sr.dcm")
    candidate = Candidate(ds.SOPClassUID, ds.SOPInstanceUID, ds.SeriesInstanceUID, partial(path.open, "rb"))
    with connect(as_destination(archive), [COMPREHENSIVE_SR, STUDY_ROOT_FIND], "KNOWMVG") as association:
        assert association.store(candidate) == 0x0000
        assert association.find(ds.StudyInstanceUID, candidate) == "present"
    assert [held.SOPInstanceUID for held in archive.instances] == [ds.SOPInstanceUID]


def test_it_answers_an_echo_until_it_is_stopped(archive: StandInArchive) -> None:
    echo(as_destination(archive), "KNOWMVG")
    archive.stop()
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", archive.port)):
        pass
