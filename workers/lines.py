"""Associations that a lane keeps for its next dispatch, for a moment: opening one costs both sides more than an SR.

Each thread has one at most, which only dispatches of the same destination follow on. Whatever they come to is theirs:
each has its own lease, commits and errors, and one that raises ends the association. One that nobody uses is closed in
time, whatever its thread does meanwhile: it may wait for a database, or be rung for what is not due.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass

from dicom_node.config import DestinationSettings
from dicom_node.requestor import Report
from dicom_node.scu import Archive, Connect

LONGEST_S = 10.0
"""So long an association goes on: some archives file what came when it ends."""

IDLE_S = 0.25
"""So long an association is kept after its last use."""


@dataclass(frozen=True)
class Line:
    """An association that is kept: with whom, what was proposed, and until when, in seconds of the monotonic clock."""

    destination: DestinationSettings
    proposed: frozenset[str]
    calling_ae_title: str
    archive: Archive
    open: ExitStack
    until: float

    @property
    def left_s(self) -> float:
        """For how long it may be kept, in seconds; it is to be closed at 0 or less."""
        return self.until - time.monotonic() if self.archive.is_open else 0.0

    def serves(self, destination: DestinationSettings, abstract_syntaxes: Sequence[str], calling_ae_title: str) -> bool:
        """Tell whether it is as good as a new one."""
        same = (self.destination, self.calling_ae_title) == (destination, calling_ae_title)
        return same and self.left_s > 0 and self.proposed.issuperset(abstract_syntaxes)


class Lines:
    """The associations of one process's lanes."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._of_thread = threading.local()

    @contextmanager
    def connect(
        self,
        destination: DestinationSettings,
        abstract_syntaxes: Sequence[str],
        calling_ae_title: str,
        on_report: Report | None = None,
    ) -> Iterator[Archive]:
        """Give an association as `scu.connect` does, or the one that this thread keeps; its `is_used` tells.

        Reports on one that is kept go where its first `on_report` said: to the same rows. Raises AbsentError.
        """
        line = self._take()
        if line is not None and not line.serves(destination, abstract_syntaxes, calling_ae_title):
            line.open.close()
            line = None
        if line is None:
            given = self._connect(destination, abstract_syntaxes, calling_ae_title, on_report)
            line = _open(given, destination, abstract_syntaxes, calling_ae_title)
        with ExitStack() as leaving:
            leaving.push(line.open)
            yield line.archive
            if (left_s := line.left_s) > 0:
                line.archive.is_used = True
                self._keep(line, min(left_s, IDLE_S))
                leaving.pop_all()

    def close(self) -> None:
        """Release the association that this thread keeps, if there is one."""
        line = self._take()
        if line is not None:
            line.open.close()

    def _keep(self, line: Line, for_s: float) -> None:
        timer = threading.Timer(for_s, line.open.close)
        timer.daemon = True
        timer.start()
        self._of_thread.kept = line, timer

    def _take(self) -> Line | None:
        """Return what this thread keeps, which nobody else closes from now on; it may have been closed by then."""
        kept: tuple[Line, threading.Timer] | None = getattr(self._of_thread, "kept", None)
        self._of_thread.kept = None
        if kept is None:
            return None
        line, timer = kept
        timer.cancel()
        timer.join()
        return line


def _open(
    given: AbstractContextManager[Archive],
    destination: DestinationSettings,
    abstract_syntaxes: Sequence[str],
    calling_ae_title: str,
) -> Line:
    stack = ExitStack()
    archive = stack.enter_context(given)
    proposed, until = frozenset(abstract_syntaxes), time.monotonic() + LONGEST_S
    return Line(destination, proposed, calling_ae_title, archive, stack, until)
