"""Reading from sockets: in large pieces, within a time, and no more than a peer may announce."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import time

MAX_PDU_BYTES = 1024**2
"""Longest PDU that is read: association requests are kilobytes, P-DATA at most receiver.max_pdu (PS3.8 9.3)."""


def receive_exactly(connection: socket.socket, within_s: float, count: int) -> bytearray:
    """Return the next `count` bytes, fewer if the peer hangs up.

    Hangs up and raises OSError over the cap, and where they do not come within the time.
    """
    check_length(connection, count)
    buffer = bytearray(count)
    with memoryview(buffer) as view:
        received = receive_into(connection, within_s, view)
    del buffer[received:]
    return buffer


def check_length(connection: socket.socket, count: int) -> None:
    """Hang up and raise OSError where a peer announces more than `MAX_PDU_BYTES`."""
    if count > MAX_PDU_BYTES:
        connection.shutdown(socket.SHUT_RDWR)
        raise OSError(f"the peer announces a PDU of {count} bytes; at most {MAX_PDU_BYTES} are read")


def receive_into(connection: socket.socket, within_s: float, view: memoryview) -> int:
    """Fill `view` and return how many bytes came: fewer if the peer hangs up. Raises OSError as `receive_exactly`."""
    received, deadline = 0, time.monotonic() + within_s
    while received < len(view):
        if (left := deadline - time.monotonic()) <= 0:
            raise TimeoutError(f"{len(view)} bytes did not come within {within_s:g} s")
        connection.settimeout(left)
        read = connection.recv_into(view[received:])
        if read == 0:
            break
        received += read
    connection.settimeout(within_s)  # for what is sent
    return received


def hang_up(connection: socket.socket) -> None:
    """Close a connection, also one that the peer has reset: pynetdicom leaves that open."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def is_loopback(host: str) -> bool:
    """Tell whether only this host can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
