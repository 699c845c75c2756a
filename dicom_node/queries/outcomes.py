"""What the steps of a job make and need: its study's instances, the grounding, the results, the deliveries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import delete, select, text, update
from sqlalchemy.orm import Session

from dicom_node.instance import Instance
from dicom_node.queries.inserting import insert_or_ignore
from dicom_node.selection import add_referred
from dicom_node.tables import (
    SR_TAKEN,
    DeliveryRow,
    FindingRow,
    InstanceRow,
    JobRow,
    ReportReferenceRow,
    ResultRow,
)
from grounding.types import Box, Concept, Finding, Grounding, ModelIdentity, ScoredBox, Site, Span

TAKEN = ("STORED", "DELIVERED")
"""States of a delivery whose instance the archive took, confirmed or not."""


@dataclass(frozen=True, slots=True)
class StoredInstance:
    """An instance, where its bytes are, and the revision of the study that it came with."""

    instance: Instance
    key: str
    sha256: str
    revision: int
    received_at: datetime
    removed_at: datetime | None = None
    calling_ae_title: str = ""


@dataclass(frozen=True, slots=True)
class StoredResult:
    """A result in storage. `part` is "sr" or "gsps:<SOP Instance UID of the image>"."""

    part: str
    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    key: str
    sha256: str


@dataclass(frozen=True, slots=True)
class PreviousResult:
    """The SR of an earlier revision that an archive holds: the predecessor of the one to be written."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    study_instance_uid: str
    revision: int


def instances_of(session: Session, study_instance_uid: str) -> tuple[StoredInstance, ...]:
    """Return all instances of a study, of all revisions, in the order of arrival, and the reports of other studies that
    count for it (`selection.add_referred`)."""
    rows = instance_rows(session, study_instance_uid)
    held = [
        StoredInstance(
            Instance.from_facts(row.facts),
            row.storage_key,
            row.sha256,
            revision,
            row.received_at,
            row.removed_at,
            row.calling_ae_title,
        )
        for row, revision in rows
    ]
    own = [one.instance for one in held if one.instance.study_instance_uid == study_instance_uid]
    others = [one.instance for one in held if one.instance.study_instance_uid != study_instance_uid]
    counted = {one.sop_instance_uid for one in add_referred(own, others)}
    return tuple(one for one in held if one.instance.sop_instance_uid in counted)


def instance_rows(session: Session, study_instance_uid: str) -> list[tuple[InstanceRow, int]]:
    """Return the rows of a study's instances and of all reports that name it, each with the revision of this study that
    it came with, in the order of arrival."""
    own = select(InstanceRow).where(InstanceRow.study_instance_uid == study_instance_uid)
    about = (
        select(InstanceRow, ReportReferenceRow.revision)
        .join(ReportReferenceRow, ReportReferenceRow.sop_instance_uid == InstanceRow.sop_instance_uid)
        .where(ReportReferenceRow.study_instance_uid == study_instance_uid)
    )
    rows = [(row, row.revision) for row in session.scalars(own)]
    rows += [(row, revision) for row, revision in session.execute(about)]
    return sorted(rows, key=lambda pair: (pair[0].received_at, pair[0].sop_instance_uid))


def save_grounding(session: Session, job_id: int, grounding: Grounding, images: Sequence[str]) -> None:
    """Keep the findings and the model of a job, in place of any earlier ones.

    `images` are SOP Instance UIDs in the order of `Finding.image`: those of the job's selection.
    """
    session.execute(delete(FindingRow).where(FindingRow.job_id == job_id))
    session.execute(update(JobRow).where(JobRow.job_id == job_id).values(model=asdict(grounding.model)))
    session.add_all(
        _finding_row(job_id, number, finding, images[finding.image])
        for number, finding in enumerate(grounding.findings, start=1)
    )


def load_grounding(session: Session, job_id: int) -> tuple[Grounding, tuple[str, ...]]:
    """Return what was saved, and the SOP Instance UIDs of the images in the order of `Finding.image`."""
    job = session.get_one(JobRow, job_id)
    if job.model is None or job.selection is None:
        raise LookupError(f"job {job_id} has no grounding yet")
    images = tuple(job.selection["images"])
    statement = select(FindingRow).where(FindingRow.job_id == job_id).order_by(FindingRow.number)
    findings = tuple(_finding(row, images.index(row.sop_instance_uid)) for row in session.scalars(statement))
    return Grounding(ModelIdentity(**job.model), findings), images


