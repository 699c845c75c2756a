"""The processes of the node, on whatever host: that each lives, and what it has counted.

A process whose time is over is folded into one row that keeps what all ended ones have counted, so that no sum of
counters ever goes back.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, or_, select, update
from sqlalchemy.orm import Session

from dicom_node.queries.inserting import insert_or_ignore
from dicom_node.recorder import Samples, add, from_json, to_json
from dicom_node.watch_tables import ProcessRow

ENDED = "ended"
"""Token of the row that keeps what ended processes have counted."""


@dataclass(frozen=True, slots=True)
class ProcessFacts:
    """Who a process is: `token` is drawn at its start, `role` what it does, as `worker gpu`."""

    token: str
    role: str
    host: str
    pid: int
    version: str
    started_at: datetime


@dataclass(frozen=True, slots=True)
class ProcessState:
    """A process as its row tells: when it was seen last, whether it said that it ends, and its samples."""

    facts: ProcessFacts
    seen_at: datetime
    stopped_at: datetime | None
    samples: Samples


def note_alive(session: Session, facts: ProcessFacts, samples: Samples, now: datetime, *, stopped: bool) -> bool:
    """Keep a process's samples in its row; False if it has none (any more), and nothing was kept."""
    statement = (
        update(ProcessRow)
        .where(ProcessRow.token == facts.token)
        .values(samples=to_json(samples), seen_at=now, stopped_at=now if stopped else None)
        .returning(ProcessRow.token)
    )
    return session.scalar(statement) is not None


def note_new(session: Session, facts: ProcessFacts, samples: Samples, now: datetime, *, stopped: bool) -> None:
    """Make the row of a process."""
    insert_or_ignore(
        session, ProcessRow, token=facts.token, role=facts.role, host=facts.host, pid=facts.pid, version=facts.version,
        started_at=facts.started_at, seen_at=now, stopped_at=now if stopped else None, samples=to_json(samples),
    )  # fmt: skip


def list_processes(session: Session) -> tuple[tuple[ProcessState, ...], Samples]:
    """Return the processes by role, and what those have counted that are no more: both of one moment."""
    rows = list(session.scalars(select(ProcessRow).order_by(ProcessRow.role, ProcessRow.host, ProcessRow.pid)))
    kept = next((from_json(row.samples) for row in rows if row.token == ENDED), {})
    return tuple(_state(row) for row in rows if row.token != ENDED), kept


def fold_processes(session: Session, before: datetime, now: datetime) -> int:
    """Keep what processes have counted that stopped, or were not seen since `before`, and remove their rows; return how
    many those were."""
    insert_or_ignore(
        session, ProcessRow, token=ENDED, role="", host="", pid=0, version="", started_at=now, seen_at=now, samples=[]
    )
    kept = session.get_one(ProcessRow, ENDED, with_for_update=True)  # of several that do this, one after the other
    gone = session.scalars(
        delete(ProcessRow)
        .where(ProcessRow.token != ENDED, or_(ProcessRow.stopped_at.is_not(None), ProcessRow.seen_at < before))
        .returning(ProcessRow.samples)
    ).all()
    if gone:
        total = from_json(kept.samples)
        for samples in gone:
            total = add(total, from_json(samples))
        kept.samples, kept.seen_at = to_json(total), now
    return len(gone)


def _state(row: Any) -> ProcessState:
    facts = ProcessFacts(row.token, row.role, row.host, row.pid, row.version, row.started_at)
    return ProcessState(facts, row.seen_at, row.stopped_at, from_json(row.samples))
