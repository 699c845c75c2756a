"""The receiver over the wire: durable before success, refusals with the right status, and nothing half-written."""

from __future__ import annotations

import logging
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)
from pynetdicom import ALL_TRANSFER_SYNTAXES
from pynetdicom.association import Association
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE
from sqlalchemy import Engine, create_engine, event, select, text
from sqlalchemy.exc import DatabaseError, DataError, IntegrityError, ProgrammingError
from sqlalchemy.orm import Session, sessionmaker

from dicom_node import queries
from dicom_node.config import Settings
from dicom_node.errors import InvalidInstanceError
from dicom_node.header import MANUFACTURER
from dicom_node.instance import read_instance
from dicom_node.queries import Recorded, StoredResult, make_engine, make_sessions, upgrade_schema
from dicom_node.scp import STORAGE_CLASSES, Receiver, start_receiver
from dicom_node.sockets import MAX_PDU_BYTES
from dicom_node.spool import IMPLEMENTATION_CLASS_UID
from dicom_node.storage import FileStorage
from dicom_node.tables import ConflictRow, InstanceRow
from tests.builders import (
    COMPREHENSIVE_3D_SR,
    CR_STORAGE,
    DX_PRESENTATION_STORAGE,
    DX_PROCESSING_STORAGE,
    encode,
    make_cxr_dataset,
    make_report_dataset,
)
from tests.fakes import FrozenClock
from tests.senders import Sender

DATA = Path(__file__).parents[3] / "shared" / "data" / "dicom"
VERIFICATION = "1.2.840.10008.1.1"
SUCCESS, REFUSED_RESOURCES, MISMATCH, CANNOT_UNDERSTAND, BUG = 0x0000, 0xA700, 0xA900, 0xC000, 0xC211
PROPOSED = [CR_STORAGE, DX_PRESENTATION_STORAGE, DX_PROCESSING_STORAGE, *STORAGE_CLASSES[3:]]


class Node:
    """A receiver with its storage and rows; `settings` of the section receiver may be given."""

    def __init__(self, folder: Path, sessions: sessionmaker[Session], **receiver: Any) -> None:
        values = {"port": 1, "peers": [{"ae_title": "PACS", "address": "127.0.0.1"}], "min_free_bytes": 1} | receiver
        settings = Settings.model_validate({"node": {"data_dir": folder}, "receiver": values})
        # port 0, any free one, is nothing that a configuration may ask for
        free = settings.receiver.model_copy(update={"port": 0})
        self.settings = settings.model_copy(update={"receiver": free})
        self.storage, self.sessions, self.clock = FileStorage(folder / "dicom"), sessions, FrozenClock()
        self.receiver: Receiver | None = None

    def start(self) -> Node:
        self.receiver = start_receiver(self.settings, self.sessions, self.storage, self.clock)
        return self

    def stop(self) -> None:
        if self.receiver is not None:
            self.receiver.stop()
            self.receiver = None

    @property
    def port(self) -> int:
        assert self.receiver is not None
        return self.receiver.port

    def rows(self) -> list[InstanceRow]:
        with self.sessions.begin() as session:
            return list(session.scalars(select(InstanceRow).order_by(InstanceRow.received_at)))

    def files(self) -> list[Path]:
        """Everything in storage that is not being received."""
        return [p for p in self.storage.root.rglob("*") if p.is_file() and p.parent != self.storage.incoming]

    def unfinished(self) -> list[Path]:
        return list(self.storage.incoming.glob("*"))


@pytest.fixture
def sqlite_sessions(tmp_path: Path) -> Iterator[sessionmaker[Session]]:
    url = f"sqlite:///{tmp_path}/knowmvg.db"
    upgrade_schema(url)
    engine = make_engine(url)
    yield make_sessions(engine)
    engine.dispose()


@pytest.fixture
def node(tmp_path: Path, sqlite_sessions: sessionmaker[Session]) -> Iterator[Node]:
    node = Node(tmp_path, sqlite_sessions).start()
    yield node
    node.stop()


