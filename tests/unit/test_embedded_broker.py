"""The broker of one host: every message once, whole, in order, and usable after any death."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from queue import Empty

import pytest
from kombu import Connection

from workers.embedded_broker import MessageFile


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[Connection]:
    with connect(tmp_path) as connection:
        yield connection


def connect(folder: Path) -> Connection:
    return Connection(
        "memory://",
        transport="workers.embedded_broker:Transport",
        transport_options={"path": str(folder / "sub" / "broker.db")},
    )


def take_all(connection: Connection, queue: str = "io") -> list[object]:
    bodies: list[object] = []
    with connection.SimpleQueue(queue) as taker:
        try:
            while True:
                message = taker.get(block=False)
                message.ack()
                bodies.append(message.payload)
        except Empty:
            return bodies


def put(connection: Connection, *bodies: object, queue: str = "io") -> None:
    with connection.SimpleQueue(queue) as putter:
        for body in bodies:
            putter.put(body)


def test_messages_come_out_once_and_in_order(connection: Connection) -> None:
    put(connection, 1, 2, 3)
    assert take_all(connection) == [1, 2, 3]
    assert take_all(connection) == []


def test_queues_are_apart(connection: Connection) -> None:
    put(connection, "a", queue="io")
    put(connection, "b", queue="gpu")
    assert take_all(connection, "gpu") == ["b"]
    assert take_all(connection, "io") == ["a"]


def test_messages_outlive_the_connection(tmp_path: Path) -> None:
    with connect(tmp_path) as connection:
        put(connection, "kept")
    with connect(tmp_path) as connection:
        assert take_all(connection) == ["kept"]


def test_message_that_was_taken_and_not_acknowledged_comes_back_at_a_clean_end(tmp_path: Path) -> None:
    with connect(tmp_path) as connection:
        put(connection, "ring")
        with connection.SimpleQueue("io") as taker:
            taker.get(block=False)
    with connect(tmp_path) as connection:
        assert take_all(connection) == ["ring"]


def test_size_and_purge(connection: Connection) -> None:
    put(connection, 1, 2)
    with connection.SimpleQueue("io") as queue:
        assert queue.qsize() == 2
        assert queue.clear() == 2
        assert queue.qsize() == 0


def test_threads_never_share_a_message(tmp_path: Path) -> None:
    count, taken, lock = 200, [], threading.Lock()
    files = [MessageFile(tmp_path / "broker.db") for _ in range(4)]
    for number in range(count):
        files[0].run("INSERT INTO messages (queue, body) VALUES ('io', ?)", str(number))

    def take(file: MessageFile) -> None:
        from workers.embedded_broker import TAKE

        while rows := file.run(TAKE, "io"):
            with lock:
                taken.append(int(rows[0][0]))

    threads = [threading.Thread(target=take, args=(file,)) for file in files]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(count))


def test_file_is_whole_after_a_writer_is_killed_in_mid_transaction(tmp_path: Path) -> None:
    path = tmp_path / "broker.db"
    MessageFile(path).run("INSERT INTO messages (queue, body) VALUES ('io', ?)", "before")
    script = (
        "import os, signal, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('BEGIN IMMEDIATE')\n"
        "db.execute(\"INSERT INTO messages (queue, body) VALUES ('io', 'half')\")\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    died = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert died.returncode == -signal.SIGKILL
    assert MessageFile(path).run("SELECT body FROM messages") == [("before",)]


def test_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "sub").write_text("a file where the folder should be")
    with pytest.raises((OSError, sqlite3.OperationalError)), connect(tmp_path) as connection:
        put(connection, 1)


def test_no_descriptor_is_left_behind(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # counts, needs no Path
    for _ in range(5):
        with connect(tmp_path) as connection:
            put(connection, 1)
    assert len(os.listdir("/proc/self/fd")) <= before + 1  # noqa: PTH208
