"""Reading an association: C-STOREs are taken in and answered here; everything else is pynetdicom's.

pynetdicom decodes each PDU into objects, hands messages from thread to thread by queues that are looked at once in a
millisecond, and keeps whole datasets in memory. Here the fragments of a dataset go from one buffer to the disk, and the
thread that read the last one files the instance and answers: the association's own, or, for small instances, the one
that reads all associations that send them. Order stays: one request is served after another.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from pynetdicom.association import Association

from dicom_node.errors import InvalidInstanceError
from dicom_node.logs import log_event
from dicom_node.multiplexer import Multiplexer
from dicom_node.notices import IDLE_LOOK_S, MAX_INFORMATION_BYTES, RESPONSE, NoticingProvider, to_primitive
from dicom_node.pdata import (
    C_CANCEL_RQ,
    C_STORE_RQ,
    Fragment,
    decode_command,
    encode_store_response,
    split_command,
    split_fragments,
)
from dicom_node.spool import Answer, Files, Spool, StoreRequest
from dicom_node.stream import PduStream

logger = logging.getLogger(__name__)

MAX_COMMAND_BYTES = 64 * 1024
"""Longest command set that is read: they are hundreds of bytes (PS3.7 6.3)."""

AWAITED, ESTABLISHED, CLOSING = "Sta2", "Sta6", "Sta13"
"""States of the upper layer's machine (PS3.8 9.2): an association request may come; data may come; the connection is
about to be closed."""

CONNECTION_CLOSED, INVALID_PDU = "Evt17", "Evt19"

BUSY_LOOK_S = 0.001
"""Between two looks at what is to be sent while something is; pynetdicom's own pace."""

LATE_LOOKS = 5
"""So many looks in a row, each of `IDLE_LOOK_S`, find something to read that the multiplexer does not come to: it waits
for a disk or a database, and this association need not."""

AHEAD = 256
"""PDUs, or pieces, that are read in a row for the multiplexer: who sends more of them has a thread of its own."""

SEND_S = 60
"""Time for a peer to take what is sent."""

WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


@dataclass(frozen=True)
class Intake:
    """What becomes of C-STOREs: `store` files what has come at one time, and returns the answer of each."""

    files: Files
    store: Callable[[Sequence[StoreRequest]], Sequence[Answer]]
    multiplexer: Multiplexer


