"""An association's messages that store nothing: few of them wait at once, and notices to the peer go between them."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.association import Association
from pynetdicom.dimse import DIMSEServiceProvider
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.dimse_primitives import N_EVENT_REPORT, DimsePrimitiveType
from pynetdicom.dsutils import encode
from pynetdicom.pdu_primitives import P_DATA

from dicom_node.pdata import Fragment, encode_fragment

MAX_INFORMATION_BYTES = 4 * 1024**2
"""Longest dataset of a message that stores nothing: a request for storage commitment of 10,000 instances is half."""

MAX_UNANSWERED = 16
"""Requests of one association that wait for their answers: one by the standard (PS3.7 D.3.3.3), and some overlap."""

QUIET_S = 1.0
"""A peer that has asked nothing for so long is taken to wait for what the node has to tell."""

QUIET_WITHIN_S = 10.0
"""So long the node waits for such a pause."""

ANSWER_WITHIN_S = 30.0
LOOK_S = 0.02

IDLE_LOOK_S = 0.05
"""Between two looks of an association's thread at what else may have ended it, while there is no message."""

RESPONSE = 0x8000
"""The bit of a Command Field (0000,0100) that makes it a response's (PS3.7 E.1-1)."""


def make_notice(sop_uids: tuple[str, str], event_type: int, ds: Dataset, transfer_syntax_uid: str) -> N_EVENT_REPORT:
    """Return the N-EVENT-REPORT about a SOP Class and Instance, its dataset encoded already."""
    syntax = UID(transfer_syntax_uid)
    content = encode(ds, syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
    assert content is not None
    notice = N_EVENT_REPORT()
    notice.AffectedSOPClassUID, notice.AffectedSOPInstanceUID = map(UID, sop_uids)
    notice.EventTypeID, notice.EventInformation = event_type, BytesIO(content)
    return notice


class NoticingProvider(DIMSEServiceProvider):
    """Receives messages, and sends each message whole.

    The peer's requests are served on while it is asked to take a notice: pynetdicom's own way stops serving, and takes
    whatever comes next as the answer.
    """

    def __init__(self, association: Association) -> None:
        super().__init__(association)
        self._lock = threading.Lock()
        self._unanswered = 0
        self._answered_at = time.monotonic()
        self._turn = threading.Lock()
        self._notices = 0
        self._answer: Any = None

    def receive_primitive(self, primitive: P_DATA) -> None:
        """Take in a part of a message. Raises ValueError, which ends the association, over what a peer may send."""
        if self.message is None:
            if max(self._unanswered, self.msg_queue.qsize()) >= MAX_UNANSWERED:
                raise ValueError(f"more than {MAX_UNANSWERED} requests wait for their answers")
            self.message = DIMSEMessage()
        message = self.message
        super().receive_primitive(primitive)
        if self.message is not message and not int(message.command_set.get("CommandField", 0)) & RESPONSE:
            self.note_request()

    @property
    def is_idle(self) -> bool:
        """Whether no message is coming, and no request of the peer waits for its answer."""
        return self.message is None and self._unanswered == 0

    def note_request(self) -> None:
        """Count a request: until it is answered the peer is not quiet."""
        with self._lock:
            self._unanswered += 1

    def send_msg(self, primitive: DimsePrimitiveType, context_id: int) -> None:
        """Send a message: its fragments come one after another, whichever threads send."""
        with self._lock:
            super().send_msg(primitive, context_id)
            if primitive.MessageIDBeingRespondedTo is not None:
                self._note_answer()

    def send_answer(self, fragments: Sequence[Fragment], at_once: bool) -> None:
        """Send the response to a request, from the thread that reads the association: `at_once`, unless others wait.

        Else the association's own thread sends it.
        """
        with self._lock:
            if at_once and self.dul.to_provider_queue.empty() and self.dul.socket is not None:
                self.dul.socket.send(b"".join(map(encode_fragment, fragments)))
            else:
                for fragment in fragments:
                    self.dul.send_pdu(to_primitive(fragment))
            self._note_answer()

    def _note_answer(self) -> None:
        self._unanswered -= 1
        self._answered_at = time.monotonic()

    def get_msg(self, block: bool = False) -> Any:
        """Return the next message for the association's thread; an answer to a notice is kept for who waits for it.

        It waits a little for one: pynetdicom looks a thousand times a second.
        """
        try:
            context_id, message = self.msg_queue.get(timeout=IDLE_LOOK_S)
        except queue.Empty:
            return None, None
        if not isinstance(message, N_EVENT_REPORT):  # a request of that kind has a thread of its own, and is not here
            return context_id, message
        if message.is_valid_response and message.MessageIDBeingRespondedTo == self._notices:
            self._answer = message
        return None, None

    def wake(self) -> None:
        """Have the association's thread look at once at what is new."""
        self.msg_queue.put((None, None))  # pynetdicom's word for no message

    def notify(self, notice: N_EVENT_REPORT, context_id: int) -> int:
        """Send a notice when the peer asks nothing; return the status of its answer. One at a time.

        Raises TimeoutError, which says why, where the peer is not quiet, does not answer, or is gone.
        """
        if not self._turn.acquire(timeout=QUIET_WITHIN_S):
            raise TimeoutError("earlier ones are not answered yet")
        try:
            self._wait(self._is_quiet, QUIET_WITHIN_S, "the peer goes on sending")
            self._answer, self._notices = None, self._notices % 0xFFFF + 1
            notice.MessageID = self._notices
            self.send_msg(notice, context_id)
            self._wait(lambda: self._answer is not None, ANSWER_WITHIN_S, "the peer does not answer")
            return int(self._answer.Status)
        finally:
            self._turn.release()

    def _is_quiet(self) -> bool:
        idle_s = time.monotonic() - self._answered_at
        return self.is_idle and idle_s >= QUIET_S

    def _wait(self, condition: Callable[[], bool], within_s: float, reason: str) -> None:
        deadline = time.monotonic() + within_s
        while not condition():
            if not self.assoc.is_established:
                raise TimeoutError("the association is over")
            if time.monotonic() >= deadline:
                raise TimeoutError(reason)
            time.sleep(LOOK_S)


def to_primitive(fragment: Fragment) -> P_DATA:
    """Return a presentation data value as pynetdicom has it between its layers."""
    primitive = P_DATA()
    primitive.presentation_data_value_list.append((fragment.context_id, bytes([fragment.control]) + fragment.content))
    return primitive
