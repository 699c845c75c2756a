"""Who is let in, and as what: by calling AE title, address and, over TLS, certificate. Everybody else is not.

A destination that is no sender may still open an association, for its reports of storage commitment alone.
"""

from __future__ import annotations

import functools
import ipaddress
import logging
import socket
import time
from dataclasses import dataclass
from typing import Literal

from dicom_node.config import DestinationSettings, PeerSettings, Settings
from dicom_node.logs import log_event
from dicom_node.transport import PeerCertificate

logger = logging.getLogger(__name__)

NAMES_FOR_S = 30
"""How long the addresses of a host name are remembered."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks for an association."""

    ae_title: str
    address: str
    certificate: PeerCertificate | None = None


@dataclass(frozen=True, slots=True)
class Admission:
    """As what a caller is let in: a sender, or one that only reports. `peer` is its entry in the settings, if any."""

    role: Literal["sender", "reporter"]
    peer: PeerSettings | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a caller is not let in."""

    reason: str


def admit(settings: Settings, caller: Caller) -> Admission | Refusal:
    """Decide about a caller."""
    receiver = settings.receiver
    named = [peer for peer in receiver.peers if peer.ae_title.strip() == caller.ae_title]
    here = [peer for peer in named if is_at(peer, caller.address)]
    fitting = [peer for peer in here if _certificate_fits(peer, caller.certificate)]
    if fitting:
        return Admission("sender", fitting[0])
    if receiver.any and not here:
        return Admission("sender")
    if any(_is_destination(destination, caller) for destination in settings.destinations):
        return Admission("reporter")
    if here:
        return Refusal("its certificate is not the one that receiver.peers has for it")
    if named:
        return Refusal("it calls from an address that receiver.peers does not have for its AE title")
    return Refusal("receiver.peers does not list its AE title")


def is_at(peer: PeerSettings, address: str) -> bool:
    """Tell whether `address` is one of a peer's."""
    return _normalize(address) in addresses_of(peer.address)


def addresses_of(host: str) -> frozenset[str]:
    """Return every address of a host; a name may have several, and none while the name server is away."""
    try:
        return frozenset([_normalize(host)])
    except ValueError:
        return _resolve(host, int(time.monotonic() / NAMES_FOR_S))


@functools.lru_cache(maxsize=256)
def _resolve(host: str, _period: int) -> frozenset[str]:
    try:
        return frozenset(_normalize(str(entry[4][0])) for entry in socket.getaddrinfo(host, None))
    except OSError:
        log_event(logger, "peer address unknown", level=logging.WARNING, address=host)
        return frozenset()


def _is_destination(destination: DestinationSettings, caller: Caller) -> bool:
    return (
        destination.commitment
        and destination.ae_title.strip() == caller.ae_title
        and _normalize(caller.address) in addresses_of(destination.host)
    )


def _certificate_fits(peer: PeerSettings, certificate: PeerCertificate | None) -> bool:
    if peer.certificate is None:
        return True
    if certificate is None:
        return False
    kind, _, value = peer.certificate.partition(":")
    return certificate.fingerprint == peer.certificate if kind == "sha256" else value in certificate.names


def _normalize(address: str) -> str:
    """Return an address as text that can be compared: an IPv4 address in IPv6 clothes is that IPv4 address."""
    parsed = ipaddress.ip_address(address.split("%")[0])
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped or parsed)
