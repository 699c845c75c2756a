"""kombu's transport and Celery's consumer as RabbitMQ needs them: no farewell is waited for without end, and nothing is
set up there but the node's own queues.

A RabbitMQ that is short of memory or disk reads nothing more from whoever publishes, the closing of a connection
included. kombu closes what a publication failed on, and would wait for the answer until the alarm is over.
"""

from __future__ import annotations

from typing import Any

from celery.worker.consumer import Consumer
from kombu.transport import pyamqp

FAREWELL_S = 2.0


class Channel(pyamqp.Channel):
    """A channel that is closed within `FAREWELL_S`."""

    def close(self, *arguments: Any, **options: Any) -> None:
        """Close the channel; raises TimeoutError where the server does not answer."""
        close_in_time(self.connection, super().close, *arguments, **options)


class Connection(pyamqp.Connection):
    """A connection that is closed within `FAREWELL_S`."""

    Channel = Channel

    def close(self, *arguments: Any, **options: Any) -> None:
        """Close the connection; raises TimeoutError where the server does not answer."""
        close_in_time(self, super().close, *arguments, **options)


class Transport(pyamqp.Transport):
    """kombu's transport for RabbitMQ with such connections; it passes over their errors when it closes them."""

    Connection = Connection


def close_in_time(connection: Any, close: Any, *arguments: Any, **options: Any) -> None:
    """Close what a connection carries, or itself, within `FAREWELL_S`."""
    transport = getattr(connection, "transport", None)
    if transport is None or transport.sock is None:
        close(*arguments, **options)
        return
    with transport.having_timeout(FAREWELL_S):
        close(*arguments, **options)


class RingConsumer(Consumer):  # type: ignore[misc]
    """A consumer that declares the node's own queues and nothing else.

    With quorum queues Celery otherwise declares 28 more, and as many exchanges, for tasks with a delay.
    """

    class Blueprint(Consumer.Blueprint):  # type: ignore[misc]
        """The steps of its start."""

        default_steps = [step for step in Consumer.Blueprint.default_steps if "delayed_delivery" not in str(step)]  # noqa: RUF012
