"""Associations with an archive: what may be asked of it, what it answers, and that nobody is waited for for ever."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.events import Event
from pynetdicom.transport import AssociationSocket

from dicom_node.commitment import PUSH_MODEL
from dicom_node.config import DestinationSettings
from dicom_node.errors import AbsentError, TransientError
from dicom_node.file import split_file
from dicom_node.scu import STUDY_ROOT_FIND, Archive, Candidate, Part, connect, echo, prefer
from tests.acceptance.peers import wait_until
from tests.builders import decode, make_report_dataset, write
from tests.fakes import COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR, GSPS_STORAGE, FakePacs


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    with FakePacs() as pacs:
        yield pacs


@pytest.fixture
def parts(tmp_path: Path) -> tuple[Part, ...]:
    """An SR in both classes, and a presentation state."""
    return (
        Part(
            "sr",
            (
                make_candidate(tmp_path, COMPREHENSIVE_SR, 1),
                make_candidate(tmp_path, COMPREHENSIVE_3D_SR, 2),
            ),
        ),
        Part("gsps:1.2.3", (make_candidate(tmp_path, GSPS_STORAGE, 3),)),
    )


def make_candidate(folder: Path, sop_class_uid: str, instance: int) -> Candidate:
    ds = make_report_dataset(instance=instance, sop_class_uid=sop_class_uid)
    path = write(ds, folder / f"{instance}.dcm")
    return Candidate(sop_class_uid, ds.SOPInstanceUID, ds.SeriesInstanceUID, partial(path.open, "rb"))


def read_bytes(candidate: Candidate) -> bytes:
    with candidate.open() as file:
        return file.read()


def make_destination(pacs: FakePacs, **changes: object) -> DestinationSettings:
    values: dict[str, object] = {"name": "archive", "ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port}
    return DestinationSettings.model_validate(values | changes)


@contextmanager
def connected(pacs: FakePacs, *classes: str, **changes: object) -> Iterator[Archive]:
    with connect(make_destination(pacs, **changes), classes or CLASSES, "KNOWMVG") as archive:
        yield archive


CLASSES = (COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR, GSPS_STORAGE, STUDY_ROOT_FIND)


def test_archive_gets_the_dataset_as_written_and_shows_it(pacs: FakePacs, parts: tuple[Part, ...]) -> None:
    candidate = parts[0].candidates[1]
    study = make_report_dataset().StudyInstanceUID
    with connected(pacs) as archive:
        assert archive.find(study, candidate) == "absent"
        assert archive.store(candidate) == 0x0000
        assert archive.find(study, candidate) == "present"
    assert pacs.datasets[candidate.sop_instance_uid] == decode(read_bytes(candidate))
    assert not archive.is_open


def test_only_what_the_archive_accepts_is_accepted(parts: tuple[Part, ...]) -> None:
    with FakePacs(classes=(GSPS_STORAGE,)) as pacs, connected(pacs) as archive:
        assert [archive.accepts(uid) for uid in CLASSES] == [False, False, True, True]


@pytest.mark.parametrize(
    ("find_status", "finding"),
    [(0xA900, "refused"), (0x0122, "refused"), (0x0124, "refused"), (0xA700, "unknown"), (0xC001, "unknown")],
)
def test_query_that_is_refused_or_cannot_be_answered_now(
    pacs: FakePacs, parts: tuple[Part, ...], find_status: int, finding: str
) -> None:
    pacs.find_status = find_status
    with connected(pacs) as archive:
        assert archive.find("1.2", parts[0].candidates[0]) == finding


def test_nothing_is_answered_on_an_association_that_is_gone(pacs: FakePacs, parts: tuple[Part, ...]) -> None:
    pacs.misbehave = lambda event: event.assoc.abort()  # type: ignore[func-returns-value]
    with connected(pacs) as archive:
        assert archive.store(parts[0].candidates[1]) is None
        assert archive.store(parts[1].candidates[0]) is None
        assert archive.find("1.2", parts[0].candidates[0]) == "unknown"
        assert archive.ask_commitment("1.2.3", [("1.2", "1.3")]) is None
        assert not archive.is_open


@pytest.mark.parametrize(
    "answer", [b"", b"\x02\x00\x00\x00\x7f\xff\xff\xff", b"\x02\x00\x00\x00\x00\x40\x00", b"HTTP/1.1 400\r\n"]
)
def test_who_answers_nothing_or_half_a_pdu_is_hung_up_on(monkeypatch: pytest.MonkeyPatch, answer: bytes) -> None:
    monkeypatch.setattr("dicom_node.requestor.ANSWER_TIMEOUT_S", 1)
    threads = threading.active_count()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)
                with suppress(OSError):
                    connection.settimeout(5)
                    connection.recv(65536)

        thread = threading.Thread(target=serve)
        thread.start()
        destination = DestinationSettings(name="a", ae_title="A", host="127.0.0.1", port=server.getsockname()[1])
        began = time.monotonic()
        with pytest.raises(AbsentError), connect(destination, CLASSES, "KNOWMVG"):
            pass
        assert time.monotonic() - began < 20
        thread.join()
    wait_until(lambda: threading.active_count() <= threads, "the threads of the association to end")


def test_archive_that_is_down_is_tried_again(pacs: FakePacs, parts: tuple[Part, ...]) -> None:
    pacs.stop()
    with pytest.raises(AbsentError, match="cannot be reached"), connected(pacs):
        pass


def test_an_archive_that_rejects_and_hangs_up_before_anybody_looks_has_rejected(
    pacs: FakePacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = AssociationSocket.__init__

    def create_unseen(transport: AssociationSocket, *arguments: Any, **options: Any) -> None:
        create(transport, *arguments, **options)
        connected_once = transport._ready.wait

        def wait_too_long() -> None:
            connected_once()
            wait_until(lambda: not transport._is_connected, "the rejection")

        monkeypatch.setattr(transport._ready, "wait", wait_too_long)

    monkeypatch.setattr(AssociationSocket, "__init__", create_unseen)
    with pytest.raises(AbsentError, match=r"rejected the association.*KNOWMVG"), connected(pacs, ae_title="OTHER"):
        pass


def test_archive_with_another_ae_title_is_named(pacs: FakePacs, parts: tuple[Part, ...]) -> None:
    with pytest.raises(AbsentError, match=r"rejected the association.*KNOWMVG"), connected(pacs, ae_title="OTHER"):
        pass


def test_host_that_does_not_exist_is_tried_again(pacs: FakePacs, parts: tuple[Part, ...]) -> None:
    with pytest.raises(AbsentError, match="cannot be reached"), connected(pacs, host="nowhere.invalid"):
        pass


def test_archive_that_accepts_none_of_the_classes_is_said_so(parts: tuple[Part, ...]) -> None:
    pacs = FakePacs(classes=())
    pacs.queryable = False
    with pacs, pytest.raises(AbsentError, match="none of the SOP classes"), connected(pacs):
        pass


@pytest.mark.parametrize(
    ("sr_class", "classes"),
    [
        ("auto", [COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR]),
        ("comprehensive", [COMPREHENSIVE_SR]),
        ("comprehensive_3d", [COMPREHENSIVE_3D_SR]),
    ],
)
def test_an_archive_may_be_given_what_its_sr_class_says(
    pacs: FakePacs, parts: tuple[Part, ...], sr_class: str, classes: list[str]
) -> None:
    destination = make_destination(pacs, sr_class=sr_class)
    assert [one.sop_class_uid for one in prefer(parts[0], destination).candidates] == classes
    assert prefer(parts[1], destination) == parts[1]
    for accepted in (COMPREHENSIVE_SR, COMPREHENSIVE_3D_SR):
        preferred = [one.sop_class_uid for one in prefer(parts[0], destination, accepted).candidates]
        assert sorted(preferred) == sorted(classes)
        assert preferred[0] == (accepted if accepted in classes else classes[0])


def test_echo(pacs: FakePacs) -> None:
    destination = make_destination(pacs)
    echo(destination, "KNOWMVG")
    pacs.stop()
    with pytest.raises(TransientError, match="cannot be reached"):
        echo(destination, "KNOWMVG")


def test_an_association_whose_thread_has_ended_is_not_waited_for(
    pacs: FakePacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer may hang up between the look whether an association is open and the request on it."""
    monkeypatch.setattr("dicom_node.requestor.ANSWER_TIMEOUT_S", 1)
    done = threading.Event()

    def deliver() -> None:
        with connected(pacs) as archive:
            association = archive._association
            association._kill = True
            wait_until(lambda: not association.is_alive(), "the thread of the association to end", 10)
            association.is_established = True
            archive.find("1.2", Candidate("1.2", "1.3", "1.4", Path("none").open))
        done.set()

    threading.Thread(target=deliver, daemon=True).start()
    assert done.wait(20)


