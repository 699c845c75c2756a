"""Composition roots: a worker, the scheduler, and the whole node. Each builds its parts once and runs."""

from __future__ import annotations

import functools
import gc
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy.exc import DBAPIError

from dicom_node import scu
from dicom_node.channels import make_channels
from dicom_node.clock import utc_now
from dicom_node.config import Settings, masked
from dicom_node.errors import NodeError
from dicom_node.logs import log_event
from dicom_node.objects import open_storage
from dicom_node.queries import (
    DATABASE_ERRORS,
    check_schema,
    explain,
    give_back_leases,
    make_engine,
    make_sessions,
    note_process,
    upgrade_schema,
)
from dicom_node.recorder import Recorder
from dicom_node.reporting import Reporter, reporting
from workers import tasks
from workers.app import check_broker, make_app, make_ring
from workers.auditing import AuditForwarder
from workers.device import DeviceLook
from workers.notifying import Notifier
from workers.ownership import Owner, clear_the_dead
from workers.resources import LazyGrounder, Resources
from workers.scheduler import SWEEP_S, apply_retention, pause_s, sweep
from workers.supervisor import NodeLock, clear_ready, mark_ready, node_children, supervise
from workers.watching import Watch, forget_told, look_after_rows, look_at_broker

logger = logging.getLogger(__name__)

RETENTION_S = 60.0
"""Between two looks at what may be removed."""


def make_resources(settings: Settings, token: str) -> Resources:
    """Build what the steps and the sweep of one process need. Raises NodeError if the database cannot be used."""
    with database_errors(settings):
        check_schema(engine := make_engine(settings.database.url))
    embedded = settings.broker.url == "embedded"  # then all workers are on this host
    return Resources(
        settings=settings,
        sessions=make_sessions(engine),
        storage=open_storage(settings),
        clock=utc_now,
        load_grounder=LazyGrounder(settings.model.path, settings.model.device),
        connect=scu.connect,
        ring=make_ring(make_app(settings)),
        token=token,
        recorder=Recorder.of(settings),
        owners=settings.node.data_dir / "owners" if embedded else None,
    )


@contextmanager
def database_errors(settings: Settings) -> Iterator[None]:
    """Turn what the driver raises at start into a NodeError that names the database, without its password."""
    try:
        yield
    except DBAPIError as error:
        url = masked(settings)["database"]["url"]
        raise NodeError(f"database {url} cannot be used: {error.orig}; see database.url") from error


@contextmanager
def audited(resources: Resources, process: str) -> Iterator[None]:
    """Keep in the audit trail that a process starts and stops (PS3.15 A.5.3.1); one that is killed shows no stop."""
    note_process(resources.sessions, resources.clock, process, "application start")
    try:
        yield
    finally:
        note_process(resources.sessions, resources.clock, process, "application stop")


def run_worker(settings: Settings, queues: tuple[str, ...]) -> None:
    """Work on `queues` until SIGTERM or Ctrl-C; ends the process."""
    resources = make_resources(settings, secrets.token_hex(16))
    owner = Owner(resources.owners, resources.token) if resources.owners else None
    app = make_app(settings)
    lanes = tasks.add_tasks(app, resources)
    name, role = f"{'-'.join(queues)}-{os.getpid()}@{socket.gethostname()}", f"worker {','.join(queues)}"
    reporter = Reporter(resources.recorder, resources.sessions, utc_now, role, DeviceLook(resources.load_grounder))
    with audited(resources, role), reporting(reporter):
        tasks.consume(app, queues, name, functools.partial(_announce_worker, settings, queues), lanes)
        lanes.stop(0)  # Celery does not tell of an end that is not to wait
    _give_back(resources)
    if owner:
        owner.release()
    sys.stderr.flush()
    os._exit(0)  # its leases are others' from here on; a lane, or a thread of pynetdicom's, may not end by itself


def _give_back(resources: Resources) -> None:
    """Let others go on at once with what a lane is still at, which ends with this process."""
    try:
        with resources.sessions.begin() as session:
            give_back_leases(session, resources.token, resources.clock())
    except DATABASE_ERRORS as error:
        log_event(logger, "database unavailable", level=logging.WARNING, reason=explain(error))


def _announce_worker(settings: Settings, queues: tuple[str, ...]) -> None:
    gc.collect()
    gc.freeze()  # what is loaded by now stays: results are trees that the collector looks for often enough without it
    mark_ready(settings)
    log_event(logger, "worker ready", queues=",".join(queues))


def run_scheduler(settings: Settings) -> None:
    """Sweep until SIGTERM or Ctrl-C. A database that is away is waited for."""
    resources = make_resources(settings, secrets.token_hex(16))
    stop = make_stop()
    if resources.owners:
        clear_the_dead(resources.owners)
    mark_ready(settings)
    if settings.audit.syslog:
        threading.Thread(target=AuditForwarder(resources).run, args=(stop,), name="audit", daemon=True).start()
    for name, run in watches(resources):
        threading.Thread(target=run, args=(stop,), name=name, daemon=True).start()
    with (
        audited(resources, "scheduler"),
        reporting(Reporter(resources.recorder, resources.sessions, utc_now, "scheduler")),
    ):
        _sweep_until(stop, resources)


def watches(resources: Resources) -> Iterator[tuple[str, Callable[[threading.Event], None]]]:
    """Yield what a scheduler does beside the sweep, each to be run in a thread of its own."""
    settings = resources.settings
    yield (
        "broker",
        Watch(functools.partial(look_at_broker, resources, functools.partial(check_broker, settings)), 5).run,
    )
    yield "watch", Watch(functools.partial(look_after_rows, resources), 10).run
    yield "forget", Watch(functools.partial(forget_told, resources), 3600).run
    for channel in make_channels(settings):
        yield f"notify {channel.name}", Watch(Notifier(resources, channel).send_due, 2).run


def _sweep_until(stop: threading.Event, resources: Resources) -> None:
    retention_at = 0.0
    while not stop.is_set():
        pause = SWEEP_S
        try:
            sweep(resources)
            if time.monotonic() >= retention_at:
                retention_at = time.monotonic() + RETENTION_S
                apply_retention(resources)
            pause = pause_s(resources)
        except DATABASE_ERRORS as error:
            log_event(logger, "database unavailable", level=logging.WARNING, reason=explain(error))
        except OSError as error:
            log_event(logger, "storage unavailable", level=logging.WARNING, reason=error)
        stop.wait(pause)


def run_node(settings: Settings, config_path: Path | None) -> None:
    """Run the whole node until SIGTERM or Ctrl-C: upgrade the schema, then start every part as a process.

    Raises NodeError if a node runs on this data folder already, or a part cannot be started.
    """
    stop = make_stop()
    lock = NodeLock(settings.node.data_dir)
    with database_errors(settings):
        upgrade_schema(settings.database.url)
    clear_ready(settings)
    supervise(node_children(settings, config_path), stop, functools.partial(_announce_node, settings))
    lock.release()


def _announce_node(settings: Settings) -> None:
    receiver, console = settings.receiver, settings.console
    sys.stdout.write(
        f"KnowMVG Node is ready: {receiver.ae_title} at {receiver.host}:{receiver.port}, "
        f"console {'https' if console.tls else 'http'}://{console.host}:{console.port}/\n"
    )
    sys.stdout.flush()


def make_stop() -> threading.Event:
    """Return an event that SIGTERM and Ctrl-C set."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop
