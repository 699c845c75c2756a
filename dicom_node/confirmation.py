"""A report of storage commitment, on whatever association it comes: read, kept, and answered with a status."""

from __future__ import annotations

import logging

from pydicom.dataset import Dataset
from sqlalchemy.orm import Session, sessionmaker

from dicom_node.clock import Clock
from dicom_node.commitment import read_report
from dicom_node.config import Settings
from dicom_node.errors import InvalidInstanceError
from dicom_node.logs import log_event
from dicom_node.queries import destination_asked, note_report
from dicom_node.recorder import Recorder

logger = logging.getLogger(__name__)

SUCCESS = 0x0000
PROCESSING_FAILURE = 0x0110
NO_SUCH_INSTANCE = 0x0112
INVALID_ARGUMENT = 0x0115
"""Statuses of an N-EVENT-REPORT, PS3.7 10.1.1.1.8."""


def take_report(
    ds: Dataset,
    ae_title: str,
    settings: Settings,
    sessions: sessionmaker[Session],
    clock: Clock,
    recorder: Recorder | None = None,
) -> int:
    """Keep what the archive `ae_title` reports; return the DIMSE status to answer. Raises what a database raises.

    A Transaction UID counts only from the archive that it was given to: nobody else's word makes a result DELIVERED.
    """
    try:
        report = read_report(ds)
    except InvalidInstanceError as error:
        log_event(logger, "commitment report refused", level=logging.WARNING, ae_title=ae_title, reason=error)
        return INVALID_ARGUMENT
    with sessions.begin() as session:
        asked = destination_asked(session, report.transaction_uid)
        titles = {one.ae_title.strip() for one in settings.destinations if one.name == asked}
        noted = None
        if ae_title in titles:
            noted = note_report(session, report.transaction_uid, report.committed, report.failed, clock())
    if noted is None:
        log_event(
            logger, "commitment report unknown", level=logging.WARNING, ae_title=ae_title,
            transaction_uid=report.transaction_uid,
        )  # fmt: skip
        return NO_SUCH_INSTANCE
    log_event(
        logger, "commitment reported", destination=noted.destination, dispatch_id=noted.dispatch_id,
        committed=noted.committed, failed=noted.failed, state=noted.state,
    )  # fmt: skip
    if recorder is not None and noted.ended_after is not None:
        recorder.count("knowmvg_deliveries", noted.destination, "commitment")
        recorder.observe("knowmvg_stage_seconds", noted.ended_after.total_seconds(), "delivered")
    return SUCCESS
