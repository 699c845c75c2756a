"""Celery's side of the work: one task per step of a job, which runs there and then, and one per errand to a peer, which
is put into the lane of that peer. Each takes a row's number and nothing else.
"""

from __future__ import annotations

import faulthandler
import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partialmethod

from celery import Celery
from celery.exceptions import SecurityWarning
from celery.signals import setup_logging, worker_ready, worker_shutdown
from kombu.connection import Connection
from kombu.message import Message
from sqlalchemy.orm import Session

from dicom_node import queries
from dicom_node.logs import log_event
from grounding.types import DeviceLostError
from workers.batches import Batches
from workers.deliver import deliver_results
from workers.lanes import HUNG, Lanes, Work
from workers.lines import Lines
from workers.resources import LEASE, Resources
from workers.steps import GROUND, STEPS, run_step
from workers.tell import tell_sender

logger = logging.getLogger(__name__)

LONGEST_RECONNECT_S = 3
"""Between two tries to reach a broker that is away."""

STOP_S = 4.0
"""For what is under way in the lanes when the worker is told to end."""


@dataclass(frozen=True)
class ErrandTask:
    """Work that calls a peer: whose lane it waits in, and what it does."""

    name: str
    queue: str
    peer_of: Callable[[Session, int], str | None]
    work: Callable[[int, Resources], None]


ERRANDS = (
    ErrandTask("deliver", "io", queries.destination_of, deliver_results),
    ErrandTask("tell", "io", queries.sender_of, tell_sender),
)

TASK_QUEUES = {task.name: task.queue for task in (*STEPS, *ERRANDS)}
"""Which queue each task is rung on."""


def add_tasks(app: Celery, resources: Resources) -> Lanes:
    """Register the work as tasks of `app`; return the lanes in which errands run."""
    lines = Lines(resources.connect)
    lanes = Lanes(LEASE.total_seconds(), run_errand, lines.close)
    of_lanes = replace(resources, connect=lines.connect)
    batches = Batches(resources, is_stopping, end_after)
    for step in STEPS:
        run = batches.run if step is GROUND else functools.partial(run_step, step, resources=resources)
        app.task(_bind_step(run), name=step.name, shared=False)
    for errand in ERRANDS:
        app.task(_bind_errand(errand, of_lanes, lanes), name=errand.name, shared=False)
    return lanes


def _bind_step(work: Callable[[int], None]) -> Callable[[int], None]:
    """Return a function of the job's number alone; Celery wants one that has a name and a signature."""

    def run(job_id: int) -> None:
        run_task(work, job_id)

    return run


def _bind_errand(errand: ErrandTask, resources: Resources, lanes: Lanes) -> Callable[[int], None]:
    def submit(number: int) -> None:
        try:
            with resources.sessions() as session:
                peer = errand.peer_of(session, number)
        except queries.DATABASE_ERRORS as error:
            log_event(logger, "database unavailable", level=logging.WARNING, reason=queries.explain(error))
            return
        if peer is not None:
            work = functools.partial(errand.work, number, resources)
            lanes.submit(f"{errand.name} {peer}", f"{errand.name} {number}", work)

    return submit


def run_errand(work: Work) -> None:
    """Run work in its lane: a database that is away, or a bug, must not end the lane."""
    try:
        work()
    except queries.DATABASE_ERRORS as error:
        log_event(logger, "database unavailable", level=logging.WARNING, reason=queries.explain(error))
    except Exception:
        logger.exception("errand failed")


def run_task(work: Callable[[int], None], job_id: int) -> None:
    """Run a step, and end the process where it runs past its lease: somebody else has the job then.

    A database that is away is no bug: the lease runs out, and the sweep rings again. A device that computes no more
    would fail every study there is: the process ends as one that died, and the next one begins anew.
    """
    end_after(LEASE.total_seconds())
    try:
        work(job_id)
    except DeviceLostError as error:
        log_event(logger, "device lost", level=logging.ERROR, job_id=job_id, reason=error)
        sys.stderr.flush()
        os._exit(HUNG)
    except queries.DATABASE_ERRORS as error:
        log_event(logger, "database unavailable", level=logging.WARNING, job_id=job_id, reason=queries.explain(error))
    finally:
        faulthandler.cancel_dump_traceback_later()


def end_after(seconds: float) -> None:
    """End the process when so many seconds have gone by without another call; its log shows where it was."""
    faulthandler.dump_traceback_later(max(seconds, 1.0), exit=True)


def is_stopping() -> bool:
    """Tell whether Celery was told to end, which it does after the task under way."""
    from celery.worker import state  # the worker's part of Celery, which a scheduler need not load

    return any(told is not None and told is not False for told in (state.should_stop, state.should_terminate))


def consume(
    app: Celery, queues: tuple[str, ...], name: str, on_ready: functools.partial[None], lanes: Lanes | None = None
) -> None:
    """Work on `queues` until SIGTERM or SIGINT; the step under way is finished first."""
    if lanes is not None:
        worker_shutdown.connect(lambda **_: lanes.stop(STOP_S), weak=False)
    setup_logging.connect(_keep_logging)
    _tell_the_consumer_of_lost_connections()
    _look_for_the_broker_often()
    warnings.filterwarnings("ignore", category=SecurityWarning)  # of pickled messages under root; ours are JSON
    worker_ready.connect(lambda **_: on_ready(), weak=False)
    worker = app.Worker(
        hostname=name, queues=list(queues), without_gossip=True, without_mingle=True, without_heartbeat=True, quiet=True
    )
    worker.start()


def _tell_the_consumer_of_lost_connections() -> None:
    """Let the error of an acknowledgement reach the consumer, which then connects anew.

    Celery acknowledges between two tasks of a solo pool. If Redis went away meanwhile, kombu would log the error and
    keep it to itself, and the worker would live on without ever consuming again (celery 8030 and its family).
    """

    def ack(message: Message, logger: object, errors: object, multiple: bool = False) -> None:
        message.ack(multiple=multiple)  # type: ignore[no-untyped-call]  # kombu ships no types

    def reject(message: Message, logger: object, errors: object, requeue: bool = False) -> None:
        message.reject(requeue=requeue)  # type: ignore[no-untyped-call]

    Message.ack_log_error = ack  # type: ignore[method-assign]
    Message.reject_log_error = reject  # type: ignore[method-assign]


def _look_for_the_broker_often() -> None:
    """Let a worker find a broker that is back within seconds: Celery waits longer each time, up to half a minute."""
    ensure = partialmethod(Connection._ensure_connection, interval_max=LONGEST_RECONNECT_S)
    Connection._ensure_connection = ensure  # type: ignore[method-assign, assignment]


def _keep_logging(**_: object) -> None:
    """Tell Celery, by being connected to its signal, that logging is set up already."""
