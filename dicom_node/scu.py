"""Talking to archives and senders: C-STORE, C-FIND, C-ECHO, and both sides of storage commitment, as the SCU.

Nothing is decided here about when to try again. How associations are opened and end is in `requestor`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from typing import BinaryIO, Literal, Protocol

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.uid import UID
from pynetdicom.association import Association
from pynetdicom.dsutils import encode
from pynetdicom.presentation import build_role

from dicom_node.commitment import PUSH_MODEL, PUSH_MODEL_INSTANCE, REQUEST_COMMITMENT, Reference, make_request
from dicom_node.config import DestinationSettings
from dicom_node.delivery import read_status
from dicom_node.dialogue import is_going_on
from dicom_node.errors import TransientError
from dicom_node.file import split_file
from dicom_node.requestor import TRANSFER_SYNTAXES, Peer, Report, bounded, open_association, send_stored

STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
VERIFICATION = "1.2.840.10008.1.1"
SERVICES = frozenset((STUDY_ROOT_FIND, VERIFICATION, PUSH_MODEL))
"""What is asked of an archive; the other SOP classes are of what it stores."""

COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"
COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"

SUCCESS = 0x0000
PENDING = (0xFF00, 0xFF01)

NO_QUERY = (0x0122, 0x0124, 0xA900)
"""SOP class not supported, not authorized, identifier does not match SOP class (PS3.4 C.4.1.1.4): an archive that says
so answers no query. Whatever else is no success may be otherwise the next time."""

Finding = Literal["present", "absent", "unknown", "refused"]
"""What a query came to: the archive has it, or has not; it cannot say now, or broke off; it answers no query at all."""

SR_CLASSES: dict[str, tuple[str, ...]] = {
    "auto": (COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR),
    "comprehensive_3d": (COMPREHENSIVE_3D_SR,),
    "comprehensive": (COMPREHENSIVE_SR,),
}
"""`sr_class` of a destination: the SR classes it may be given, the preferred one first."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One encoding of a part: an instance, whose file `open` gives."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    open: Callable[[], BinaryIO]


@dataclass(frozen=True, slots=True)
class Part:
    """What a destination must have exactly one of: `candidates` say the same, the preferred one first."""

    name: str
    candidates: tuple[Candidate, ...]


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


class Archive:
    """An established association with a destination: what may be asked of it, one answer each.

    `is_used`: results of another dispatch went this way before, so that the archive may end it any time.
    """

    def __init__(self, association: Association) -> None:
        self._association = association
        self._numbers = itertools.count(1)
        self.is_used = False

    @property
    def is_open(self) -> bool:
        """Whether it has not been released, aborted or lost, nor is asked to be released."""
        return is_going_on(self._association)

    def accepts(self, abstract_syntax: str) -> bool:
        """Tell whether the destination accepted a presentation context for this SOP class."""
        return any(
            context.abstract_syntax == abstract_syntax and context.transfer_syntax[0] in TRANSFER_SYNTAXES
            for context in self._association.accepted_contexts
        )

    def store(self, candidate: Candidate) -> int | None:
        """Return the status of the C-STORE; None if no answer came or the association is gone.

        Raises TransientError where the file cannot be read.
        """
        if not self.is_open:
            return None
        try:
            with candidate.open() as file:
                content = file.read()
        except OSError as error:
            raise TransientError(f"result {candidate.sop_instance_uid} cannot be read: {error.strerror}") from error
        try:
            with bounded(self._association):
                return _status_of(self._send(candidate, content))
        except RuntimeError:  # it was lost between the look and the call
            return None

    def _send(self, candidate: Candidate, content: bytes) -> Dataset:
        """Send a file's dataset as it is, or encoded anew where another transfer syntax was accepted."""
        kept_in, dataset = split_file(content)
        contexts = {
            UID(one.transfer_syntax[0]): int(one.context_id or 0)
            for one in self._association.accepted_contexts
            if one.abstract_syntax == candidate.sop_class_uid and one.transfer_syntax[0] in TRANSFER_SYNTAXES
        }
        sop_uids = candidate.sop_class_uid, candidate.sop_instance_uid
        if kept_in in contexts:
            return send_stored(self._association, contexts[UID(kept_in)], sop_uids, dataset, self._number())
        syntax, context_id = next(iter(contexts.items()))
        anew = encode(dcmread(BytesIO(content)), syntax.is_implicit_VR, syntax.is_little_endian, syntax.is_deflated)
        return send_stored(self._association, context_id, sop_uids, anew or b"", self._number())

    def _number(self) -> int:
        """Return the next Message ID (PS3.7 E.1): an answer to one request must not pass for that to another."""
        return next(self._numbers) % 0x10000

    def find(self, study_instance_uid: str, candidate: Candidate) -> Finding:
        """Ask whether the archive has an instance (C-FIND, PS3.4 C.6.2, IMAGE level)."""
        if not self.is_open:
            return "unknown"
        keys = Dataset()
        keys.QueryRetrieveLevel = "IMAGE"
        keys.StudyInstanceUID, keys.SeriesInstanceUID = study_instance_uid, candidate.series_instance_uid
        keys.SOPInstanceUID = candidate.sop_instance_uid
        try:
            with bounded(self._association):
                return self._find(keys, candidate.sop_instance_uid)
        except RuntimeError:
            return "unknown"

    def _find(self, keys: Dataset, sop_instance_uid: str) -> Finding:
        finding: Finding = "absent"
        for answer, identifier in self._association.send_c_find(keys, STUDY_ROOT_FIND, msg_id=self._number()):
            status = _status_of(answer)
            if status in NO_QUERY:
                return "refused"
            if status not in (SUCCESS, *PENDING):
                return "unknown"
            shown = identifier.get("SOPInstanceUID") if identifier is not None else None
            if status in PENDING and shown == sop_instance_uid:
                finding = "present"
            elif status in PENDING and shown is None and finding == "absent":
                finding = "unknown"  # it shows something that cannot be read
        return finding

    def ask_commitment(self, transaction_uid: str, references: Sequence[Reference]) -> int | None:
        """Ask for storage commitment (N-ACTION, PS3.4 J.3.2) and return the status; None if no answer came."""
        if not self.is_open:
            return None
        request = make_request(transaction_uid, references)
        try:
            with bounded(self._association):
                answer, _ = self._association.send_n_action(
                    request, REQUEST_COMMITMENT, PUSH_MODEL, PUSH_MODEL_INSTANCE, msg_id=self._number()
                )
        except RuntimeError:
            return None
        return _status_of(answer)


