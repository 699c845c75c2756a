"""`knowmvg up`: the parts of the node as child processes of one, which starts them, restarts them and stops them.

A child that ends by itself is started again, after a pause that doubles while it keeps ending at once. The children
die with this process, however it dies: the kernel sends them SIGKILL. What was under way then resumes at the next
start, because the rows are the truth.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dicom_node.config import Settings
from dicom_node.errors import NodeError
from dicom_node.logs import log_event

logger = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)  # loaded here: nothing may be loaded between fork and exec

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 10.0
STEADY_S = 30.0
"""A child that lived so long has started well: its next restart is at once again."""
TRIES_TO_START = 6
"""A child that exits so often in a row without ever becoming ready makes the node give up at its start."""
STOP_S = 6.0
"""After SIGTERM; who has not ended by then is killed, so that the node stops within 10 s."""
POLL_S = 0.1


@dataclass
class Child:
    """One part of the node: its command, when it counts as ready, and how its process is faring."""

    name: str
    command: Sequence[str]
    is_ready: Callable[[int], bool]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    start_again_at: float = 0.0
    pause_s: float = FIRST_PAUSE_S
    failures: int = 0
    was_ready: bool = field(default=False)

    def start(self, now: float) -> None:
        """Start the process; it dies with this one, and does not see this one's Ctrl-C."""
        parent = os.getpid()
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=lambda: _die_with(parent),  # this process has one thread
        )
        self.started_at = now
        log_event(logger, "process started", process=self.name, pid=self.process.pid)

    def look_after(self, now: float) -> None:
        """Note an end, start again when the pause is over, and note when it is ready."""
        if self.process is None:
            if now >= self.start_again_at:
                self.start(now)
        elif (status := self.process.poll()) is not None:
            self._note_end(status, now)
        elif not self.was_ready and self.is_ready(self.process.pid):
            self.was_ready = True

    def _note_end(self, status: int, now: float) -> None:
        steady = now - self.started_at > STEADY_S
        self.pause_s = FIRST_PAUSE_S if steady else min(2 * self.pause_s, LONGEST_PAUSE_S)
        self.failures = 0 if self.was_ready else self.failures + 1
        self.process, self.start_again_at = None, now + self.pause_s
        log_event(logger, "process ended", level=logging.WARNING, process=self.name, status=status)

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, if the process runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)


def supervise(children: Sequence[Child], stop: threading.Event, on_ready: Callable[[], None]) -> None:
    """Run `children` until `stop` is set, then end them; `on_ready` is called once, when all are ready.

    Raises NodeError if one of them cannot be started at all.
    """
    announced = False
    try:
        while not stop.is_set():
            for child in children:
                child.look_after(time.monotonic())
                if child.failures >= TRIES_TO_START:
                    raise NodeError(f"the {child.name} does not start; its last lines above say why")
            if not announced and all(child.was_ready for child in children):
                announced = True
                on_ready()
            stop.wait(POLL_S)
    finally:
        end_children(children)


def end_children(children: Sequence[Child]) -> None:
    """End all processes: SIGTERM, and SIGKILL to those that take too long."""
    for child in children:
        child.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + STOP_S
    for child in children:
        if child.process is None:
            continue
        try:
            child.process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            log_event(logger, "process killed", level=logging.WARNING, process=child.name)
            child.process.kill()
            child.process.wait()


class NodeLock:
    """The lock on the data folder: one `knowmvg up` at a time. The kernel drops it when the process dies."""

    def __init__(self, folder: Path) -> None:
        """Take the lock. Raises NodeError that names the process that holds it."""
        folder.mkdir(parents=True, exist_ok=True)
        self._descriptor = os.open(folder / "up.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._descriptor, 32).decode().strip()
            os.close(self._descriptor)
            raise NodeError(
                f"a node runs on {folder} already (process {holder}); stop it, or use another node.data_dir"
            ) from None
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Let the next one in."""
        os.close(self._descriptor)


def node_children(settings: Settings, config_path: Path | None) -> list[Child]:
    """Return the parts of the node, in the order in which they are started."""
    command = [sys.executable, "-m", "dicom_node.cli"]
    options = ["--config", str(config_path)] if config_path else []
    marks = ready_folder(settings)
    receivers = [("receiver", ["receiver"])] * settings.receiver.processes  # the kernel spreads the associations
    workers = [(f"worker {queue}", ["worker", "--queues", queue]) for queue in ("gpu", "io")]
    parts = [*receivers, ("console", ["console"]), *workers, ("scheduler", ["scheduler"])]
    return [Child(name, [*command, *words, *options], lambda pid: (marks / str(pid)).exists()) for name, words in parts]


def ready_folder(settings: Settings) -> Path:
    """Return the folder where processes show that they are ready: an empty file, named as their id."""
    return settings.node.data_dir / "ready"


def mark_ready(settings: Settings) -> None:
    """Show that this process listens, or works, where a supervisor looks for that."""
    with contextlib.suppress(FileNotFoundError):  # no supervisor made the folder
        (ready_folder(settings) / str(os.getpid())).touch()


def clear_ready(settings: Settings) -> None:
    """Make the folder, and remove what earlier processes showed."""
    folder = ready_folder(settings)
    folder.mkdir(parents=True, exist_ok=True)
    for mark in folder.iterdir():
        mark.unlink()


def _die_with(parent: int) -> None:
    """Ask the kernel to kill this process with its parent; runs between fork and exec."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)
