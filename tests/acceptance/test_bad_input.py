"""Bad input through the running node: a clear refusal, or a job that ends with a reason; the node stays up.

The refusals are what a sender sees on the wire; the reasons are what an administrator reads in `knowmvg jobs`.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydicom
import pytest
import yaml
from pydicom.dataset import Dataset
from pydicom.uid import MPEG2MPML, JPEGExtended12Bit
from pynetdicom import _config

from tests.acceptance.peers import Node, free_port, wait_until
from tests.builders import (
    DX_PRESENTATION_STORAGE,
    encode,
    make_cxr_dataset,
    make_item,
    make_report_dataset,
    make_section,
    write,
)
from tests.fakes import FakePacs
from tests.senders import Sender

pytestmark = [pytest.mark.timeout(240)]

CT_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
MAX_AGE_S = 6


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node that gives up waiting after six seconds, with an archive that takes everything."""
    with FakePacs() as pacs:
        archive = {"name": "archive", "ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port}
        assembly = {"quiet_period_s": 1, "max_age_s": MAX_AGE_S}
        node = Node(tmp_path_factory.mktemp("node"), destinations=[archive], assembly=assembly)
        try:
            node.start()
            yield node
        finally:
            node.stop()


@pytest.fixture(autouse=True)
def still_answers(request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test the node still answers C-ECHO, and nothing half-written is left."""
    yield
    if "node" in request.fixturenames:
        node: Node = request.getfixturevalue("node")
        assert node.echo()
        incoming = node.folder / "var" / "dicom" / "incoming"
        wait_until(lambda: not [*incoming.glob("*")], "the temporary files of the receiver to be gone", 10)


@pytest.fixture(autouse=True)
def as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Send the bytes of a file as they are, readable or not."""
    monkeypatch.setattr(_config, "STORE_SEND_CHUNKED_DATASET", True)


def store(
    node: Node, path: Path, sop_class_uid: str = DX_PRESENTATION_STORAGE, syntax: str | None = None
) -> int | None:
    """Send a file by C-STORE and return the status; None if the node did not accept the presentation context."""
    ae = Sender("PACS")
    ae.add_requested_context(sop_class_uid, syntax or pydicom.uid.ExplicitVRLittleEndian)
    assoc = ae.associate("127.0.0.1", node.port, ae_title="KNOWMVG")
    try:
        if not assoc.is_established:
            return None
        return int(assoc.send_c_store(path).Status)
    finally:
        assoc.release()


def cut(content: bytes, at: float) -> bytes:
    """Return the first part of Part 10 bytes: the file meta information whole, then the fraction `at` of the rest."""
    start = 144 + int.from_bytes(content[140:144], "little")
    return content[: start + int((len(content) - start) * at)]


def write_bytes(node: Node, name: str, content: bytes) -> Path:
    path = node.folder / name
    path.write_bytes(content)
    return path


def end_of(node: Node, study_instance_uid: str, revision: int = 1) -> dict[str, Any]:
    """Wait for the end of a study that cannot be grounded, and return its job."""

    def find() -> dict[str, Any] | None:
        jobs = [job for job in node.jobs(study_instance_uid) if job["revision"] == revision]
        return next((job for job in jobs if job["state"] in ("NOT_APPLICABLE", "FAILED")), None)

    return dict(wait_until(find, f"study {study_instance_uid} to end", 90))


def send_study(node: Node, *datasets: Dataset) -> None:
    sent = node.send_datasets(*datasets)
    assert sent.returncode == 0, sent.stdout + sent.stderr


# ---- refused on the wire ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 64, b"\x01\x00\xff\xff\xff\xff"])
def test_what_is_no_dicom_at_all_is_hung_up_on(node: Node, content: bytes) -> None:
    with socket.create_connection(("127.0.0.1", node.port), timeout=60) as peer:
        peer.sendall(content)
        peer.shutdown(socket.SHUT_WR)
        while peer.recv(4096):
            pass


def test_a_dataset_of_rubbish_is_refused(node: Node) -> None:
    whole = encode(make_cxr_dataset(study="rubbish"))
    path = write_bytes(node, "rubbish.dcm", cut(whole, 0) + b"\x89PNG\r\n\x1a\n" + bytes(range(255)) * 20)
    assert store(node, path) == 0xC000


def test_a_header_cut_short_is_refused(node: Node) -> None:
    path = write_bytes(node, "short.dcm", cut(encode(make_cxr_dataset(study="short")), 0.005))
    assert store(node, path) == 0xC000


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"])
def test_an_instance_without_a_uid_is_refused(node: Node, keyword: str) -> None:
    ds = make_cxr_dataset(study=f"no {keyword}")
    uid = ds.SOPInstanceUID
    del ds[keyword]
    ds.file_meta.MediaStorageSOPInstanceUID = uid
    assert store(node, write(ds, node.folder / "no-uid.dcm")) in (0xC000, 0xA900)
    assert node.jobs(make_cxr_dataset(study=f"no {keyword}").StudyInstanceUID) == []


def test_a_sop_class_that_nobody_asked_for_is_not_negotiated(node: Node) -> None:
    ds = make_cxr_dataset(study="ct", SOPClassUID=CT_STORAGE)
    assert store(node, write(ds, node.folder / "ct.dcm"), CT_STORAGE) is None
    assert node.send_datasets(ds).returncode != 0


def test_a_dataset_of_another_class_than_announced_is_refused(node: Node) -> None:
    announced, sent = (
        encode(make_cxr_dataset(study="liar", **changes)) for changes in ({}, {"SOPClassUID": CT_STORAGE})
    )
    path = write_bytes(node, "liar.dcm", cut(announced, 0) + sent.removeprefix(cut(sent, 0)))
    assert store(node, path) == 0xA900


def test_an_unknown_sender_is_turned_away(node: Node) -> None:
    ds = make_cxr_dataset(study="stranger")
    sent = node.send_datasets(ds, ae_title="STRANGER")
    assert sent.returncode != 0
    assert "Calling AE Title Not Recognized" in sent.stdout + sent.stderr
    assert node.jobs(ds.StudyInstanceUID) == []


# ---- accepted, and ended with a reason -------------------------------------------------------------------------------


def test_a_report_without_text_ends_not_applicable(node: Node) -> None:
    image = make_cxr_dataset(study="mute")
    send_study(node, image, make_report_dataset([], study="mute", image=image))
    job = end_of(node, image.StudyInstanceUID)
    assert (job["state"], job["outcome"]) == ("NOT_APPLICABLE", "NOT_APPLICABLE")
    assert "text" in job["failure"]


def test_a_report_of_an_empty_section_ends_not_applicable(node: Node) -> None:
    image = make_cxr_dataset(study="empty section")
    section = make_section(
        ("59776-5", "LN", "Findings"), [make_item("TEXT", ("121071", "DCM", "Finding"), TextValue="")]
    )
    send_study(node, image, make_report_dataset([section], study="empty section", image=image))
    assert end_of(node, image.StudyInstanceUID)["state"] == "NOT_APPLICABLE"


def test_an_image_without_pixels_ends_with_a_reason(node: Node) -> None:
    image = make_cxr_dataset(study="no pixels", PixelData=None)
    send_study(node, image, make_report_dataset(study="no pixels", image=image))
    job = end_of(node, image.StudyInstanceUID)
    assert "pixel" in job["failure"].lower()


def test_an_image_cut_short_ends_with_a_reason(node: Node) -> None:
    image = make_cxr_dataset(study="half")
    path = write_bytes(node, "half.dcm", cut(encode(image), 0.5))
    status = store(node, path)
    if status == 0xC000:
        return
    assert status == 0x0000
    send_study(node, make_report_dataset(study="half", image=image))
    assert "pixel" in end_of(node, image.StudyInstanceUID)["failure"].lower()


@pytest.mark.parametrize("syntax", [MPEG2MPML, JPEGExtended12Bit])
def test_an_image_in_an_encoding_that_cannot_be_read_ends_with_a_reason(node: Node, syntax: pydicom.uid.UID) -> None:
    study = f"encoding {syntax.name}"
    image = make_cxr_dataset(study=study)
    image.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8 no picture at all \xff\xd9"])
    image["PixelData"].VR = "OB"
    image.file_meta.TransferSyntaxUID = syntax
    assert store(node, write(image, node.folder / "encoding.dcm"), syntax=syntax) == 0x0000
    send_study(node, make_report_dataset(study=study, image=image))
    job = end_of(node, image.StudyInstanceUID)
    assert job["failure"]
    assert job["state"] in ("NOT_APPLICABLE", "FAILED")


def test_a_report_for_another_patient_ends_not_applicable(node: Node) -> None:
    image = make_cxr_dataset(study="mixed up")
    send_study(node, image, make_report_dataset(study="mixed up", image=image, PatientID="SOMEBODY-ELSE"))
    job = end_of(node, image.StudyInstanceUID)
    assert job["state"] == "NOT_APPLICABLE"
    assert "another patient" in job["failure"]
    assert "SOMEBODY-ELSE" not in job["failure"]


def test_a_film_whose_report_never_comes_ends_and_a_report_after_that_opens_a_revision(node: Node) -> None:
    image = make_cxr_dataset(study="late report")
    send_study(node, image)
    assert "report" in end_of(node, image.StudyInstanceUID)["failure"]

    send_study(node, make_report_dataset(study="late report", image=image))
    node.wait_for(image.StudyInstanceUID, "DELIVERED", revision=2)


# ---- the surroundings ------------------------------------------------------------------------------------------------


def test_results_wait_for_an_archive_that_is_away(tmp_path: Path) -> None:
    pacs = FakePacs()
    pacs.port = free_port()
    archive = {"name": "archive", "ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port}
    node = Node(tmp_path / "node", destinations=[archive])
    image = make_cxr_dataset(study="patience")
    try:
        node.start()
        send_study(node, image, make_report_dataset(study="patience", image=image))
        node.wait_for(image.StudyInstanceUID, "WRITTEN")

        def tried() -> bool:
            (job,) = node.jobs(image.StudyInstanceUID)
            assert job["state"] == "WRITTEN"
            return bool(job["attempts"] >= 1)

        wait_until(tried, "the node to try the archive")
        with pacs:
            node.wait_for(image.StudyInstanceUID, "DELIVERED", seconds=120)
            assert len(pacs.structured_reports(image.StudyInstanceUID)) == 1
    finally:
        node.stop()


def test_a_broken_configuration_is_refused_with_every_fault(tmp_path: Path) -> None:
    node = Node(tmp_path / "node", destinations=[{"name": "archive", "ae_title": "A" * 17, "host": "h", "port": 99999}])
    settings = yaml.safe_load(node.config.read_text())
    settings["receiver"]["prot"] = 104
    node.config.write_text(yaml.safe_dump(settings))
    for command in ("up", "check", "config"):
        done = node.run(command, check=False)
        assert done.returncode == 1
        said = done.stdout + done.stderr
        assert all(where in said for where in ("receiver.prot", "destinations.0.ae_title", "destinations.0.port"))
        assert "Traceback" not in said


def test_a_configuration_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    node = Node(tmp_path / "node")
    node.config.write_text("receiver: {port: 104\n  host")
    done = node.run("up", check=False)
    assert done.returncode == 1
    assert "cannot be read as YAML" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_model_is_named_by_check_and_by_the_job(tmp_path: Path) -> None:
    node = Node(tmp_path / "node", model={"path": str(tmp_path / "nowhere")})
    image = make_cxr_dataset(study="no model")
    try:
        node.start()
        checked = node.run("check", check=False)
        assert checked.returncode == 1
        assert str(tmp_path / "nowhere") in checked.stdout + checked.stderr
        send_study(node, image, make_report_dataset(study="no model", image=image))
        job = end_of(node, image.StudyInstanceUID)
        assert job["state"] == "FAILED"
        assert str(tmp_path / "nowhere") in job["failure"]
        assert node.echo()
    finally:
        node.stop()
