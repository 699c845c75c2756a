"""What every test runs under: torch on one thread, and no settings from the environment of whoever runs the tests.

And the databases that tests ask for by name, with the schema that the migrations make.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from dicom_node.queries import make_engine, make_sessions, upgrade_schema
from tests.servers import RabbitMQ, Redis, create_database, run_postgres

os.environ.setdefault("OMP_NUM_THREADS", "1")

_numbers = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="tests/validation: all of it, not a sample")


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("KNOWMVG__")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def umask_of_ones_own() -> Iterator[None]:
    """A command that runs in this process keeps its files to itself, and so would every test after it."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a PostgreSQL server, without a database name."""
    with run_postgres() as url:
        yield url


@pytest.fixture
def postgres_url(postgres_server: str) -> str:
    """An empty PostgreSQL database of the test's own."""
    return create_database(postgres_server, f"test_{next(_numbers)}")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database on each engine that the node supports."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/knowmvg.db"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A database with the schema that the migrations make."""
    upgrade_schema(database_url)
    engine = make_engine(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def sessions(engine: Engine) -> sessionmaker[Session]:
    """Sessions on such a database."""
    return make_sessions(engine)


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[Redis]:
    """A Redis server of the test's own, which it may kill and start again."""
    server = Redis(tmp_path)
    yield server
    server.kill()


@pytest.fixture(scope="session")
def _rabbitmq() -> Iterator[RabbitMQ]:
    server = RabbitMQ()
    yield server
    server.close()


@pytest.fixture
def rabbitmq_server(_rabbitmq: RabbitMQ) -> RabbitMQ:
    """A RabbitMQ server without queues, which the test may kill and start again; it takes seconds to start."""
    _rabbitmq.reset()
    return _rabbitmq
