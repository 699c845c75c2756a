"""The three seams of the node in tests: a grounder, a PACS and a clock. There are no other fakes."""

from __future__ import annotations

import ssl
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from pydicom.dataset import Dataset
from pynetdicom import AE, DEFAULT_TRANSFER_SYNTAXES, evt
from pynetdicom.events import Event
from pynetdicom.presentation import build_role

from dicom_node.commitment import NO_SUCH_INSTANCE, PUSH_MODEL, PUSH_MODEL_INSTANCE, make_report
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
from tests.senders import Sender

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
    is raised instead of answering. `calls` counts, `seen` are the images of the last one; `batches` are the numbers of
    studies that were asked at once.
    """

    localizes: bool = True
    corner: float = 0.5
    error: Exception | None = None
    identity: ModelIdentity = field(default_factory=lambda: ModelIdentity("fake", "1", "0" * 64))
    calls: int = 0
    seen: list[Image] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)

    def prepare(self, images: Sequence[Image], report: ReportText) -> tuple[Sequence[Image], ReportText]:
        """Return what `ground` takes."""
        return images, report

    def ground_prepared(self, studies: Sequence[tuple[Sequence[Image], ReportText]]) -> list[Grounding]:
        """Ground each."""
        self.batches.append(len(studies))
        return [self.ground(images, report) for images, report in studies]

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
    """A Storage SCP on loopback that counts what it takes, answers queries for it, and commits to it.

    Knobs, all changeable while it runs: `classes` it accepts, in `syntaxes`, `status` it answers a C-STORE with,
    `refused` (SOP class to the status it is refused with; `refusals` counts), `queryable`, `find_status` it answers a
    C-FIND with, and `shows` (whether a query finds what was stored). `commits`: None (no storage commitment), or how it
    reports: "same" or "new" association (to `report_port`), "never"; `commit_status` of its N-ACTION response, `loses`
    (how many instances of each request it has lost). `keeps` False: it answers success and keeps nothing. `misbehave`
    is called with the event of every C-STORE before anything else, and may return a status or abort; `misread` with
    that of every C-FIND. Use as a context manager, or `start` and `stop`.
    """

    def __init__(
        self,
        ae_title: str = "ARCHIVE",
        classes: Sequence[str] = RESULT_CLASSES,
        syntaxes: Sequence[str] = DEFAULT_TRANSFER_SYNTAXES,
    ) -> None:
        self.ae_title, self.classes, self.syntaxes = ae_title, tuple(classes), list(syntaxes)
        self.status, self.queryable, self.shows = 0x0000, True, True
        self.find_status = 0x0000
        self.refused: dict[str, int] = {}
        self.refusals: Counter[str] = Counter()
        self.commits: str | None = None
        self.commit_status, self.loses, self.keeps = 0x0000, 0, True
        self.report_port, self.report_title = 0, "KNOWMVG"
        self.transactions: list[str] = []
        self.reports: list[int | None] = []
        self.misbehave: Callable[[Event], int | None] = lambda event: None
        self.misread: Callable[[Event], None] = lambda event: None
        self.tls: ssl.SSLContext | None = None
        self.port = 0
        self.datasets: dict[str, Dataset] = {}
        self.stores: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._server: Any = None

    def start(self) -> FakePacs:
        """Listen, unless it does already; on the same port again after a stop."""
        if self._server is not None:
            return self
        ae = AE(ae_title=self.ae_title)
        ae.require_called_aet = True
        for uid in (*self.classes, VERIFICATION, *([STUDY_ROOT_FIND] if self.queryable else [])):
            ae.add_supported_context(uid, self.syntaxes)
        if self.commits is not None:
            ae.add_supported_context(PUSH_MODEL)
        handlers: list[Any] = [
            (evt.EVT_C_STORE, self._handle_store),
            (evt.EVT_C_FIND, self._handle_find),
            (evt.EVT_N_ACTION, self._handle_action),
        ]
        self._server = ae.start_server(
            ("127.0.0.1", self.port), block=False, evt_handlers=handlers, ssl_context=self.tls
        )
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
        if (status := self.misbehave(event)) is not None:
            return status
        if sop_class_uid in self.refused:
            self.refusals[sop_class_uid] += 1
            return self.refused[sop_class_uid]
        if self.status == 0x0000 or self.status >> 12 == 0xB:
            ds = event.dataset
            ds.file_meta = event.file_meta
            with self._lock:
                if self.keeps:
                    self.datasets[ds.SOPInstanceUID] = ds
                self.stores[ds.SOPInstanceUID] += 1
        return self.status

    def _handle_find(self, event: Event) -> Iterator[tuple[int, Dataset | None]]:
        self.misread(event)
        if self.find_status:
            yield self.find_status, None
            return
        keys = event.identifier
        with self._lock:
            held = self.datasets.get(keys.SOPInstanceUID)
        if self.shows and held is not None and held.SeriesInstanceUID == keys.SeriesInstanceUID:
            yield 0xFF00, keys

    def _handle_action(self, event: Event) -> tuple[int, None]:
        asked = event.action_information
        self.transactions.append(asked.TransactionUID)
        if self.commit_status == 0x0000 and self.commits in ("same", "new"):
            association = event.assoc if self.commits == "same" else None
            threading.Thread(target=self._report, args=(asked, association), daemon=True).start()
        return self.commit_status, None

    def _report(self, asked: Dataset, association: Any) -> None:
        references = [(one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID) for one in asked.ReferencedSOPSequence]
        with self._lock:
            for _, uid in references[: self.loses]:
                self.datasets.pop(uid, None)
            kept = [pair for pair in references if pair[1] in self.datasets]
        failed = {pair: NO_SUCH_INSTANCE for pair in references if pair not in kept}
        event_type, report = make_report(asked.TransactionUID, kept, failed)
        if association is None:
            self.report(event_type, report)
            return
        threading.Event().wait(0.1)
        answer, _ = association.send_n_event_report(report, event_type, PUSH_MODEL, PUSH_MODEL_INSTANCE)
        self.reports.append(answer.get("Status"))

    def report(self, event_type: int, report: Dataset, ae_title: str | None = None) -> int | None:
        """Send a report of storage commitment on a new association; return the status of the answer."""
        ae = Sender(ae_title=ae_title or self.ae_title)
        ae.add_requested_context(PUSH_MODEL)
        roles = [build_role(PUSH_MODEL, scu_role=False, scp_role=True)]
        association = ae.associate("127.0.0.1", self.report_port, ae_title=self.report_title, ext_neg=roles)
        if not association.is_established:
            self.reports.append(None)
            return None
        answer, _ = association.send_n_event_report(report, event_type, PUSH_MODEL, PUSH_MODEL_INSTANCE)
        association.release()
        self.reports.append(answer.get("Status"))
        return self.reports[-1]
