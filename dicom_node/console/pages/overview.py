"""The first page: what arrives, waits and fails; who was in touch last; the processes, the disk, the last day."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse
from sqlalchemy.orm import Session

from dicom_node.config import Settings
from dicom_node.console.charts import Chart, draw_chart
from dicom_node.console.filters import Query as Asked
from dicom_node.console.health import check_bell, check_scheduler, disk_limit, living, read_disk
from dicom_node.console.site import Here
from dicom_node.console.visitors import Viewer
from dicom_node.console.web import render
from dicom_node.objects import spool_of
from dicom_node.queries import (
    DestinationCounts,
    DestinationState,
    Hour,
    PeerContact,
    ProcessState,
    count_by_hour,
    count_jobs,
    count_quarantined,
    destination_counts,
    destination_states,
    list_processes,
    longest_waiting,
    peer_contacts,
)

router = APIRouter(include_in_schema=False)

LATELY = timedelta(days=1)

QUEUES = (
    ("RECEIVING", "Arriving", "image or report is missing, or the quiet period is not over"),
    ("COMPLETE", "Waiting for the model", "queue gpu"),
    ("GROUNDED", "Results to be written", "queue io"),
    ("WRITTEN", "On their way to destinations", "queue io, one lane per destination"),
)
"""State, what that means, and who takes it on."""


@dataclass(frozen=True, slots=True)
class Disk:
    """A file system: its share in use and the share at which it counts as low, both in [0, 1]."""

    name: str
    folder: str
    free: int
    total: int
    limit: int

    @property
    def used(self) -> float:
        """The share in use."""
        return 1.0 - self.free / self.total if self.total else 0.0

    @property
    def low_from(self) -> float:
        """The share in use from which on it counts as low."""
        return max(0.0, 1.0 - self.limit / self.total) if self.total else 1.0

    @property
    def is_low(self) -> bool:
        """Whether administrators are told that it is low."""
        return self.free < self.limit


@dataclass(frozen=True, slots=True)
class Fares:
    """How a destination fares: `state` is ok, held, down or unknown (never tried)."""

    name: str
    where: str
    state: str
    contact: DestinationState
    counts: DestinationCounts

    @property
    def waiting(self) -> int:
        """Deliveries under way."""
        return sum(self.counts.open.values())


@dataclass(frozen=True, slots=True)
class Process:
    """A process, and the models that it has loaded, each with its device."""

    role: str
    host: str
    pid: int
    version: str
    started_at: datetime
    seen_at: datetime
    state: str
    models: tuple[str, ...]


@router.get("/")
def show_overview(request: Request, here: Here, visitor: Viewer, query: Annotated[Asked, Query()]) -> HTMLResponse:
    """Show how the node fares."""
    now, settings = here.clock(), here.settings
    with here.sessions() as session:
        counts, waiting = count_jobs(session), longest_waiting(session)
        hours = count_by_hour(session, now)
        fares = read_fares(session, settings, now)
        peers = list_peers(settings, peer_contacts(session))
        states, _ = list_processes(session)
        quarantined = count_quarantined(session, now - LATELY)
    return render(
        request, "overview.html", counts=counts, hours=hours, charts=draw_hours(hours), fares=fares, peers=peers,
        processes=list(show_processes(states, now)), disks=list(read_disks(settings)), quarantined=quarantined,
        checks=[check_scheduler(states, now), check_bell(states, now)],
        queues=[(state, name, note, counts.get(state, 0), _age(waiting.get(state), now))
                for state, name, note in QUEUES],
    )  # fmt: skip


def draw_hours(hours: Sequence[Hour]) -> tuple[Chart, ...]:
    """Return the charts of the last hours."""
    return (
        draw_chart("Instances received", "received", [(one.at, one.received) for one in hours]),
        draw_chart("Jobs delivered", "delivered", [(one.at, one.delivered) for one in hours]),
        draw_chart("Jobs failed", "failed", [(one.at, one.failed) for one in hours]),
    )


def read_fares(session: Session, settings: Settings, now: datetime) -> list[Fares]:
    """Return how each configured destination fares."""
    contacts = destination_states(session)
    return [
        Fares(
            one.name, f"{one.ae_title.strip()} at {one.host}:{one.port}",
            state_of(contact := contacts.get(one.name, DestinationState()), now), contact,
            destination_counts(session, one.name, now - LATELY),
        )
        for one in settings.destinations
    ]  # fmt: skip


def state_of(contact: DestinationState, now: datetime) -> str:
    """Return how a destination is, by its last contacts."""
    if contact.failures:
        return "held" if contact.hold_until and contact.hold_until > now else "down"
    return "ok" if contact.last_contact_at else "unknown"


def list_peers(settings: Settings, contacts: dict[str, PeerContact]) -> list[tuple[str, str, PeerContact]]:
    """Return AE title, address and last contacts of the configured peers, then of others that called."""
    known = {peer.ae_title.strip(): peer.address for peer in settings.receiver.peers}
    listed = [(title, address, contacts.get(title, PeerContact())) for title, address in known.items()]
    others = [(title, "not a peer", contact) for title, contact in contacts.items() if title not in known]
    return [*listed, *sorted(others)]


def show_processes(states: Sequence[ProcessState], now: datetime) -> Iterator[Process]:
    """Yield the processes with what they say of their model."""
    for one in states:
        models = tuple(f"{key[1]} {key[2]} on {key[4]}" for key in one.samples if key[0] == "knowmvg_model_info")
        state = "stopped" if one.stopped_at else "ok" if living(one, now) else "down"
        facts = one.facts
        yield Process(facts.role, facts.host, facts.pid, facts.version, facts.started_at, one.seen_at, state, models)


def read_disks(settings: Settings) -> Iterator[Disk]:
    """Yield the disks of storage and data folder, once where they are one."""
    seen = set()
    for name, folder in (("Storage", spool_of(settings)), ("Data folder", settings.node.data_dir)):
        usage = read_disk(folder)
        if usage is not None and usage not in seen:
            seen.add(usage)
            yield Disk(name, str(folder), usage.free, usage.total, disk_limit(settings))


def _age(since: datetime | None, now: datetime) -> float | None:
    return max((now - since).total_seconds(), 0.0) if since else None
