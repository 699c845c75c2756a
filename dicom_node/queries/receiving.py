"""Filing instances in one transaction: their rows, their studies, and the jobs of the studies' revisions.

Insert-or-ignore, then conditional updates: two instances of a new study that arrive at once must both be filed. The
studies' rows are locked first, so that the instances of one study are filed one after the other. What arrives together
is filed by the same few statements as one instance: they cost more than their rows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from sqlalchemy import Connection, select, update
from sqlalchemy.orm import Session

from dicom_node.instance import DOCUMENT_CLASSES, Instance
from dicom_node.queries.direct import KeyedQuestion
from dicom_node.queries.inserting import insert_new, insert_or_ignore, table_of
from dicom_node.queries.revisions import LockedStudy, Studies, add_events, take_up
from dicom_node.selection import add_referred
from dicom_node.storage import StoredFile
from dicom_node.tables import (
    ConflictRow,
    EventRow,
    InstanceRow,
    ReportReferenceRow,
    ResultRow,
    StudyRow,
)


@dataclass(frozen=True, slots=True)
class Arrival:
    """An instance whose bytes are stored, from whom it came and when; `association` names that in the audit trail."""

    instance: Instance
    stored: StoredFile
    calling_ae_title: str
    at: datetime
    address: str = ""
    association: str = ""


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of an instance.

    "new"; "repeat": held already with the same bytes; "conflict": held already with other bytes, which are kept aside;
    "own": a result of the node itself, of which no row was made. `job_id` is the job it belongs to, if it opened or
    prolonged one; `revision` the revision of the study that it belongs to (0 for "own").
    """

    kind: Literal["new", "repeat", "conflict", "own"]
    job_id: int | None = None
    revision: int = 0


def record_instances(session: Session, arrivals: Sequence[Arrival], quiet_period: timedelta) -> tuple[Recorded, ...]:
    """File instances whose bytes are stored already; return what became of each.

    An image or a report opens the study's job or prolongs its quiet period; after the job has left RECEIVING it opens
    the next revision and cancels what was under way of the one before. Other objects are filed and open nothing.
    A report that names images of other studies alone does the same to those of them that have no report of their own.
    """
    connection = session.connection()  # the session would cost as much again as the statements
    results = _results_among(connection, arrivals)
    filed = [number for number, one in enumerate(arrivals) if one.instance.sop_instance_uid not in results]
    recorded = dict.fromkeys(range(len(arrivals)), Recorded("own"))
    if filed:
        studies = _lock_studies(connection, [arrivals[number] for number in filed])
        inserted = _insert_instances(connection, [arrivals[number] for number in filed], studies)
        new = [number for number in filed if _pop(inserted, arrivals[number].instance.sop_instance_uid)]
        opened = _open(connection, [arrivals[number] for number in new], studies, quiet_period)
        recorded |= zip(new, opened, strict=True)
        repeats = set(filed).difference(new)
        recorded |= {number: _note_repeat(session, arrivals[number]) for number in sorted(repeats)}
    return tuple(recorded.values())


def record_instance(session: Session, arrival: Arrival, quiet_period: timedelta) -> Recorded:
    """File one instance: see `record_instances`."""
    return record_instances(session, [arrival], quiet_period)[0]


def _pop(uids: set[str], uid: str) -> bool:
    """Tell whether a UID was among these, and take it out: what comes twice was inserted once."""
    found = uid in uids
    uids.discard(uid)
    return found


_RESULT = table_of(ResultRow).c.sop_instance_uid
_RESULTS = KeyedQuestion(select(_RESULT), _RESULT)


def _results_among(connection: Connection, arrivals: Iterable[Arrival]) -> set[str]:
    """Return the UIDs of the arrivals that are results of this node, which are documents."""
    documents = [one.instance for one in arrivals if one.instance.sop_class_uid.startswith(DOCUMENT_CLASSES)]
    own = {one.sop_instance_uid for one in documents if one.is_own_result}
    uids = {one.sop_instance_uid for one in documents} - own
    return own | {row.sop_instance_uid for row in _RESULTS.ask(connection, sorted(uids))}


