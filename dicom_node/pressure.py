"""Back-pressure: when the receiver takes nothing more for now, and when it does again. Pure decisions, and their state.

A sender that is refused for now keeps its study and tries again; what is accepted is never dropped. The door closes at
once and opens a little later than it closed, so that it does not flap about the limit.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

REOPEN = 1.1
"""Free space that opens the door again, as a multiple of the limit that closed it."""

LEAST_FREE = 4 * 1024**2
"""Bytes below which nothing can be received, whatever the limit."""

SLOW_PROBE_S = 5.0
"""A database that has not answered after so long counts as away."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What was measured: free bytes of the storage, and why it or the database cannot be used, if so."""

    free_bytes: int
    fault: str = ""
    database_away: bool = False


def decide(closed: str, reading: Reading, min_free_bytes: int) -> str:
    """Return why the door is (or stays) closed, or an empty text: it is open. `closed` is what was said before."""
    if reading.fault:
        return reading.fault
    limit = max(min_free_bytes, LEAST_FREE)
    if reading.free_bytes < (limit * REOPEN if closed else limit):
        return f"{reading.free_bytes} bytes free, receiver.min_free_bytes is {min_free_bytes}"
    return ""


class Pressure:
    """The present state of the door; `look` is called by one thread, the rest by all."""

    def __init__(self, measure: Callable[[], Reading], min_free_bytes: int) -> None:
        self._measure, self._min_free_bytes = measure, min_free_bytes
        self.changed: Callable[[str], None] = lambda closed: None
        """Told once whenever the door closes (why) or opens (an empty text)."""
        self._lock = threading.Lock()
        self._closed = ""
        self._database_away = False
        self._probing_since: float | None = None

    @property
    def closed(self) -> str:
        """Why nothing is taken in now; empty if the door is open."""
        if self._probes_slowly:
            return self._closed or "the database does not answer"
        return self._closed

    @property
    def database_away(self) -> bool:
        """Whether the database cannot be used now, as far as is known; the door may be closed for another reason."""
        return self._database_away or self._probes_slowly

    @property
    def _probes_slowly(self) -> bool:
        since = self._probing_since
        return since is not None and time.monotonic() - since > SLOW_PROBE_S

    def look(self) -> None:
        """Measure once, and open or close."""
        self._probing_since = time.monotonic()
        try:
            reading = self._measure()
        finally:
            self._probing_since = None
        self._turn(decide(self._closed, reading, self._min_free_bytes), reading.database_away)

    def close(self, reason: str) -> None:
        """Close at once, until the next look finds that all is well; till then it may be the database."""
        self._turn(reason, True)

    def _turn(self, closed: str, database_away: bool) -> None:
        with self._lock:
            told = bool(closed) != bool(self._closed)
            self._closed, self._database_away = closed, database_away
        if told:
            self.changed(closed)
