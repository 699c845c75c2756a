"""Child processes: started, restarted, stopped, and never left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dicom_node.config import load_settings
from dicom_node.errors import NodeError
from workers.supervisor import Child, NodeLock, clear_ready, mark_ready, node_children, supervise

DEADLINE_S = 20.0


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


def make_child(script: str, *arguments: str, is_ready: Callable[[int], bool] = lambda _: True) -> Child:
    return Child("part", [sys.executable, "-c", script, *arguments], is_ready)


@contextmanager
def supervising(*children: Child) -> Iterator[threading.Event]:
    """Supervise in a thread until the end of the block; gives the event that is set when all are ready."""
    stop, ready = threading.Event(), threading.Event()
    thread = threading.Thread(target=supervise, args=(children, stop, ready.set))
    thread.start()
    try:
        yield ready
    finally:
        stop.set()
        thread.join(DEADLINE_S)


def ignores_sigterm(pid: int) -> bool:
    ignored = Path(f"/proc/{pid}/status").read_text().split("SigIgn:\t")[1].split()[0]
    return bool(int(ignored, 16) >> (signal.SIGTERM - 1) & 1)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_child_that_is_killed_is_started_again() -> None:
    child = make_child("import time; time.sleep(60)")
    with supervising(child) as ready:
        assert ready.wait(DEADLINE_S)
        assert child.process is not None
        first = child.process.pid
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: child.process is not None and child.process.pid != first, "it runs again")
    assert child.process.poll() == -signal.SIGTERM


def test_ready_is_told_once_all_are(tmp_path: Path) -> None:
    mark = tmp_path / "ready"
    sleep = "import time; time.sleep(60)"
    children = [make_child(sleep), make_child(sleep, is_ready=lambda _: mark.exists())]
    with supervising(*children) as ready:
        wait_until(lambda: children[0].was_ready, "the first is ready")
        assert not ready.is_set()
        mark.touch()
        assert ready.wait(DEADLINE_S)


def test_child_that_ignores_sigterm_is_killed() -> None:
    child = make_child("import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)")
    with supervising(child):
        wait_until(lambda: child.process is not None and ignores_sigterm(child.process.pid), "it ignores SIGTERM")
    assert child.process is not None
    assert child.process.poll() == -signal.SIGKILL


def test_child_that_never_starts_ends_the_node_with_a_reason() -> None:
    child = make_child("raise SystemExit(1)", is_ready=lambda _: False)
    with pytest.raises(NodeError, match="the part does not start"):
        supervise([child], threading.Event(), lambda: None)


def test_children_die_with_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, threading\n"
        "from pathlib import Path\n"
        "from workers.supervisor import Child, supervise\n"
        "child = Child('part', [sys.executable, '-c', 'import time; time.sleep(60)'], lambda _: True)\n"
        "supervise([child], threading.Event(), lambda: Path(sys.argv[1]).write_text(str(child.process.pid)))\n"
    )
    told = tmp_path / "pid"
    supervisor = subprocess.Popen([sys.executable, "-c", script, str(told)])
    wait_until(lambda: told.exists() and told.read_text(), "the child runs")
    pid = int(told.read_text())
    assert is_running(pid)
    supervisor.kill()
    supervisor.wait()
    wait_until(lambda: not is_running(pid), "the child is gone")


def test_second_node_on_a_data_folder_is_refused_and_told_who_runs(tmp_path: Path) -> None:
    lock = NodeLock(tmp_path / "var")
    with pytest.raises(NodeError, match=rf"process {os.getpid()}\).*node\.data_dir"):
        NodeLock(tmp_path / "var")
    lock.release()
    NodeLock(tmp_path / "var").release()


def test_each_receiver_process_of_the_settings_is_started(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("receiver: {processes: 3}")
    names = [child.name for child in node_children(load_settings(file, {}), file)]
    assert names == ["receiver", "receiver", "receiver", "console", "worker gpu", "worker io", "scheduler"]


def test_process_shows_that_it_is_ready_only_where_a_supervisor_looks(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("node: {data_dir: var}\n")
    settings = load_settings(path, {})
    worker = node_children(settings, path)[2]
    mark_ready(settings)
    assert not worker.is_ready(os.getpid())
    clear_ready(settings)
    mark_ready(settings)
    assert worker.is_ready(os.getpid())
    clear_ready(settings)
    assert not worker.is_ready(os.getpid())