def test_an_association_whose_thread_never_pauses_is_released_all_the_same(
    pacs: FakePacs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dicom_node.requestor.PAUSE_S", 0.3)
    monkeypatch.setattr("dicom_node.requestor.ANSWER_TIMEOUT_S", 1)
    done = threading.Event()

    def deliver() -> None:
        with connected(pacs) as archive:
            association = archive._association
            association._reactor_checkpoint.clear()  # its thread stands still
            wait_until(lambda: association._is_paused, "it to stand", 10)
            association._is_paused = False  # and nobody knows
        done.set()

    threading.Thread(target=deliver, daemon=True).start()
    assert done.wait(20)


def test_what_is_kept_goes_out_as_it_is_where_its_transfer_syntax_is_accepted(
    pacs: FakePacs, parts: tuple[Part, ...]
) -> None:
    candidate, came = parts[0].candidates[1], list[tuple[str, bytes]]()

    def note(event: Event) -> None:
        content: Any = event.request
        came.append((str(event.context.transfer_syntax), content.DataSet.getvalue()))

    pacs.misbehave = note  # type: ignore[assignment]
    with connected(pacs) as archive:
        assert archive.store(candidate) == 0x0000
    assert came == [(ExplicitVRLittleEndian, bytes(split_file(read_bytes(candidate))[1]))]


def test_another_transfer_syntax_is_written_where_the_archive_takes_no_other(parts: tuple[Part, ...]) -> None:
    candidate = parts[0].candidates[1]
    with FakePacs(syntaxes=[ImplicitVRLittleEndian]) as pacs:
        with connected(pacs) as archive:
            assert archive.store(candidate) == 0x0000
        received = pacs.datasets[candidate.sop_instance_uid]
    assert received == decode(read_bytes(candidate))
    assert received.file_meta.TransferSyntaxUID == ImplicitVRLittleEndian


def test_threads_of_an_association_that_waits_use_next_to_no_processor_time(pacs: FakePacs) -> None:
    """pynetdicom's own look a thousand times a second, which takes more than a twentieth of a core."""
    with connected(pacs) as archive:
        threads = [thread.native_id for thread in (archive._association, archive._association.dul)]
        before = [_processor_seconds(one) for one in threads]
        time.sleep(2)
        assert sum(map(_processor_seconds, threads)) - sum(before) <= 0.04


def _processor_seconds(thread: int | None) -> float:
    fields = Path(f"/proc/self/task/{thread}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_an_association_is_released_at_once_after_a_report_of_storage_commitment_on_it() -> None:
    pacs, reports = FakePacs(), list[Dataset]()
    pacs.commits = "same"
    with pacs:
        for number in range(20):
            began = time.monotonic()
            with connect(make_destination(pacs), [PUSH_MODEL], "KNOWMVG", partial(_keep, reports)) as archive:
                assert archive.ask_commitment(f"1.2.{number}", [("1.2", "1.3")]) == 0x0000
                wait_until(lambda number=number: len(reports) > number, "the report", 10)
            assert time.monotonic() - began < 2


def _keep(reports: list[Dataset], report: Dataset) -> int:
    reports.append(report)
    return 0x0000
