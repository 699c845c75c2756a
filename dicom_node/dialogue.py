"""What is asked and answered on an association that this node opened (PS3.7), message by message."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from pynetdicom.association import Association
from pynetdicom.dimse_primitives import C_STORE, N_EVENT_REPORT
from pynetdicom.pdu_primitives import A_RELEASE

from dicom_node.logs import log_event

logger = logging.getLogger(__name__)

ANSWERED_WITHIN_S = 2
"""So long an association that is to be released is held for answers to reports."""


def is_going_on(association: Association) -> bool:
    """Tell whether an association has not been released, aborted or lost, nor is asked to be released."""
    return association.is_established and association.dul.peek_next_pdu() is None


class Dialogue:
    """What is asked and answered on an association. Whatever else comes ends it, and counts for nothing.

    pynetdicom 3.0 takes any answer of the right kind for that to what it asked. Messages go out whole: an answer to a
    report, which another thread sends, does not come between the parts of a request. The association is not released
    before all reports are answered: nothing may be sent after.
    """

    def __init__(self, peer_name: str) -> None:
        self._peer_name = peer_name
        self._association: Any = None
        self._asked: Any = None
        self._unanswered = 0
        self._changed = threading.Condition()
        self._turn = threading.Lock()

    def bind(self, association: Association) -> None:
        """Have each message of an association go this way."""
        dimse, self._association = association.dimse, association
        dimse.send_msg = partial(self._send, dimse.send_msg)  # type: ignore[method-assign]
        dimse.get_msg = partial(self._take, dimse.get_msg)  # type: ignore[method-assign]
        no_answer = association._handle_no_response
        association._handle_no_response = partial(self._end, no_answer)  # type: ignore[method-assign]

    def begin(self) -> None:
        """Note that a report came."""
        with self._changed:
            self._unanswered += 1

    def wait(self) -> None:
        """Wait, not for ever, until the answers are on their way."""
        with self._changed:
            self._changed.wait_for(lambda: self._unanswered <= 0, ANSWERED_WITHIN_S)

    def _send(self, send_msg: Callable[[Any, int], None], primitive: Any, context_id: int) -> None:
        """Send a request or an answer."""
        if primitive.MessageIDBeingRespondedTo is None:
            self._ask(send_msg, primitive, context_id)
            return
        with self._turn:
            send_msg(primitive, context_id)
        if isinstance(primitive, N_EVENT_REPORT):
            with self._changed:
                self._unanswered -= 1
                self._changed.notify_all()

    def _ask(self, send_msg: Callable[[Any, int], None], request: Any, context_id: int) -> None:
        """Send a request, unless the association is over, or something came already that nothing was asked for."""
        messages = self._association.dimse.msg_queue
        self._asked = request if is_going_on(self._association) and messages.empty() else None
        if self._asked is None:
            messages.put((None, None))
            return
        with self._turn:
            send_msg(request, context_id)

    def _take(self, get_msg: Callable[[bool], tuple[Any, Any]], block: bool = False) -> tuple[Any, Any]:
        """Take the answer that is waited for (`block`), or a request of the peer's if there is one."""
        context_id, message = get_msg(block)
        if message is None:
            return None, None
        if is_answer(message, self._asked) if block else message.MessageIDBeingRespondedTo is None:
            return context_id, message
        log_event(
            logger, "unexpected message", level=logging.WARNING, peer=self._peer_name, message=type(message).__name__
        )
        self._association.abort()
        return None, None

    def _end(self, handle_no_response: Callable[[], None]) -> None:
        """End the association as no answer came; not where the peer asks for its release, which it is given."""
        if not isinstance(self._association.dul.peek_next_pdu(), A_RELEASE):
            handle_no_response()


def is_answer(answer: Any, request: Any) -> bool:
    """Tell whether a message is the response to a request (PS3.7 9.1, 10.1)."""
    same = type(answer) is type(request) and answer.MessageIDBeingRespondedTo == request.MessageID
    if not same or not isinstance(request, C_STORE):
        return same
    return getattr(answer, "AffectedSOPInstanceUID", None) in (None, "", request.AffectedSOPInstanceUID)
