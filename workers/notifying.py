"""Sending messages to administrators from their rows: one thread of a scheduler for each channel.

A message is claimed, sent, and ended. A channel that is away keeps its messages, and nobody else waits for it. Of
several schedulers each sends what it has claimed; only a message whose sender dies between the sending and the commit
comes twice, under the same number.
"""

from __future__ import annotations

import logging
from datetime import timedelta

from dicom_node import queries
from dicom_node.channels import Channel, ChannelError, make_channels, make_letter
from dicom_node.config import Settings
from dicom_node.logs import log_event
from dicom_node.queries import Message
from dicom_node.study import backoff
from workers.resources import Resources

logger = logging.getLogger(__name__)

BATCH = 10
LEASE = timedelta(minutes=10)
"""So long what was claimed is nobody else's to send: longer than a batch takes at a server that hangs."""
PATIENCE = timedelta(days=3)
"""So long a message is tried; then it is of no use to anybody."""


def channel_names(settings: Settings) -> tuple[str, ...]:
    """Return the names of the channels of the settings."""
    return tuple(channel.name for channel in make_channels(settings))


class Notifier:
    """Sends the messages of one channel."""

    def __init__(self, resources: Resources, channel: Channel) -> None:
        self._resources, self._channel = resources, channel

    def send_due(self) -> int:
        """Send what is due, and return how many messages were taken. Raises what the database raises."""
        now = self._resources.clock()
        with self._resources.sessions.begin() as session:
            claimed = queries.claim_messages(session, self._channel.name, now, now + LEASE, BATCH)
        return sum(self._send(message) for message in claimed)

    def _send(self, message: Message) -> bool:
        resources = self._resources
        try:
            self._channel.send(make_letter(message.message_id, message.at, message.content, resources.settings))
        except ChannelError as error:
            self._try_later(message, str(error))
            return False
        resources.keep(lambda session: queries.end_message(session, message, "SENT", resources.clock(), None))
        log_event(logger, "administrators told", channel=self._channel.name, kind=message.content["kind"])
        return True

    def _try_later(self, message: Message, reason: str) -> None:
        now = self._resources.clock()
        given_up = now - message.at >= PATIENCE
        due_at = now + backoff(message.attempts, f"message {message.message_id}")
        self._resources.keep(
            lambda session: queries.end_message(session, message, "DEAD" if given_up else "PENDING", due_at, reason)
        )
        log_event(
            logger, "message given up" if given_up else "message not taken", level=logging.WARNING,
            channel=self._channel.name, reason=reason, attempt=message.attempts,
        )  # fmt: skip
