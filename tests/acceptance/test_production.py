"""The parts of the node as separate processes on PostgreSQL and Redis or RabbitMQ, as in production."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.acceptance.peers import ROOT, Node, Process, wait_until
from tests.builders import make_cxr_dataset, make_report_dataset
from tests.fakes import FakePacs
from tests.servers import RabbitMQ, Redis

PARTS = (("receiver",), ("console",), ("scheduler",), ("worker", "--queues", "gpu"), ("worker", "--queues", "io"))


@pytest.fixture
def pacs() -> Iterator[FakePacs]:
    with FakePacs() as pacs:
        yield pacs


@pytest.fixture(params=["redis", "rabbitmq"])
def server(request: pytest.FixtureRequest) -> Redis | RabbitMQ:
    """A broker."""
    server: Redis | RabbitMQ = request.getfixturevalue(f"{request.param}_server")
    return server


@pytest.fixture
def node(tmp_path: Path, pacs: FakePacs, postgres_url: str, server: Redis | RabbitMQ) -> Node:
    """The configuration of a node; nothing runs."""
    archive = {"name": "archive", "ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port}
    broker, database = {"url": server.url}, {"url": postgres_url}
    return Node(tmp_path / "node", destinations=[archive], broker=broker, database=database)


def start(node: Node, part: tuple[str, ...]) -> Process:
    command = [sys.executable, "-m", "dicom_node.cli", *part, "--config", str(node.config)]
    return Process(command, node.folder / f"{part[0]}{part[-1]}.log", ROOT)


@pytest.mark.timeout(400)
def test_study_goes_all_the_way_on_postgresql_and_a_broker(node: Node, pacs: FakePacs) -> None:
    assert "db upgrade" in node.run("scheduler", check=False).stderr
    node.run("db", "upgrade")
    with ExitStack() as stack:
        for part in PARTS:
            stack.callback(start(node, part).stop)
        checks = {one["name"]: one for one in json.loads(node.run("check", "--json").stdout)["checks"]}
        assert checks["broker"]["ok"], checks
        wait_until(node.echo, "the receiver to answer")
        image = make_cxr_dataset(study="production")
        assert node.send_datasets(image, make_report_dataset(study="production", image=image)).returncode == 0
        job = node.wait_for(image.StudyInstanceUID, "DELIVERED", seconds=200)
    assert {one["confirmed_by"] for one in job["deliveries"]} == {"query"}
    assert len(pacs.structured_reports(image.StudyInstanceUID)) == 1
