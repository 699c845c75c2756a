"""The broker of `broker.url: embedded`: a kombu transport on one SQLite file, for one host with a local disk.

A message is a doorbell, and the job's row is the truth: taking a message deletes it, so a worker that is killed loses
the ring and the sweep rings again. Hence there are no leases, visibility time-outs or restored messages here; what is
promised is that a message is seen whole or not at all, by one worker, and that a kill -9 at any moment leaves the
file usable.
"""

from __future__ import annotations

import json
import sqlite3
import threading
from pathlib import Path
from queue import Empty
from typing import Any

from kombu.transport import virtual

POLLING_INTERVAL_S = 0.1
"""A ring waits half of this on average; an idle worker then costs about half a percent of one core."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS messages (id INTEGER PRIMARY KEY AUTOINCREMENT, queue TEXT NOT NULL, body TEXT NOT NULL)
"""
TAKE = "DELETE FROM messages WHERE id = (SELECT min(id) FROM messages WHERE queue = ?) RETURNING body"


class MessageFile:
    """The SQLite file that holds the messages; one connection, usable from several threads."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        # A power cut may lose the last messages: the sweep rings again, so that no sync per message is needed.
        self._connection.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; {SCHEMA}")

    def run(self, statement: str, *values: str) -> list[tuple[Any, ...]]:
        """Execute one statement in its own transaction and return its rows."""
        with self._lock:
            return self._connection.execute(statement, values).fetchall()

    def close(self) -> None:
        """Close the connection; the file stays."""
        with self._lock:
            self._connection.close()


class Channel(virtual.Channel):
    """Kombu's virtual channel, with its queues in the message file."""

    supports_fanout = False

    @property
    def _messages(self) -> MessageFile:
        file: MessageFile = self.connection.messages
        return file

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        self._messages.run("INSERT INTO messages (queue, body) VALUES (?, ?)", queue, json.dumps(message))

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:
        if not (rows := self._messages.run(TAKE, queue)):
            raise Empty
        message: dict[str, Any] = json.loads(rows[0][0])
        return message

    def _size(self, queue: str) -> int:
        return int(self._messages.run("SELECT count(*) FROM messages WHERE queue = ?", queue)[0][0])

    def _purge(self, queue: str) -> int:
        return len(self._messages.run("DELETE FROM messages WHERE queue = ? RETURNING id", queue))

    def _has_queue(self, queue: str, **_: Any) -> bool:
        return True


class Transport(virtual.Transport):
    """Kombu's virtual transport; `transport_options["path"]` names the message file."""

    Channel = Channel
    polling_interval = POLLING_INTERVAL_S
    driver_type = "sqlite"
    driver_name = "embedded"

    def __init__(self, client: Any, **options: Any) -> None:
        super().__init__(client, **options)  # type: ignore[no-untyped-call]  # kombu ships no types
        self.messages = MessageFile(Path(client.transport_options["path"]))

    def close_connection(self, connection: Any) -> None:
        """Close the channels, then the file."""
        super().close_connection(connection)  # type: ignore[no-untyped-call]  # kombu ships no types
        self.messages.close()

    def driver_version(self) -> str:
        """Return SQLite's version, as kombu prints it."""
        return sqlite3.sqlite_version
