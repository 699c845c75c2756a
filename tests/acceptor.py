"""An association acceptor that sends what a test says, PDU by PDU (PS3.8 9.3), also what no archive should."""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from pydicom.uid import ExplicitVRLittleEndian
from pynetdicom.dimse import _RQ_TO_MESSAGE, _RSP_TO_MESSAGE
from pynetdicom.dimse_messages import DIMSEMessage
from pynetdicom.pdu import A_ASSOCIATE_AC, A_ASSOCIATE_RQ, P_DATA_TF

from dicom_node.config import DestinationSettings
from dicom_node.sockets import receive_exactly

RELEASE_RQ = b"\x05\x00\x00\x00\x00\x04\x00\x00\x00\x00"
RELEASE_RP = b"\x06\x00\x00\x00\x00\x04\x00\x00\x00\x00"
DATA, RELEASE_ASKED, RELEASED, ABORTED = 4, 5, 6, 7
"""Types of PDUs; 0 is the end of the connection."""

WITHIN_S = 10.0
MAX_PDU = 16382


class Conversation:
    """The peer's end of an association that was accepted."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, *pdus: bytes) -> None:
        """Send PDUs as they are, in one piece."""
        self._connection.sendall(b"".join(pdus))

    def receive(self) -> tuple[int, bytes]:
        """Return the type of the next PDU and all of it; type 0 where the other side hung up."""
        try:
            head = bytes(receive_exactly(self._connection, WITHIN_S, 6))
            if len(head) < 6:
                return 0, b""
            return head[0], head + bytes(receive_exactly(self._connection, WITHIN_S, int.from_bytes(head[2:], "big")))
        except ConnectionError:
            return 0, b""

    def receive_until(self, *kinds: int) -> list[int]:
        """Receive until a PDU of one of these types, or the end; return the types of all."""
        seen = [self.receive()[0]]
        while seen[-1] not in (0, *kinds):
            seen.append(self.receive()[0])
        return seen

    def receive_message(self) -> tuple[int, Any]:
        """Receive a message; return the presentation context that it came in, and what it says."""
        message = DIMSEMessage()
        while True:
            pdu = P_DATA_TF()
            pdu.decode(self.receive()[1])
            if message.decode_msg(pdu.to_primitive()):
                return int(message.context_id or 0), message.message_to_primitive()

    def say(self, context_id: int, *messages: Any) -> None:
        """Send requests and answers, which need not be to what was asked."""
        for message in messages:
            kinds: Any = _RQ_TO_MESSAGE if message.MessageIDBeingRespondedTo is None else _RSP_TO_MESSAGE
            made = kinds[type(message)]()
            made.primitive_to_message(message)
            self.send(*(bytes(P_DATA_TF(part).encode()) for part in made.encode_msg(context_id, MAX_PDU)))


class Acceptor:
    """Accepts associations on loopback and lets `talk` go on with each; what `talk` raises is raised at the end.

    Every presentation context is accepted in the transfer syntax that `choose` returns for its Abstract Syntax and
    the proposed Transfer Syntaxes.
    """

    def __init__(
        self,
        talk: Callable[[Conversation], None],
        choose: Callable[[str, Sequence[str]], str] = lambda *_: ExplicitVRLittleEndian,
    ) -> None:
        self._talk, self._choose = talk, choose
        self._server = socket.create_server(("127.0.0.1", 0))
        self._pool = ThreadPoolExecutor(1)

    @property
    def destination(self) -> DestinationSettings:
        """It, as a destination."""
        port = self._server.getsockname()[1]
        return DestinationSettings(name="archive", ae_title="ARCHIVE", host="127.0.0.1", port=port)

    def __enter__(self) -> Acceptor:
        self._served = self._pool.submit(self._serve)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._pool.shutdown()
        self._server.close()
        if kind is None:
            self._served.result()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                conversation = Conversation(connection)
                conversation.send(self._accept(conversation.receive()[1]))
                self._talk(conversation)

    def _accept(self, asked: bytes) -> bytes:
        request = A_ASSOCIATE_RQ()
        request.decode(asked)
        primitive = request.to_primitive()
        primitive.result = 0x00
        for context in primitive.presentation_context_definition_list:
            context.result = 0x00
            context.transfer_syntax = [self._choose(str(context.abstract_syntax), list(context.transfer_syntax))]
        primitive.presentation_context_definition_results_list = primitive.presentation_context_definition_list
        primitive.presentation_context_definition_list = []
        return bytes(A_ASSOCIATE_AC(primitive).encode())
