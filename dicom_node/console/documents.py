"""The JSON of the API, as its description shows it: the same that `--json` prints on the command line."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from dicom_node.config import Role
from dicom_node.delivery import DispatchState
from dicom_node.study import State

Instant = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
MAX_NUMBER = 2**31 - 1
"""What the database's integers hold."""

Number = Annotated[int, Field(ge=1, le=MAX_NUMBER)]


class Document(BaseModel):
    """A JSON object; one with other keys than it says is a bug, and is not sent."""

    model_config = ConfigDict(extra="forbid")


class Refusal(Document):
    """Why a request is refused."""

    error: str


class Job(Document):
    """A job in a list: one revision of one study."""

    job_id: int
    study_instance_uid: str
    revision: int
    state: State
    outcome: str | None
    priority: str
    failure: str | None
    attempts: int
    created_at: Instant
    updated_at: Instant


class Event(Document):
    """What happened to a job."""

    at: Instant
    event: str
    detail: str


class Instance(Document):
    """An instance that was received for a study, and what became of it in this job."""

    sop_class_uid: str
    sop_instance_uid: str
    series_instance_uid: str
    transfer_syntax_uid: str
    modality: str
    revision: int
    calling_ae_title: str
    received_at: Instant
    size_bytes: int
    storage_key: str
    use: str | None


class Conflict(Document):
    """Other bytes that came under a UID that was held."""

    sop_instance_uid: str
    sha256: str
    storage_key: str
    calling_ae_title: str
    received_at: Instant


class Report(Document):
    """The report that was used."""

    sop_instance_uid: str | None


class Model(Document):
    """The model that grounded a job."""

    name: str
    version: str
    sha256: str


class Span(Document):
    """Characters of the report's text."""

    start: int
    end: int


class Box(Document):
    """Corners in pixels of the image as stored; (0, 0) is the outer corner of the first pixel."""

    xyxy: Annotated[list[float], Field(min_length=4, max_length=4)]
    score: float


class Concept(Document):
    """A coded concept."""

    code: str
    scheme: str
    meaning: str


class Site(Concept):
    """A coded place in the body."""

    laterality: str | None


class Finding(Document):
    """A phrase of the report, and where it was found: research, unverified."""

    phrase: str
    source: Span | None
    image: int | None
    sop_instance_uid: str
    boxes: list[Box]
    localized: bool
    negated: bool
    finding: Concept | None
    site: Site | None
    uncertainty: float | None


class Result(Document):
    """A result as written to the storage."""

    part: str
    sop_class: str
    sop_instance_uid: str
    series_instance_uid: str
    storage_key: str


class Part(Document):
    """A part of a job's results on its way to a destination."""

    destination: str
    part: str
    state: str
    sop_instance_uid: str | None
    status: int | None
    confirmed_by: str | None
    detail: str | None


class Way(Document):
    """The way of a job's results to a destination."""

    dispatch_id: int
    destination: str
    state: DispatchState
    attempts: int
    again_at: Instant | None
    failure: str | None


class Held(Document):
    """A result that an archive holds."""

    destination: str
    part: str
    sop_instance_uid: str | None


class Revision(Document):
    """A job of the same study."""

    job_id: int
    revision: int
    state: State
    outcome: str | None
    delivered: list[Held]


class JobInFull(Job):
    """A job with everything that is known of it."""

    timeline: list[Event]
    timings: dict[str, float]
    instances: list[Instance]
    conflicts: list[Conflict]
    warnings: list[str]
    report: Report | None
    model: Model | None
    findings: list[Finding]
    results: list[Result]
    deliveries: list[Part]
    dispatches: list[Way]
    revisions: list[Revision]


class Delivery(Document):
    """A delivery in a list: the results of one job to one destination."""

    dispatch_id: int
    job_id: int
    study_instance_uid: str
    destination: str
    state: DispatchState
    attempts: int
    failure: str | None
    again_at: Instant | None
    updated_at: Instant


class Numbers(Document):
    """Jobs or deliveries to be changed."""

    ids: Annotated[list[Number], Field(min_length=1, max_length=1000)]


class RefusedNumber(Document):
    """One that was not changed."""

    id: int
    error: str


class Changed(Document):
    """What became of a change to many: each is changed, or refused, for itself."""

    changed: list[int]
    refused: list[RefusedNumber]


class Where(Document):
    """Where results are sent again to; null: to every destination."""

    destination: str | None = None


class Destination(Document):
    """An archive that results are sent to, and how it fares."""

    name: str
    protocol: str
    ae_title: str
    host: str
    port: int
    tls: bool
    failures: int
    hold_until: Instant | None
    last_contact_at: Instant | None
    last_error: str | None
    last_error_at: Instant | None
    under_way: int
    dead: int


class Peer(Document):
    """A sender that is let in. `port`: where it takes reports of storage commitment, and answers an echo."""

    ae_title: str
    address: str
    port: int | None
    tls: bool
    certificate: str | None


class Echo(Document):
    """Whether somebody answers C-ECHO."""

    ok: bool
    detail: str


class AuditEntry(Document):
    """An event of the audit trail."""

    id: int
    process: str
    at: Instant
    sent_at: Instant | None
    kind: str
    success: bool
    actor: str
    actor_address: str
    peer: str
    peer_address: str
    study_instance_uid: str
    patient_id: str
    sop_classes: dict[str, int]
    reason: str


class Me(Document):
    """Who asks. `csrf` goes into the header X-CSRF-Token of changes that come with a cookie; tokens need none."""

    name: str
    role: Role
    csrf: str


Configuration = dict[str, Any]
"""The effective configuration; secrets are masked."""
