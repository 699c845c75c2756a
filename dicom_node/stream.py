"""What a peer has sent, cut into PDUs."""

from __future__ import annotations

import socket
import struct
import time

from dicom_node.pdata import P_DATA_TF, PDU_HEAD_BYTES
from dicom_node.sockets import check_length, receive_exactly

FIRST_BYTES = 32 * 1024
"""Of a buffer that grows with the PDUs that come."""

_LENGTH = struct.Struct(">L")


class PduStream:
    """What an established association's peer has sent and nobody has looked at (PS3.8 9.3.1)."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray(FIRST_BYTES)
        self._start = self._end = 0
        self._began = 0.0

    def fill(self) -> int:
        """Receive what is there, as the connection blocks or not; return how many bytes, 0 where the peer hung up.

        What `next_pdu` returned is gone then. Raises OSError, also over a PDU that is too long.
        """
        self._make_room()
        with memoryview(self._buffer) as view:
            received = self._connection.recv_into(view[self._end :])
        if self._start == self._end:
            self._began = time.monotonic()
        self._end += received
        return received

    @property
    def has_pdu(self) -> bool:
        """Whether a P-DATA-TF is there, all of it, or the beginning of a PDU that is none."""
        return self.is_other or self._end - self._start >= self._announced

    @property
    def is_other(self) -> bool:
        """Whether the next PDU is no P-DATA-TF."""
        return self._start < self._end and self._buffer[self._start] != P_DATA_TF

    @property
    def age_s(self) -> float:
        """Return how long a PDU has been coming that is not there yet, in seconds."""
        return time.monotonic() - self._began if self._start < self._end and not self.has_pdu else 0.0

    def next_pdu(self) -> memoryview:
        """Return what follows the length of the P-DATA-TF that is there."""
        start, self._start = self._start, self._start + self._announced
        self._began = time.monotonic()
        return memoryview(self._buffer)[start + PDU_HEAD_BYTES : self._start]

    def take(self, within_s: float, count: int) -> bytearray:
        """Return the next `count` bytes as `receive_exactly` does."""
        check_length(self._connection, count)
        stop = min(self._start + count, self._end)
        taken, self._start = self._buffer[self._start : stop], stop
        return taken + receive_exactly(self._connection, within_s, count - len(taken)) if len(taken) < count else taken

    @property
    def _announced(self) -> int:
        """Return the length of the next PDU with its head, or of its head as long as that is all that is known."""
        if self._end - self._start < PDU_HEAD_BYTES:
            return PDU_HEAD_BYTES
        return PDU_HEAD_BYTES + int(_LENGTH.unpack_from(self._buffer, self._start + 2)[0])

    def _make_room(self) -> None:
        """Move what is there to the beginning of a buffer that the next PDU fits into."""
        needed = self._announced
        check_length(self._connection, needed - PDU_HEAD_BYTES)
        if self._start == 0 and needed <= len(self._buffer):
            return
        unread = self._buffer[self._start : self._end]
        if needed > len(self._buffer):
            self._buffer = bytearray(needed)
        self._buffer[: len(unread)] = unread
        self._start, self._end = 0, len(unread)
