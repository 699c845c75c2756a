"""Rings through the supported brokers: heard, not lost by a restart of the broker, harmless when it is away."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from dicom_node.config import Settings, load_settings
from dicom_node.errors import NodeError
from workers.app import check_broker, make_app, make_ring

DEADLINE_S = 40.0

WORKER = """
import sys, time
from pathlib import Path
from dicom_node.config import load_settings
from workers import tasks
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
app.task(ring, name="ground")
tasks.consume(app, ("gpu",), f"worker-{sys.argv[3]}@test", lambda: note("ready"))
note("left")
"""


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


class Redis:
    """A Redis server on loopback that keeps its messages over a restart."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("redis-server")
        if program is None:
            pytest.skip("redis-server is not installed")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes"]
        self.command = [program, *options, "--appendfsync", "always", "--save", "", "--logfile", "redis.log"]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(self.command)
        wait_until(self._answers, "redis-server listens")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    server = Redis(tmp_path)
    yield server
    server.kill()


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
        wait_until(lambda: self.lines().count("ready") > before, "the worker is ready")

    def lines(self) -> list[str]:
        return self.log.read_text().splitlines()

    def wait_for(self, line: str) -> None:
        wait_until(lambda: line in self.lines(), f"the log says {line!r}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)


@pytest.fixture(params=["embedded", "redis"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    url = request.getfixturevalue("redis").url if request.param == "redis" else "embedded"
    return make_settings(tmp_path, url)


def test_ring_is_heard_once_and_the_worker_leaves_on_sigterm(settings: Settings, tmp_path: Path) -> None:
    ring = make_ring(make_app(settings))
    ring("ground", 1)  # before there is a worker
    worker = Worker(tmp_path)
    worker.wait_for("end 1")
    ring("ground", 2)
    worker.wait_for("end 2")
    assert worker.stop() == 0
    assert sorted(worker.lines()) == sorted(["ready", "start 1", "end 1", "start 2", "end 2", "left"])


def test_sigterm_lets_the_task_under_way_finish_and_keeps_the_others(settings: Settings, tmp_path: Path) -> None:
    ring = make_ring(make_app(settings))
    worker = Worker(tmp_path)
    worker.hold.touch()
    for job_id in (1, 2, 3):
        ring("ground", job_id)
    worker.wait_for("start 1")
    worker.process.send_signal(signal.SIGTERM)
    worker.hold.unlink()
    assert worker.process.wait(DEADLINE_S) == 0
    after = Worker(tmp_path)
    after.wait_for("end 3")
    assert after.stop() == 0
    assert sorted(line for line in after.lines() if line.startswith("end")) == ["end 1", "end 2", "end 3"]


def test_worker_goes_on_after_redis_was_killed_in_mid_task(redis: Redis, tmp_path: Path) -> None:
    """As kombu is, it stays alive and never consumes again (celery 8030 and its family): see workers.tasks."""
    ring = make_ring(make_app(make_settings(tmp_path, redis.url)))
    worker = Worker(tmp_path)
    worker.hold.touch()
    ring("ground", 1)
    ring("ground", 2)
    worker.wait_for("start 1")
    redis.kill()
    worker.hold.unlink()
    worker.wait_for("end 1")
    redis.start()
    ring("ground", 3)
    worker.wait_for("end 3")
    worker.wait_for("end 2")
    assert worker.stop() == 0


def test_worker_goes_on_after_redis_was_killed_while_idle(redis: Redis, tmp_path: Path) -> None:
    ring = make_ring(make_app(make_settings(tmp_path, redis.url)))
    worker = Worker(tmp_path)
    redis.kill()
    redis.start()
    ring("ground", 1)
    worker.wait_for("end 1")
    assert worker.stop() == 0


def test_ring_for_a_broker_that_is_away_is_only_logged(
    redis: Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    redis.kill()
    make_ring(make_app(make_settings(tmp_path, redis.url)))("ground", 1)
    assert "broker unavailable" in caplog.messages


def test_check_broker(settings: Settings) -> None:
    assert check_broker(settings).endswith("answers")


def test_check_broker_names_one_that_is_away(redis: Redis, tmp_path: Path) -> None:
    redis.kill()
    with pytest.raises(NodeError, match=rf"redis://127\.0\.0\.1:{redis.port}.*does not answer.*broker\.url"):
        check_broker(make_settings(tmp_path, redis.url))
