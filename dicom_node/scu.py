"""Sending results: one association per destination, C-STORE of every part, then C-FIND to see that it is there.

Nothing is decided here about when to try again; a failure is raised or returned as one of the two kinds of
`errors`, and the caller keeps the rows.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from pynetdicom.ae import ApplicationEntity
from pynetdicom.association import Association
from pynetdicom.presentation import build_context
from pynetdicom.transport import AssociationSocket

from dicom_node.config import DestinationSettings
from dicom_node.errors import NodeError, PermanentError, TransientError

STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
VERIFICATION = "1.2.840.10008.1.1"
COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"
COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"

TRANSFER_SYNTAXES: list[str | UID] = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
CONNECT_TIMEOUT_S = 10
ANSWER_TIMEOUT_S = 30

SUCCESS = 0x0000
SOP_CLASS_NOT_SUPPORTED = 0x0122
PENDING = (0xFF00, 0xFF01)

Verdict = Literal["delivered", "transient", "permanent"]

DELIVERY: tuple[tuple[range, Verdict], ...] = (
    (range(0x0000, 0x0001), "delivered"),  # success, PS3.4 B.2.3
    (range(0xB000, 0xC000), "delivered"),  # warning: stored, with coercions or discarded elements, PS3.4 B.2.3
    (range(0xA700, 0xA800), "transient"),  # refused, out of resources, PS3.4 B.2.3
)
"""What a C-STORE status means; every status that is not here is a failure that a repetition cannot cure."""

SR_CLASSES: dict[str, tuple[str, ...]] = {
    "auto": (COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR),
    "comprehensive_3d": (COMPREHENSIVE_3D_SR,),
    "comprehensive": (COMPREHENSIVE_SR,),
}
"""`sr_class` of a destination: the SR classes it may be given, the preferred one first."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One encoding of a part: an instance in a file."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    path: Path


@dataclass(frozen=True, slots=True)
class Part:
    """What a destination must have exactly one of: `candidates` say the same, the preferred one first."""

    name: str
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Sent:
    """What became of one part. `error` is None where the archive took it and, if asked for, shows it."""

    part: str
    sop_instance_uid: str | None
    status: int | None
    confirmed_by: Literal["query", "store"] | None
    error: NodeError | None = None


def delivery_verdict(status: int | None) -> Verdict:
    """Return what a C-STORE status means for the delivery; None is no answer at all."""
    if status is None:
        return "transient"
    return next((verdict for statuses, verdict in DELIVERY if status in statuses), "permanent")


def prefer(part: Part, destination: DestinationSettings, accepted: str | None = None) -> Part:
    """Return `part` with the candidates that `destination` may be given, the one to be tried first in front.

    That is the SR of the class that the destination took last (`accepted`), so that the revisions of a study stay of
    one class and a refusal is not asked for again; else the class that `sr_class` names first.
    """
    if part.name != "sr":
        return part
    allowed = sorted(SR_CLASSES[destination.sr_class], key=lambda uid: uid != accepted)  # stable
    candidates = tuple(one for uid in allowed for one in part.candidates if one.sop_class_uid == uid)
    return replace(part, candidates=candidates)


def send_parts(
    destination: DestinationSettings,
    parts: Sequence[Part],
    study_instance_uid: str,
    calling_ae_title: str,
    accepted: str | None = None,
) -> tuple[Sent, ...]:
    """Send every part over one association and confirm each as `destination.commitment` asks.

    Of a part's candidates, ordered by `prefer` with `accepted`, the first is sent whose SOP class the archive accepts
    and which it does not refuse for good. One `Sent` per part, in order; a part that fails does not stop the others.
    Raises TransientError if there is no association.
    """
    chosen = [prefer(part, destination, accepted) for part in parts]
    classes = sorted({candidate.sop_class_uid for part in chosen for candidate in part.candidates})
    queries = [STUDY_ROOT_FIND] if destination.commitment else []
    with open_association(destination, [*classes, *queries], calling_ae_title) as association:
        stored = [_send_part(association, destination, part) for part in chosen]
        if not queries or (association.is_established and not _accepts(association, STUDY_ROOT_FIND)):
            return tuple(sent for _, sent in stored)
        return tuple(
            _confirm(association, destination, study_instance_uid, candidate, sent) if candidate else sent
            for candidate, sent in stored
        )


def echo(destination: DestinationSettings, calling_ae_title: str) -> None:
    """Send C-ECHO; raises TransientError that says why if the destination does not answer with success."""
    with open_association(destination, [VERIFICATION], calling_ae_title) as association:
        if not _accepts(association, VERIFICATION):
            raise TransientError(f"{_describe(destination)} answers, but does not accept C-ECHO")
        status = _status_of(association.send_c_echo())
    if status != SUCCESS:
        raise TransientError(f"{_describe(destination)} answered C-ECHO with {_spell(status)}")


class _Requestor(ApplicationEntity):
    """An application entity that closes its socket also where nobody answers; pynetdicom 3.0 leaves it open then."""

    _socket: socket.socket | None = None

    def _create_socket(self, *arguments: Any) -> AssociationSocket:
        transport = super()._create_socket(*arguments)
        self._socket = transport.socket
        return transport

    def close_socket(self) -> None:
        """Close the socket of an association that did not come about."""
        if self._socket is not None:
            self._socket.close()


