"""pynetdicom as a sender that closes its sockets, and hears every rejection and every answer."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

from pynetdicom import AE
from pynetdicom.association import Association
from pynetdicom.transport import AssociationSocket

from dicom_node.requestor import note_early_answer
from dicom_node.sockets import hang_up


class Sender(AE):
    """An application entity that closes a socket also where the peer never answered, or has reset it.

    pynetdicom 3.0 leaves it to the collector of garbage then, which warns of it in whatever test runs at that time.
    """

    def associate(self, *arguments: Any, **options: Any) -> Association:
        """Return the association, rejected also where the rejection was there before anybody looked."""
        association = super().associate(*arguments, **options)
        if not association.is_established:
            note_early_answer(association)
        return association

    def _create_socket(self, *arguments: Any) -> AssociationSocket:
        transport = super()._create_socket(*arguments)
        transport.assoc._reactor_checkpoint = _Checkpoint(transport.assoc)
        transport._shutdown_socket = partial(_hang_up, transport)  # type: ignore[method-assign]
        return transport


class _Checkpoint(threading.Event):
    """Where pynetdicom's reactor waits while a request is under way.

    Of pynetdicom 3.0 it counts as paused a moment longer than it waits; on a busy machine it takes the answer then.
    """

    def __init__(self, association: Association) -> None:
        super().__init__()
        self._association = association
        self.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the reactor may go on."""
        while True:
            self._association._is_paused = True
            super().wait(timeout)
            self._association._is_paused = False
            if self.is_set():
                return True


def _hang_up(transport: AssociationSocket) -> None:
    if transport.socket is not None:  # TLS may have put another in its place
        hang_up(transport.socket)
