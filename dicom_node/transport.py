"""The receiver's sockets: PDUs are read in large pieces, and a length that no PDU may have ends the connection.

pynetdicom reads 4 KiB at a time into a growing array and believes any length that a peer claims, before it knows who
the peer is; its request handler is the place to mend both.
"""

from __future__ import annotations

import functools
import socket

from pynetdicom.association import Association
from pynetdicom.transport import AssociationSocket, RequestHandler

MAX_PDU_BYTES = 1024**2
"""Longest PDU that is read: association requests are kilobytes, P-DATA at most receiver.max_pdu (PS3.8 9.3)."""


def receive_exactly(connection: socket.socket, count: int) -> bytearray:
    """Return the next `count` bytes, fewer if the peer hangs up. Raises OSError where `count` is over the cap."""
    if count > MAX_PDU_BYTES:
        raise OSError(f"the peer announces a PDU of {count} bytes; at most {MAX_PDU_BYTES} are read")
    buffer, received = bytearray(count), 0
    with memoryview(buffer) as view:
        while received < count:
            read = connection.recv_into(view[received:])
            if read == 0:
                break
            received += read
    del buffer[received:]
    return buffer


class CappedHandler(RequestHandler):
    """Accepts connections whose sockets read with `receive_exactly`."""

    def _create_association(self) -> Association:
        association = super()._create_association()
        accepted = association.dul.socket
        if isinstance(accepted, AssociationSocket) and accepted.socket is not None:
            accepted.recv = functools.partial(receive_exactly, accepted.socket)  # type: ignore[method-assign]
        return association
