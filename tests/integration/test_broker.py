"""Rings through the supported brokers: heard, not lost by a restart of the broker, harmless when it is away."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from dicom_node.config import Settings, load_settings
from dicom_node.errors import NodeError
from tests.servers import Redis
from workers.app import check_broker, make_app, make_ring

DEADLINE_S = 90.0

pytestmark = pytest.mark.timeout(300)

WORKER = """
import sys, time
from pathlib import Path
from dicom_node.config import load_settings
from workers import tasks
from tests.servers import Redis
from workers.app import make_app

log = Path(sys.argv[2])

def note(text):
    with log.open("a") as file:
        file.write(text + "\\n")

def ring(job_id):
    note(f"start {job_id}")
    while Path(f"{log}.hold").exists():
        time.sleep(0.02)
    note(f"end {job_id}")

app = make_app(load_settings(Path(sys.argv[1])))
app.task(ring, name="ground", shared=False)
tasks.consume(app, ("gpu",), f"worker-{sys.argv[3]}@test", lambda: note("ready"))
note("left")
"""


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


def make_settings(folder: Path, url: str = "embedded") -> Settings:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({"node": {"data_dir": "var"}, "broker": {"url": url}}))
    return load_settings(path, {})


class Worker:
    """A worker process that writes what it does to a log, and holds every task while the file `hold` is there."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "log"
        self.hold = folder / "log.hold"
        self.log.touch()
        before = self.lines().count("ready")
        arguments = [str(folder / "config.yaml"), str(self.log), str(before)]
        self.process = subprocess.Popen([sys.executable, "-c", WORKER, *arguments])
        self.before = before

    def is_ready(self) -> bool:
        return self.lines().count("ready") > self.before

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def wait_for(self, line: str) -> None:
        wait_until(lambda: line in self.lines(), f"the log says {line!r}")

    def stop(self) -> int:
        self.process.terminate()
        return self.process.wait(DEADLINE_S)


@pytest.fixture
def start_worker(tmp_path: Path) -> Iterator[Callable[[], Worker]]:
    workers = []

    def start() -> Worker:
        workers.append(Worker(tmp_path))
        wait_until(workers[-1].is_ready, "the worker is ready")
        return workers[-1]

    yield start
    for worker in workers:
        worker.process.kill()
        worker.process.wait()


@pytest.fixture(params=["embedded", "redis"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    url = request.getfixturevalue("redis_server").url if request.param == "redis" else "embedded"
    return make_settings(tmp_path, url)


def test_ring_is_heard_once_and_the_worker_leaves_on_sigterm(
    settings: Settings, start_worker: Callable[[], Worker]
) -> None:
    ring = make_ring(make_app(settings))
    ring("ground", 1)  # before there is a worker
    worker = start_worker()
    worker.wait_for("end 1")
    ring("ground", 2)
    worker.wait_for("end 2")
    assert worker.stop() == 0
    assert sorted(worker.lines()) == sorted(["ready", "start 1", "end 1", "start 2", "end 2", "left"])


def test_sigterm_lets_the_task_under_way_finish_and_keeps_the_others(
    settings: Settings, start_worker: Callable[[], Worker]
) -> None:
    ring = make_ring(make_app(settings))
    worker = start_worker()
    worker.hold.touch()
    for job_id in (1, 2, 3):
        ring("ground", job_id)
    worker.wait_for("start 1")
    worker.process.send_signal(signal.SIGTERM)
    worker.hold.unlink()
    assert worker.process.wait(DEADLINE_S) == 0
    after = start_worker()
    after.wait_for("end 3")
    assert after.stop() == 0
    assert sorted(line for line in after.lines() if line.startswith("end")) == ["end 1", "end 2", "end 3"]


def test_worker_goes_on_after_redis_was_killed_in_mid_task(
    redis_server: Redis, tmp_path: Path, start_worker: Callable[[], Worker]
) -> None:
    """As kombu is, it stays alive and never consumes again (celery 8030 and its family): see workers.tasks."""
    ring = make_ring(make_app(make_settings(tmp_path, redis_server.url)))
    worker = start_worker()
    worker.hold.touch()
    ring("ground", 1)
    ring("ground", 2)
    worker.wait_for("start 1")
    redis_server.kill()
    worker.hold.unlink()
    worker.wait_for("end 1")
    redis_server.start()
    ring("ground", 3)
    worker.wait_for("end 3")
    worker.wait_for("end 2")
    assert worker.stop() == 0


def test_worker_goes_on_after_redis_was_killed_while_idle(
    redis_server: Redis, tmp_path: Path, start_worker: Callable[[], Worker]
) -> None:
    ring = make_ring(make_app(make_settings(tmp_path, redis_server.url)))
    worker = start_worker()
    redis_server.kill()
    redis_server.start()
    ring("ground", 1)
    worker.wait_for("end 1")
    assert worker.stop() == 0


def test_ring_for_a_broker_that_is_away_is_only_logged(
    redis_server: Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    redis_server.kill()
    make_ring(make_app(make_settings(tmp_path, redis_server.url)))("ground", 1)
    assert "broker unavailable" in caplog.messages


def test_check_broker(settings: Settings) -> None:
    assert check_broker(settings).endswith("answers")


def test_check_broker_names_one_that_is_away(redis_server: Redis, tmp_path: Path) -> None:
    redis_server.kill()
    with pytest.raises(NodeError, match=rf"redis://127\.0\.0\.1:{redis_server.port}.*does not answer.*broker\.url"):
        check_broker(make_settings(tmp_path, redis_server.url))
