"""Audit messages: one for each kind of event, of the shape that PS3.15 A.5 prescribes, whatever the texts in them."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import get_args
from xml.etree.ElementTree import Element, fromstring

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.audit import EVENTS, AuditEvent, AuditSource, Kind, render_audit
from dicom_node.syslog import frame

AT = datetime(2026, 1, 2, 12, 30, tzinfo=UTC)
SOURCE = AuditSource("St. Elsewhere", "KNOWMVG", "192.0.2.7", "receiver")
EVENT = AuditEvent(
    "instances received", actor="PACS", actor_address="192.0.2.1", study_instance_uid="1.2.3", patient_id="4711",
    sop_classes={"1.2.840.10008.5.1.4.1.1.1": 2},
)  # fmt: skip
ORDER = (
    "EventIdentification", "ActiveParticipant", "AuditSourceIdentification", "ParticipantObjectIdentification",
)  # fmt: skip


def render(event: AuditEvent) -> Element:
    return fromstring(render_audit(event, AT, SOURCE))


def code(element: Element | None) -> tuple[str | None, str | None]:
    assert element is not None
    assert element.get("originalText")
    return element.get("csd-code"), element.get("codeSystemName")


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_kind_has_the_parts_in_the_order_of_the_schema(kind: Kind) -> None:
    message = render(replace(EVENT, kind=kind))
    names = [child.tag for child in message]
    assert message.tag == "AuditMessage"
    assert sorted(names, key=ORDER.index) == names
    assert names.count("EventIdentification") == names.count("AuditSourceIdentification") == 1
    event = message[0]
    assert code(event.find("EventID")) == EVENTS[kind][0][:2]
    assert event.get("EventDateTime") == "2026-01-02T12:30:00.000+00:00"
    assert event.get("EventActionCode") in set("CRUDE")
    for participant in message.iter("ActiveParticipant"):
        assert participant.get("UserID") and participant.get("UserIsRequestor") in ("true", "false")
    for thing in message.iter("ParticipantObjectIdentification"):
        assert [child.tag for child in thing][:2] == ["ParticipantObjectIDTypeCode", "ParticipantObjectName"]
        assert {child.tag for child in thing[2:]} <= {"ParticipantObjectDescription"}
        assert thing.get("ParticipantObjectID")
    assert [one.get("UserIsRequestor") for one in message.iter("ActiveParticipant")].count("true") <= 1


def test_what_came_names_both_sides_the_study_and_the_patient() -> None:
    message = render(EVENT)
    sides = {code(one.find("RoleIDCode"))[0]: one for one in message.iter("ActiveParticipant")}
    assert (sides["110153"].get("UserID"), sides["110153"].get("NetworkAccessPointID")) == ("PACS", "192.0.2.1")
    assert (sides["110152"].get("UserID"), sides["110152"].get("NetworkAccessPointTypeCode")) == ("KNOWMVG", "2")
    study, patient = message.findall("ParticipantObjectIdentification")
    assert study.get("ParticipantObjectID") == "1.2.3" and patient.get("ParticipantObjectID") == "4711"
    sop_class = study.find("ParticipantObjectDescription/SOPClass")
    assert sop_class is not None and sop_class.get("NumberOfInstances") == "2"


@pytest.mark.parametrize("kind", ["instances received", "results exported", "study accessed", "study changed"])
@pytest.mark.parametrize("patient_id", ["", " "])
def test_where_instances_go_a_patient_without_an_id_is_named_too(kind: Kind, patient_id: str) -> None:
    message = render(replace(EVENT, kind=kind, patient_id=patient_id))
    _, patient = message.findall("ParticipantObjectIdentification")
    assert code(patient.find("ParticipantObjectIDTypeCode"))[0] == "2"
    assert patient.get("ParticipantObjectID") == patient.findtext("ParticipantObjectName") == "<none>"


def test_what_is_about_nobody_names_no_patient() -> None:
    message = render(AuditEvent("association refused", success=False))
    assert message.find("ParticipantObjectIdentification") is None


def test_results_go_the_other_way() -> None:
    message = render(AuditEvent("results exported", peer="ARCHIVE", peer_address="archive.example"))
    assert message[0].get("EventActionCode") == "R"
    sides = {code(one.find("RoleIDCode"))[0]: one for one in message.iter("ActiveParticipant")}
    assert (sides["110153"].get("UserID"), sides["110152"].get("UserID")) == ("KNOWMVG", "ARCHIVE")
    assert sides["110152"].get("NetworkAccessPointTypeCode") == "1"


def test_a_refusal_is_a_failure_with_its_reason() -> None:
    event = render(AuditEvent("association refused", success=False, actor_address="::1", reason="no certificate"))[0]
    assert event.get("EventOutcomeIndicator") == "4"
    assert event.findtext("EventOutcomeDescription") == "no certificate"
    assert code(event.find("EventTypeCode")) == ("110126", "DCM")


@pytest.mark.parametrize("kind", ["association refused", "configuration changed"])
def test_in_an_alert_this_process_reports_and_who_did_it_is_no_requestor(kind: Kind) -> None:
    reporter, performer = render(AuditEvent(kind, actor="STRANGER")).iter("ActiveParticipant")
    assert (reporter.get("UserID"), performer.get("UserID")) == ("KNOWMVG", "STRANGER")
    assert performer.get("UserIsRequestor") == "false"


def test_who_starts_the_application_is_its_launcher() -> None:
    here, launcher = render(AuditEvent("application start", actor="admin")).iter("ActiveParticipant")
    assert (code(here.find("RoleIDCode"))[0], code(launcher.find("RoleIDCode"))[0]) == ("110150", "110151")


@given(st.text(), st.text(), st.text(), st.text())
def test_any_text_gives_a_message_that_can_be_read(actor: str, patient: str, reason: str, site: str) -> None:
    event = replace(EVENT, actor=actor, patient_id=patient, reason=reason)
    message = fromstring(render_audit(event, AT, replace(SOURCE, site=site)))
    assert message.tag == "AuditMessage"
    assert AuditEvent.from_json(event.to_json()) == event


@given(st.text(), st.text())
def test_a_frame_says_its_length_and_its_header_is_plain(message: str, host: str) -> None:
    content = frame(message, AT, host, "knowmvg receiver", 7)
    length, _, rest = content.partition(b" ")
    assert int(length) == len(rest)
    header, _, text = rest.partition(b"\xef\xbb\xbf")
    words = header.decode("ascii").split(" ")
    assert words[:2] == ["<85>1", "2026-01-02T12:30:00.000+00:00"]
    assert words[3:7] == ["knowmvg_receiver", "7", "DICOM+RFC3881", "-"]
    assert text.decode("utf-8", "replace") == message.encode("utf-8", "replace").decode()
