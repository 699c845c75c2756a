"""The original is destroyed while studies arrive, and a node is made of the last backup: elsewhere, on both engines.

What was acknowledged before the backup began is in it, byte for byte; its jobs go on to the archive, which holds each
result once. What came later, its senders send again.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select

from dicom_node import queries
from dicom_node.storage import FileStorage, dataset_digest
from dicom_node.tables import InstanceRow
from tests.acceptance.peers import Node, wait_until
from tests.builders import decode
from tests.fakes import FakePacs
from tests.faults.site import Site, Tally, make_study
from tests.servers import Postgres

BEFORE, AFTER = 6, 4
"""Studies that are acknowledged before the backup begins, and after it has ended."""


@pytest.fixture
def databases(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """URLs of the original's database, and of the one that is restored into."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/original/var/jobs.db", f"sqlite:///{tmp_path}/elsewhere/var/jobs.db"
    server: Postgres = request.getfixturevalue("postgres")
    return server.create("original"), server.create("elsewhere")


@pytest.fixture
def postgres(request: pytest.FixtureRequest) -> Postgres:
    server = Postgres()
    request.addfinalizer(server.close)
    return server


def make_node(folder: Path, pacs: FakePacs, url: str) -> Node:
    archive = {"name": "archive", "ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port}
    return Node(folder, destinations=[archive], database={"url": url})


def load(site: Site, stop: threading.Event) -> None:
    """Send studies, one each three seconds, until told to stop."""
    number = 0
    while not stop.wait(3):
        number += 1
        site.send(make_study(f"load {threading.get_ident()} {number}", images=2))


def held_by(node: Node, site: Site) -> dict[str, tuple[Path, str]]:
    """Return where each instance is kept, and the digest of its dataset."""
    engine = queries.make_engine(Site(node, site.pacs).settings.database.url)
    storage = FileStorage(Site(node, site.pacs).settings.storage.root)
    try:
        with queries.make_sessions(engine)() as session:
            rows = session.scalars(select(InstanceRow)).all()
    finally:
        engine.dispose()
    return {row.sop_instance_uid: (storage.path(row.storage_key), row.sha256) for row in rows}


def run_command(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a command that needs no configuration."""
    command = [sys.executable, "-m", "dicom_node.cli", *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("databases", ["sqlite", "postgresql"], indirect=True)
def test_a_node_is_destroyed_under_load_and_made_again_of_its_backup(
    tmp_path: Path, pacs: FakePacs, databases: tuple[str, str], record_property: Callable[[str, object], None]
) -> None:
    original, elsewhere = (
        make_node(tmp_path / name, pacs, url) for name, url in zip(("original", "elsewhere"), databases, strict=True)
    )
    backups, stop = tmp_path / "backups", threading.Event()
    original.start()
    site = Site(original, pacs)
    # The kernel ends what a thread started with that thread, so that it is senders that get threads here.
    with ThreadPoolExecutor(2) as pool:
        senders = [pool.submit(load, site, stop) for _ in range(2)]
        wait_until(lambda: len(pacs.structured_reports()) >= BEFORE, "some studies to be delivered", 240)
        pacs.status = 0xA700  # from here on results wait, so that the backup holds work under way
        wait_until(lambda: len(site.acknowledged) >= 3 * 2 * BEFORE, "more to come", 240)
        before = set(site.acknowledged)
        made = original.run("backup", str(backups))
        during = len(site.acknowledged) - len(before)
        ended = len(site.studies)
        wait_until(lambda: len(site.studies) >= ended + AFTER, "more to come after the backup", 240)
        stop.set()
        for sender in senders:
            sender.result()
    assert original.process is not None
    original.process.kill()
    shutil.rmtree(original.folder / "var")
    assert "schema" in made.stdout, made.stderr

    verified = run_command("backup", "verify", str(backups))
    assert verified.returncode == 0, verified.stdout
    elsewhere.run("restore", str(backups))
    sent = {ds.SOPInstanceUID: ds for datasets in site.studies.values() for ds in datasets}
    held = held_by(elsewhere, site)
    assert before - held.keys() == set()
    for uid in before:
        path, sha256 = held[uid]
        with path.open("rb") as file:
            assert dataset_digest(file)[0] == sha256
        assert decode(path.read_bytes()) == sent[uid]

    pacs.status = 0x0000
    elsewhere.start()
    try:
        restored = Site(elsewhere, pacs)
        restored.acknowledged = set(before)
        whole = {uid: them for uid, them in site.studies.items() if all(ds.SOPInstanceUID in before for ds in them)}
        restored.studies = dict(whole)
        tried = (
            f"{len(before)} instances before the backup, {during} while it was made, {len(site.acknowledged)} in all"
        )
        tally = restored.count(Tally(f"the original destroyed ({databases[0].split(':')[0]}), restored", tried), 400)
        assert tally.counts == (0, 0, 0, 0)
        assert len(whole) > BEFORE
        for datasets in site.studies.values():  # the senders have what came later
            restored.acknowledged -= {ds.SOPInstanceUID for ds in datasets}
            restored.send(datasets)
        tally = restored.count(tally, 400)
        tally.publish(record_property)
        assert tally.counts == (0, 0, 0, 0)
        audit = elsewhere.run("audit", "--json", "--limit", "5000").stdout
        assert '"backup restored"' in audit
        assert '"backup made"' not in audit  # it was noted after the snapshot
    finally:
        elsewhere.stop()
