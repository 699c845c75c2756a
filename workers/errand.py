"""One try at a dispatch: what it is given, and what is kept of it as it goes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sqlalchemy.orm import Session

from dicom_node import queries
from dicom_node.config import DestinationSettings
from dicom_node.queries import Delivery, DispatchFacts
from dicom_node.scu import Part
from workers.resources import Resources


@dataclass(frozen=True)
class Errand:
    """A claimed dispatch, its destination, and the parts of the job's results by name."""

    dispatch: DispatchFacts
    destination: DestinationSettings
    parts: dict[str, Part]
    resources: Resources

    def load(self) -> tuple[Delivery, ...]:
        """Return the deliveries as they are now: reports of storage commitment change them at any time."""
        with self.resources.sessions() as session:
            return queries.load_deliveries(session, self.dispatch.job_id, self.destination.name)

    def keep(self, deliveries: Iterable[Delivery]) -> None:
        """Keep what became of deliveries, at once."""
        job_id, now, kept = self.dispatch.job_id, self.resources.clock(), tuple(deliveries)

        def mark(session: Session) -> None:
            queries.lock_job(session, job_id)
            for one in kept:
                queries.mark_delivery(session, job_id, one, now)

        self.resources.keep(mark)
