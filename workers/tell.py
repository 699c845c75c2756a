"""Telling senders of the storage commitment they asked for: look at what is held, call back, try again or give up."""

from __future__ import annotations

import logging
from datetime import timedelta

from dicom_node import queries, scu, study
from dicom_node.commitment import make_report
from dicom_node.config import PeerSettings
from dicom_node.errors import PermanentError, TransientError
from dicom_node.holding import check_references
from dicom_node.logs import log_event
from dicom_node.peers import addresses_of, is_at
from dicom_node.queries import CommitmentRequest
from dicom_node.requestor import Peer
from workers.resources import LEASE, Resources

logger = logging.getLogger(__name__)

PATIENCE = timedelta(days=7)


def tell_sender(request_id: int, resources: Resources) -> None:
    """Make one try at answering a request, if it is due. What the node foresees ends in its row."""
    with resources.sessions.begin() as session:
        request = queries.claim_request(session, request_id, resources.token, resources.clock(), LEASE)
    if request is None:
        return
    if reason := study.quarantine_reason("answer a storage commitment", request.deaths):
        _end(request, "DEAD", resources, reason)
        return
    try:
        _report(request, resources)
    except TransientError as error:
        _try_later(request, str(error), resources)
    except PermanentError as error:
        _end(request, "DEAD", resources, str(error))
    except Exception as error:
        _try_later(request, f"an error of the program ({type(error).__name__}); see the worker's log", resources)
        raise
    else:
        _end(request, "REPORTED", resources)


def _report(request: CommitmentRequest, resources: Resources) -> None:
    peer = _find_peer(request, resources)
    kept, failed = check_references(request.references, resources.sessions, resources.storage)
    event_type, report = make_report(request.transaction_uid, kept, failed)
    assert peer.port is not None
    name = f"sender {peer.ae_title} at {peer.address}:{peer.port}"
    called = Peer(name, peer.ae_title, peer.address, peer.port, peer.tls)
    scu.report_commitment(called, event_type, report, resources.settings.receiver.ae_title)
    log_event(
        logger, "commitment told", request_id=request.request_id, ae_title=peer.ae_title, kept=len(kept),
        failed=len(failed),
    )  # fmt: skip


def _find_peer(request: CommitmentRequest, resources: Resources) -> PeerSettings:
    """Return the peer that asked: by AE title and address, as it was let in; several may share an AE title."""
    peers = resources.settings.receiver.peers
    named = [peer for peer in peers if peer.ae_title.strip() == request.calling_ae_title and peer.port is not None]
    for peer in named:
        if is_at(peer, request.address):
            return peer
    if not all(addresses_of(peer.address) for peer in named):
        raise TransientError(f"the address of {request.calling_ae_title} in receiver.peers cannot be looked up")
    raise PermanentError(
        f"receiver.peers has no port for {request.calling_ae_title} at {request.address}, where it takes reports"
    )


def _try_later(request: CommitmentRequest, reason: str, resources: Resources) -> None:
    now = resources.clock()
    if now - request.asked_at >= PATIENCE:
        _end(request, "DEAD", resources, f"given up: {reason}")
        return
    ending = queries.RequestEnd(
        "PENDING", now + study.backoff(request.attempts, f"request {request.request_id}"), reason
    )
    resources.keep(lambda session: queries.end_request(session, request.request_id, resources.token, ending, now))
    log_event(logger, "commitment not told", level=logging.WARNING, request_id=request.request_id, reason=reason)


def _end(request: CommitmentRequest, state: str, resources: Resources, failure: str | None = None) -> None:
    now = resources.clock()
    ending = queries.RequestEnd(state, now, failure)
    resources.keep(lambda session: queries.end_request(session, request.request_id, resources.token, ending, now))
    if failure:
        log_event(logger, "commitment given up", level=logging.WARNING, request_id=request.request_id, reason=failure)