class Connect(Protocol):
    """Gives an association with a destination; `scu.connect`, or a fake's."""

    def __call__(
        self,
        destination: DestinationSettings,
        abstract_syntaxes: Sequence[str],
        calling_ae_title: str,
        on_report: Report | None = None,
    ) -> AbstractContextManager[Archive]:
        """Raises AbsentError if there is none to be had."""
        ...


@contextmanager
def connect(
    destination: DestinationSettings,
    abstract_syntaxes: Sequence[str],
    calling_ae_title: str,
    on_report: Report | None = None,
) -> Iterator[Archive]:
    """Give an established association, released at the end; storage commitment reports on it go to `on_report`.

    Raises AbsentError that says why if there is none to be had.
    """
    peer = Peer(_describe(destination), destination.ae_title, destination.host, destination.port, destination.tls)
    stored = set(abstract_syntaxes) - SERVICES
    with open_association(peer, abstract_syntaxes, calling_ae_title, on_report, apart=stored) as association:
        yield Archive(association)


def echo(destination: DestinationSettings, calling_ae_title: str) -> None:
    """Send C-ECHO; raises TransientError that says why if the destination does not answer with success."""
    peer = Peer(_describe(destination), destination.ae_title, destination.host, destination.port, destination.tls)
    with open_association(peer, [VERIFICATION], calling_ae_title) as association:
        if not Archive(association).accepts(VERIFICATION):
            raise TransientError(f"{_describe(destination)} answers, but does not accept C-ECHO")
        status = _status_of(association.send_c_echo())
    if status != SUCCESS:
        raise TransientError(f"{_describe(destination)} answered C-ECHO with {spell(status)}")


def report_commitment(peer: Peer, event_type: int, report: Dataset, calling_ae_title: str) -> None:
    """Tell a sender of its storage commitment on an association of our own (N-EVENT-REPORT, PS3.4 J.3.3).

    This side is the SCP of the service though it opens the association, so that the roles are negotiated (PS3.7
    D.3.3.4). Raises AbsentError if there is no association, TransientError if the sender does not take the report.
    """
    roles = [build_role(PUSH_MODEL, scu_role=False, scp_role=True)]
    with open_association(peer, [PUSH_MODEL], calling_ae_title, roles=roles) as association:
        if not Archive(association).accepts(PUSH_MODEL):
            raise TransientError(f"{peer.name} does not accept reports of storage commitment")
        answer, _ = association.send_n_event_report(report, event_type, PUSH_MODEL, PUSH_MODEL_INSTANCE)
    if (status := _status_of(answer)) != SUCCESS:
        raise TransientError(f"{peer.name} answered the report of storage commitment with {spell(status)}")


def _status_of(answer: Dataset) -> int | None:
    return int(answer.Status) if "Status" in answer else None


def spell(status: int | None) -> str:
    """Return a status as people are told it, with its meaning."""
    return read_status(status).text if status is None else f"status 0x{status:04X} ({read_status(status).text})"


def _describe(destination: DestinationSettings) -> str:
    return f"destination {destination.name} ({destination.ae_title} at {destination.host}:{destination.port})"
