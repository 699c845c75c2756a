"""Lanes: one peer's work waits for nobody else's; nothing is done twice at once; a lane that hangs ends the worker."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

from workers.lanes import HUNG, Lanes

ROOT = Path(__file__).parents[2]


def run(work):
    work()


def test_a_lane_that_stalls_holds_up_itself_alone() -> None:
    lanes, go_on, done = Lanes(60, run), threading.Event(), []
    lanes.submit("slow", "1", lambda: go_on.wait(10))
    lanes.submit("slow", "2", lambda: done.append("slow 2"))
    reached = threading.Event()
    lanes.submit("fast", "1", reached.set)
    assert reached.wait(5)
    assert done == []
    go_on.set()
    second = threading.Event()
    lanes.submit("slow", "3", second.set)
    assert second.wait(5)
    assert done == ["slow 2"]
    lanes.stop(5)


def test_what_waits_already_is_not_put_in_line_again() -> None:
    lanes, go_on = Lanes(60, run), threading.Event()
    lanes.submit("a", "first", lambda: go_on.wait(10))
    time.sleep(0.1)
    assert [lanes.submit("a", "same", lambda: None) for _ in range(3)] == [True, False, False]
    assert lanes.submit("b", "same", lambda: None)
    go_on.set()
    lanes.stop(5)
    assert not lanes.submit("a", "later", lambda: None)


def test_a_full_lane_drops_rings() -> None:
    lanes, go_on = Lanes(60, run), threading.Event()
    lanes.submit("a", "first", lambda: go_on.wait(30))
    time.sleep(0.1)
    taken = [lanes.submit("a", str(number), lambda: None) for number in range(1100)]
    assert taken.count(True) == 1000 and not taken[-1]
    go_on.set()
    lanes.stop(5)


def test_stopping_waits_for_what_is_under_way() -> None:
    lanes, ended = Lanes(60, run), threading.Event()

    def work() -> None:
        time.sleep(0.3)
        ended.set()

    lanes.submit("a", "1", work)
    time.sleep(0.1)
    lanes.stop(5)
    assert ended.is_set()


class StoppedAfterTheLook(threading.Event):
    """Is set when a lane has looked, before it acts upon that."""

    def __init__(self) -> None:
        super().__init__()
        self.looks, self.looked, self.go_on = 0, threading.Event(), threading.Event()

    def is_set(self) -> bool:
        seen = super().is_set()
        if threading.current_thread().name == "lane a":
            self.looks += 1
            if self.looks == 2:  # with work in hand
                self.looked.set()
                self.go_on.wait(10)
        return seen


def test_stopping_waits_for_what_is_about_to_begin() -> None:
    lanes, stopped, done = Lanes(60, run), StoppedAfterTheLook(), list[str]()
    lanes._stopped = stopped
    lanes.submit("a", "1", lambda: done.append("1"))
    assert stopped.looked.wait(5)
    threading.Timer(0.3, stopped.go_on.set).start()
    lanes.stop(5)
    assert done == ["1"]
    assert not lanes.is_busy


HANG = """
import threading
from workers.lanes import Lanes
lanes = Lanes(0.5, lambda work: work())
lanes.submit("stuck", "1", lambda: threading.Event().wait())
threading.Event().wait(30)
"""


def test_a_lane_that_hangs_past_its_lease_ends_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANG], cwd=ROOT, capture_output=True, text=True, timeout=25, check=False
    )
    assert done.returncode == HUNG
    assert "lanes.py" in done.stderr  # where it hung


BUSY_AT_THE_END = """
import sys, threading
from pathlib import Path
from dicom_node.config import load_settings
from dicom_node.queries import upgrade_schema
from workers import main, tasks
settings = load_settings(Path(sys.argv[1]), {})
upgrade_schema(settings.database.url)
def hang():
    threading.Thread(target=threading.Event().wait, daemon=False).start()  # as those of pynetdicom's
    threading.Event().wait()
def consume(app, queues, name, on_ready, lanes):
    lanes.submit("stuck", "1", hang)
    threading.Event().wait(0.5)
    lanes.stop(0.1)
tasks.consume = consume
main.run_worker(settings, ("io",))
"""


def test_a_worker_that_gave_its_leases_back_goes_on_with_nothing(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("node: {data_dir: var}\n")
    command = [sys.executable, "-c", BUSY_AT_THE_END, str(config)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=25, check=False)
    assert done.returncode == 0, done.stderr
