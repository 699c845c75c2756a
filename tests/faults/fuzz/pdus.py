"""Associations: whatever is sent, the receiver answers the next one, and keeps nothing that is not whole."""

from __future__ import annotations

import logging
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from sqlalchemy import select as rows_of

from dicom_node import scp, transport
from dicom_node.config import Settings
from dicom_node.instance import read_instance
from dicom_node.queries import make_engine, make_sessions, upgrade_schema
from dicom_node.scp import Receiver, start_receiver
from dicom_node.storage import FileStorage, dataset_digest
from dicom_node.tables import ConflictRow, InstanceRow
from tests.fakes import FrozenClock
from tests.faults.fuzz.bounds import Violation, WriteWatch
from tests.faults.fuzz.isolation import ENOUGH, Figures
from tests.faults.fuzz.pdu_mutations import VERIFICATION, Stream, make_stream
from tests.senders import Sender

BATCH = 50
SETTLE_S = 30
"""For all associations of a batch to end: longer than the receiver waits for anybody who has hung up."""

ANSWER_S = 0.1
"""For the answer to the first PDU, where there is to be one."""

GREETING_S = 1
"""How long the receiver waits for strangers here: in earnest it is ten times as patient."""

HELD = 8
"""Conversations that are open at once."""


class Target:
    """A receiver in a folder of its own, and what went wrong in its threads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "node"
        url = f"sqlite:///{self.folder}/knowmvg.db"
        self.folder.mkdir()
        upgrade_schema(url)
        self.engine = make_engine(url)
        self.sessions = make_sessions(self.engine)
        peers = [{"ae_title": "PACS", "address": "127.0.0.1"}]
        settings = Settings.model_validate(
            {"node": {"data_dir": self.folder}, "receiver": {"port": 1, "peers": peers, "min_free_bytes": 1}}
        )
        free = settings.receiver.model_copy(update={"port": 0})
        self.storage = FileStorage(self.folder / "dicom")
        self.receiver: Receiver = start_receiver(
            settings.model_copy(update={"receiver": free}), self.sessions, self.storage, FrozenClock()
        )
        self.died: list[str] = []
        self._checked: set[str] = set()
        self._surroundings = sorted(folder.iterdir())
        check_echo(self.receiver.port)
        self.threads = self._settled_threads()

    def close(self) -> None:
        """Stop the receiver."""
        self.receiver.stop()
        self.engine.dispose()

    def check(self) -> None:
        """Raise Violation unless all is as it should be when nobody is connected."""
        if self.died:
            raise Violation(f"a thread ended with {self.died[0]}")
        check_echo(self.receiver.port)
        if (threads := self._settled_threads(self.threads)) > self.threads:
            names = sorted(thread.name for thread in threading.enumerate())
            raise Violation(f"hang: {threads} threads instead of {self.threads}: {names}")
        if left := list(self.storage.incoming.glob("*")):
            raise Violation(f"half-written: {len(left)} files of instances that were not received, {left[0].name}")
        if sorted(self.folder.parent.iterdir()) != self._surroundings:
            raise Violation(f"outside: {sorted(self.folder.parent.iterdir())}")
        self._check_rows()

    def _settled_threads(self, wanted: int = 0) -> int:
        """Return how many threads there are, as soon as there are no more than `wanted`, or when it is time."""
        deadline = time.monotonic() + (SETTLE_S if wanted else 1)
        while threading.active_count() > wanted and time.monotonic() < deadline:
            time.sleep(0.01)
        return threading.active_count()

    def _check_rows(self) -> None:
        """Every row has its whole file, and every file its row."""
        with self.sessions() as session:
            kept = [(row.storage_key, row.sha256, row.size_bytes) for row in session.scalars(rows_of(InstanceRow))]
            kept += [(row.storage_key, row.sha256, None) for row in session.scalars(rows_of(ConflictRow))]
        for key, sha256, size in kept:
            if key in self._checked:
                continue
            path = self.storage.path(key)
            if not path.is_file():
                raise Violation(f"half-written: a row without its file {key}")
            with path.open("rb") as file:
                digest, bytes_there = dataset_digest(file)
            if digest != sha256 or size not in (None, bytes_there):
                raise Violation(f"half-written: {key} is not what its row says")
            read_instance(path)
            self._checked.add(key)
        found = {path.relative_to(self.storage.root).as_posix() for path in self.storage.root.rglob("*.dcm")}
        if unknown := found - {key for key, _, _ in kept}:
            raise Violation(f"half-written: files without a row: {sorted(unknown)[:3]}")


def check_echo(port: int) -> None:
    """Raise Violation unless the receiver answers a C-ECHO."""
    ae = Sender("PACS")
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
    ae.add_requested_context(VERIFICATION)
    association = ae.associate("127.0.0.1", port, ae_title="KNOWMVG")
    if not association.is_established:
        raise Violation("hang: no association is accepted any more")
    status = association.send_c_echo()
    association.release()
    association.join(10)
    if status.get("Status") != 0:
        raise Violation("hang: C-ECHO is not answered any more")


def run_cases(folder: Path, cases: int, first: int = 0) -> Figures:
    """Run conversations with seeds from `first` on, and look at the receiver after each batch."""
    figures, began = Figures("pdus"), time.monotonic()
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL + 1)
    with _watched(folder) as (target, watch):
        for start in range(first, first + cases, BATCH):
            batch = range(start, min(start + BATCH, first + cases))
            try:
                run_batch(target, batch)
                target.check()
                if watch.outside:
                    raise Violation(f"outside: {watch.outside[:3]}")
            except Violation as violation:
                figures.note(f"seeds {batch.start} to {batch.stop - 1}", str(violation))
                target.died.clear()
                watch.outside.clear()
                target.threads = max(target.threads, threading.active_count())
            figures.cases += len(batch)
            if len(figures.violations) >= ENOUGH:
                break
    figures.seconds = round(time.monotonic() - began, 1)
    return figures


def run_case(seed: int, folder: Path) -> None:
    """Run one conversation with a receiver of its own; raises Violation."""
    with _watched(folder) as (target, _):
        run_batch(target, [seed])
        target.check()


@contextmanager
def _watched(folder: Path) -> Iterator[tuple[Target, WriteWatch]]:
    """Give a receiver whose threads may not end with an exception."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scp, "GREETING_S", GREETING_S)
        patch.setattr(transport, "GREETING_S", GREETING_S)
        target = Target(folder)
        patch.setattr(threading, "excepthook", _note(target.died))
        try:
            with WriteWatch(folder / "node") as watch:
                yield target, watch
        finally:
            target.close()


