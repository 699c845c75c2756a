"""What the steps and the sweep are given: settings, rows, bytes, time, the model, the archive and the bell."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

from sqlalchemy.orm import Session, sessionmaker

from dicom_node.clock import Clock
from dicom_node.config import Settings
from dicom_node.errors import PermanentError
from dicom_node.logs import log_event
from dicom_node.queries import AWAY_ERRORS, explain
from dicom_node.recorder import Recorder
from dicom_node.scu import Connect
from dicom_node.storage import Storage
from grounding.types import BatchGrounder, ModelError

logger = logging.getLogger(__name__)

LEASE = timedelta(minutes=5)
"""How long a step may take: it is not renewed. Rendering and grounding take seconds, a delivery at most a minute or so
at a destination that hangs. A worker that runs longer ends itself; until then nobody else touches the work."""

RING_AGAIN = timedelta(seconds=30)
"""After so long without a claim a due job is rung for again: a ring was lost, or the queue is long (then the repeated
ring is a no-op)."""

RING_SOON = timedelta(seconds=2)
"""After so long a job is rung for again for which the broker took no ring."""

KEEP_WITHIN_S = 60.0
"""So long what was done is tried to be kept in a database that is away, full or locked."""

KEEP_AGAIN_S = 0.5

T = TypeVar("T")


@dataclass(frozen=True)
class Resources:
    """One process's parts, made by its composition root.

    `ring` rings for a task with a row's number, and tells whether it could. `token` is the lease token of this process,
    and `owners` the folder where the workers of this host show that they live
    (None: workers may be on other hosts, and leases run out by time alone).
    """

    settings: Settings
    sessions: sessionmaker[Session]
    storage: Storage
    clock: Clock
    load_grounder: Callable[[], BatchGrounder]
    connect: Connect
    ring: Callable[[str, int], bool]
    token: str
    owners: Path | None = None
    recorder: Recorder = field(default_factory=Recorder)

    def keep(self, write: Callable[[Session], T]) -> T:
        """Commit what came of some work, by `write`; a database that is away is waited for a while.

        Else the work would have to be done again, after its lease, as that of a worker that died. `write` may be called
        several times, and what it does may have been committed already: compare and set. Raises DBAPIError, or the
        pool's TimeoutError.
        """
        deadline = time.monotonic() + KEEP_WITHIN_S
        while True:
            try:
                with self.sessions.begin() as session:
                    return write(session)
            except AWAY_ERRORS as error:
                if time.monotonic() >= deadline:
                    raise
                log_event(logger, "database unavailable", level=logging.WARNING, reason=explain(error))
                time.sleep(KEEP_AGAIN_S)


class LazyGrounder:
    """Loads the model when it is first needed, once for all threads; one that is missing is looked for each time."""

    def __init__(self, path: str, device: str) -> None:
        """`path` and `device` as in the section `model` of the settings."""
        self.path, self.device = path, device
        self._grounder: BatchGrounder | None = None
        self._lock = threading.Lock()

    def __call__(self) -> BatchGrounder:
        """Return the model. Raises PermanentError that names the model folder and what to do."""
        with self._lock:
            if self._grounder is None:
                try:
                    self._grounder = self._load()
                except ModelError as error:
                    raise PermanentError(
                        f"the model {self.path!r} cannot be loaded: {error}. Correct model.path, see `knowmvg check`, "
                        "and then run `knowmvg jobs retry`"
                    ) from error
            return self._grounder

    @property
    def loaded(self) -> BatchGrounder | None:
        """The model, if it has been loaded."""
        return self._grounder

    def _load(self) -> BatchGrounder:
        if self.path != "default" and not Path(self.path).is_dir():
            raise ModelError("there is no such folder")
        from grounding.checkpoint import load_predictor  # seconds and hundreds of MB, in this process only
        from grounding.frugal import FrugalGrounder

        return FrugalGrounder(load_predictor(self.path, self.device), _tell_memory)


def _tell_memory(step: str) -> None:
    log_event(logger, "memory is short", level=logging.WARNING, next_try=step)