class PduReader:
    """Reads one association, in the thread of its upper layer (pynetdicom's DUL), or lent to the multiplexer.

    Whoever reads holds `turn`.
    """

    def __init__(self, association: Association, connection: socket.socket, intake: Intake) -> None:
        """`association` has a `NoticingProvider`. It may be given its other PDUs by `receive`."""
        self.number = connection.fileno()
        self.turn = threading.Lock()
        self.is_lent = False
        self._association, self._connection, self._intake = association, connection, intake
        self._provider: NoticingProvider = association.dimse  # type: ignore[assignment]
        self._dul = association.dul
        self._look_as_usual = self._dul._is_transport_event
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(connection, select.POLLIN)
        self._writable.register(connection, select.POLLOUT)
        self._stream = PduStream(connection)
        self._fragments: Iterator[Fragment] | None = None
        self._encoded_command = bytearray()
        self._foreign_left = 0
        self._request: StoreRequest | None = None
        self._sends_small = False
        self._is_watchable = True
        self._is_busy = False
        self._idle_as_usual = self._dul.idle_timer_expired
        self._returned = threading.Event()
        self._failure: Exception | None = None
        self._late_looks = 0

    # ---- by the association's own thread ----

    def receive(self, within_s: float, count: int) -> bytearray:
        """Return the next `count` bytes for pynetdicom, which reads what is no P-DATA."""
        return self._stream.take(within_s, count)

    def look(self, within_s: float) -> bool:
        """Read what has come, and tell whether something had (in place of pynetdicom's `_is_transport_event`)."""
        if self.is_lent or self._returned.is_set():
            return self._look_after(within_s)
        if self._dul.state_machine.current_state == CLOSING or self._connection.fileno() == -1:
            came = self._look_as_usual()
            if not came:
                time.sleep(BUSY_LOOK_S)
            return came
        if not self._wait(IDLE_LOOK_S if self._is_quiet or self._is_awaited else BUSY_LOOK_S):
            return self._is_overdue(within_s) and self._close()
        while self._read_pdu(within_s) and self._is_quiet:
            if self._is_to_be_lent and self._lend():
                break
            if not self._wait(IDLE_LOOK_S):
                break
            self._dul._idle_timer.restart()
        return True

    def take_back(self) -> None:
        """Read here again, from when the multiplexer is through with what has come."""
        if self.is_lent:
            with self.turn:
                self._return()

    def is_idle_too_long(self) -> bool:
        """Tell whether the peer has said nothing for too long; not while it sends, nor while its instance is filed."""
        return not self._is_busy and self._idle_as_usual()

    def discard(self) -> None:
        """Remove what came of an instance that will not be completed."""
        if self._request is not None:
            self._request.spool.discard()
            self._request = None

    def _look_after(self, within_s: float) -> bool:
        """Watch over a connection that is lent; tell whether it is not any more."""
        if self._returned.wait(IDLE_LOOK_S):
            self._returned.clear()
            failure, self._failure = self._failure, None
            if failure is not None:
                raise failure
            return True
        is_unread = is_overdue = False
        if self.turn.acquire(blocking=False):  # else it is being read, and answered
            try:
                is_unread, is_overdue = self.is_ahead or bool(self._readable.poll(0)), self._is_overdue(within_s)
            finally:
                self.turn.release()
        self._late_looks = self._late_looks + 1 if is_unread else 0
        if not self._is_quiet or is_overdue or self._late_looks >= LATE_LOOKS:
            self.take_back()
        return False

    def _lend(self) -> bool:
        """Lend this connection; tell whether that was possible."""
        with self.turn:
            self._connection.setblocking(False)
            self.is_lent = True
            try:
                self._intake.multiplexer.lend(self)
            except OSError as error:
                log_event(logger, "association read by itself", level=logging.WARNING, reason=str(error))
                self._connection.settimeout(SEND_S)
                self.is_lent, self._is_watchable = False, False
        return self.is_lent

    def _close(self) -> bool:
        self._dul.event_queue.put(CONNECTION_CLOSED)
        return True

    # ---- by the multiplexer, which holds the turn ----

    def read_ahead(self) -> StoreRequest | None:
        """Take in what has come, without waiting; return a request that is complete.

        All but small C-STOREs returns to the association's own thread.
        """
        try:
            is_on = self._is_quiet
            for _ in range(AHEAD):
                if not is_on or self._is_next_other:
                    break
                if not self._has_pdu:
                    self._fill()
                elif (request := self._take_in()) is not None:
                    self._is_busy = True
                    return request
                else:
                    is_on = self._is_quiet and not self._is_large
        except WOULD_BLOCK:
            return None
        except OSError:
            self._close()
        self._return()
        return None

    def answer(self, request: StoreRequest, answer: Answer) -> None:
        """Answer a request: at once, unless the peer takes nothing for now."""
        self._request = None
        self._sends_small = not request.spool.is_large
        response = encode_store_response(request.command, *answer)
        fragments = split_command(request.context_id, response, self._provider.maximum_pdu_size or 0)
        self._provider.send_answer(fragments, at_once=not self.is_lent or bool(self._writable.poll(0)))
        self._dul._idle_timer.restart()
        self._is_busy = False
        if not (self._is_quiet and self._sends_small):
            self._return()

    def fail(self, error: Exception) -> None:
        """Return to the own thread, which raises this."""
        self._failure = error
        self._return()

    def _return(self) -> None:
        if self.is_lent:
            self._intake.multiplexer.remove(self)
            self.is_lent, self._is_busy, self._late_looks = False, False, 0
            with contextlib.suppress(OSError):  # it is closed
                self._connection.settimeout(SEND_S)
            self._returned.set()

    # ---- what is read ----

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

    @property
    def _is_large(self) -> bool:
        return self._request is not None and self._request.spool.is_large

    @property
    def _is_to_be_lent(self) -> bool:
        return self._sends_small and self._is_watchable and self._request is None and not self.is_ahead

    @property
    def is_ahead(self) -> bool:
        """Whether more has come than a look at the socket tells; of what TLS has decoded it tells nothing."""
        return self._has_pdu or (isinstance(self._connection, ssl.SSLSocket) and self._connection.pending() > 0)

    @property
    def _has_pdu(self) -> bool:
        return self._fragments is not None or self._stream.has_pdu

    @property
    def _is_next_other(self) -> bool:
        """Whether what comes next is no P-DATA-TF; what is left of one comes first."""
        return self._fragments is None and self._stream.is_other

    def _is_overdue(self, within_s: float) -> bool:
        return self._stream.age_s > within_s

    def _wait(self, within_s: float) -> bool:
        if self.is_ahead:
            return True
        return bool(self._readable.poll(within_s * 1000))

    def _fill(self) -> None:
        """Receive what is there. Raises OSError, also where the peer has hung up."""
        if self._stream.fill() == 0:
            raise ConnectionError("the peer hung up")
        self._dul._idle_timer.restart()

    def _read_pdu(self, within_s: float) -> bool:
        """Read what is there of a PDU; return whether it is a P-DATA-TF of an established association."""
        if self._dul.state_machine.current_state != ESTABLISHED:
            self._dul._read_pdu_data()
            return False
        try:
            if not self._has_pdu:
                self._connection.settimeout(within_s)
                self._fill()
            if self._is_overdue(within_s):
                raise TimeoutError(f"a PDU did not come within {within_s:g} s")
        except OSError:
            self._close()
            return False
        if self._is_next_other:
            self._dul._read_pdu_data()
            return False
        while self._has_pdu and (request := self._take_in()) is not None:
            self._store(request)
        return True

    def _store(self, request: StoreRequest) -> None:
        self._is_busy = True
        try:
            (answer,) = self._intake.store([request])
        finally:
            self._request, self._is_busy = None, False
        self.answer(request, answer)

    def _take_in(self) -> StoreRequest | None:
        """Take in what is left of a PDU, or the next one, up to the end of a C-STORE; return that."""
        try:
            if self._fragments is None:
                self._fragments = split_fragments(self._stream.next_pdu())
            for fragment in self._fragments:
                if (request := self._take(fragment)) is not None:
                    return request
        except ValueError as error:
            log_event(logger, "association broken off", level=logging.WARNING, reason=error)
            self._dul.event_queue.put(INVALID_PDU)
        self._fragments = None
        return None

    def _take(self, fragment: Fragment) -> StoreRequest | None:
        """Take in a fragment; return the C-STORE that it ends.

        Raises ValueError where it does not follow what came before it (PS3.8 annex E).
        """
        if self._request is not None:
            return self._take_data(fragment, self._request)
        if not self._foreign_left:
            return self._take_command(fragment)
        self._pass_data(fragment)
        return None

    def _take_command(self, fragment: Fragment) -> StoreRequest | None:
        if not fragment.is_command:
            raise ValueError("a dataset comes before its command set")
        if not fragment.content and not fragment.is_last:
            raise ValueError("a fragment of a command set is empty")
        self._encoded_command += fragment.content
        if len(self._encoded_command) > MAX_COMMAND_BYTES:
            raise ValueError(f"a command set has more than {MAX_COMMAND_BYTES} bytes")
        if not fragment.is_last:
            return None
        encoded = bytes(self._encoded_command)
        self._encoded_command.clear()
        return self._begin(fragment.context_id, encoded)

    def _begin(self, context_id: int, encoded: bytes) -> StoreRequest | None:
        command = decode_command(encoded)
        if context_id not in self._association._accepted_cx:
            raise ValueError("a message comes in a presentation context that was not accepted")
        if command.field == C_CANCEL_RQ:
            return None  # nothing that is served here can be cancelled
        if command.message_id is None and not command.field & RESPONSE:
            raise ValueError("a request has no Message ID")
        if command.field != C_STORE_RQ:
            self._foreign_left = MAX_INFORMATION_BYTES if command.has_dataset else 0
            self._provider.receive_primitive(to_primitive(Fragment(context_id, True, True, encoded)))
            if (self._provider.message is not None) != command.has_dataset:
                raise ValueError("a command set can be read in two ways")
            return None
        self._provider.note_request()
        context = self._association._accepted_cx[context_id]
        syntax = str(context.transfer_syntax[0])
        spool = Spool(self._intake.files, command.sop_class_uid, command.sop_instance_uid, syntax)
        if command.sop_class_uid != context.abstract_syntax:  # only of what was negotiated: not all may store
            spool.error = InvalidInstanceError("its SOP Class is not that of its presentation context")
        self._request = StoreRequest(self._association, context_id, command, spool)
        return None if command.has_dataset else self._request

    def _take_data(self, fragment: Fragment, request: StoreRequest) -> StoreRequest | None:
        if fragment.is_command or fragment.context_id != request.context_id:
            raise ValueError("another message comes before this one's dataset has ended")
        request.spool.write(fragment.content)
        return request if fragment.is_last else None

    def _pass_data(self, fragment: Fragment) -> None:
        """Hand a fragment of another message on."""
        if fragment.is_command:
            raise ValueError("another message comes before this one's dataset has ended")
        self._foreign_left -= len(fragment.content) + 1
        if self._foreign_left <= 0:
            raise ValueError(f"a message that stores nothing has more than {MAX_INFORMATION_BYTES} bytes")
        if fragment.is_last:
            self._foreign_left = 0
        self._provider.receive_primitive(to_primitive(fragment))