@contextmanager
def associated(
    node: Node, classes: list[str] = PROPOSED, syntax: str = ExplicitVRLittleEndian, **titles: str
) -> Iterator[Association]:
    """Give an established association; titles: calling (PACS), called (KNOWMVG)."""
    assoc = propose(node, classes, syntax, **titles)
    assert assoc.is_established
    try:
        yield assoc
    finally:
        if assoc.is_established:
            assoc.release()


def propose(
    node: Node,
    classes: list[str] = PROPOSED,
    syntax: str = ExplicitVRLittleEndian,
    calling: str = "PACS",
    called: str = "KNOWMVG",
) -> Association:
    ae = Sender(calling)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 30
    for uid in (VERIFICATION, *classes):
        ae.add_requested_context(uid, syntax)
    return ae.associate("127.0.0.1", node.port, ae_title=called)


def send(node: Node, *datasets: Dataset) -> list[int]:
    """Send datasets over one association and return the statuses."""
    with associated(node) as assoc:
        return [int(assoc.send_c_store(ds).Status) for ds in datasets]


@pytest.mark.parametrize(("priority", "kept"), [(0, "MEDIUM"), (1, "HIGH"), (2, "LOW")])
def test_the_priority_of_a_store_is_kept(node: Node, priority: int, kept: str) -> None:
    with associated(node) as assoc:
        assert assoc.send_c_store(make_cxr_dataset(), priority=priority).Status == SUCCESS
    assert [row.facts["c_store_priority"] for row in node.rows()] == [kept]


def send_bytes(assoc: Association, content: bytes, sop_class_uid: str, sop_instance_uid: str) -> Dataset | None:
    """Send the bytes of a dataset as they are, good, bad or none; return the response, None if there was none."""
    request: Any = C_STORE()
    request.MessageID, request.Priority = 1, 0
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = UID(sop_class_uid), UID(sop_instance_uid)
    request.DataSet = BytesIO(content) if content else None
    context = next(c for c in assoc.accepted_contexts if c.abstract_syntax == sop_class_uid)
    assoc._reactor_checkpoint.clear()
    assoc.dimse.send_msg(request, context.context_id)
    _, response = assoc.dimse.get_msg(block=True)
    assoc._reactor_checkpoint.set()
    return response  # type: ignore[return-value]  # a primitive with the same attributes


