"""How a `gpu` worker grounds: studies of several jobs together, and the next ones prepared while these are computed.

A ring names one job; the worker takes others with it that wait as well, STAT before routine. Each keeps its own lease
and its own row, and is committed by itself. A batch that fails is computed again one by one, so that a study fails
alone; one that took a worker with it is worked on alone from then on, so that it takes no other with it twice. What a
batch has found is kept by another thread while the next one is computed: commits wait for the disk and for each other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta

from dicom_node import queries, study
from dicom_node.logs import log_event
from dicom_node.priority import choose_next
from dicom_node.study import JobFacts
from grounding.types import Grounding
from workers.resources import LEASE, Resources
from workers.steps import (
    GROUND,
    Done,
    Prepared,
    Work,
    claim,
    conclude,
    ground_alone,
    ground_study,
    ground_together,
    load_model,
    prepare_study,
    run_claimed,
    run_each,
)

logger = logging.getLogger(__name__)

PREPARING = 2
"""Threads that read and decode; native decoding is in a process of its own anyway."""

LOOK_AGAIN_S = 0.1
"""Between two looks at what else has come, while a batch waits for it."""

GO_ON_S = 5.0
"""So long one ring keeps a worker: in between Celery sees to its connection, and to orders to stop."""


@dataclass(frozen=True)
class Held:
    """A claimed job whose study is being prepared in another thread; `since` in seconds of the monotonic clock."""

    job: JobFacts
    prepared: Future[Prepared]
    since: float


@dataclass(frozen=True)
class _Found:
    """What the model has found in a batch, by job, and in how many seconds."""

    groundings: dict[int, Grounding] = field(default_factory=dict)
    seconds: float = 0.0


class Batches:
    """The batches of one process, one after the other."""

    def __init__(
        self,
        resources: Resources,
        is_stopping: Callable[[], bool] = lambda: False,
        end_after: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """`is_stopping` tells whether the process is to end. `end_after` ends it if it goes on for so many seconds
        without another call: then somebody else has its jobs."""
        self._resources, self._is_stopping, self._end_after = resources, is_stopping, end_after
        self._threads, self._keeper = ThreadPoolExecutor(PREPARING, "prepare"), ThreadPoolExecutor(1, "keep")
        self._pace: float | None = None
        self._places = 0

    def run(self, job_id: int) -> None:
        """Ground a job that was rung for, and others that wait; raises the first bug, when all have ended."""
        load_model(self._resources)
        if not self._is_free(job_id) or (job := claim(GROUND, job_id, self._resources)) is None:
            return
        self._places += 1
        if job.deaths:
            run_claimed(GROUND, job, lambda: ground_study(job, self._resources), self._resources)
            return
        bugs = self._go_on([self._hold(job)])
        if bugs:
            raise bugs[0]

    def _is_free(self, job_id: int) -> bool:
        """Tell whether a job still waits: most rings are of jobs that an earlier batch took with it."""
        with self._resources.sessions() as session:
            return queries.is_free(session, job_id, GROUND.state, self._resources.clock())

    def _go_on(self, batch: list[Held]) -> list[Exception]:
        """Ground a batch, and the next ones while something waits."""
        until = time.monotonic() + GO_ON_S
        bugs = list[Exception]()
        before, ending = list[Held](), _nothing()
        batch = self._fill(batch, self._resources.settings.model.max_wait_ms / 1000)
        while batch:
            goes_on = time.monotonic() < until and not self._is_stopping()
            following = self._take(self._size()) if goes_on else []
            try:
                try:
                    found = self._ground(batch)
                finally:
                    wait([ending])  # a lost device ends the process, whatever the database says meanwhile
                bugs += ending.result()
                before, ending = batch, self._keeper.submit(self._end, batch, found)
                if not following or self._is_stopping() or _is_wanting(batch, found):
                    bugs += ending.result()
                    ending = _nothing()
            except queries.DATABASE_ERRORS:  # it is away for long: whoever finds it again may have them
                self._give_back([*before, *batch, *following])
                raise
            if self._is_stopping():
                self._give_back(following)
                break
            batch = self._fill(following) if goes_on else following
        return bugs + ending.result()

    # ---- what a batch holds ------------------------------------------------------------------------------------------

    def _size(self) -> int:
        return study.batch_size(self._resources.settings.model.batch_size, self._pace)

    def _fill(self, batch: list[Held], wait_s: float = 0.0) -> list[Held]:
        """Add what waits; where that is not enough, wait for more. Those that are held are prepared meanwhile."""
        size, until = self._size(), time.monotonic() + wait_s
        batch = batch + self._take(size - len(batch))
        while len(batch) < size and (left := until - time.monotonic()) > 0 and not self._is_stopping():
            time.sleep(min(left, LOOK_AGAIN_S))
            batch = batch + self._take(size - len(batch))
        return batch

    def _take(self, limit: int) -> list[Held]:
        """Claim jobs that wait. A database that is away has none: what is held already goes on."""
        resources, now = self._resources, self._resources.clock()
        longest_wait = timedelta(seconds=resources.settings.priority.longest_wait_s)
        if limit <= 0:
            return []
        try:
            with resources.sessions.begin() as session:
                waiting = queries.waiting_jobs(session, GROUND.state, now, limit)
                chosen = choose_next(waiting, limit, now, longest_wait, self._places)
                jobs = queries.claim_waiting(session, chosen, resources.token, now, LEASE)
        except queries.DATABASE_ERRORS as error:
            log_event(logger, "database unavailable", level=logging.WARNING, reason=queries.explain(error))
            return []
        self._places += len(jobs)
        return [self._hold(job) for job in jobs]

    def _hold(self, job: JobFacts) -> Held:
        return Held(job, self._threads.submit(prepare_study, job, self._resources), time.monotonic())

    def _give_back(self, held: Sequence[Held]) -> None:
        resources = self._resources
        with suppress(*queries.DATABASE_ERRORS), resources.sessions.begin() as session:
            queries.give_back_jobs(session, [one.job.job_id for one in held], resources.token, resources.clock())

    # ---- what becomes of it ------------------------------------------------------------------------------------------

    def _ground(self, batch: Sequence[Held]) -> _Found:
        """Ground those of a batch together that are ready, if there are several."""
        self._end_after(LEASE.total_seconds() - (time.monotonic() - batch[0].since))
        ready = [one for one in batch if one.prepared.exception() is None]
        if len(ready) < 2:
            return _Found()
        began = time.monotonic()
        together = ground_together([one.prepared.result() for one in ready], self._resources)
        seconds = time.monotonic() - began
        if not together:
            return _Found()
        self._pace = seconds / len(together)
        return _Found(dict(zip((one.job.job_id for one in ready), together, strict=False)), seconds)

    def _end(self, batch: Sequence[Held], found: _Found) -> list[Exception]:
        """End each job of a batch; return the bugs."""
        return run_each(GROUND, [(one.job, self._work(one, found)) for one in batch], self._resources)

    def _work(self, one: Held, found: _Found) -> Work:
        """Return the work that is left to do for a job; `found` is what its batch has found."""

        def work() -> Done:
            prepared = one.prepared.result()  # raises what its preparation raised
            grounding = found.groundings.get(one.job.job_id)
            if grounding is None:
                return self._alone(one.job, prepared)
            done = conclude(one.job, prepared, grounding, self._resources, together=len(found.groundings))
            return replace(done, seconds=prepared.seconds + found.seconds)

        return work

    def _alone(self, job: JobFacts, prepared: Prepared) -> Done:
        began = time.monotonic()
        done = conclude(job, prepared, ground_alone(prepared, self._resources), self._resources)
        self._pace = time.monotonic() - began
        return replace(done, seconds=prepared.seconds + self._pace)


def _is_wanting(batch: Sequence[Held], found: _Found) -> bool:
    """Tell whether the model is still needed for a study of a batch."""
    return any(one.job.job_id not in found.groundings and one.prepared.exception() is None for one in batch)


def _nothing() -> Future[list[Exception]]:
    """Return the end of no batch."""
    ending = Future[list[Exception]]()
    ending.set_result([])
    return ending