def _open(
    connection: Connection, new: Sequence[Arrival], studies: Studies, quiet_period: timedelta
) -> Iterable[Recorded]:
    """Take the studies up that new instances came for; return what became of each instance."""
    to_ground = [one for one in new if one.instance.role != "other"]
    came_at = {one.instance.study_instance_uid: one.at for one in sorted(to_ground, key=lambda one: one.at)}
    before = dict(studies)
    jobs = take_up(connection, studies, came_at, quiet_period)
    revised = [
        one.instance
        for one in to_ground
        if studies[one.instance.study_instance_uid].revision != before[one.instance.study_instance_uid].revision
    ]
    _revise(connection, revised, studies)
    recorded = [_recorded(one, before, jobs) for one in new]
    _add_events(connection, zip(new, recorded, strict=True))
    for one in to_ground:
        if one.instance.role == "report":
            for uid in sorted(one.instance.evidence_studies):
                _refer(connection, one, uid, studies, quiet_period)
    return recorded


def _recorded(arrival: Arrival, before: Studies, jobs: Mapping[str, tuple[int, int]]) -> Recorded:
    uid = arrival.instance.study_instance_uid
    if arrival.instance.role == "other":
        return Recorded("new", None, before[uid].revision)
    return Recorded("new", *jobs[uid])


def _revise(connection: Connection, instances: Iterable[Instance], studies: Studies) -> None:
    for instance in instances:
        connection.execute(
            update(InstanceRow)
            .where(InstanceRow.sop_instance_uid == instance.sop_instance_uid)
            .values(revision=studies[instance.study_instance_uid].revision)
        )


def _add_events(connection: Connection, filed: Iterable[tuple[Arrival, Recorded]]) -> None:
    events = [
        {
            "study_instance_uid": one.instance.study_instance_uid,
            "job_id": recorded.job_id,
            "at": one.at,
            "event": "instance filed",
            "detail": f"{_how(one)}: {one.instance.sop_instance_uid}",
        }
        for one, recorded in filed
    ]
    add_events(connection, events)


def _how(arrival: Arrival) -> str:
    modality = arrival.instance.modality
    return (
        f"{modality}, not to be grounded"
        if arrival.instance.role == "other"
        else f"{modality} from {arrival.calling_ae_title}"
    )


def _refer(connection: Connection, report: Arrival, uid: str, studies: Studies, quiet_period: timedelta) -> None:
    """Link a report to a study that it names, and take that one up if the report counts for it as it is now.

    The link stays in any case: the images may come, or be corrected, later.
    """
    instance, study = report.instance, studies.get(uid)
    revision = study.revision if study is not None else 1
    if study is not None and instance in add_referred(_instances_in(connection, uid), [instance]):
        job_id, revision = take_up(connection, studies, {uid: report.at}, quiet_period)[uid]
        detail = f"a report in study {instance.study_instance_uid} is about this one: {instance.sop_instance_uid}"
        event = {"study_instance_uid": uid, "job_id": job_id, "at": report.at, "event": "report referred"}
        add_events(connection, [event | {"detail": detail}])
    link = {"sop_instance_uid": instance.sop_instance_uid, "study_instance_uid": uid, "revision": revision}
    insert_new(connection, ReportReferenceRow, [link])


def _instances_in(connection: Connection, study_instance_uid: str) -> list[Instance]:
    statement = select(InstanceRow.facts).where(InstanceRow.study_instance_uid == study_instance_uid)
    return [Instance.from_facts(facts) for facts in connection.scalars(statement)]


# key_share: rows that only refer to the study (events of the workers) need not wait for this transaction
_STUDY = table_of(StudyRow).c
_LOCK_STUDIES = KeyedQuestion(
    select(_STUDY.study_instance_uid, _STUDY.revision, _STUDY.patient_id, _STUDY.accession_number)
    .order_by(_STUDY.study_instance_uid)
    .with_for_update(key_share=True),
    _STUDY.study_instance_uid,
)


def _lock_studies(connection: Connection, arrivals: Sequence[Arrival]) -> Studies:
    """Lock the studies of instances, which are made if need be, and those known ones that these are about.

    In one order of their UIDs, whoever asks: two reports about each other's studies do not wait for one another. What
    is inserted is locked by that, so that nothing is waited for with others locked; where one transaction alone writes
    at a time (SQLite), nothing is waited for at all, and what is there is asked first, which is what is usual.
    """
    made = _studies_of(arrivals)
    wanted = made.keys() | {uid for one in arrivals for uid in one.instance.evidence_studies}
    studies = _lock_known(connection, wanted, made) if connection.dialect.name == "sqlite" else {}
    rows = [{"study_instance_uid": uid, "revision": 1} | made[uid] for uid in sorted(made.keys() - studies)]
    for row in insert_new(connection, StudyRow, rows):
        studies[row.study_instance_uid] = LockedStudy(row.study_instance_uid, 1, is_new=True)
    others = wanted - studies.keys()
    return studies | _lock_known(connection, others, made)


