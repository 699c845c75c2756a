"""The reporter of a process: every few seconds it keeps what the process has counted in the process's row.

It has a thread of its own. A database that is away costs the work nothing: what was counted meanwhile is in the next
report. A process that was taken for ended, and folded, goes on with a new row from where it was.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

from sqlalchemy.orm import Session, sessionmaker

from dicom_node.clock import Clock
from dicom_node.logs import log_event
from dicom_node.queries import DATABASE_ERRORS, ProcessFacts, explain, note_alive, note_new
from dicom_node.recorder import Recorder, Samples, add, gauges

logger = logging.getLogger(__name__)

REPORT_S = 5.0
"""Between two reports."""


class Reporter:
    """Keeps the samples of one process."""

    def __init__(
        self,
        recorder: Recorder,
        sessions: sessionmaker[Session],
        clock: Clock,
        role: str,
        look: Callable[[Recorder], None] = lambda recorder: None,
    ) -> None:
        """`look` sets the gauges that somebody has to look for, such as the memory of a GPU, before each report."""
        self._recorder, self._sessions, self._clock, self._look = recorder, sessions, clock, look
        facts = (secrets.token_hex(16), role, socket.gethostname()[:64], os.getpid(), _version(), clock())
        self.facts = ProcessFacts(*facts)
        self._has_row = False
        self._kept: Samples = {}
        """What the last report held, and the row has."""
        self._folded: Samples = {}
        """What others keep already of this process."""
        self._is_away = False

    def run(self, stop: threading.Event) -> None:
        """Report until `stop` is set."""
        while not stop.is_set():
            self.report()
            stop.wait(REPORT_S)

    def report(self, *, stopped: bool = False) -> bool:
        """Report once; False if the database is away."""
        self._look(self._recorder)
        found = self._recorder.samples()
        try:
            folded = self._write(found, stopped)
        except DATABASE_ERRORS as error:
            if not self._is_away:
                log_event(logger, "metrics not kept", level=logging.WARNING, reason=explain(error))
            self._is_away = True
            return False
        self._has_row, self._kept, self._folded, self._is_away = True, found, folded, False
        return True

    def _write(self, found: Samples, stopped: bool) -> Samples:
        """Keep what was found, and return what of it others keep."""
        now, folded = self._clock(), self._folded
        with self._sessions.begin() as session:
            own = add(found, folded, -1.0) | gauges(found)
            if not note_alive(session, self.facts, own, now, stopped=stopped):
                folded = self._kept if self._has_row else folded
                own = add(found, folded, -1.0) | gauges(found)
                note_new(session, self.facts, own, now, stopped=stopped)
        return folded


@contextmanager
def reporting(reporter: Reporter) -> Iterator[None]:
    """Report in a thread until the end, and then once more."""
    stop = threading.Event()
    thread = threading.Thread(target=reporter.run, args=(stop,), name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(REPORT_S)
        if not thread.is_alive():
            reporter.report(stopped=True)


def _version() -> str:
    try:
        return version("knowmvg-node")
    except PackageNotFoundError:  # run from a source tree
        return "unknown"
