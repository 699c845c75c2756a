"""The Celery application: which broker, which queues, and how a ring is sent.

Rings are acknowledged early: one that is lost with its worker is rung again by the sweep from the job's row, which also
knows, by lease and attempts, what redelivery by the broker would have to be told.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from amqp.exceptions import AMQPError
from celery import Celery
from kombu.connection import Connection
from kombu.entity import Exchange, Queue
from kombu.exceptions import OperationalError

from dicom_node.config import Settings, masked
from dicom_node.errors import NodeError
from dicom_node.logs import log_event
from workers.resources import LEASE
from workers.tasks import TASK_QUEUES

logger = logging.getLogger(__name__)

QUEUES = ("gpu", "io")

CONNECT_TIMEOUT_S = 5

EMBEDDED_TRANSPORT = "workers.embedded_broker:Transport"
EMBEDDED_CARRIER = "memory://localhost"
"""Celery wants a URL that kombu knows; the transport given beside it is the one that is used."""

PUBLISH_RETRY = {"max_retries": 1, "interval_start": 0.0, "interval_max": 0.0}
"""Once at once, on a new connection: the old one may have died with the broker's last restart."""

REDIS_OPTIONS: dict[str, Any] = {
    # Celery's solo pool acknowledges a message only after its task, whatever it is told: Redis must not deliver again
    # what takes as long as a step may. Were it to, the claim of the row would make that a no-op.
    "visibility_timeout": 2 * int(LEASE.total_seconds()),
    "unacked_restore_interval": 10,
    "unacked_restore_throttle": 1,
    "socket_keepalive": True,
    "socket_connect_timeout": CONNECT_TIMEOUT_S,
    "socket_timeout": 30,
    "health_check_interval": 25,
    "global_keyprefix": "knowmvg:",
}
AMQP_TRANSPORT = "workers.rabbitmq:Transport"
AMQP_OPTIONS: dict[str, Any] = {"confirm_publish": True}
AMQP_PUBLISH: dict[str, Any] = {"timeout": CONNECT_TIMEOUT_S, "confirm_timeout": CONNECT_TIMEOUT_S}
"""A RabbitMQ that is short of memory or disk confirms nothing, and would be waited for without end."""
QUORUM_QUEUE = {"x-queue-type": "quorum", "x-delivery-limit": 20}

BROKER_ERRORS = (OperationalError, AMQPError)
"""What a broker raises that is away, takes nothing, or lets us in no more."""


def make_app(settings: Settings) -> Celery:
    """Return the application for the broker of `settings`; nothing is connected yet."""
    scheme = urlsplit(settings.broker.url).scheme
    app = Celery("knowmvg", broker=settings.broker.url if scheme else EMBEDDED_CARRIER, set_as_current=False)
    app.conf.update(
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_serializer="json",
        accept_content=["json"],
        task_create_missing_queues=False,
        task_default_queue=QUEUES[0],
        task_queues=make_queues(scheme),
        task_publish_retry_policy=PUBLISH_RETRY,
        worker_prefetch_multiplier=1,
        worker_pool="solo",
        worker_concurrency=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_timeout=CONNECT_TIMEOUT_S,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A solo pool hears nothing while it works: RabbitMQ would hang up on every step of more than two heartbeats.
        # Who is gone is found by TCP (keep-alive), and a ring that is lost with him is rung again.
        broker_heartbeat=0,
        worker_consumer="workers.rabbitmq:RingConsumer",
        broker_transport_options=transport_options(settings),
        broker_use_ssl=tls_options(settings.broker.url),
    )
    if not scheme or is_amqp(scheme):
        app.conf.broker_transport = AMQP_TRANSPORT if scheme else EMBEDDED_TRANSPORT
    return app


def make_queues(scheme: str) -> list[Queue]:
    """Return the queues; on RabbitMQ they are quorum queues, which survive the loss of a server."""
    arguments = QUORUM_QUEUE if is_amqp(scheme) else None
    return [
        Queue(name, Exchange(name), routing_key=name, queue_arguments=arguments)  # type: ignore[no-untyped-call]
        for name in QUEUES
    ]


def transport_options(settings: Settings) -> dict[str, Any]:
    """Return what kombu's transport for the broker of `settings` is told."""
    scheme = urlsplit(settings.broker.url).scheme
    if not scheme:
        return {"path": str(settings.node.data_dir / "broker.db")}
    return REDIS_OPTIONS if scheme.startswith("redis") else AMQP_OPTIONS


def tls_options(url: str) -> dict[str, Any] | None:
    """Return what makes kombu check the broker's certificate, and the name in it, against the system's authorities."""
    parts = urlsplit(url)
    options: dict[str, dict[str, Any]] = {
        "rediss": {"ssl_cert_reqs": ssl.CERT_REQUIRED},
        "amqps": {"server_hostname": parts.hostname},
    }
    return options.get(parts.scheme)


def make_ring(app: Celery) -> Callable[[str, int], bool]:
    """Return the function that rings for a task with a row's number; a broker that is away costs only a wait."""
    options = AMQP_PUBLISH if is_amqp(app.conf.broker_url) else {}

    def ring(task: str, number: int) -> bool:
        try:
            app.send_task(task, (number,), queue=TASK_QUEUES[task], **options)
            return True
        except BROKER_ERRORS as error:
            log_event(logger, "broker unavailable", level=logging.WARNING, task=task, number=number, reason=error)
            return False

    return ring


def check_broker(settings: Settings) -> str:
    """Return one sentence on the broker, if a message could be sent now; raises NodeError that says why not."""
    where = masked(settings)["broker"]["url"]
    connection = make_app(settings).connection_for_write()
    try:
        connection.ensure_connection(max_retries=1, timeout=CONNECT_TIMEOUT_S, reraise_as_library_errors=True)
        if is_amqp(settings.broker.url):
            _check_publishing(connection, where)
    except BROKER_ERRORS as error:
        raise NodeError(f"broker {where} does not answer: {error}; see broker.url") from error
    finally:
        connection.collect()  # without a farewell, which a broker that takes nothing would not answer
    return f"{where} answers"


def _check_publishing(connection: Connection, where: str) -> None:
    """Publish a message that goes to no queue. Raises NodeError where RabbitMQ takes none."""
    try:
        producer = connection.Producer()  # type: ignore[no-untyped-call]  # kombu ships no types
        producer.publish({}, exchange="", routing_key="knowmvg-check", **AMQP_PUBLISH)
    except TimeoutError as error:
        raise NodeError(
            f"broker {where} answers, but takes no messages: short of memory or disk? See `rabbitmq-diagnostics alarms`"
        ) from error


def is_amqp(url: str) -> bool:
    """Tell whether a URL, or its scheme, is that of RabbitMQ."""
    return url.partition(":")[0] in ("amqp", "amqps")