def dataset_bytes(ds: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    """Return the dataset alone, without File Meta Information."""
    ds.file_meta.TransferSyntaxUID = syntax
    content = encode(ds)
    return content[144 + int.from_bytes(content[140:144], "little") :]


def wait_until(condition: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    """Return the first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        threading.Event().wait(0.02)
    return value


def echoes(node: Node) -> bool:
    with associated(node, []) as assoc:
        return bool(assoc.send_c_echo().Status == SUCCESS)


# ---- filing ----------------------------------------------------------------------------------------------------------


def test_an_instance_is_on_disk_and_in_a_row_when_success_is_answered(node: Node) -> None:
    ds = make_cxr_dataset()
    assert send(node, ds) == [SUCCESS]
    (row,) = node.rows()
    assert (row.sop_instance_uid, row.calling_ae_title) == (ds.SOPInstanceUID, "PACS")
    assert row.received_at == node.clock()
    assert node.files() == [node.storage.path(row.storage_key)]
    assert node.storage.path(row.storage_key).stat().st_size == row.size_bytes
    assert pydicom.dcmread(node.files()[0]).PixelData == ds.PixelData


def test_success_waits_for_the_disk_and_then_the_row(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, record = os.fsync, queries.record_instances

    def note_sync(descriptor: int) -> None:
        order.append("folder" if Path(f"/proc/self/fd/{descriptor}").readlink().is_dir() else "content")
        fsync(descriptor)

    def note_row(session: Session, *arguments: Any) -> Any:
        order.append("row")
        return record(session, *arguments)

    send(node, make_cxr_dataset(instance=1))
    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr("dicom_node.filing.record_instances", note_row)
    send(node, make_cxr_dataset(instance=2))
    assert order == ["content", "folder", "row"]


def test_bytes_are_kept_as_sent(node: Node) -> None:
    ds = make_cxr_dataset()
    content = dataset_bytes(ds)
    # an odd length and a wrong order, which any re-encoding would mend
    content += struct.pack("<HH2sH", 0x0009, 0x1001, b"LO", 3) + b"odd"
    with associated(node) as assoc:
        response: Any = send_bytes(assoc, content, ds.SOPClassUID, ds.SOPInstanceUID)
    assert response.Status == SUCCESS
    kept = node.files()[0].read_bytes()
    assert kept.endswith(content)
    meta = pydicom.dcmread(node.files()[0], stop_before_pixels=True).file_meta
    assert len(kept) == 144 + meta.FileMetaInformationGroupLength + len(content)
    assert meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
    assert meta.ImplementationClassUID == IMPLEMENTATION_CLASS_UID


NATIVE = [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian]
COMPRESSED = [JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless, HTJ2KLossless, RLELossless]


@pytest.mark.parametrize("syntax", [*NATIVE, *COMPRESSED])
def test_any_transfer_syntax_is_kept_as_sent(node: Node, syntax: str) -> None:
    ds = make_cxr_dataset()
    # what stands in the pixel data is nothing to the receiver: the header is explicit little endian when compressed
    content = dataset_bytes(ds, syntax if syntax in NATIVE else ExplicitVRLittleEndian)
    with associated(node, [DX_PRESENTATION_STORAGE], syntax) as assoc:
        response: Any = send_bytes(assoc, content, ds.SOPClassUID, ds.SOPInstanceUID)
    assert response.Status == SUCCESS
    assert node.rows()[0].transfer_syntax_uid == syntax
    assert node.files()[0].read_bytes().endswith(content)


def test_every_storage_class_of_the_list_is_negotiated(node: Node) -> None:
    with associated(node, list(STORAGE_CLASSES)) as assoc:
        assert {c.abstract_syntax for c in assoc.accepted_contexts} == {VERIFICATION, *STORAGE_CLASSES}


def test_an_image_for_processing_is_kept_and_opens_no_job(node: Node) -> None:
    assert send(node, make_cxr_dataset(sop_class_uid=DX_PROCESSING_STORAGE)) == [SUCCESS]
    assert len(node.rows()) == 1
    with node.sessions.begin() as session:
        assert queries.count_jobs(session) == {}


def test_image_and_report_of_different_associations_meet_in_a_job(node: Node) -> None:
    image = make_cxr_dataset()
    assert send(node, image) == [SUCCESS]
    assert send(node, make_report_dataset(image=image)) == [SUCCESS]
    with node.sessions.begin() as session:
        assert queries.count_jobs(session) == {"RECEIVING": 1}


def test_a_repeat_is_success_and_changes_nothing(node: Node) -> None:
    ds = make_cxr_dataset()
    assert send(node, ds, ds) == [SUCCESS, SUCCESS]
    assert send(node, ds) == [SUCCESS]
    assert len(node.rows()) == len(node.files()) == 1


def test_other_bytes_under_the_same_uid_are_kept_aside(node: Node) -> None:
    first, second = make_cxr_dataset(), make_cxr_dataset(StudyDescription="changed")
    assert send(node, first, second) == [SUCCESS, SUCCESS]
    (row,) = node.rows()
    with node.sessions.begin() as session:
        (conflict,) = session.scalars(select(ConflictRow))
        assert conflict.sop_instance_uid == row.sop_instance_uid
        aside = conflict.storage_key
    assert pydicom.dcmread(node.storage.path(row.storage_key)).StudyDescription == first.StudyDescription
    assert pydicom.dcmread(node.storage.path(aside)).StudyDescription == "changed"


def test_own_results_are_success_and_leave_no_trace(node: Node) -> None:
    by_marker = make_report_dataset(sop_class_uid=COMPREHENSIVE_3D_SR, Manufacturer=MANUFACTURER)
    by_uid = make_report_dataset(study="2", instance=7)
    send(node, make_cxr_dataset())
    with node.sessions.begin() as session:
        result = StoredResult("sr", by_uid.SOPClassUID, by_uid.SOPInstanceUID, "1.2", "key", "0" * 64)
        queries.save_results(session, 1, [result], node.clock())
    assert send(node, by_marker, by_uid) == [SUCCESS, SUCCESS]
    assert len(node.rows()) == len(node.files()) == 1
    assert node.unfinished() == []


def test_a_large_instance_arrives_in_many_fragments(node: Node) -> None:
    ds = make_cxr_dataset()
    ds.add_new(0x00091001, "OB", os.urandom(5 * 1024**2))
    assert send(node, ds) == [SUCCESS]
    assert node.files()[0].read_bytes().endswith(dataset_bytes(ds))


def test_many_associations_at_once(node: Node) -> None:
    def send_study(number: int) -> list[int]:
        image = make_cxr_dataset(study=str(number))
        return send(node, image, make_report_dataset(study=str(number), image=image))

    with ThreadPoolExecutor(6) as pool:
        statuses = list(pool.map(send_study, range(24)))
    assert statuses == [[SUCCESS, SUCCESS]] * 24
    assert len(node.rows()) == len(node.files()) == 48
    with node.sessions.begin() as session:
        assert queries.count_jobs(session) == {"RECEIVING": 24}


def test_on_postgresql_too(tmp_path: Path, postgres_url: str) -> None:
    upgrade_schema(postgres_url)
    engine = make_engine(postgres_url)
    node = Node(tmp_path, make_sessions(engine)).start()
    try:
        image = make_cxr_dataset()
        assert send(node, image, make_report_dataset(image=image)) == [SUCCESS, SUCCESS]
        assert len(node.rows()) == 2
    finally:
        node.stop()
        engine.dispose()


# ---- who is let in ---------------------------------------------------------------------------------------------------


def test_echo_is_answered(node: Node) -> None:
    assert echoes(node)


@pytest.mark.parametrize(
    ("titles", "reason"),
    [({"calling": "STRANGER"}, 0x03), ({"called": "SOMEONE"}, 0x07), ({"calling": "pacs"}, 0x03)],
)
def test_titles_that_are_not_configured_are_rejected(node: Node, titles: dict[str, str], reason: int) -> None:
    assoc = propose(node, **titles)
    assert assoc.is_rejected
    answer: Any = assoc.acceptor.primitive
    assert (answer.result, answer.result_source, answer.diagnostic) == (1, 1, reason)
    assert echoes(node)


@pytest.mark.parametrize(
    ("receiver", "is_let_in"),
    [
        ({"peers": []}, False),
        ({"peers": [{"ae_title": "PACS", "address": "192.0.2.1"}]}, False),
        ({"peers": [{"ae_title": "PACS", "address": "localhost"}]}, True),
        ({"peers": [{"ae_title": "PACS", "address": "no-such-host.invalid"}]}, False),
        ({"peers": [], "any": True}, True),
    ],
)
def test_peers_by_title_and_address(
    tmp_path: Path, sqlite_sessions: sessionmaker[Session], receiver: dict[str, Any], is_let_in: bool
) -> None:
    node = Node(tmp_path, sqlite_sessions, **receiver).start()
    try:
        assoc = propose(node)
        assert assoc.is_established is is_let_in
        assert assoc.is_rejected is not is_let_in
        if is_let_in:
            assoc.release()
    finally:
        node.stop()


def test_more_associations_than_allowed_are_rejected_for_now(
    tmp_path: Path, sqlite_sessions: sessionmaker[Session]
) -> None:
    node = Node(tmp_path, sqlite_sessions, max_associations=1).start()
    try:
        with associated(node):
            answer: Any = propose(node).acceptor.primitive
            assert (answer.result, answer.diagnostic) == (2, 2)  # transient, local limit exceeded
        wait_until(lambda: echoes_quietly(node), "the association to be free again")
    finally:
        node.stop()


def echoes_quietly(node: Node) -> bool:
    assoc = propose(node, [])
    established = assoc.is_established
    if established:
        assoc.release()
    return bool(established)


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keyword", ["StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID"])
def test_a_dataset_without_a_uid_is_refused(node: Node, keyword: str) -> None:
    ds = make_cxr_dataset()
    uids = ds.SOPClassUID, ds.SOPInstanceUID
    content = dataset_bytes(ds)
    tag = pydicom.tag.Tag(keyword)
    start = content.index(struct.pack("<HH", tag.group, tag.element))
    length = int.from_bytes(content[start + 6 : start + 8], "little")
    with associated(node) as assoc:
        response: Any = send_bytes(assoc, content[:start] + content[start + 8 + length :], *uids)
    assert response.Status == CANNOT_UNDERSTAND
    assert keyword in response.ErrorComment
    assert (node.rows(), node.files(), node.unfinished()) == ([], [], [])


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n" * 50, b"\0" * 4000, bytes(range(256)) * 1000])
def test_what_is_no_dataset_is_refused(node: Node, content: bytes) -> None:
    with associated(node) as assoc:
        response: Any = send_bytes(assoc, content, DX_PRESENTATION_STORAGE, "1.2.3")
        assert response.Status == CANNOT_UNDERSTAND
        assert assoc.send_c_echo().Status == SUCCESS
    assert (node.rows(), node.files(), node.unfinished()) == ([], [], [])


@pytest.mark.parametrize("uids", [(CR_STORAGE, None), (None, "1.2.3")])
def test_another_instance_than_announced_is_refused(node: Node, uids: tuple[str | None, str | None]) -> None:
    ds = make_cxr_dataset()
    with associated(node) as assoc:
        response: Any = send_bytes(assoc, dataset_bytes(ds), uids[0] or ds.SOPClassUID, uids[1] or ds.SOPInstanceUID)
    assert response.Status == MISMATCH
    assert (node.rows(), node.files(), node.unfinished()) == ([], [], [])


def test_a_full_disk_is_out_of_resources_until_there_is_space(
    node: Node, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as full:
        full.setattr(FileStorage, "free_bytes", lambda self: 0)
        with caplog.at_level(logging.WARNING):
            assert send(node, make_cxr_dataset()) == [REFUSED_RESOURCES]
        assert (node.rows(), node.files(), node.unfinished()) == ([], [], [])
    assert "min_free_bytes" in str([getattr(record, "facts", {}) for record in caplog.records])
    assert send(node, make_cxr_dataset()) == [SUCCESS]


def test_a_disk_that_fills_up_in_the_middle_is_out_of_resources(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """The space is looked at again while a dataset comes, and what there is of it is removed."""
    ds = make_cxr_dataset()
    ds.add_new(0x00091001, "OB", bytes(20 * 1024**2))
    looks = iter([10**12])
    monkeypatch.setattr(FileStorage, "free_bytes", lambda self: next(looks, 0))
    assert send(node, ds) == [REFUSED_RESOURCES]
    assert (node.rows(), node.files(), node.unfinished()) == ([], [], [])


def test_a_storage_that_cannot_be_written_is_out_of_resources(node: Node, tmp_path: Path) -> None:
    node.storage.root.mkdir(exist_ok=True)
    (tmp_path / "file").write_text("in the way")
    node.storage.incoming = tmp_path / "file" / "incoming"
    assert send(node, make_cxr_dataset()) == [REFUSED_RESOURCES]


def test_a_database_that_is_away_is_out_of_resources_and_a_repeat_succeeds(node: Node) -> None:
    working = node.sessions
    restart(node, make_sessions(_unreachable_engine()))
    assert send(node, make_cxr_dataset()) == [REFUSED_RESOURCES]
    restart(node, working)
    assert node.unfinished() == []
    assert send(node, make_cxr_dataset()) == [SUCCESS]
    assert len(node.rows()) == len(node.files()) == 1


def test_a_database_that_is_locked_is_out_of_resources(node: Node) -> None:
    impatient = create_engine(node.sessions.kw["bind"].url, connect_args={"timeout": 0})
    event.listen(impatient, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    event.listen(impatient, "connect", lambda connection, _: setattr(connection, "isolation_level", None))
    patient = node.sessions
    restart(node, make_sessions(impatient))
    with patient.begin() as session:
        session.execute(text("SELECT 1"))  # takes the write lock
        assert send(node, make_cxr_dataset()) == [REFUSED_RESOURCES]
        assert propose(node).is_rejected  # and nobody is let in meanwhile
    wait_until(lambda: echoes_quietly(node), "the receiver to take in again")
    assert send(node, make_cxr_dataset()) == [SUCCESS]
    impatient.dispose()


@pytest.mark.parametrize("kind", [ProgrammingError, DataError, IntegrityError, DatabaseError])
def test_whatever_a_database_answers_is_out_of_resources(
    node: Node, kind: type[DatabaseError], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Permissions that were taken away, a damaged file, a value that does not fit: never a bug's status."""
    original = Exception("DETAIL: Key (patient_id)=(SECRET) is wrong")
    with monkeypatch.context() as patch, caplog.at_level(logging.INFO):
        patch.setattr("dicom_node.filing.record_instances", raising(kind("INSERT", {"patient": "SECRET"}, original)))
        assert send(node, make_cxr_dataset()) == [REFUSED_RESOURCES]
    assert "SECRET" not in caplog.text
    if kind in (DataError, IntegrityError):  # it is about this instance alone: nobody else is turned away
        assert not propose(node).is_rejected
    wait_until(lambda: echoes_quietly(node), "the receiver to take in again")
    assert send(node, make_cxr_dataset()) == [SUCCESS]


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


def restart(node: Node, sessions: sessionmaker[Session]) -> None:
    """Start the receiver anew, on other sessions."""
    node.stop()
    node.sessions = sessions
    node.start()


def _unreachable_engine() -> Engine:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return make_engine(f"postgresql+psycopg://nobody@127.0.0.1:{port}/none")


def test_a_bug_is_answered_as_a_failure_and_the_receiver_goes_on(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Recorded:
        raise ZeroDivisionError

    with monkeypatch.context() as broken:
        broken.setattr("dicom_node.filing.record_instances", fail)
        assert send(node, make_cxr_dataset()) == [BUG]
    assert node.unfinished() == []
    assert send(node, make_cxr_dataset()) == [SUCCESS]


def test_a_sop_class_that_is_not_listed_is_not_negotiated(node: Node) -> None:
    with associated(node, ["1.2.840.10008.5.1.4.1.1.2"]) as assoc:
        assert [c.abstract_syntax for c in assoc.accepted_contexts] == [VERIFICATION]


def test_log_lines_hold_no_patient(
    node: Node, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    secrets = {"PatientName": "Secret^Person", "PatientID": "SECRET-ID", "AccessionNumber": "SECRET-ACC"}
    broken = make_cxr_dataset(instance=2, **secrets)
    with caplog.at_level(logging.DEBUG):
        send(node, make_cxr_dataset(**secrets))
        with associated(node) as assoc:
            send_bytes(assoc, dataset_bytes(broken)[:700], broken.SOPClassUID, broken.SOPInstanceUID)
    said = str([vars(record) for record in caplog.records if record.name.startswith("dicom_node")])
    assert "instance filed" in said
    assert "secret" not in said.lower()
    assert "secret" not in "".join(capfd.readouterr()).lower()


# ---- crashes and hostile peers ---------------------------------------------------------------------------------------


def test_what_a_crash_left_is_swept_at_the_start(node: Node) -> None:
    node.stop()
    with node.storage.receive() as half:
        half.write(b"half an instance")
    node.start()
    assert node.unfinished() == []


def test_a_sender_that_hangs_up_in_the_middle_leaves_nothing(node: Node) -> None:
    ds = make_cxr_dataset()
    ds.add_new(0x00091001, "OB", bytes(4 * 1024**2))
    with associated(node) as assoc:
        request: Any = C_STORE()
        request.MessageID, request.Priority = 1, 0
        request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = ds.SOPClassUID, ds.SOPInstanceUID
        request.DataSet = BytesIO(dataset_bytes(ds))
        context = next(c for c in assoc.accepted_contexts if c.abstract_syntax == ds.SOPClassUID)
        message = _to_message(request)
        fragments = list(message.encode_msg(context.context_id, 16384))
        for fragment in fragments[: len(fragments) // 2]:
            assoc.dul.send_pdu(fragment)
        wait_until(node.unfinished, "the first half to arrive")
        connection: Any = assoc.dul.socket
        connection.close()
    wait_until(lambda: not node.unfinished(), "the half instance to be removed")
    assert (node.rows(), node.files()) == ([], [])
    assert echoes(node)


def _to_message(request: Any) -> Any:
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    return message


@pytest.mark.parametrize("content", [b"\x01\x00\x7f\xff\xff\xff" + bytes(100), b"GET / HTTP/1.1\r\n\r\n", b"\x04\x00"])
def test_what_is_no_association_request_is_hung_up_on(node: Node, content: bytes) -> None:
    with socket.create_connection(("127.0.0.1", node.port), timeout=60) as peer:
        peer.sendall(content)
        try:
            peer.shutdown(socket.SHUT_WR)
            while peer.recv(4096):
                continue
        except OSError as error:  # it has hung up already
            assert not isinstance(error, TimeoutError), "it holds the connection"
    assert echoes(node)


def test_a_pdu_that_claims_gigabytes_is_not_read(node: Node) -> None:
    with socket.create_connection(("127.0.0.1", node.port), timeout=30) as peer:
        peer.sendall(struct.pack(">BBL", 1, 0, 2**31))
        sent = 0
        with pytest.raises(OSError):
            while sent < 64 * MAX_PDU_BYTES:
                sent += peer.send(bytes(MAX_PDU_BYTES))
    assert echoes(node)


@pytest.mark.skipif(not DATA.is_dir(), reason="no shared data")
@pytest.mark.timeout(300)
def test_every_malformed_file_is_answered_and_none_is_half_written(node: Node) -> None:
    """Each goes over the wire as it is, in its own transfer syntax where it tells one."""
    answered = 0
    for path in sorted((DATA / "malformed").iterdir()):
        content, syntax, uids = _split(path)
        before = len(node.rows())
        with associated(node, [uids[0]], syntax) as assoc:
            response: Any = send_bytes(assoc, content, *uids)
        if response is not None:
            assert response.Status in (SUCCESS, CANNOT_UNDERSTAND, MISMATCH), path.name
            assert len(node.rows()) == before or response.Status == SUCCESS, path.name
            answered += 1
    assert answered > 200
    assert node.unfinished() == []
    assert {node.storage.path(row.storage_key) for row in node.rows()} <= set(node.files())
    for row in node.rows():
        read_instance(node.storage.path(row.storage_key))
    assert echoes(node)


def _split(path: Path) -> tuple[bytes, str, tuple[str, str]]:
    """Return the dataset's bytes, the transfer syntax to send them in, and the SOP UIDs to announce."""
    content = path.read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little") if content[128:132] == b"DICM" else 0
    try:
        instance = read_instance(path)
    except InvalidInstanceError:
        return content[start:], ExplicitVRLittleEndian, (DX_PRESENTATION_STORAGE, "1.2.3")
    sop_class_uid = instance.sop_class_uid if instance.sop_class_uid in STORAGE_CLASSES else DX_PRESENTATION_STORAGE
    known = instance.transfer_syntax_uid in ALL_TRANSFER_SYNTAXES
    syntax = instance.transfer_syntax_uid if known else ExplicitVRLittleEndian
    return content[start:], syntax, (sop_class_uid, instance.sop_instance_uid)