def save_results(session: Session, job_id: int, results: Sequence[StoredResult], now: datetime) -> None:
    """Keep where the results of a job are, in place of any earlier ones."""
    session.execute(delete(ResultRow).where(ResultRow.job_id == job_id))
    for result in results:
        insert_or_ignore(
            session,
            ResultRow,
            sop_instance_uid=result.sop_instance_uid,
            job_id=job_id,
            part=result.part,
            sop_class_uid=result.sop_class_uid,
            series_instance_uid=result.series_instance_uid,
            storage_key=result.key,
            sha256=result.sha256,
            created_at=now,
        )


def load_results(session: Session, job_id: int) -> tuple[StoredResult, ...]:
    """Return the results of a job, by part."""
    statement = select(ResultRow).where(ResultRow.job_id == job_id).order_by(ResultRow.part, ResultRow.sop_class_uid)
    return tuple(
        StoredResult(
            row.part, row.sop_class_uid, row.sop_instance_uid, row.series_instance_uid, row.storage_key, row.sha256
        )
        for row in session.scalars(statement)
    )


def previous_results(session: Session, study_instance_uid: str, before_revision: int) -> tuple[PreviousResult, ...]:
    """Return the SR of the latest earlier revision that an archive took, whatever became of its job, in the classes
    that archives took it in, the preferred one first; none if there is none."""
    statement = (
        select(ResultRow, JobRow.revision)
        .join(JobRow, JobRow.job_id == ResultRow.job_id)
        .join(DeliveryRow, DeliveryRow.sop_instance_uid == ResultRow.sop_instance_uid)
        .where(
            JobRow.study_instance_uid == study_instance_uid,
            JobRow.revision < before_revision,
            ResultRow.part == "sr",
            DeliveryRow.state.in_(TAKEN),
        )
        .order_by(JobRow.revision.desc(), ResultRow.sop_class_uid.desc())
        .distinct()
    )
    taken = [
        PreviousResult(row.sop_class_uid, row.sop_instance_uid, row.series_instance_uid, study_instance_uid, revision)
        for row, revision in session.execute(statement)
    ]
    return tuple(one for one in taken if one.revision == taken[0].revision)


def accepted_sr_class(session: Session, destination: str) -> str | None:
    """Return the SOP class of the SR that a destination took last; None if it has taken none."""
    last = (
        select(DeliveryRow.sop_instance_uid)
        .where(DeliveryRow.destination == destination, text(SR_TAKEN))
        .order_by(DeliveryRow.updated_at.desc(), DeliveryRow.id.desc())
        .limit(1)
    )
    of_last = ResultRow.sop_instance_uid == last.scalar_subquery()
    return session.scalar(select(ResultRow.sop_class_uid).where(of_last))


def _finding_row(job_id: int, number: int, finding: Finding, sop_instance_uid: str) -> FindingRow:
    source, site = finding.source, finding.site
    return FindingRow(
        job_id=job_id,
        number=number,
        sop_instance_uid=sop_instance_uid,
        phrase=finding.phrase,
        source_start=source.start if source else None,
        source_end=source.end if source else None,
        boxes=[{"xyxy": list(scored.box.xyxy), "score": scored.score} for scored in finding.boxes],
        localized=finding.localized,
        negated=finding.negated,
        finding=asdict(finding.finding) if finding.finding else None,
        site=asdict(site.concept) | {"laterality": site.laterality} if site else None,
        uncertainty=finding.uncertainty,
    )


def _finding(row: FindingRow, image: int) -> Finding:
    span = None
    if row.source_start is not None and row.source_end is not None:
        span = Span(row.source_start, row.source_end)
    return Finding(
        phrase=row.phrase,
        source=span,
        image=image,
        boxes=tuple(ScoredBox(Box(*box["xyxy"]), box["score"]) for box in row.boxes),
        localized=row.localized,
        negated=row.negated,
        finding=Concept(**row.finding) if row.finding else None,
        site=_site(row.site) if row.site else None,
        uncertainty=row.uncertainty,
    )


def _site(value: dict[str, Any]) -> Site:
    return Site(Concept(value["code"], value["scheme"], value["meaning"]), value["laterality"])
