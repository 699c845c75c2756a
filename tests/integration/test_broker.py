"""Rings through the supported brokers: heard, not lost by a restart of the broker, harmless when it is away."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from dicom_node.config import Settings, load_settings
from dicom_node.errors import NodeError
from tests.certificates import Authority
from tests.servers import RabbitMQ, Redis
from workers.app import check_broker, make_app, make_ring

DEADLINE_S = 90.0

pytestmark = pytest.mark.timeout(300)

WORKER = """
import sys, time
from pathlib import Path
from dicom_node.config import load_settings
from workers import tasks
from tests.certificates import Authority
from tests.servers import RabbitMQ, Redis
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


@pytest.fixture(params=["embedded", "redis", "rabbitmq"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    embedded = request.param == "embedded"
    return make_settings(tmp_path, "embedded" if embedded else request.getfixturevalue(f"{request.param}_server").url)


@pytest.fixture(params=["redis", "rabbitmq"])
def server(request: pytest.FixtureRequest) -> Redis | RabbitMQ:
    """A broker that is a server, which the test may kill and start again."""
    server: Redis | RabbitMQ = request.getfixturevalue(f"{request.param}_server")
    return server


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


def test_worker_goes_on_after_its_broker_was_killed_in_mid_task(
    server: Redis | RabbitMQ, tmp_path: Path, start_worker: Callable[[], Worker]
) -> None:
    """As kombu is over Redis, it stays alive and never consumes again (celery 8030 and its family): workers.tasks."""
    ring = make_ring(make_app(make_settings(tmp_path, server.url)))
    worker = start_worker()
    worker.hold.touch()
    ring("ground", 1)
    ring("ground", 2)
    worker.wait_for("start 1")
    server.kill()
    worker.hold.unlink()
    worker.wait_for("end 1")
    server.start()
    ring("ground", 3)
    worker.wait_for("end 3")
    worker.wait_for("end 2")
    assert worker.stop() == 0


def test_worker_goes_on_after_its_broker_was_killed_while_idle(
    server: Redis | RabbitMQ, tmp_path: Path, start_worker: Callable[[], Worker]
) -> None:
    ring = make_ring(make_app(make_settings(tmp_path, server.url)))
    worker = start_worker()
    server.kill()
    server.start()
    ring("ground", 1)
    worker.wait_for("end 1")
    assert worker.stop() == 0


def test_ring_goes_on_after_its_broker_was_killed(server: Redis | RabbitMQ, tmp_path: Path) -> None:
    """The connection that the last ring used is dead; the next one finds that out and makes another."""
    ring = make_ring(make_app(make_settings(tmp_path, server.url)))
    assert ring("ground", 1)
    server.kill()
    server.start()
    assert ring("ground", 2)


def test_ring_for_a_broker_that_is_away_is_only_logged(
    server: Redis | RabbitMQ, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with away(server):
        assert not make_ring(make_app(make_settings(tmp_path, server.url)))("ground", 1)
    assert "broker unavailable" in caplog.messages


@contextmanager
def away(server: Redis | RabbitMQ) -> Iterator[None]:
    """Kill a server for the time of a block."""
    server.kill()
    try:
        yield
    finally:
        server.start()


def test_check_broker(settings: Settings) -> None:
    assert check_broker(settings).endswith("answers")


def test_check_broker_names_one_that_is_away(server: Redis | RabbitMQ, tmp_path: Path) -> None:
    with away(server), pytest.raises(NodeError, match=rf"://.*{server.port}.*does not answer.*broker\.url"):
        check_broker(make_settings(tmp_path, server.url))


@pytest.fixture(params=["redis", "rabbitmq"])
def tls_server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Redis | RabbitMQ]:
    """A broker that speaks TLS, with a certificate of `authority.pem`."""
    certificate = Authority(tmp_path / "ca").issue("broker")
    server = Redis(tmp_path, certificate) if request.param == "redis" else RabbitMQ(certificate)
    yield server
    server.close()


def test_broker_over_tls_must_show_a_certificate_of_a_known_authority(
    tls_server: Redis | RabbitMQ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(tmp_path, tls_server.tls_url)
    with pytest.raises(NodeError, match=r"(?i)certificate.verify.failed"):
        check_broker(settings)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca" / "authority.pem"))
    assert check_broker(settings).endswith("answers")
    assert make_ring(make_app(settings))("ground", 1)


def test_broker_over_tls_must_have_the_name_of_its_certificate(
    tls_server: Redis | RabbitMQ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca" / "authority.pem"))
    with pytest.raises(NodeError, match=r"(?i)mismatch|not valid for"):
        check_broker(
            make_settings(tmp_path, tls_server.tls_url.replace("127.0.0.1", "127.1"))
        )  # the same, by another name


# ---- what is RabbitMQ's own ------------------------------------------------------------------------------------------


@contextmanager
def short_of_memory(server: RabbitMQ) -> Iterator[None]:
    """Have a server raise its alarm: it reads nothing more from whoever publishes."""
    server.control("set_vm_memory_high_watermark", "0.000001")
    try:
        wait_until(lambda: "memory" in server.control("eval", "rabbit_alarm:get_alarms()."), "the alarm is raised")
        yield
    finally:
        server.control("set_vm_memory_high_watermark", "0.4")
        wait_until(lambda: server.control("eval", "rabbit_alarm:get_alarms().") == "[]\n", "the alarm is over")


def test_rabbitmq_that_takes_no_messages_is_waited_for_a_few_seconds_only(
    rabbitmq_server: RabbitMQ, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It would be waited for until its alarm is over, with the sweep and the workers standing still."""
    settings = make_settings(tmp_path, rabbitmq_server.url)
    ring = make_ring(make_app(settings))
    assert ring("ground", 1)
    with short_of_memory(rabbitmq_server):
        assert not ring("ground", 2)
        with pytest.raises(NodeError, match=r"takes no messages.*rabbitmq-diagnostics alarms"):
            check_broker(settings)
    assert "broker unavailable" in caplog.messages
    assert ring("ground", 3)


def test_rabbitmq_whose_password_is_another_is_only_logged(
    rabbitmq_server: RabbitMQ, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = make_settings(tmp_path, rabbitmq_server.url.replace(":guest@", ":another@"))
    assert not make_ring(make_app(settings))("ground", 1)
    assert "broker unavailable" in caplog.messages
    with pytest.raises(NodeError, match=r"ACCESS_REFUSED.*broker\.url") as refused:
        check_broker(settings)
    assert "another" not in str(refused.value)


def test_rabbitmq_has_the_nodes_queues_alone_and_keeps_confirmed_rings(
    rabbitmq_server: RabbitMQ, tmp_path: Path, start_worker: Callable[[], Worker]
) -> None:
    ring = make_ring(make_app(make_settings(tmp_path, rabbitmq_server.url)))
    worker = start_worker()
    ring("ground", 1)
    ring("write", 1)
    worker.wait_for("end 1")
    assert worker.stop() == 0
    assert ring("ground", 2)
    rabbitmq_server.kill()
    rabbitmq_server.start()
    kept = [["gpu", "quorum", "true", "1"], ["io", "quorum", "true", "1"]]
    wait_until(lambda: list_queues(rabbitmq_server) == kept, "its queues are as they were")


def list_queues(server: RabbitMQ) -> list[list[str]]:
    """Return name, type, durability and messages of every queue."""
    listed = server.control("list_queues", "name", "type", "durable", "messages", "--no-table-headers")
    return sorted(line.split("\t") for line in listed.splitlines())


def test_rabbitmq_does_not_hang_up_on_a_worker_that_is_busy(
    rabbitmq_server: RabbitMQ, tmp_path: Path, start_worker: Callable[[], Worker]
) -> None:
    """A solo pool sends no heartbeats while it works: a connection that had agreed on some would be closed."""
    ring = make_ring(make_app(make_settings(tmp_path, rabbitmq_server.url)))
    ring("ground", 1)
    start_worker().wait_for("end 1")
    listed = rabbitmq_server.control("list_connections", "timeout", "--no-table-headers")
    assert set(listed.split()) == {"0"}
