"""Reading an association: C-STOREs are taken in and answered here, in one thread; everything else is pynetdicom's.

pynetdicom decodes each PDU into objects, hands messages from thread to thread by queues that are looked at once in a
millisecond, and keeps whole datasets in memory. Here the fragments of a dataset go from one buffer to the disk, and the
thread that read the last one files the instance and answers. Order stays: one request is served after another.
"""

from __future__ import annotations

import logging
import select
import socket
import ssl
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pynetdicom.association import Association

from dicom_node.errors import InvalidInstanceError
from dicom_node.logs import log_event
from dicom_node.notices import IDLE_LOOK_S, MAX_INFORMATION_BYTES, RESPONSE, NoticingProvider, to_primitive
from dicom_node.pdata import (
    C_CANCEL_RQ,
    C_STORE_RQ,
    P_DATA_TF,
    PDU_HEAD_BYTES,
    Command,
    Fragment,
    decode_command,
    encode_store_response,
    split_command,
    split_fragments,
)
from dicom_node.sockets import check_length, receive_exactly, receive_into
from dicom_node.spool import Files, Spool

logger = logging.getLogger(__name__)

MAX_COMMAND_BYTES = 64 * 1024
"""Longest command set that is read: they are hundreds of bytes (PS3.7 6.3)."""

AWAITED, ESTABLISHED, CLOSING = "Sta2", "Sta6", "Sta13"
"""States of the upper layer's machine (PS3.8 9.2): an association request may come; data may come; the connection is
about to be closed."""

CONNECTION_CLOSED, INVALID_PDU = "Evt17", "Evt19"

BUSY_LOOK_S = 0.001
"""Between two looks at what is to be sent while something is; pynetdicom's own pace."""


@dataclass(frozen=True)
class Intake:
    """What becomes of C-STOREs: `store` files a dataset and returns the status of the answer, and its comment."""

    files: Files
    store: Callable[[Association, Command, Spool], tuple[int, str]]


