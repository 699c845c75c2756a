"""Faults of every kind in a small node: the alert that is about it fires within two minutes, no other does, it clears,
and `/readyz` tells what it is to tell."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from dicom_node import queries
from dicom_node.queries import make_engine, make_sessions, upgrade_schema
from dicom_node.queries.notifications import notify
from dicom_node.scp import start_receiver
from dicom_node.storage import FileStorage
from dicom_node.study import MAX_DEATHS
from tests.acceptance.peers import free_port, wait_until
from tests.builders import make_cxr_dataset
from tests.certificates import Authority
from tests.fakes import FakePacs
from tests.faults.site import associate
from tests.faults.test_outages import set_read_only, small_disk
from tests.faults.watched import RULES, WITHIN, Watched, check_alerts
from tests.hooks import Hook
from tests.rig import make_sqlite_sessions
from tests.servers import Postgres, Redis
from workers.resources import LEASE

SOON = 6
"""Scrapes after which an alert on what is now has cleared."""
LATE = 5 * 4 + 4
"""Scrapes after which one has that counts over five minutes."""


@dataclass
class Fault:
    """How a fault is made and ended, and what `/readyz` complains of meanwhile."""

    node: Watched
    begin: Callable[[], object]
    end: Callable[[], object]
    unready: tuple[str, ...] = ()
    during: Callable[[], object] = lambda: None
    """Done before each scrape of it."""
    lead: int = 0
    """Scrapes that the fault takes to be one."""
    clears: int = SOON


Make = Callable[[ExitStack, Path], Fault]


def small_node(stack: ExitStack, folder: Path, **sections: object) -> tuple[Watched, FakePacs]:
    """Return a node on SQLite, with an archive that listens."""
    pacs = stack.enter_context(FakePacs())
    sessions = make_sqlite_sessions(folder)
    stack.callback(sessions.kw["bind"].dispose)
    return Watched(folder, sessions, pacs, **sections), pacs


def postgres_node(stack: ExitStack, folder: Path) -> tuple[Watched, Postgres]:
    server = Postgres()
    stack.callback(server.close)
    url = server.create("jobs")
    upgrade_schema(url)
    engine = make_engine(url)
    stack.callback(engine.dispose)
    return Watched(folder, make_sessions(engine), database={"url": url}), server


def database_away(stack: ExitStack, folder: Path) -> Fault:
    node, server = postgres_node(stack, folder)
    return Fault(node, server.kill, server.start, ("database",))


def database_read_only(stack: ExitStack, folder: Path) -> Fault:
    node, server = postgres_node(stack, folder)
    engine = node.rig.sessions.kw["bind"]

    def switch(on: bool) -> None:
        set_read_only(server, on)
        engine.dispose()  # connections that are open go on as they were

    return Fault(node, lambda: switch(True), lambda: switch(False), ("database",))


def broker_away(stack: ExitStack, folder: Path) -> Fault:
    server = Redis(folder)
    stack.callback(server.close)
    node, _ = small_node(stack, folder, broker={"url": server.url})
    return Fault(node, server.kill, server.start, ("broker",))


def part_dead(role: str, *unready: str) -> Make:
    def make(stack: ExitStack, folder: Path) -> Fault:
        node, _ = small_node(stack, folder)
        return Fault(node, lambda: node.alive.discard(role), lambda: node.restart(role), unready)

    return make


def disk_nearly_full(stack: ExitStack, folder: Path) -> Fault:
    disk = stack.enter_context(small_disk(folder / "disk", 64))
    receiver = {"min_free_bytes": 8 * 1024**2, "peers": []}
    node, _ = small_node(stack, folder, storage={"url": f"file://{disk}/dicom"}, receiver=receiver)
    ballast = disk / "ballast"
    return Fault(node, lambda: ballast.write_bytes(bytes(52 * 1024**2)), ballast.unlink)


def storage_read_only(stack: ExitStack, folder: Path) -> Fault:
    disk = stack.enter_context(small_disk(folder / "disk", 64))
    node, _ = small_node(stack, folder, storage={"url": f"file://{disk}/dicom"})

    def remount(how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(disk)], check=True)

    return Fault(node, lambda: remount("ro"), lambda: remount("rw"), ("storage",))


def destination_down(stack: ExitStack, folder: Path) -> Fault:
    node, pacs = small_node(stack, folder)

    def begin() -> None:
        pacs.stop()
        node.store_study()

    return Fault(node, begin, pacs.start)


def dead_letter(stack: ExitStack, folder: Path) -> Fault:
    node, pacs = small_node(stack, folder)

    def begin() -> None:
        pacs.status = 0xA900
        node.store_study()

    def end() -> None:
        pacs.status = 0x0000
        with node.rig.sessions.begin() as session:
            for one in queries.list_dispatches(session, queries.DispatchFilter(state="DEAD")):
                queries.replay_dispatch(session, one.dispatch_id, node.rig.clock())

    return Fault(node, begin, end)


def archive_refuses(stack: ExitStack, folder: Path) -> Fault:
    node, pacs = small_node(stack, folder)

    def begin() -> None:
        pacs.status = 0xA700
        node.store_study()

    return Fault(node, begin, lambda: setattr(pacs, "status", 0x0000), clears=LATE)


def job_quarantined(stack: ExitStack, folder: Path) -> Fault:
    node, _ = small_node(stack, folder)
    take, lives = node.rig.run, [MAX_DEATHS]

    def die(task: str, number: int, **changes: object) -> None:
        """Take a job as workers do that are killed at it, each in turn."""
        if task != "ground" or not lives[0]:
            take(task, number, **changes)
            return
        lives[0] -= 1
        now = node.rig.clock()
        with node.rig.sessions.begin() as session:
            assert queries.claim(session, number, "COMPLETE", "killed", now, LEASE)
        with node.rig.sessions.begin() as session:
            assert queries.free_leases(session, "killed", now)

    def begin() -> None:
        node.rig.run = die  # type: ignore[method-assign]
        node.store_study()

    def end() -> None:
        with node.rig.sessions.begin() as session:
            queries.retry_job(session, 1, node.rig.clock())

    return Fault(node, begin, end)


def queue_too_old(stack: ExitStack, folder: Path) -> Fault:
    node, _ = small_node(stack, folder)

    def begin() -> None:
        node.hanging.add("worker gpu")
        node.store_study()

    return Fault(node, begin, node.hanging.clear, lead=40)


def unknown_sender(stack: ExitStack, folder: Path) -> Fault:
    node, _ = small_node(stack, folder, receiver={"min_free_bytes": 0, "port": 11112, "peers": []})
    settings = node.settings.model_copy(update={"receiver": node.settings.receiver.model_copy(update={"port": 0})})
    server = start_receiver(
        settings, node.rig.sessions, node.rig.storage, node.rig.clock, node.recorders["receiver"]
    )  # fmt: skip
    stack.callback(server.stop)

    def knock() -> None:
        association = associate(server.port, [make_cxr_dataset()], "STRANGER")
        assert association.is_rejected

    return Fault(node, knock, lambda: None, clears=LATE)


def model_fails(stack: ExitStack, folder: Path) -> Fault:
    node, _ = small_node(stack, folder)

    def begin() -> None:
        node.rig.grounder.error = RuntimeError("the device fails")
        node.store_study()

    return Fault(node, begin, lambda: setattr(node.rig.grounder, "error", None), clears=LATE)


def certificate_expires(stack: ExitStack, folder: Path) -> Fault:
    authority = Authority(folder / "authority")
    certificate, key = authority.issue("node")
    tls = {"certificate": str(certificate), "key": str(key), "require_client_certificate": False}
    node, _ = small_node(stack, folder, receiver={"min_free_bytes": 0, "peers": [], "tls": tls})
    good = certificate.read_bytes()
    soon, _ = authority.issue("soon", days=5)
    return Fault(node, lambda: certificate.write_bytes(soon.read_bytes()),
        lambda: certificate.write_bytes(good),
    )  # fmt: skip


def console_down(stack: ExitStack, folder: Path) -> Fault:
    node, _ = small_node(stack, folder)
    return Fault(node, lambda: node.alive.discard("console"), lambda: node.alive.add("console"))


def receiver_refuses(stack: ExitStack, folder: Path) -> Fault:
    """Have a receiver lose its storage, which the console's host still has."""
    node, _ = small_node(stack, folder)
    receiver = node.settings.receiver.model_copy(update={"port": 0})
    settings = node.settings.model_copy(update={"receiver": receiver})
    mount, recorder = folder / "mount", node.recorders["receiver"]
    (folder / "disk").mkdir()
    (folder / "nothing").write_text("no folder")
    mount.symlink_to(folder / "disk")
    server = start_receiver(settings, node.rig.sessions, FileStorage(mount / "dicom"), node.rig.clock, recorder)
    stack.callback(server.stop)

    def lead_to(name: str, closed: float) -> None:
        (folder / "link").symlink_to(folder / name)
        (folder / "link").replace(mount)
        wait_until(lambda: recorder.samples().get(("knowmvg_receivers_closed",)) == (closed,), "the receiver to see")

    return Fault(node, lambda: lead_to("nothing", 1), lambda: lead_to("disk", 0))


