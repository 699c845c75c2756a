"""The storage as a bucket: what is promised of files is promised of objects, also where the store fails.

The object store is a real server that speaks S3; where it is to misbehave, a small one of our own stands in.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from dicom_node import objects
from dicom_node.cli.checks import check_bytes
from dicom_node.config import Settings, load_settings
from dicom_node.errors import NodeError
from dicom_node.objects import PART_BYTES, ObjectStorage, open_storage
from dicom_node.pressure import LEAST_FREE
from dicom_node.scp import start_receiver
from dicom_node.storage import FileStorage, Storage
from dicom_node.tables import InstanceRow
from tests.acceptance.peers import Node, wait_until
from tests.builders import make_cxr_dataset, make_report_dataset
from tests.fakes import FakePacs, FrozenClock
from tests.rig import make_sqlite_sessions
from tests.senders import Sender
from tests.servers import ObjectStore

CONTENT = os.urandom(1000)
OUT_OF_RESOURCES = 0xA700


@pytest.fixture(scope="module")
def server() -> Iterator[ObjectStore]:
    server = ObjectStore()
    yield server
    server.close()


@pytest.fixture
def settings(server: ObjectStore, tmp_path: Path) -> Settings:
    return make_settings(tmp_path, server.section(tmp_path / "credentials.yaml"))


def make_settings(folder: Path, section: dict[str, object]) -> Settings:
    return Settings.model_validate(
        {
            "node": {"data_dir": folder / "var"},
            "storage": section,
            "receiver": {"min_free_bytes": LEAST_FREE, "peers": [{"ae_title": "PACS", "address": "127.0.0.1"}]},
        }
    )


@pytest.fixture
def bucket(settings: Settings) -> ObjectStorage:
    storage = open_storage(settings)
    assert isinstance(storage, ObjectStorage)
    return storage


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return FileStorage(tmp_path / "dicom") if request.param == "folder" else request.getfixturevalue("bucket")


def read(storage: Storage, key: str) -> bytes:
    with storage.open(key) as file:
        return file.read()


def left(folder: Path) -> list[Path]:
    """What lies on the way into the storage."""
    return [path for path in folder.rglob("incoming/*") if path.is_file()]


# ---- what any storage promises ---------------------------------------------------------------------------------------


def test_bytes_come_back_and_are_replaced(storage: Storage, tmp_path: Path) -> None:
    stored = storage.put("aa/one.dcm", CONTENT)
    assert (stored.sha256, stored.size) == (hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
    assert storage.exists("aa/one.dcm") and read(storage, "aa/one.dcm") == CONTENT
    storage.put("aa/one.dcm", b"other")
    assert read(storage, "aa/one.dcm") == b"other"
    assert left(tmp_path) == []


def test_a_received_file_is_moved(storage: Storage, tmp_path: Path) -> None:
    with storage.receive() as file:
        file.write(CONTENT)
    storage.file("aa/two.dcm", Path(file.name))
    assert read(storage, "aa/two.dcm") == CONTENT
    assert left(tmp_path) == []


def test_what_is_not_there_is_told_apart(storage: Storage) -> None:
    storage.put("aa/three.dcm", b"")
    assert read(storage, "aa/three.dcm") == b""
    storage.remove("aa/three.dcm")
    storage.remove("aa/three.dcm")
    assert not storage.exists("aa/three.dcm")
    with pytest.raises(FileNotFoundError):
        storage.open("aa/three.dcm")
    assert storage.find_fault() == ""


def test_a_reader_can_go_back(storage: Storage) -> None:
    storage.put("aa/four.dcm", CONTENT)
    with storage.open("aa/four.dcm") as file:
        assert file.read(10) == CONTENT[:10]
        file.seek(-10, os.SEEK_END)
        assert file.read() == CONTENT[-10:]


def test_what_a_crash_left_is_swept(storage: Storage, tmp_path: Path) -> None:
    with storage.receive() as file:
        file.write(b"half")
    assert storage.sweep_incoming(older_than=0) == 1
    assert left(tmp_path) == [] and storage.free_bytes() > 0


# ---- a bucket --------------------------------------------------------------------------------------------------------


def test_large_objects_go_up_in_parts(bucket: ObjectStorage, tmp_path: Path) -> None:
    content = os.urandom(1024) * (2 * PART_BYTES // 1024 + 3)
    stored = bucket.put("aa/large.dcm", content)
    assert stored.sha256 == hashlib.sha256(read(bucket, "aa/large.dcm")).hexdigest()
    assert left(tmp_path) == []


def test_two_buckets_prefixes_do_not_see_each_other(server: ObjectStore, bucket: ObjectStorage, tmp_path: Path) -> None:
    section = server.section(tmp_path / "credentials.yaml") | {"url": f"s3://{server.bucket}"}
    whole = open_storage(make_settings(tmp_path, section))
    bucket.put("aa/five.dcm", CONTENT)
    assert not whole.exists("aa/five.dcm")
    assert whole.exists("knowmvg/aa/five.dcm")


def test_check_tries_the_bucket_out(settings: Settings, bucket: ObjectStorage) -> None:
    check = check_bytes(settings)
    assert check.ok and "s3://films/knowmvg answers" in check.detail
    assert not list(bucket._store.list("knowmvg/check-").collect())  # nothing is left of it


def test_a_bucket_that_is_not_there_is_named(server: ObjectStore, tmp_path: Path) -> None:
    section = server.section(tmp_path / "credentials.yaml") | {"url": "s3://elsewhere"}
    check = check_bytes(make_settings(tmp_path, section))
    assert not check.ok and "there is no such bucket" in check.detail


def test_credentials_that_cannot_be_read_are_named(server: ObjectStore, tmp_path: Path) -> None:
    section = server.section(tmp_path / "credentials.yaml")
    (tmp_path / "credentials.yaml").write_text("access_key_id: only")
    with pytest.raises(NodeError, match=r"credentials\.yaml cannot be used .* secret_access_key"):
        open_storage(make_settings(tmp_path, section))


# ---- a store that misbehaves -----------------------------------------------------------------------------------------


class Misbehaving(ThreadingHTTPServer):
    """Answers every request as it is told, and keeps the headers of what came."""

    daemon_threads = True

    def __init__(self, status: int, body: bytes = b"", announced: int | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Answering)
        self.status, self.body, self.announced = status, body, announced
        self.came: list[tuple[str, dict[str, str]]] = []
        self.hangs = threading.Event()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """Who gave up waiting is gone."""


class _Answering(BaseHTTPRequestHandler):
    server: Misbehaving

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.came.append((self.command, {name.lower(): value for name, value in self.headers.items()}))
        while self.server.hangs.is_set():
            threading.Event().wait(0.05)
        self.send_response(self.server.status)
        length = len(self.server.body) if self.server.announced is None else self.server.announced
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", '"0"')
        self.send_header("Last-Modified", "Fri, 02 Jan 2026 12:00:00 GMT")
        self.end_headers()
        self.wfile.write(self.server.body)
        self.close_connection = True

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _answer

    def log_message(self, format: str, *args: object) -> None:
        pass


Misbehave = Callable[..., tuple[Storage, Misbehaving]]


@pytest.fixture
def misbehave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Misbehave]:
    monkeypatch.setitem(objects.RETRIES, "max_retries", 1)
    started: list[Misbehaving] = []

    def start(*given: object) -> tuple[Storage, Misbehaving]:
        started.append(server := Misbehaving(*given))
        section = ObjectStore.section(
            type("There", (), {"bucket": "films", "url": f"http://127.0.0.1:{server.server_port}"}),
            tmp_path / "credentials.yaml",
        )
        return open_storage(make_settings(tmp_path, section)), server

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def test_what_is_put_carries_its_digest(misbehave: Misbehave) -> None:
    storage, server = misbehave(200)
    storage.put("aa/x.dcm", CONTENT)
    ((command, headers),) = server.came
    assert command == "PUT"
    assert bytes.fromhex(hashlib.sha256(CONTENT).hexdigest()) == _base64(headers["x-amz-checksum-sha256"])


def _base64(text: str) -> bytes:
    import base64

    return base64.b64decode(text)


@pytest.mark.parametrize(
    ("status", "why"), [(503, "503 Service Unavailable"), (403, "refuses these credentials"), (400, "400 Bad Request")]
)
def test_a_put_that_is_refused_keeps_what_came(misbehave: Misbehave, tmp_path: Path, status: int, why: str) -> None:
    storage, _ = misbehave(status)
    with storage.receive() as file:
        file.write(CONTENT)
    with pytest.raises(OSError, match=why):
        storage.file("aa/x.dcm", Path(file.name))
    assert Path(file.name).read_bytes() == CONTENT  # until the caller removes it
    assert storage.find_fault()


def test_a_bucket_that_goes_is_not_taken_for_a_missing_object(misbehave: Misbehave) -> None:
    """A look that found all well a moment ago is not believed once an object is missing."""
    storage, server = misbehave(200, b"<ListBucketResult></ListBucketResult>")
    assert storage.find_fault() == ""
    server.status, server.body = 404, b"<Error><Code>NoSuchBucket</Code></Error>"
    assert not storage.exists("aa/x.dcm")
    assert "there is no such bucket" in storage.find_fault()


def test_a_store_that_hangs_is_given_up(misbehave: Misbehave, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(objects.CLIENT, "timeout", "200ms")
    monkeypatch.setitem(objects.RETRIES, "max_retries", 0)
    storage, server = misbehave(200)
    server.hangs.set()
    try:
        with pytest.raises(OSError, match="does not answer"):
            storage.put("aa/x.dcm", CONTENT)
    finally:
        server.hangs.clear()


def test_an_answer_that_breaks_off_is_no_object(misbehave: Misbehave, tmp_path: Path) -> None:
    storage, _ = misbehave(200, CONTENT[:10], 1000)
    with pytest.raises(OSError):
        storage.open("aa/x.dcm")
    assert left(tmp_path) == []


# ---- the door --------------------------------------------------------------------------------------------------------


def send(port: int, *datasets: object) -> list[int | None]:
    """Send instances; return the statuses, or None for each where no association was to be had."""
    ae = Sender("PACS")
    for ds in datasets:
        ae.add_requested_context(ds.SOPClassUID, ds.file_meta.TransferSyntaxUID)
    association = ae.associate("127.0.0.1", port, ae_title="KNOWMVG")
    if not association.is_established:
        return [None for _ in datasets]
    statuses = [association.send_c_store(ds).get("Status") for ds in datasets]
    association.release()
    return statuses


def test_success_means_that_the_store_has_it(settings: Settings, bucket: ObjectStorage, tmp_path: Path) -> None:
    server = ObjectStore()  # one that is killed
    section = settings.storage.model_copy(update={"endpoint": server.url})
    receiver = settings.receiver.model_copy(update={"port": 0})
    settings = settings.model_copy(update={"storage": section, "receiver": receiver})
    storage = open_storage(settings)
    film, other = make_cxr_dataset(study="kept"), make_cxr_dataset(study="refused")
    sessions = make_sqlite_sessions(tmp_path)
    running = start_receiver(settings, sessions, storage, FrozenClock())
    try:
        assert send(running.port, film) == [0]
        (row,) = rows(sessions)
        assert storage.exists(row.storage_key)
        server.kill()
        assert send(running.port, other)[0] in (OUT_OF_RESOURCES, None)
        wait_until(lambda: send(running.port, other) == [None], "the door to be closed")
        assert [one.sop_instance_uid for one in rows(sessions)] == [film.SOPInstanceUID]
        assert left(tmp_path) == []
        server.start()
        wait_until(lambda: send(running.port, other) == [0], "the door to open again")
        assert {one.sop_instance_uid for one in rows(sessions)} == {film.SOPInstanceUID, other.SOPInstanceUID}
    finally:
        running.stop()
        server.close()
        sessions.kw["bind"].dispose()


def rows(sessions: sessionmaker[Session]) -> list[InstanceRow]:
    with sessions() as session:
        return list(session.scalars(select(InstanceRow)))


def test_two_receivers_may_put_the_same_instance_at_once(bucket: ObjectStorage, settings: Settings) -> None:
    other, done = open_storage(settings), []

    def put(storage: Storage) -> None:
        done.append(storage.put("aa/same.dcm", CONTENT))

    threads = [threading.Thread(target=put, args=(storage,)) for storage in (bucket, other) * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 8 and len(set(done)) == 1
    assert read(bucket, "aa/same.dcm") == CONTENT


# ---- the whole node --------------------------------------------------------------------------------------------------


def test_a_study_goes_through_a_node_that_keeps_its_files_in_a_bucket(server: ObjectStore, tmp_path: Path) -> None:
    with FakePacs() as pacs:
        archive = {"name": "archive", "ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port}
        section = server.section(tmp_path / "credentials.yaml")
        node = Node(tmp_path / "node", destinations=[archive], storage=section)
        node.start()
        try:
            film = make_cxr_dataset(study="in a bucket")
            report = make_report_dataset(study="in a bucket", image=film)
            node.send_datasets(film, report)
            job = node.wait_for(film.StudyInstanceUID, "DELIVERED")
        finally:
            node.stop()
        assert {one["sop_instance_uid"] for one in job["instances"]} == {film.SOPInstanceUID, report.SOPInstanceUID}
        assert pacs.structured_reports(film.StudyInstanceUID)
        kept = open_storage(load_settings(node.config, {}))
        assert isinstance(kept, ObjectStorage)
        assert len(list(kept._store.list("knowmvg/").collect())) >= 4
        assert not list((tmp_path / "node" / "var").rglob("*.dcm"))
