"""What a scheduler looks at beside the sweep, so that nothing of it delays the sweep: the broker, the disk, the rows of
ended processes, and what administrators are to be told."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from datetime import timedelta

from dicom_node import queries
from dicom_node.console.health import disk_limit, read_disk
from dicom_node.errors import NodeError
from dicom_node.logs import log_event
from dicom_node.objects import spool_of
from dicom_node.pressure import REOPEN
from dicom_node.queries import DATABASE_ERRORS, explain
from workers.notifying import channel_names
from workers.resources import Resources

logger = logging.getLogger(__name__)

UNSEEN = timedelta(minutes=10)
"""A process that has not reported for so long is folded: it may have been cut off from the database."""

KEEP = timedelta(days=90)
"""So long what administrators were told is kept."""


class Watch:
    """Looks at something again and again."""

    def __init__(self, look: Callable[[], object], every_s: float) -> None:
        self._look, self._every_s = look, every_s

    def run(self, stop: threading.Event) -> None:
        """Look until `stop` is set, whatever fails in the meantime."""
        while not stop.is_set():
            try:
                self._look()
            except DATABASE_ERRORS as error:
                log_event(logger, "database unavailable", level=logging.WARNING, reason=explain(error))
            except Exception:
                logger.exception("watch failed")
            stop.wait(self._every_s)


def look_at_broker(resources: Resources, check: Callable[[], str]) -> None:
    """Note whether the broker takes rings; the log says why not when it comes to that."""
    up = False
    try:
        check()
        up = True
    except NodeError:
        return
    finally:
        resources.recorder.set("knowmvg_broker_up", up)


def look_after_rows(resources: Resources) -> None:
    """Fold ended processes, note whether the disk is low, and gather what is to be told into messages. Raises what the
    database raises."""
    now, settings = resources.clock(), resources.settings
    interval = timedelta(seconds=settings.notifications.interval_s)
    with resources.sessions.begin() as session:
        queries.fold_processes(session, now - UNSEEN, now)
    look_at_disk(resources)
    with resources.sessions.begin() as session:
        queries.plan_messages(session, channel_names(settings), interval, now)


def forget_told(resources: Resources) -> None:
    """Remove what administrators were told long ago."""
    with resources.sessions.begin() as session:
        queries.forget_notifications(session, resources.clock() - KEEP)


def look_at_disk(resources: Resources) -> None:
    """Note that the storage is short of space, or is no longer: with a tenth more than the limit."""
    usage, limit = read_disk(spool_of(resources.settings)), disk_limit(resources.settings)
    if usage is None or limit <= usage.free < limit * REOPEN:
        return
    with resources.sessions.begin() as session:
        news = queries.note_disk(session, usage.free < limit, resources.clock())
    if news:
        log_event(logger, "disk low" if usage.free < limit else "disk has space again", free_bytes=usage.free)