def _studies_of(arrivals: Iterable[Arrival]) -> dict[str, dict[str, Any]]:
    """Return of each study of instances what these say of it."""
    made: dict[str, dict[str, Any]] = {}
    for one in arrivals:
        values = made.setdefault(one.instance.study_instance_uid, {"patient_id": "", "accession_number": ""})
        values["patient_id"] = values["patient_id"] or one.instance.patient_id[:64]
        values["accession_number"] = values["accession_number"] or one.instance.accession_number[:64]
        values.setdefault("created_at", one.at)
    return made


def _lock_known(connection: Connection, uids: Collection[str], made: Mapping[str, Mapping[str, str]]) -> Studies:
    """Lock those of the studies that there are, and fill in what instances say of them."""
    studies: Studies = {}
    for row in _LOCK_STUDIES.ask(connection, sorted(uids)):
        studies[row.study_instance_uid] = LockedStudy(row.study_instance_uid, row.revision)
        if given := made.get(row.study_instance_uid):
            _fill_in(connection, given, row)
    return studies


def _fill_in(connection: Connection, given: Mapping[str, str], held: Any) -> None:
    """Set the texts of a study that no instance has given so far."""
    texts = {
        name: given[name] for name in ("patient_id", "accession_number") if given[name] and not getattr(held, name)
    }
    if texts:
        of_study = StudyRow.study_instance_uid == held.study_instance_uid
        connection.execute(update(StudyRow).where(of_study).values(texts))


def _insert_instances(connection: Connection, arrivals: Sequence[Arrival], studies: Studies) -> set[str]:
    """Insert the rows, and return the SOP Instance UIDs of those that there were none of."""
    rows = [
        {
            "sop_instance_uid": one.instance.sop_instance_uid,
            "study_instance_uid": one.instance.study_instance_uid,
            "series_instance_uid": one.instance.series_instance_uid,
            "sop_class_uid": one.instance.sop_class_uid,
            "transfer_syntax_uid": one.instance.transfer_syntax_uid,
            "modality": one.instance.modality[:16],
            "revision": studies[one.instance.study_instance_uid].revision,
            "storage_key": one.stored.key,
            "sha256": one.stored.sha256,
            "size_bytes": one.stored.size,
            "calling_ae_title": one.calling_ae_title[:16],
            "received_at": one.at,
            "facts": one.instance.facts(),
        }
        for one in arrivals
    ]
    return {row.sop_instance_uid for row in insert_new(connection, InstanceRow, rows)}


def _note_repeat(session: Session, arrival: Arrival) -> Recorded:
    stored, now = arrival.stored, arrival.at
    statement = select(InstanceRow).where(InstanceRow.sop_instance_uid == arrival.instance.sop_instance_uid)
    held = session.scalars(statement).one()
    if held.sha256 == stored.sha256:
        held.storage_key = stored.key
        if held.removed_at is not None:  # by the retention rule, which begins to count anew
            held.removed_at, held.received_at = None, now
            _add_event(
                session, held, now, "instance filed again", f"its bytes had been removed: {held.sop_instance_uid}"
            )
        return Recorded("repeat", None, held.revision)
    is_new = insert_or_ignore(
        session, ConflictRow, sop_instance_uid=held.sop_instance_uid, sha256=stored.sha256, storage_key=stored.key,
        calling_ae_title=arrival.calling_ae_title[:16], received_at=now,
    )  # fmt: skip
    if is_new:
        detail = f"{held.sop_instance_uid} came with other bytes from {arrival.calling_ae_title}; they are kept aside"
        _add_event(session, held, now, "conflict", detail)
    return Recorded("conflict", None, held.revision)


def _add_event(session: Session, held: InstanceRow, now: datetime, event: str, detail: str) -> None:
    session.add(EventRow(study_instance_uid=held.study_instance_uid, at=now, event=event, detail=detail))