@contextmanager
def open_association(
    destination: DestinationSettings, abstract_syntaxes: Sequence[str], calling_ae_title: str
) -> Iterator[Association]:
    """Give an established association, released at the end. Raises TransientError if there is none to be had."""
    ae = _Requestor(ae_title=calling_ae_title)
    ae.connection_timeout = CONNECT_TIMEOUT_S
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ANSWER_TIMEOUT_S
    contexts = [build_context(syntax, TRANSFER_SYNTAXES) for syntax in abstract_syntaxes]
    try:
        association = ae.associate(destination.host, destination.port, contexts, destination.ae_title)
    except OSError as error:  # a host name that does not resolve
        raise TransientError(f"{_describe(destination)} cannot be reached: {error}") from error
    if not association.is_established:
        ae.close_socket()
        raise TransientError(_explain_no_association(destination, association))
    try:
        yield association
    finally:
        if association.is_established:
            association.release()


def _explain_no_association(destination: DestinationSettings, association: Association) -> str:
    if association.is_rejected:
        return (
            f"{_describe(destination)} rejected the association: check that it knows the AE title "
            f"{association.requestor.ae_title!r} of this node and that its own is right in the configuration"
        )
    if association.acceptor.primitive is not None:
        return f"{_describe(destination)} accepted none of the SOP classes of the results, or broke off"
    return f"{_describe(destination)} cannot be reached: nothing answers as a DICOM node there"


def _send_part(association: Association, destination: DestinationSettings, part: Part) -> tuple[Candidate | None, Sent]:
    """Send the first candidate that the archive takes; return it (None if none was taken) with what became of it."""
    refused: Sent | None = None
    for candidate in part.candidates:
        if not _accepts(association, candidate.sop_class_uid):
            continue
        status = _store(association, candidate)
        if status == SOP_CLASS_NOT_SUPPORTED:
            continue
        error = _store_error(destination, part.name, status)
        if error is None:
            return candidate, Sent(part.name, candidate.sop_instance_uid, status, "store")
        refused = Sent(part.name, candidate.sop_instance_uid, status, None, error)
        if isinstance(error, TransientError):
            break
    nothing = Sent(part.name, None, None, None, _refused_error(association, destination, part.name))
    return None, refused or nothing


def _refused_error(association: Association, destination: DestinationSettings, name: str) -> NodeError:
    if not association.is_established:
        return TransientError(f"{_describe(destination)} broke off the association")
    what = "neither SR class that its sr_class allows" if name == "sr" else "no Grayscale Softcopy Presentation State"
    setting = "its sr_class" if name == "sr" else "results.gsps"
    return PermanentError(
        f"{_describe(destination)} accepts {what}: enable it there, or change {setting} in the configuration, and then "
        f"run `knowmvg jobs retry`"
    )


def _store(association: Association, candidate: Candidate) -> int | None:
    """Return the status of the C-STORE; None if no answer came or the association is gone."""
    if not association.is_established:
        return None
    return _status_of(association.send_c_store(dcmread(candidate.path)))


def _store_error(destination: DestinationSettings, name: str, status: int | None) -> NodeError | None:
    verdict = delivery_verdict(status)
    if verdict == "delivered":
        return None
    reason = f"{_describe(destination)} answered the C-STORE of {name} with {_spell(status)}"
    if verdict == "transient":
        return TransientError(reason)
    return PermanentError(f"{reason}: look for the reason in the archive's log, then run `knowmvg jobs retry`")


def _confirm(
    association: Association,
    destination: DestinationSettings,
    study_instance_uid: str,
    candidate: Candidate,
    sent: Sent,
) -> Sent:
    """Ask the archive for the instance; where it does not answer queries, the status of its C-STORE counts."""
    found = _find(association, study_instance_uid, candidate)
    if found is None:
        return sent
    if found:
        return replace(sent, confirmed_by="query")
    error = TransientError(f"{_describe(destination)} took {sent.part} but does not find it in a query yet")
    return replace(sent, confirmed_by=None, error=error)


def _find(association: Association, study_instance_uid: str, candidate: Candidate) -> bool | None:
    """Return whether the archive shows the instance (PS3.4 C.6.2, IMAGE level); None if it answers no query."""
    if not association.is_established:
        return False
    keys = Dataset()
    keys.QueryRetrieveLevel = "IMAGE"
    keys.StudyInstanceUID, keys.SeriesInstanceUID = study_instance_uid, candidate.series_instance_uid
    keys.SOPInstanceUID = candidate.sop_instance_uid
    found = False
    for answer, identifier in association.send_c_find(keys, STUDY_ROOT_FIND):
        status = _status_of(answer)
        if status is None or delivery_verdict(status) == "transient":
            return False  # it may answer later
        if status not in (0x0000, *PENDING):
            return None  # it refuses to answer: nothing can be learned by a query
        if status in PENDING and identifier is not None:
            found = found or identifier.get("SOPInstanceUID") == candidate.sop_instance_uid
    return found


def _accepts(association: Association, abstract_syntax: str) -> bool:
    return any(context.abstract_syntax == abstract_syntax for context in association.accepted_contexts)


def _status_of(answer: Dataset) -> int | None:
    return int(answer.Status) if "Status" in answer else None


def _spell(status: int | None) -> str:
    return "no status (it broke off or took too long)" if status is None else f"status 0x{status:04X}"


def _describe(destination: DestinationSettings) -> str:
    return f"destination {destination.name} ({destination.ae_title} at {destination.host}:{destination.port})"
