"""Audit events, and their messages after PS3.15 A.5 (DICOM Audit Message Schema). Pure: values in, XML out.

An event holds the patient's id where the standard asks for it; it is kept in the job database and sent to the audit
collector, and goes to no log.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from operator import attrgetter
from typing import Any, Literal
from xml.etree.ElementTree import Element, SubElement, tostring

Kind = Literal[
    "application start",
    "application stop",
    "association refused",
    "instances received",
    "results exported",
    "study accessed",
    "study changed",
    "configuration changed",
    "node alert",
    "backup made",
    "backup restored",
    "sign-in",
    "sign-out",
    "account changed",
    "audit trail read",
]

PRIVATE_SCHEME = "99KNOWMVG"

Code = tuple[str, str, str]
"""Value, coding scheme, meaning."""

APPLICATION_ACTIVITY: Code = ("110100", "DCM", "Application Activity")
INSTANCES_ACCESSED: Code = ("110103", "DCM", "DICOM Instances Accessed")
INSTANCES_TRANSFERRED: Code = ("110104", "DCM", "DICOM Instances Transferred")
AUDIT_LOG_USED: Code = ("110101", "DCM", "Audit Log Used")
USER_AUTHENTICATION: Code = ("110114", "DCM", "User Authentication")
SECURITY_ALERT: Code = ("110113", "DCM", "Security Alert")

EVENTS: dict[Kind, tuple[Code, Code | None, str]] = {
    "application start": (APPLICATION_ACTIVITY, ("110120", "DCM", "Application Start"), "E"),
    "application stop": (APPLICATION_ACTIVITY, ("110121", "DCM", "Application Stop"), "E"),
    "association refused": (SECURITY_ALERT, ("110126", "DCM", "Node Authentication"), "E"),
    "instances received": (INSTANCES_TRANSFERRED, None, "C"),
    "results exported": (INSTANCES_TRANSFERRED, None, "R"),
    "study accessed": (INSTANCES_ACCESSED, None, "R"),
    "study changed": (INSTANCES_ACCESSED, None, "U"),
    "configuration changed": (SECURITY_ALERT, ("110131", "DCM", "Software Configuration"), "E"),
    "node alert": (SECURITY_ALERT, ("capacity", PRIVATE_SCHEME, "Capacity Alert"), "E"),
    "backup made": (SECURITY_ALERT, ("110132", "DCM", "Use of Restricted Function"), "E"),
    "backup restored": (SECURITY_ALERT, ("110132", "DCM", "Use of Restricted Function"), "E"),
    "sign-in": (USER_AUTHENTICATION, ("110122", "DCM", "Login"), "E"),
    "sign-out": (USER_AUTHENTICATION, ("110123", "DCM", "Logout"), "E"),
    "account changed": (SECURITY_ALERT, ("110137", "DCM", "User Security Attributes Changed"), "E"),
    "audit trail read": (AUDIT_LOG_USED, None, "R"),
}
"""EventID, EventTypeCode and EventActionCode of each kind (PS3.15 A.5.3; CID 400 to 403).

