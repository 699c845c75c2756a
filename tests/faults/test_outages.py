"""Outages under load: the broker flushed and away, the database read-only, locked or away, the disk full.

What is refused is refused for now, the sender keeps it, and all of it is done soon after the outage ends.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.acceptance.peers import Node, missing, wait_until
from tests.fakes import FakePacs
from tests.faults.site import Site, Tally, make_study, part_files, stray_files, try_store
from tests.servers import Postgres, Redis

ANSWERS = {-2: "rejected for now", None: "none"}
FOR_NOW = {0x0000, 0xA700, -2, None}
"""What a sender may see: success, out of resources, a rejection for now, nothing at all."""


@contextmanager
def running(folder: Path, pacs: FakePacs, **sections: Any) -> Iterator[Site]:
    archive = {"name": "archive", "ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port}
    node = Node(folder, destinations=[archive], **sections)
    node.start()
    try:
        yield Site(node, pacs)
    finally:
        node.stop()


@pytest.fixture
def postgres() -> Iterator[Postgres]:
    server = Postgres()
    yield server
    server.close()


@pytest.mark.timeout(900)
def test_a_broker_that_is_flushed_and_away(
    tmp_path: Path, pacs: FakePacs, redis_server: Redis, full: bool, record_property: Callable[[str, object], None]
) -> None:
    count, away_s = (40, 60.0) if full else (10, 5.0)
    with running(tmp_path / "node", pacs, broker={"url": redis_server.url}) as site:
        with ThreadPoolExecutor(1) as pool:
            sending = pool.submit(site.send_all, [f"broker {number}" for number in range(count)])
            time.sleep(2)
            redis.Redis.from_url(redis_server.url).flushall()
            redis_server.kill()
            time.sleep(away_s)
            sending.result()  # the door needs no broker
            site.send(make_study("broker late"))
            redis_server.start()
            returned = time.monotonic()
        row = Tally("broker flushed and stopped under load", f"{away_s:.0f} s, {count + 1} studies")
        tally = site.count(row, 300)
        tally.measured = {"done so many s after its return": round(time.monotonic() - returned, 1)}
    tally.publish(record_property)
    assert tally.counts == (0, 0, 0, 0)
    assert site.statuses <= FOR_NOW
    assert tally.measured["done so many s after its return"] < 60


@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", ["read-only", "away"])
def test_a_database_that_cannot_be_written(
    tmp_path: Path, pacs: FakePacs, postgres: Postgres, full: bool, fault: str,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    count, away_s = (40, 30.0) if full else (8, 5.0)
    url = postgres.create("jobs")
    with running(tmp_path / "node", pacs, database={"url": url}) as site, ThreadPoolExecutor(1) as pool:
        sending = pool.submit(site.send_all, [f"database {number}" for number in range(count)])
        time.sleep(1)
        if fault == "away":
            postgres.kill()
        else:
            set_read_only(postgres, True)
        time.sleep(away_s)
        if fault == "away":
            postgres.start()
        else:
            set_read_only(postgres, False)
        returned = time.monotonic()
        sending.result()
        resumed = time.monotonic() - returned
        tally = site.count(Tally(f"database {fault} under load", f"{away_s:.0f} s, {count} studies"), 300)
    tally.measured = {"all acknowledged so many s after its return": round(resumed, 1)}
    tally.publish(record_property)
    assert tally.counts == (0, 0, 0, 0)
    assert site.statuses <= FOR_NOW


def set_read_only(postgres: Postgres, on: bool) -> None:
    postgres.run(f"ALTER SYSTEM SET default_transaction_read_only = {'on' if on else 'off'}")
    postgres.run("SELECT pg_reload_conf()")


@pytest.mark.timeout(900)
def test_a_database_that_is_locked(
    tmp_path: Path, pacs: FakePacs, full: bool, record_property: Callable[[str, object], None]
) -> None:
    count, locked_s = (40, 45.0) if full else (8, 6.0)
    with running(tmp_path / "node", pacs) as site, ThreadPoolExecutor(1) as pool:
        path = site.settings.database.url.removeprefix("sqlite:///")
        sending = pool.submit(site.send_all, [f"locked {number}" for number in range(count)])
        time.sleep(1)
        lock = sqlite3.connect(path, timeout=30, isolation_level=None)
        lock.execute("BEGIN IMMEDIATE")
        time.sleep(locked_s)
        lock.execute("ROLLBACK")
        lock.close()
        sending.result()
        tally = site.count(Tally("database locked by another process", f"{locked_s:.0f} s, {count} studies"), 300)
    tally.publish(record_property)
    assert tally.counts == (0, 0, 0, 0)
    assert site.statuses <= FOR_NOW


# ---- the disk --------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Give a file system of that size."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        missing("a small file system cannot be mounted by this user")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fill the file system to the last byte, and return what fills it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1024**2, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return ballast


@pytest.mark.timeout(900)
@pytest.mark.parametrize("watched", [True, False], ids=["with a limit", "to the last byte"])
def test_a_disk_that_is_full(
    tmp_path: Path, pacs: FakePacs, full: bool, watched: bool, record_property: Callable[[str, object], None]
) -> None:
    count, full_s, rounds = (20, 20.0, 3) if full else (5, 4.0, 1)
    limit = 24 * 1024**2 if watched else 0
    with small_disk(tmp_path / "disk", 160) as disk:
        sections = {"receiver": {"min_free_bytes": limit}, "node": {"data_dir": str(disk / "var")}}
        with running(tmp_path / "node", pacs, **sections) as site:
            resumed = [disk_round(site, disk, (number, count, full_s)) for number in range(rounds)]
            name = f"disk full {'(min_free_bytes)' if watched else 'to the last byte'}"
            tally = site.count(Tally(name, f"{rounds} times {full_s:.0f} s, {rounds * count} studies"), 300)
            strays = stray_files(site.settings)
        left = part_files(site.settings)
    tally.measured = {
        "acknowledged again after s (longest)": round(max(resumed), 1), "corrupt files": len(strays),
        "half-written files": len(left),
        "answers": sorted(ANSWERS.get(status, f"0x{status or 0:04X}") for status in site.statuses),
    }  # fmt: skip
    tally.publish(record_property)
    assert tally.counts == (0, 0, 0, 0)
    assert (strays, left) == ([], [])
    assert site.statuses <= FOR_NOW
    assert max(resumed) < 10 + LEEWAY_S


LEEWAY_S = 5.0
"""For a machine that is busy with other tests."""


def disk_round(site: Site, disk: Path, plan: tuple[int, int, float]) -> float:
    """Send while the disk is full and after it; return how long after there was space something was acknowledged."""
    number, count, full_s = plan
    studies = [make_study(f"disk {number} {one}", 3) for one in range(count)]
    site.studies |= {study[0].StudyInstanceUID: study for study in studies}
    site.send(studies[0])
    ballast = fill(disk)
    stop = threading.Event()
    returned: list[float] = []

    def watch() -> None:
        stop.wait(full_s)
        ballast.unlink()
        returned.append(time.monotonic())

    watcher = threading.Thread(target=watch)
    watcher.start()
    began_with = len(site.acknowledged)
    resumed: list[float] = []

    def send() -> bool:
        done = [try_store(site.node.port, study, site.acknowledged, site.statuses) for study in studies]
        if len(site.acknowledged) > began_with and returned and not resumed:
            resumed.append(time.monotonic())
        return all(done)

    wait_until(send, "all to be acknowledged after the disk had space", 240)
    watcher.join()
    return max(0.0, (resumed or [time.monotonic()])[0] - returned[0])
