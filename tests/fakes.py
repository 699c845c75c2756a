"""The three seams of the node in tests: a grounder, a PACS and a clock. There are no other fakes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, evt
from pynetdicom.events import Event

from grounding.types import (
    Box,
    Concept,
    Finding,
    Grounding,
    Image,
    ModelIdentity,
    ReportText,
    ScoredBox,
    Site,
)

STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
GSPS_STORAGE = "1.2.840.10008.5.1.4.1.1.11.1"
COMPREHENSIVE_SR = "1.2.840.10008.5.1.4.1.1.88.33"
COMPREHENSIVE_3D_SR = "1.2.840.10008.5.1.4.1.1.88.34"
VERIFICATION = "1.2.840.10008.1.1"
RESULT_CLASSES = (COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR, GSPS_STORAGE)


class FrozenClock:
    """A clock that stands still until it is moved."""

    def __init__(self, at: datetime = datetime(2026, 1, 2, 12, tzinfo=UTC)) -> None:
        self.at = at

    def __call__(self) -> datetime:
        return self.at

    def move(self, **by: float) -> None:
        """Move on, as `move(seconds=5)`."""
        self.at += timedelta(**by)


@dataclass
class FakeGrounder:
    """A grounder that finds the first words of every sentence in the lower right quarter of the first image.

    `localizes` False: it finds none of them. `corner`: in the quarter that begins at this share of the width. `error`
    is raised instead of answering. `calls` counts, `seen` are the images of the last one.
    """

    localizes: bool = True
    corner: float = 0.5
    error: Exception | None = None
    identity: ModelIdentity = field(default_factory=lambda: ModelIdentity("fake", "1", "0" * 64))
    calls: int = 0
    seen: list[Image] = field(default_factory=list)

    def ground(self, images: Sequence[Image], report: ReportText) -> Grounding:
        """Return one finding per sentence."""
        self.calls += 1
        self.seen = list(images)
        if self.error is not None:
            raise self.error
        rows, columns = images[0].shape
        left = columns * self.corner
        boxes = (ScoredBox(Box(left, rows / 2, left + columns / 2, rows), 0.9),) if self.localizes else ()
        findings = tuple(
            Finding(
                phrase=report.text[span.start : span.end],
                source=span,
                image=0,
                boxes=boxes,
                localized=self.localizes,
                negated=False,
                finding=Concept("60046008", "SCT", "Pleural effusion"),
                site=Site(Concept("39607008", "SCT", "Lung"), "left"),
                uncertainty=0.1,
            )
            for span in report.sentences
        )
        return Grounding(self.identity, findings)


class FakePacs:
    """A Storage SCP on loopback that counts what it takes and answers queries for it.

    Knobs, all changeable while it runs: `classes` it accepts, `status` it answers a C-STORE with, `refused` (SOP class
    to the status it is refused with; `refusals` counts), `queryable`, `find_status` it answers a C-FIND with, and
    `shows` (whether a query finds what was stored). Use as a context manager, or `start` and `stop`.
    """

    def __init__(self, ae_title: str = "ARCHIVE", classes: Sequence[str] = RESULT_CLASSES) -> None:
        self.ae_title, self.classes = ae_title, tuple(classes)
        self.status, self.queryable, self.shows = 0x0000, True, True
        self.find_status = 0x0000
        self.refused: dict[str, int] = {}
        self.refusals: Counter[str] = Counter()
        self.port = 0
        self.datasets: dict[str, Dataset] = {}
        self.stores: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._server: Any = None

    def start(self) -> FakePacs:
        """Listen; on the same port again after a stop."""
        ae = AE(ae_title=self.ae_title)
        ae.require_called_aet = True
        for uid in (*self.classes, VERIFICATION, *([STUDY_ROOT_FIND] if self.queryable else [])):
            ae.add_supported_context(uid)
        handlers: list[Any] = [(evt.EVT_C_STORE, self._handle_store), (evt.EVT_C_FIND, self._handle_find)]
        self._server = ae.start_server(("127.0.0.1", self.port), block=False, evt_handlers=handlers)
        self.port = self._server.server_address[1]
        return self

    def stop(self) -> None:
        """Listen no more; what was stored is kept."""
        if self._server is not None:
            self._server.shutdown()
            self._server = None

    def __enter__(self) -> FakePacs:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def of_class(self, *sop_class_uids: str, study: str | None = None) -> list[Dataset]:
        """Return what was stored of these classes (and this Study Instance UID)."""
        with self._lock:
            held = list(self.datasets.values())
        return [ds for ds in held if ds.SOPClassUID in sop_class_uids and study in (None, ds.StudyInstanceUID)]

    def structured_reports(self, study: str | None = None) -> list[Dataset]:
        """Return the SRs that were stored."""
        return self.of_class(COMPREHENSIVE_3D_SR, COMPREHENSIVE_SR, study=study)

    def _handle_store(self, event: Event) -> int:
        sop_class_uid = event.request.AffectedSOPClassUID
        if sop_class_uid in self.refused:
            self.refusals[sop_class_uid] += 1
            return self.refused[sop_class_uid]
        if self.status == 0x0000 or self.status >> 12 == 0xB:
            ds = event.dataset
            ds.file_meta = event.file_meta
            with self._lock:
                self.datasets[ds.SOPInstanceUID] = ds
                self.stores[ds.SOPInstanceUID] += 1
        return self.status

    def _handle_find(self, event: Event) -> Iterator[tuple[int, Dataset | None]]:
        if self.find_status:
            yield self.find_status, None
            return
        keys = event.identifier
        with self._lock:
            held = self.datasets.get(keys.SOPInstanceUID)
        if self.shows and held is not None and held.SeriesInstanceUID == keys.SeriesInstanceUID:
            yield 0xFF00, keys