def _note(died: list[str]) -> Callable[[Any], None]:
    def note(arguments: Any) -> None:
        trace, place = arguments.exc_traceback, ""
        while trace is not None:
            place, trace = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}", trace.tb_next
        died.append(f"{arguments.exc_type.__name__}: {arguments.exc_value} at {place}")

    return note


def run_batch(target: Target, seeds: range | list[int]) -> None:
    """Have these conversations, some at once."""
    held: list[socket.socket] = []
    for seed in seeds:
        stream = make_stream(Random(seed), seed)
        if connection := _say(target.receiver.port, stream):
            held.append(connection)
        if len(held) >= HELD:
            _hear_out(held.pop(0))
    for connection in held:
        _hear_out(connection)


def _say(port: int, stream: Stream) -> socket.socket | None:
    """Send a stream, and say that no more comes; None if the receiver hung up, or was hung up on."""
    connection = socket.create_connection(("127.0.0.1", port), 20)
    try:
        _send(connection, stream.opening, stream.piece)
        if stream.waits:
            select.select([connection], [], [], ANSWER_S)
        _send(connection, stream.rest, stream.piece)
        if not stream.resets:
            connection.shutdown(socket.SHUT_WR)
            return connection
    except OSError:  # it has hung up
        pass
    connection.close()
    return None


def _send(connection: socket.socket, content: bytes, piece: int) -> None:
    for at in range(0, len(content), piece):
        connection.sendall(content[at : at + piece])


def _hear_out(connection: socket.socket) -> None:
    """Read until the receiver hangs up; raises Violation if it does not."""
    connection.settimeout(SETTLE_S)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError as error:
        raise Violation("hang: the receiver does not hang up on who has hung up") from error
    except OSError:
        pass
    finally:
        connection.close()