Who sends does not know what the receiver held before: then the action is R (A.5.3.7).
"""

APPLICATION: Code = ("110150", "DCM", "Application")
LAUNCHER: Code = ("110151", "DCM", "Application Launcher")
DESTINATION_ROLE: Code = ("110152", "DCM", "Destination Role ID")
SOURCE_ROLE: Code = ("110153", "DCM", "Source Role ID")

STUDY_UID_TYPE: Code = ("110180", "DCM", "Study Instance UID")
URI_TYPE: Code = ("12", "RFC-3881", "URI")
AUDIT_TRAIL, AUDIT_TRAIL_NAME = "knowmvg:audit", "Security Audit Log"
"""What stands for the trail in the message on who read it (PS3.15 A.5.3.2)."""

PATIENT_NUMBER_TYPE: Code = ("2", "RFC-3881", "Patient Number")

UNKNOWN_PATIENT = "<none>"
"""Participant object id of a patient without an id: where DICOM instances went, the patient is asked for (A.5.3.6,
A.5.3.7), and the standard has no value for this; dcm4chee writes the same, and no Patient ID looks like it."""

SUCCESS, MINOR_FAILURE = "0", "4"
"""EventOutcomeIndicator, PS3.15 A.5.2."""

SERVER_PROCESS = "4"
"""AuditSourceTypeCode: application server process."""

_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """What happened. `actor` did it (an AE title, or a person); `peer` is the other party; addresses are theirs.

    `sop_classes` are the SOP Class UIDs of what was transferred, each with the number of instances.
    """

    kind: Kind
    success: bool = True
    actor: str = ""
    actor_address: str = ""
    peer: str = ""
    peer_address: str = ""
    study_instance_uid: str = ""
    patient_id: str = ""
    sop_classes: Mapping[str, int] = field(default_factory=dict)
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the event as JSON values."""
        values = dict(zip(_NAMES, _VALUES_OF(self), strict=True))
        return values | {"sop_classes": dict(self.sop_classes)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> AuditEvent:
        """Return the event that `values` came from."""
        return cls(**values)


_NAMES = tuple(one.name for one in fields(AuditEvent))
_VALUES_OF = attrgetter(*_NAMES)


@dataclass(frozen=True, slots=True)
class AuditSource:
    """Who reports: the enterprise site, this node's AE title and address, and the process of it."""

    site: str
    node: str
    address: str
    process: str


def render_audit(event: AuditEvent, at: datetime, source: AuditSource) -> str:
    """Return the message as XML text; `at` is when it happened."""
    message = Element("AuditMessage")
    _add_event(message, event, at)
    _add_participants(message, event, source)
    attributes = {"AuditSourceID": f"{source.node} {source.process}".strip()}
    if source.site:
        attributes = {"AuditEnterpriseSiteID": source.site} | attributes
    origin = SubElement(message, "AuditSourceIdentification", _clean(attributes))
    SubElement(origin, "AuditSourceTypeCode", {"csd-code": SERVER_PROCESS})
    _add_objects(message, event)
    return tostring(message, encoding="unicode")


def _add_event(message: Element, event: AuditEvent, at: datetime) -> None:
    event_id, event_type, action = EVENTS[event.kind]
    outcome = SUCCESS if event.success else MINOR_FAILURE
    attributes = {
        "EventActionCode": action,
        "EventDateTime": at.isoformat(timespec="milliseconds"),
        "EventOutcomeIndicator": outcome,
    }
    element = SubElement(message, "EventIdentification", attributes)
    _add_code(element, "EventID", event_id)
    if event_type is not None:
        _add_code(element, "EventTypeCode", event_type)
    if event.reason:
        SubElement(element, "EventOutcomeDescription").text = _legal(event.reason)


def _add_participants(message: Element, event: AuditEvent, source: AuditSource) -> None:
    """Add who took part: source and destination of a transfer, the actor of anything else, and this process.

    In a security alert the process that reports comes first, and who did it never is the requestor (A.5.3.11).
    """
    here = (source.node, source.address)
    actor, peer = (event.actor, event.actor_address), (event.peer, event.peer_address)
    if event.kind == "instances received":
        _add_participant(message, actor, SOURCE_ROLE, requestor=True)
        _add_participant(message, here, DESTINATION_ROLE, requestor=False)
    elif event.kind == "results exported":
        _add_participant(message, here, SOURCE_ROLE, requestor=True)
        _add_participant(message, peer, DESTINATION_ROLE, requestor=False)
    else:
        alert, known = EVENTS[event.kind][0] == SECURITY_ALERT, any(actor)
        role = LAUNCHER if EVENTS[event.kind][0] == APPLICATION_ACTIVITY else None
        _add_participant(message, here, APPLICATION, requestor=not known)
        if known:
            _add_participant(message, actor, role, requestor=not alert)


def _add_participant(message: Element, party: tuple[str, str], role: Code | None, *, requestor: bool) -> None:
    name, address = party
    attributes = {"UserID": name or address or "unknown", "UserIsRequestor": "true" if requestor else "false"}
    if role is not None and name:
        attributes["AlternativeUserID"] = f"AETITLES={name}"
    if address:
        attributes |= {"NetworkAccessPointID": address, "NetworkAccessPointTypeCode": _address_type(address)}
    element = SubElement(message, "ActiveParticipant", _clean(attributes))
    if role is not None:
        _add_code(element, "RoleIDCode", role)


def _address_type(address: str) -> str:
    """Return 2 for an IP address, 1 for a machine name (PS3.15 A.5.2)."""
    return "2" if re.fullmatch(r"[0-9.]+|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*", address) else "1"


def _add_objects(message: Element, event: AuditEvent) -> None:
    if event.kind == "audit trail read":
        _add_object(message, AUDIT_TRAIL, ("2", "13"), URI_TYPE, AUDIT_TRAIL_NAME)
    if event.study_instance_uid:
        study = _add_object(message, event.study_instance_uid, ("2", "3"), STUDY_UID_TYPE)
        described = SubElement(study, "ParticipantObjectDescription") if event.sop_classes else study
        for uid, count in sorted(event.sop_classes.items()):
            SubElement(described, "SOPClass", _clean({"UID": uid, "NumberOfInstances": str(count)}))
    if event.patient_id.strip() or EVENTS[event.kind][0] in (INSTANCES_ACCESSED, INSTANCES_TRANSFERRED):
        _add_object(message, event.patient_id.strip() or UNKNOWN_PATIENT, ("1", "1"), PATIENT_NUMBER_TYPE)


def _add_object(
    message: Element, object_id: str, kind: tuple[str, str], id_type: Code, name: str | None = None
) -> Element:
    type_code, role = kind
    attributes = {
        "ParticipantObjectID": object_id,
        "ParticipantObjectTypeCode": type_code,
        "ParticipantObjectTypeCodeRole": role,
    }
    element = SubElement(message, "ParticipantObjectIdentification", _clean(attributes))
    _add_code(element, "ParticipantObjectIDTypeCode", id_type)
    SubElement(element, "ParticipantObjectName").text = _legal(
        name or object_id
    )  # the schema asks for a name or a query
    return element


def _add_code(parent: Element, name: str, code: Code) -> None:
    value, scheme, meaning = code
    SubElement(parent, name, {"csd-code": value, "codeSystemName": scheme, "originalText": meaning})


def _clean(attributes: Mapping[str, str]) -> dict[str, str]:
    return {name: _legal(value) for name, value in attributes.items()}


def _legal(text: str) -> str:
    """Return `text` with what XML 1.0 cannot hold replaced."""
    return _ILLEGAL.sub("\ufffd", text)
