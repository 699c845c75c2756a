"""Whether the node can do its work, in one sentence each: database, storage, scheduler, broker; for `/readyz`,
`/metrics` and `knowmvg check`.

Whether scheduler and broker are well is read from the rows of the processes: the console calls nobody.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from dicom_node.config import ClientTlsSettings, ServerTlsSettings, Settings, masked
from dicom_node.errors import NodeError, SchemaError
from dicom_node.objects import open_storage, spool_of
from dicom_node.pressure import LEAST_FREE
from dicom_node.queries import (
    DATABASE_ERRORS,
    ProcessState,
    check_schema,
    current_revision,
    explain,
    list_processes,
    probe,
)
from dicom_node.tls import expiries

ALIVE_WITHIN = timedelta(seconds=20)
"""A process that has not reported for so long counts as dead; it reports every 5 s."""

SWEPT_WITHIN = timedelta(seconds=60)
"""A sweep is due every second; one over a long backlog takes a while."""


@dataclass(frozen=True)
class Usage:
    """Bytes of a file system."""

    total: int
    free: int


@dataclass(frozen=True)
class Check:
    """What was tried, whether it works, and what was found or what to do."""

    name: str
    ok: bool
    detail: str

    @property
    def line(self) -> str:
        """Return `ok    storage   …` for people."""
        return f"{'ok' if self.ok else 'FAIL':<5} {self.name:<14} {self.detail}"

    def to_json(self) -> dict[str, Any]:
        """Return the check as JSON values."""
        return asdict(self)


def check_database(settings: Settings, engine: Engine) -> Check:
    """Tell whether the database answers and has the schema of this version."""
    url = masked(settings)["database"]["url"]
    try:
        check_schema(engine)
        return Check("database", True, f"{url}, schema {current_revision(engine)}")
    except SchemaError as error:
        return Check("database", False, str(error))
    except DBAPIError as error:
        return Check("database", False, f"{url} does not answer: {' '.join(str(error.orig).split())}; see database.url")


def check_storage(settings: Settings) -> Check:
    """Tell whether the storage folder can be written and has the free space that the receiver asks for."""
    root = spool_of(settings)
    if reason := check_folder(root):
        return Check("storage", False, f"{root}: {reason}; see storage.url")
    usage, needed = read_disk(root), settings.receiver.min_free_bytes
    free = usage.free if usage else 0
    if free < needed:
        return Check(
            "storage",
            False,
            f"{root}: {free / 2**30:.1f} GiB free, receiver.min_free_bytes is {needed / 2**30:.1f} GiB",
        )
    if settings.storage.is_bucket:
        return _check_bucket(settings)
    return Check("storage", True, f"{root}, {free / 2**30:.1f} GiB free")


def _check_bucket(settings: Settings) -> Check:
    try:
        fault = open_storage(settings).find_fault()
    except NodeError as error:
        fault = str(error)
    return Check("storage", not fault, fault or f"{settings.storage.url} answers")


def check_folder(root: Path) -> str:
    """Return why a folder cannot be written, or an empty text; one that is not there yet, the node makes itself."""
    folder = _existing(root)
    if not folder.is_dir():
        return f"{folder} is no folder"
    return "" if os.access(folder, os.W_OK | os.X_OK) else "this user may not write there"


def read_disk(root: Path) -> Usage | None:
    """Return total and free bytes of the file system that a folder is on, or will be; None if it cannot be asked."""
    try:
        usage = shutil.disk_usage(_existing(root))
    except OSError:
        return None
    return Usage(usage.total, usage.free)


def disk_limit(settings: Settings) -> int:
    """Return the free bytes below which administrators are told: twice those that close the receiver."""
    return 2 * max(settings.receiver.min_free_bytes, LEAST_FREE)


def _existing(path: Path) -> Path:
    return next((one for one in (path, *path.parents) if one.exists()), path)


# ---- the other processes, by their rows ------------------------------------------------------------------------------


def living(process: ProcessState, now: datetime) -> bool:
    """Tell whether a process lives, as far as its row tells."""
    return process.stopped_at is None and now - process.seen_at <= ALIVE_WITHIN


def check_scheduler(processes: Sequence[ProcessState], now: datetime) -> Check:
    """Tell whether a scheduler sweeps the rows that are due."""
    swept = _gauges(processes, "knowmvg_scheduler_swept_timestamp_seconds")
    if not swept:
        return Check("scheduler", False, "none has swept: start `knowmvg scheduler`")
    age = now.timestamp() - max(swept)
    if age > SWEPT_WITHIN.total_seconds():
        return Check("scheduler", False, f"the last sweep ended {age:.0f} s ago; see the scheduler's log")
    return Check("scheduler", True, f"swept {max(age, 0):.0f} s ago")


def check_bell(processes: Sequence[ProcessState], now: datetime) -> Check:
    """Tell whether the broker takes rings, as the schedulers find that live."""
    found = _gauges([one for one in processes if living(one, now)], "knowmvg_broker_up")
    if not found:
        return Check("broker", False, "no scheduler tells whether it takes rings")
    if min(found) == 0:
        return Check("broker", False, "it takes no rings; see broker.url and the scheduler's log")
    return Check("broker", True, "takes rings")


def _gauges(processes: Iterable[ProcessState], name: str) -> list[float]:
    return [values[0] for one in processes for key, values in one.samples.items() if key[0] == name]


def readiness(settings: Settings, engine: Engine, now: datetime) -> tuple[Check, ...]:
    """Return whether the node can do its work: each part that it cannot do without."""
    database, storage = check_database(settings, engine), check_storage(settings)
    if not database.ok:
        return database, storage
    try:
        with Session(engine) as session:
            if fault := probe(session):
                return Check("database", False, fault), storage
            processes, _ = list_processes(session)
    except DATABASE_ERRORS as error:
        return Check("database", False, f"it does not answer: {explain(error)}"), storage
    return database, storage, check_scheduler(processes, now), check_bell(processes, now)


# ---- certificates ----------------------------------------------------------------------------------------------------


def certificates(settings: Settings) -> Iterator[tuple[str, datetime]]:
    """Yield what each certificate file of the configuration is for, and when it expires; of one that cannot be read,
    nothing. Files of several authorities, of which old ones may well have expired, are left out."""
    console = settings.console.tls
    if console is not None and (found := expiries(console.certificate)):
        yield "console", found[0]
    named: list[tuple[str, ServerTlsSettings | ClientTlsSettings | None]] = [
        ("receiver", settings.receiver.tls),
        ("audit", settings.audit.tls),
        *((f"destination {one.name}", one.tls) for one in settings.destinations),
        *((f"peer {one.ae_title.strip()}", one.tls) for one in settings.receiver.peers),
    ]
    for name, tls in named:
        if tls is not None:
            for use, path in ((name, tls.certificate), (f"{name}, authority", tls.ca)):
                found = expiries(path) if path is not None else ()
                if len(found) == 1 or (found and path == tls.certificate):
                    yield use, found[0]
