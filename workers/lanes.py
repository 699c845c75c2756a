"""One lane for each peer that is called: work for it waits in line there, and only there.

A lane is a thread with a short queue of its own. A destination that stalls for half a minute holds up its lane; the
worker goes on taking rings, and the other lanes go on. What is lost with the process is rung again from its row.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from dicom_node.logs import log_event

logger = logging.getLogger(__name__)

LINGER_S = 0.25
"""So long a lane waits for more before it rests."""

LONGEST_QUEUE = 1000
"""Rings that wait in a lane; further ones are dropped, and rung again."""

WATCH_S = 1.0
HUNG = 70
"""Exit status of a worker that ends itself because its work ran past its lease."""

Work = Callable[[], None]


@dataclass
class Lane:
    """Work for one peer. `since` is when the present one began; `lingers`: it has yet to rest since the last one."""

    name: str
    waiting: queue.Queue[tuple[str, Work]] = field(default_factory=lambda: queue.Queue(LONGEST_QUEUE))
    keys: set[str] = field(default_factory=set)
    since: float | None = None
    lingers: bool = False


class Lanes:
    """The lanes of one process."""

    def __init__(self, limit_s: float, run: Callable[[Work], None], rest: Work = lambda: None) -> None:
        """`limit_s` is how long one piece of work may take before the process ends itself; `run` runs it.

        `rest` is run in a lane's thread when it has nothing more to do for the moment.
        """
        self._limit_s, self._run, self._rest = limit_s, run, rest
        self._lanes: dict[str, Lane] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._watch: threading.Thread | None = None

    def submit(self, lane_name: str, key: str, work: Work) -> bool:
        """Put work into a lane; False if the same waits there already, or the lane is full or closed."""
        lane = self._find(lane_name)
        with self._lock:
            if key in lane.keys or self._stopped.is_set():
                return False
            try:
                lane.waiting.put_nowait((key, work))
            except queue.Full:
                return False
            lane.keys.add(key)
        return True

    def stop(self, within_s: float) -> None:
        """Begin nothing more, and give what is under way some time to end."""
        self._stopped.set()
        deadline = time.monotonic() + within_s
        while self.is_busy and time.monotonic() < deadline:
            time.sleep(0.02)

    @property
    def is_busy(self) -> bool:
        """Whether something is under way in a lane, or is still to be ended there."""
        return any(lane.since is not None or lane.lingers for lane in list(self._lanes.values()))

    def _find(self, name: str) -> Lane:
        with self._lock:
            if name not in self._lanes:
                lane = self._lanes[name] = Lane(name)
                threading.Thread(target=self._serve, args=(lane,), name=f"lane {name}", daemon=True).start()
            if self._watch is None:
                self._watch = threading.Thread(target=self._look, name="lanes", daemon=True)
                self._watch.start()
            return self._lanes[name]

    def _serve(self, lane: Lane) -> None:
        while not self._stopped.is_set():
            try:
                key, work = lane.waiting.get(timeout=LINGER_S if lane.lingers else WATCH_S)
            except queue.Empty:
                self._end(lane)
                continue
            with self._lock:
                lane.keys.discard(key)
            lane.lingers = True  # before the look: who stops it waits for what is about to begin
            if not self._stopped.is_set():
                self._do(lane, work)
        self._end(lane)

    def _do(self, lane: Lane, work: Work) -> None:
        lane.since = time.monotonic()
        try:
            self._run(work)
        finally:
            lane.since = None

    def _end(self, lane: Lane) -> None:
        if lane.lingers:
            self._do(lane, self._rest)
            lane.lingers = False

    def _look(self) -> None:
        """End the process if something hangs past its lease: somebody else has it then."""
        while not self._stopped.wait(WATCH_S):
            now = time.monotonic()
            for lane in list(self._lanes.values()):
                since = lane.since
                if since is not None and now - since > self._limit_s:
                    log_event(logger, "lane hangs", level=logging.ERROR, lane=lane.name)
                    faulthandler.dump_traceback(sys.stderr)
                    os._exit(HUNG)
