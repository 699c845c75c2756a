"""kill -9 of every process, of the broker and of the database, while studies arrive: nothing is lost or doubled.

The sender does what a PACS does: it sends an instance again until it is answered with success.
"""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.peers import Node, wait_until
from tests.fakes import FakePacs
from tests.faults.site import Site, Tally, part_files
from tests.servers import Postgres, Redis

SEED = 20261127
ROLES = ("up", "receiver", "gpu", "io", "scheduler", "console")
"""A word of the command line of each process; `up` is the one that starts the others."""

END_S = 900


def make_node(folder: Path, pacs: FakePacs, **sections: Any) -> Node:
    archive = {"name": "archive", "ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port}
    return Node(folder, destinations=[archive], **sections)


@pytest.fixture
def node(tmp_path: Path, pacs: FakePacs) -> Iterator[Node]:
    node = make_node(tmp_path, pacs)
    node.start()
    yield node
    node.stop()


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.close()


class Killer:
    """Kills processes of a node, and its servers; starts again what nobody else does."""

    def __init__(self, node: Node, servers: dict[str, Any] | None = None) -> None:
        self.node, self.servers = node, servers or {}
        self.killed: list[str] = []
        self._lock = threading.Lock()

    def kill(self, role: str, away_s: float = 1.0) -> None:
        """Kill the process of this role as soon as there is one."""
        with self._lock:  # one at a time: the node that starts again must not be killed in its start by another
            if role in self.servers:
                self.servers[role].kill()
                threading.Event().wait(away_s)
                self.servers[role].start()
            else:
                # a quarter of the workers get SIGQUIT: Celery drops what it is at, already acknowledged
                number = signal.SIGQUIT if role in ("gpu", "io") and len(self.killed) % 4 == 0 else signal.SIGKILL
                wait_until(lambda: self.signal(role, number), f"a process {role}")
            self.killed.append(role)
            if role == "up":
                assert self.node.process is not None
                self.node.process.child.wait()
                self.node.start()

    def signal(self, role: str, number: signal.Signals) -> bool:
        """Send the process of this role a signal; False if there is none, or it ended before the signal came."""
        if (pid := self.find().get(role)) is None:
            return False
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return False
        return True

    def find(self) -> dict[str, int]:
        """Return the processes that run now, by role."""
        assert self.node.process is not None
        supervisor = self.node.process.child.pid
        found = {"up": supervisor}
        for pid in children_of(supervisor):
            words = command_of(pid)
            found |= {role: pid for role in ROLES if role in words}
        return found


def children_of(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def command_of(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except FileNotFoundError:
        return []


def plan_kills(dice: random.Random, roles: tuple[str, ...], studies: int, kills: int) -> dict[int, str]:
    """Return before which study which process is killed: each role at least once, the rest at random."""
    chosen = [*roles, *dice.choices(roles, k=kills - len(roles))]
    dice.shuffle(chosen)
    return dict(zip(sorted(dice.sample(range(1, studies), kills)), chosen, strict=True))


def kill_while_studies_arrive(site: Site, killer: Killer, plan: dict[int, str], sizes: tuple[int, int]) -> None:
    """Send studies of so many films, and kill what the plan says before each."""
    studies, images = sizes
    # The kernel ends what a thread started with that thread: the one that starts nodes lives until all is checked.
    pool = ThreadPoolExecutor(1)
    kills: list[Future[None]] = []

    def before(number: int) -> None:
        if role := plan.get(number):
            kills.append(pool.submit(killer.kill, role))

    site.send_all((f"kill {number}" for number in range(studies)), images, before=before)
    for kill in kills:
        kill.result()
    site.pool = pool  # type: ignore[attr-defined]  # it lives as long as the site


@pytest.mark.timeout(3000)
def test_kills_of_a_node_with_its_embedded_broker_and_sqlite(
    node: Node, pacs: FakePacs, full: bool, record_property: Callable[[str, object], None]
) -> None:
    studies, images, kills = (100, 9, 30) if full else (16, 2, 7)
    site, killer = Site(node, pacs), Killer(node)
    plan = plan_kills(random.Random(SEED), ROLES, studies, kills)
    kill_while_studies_arrive(site, killer, plan, (studies, images))
    tally = site.count(Tally("kill -9 of a process (SQLite, embedded broker)", tried(killer, studies, images)), END_S)
    tally.publish(record_property)
    assert tally.counts == (0, 0, 0, 0)
    assert sorted(killer.killed) == sorted(plan.values())
    node.stop()
    assert part_files(site.settings) == []


def tried(killer: Killer, studies: int, images: int) -> str:
    return f"{len(killer.killed)} kills, {studies * (images + 1)} instances of {studies} studies"


@pytest.mark.timeout(3000)
def test_kills_of_a_node_its_broker_and_its_database(
    tmp_path: Path, pacs: FakePacs, postgres: Postgres, redis_server: Redis, full: bool,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    studies, images, kills = (100, 9, 30) if full else (12, 2, 8)
    url = postgres.create("jobs")
    node = make_node(tmp_path / "node", pacs, database={"url": url}, broker={"url": redis_server.url})
    node.start()
    try:
        site, killer = Site(node, pacs), Killer(node, {"broker": redis_server, "database": postgres})
        plan = plan_kills(random.Random(SEED + 1), (*ROLES, "broker", "database"), studies, kills)
        kill_while_studies_arrive(site, killer, plan, (studies, images))
        row = Tally("kill -9 of a process, Redis or PostgreSQL", tried(killer, studies, images))
        tally = site.count(row, END_S)
        tally.publish(record_property)
        assert tally.counts == (0, 0, 0, 0)
    finally:
        node.stop()


@pytest.mark.timeout(200)
def test_node_stops_cleanly_and_a_second_one_is_refused(node: Node) -> None:
    second = node.run("up", check=False)
    assert second.returncode == 1
    assert "runs on" in second.stderr
    assert "node.data_dir" in second.stderr
    pids = list(Killer(node).find().values())
    assert len(pids) == len(ROLES)
    assert node.stop() == 0
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
