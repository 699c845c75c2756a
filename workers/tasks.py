"""Celery's side of the steps: one task per step, which takes a job's number and nothing else."""

from __future__ import annotations

import faulthandler
import functools
import logging
import warnings
from collections.abc import Callable

from celery import Celery
from celery.exceptions import SecurityWarning
from celery.signals import setup_logging, worker_ready
from kombu.message import Message
from sqlalchemy.exc import DBAPIError

from dicom_node.logs import log_event
from workers.resources import LEASE, Resources
from workers.steps import STEPS, Step, run_step

logger = logging.getLogger(__name__)


def add_tasks(app: Celery, resources: Resources) -> None:
    """Register the steps as tasks of `app`."""
    for step in STEPS:
        app.task(_bind(step, resources), name=step.name, shared=False)


def _bind(step: Step, resources: Resources) -> Callable[[int], None]:
    """Return a function of the job's number alone; Celery wants one that has a name and a signature."""

    def run(job_id: int) -> None:
        run_task(step, resources, job_id)

    return run


def run_task(step: Step, resources: Resources, job_id: int) -> None:
    """Run a step, and end the process where it runs past its lease: somebody else has the job then.

    A database that is away is no bug: the lease runs out, and the sweep rings again.
    """
    faulthandler.dump_traceback_later(LEASE.total_seconds(), exit=True)
    try:
        run_step(step, job_id, resources)
    except DBAPIError as error:
        log_event(logger, "database unavailable", level=logging.WARNING, job_id=job_id, reason=error.orig)
    finally:
        faulthandler.cancel_dump_traceback_later()


def consume(app: Celery, queues: tuple[str, ...], name: str, on_ready: functools.partial[None]) -> None:
    """Work on `queues` until SIGTERM or SIGINT; the step under way is finished first."""
    setup_logging.connect(_keep_logging)
    _tell_the_consumer_of_lost_connections()
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


def _keep_logging(**_: object) -> None:
    """Tell Celery, by being connected to its signal, that logging is set up already."""