class PduReader:
    """Reads one association, in the thread of its upper layer (pynetdicom's DUL)."""

    def __init__(self, association: Association, connection: socket.socket, intake: Intake) -> None:
        """`association` has a `NoticingProvider`. It may be given its other PDUs by `receive`."""
        self._association, self._connection, self._intake = association, connection, intake
        self._provider: NoticingProvider = association.dimse  # type: ignore[assignment]
        self._dul = association.dul
        self._look_as_usual = self._dul._is_transport_event
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._buffer = bytearray()
        self._unread = b""
        self._encoded_command = bytearray()
        self._foreign_left = 0
        self._request: tuple[int, Command, Spool] | None = None
        self._is_busy = False
        self._idle_as_usual = self._dul.idle_timer_expired

    def receive(self, within_s: float, count: int) -> bytearray:
        """Return the next `count` bytes for pynetdicom, which reads what is no P-DATA."""
        if self._unread:
            head, self._unread = self._unread, b""
            return bytearray(head)
        return receive_exactly(self._connection, within_s, count)

    def look(self, within_s: float) -> bool:
        """Read what has come, and tell whether something had (in place of pynetdicom's `_is_transport_event`)."""
        if self._dul.state_machine.current_state == CLOSING or self._connection.fileno() == -1:
            came = self._look_as_usual()
            if not came:
                time.sleep(BUSY_LOOK_S)
            return came
        if not self._wait(IDLE_LOOK_S if self._is_quiet or self._is_awaited else BUSY_LOOK_S):
            return False
        while self._read_pdu(within_s) and self._is_quiet and self._wait(IDLE_LOOK_S):
            self._dul._idle_timer.restart()
        return True

    def is_idle_too_long(self) -> bool:
        """Tell whether the peer has said nothing for too long; not while it sends, nor while its instance is filed."""
        return not self._is_busy and self._idle_as_usual()

    def discard(self) -> None:
        """Remove what came of an instance that will not be completed."""
        if self._request is not None:
            self._request[2].discard()
            self._request = None

    @property
    def _is_quiet(self) -> bool:
        """Whether only the peer can go on: nothing is to be sent, no request of pynetdicom's waits for its answer."""
        dul = self._dul
        return (
            dul.state_machine.current_state == ESTABLISHED
            and (self._request is not None or self._provider.is_idle)
            and dul.to_provider_queue.empty()
            and dul.event_queue.empty()
            and not dul._kill_thread
        )

    @property
    def _is_awaited(self) -> bool:
        """Whether nothing has come of this peer yet, not even whom it is."""
        dul = self._dul
        return dul.state_machine.current_state == AWAITED and dul.event_queue.empty() and dul.to_provider_queue.empty()

    def _wait(self, within_s: float) -> bool:
        if isinstance(self._connection, ssl.SSLSocket) and self._connection.pending():
            return True
        return bool(self._poll.poll(within_s * 1000))

    def _read_pdu(self, within_s: float) -> bool:
        """Read a PDU; return whether it was a P-DATA-TF of an established association, which is dealt with."""
        if self._dul.state_machine.current_state != ESTABLISHED:
            self._dul._read_pdu_data()
            return False
        try:
            head = receive_exactly(self._connection, within_s, PDU_HEAD_BYTES)
            if len(head) == PDU_HEAD_BYTES and head[0] != P_DATA_TF:
                self._unread = bytes(head)
                self._dul._read_pdu_data()
                return False
            whole = len(head) == PDU_HEAD_BYTES
            body = self._receive_body(within_s, *struct.unpack_from(">L", head, 2)) if whole else None
        except OSError:
            body = None
        if body is None:
            self._dul.event_queue.put(CONNECTION_CLOSED)
            return False
        return self._take_in(body)

    def _receive_body(self, within_s: float, length: int) -> memoryview | None:
        """Return all that a PDU announced, in the buffer that the next one will use; None if the peer hung up."""
        check_length(self._connection, length)
        if len(self._buffer) < length:
            self._buffer = bytearray(length)
        body = memoryview(self._buffer)[:length]
        with self._busy():
            return body if receive_into(self._connection, within_s, body) == length else None

    @contextmanager
    def _busy(self) -> Iterator[None]:
        """Let the peer not count as idle; its time begins anew afterwards."""
        self._is_busy = True
        try:
            yield
        finally:
            self._dul._idle_timer.restart()
            self._is_busy = False

    def _take_in(self, body: memoryview) -> bool:
        try:
            for fragment in split_fragments(body):
                self._take(fragment)
        except ValueError as error:
            log_event(logger, "association broken off", level=logging.WARNING, reason=error)
            self._dul.event_queue.put(INVALID_PDU)
            return False
        return True

    def _take(self, fragment: Fragment) -> None:
        """Take in a fragment. Raises ValueError where it does not follow what came before it (PS3.8 annex E)."""
        if self._request is not None:
            self._take_data(fragment, self._request)
        elif self._foreign_left:
            self._pass_data(fragment)
        else:
            self._take_command(fragment)

    def _take_command(self, fragment: Fragment) -> None:
        if not fragment.is_command:
            raise ValueError("a dataset comes before its command set")
        if not fragment.content and not fragment.is_last:
            raise ValueError("a fragment of a command set is empty")
        self._encoded_command += fragment.content
        if len(self._encoded_command) > MAX_COMMAND_BYTES:
            raise ValueError(f"a command set has more than {MAX_COMMAND_BYTES} bytes")
        if fragment.is_last:
            encoded = bytes(self._encoded_command)
            self._encoded_command.clear()
            self._begin(fragment.context_id, encoded)

    def _begin(self, context_id: int, encoded: bytes) -> None:
        command = decode_command(encoded)
        if context_id not in self._association._accepted_cx:
            raise ValueError("a message comes in a presentation context that was not accepted")
        if command.field == C_CANCEL_RQ:
            return  # nothing that is served here can be cancelled
        if command.message_id is None and not command.field & RESPONSE:
            raise ValueError("a request has no Message ID")
        if command.field != C_STORE_RQ:
            self._foreign_left = MAX_INFORMATION_BYTES if command.has_dataset else 0
            self._provider.receive_primitive(to_primitive(Fragment(context_id, True, True, encoded)))
            if (self._provider.message is not None) != command.has_dataset:
                raise ValueError("a command set can be read in two ways")
            return
        self._provider.note_request()
        context = self._association._accepted_cx[context_id]
        syntax = str(context.transfer_syntax[0])
        spool = Spool(self._intake.files, command.sop_class_uid, command.sop_instance_uid, syntax)
        if command.sop_class_uid != context.abstract_syntax:  # only of what was negotiated: not all may store
            spool.error = InvalidInstanceError("its SOP Class is not that of its presentation context")
        self._request = context_id, command, spool
        if not command.has_dataset:
            self._answer(context_id, command, spool)

    def _take_data(self, fragment: Fragment, request: tuple[int, Command, Spool]) -> None:
        context_id, command, spool = request
        if fragment.is_command or fragment.context_id != context_id:
            raise ValueError("another message comes before this one's dataset has ended")
        spool.write(fragment.content)
        if fragment.is_last:
            self._answer(context_id, command, spool)

    def _answer(self, context_id: int, command: Command, spool: Spool) -> None:
        try:
            with self._busy():
                status, comment = self._intake.store(self._association, command, spool)
        finally:
            self._request = None
        response = encode_store_response(command, status, comment)
        self._provider.send_answer(split_command(context_id, response, self._provider.maximum_pdu_size or 0))

    def _pass_data(self, fragment: Fragment) -> None:
        if fragment.is_command:
            raise ValueError("another message comes before this one's dataset has ended")
        self._foreign_left -= len(fragment.content) + 1
        if self._foreign_left <= 0:
            raise ValueError(f"a message that stores nothing has more than {MAX_INFORMATION_BYTES} bytes")
        if fragment.is_last:
            self._foreign_left = 0
        self._provider.receive_primitive(to_primitive(fragment))
