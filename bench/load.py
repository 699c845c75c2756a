"""Sends instances as fast as they are answered, over several associations, and prints how long each answer took.

    python -m bench.load PORT AE_TITLE --bytes 100000 --count 400 --associations 4

pynetdicom negotiates; then the same bytes go out again and again under new UIDs, so that the sender costs next to
nothing. Prints one JSON object: the seconds that it took, and the milliseconds from the first byte of each request to
its answer. Any answer but success ends it.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import struct
import sys
import threading
import time
from io import BytesIO
from typing import Any

import numpy as np
from pydicom.uid import UID, ExplicitVRLittleEndian
from pynetdicom import AE
from pynetdicom.dimse_messages import C_STORE_RQ
from pynetdicom.dimse_primitives import C_STORE

from dicom_node.pdata import Fragment, encode_fragment
from tests.builders import DX_PRESENTATION_STORAGE, encode, make_cxr_dataset

UID_ROOT = "1.2.826.0.1.3680043.8.498."
STUDY, SERIES, INSTANCE = (f"{UID_ROOT}{kind}{'0' * 16}" for kind in (1, 2, 3))
"""What stands for the UIDs in the bytes; each instance has its own, of the same length."""

ANSWER_S = 60


def encode_request(
    context_id: int, sop_class_uid: str, sop_instance_uid: str, dataset: bytes, max_pdu_bytes: int
) -> tuple[bytes, bytes]:
    """Return a C-STORE request for a peer that takes PDUs of so many bytes: up to its first data PDU, and the rest."""
    request: Any = C_STORE()
    request.MessageID, request.Priority, request.DataSet = 1, 2, BytesIO(b"..")
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = UID(sop_class_uid), UID(sop_instance_uid)
    message = C_STORE_RQ()
    message.primitive_to_message(request)
    command = next(iter(message.encode_msg(context_id, 16384))).presentation_data_value_list[0][1][1:]
    most = min(max_pdu_bytes or 131072, 131072) - 6
    pieces = [dataset[at : at + most] for at in range(0, len(dataset), most)]
    pdus = [
        encode_fragment(Fragment(context_id, False, number == len(pieces), piece))
        for number, piece in enumerate(pieces, 1)
    ]
    return encode_fragment(Fragment(context_id, True, True, command)) + pdus[0], b"".join(pdus[1:])


def without_meta(content: bytes) -> bytes:
    """Return the dataset of a DICOM file's bytes."""
    return content[144 + int.from_bytes(content[140:144], "little") :]


class Message:
    """A C-STORE request and its dataset, cut for a peer."""

    def __init__(self, context_id: int, size: int, max_pdu_bytes: int) -> None:
        side = max(8, round((size / 2) ** 0.5))
        pixels = np.random.default_rng(7).integers(0, 4096, (side, side), np.uint16)
        ds = make_cxr_dataset(pixels=pixels, StudyInstanceUID=STUDY, SeriesInstanceUID=SERIES, SOPInstanceUID=INSTANCE)
        ds.file_meta.MediaStorageSOPInstanceUID = INSTANCE
        dataset = without_meta(encode(ds))
        self._first, self._rest = encode_request(context_id, DX_PRESENTATION_STORAGE, INSTANCE, dataset, max_pdu_bytes)

    def send(self, connection: socket.socket, number: int, per_study: int) -> None:
        """Send it as the instance of this number."""
        connection.sendall(self._beginning(number, per_study))
        connection.sendall(self._rest)

    def encode(self, number: int, per_study: int) -> bytes:
        """Return it as the instance of this number."""
        return self._beginning(number, per_study) + self._rest

    def _beginning(self, number: int, per_study: int) -> bytes:
        first = self._first
        for old, new in ((STUDY, number // per_study), (SERIES, number // per_study), (INSTANCE, number)):
            first = first.replace(old.encode(), f"{old[: -len(str(new))]}{new}".encode())
        return first


def receive(connection: socket.socket) -> int:
    """Return the status of the next answer."""
    head = exactly(connection, 6)
    body = exactly(connection, struct.unpack(">L", head[2:])[0])
    at = body.index(struct.pack("<HHL", 0, 0x0900, 2))
    return int.from_bytes(body[at + 8 : at + 10], "little")


def exactly(connection: socket.socket, count: int) -> bytes:
    """Return so many bytes."""
    content = b""
    while len(content) < count:
        if not (piece := connection.recv(count - len(content))):
            raise SystemExit("the peer hung up")
        content += piece
    return content


def rest() -> bool:
    """Keep pynetdicom from reading what comes (in place of its `_is_transport_event`)."""
    time.sleep(0.05)
    return False


class Sender(threading.Thread):
    """One association that sends its share of the instances."""

    def __init__(self, arguments: argparse.Namespace, numbers: range, start: threading.Barrier) -> None:
        super().__init__()
        self._arguments, self._numbers, self._start = arguments, numbers, start
        self.milliseconds: list[float] = []
        ae = AE("PACS")
        ae.add_requested_context(DX_PRESENTATION_STORAGE, ExplicitVRLittleEndian)
        self._association: Any = ae.associate("127.0.0.1", arguments.port, ae_title=arguments.ae_title)
        if not self._association.is_established:
            raise SystemExit("the peer takes no association")

    @property
    def context_id(self) -> int:
        """The presentation context that was accepted."""
        return int(self._association.accepted_contexts[0].context_id)

    @property
    def max_pdu_bytes(self) -> int:
        """The longest PDU that the peer takes."""
        return int(self._association.acceptor.maximum_length)

    def take_over(self) -> socket.socket:
        """Return the connection, which pynetdicom reads no more."""
        self._association._reactor_checkpoint.clear()
        self._association.dul._is_transport_event = rest
        connection: socket.socket = self._association.dul.socket.socket
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(ANSWER_S)
        return connection

    def run(self) -> None:
        """Send them, one after the other."""
        connection = self.take_over()
        message = Message(self.context_id, self._arguments.bytes, self.max_pdu_bytes)
        self._start.wait()
        for number in self._numbers:
            began = time.perf_counter()
            message.send(connection, number, self._arguments.per_study)
            if status := receive(connection):
                sys.stderr.write(f"answered with 0x{status:04X}\n")
                os._exit(1)
            self.milliseconds.append(1000 * (time.perf_counter() - began))

    def close(self) -> None:
        """Hang up."""
        self._association.dul.socket.close()
        self._association.kill()


def main() -> None:
    """Send, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("ae_title")
    parser.add_argument("--bytes", type=int, default=100_000)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--associations", type=int, default=4)
    parser.add_argument("--per-study", type=int, default=3)
    parser.add_argument("--first", type=int, default=1, help="the number of the first instance")
    arguments = parser.parse_args()
    start = threading.Barrier(arguments.associations + 1)
    numbers = range(arguments.first, arguments.first + arguments.count)
    senders = [
        Sender(arguments, numbers[one :: arguments.associations], start) for one in range(arguments.associations)
    ]
    for sender in senders:
        sender.start()
    start.wait()
    began = time.perf_counter()
    for sender in senders:
        sender.join()
    seconds = time.perf_counter() - began
    for sender in senders:
        sender.close()
    print(json.dumps({"seconds": seconds, "milliseconds": [one for sender in senders for one in sender.milliseconds]}))


if __name__ == "__main__":
    main()
