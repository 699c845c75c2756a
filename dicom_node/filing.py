"""Filing the rows of what was received: all that wait at one time in one transaction (group commit).

Whoever comes while nobody is at it commits for all that wait, and then hands over to the next in line; there is no
thread beside those that read, and one alone waits for nobody. The promise stays that of one instance: its `record`
returns when the transaction that holds its row is committed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import islice

from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from dicom_node.queries import AWAY_ERRORS, Arrival, Recorded, note_received, record_instances

GROUP = 64
"""Rows of one transaction at most: each of its senders waits for all of it."""

GATHER_S = 0.003
"""So long who commits waits for what is just being filed: a transaction for each costs more than all of them wait."""

DEADLOCK = "40P01"
"""SQLSTATE of PostgreSQL where two transactions waited for each other; of two receivers' groups, for instance."""


@dataclass(eq=False)
class _Ticket:
    """Arrivals in line. It is woken with their outcomes, or without: then it is its turn to commit."""

    arrivals: Sequence[Arrival]
    woken: threading.Event = field(default_factory=threading.Event)
    outcomes: Sequence[Recorded | Exception] | None = None


class Filing:
    """The line of one receiver; safe to use from many threads."""

    def __init__(self, sessions: sessionmaker[Session], quiet_period: timedelta) -> None:
        self._sessions, self._quiet_period = sessions, quiet_period
        self._lock = threading.Condition()
        self._waiting: list[_Ticket] = []
        self._is_led = False
        self._coming = 0

    @contextmanager
    def coming(self, count: int) -> Iterator[None]:
        """Announce arrivals, until they are recorded or are not to be: who commits meanwhile waits a little."""
        with self._lock:
            self._coming += count
        try:
            yield
        finally:
            with self._lock:
                self._coming -= count
                self._lock.notify_all()

    def record(self, arrivals: Sequence[Arrival]) -> Sequence[Recorded | Exception]:
        """Make the rows of instances (`queries.record_instances`), committed on return; failures are outcomes, too."""
        ticket = _Ticket(arrivals)
        with self._lock:
            self._waiting.append(ticket)
            self._lock.notify_all()
            follows, self._is_led = self._is_led, True
        if follows:
            ticket.woken.wait()
        if ticket.outcomes is None:
            self._commit_group()
        assert ticket.outcomes is not None
        return ticket.outcomes

    def _commit_group(self) -> None:
        """Commit what waits, the caller's ticket first, and wake those it was for, and who leads the next group."""
        with self._lock:
            self._lock.wait_for(lambda: self._count(self._waiting) >= min(self._coming, GROUP), GATHER_S)
            group = [self._waiting.pop(0)]
            while self._waiting and self._count(group) + len(self._waiting[0].arrivals) <= GROUP:
                group.append(self._waiting.pop(0))
        outcomes = iter(self._settle([arrival for one in group for arrival in one.arrivals]))
        for ticket in group:
            ticket.outcomes = list(islice(outcomes, len(ticket.arrivals)))
        with self._lock:
            woken = [*group, *self._waiting[:1]]
            self._is_led = bool(self._waiting)
        for ticket in woken:
            ticket.woken.set()

    @staticmethod
    def _count(tickets: Sequence[_Ticket]) -> int:
        return sum(len(one.arrivals) for one in tickets)

    def _settle(self, arrivals: Sequence[Arrival]) -> Sequence[Recorded | Exception]:
        """Return what became of each. What the database has against one of them is not held against the others."""
        try:
            return self._record(arrivals)
        except Exception as error:  # noqa: BLE001 - raised again where it belongs
            if len(arrivals) == 1 or _is_away(error):
                return [error] * len(arrivals)
        return [outcome for arrival in arrivals for outcome in self._settle([arrival])]

    def _record(self, arrivals: Sequence[Arrival]) -> Sequence[Recorded]:
        with self._sessions.begin() as session:
            recorded = record_instances(session, arrivals, self._quiet_period)
            pairs = zip(arrivals, recorded, strict=True)
            note_received(session, [arrival for arrival, what in pairs if what.kind != "own"])
        return recorded


def _is_away(error: Exception) -> bool:
    """Tell whether the database is away for all of a group, so that each alone would only wait for it again."""
    deadlocked = isinstance(error, OperationalError) and getattr(error.orig, "sqlstate", None) == DEADLOCK
    return isinstance(error, AWAY_ERRORS) and not deadlocked