def model_slow(stack: ExitStack, folder: Path) -> Fault:
    """Have batches take 45 s each: told to the recorder as a worker tells it, for nobody is to wait for that."""
    node, _ = small_node(stack, folder)
    recorder = node.recorders["worker gpu"]
    return Fault(
        node, lambda: None, lambda: None, during=lambda: recorder.observe("knowmvg_batch_seconds", 45.0), clears=LATE
    )


def messages_held(stack: ExitStack, folder: Path) -> Fault:
    """Have a webhook be away when something is to be told."""
    port = free_port()
    hooks = [{"name": "chat", "url": f"http://127.0.0.1:{port}/"}]
    node, _ = small_node(stack, folder, notifications={"webhooks": hooks})

    def begin() -> None:
        with node.rig.sessions.begin() as session:
            notify(session, "destination recovered", "archive0", node.rig.clock())

    return Fault(node, begin, lambda: stack.callback(Hook(port).close), lead=40, clears=80)


FAULTS: dict[str, tuple[Make, str]] = {
    "console down": (console_down, "KnowmvgConsoleDown"),
    "database away": (database_away, "KnowmvgDatabaseAway"),
    "database read-only": (database_read_only, "KnowmvgDatabaseAway"),
    "broker away": (broker_away, "KnowmvgBrokerAway"),
    "receiver dead": (part_dead("receiver"), "KnowmvgReceiverDead"),
    "scheduler dead": (part_dead("scheduler", "scheduler", "broker"), "KnowmvgSchedulerDead"),
    "gpu worker dead": (part_dead("worker gpu"), "KnowmvgWorkerDead"),
    "io worker dead": (part_dead("worker io"), "KnowmvgWorkerDead"),
    "disk nearly full": (disk_nearly_full, "KnowmvgDiskLow"),
    "storage read-only": (storage_read_only, "KnowmvgStorageUnusable"),
    "receiver refuses": (receiver_refuses, "KnowmvgReceiverRefuses"),
    "destination down": (destination_down, "KnowmvgDestinationDown"),
    "dead letter": (dead_letter, "KnowmvgDeadLetters"),
    "archive refuses for now": (archive_refuses, "KnowmvgArchiveRefuses"),
    "job quarantined": (job_quarantined, "KnowmvgJobQuarantined"),
    "queue too old": (queue_too_old, "KnowmvgQueueOld"),
    "unknown sender": (unknown_sender, "KnowmvgUnknownSender"),
    "model fails": (model_fails, "KnowmvgGroundingFails"),
    "model slow": (model_slow, "KnowmvgModelSlow"),
    "certificate expires": (certificate_expires, "KnowmvgCertificateExpires"),
    "messages held": (messages_held, "KnowmvgNotificationsHeld"),
}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", FAULTS)
def test_the_right_alert_fires_and_clears(name: str, tmp_path: Path, stack: ExitStack) -> None:
    make, alert = FAULTS[name]
    fault = make(stack, tmp_path)
    node, seen = fault.node, fault.node.seen
    node.tick(8)
    assert seen.ready[-1] == ()
    fault.begin()
    node.tick(fault.lead, fault.during)
    began = len(seen.scrapes) - 1
    node.tick(WITHIN + 2, fault.during)
    ended = len(seen.scrapes) - 1
    assert set(seen.ready[ended]) == set(fault.unready)
    fault.end()
    node.tick(fault.clears)
    assert seen.ready[-1] == ()
    check_alerts(seen, tmp_path, alert, began, ended)


def test_every_rule_is_tried() -> None:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    assert {rule["alert"] for group in groups for rule in group["rules"]} == {alert for _, alert in FAULTS.values()}


def test_another_alert_than_the_fault_calls_for_would_be_noticed(tmp_path: Path, stack: ExitStack) -> None:
    node, _ = small_node(stack, tmp_path)
    node.tick(4)
    node.alive.discard("receiver")
    node.tick(WITHIN + 2)
    node.restart("receiver")
    node.tick(SOON)
    check_alerts(node.seen, tmp_path, "KnowmvgReceiverDead", 3, 3 + WITHIN + 2)
    for alert, began, ended in (
        ("KnowmvgWorkerDead", 3, 13),
        ("KnowmvgReceiverDead", 9, 13),
        ("KnowmvgReceiverDead", 3, 19),
    ):
        with pytest.raises(AssertionError):
            check_alerts(node.seen, tmp_path, alert, began, ended)
