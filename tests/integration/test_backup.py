"""Backups on both engines: what is in them, what is told of what is not, and what is left when they are cut off."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from sqlalchemy import insert, select, text
from sqlalchemy.orm import Session, sessionmaker

from dicom_node import queries
from dicom_node.audit import AuditEvent
from dicom_node.backup import (
    FILES,
    MANIFEST,
    SEAL,
    Manifest,
    Node,
    digest_of,
    find_backup,
    list_backups,
    make_backup,
    read_manifest,
    remove_old,
    verify_backup,
)
from dicom_node.errors import NodeError, SchemaError
from dicom_node.queries.inserting import table_of
from dicom_node.queries.snapshot import TABLES
from dicom_node.restoring import Place, Restored, restore_backup
from dicom_node.storage import FileStorage
from dicom_node.tables import DestinationRow, InstanceRow, JobRow
from tests.builders import make_cxr_dataset, make_report_dataset
from tests.fakes import FakePacs
from tests.rig import QUIET_S, Rig, make_sqlite_sessions
from workers.scheduler import apply_retention

CUT_OFF = 9
ROOT = Path(__file__).parents[2]


@pytest.fixture
def rig(tmp_path: Path, sessions: sessionmaker[Session]) -> Iterator[Rig]:
    """A node that delivered one study, with a second one under way and a conflict."""
    with FakePacs() as pacs:
        archive = {"name": "a", "ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port}
        rig = Rig(tmp_path, sessions, [], destinations=[archive], retention={"inputs_days": 1})
        store(rig, "delivered")
        rig.settle(seconds=QUIET_S)
        store(rig, "under way")
        rig.store(make_cxr_dataset(study="delivered", PatientComments="other bytes"))
        yield rig


def store(rig: Rig, study: str) -> int:
    film = make_cxr_dataset(study=study, PatientName="Müller^Jörg")
    rig.store(film)
    job_id = rig.store(make_report_dataset(study=study, image=film)).job_id
    assert job_id is not None
    return job_id


def node_of(rig: Rig, database_url: str, storage: FileStorage | None = None) -> Node:
    return Node(database_url, rig.sessions, storage or rig.storage, "test")


def back_up(rig: Rig, url: str, folder: Path, storage: FileStorage | None = None, **options: Any) -> Any:
    rig.clock.move(seconds=1)
    return make_backup(node_of(rig, url, storage), folder, rig.clock, **options)


def restore(backup: Path, url: str, folder: Path, rig: Rig, **options: Any) -> tuple[Manifest, Restored]:
    workspace = Path(url.removeprefix("sqlite:///")).parent if url.startswith("sqlite") else folder
    workspace.mkdir(parents=True, exist_ok=True)
    return restore_backup(
        backup, Place(url, FileStorage(folder / "dicom"), workspace), rig.clock(), note_nothing, **options
    )


def note_nothing(session: Session, manifest: Manifest) -> None:
    assert manifest.version == "test"
    assert session.scalar(text("SELECT count(*) FROM jobs"))


def rows_of(url: str) -> Mapping[str, list[Any]]:
    """Return all rows of a database, as the node reads them."""
    engine = queries.make_engine(url)
    try:
        with engine.connect() as connection:
            return {table.name: sorted(map(repr, connection.execute(select(table)))) for table in TABLES}
    finally:
        engine.dispose()


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.dcm")}


@pytest.fixture
def elsewhere(tmp_path: Path, postgres_server: str, request: pytest.FixtureRequest) -> Callable[[str], str]:
    """Names of empty databases on either engine."""
    from tests.servers import create_database

    def make(engine: str) -> str:
        if engine == "sqlite":
            return f"sqlite:///{tmp_path}/elsewhere/jobs.db"
        return create_database(postgres_server, f"elsewhere_{abs(hash(request.node.nodeid))}")

    return make


@pytest.mark.parametrize("into", ["sqlite", "postgresql"])
def test_every_row_and_every_file_comes_back_on_either_engine(
    rig: Rig, database_url: str, tmp_path: Path, elsewhere: Callable[[str], str], into: str
) -> None:
    before = rows_of(database_url)
    path, manifest, _ = back_up(rig, database_url, tmp_path / "backups")
    assert list(verify_backup(path)) == []
    assert manifest.rows == {name: len(rows) for name, rows in before.items()}
    url = elsewhere(into)
    _, done = restore(path, url, tmp_path / "elsewhere", rig)
    assert rows_of(url) == before
    assert (done.put, done.present, done.faults) == (len(manifest.files), 0, [])
    assert files_of(tmp_path / "elsewhere" / "dicom") == files_of(rig.storage.root)
    assert len(manifest.files) == len({one.key for one in manifest.files}) >= 7
    engine = queries.make_engine(url)
    with queries.make_sessions(engine).begin() as session:  # numbers of rows go on where they ended
        queries.note_audit(session, AuditEvent("application start"), "test", rig.clock())
    queries.check_schema(engine)
    engine.dispose()
    assert len(rows_of(url)["audit"]) == len(before["audit"]) + 1


def test_odd_values_survive_the_change_of_engine(
    rig: Rig, database_url: str, tmp_path: Path, elsewhere: Callable[[str], str]
) -> None:
    odd = 'tab\t, new\nline, \\N, \\, "quoted", 山田, \U0001f9bb and nothing after'
    with rig.sessions.begin() as session:
        session.execute(insert(table_of(DestinationRow)), [{"name": "odd", "failures": 0, "last_error": odd}])
        session.execute(insert(table_of(DestinationRow)), [{"name": "empty", "failures": 2**31 - 1, "last_error": ""}])
        queries.note_audit(session, AuditEvent("application start", reason=odd), "test", rig.clock())
        job = session.scalars(select(JobRow)).first()
        assert job is not None
        job.timings, job.model = {"ground": 0.1 + 0.2, "odd": odd}, None
        job.step_since = rig.clock() + timedelta(microseconds=1)
    before = rows_of(database_url)
    other = "postgresql" if database_url.startswith("sqlite") else "sqlite"
    path, _, _ = back_up(rig, database_url, tmp_path / "backups")
    url = elsewhere(other)
    restore(path, url, tmp_path / "elsewhere", rig)
    assert rows_of(url) == before


def test_nobody_works_on_what_is_restored_and_that_is_no_death(
    rig: Rig, database_url: str, tmp_path: Path, elsewhere: Callable[[str], str]
) -> None:
    rig.sweep(seconds=QUIET_S)  # COMPLETE
    with rig.sessions.begin() as session:
        job = session.scalars(select(JobRow).where(JobRow.state == "COMPLETE")).one()
        job.lease_token, job.lease_until = "somebody", rig.clock() + timedelta(hours=1)
    path, _, _ = back_up(rig, database_url, tmp_path / "backups")
    restore(path, url := elsewhere("sqlite"), tmp_path / "elsewhere", rig)
    engine = queries.make_engine(url)
    with queries.make_sessions(engine)() as session:
        job = session.scalars(select(JobRow).where(JobRow.state == "COMPLETE")).one()
        assert (job.lease_token, job.lease_until, job.deaths, job.due_at) == (None, None, 0, rig.clock())
    engine.dispose()


def test_the_next_backup_links_what_is_there_and_each_is_whole(rig: Rig, database_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    first, before, copied = back_up(rig, database_url, folder)
    assert (copied.linked, len(before.files)) == (0, len(copied.files))
    store(rig, "new")
    second, after, copied = back_up(rig, database_url, folder)
    assert (copied.linked, len(after.files)) == (len(before.files), len(before.files) + 2)
    key = before.files[0].key
    assert (first / FILES / key).samefile(second / FILES / key)
    third, _, copied = back_up(rig, database_url, folder, full=True)
    assert copied.linked == 0
    assert not (second / FILES / key).samefile(third / FILES / key)
    assert list_backups(folder) == [first, second, third]
    assert remove_old(folder, 1) == [first, second]
    assert list_backups(folder) == [third] == [find_backup(folder)]
    assert list(verify_backup(third)) == []
    assert not any(path.name.endswith(".part") for path in folder.iterdir())


def test_a_damaged_backup_does_not_end_those_that_follow(rig: Rig, database_url: str, tmp_path: Path) -> None:
    first, _, _ = back_up(rig, database_url, tmp_path / "backups")
    (first / MANIFEST).write_text("{}")
    second, manifest, copied = back_up(rig, database_url, tmp_path / "backups")
    assert (copied.linked, len(copied.files)) == (0, len(manifest.files))
    assert list(verify_backup(second)) == []


class Retaining(FileStorage):
    """A storage in which the retention rule strikes just before the first file is read."""

    def __init__(self, rig: Rig) -> None:
        super().__init__(rig.storage.root)
        self.rig, self.done = rig, False

    def open(self, key: str) -> BinaryIO:
        if not self.done:
            self.done = True
            self.rig.clock.move(days=2)
            apply_retention(self.rig.resources)
        return super().open(key)


def test_what_retention_removes_meanwhile_is_told_and_its_row_says_so(
    rig: Rig, database_url: str, tmp_path: Path, elsewhere: Callable[[str], str]
) -> None:
    path, manifest, _ = back_up(rig, database_url, tmp_path / "backups", Retaining(rig))
    assert len(manifest.removed) == 2
    assert (manifest.missing, manifest.damaged) == ((), ())
    assert list(verify_backup(path)) == []
    restore(path, url := elsewhere("sqlite"), tmp_path / "elsewhere", rig)
    engine = queries.make_engine(url)
    with queries.make_sessions(engine)() as session:
        removed = session.scalars(select(InstanceRow).where(InstanceRow.removed_at.is_not(None))).all()
        assert sorted(row.sop_instance_uid for row in removed) == sorted(manifest.removed)
    engine.dispose()


def test_what_is_missing_or_damaged_in_the_storage_is_told(rig: Rig, database_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "backups"
    _, whole, _ = back_up(rig, database_url, folder)
    result, received, damaged = (
        next(one.key for one in whole.files if "-result-" in one.key),
        *[one.key for one in whole.files if "-result-" not in one.key][:2],
    )
    rig.storage.remove(result)
    rig.storage.remove(received)
    content = rig.storage.path(damaged).read_bytes()
    rig.storage.path(damaged).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    path, manifest, _ = back_up(rig, database_url, folder, full=True)
    assert (set(manifest.missing), manifest.damaged) == ({result, received}, (damaged,))
    assert len(list(verify_backup(path))) == 3
    assert len(manifest.files) == len(whole.files) - 3
    _, mended, _ = back_up(rig, database_url, tmp_path / "linking", full=True)
    assert mended.missing
    # a backup that links has them still, from the one before
    shutil.rmtree(path)
    _, linked, _ = back_up(rig, database_url, folder)
    assert (linked.missing, linked.damaged, len(linked.files)) == ((), (), len(whole.files))


def parts_of(backup: Path) -> list[Path]:
    return sorted(path for path in backup.rglob("*") if path.is_file())


def test_every_damaged_byte_is_found_and_not_restored(
    rig: Rig, database_url: str, tmp_path: Path, elsewhere: Callable[[str], str]
) -> None:
    path, _, _ = back_up(rig, database_url, tmp_path / "backups")
    url = elsewhere("sqlite")
    for part in parts_of(path):
        shutil.rmtree(tmp_path / "elsewhere", ignore_errors=True)
        content = part.read_bytes()
        at = len(content) // 2
        part.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        if part.name in (MANIFEST, SEAL):
            with pytest.raises(NodeError, match="manifest"):
                list(verify_backup(path))
        else:
            assert len(list(verify_backup(path))) == 1, part
        with pytest.raises(NodeError, match=r"damaged|cannot be read"):
            restore(path, url, tmp_path / "elsewhere", rig)
        assert not Path(url.removeprefix("sqlite:///")).exists()
        part.write_bytes(content)
    assert list(verify_backup(path)) == []


def test_what_is_whole_of_a_damaged_backup_is_restored_when_that_is_asked_for(
    rig: Rig, database_url: str, tmp_path: Path, elsewhere: Callable[[str], str]
) -> None:
    path, manifest, _ = back_up(rig, database_url, tmp_path / "backups")
    first, second = (path / FILES / one.key for one in manifest.files[:2])
    first.write_bytes(b"")
    second.unlink()
    with pytest.raises(NodeError, match="2 file"):
        restore(path, elsewhere("sqlite"), tmp_path / "elsewhere", rig)
    _, done = restore(path, url := elsewhere("sqlite"), tmp_path / "elsewhere", rig, force=True)
    assert len(done.faults) == 2
    assert done.put + done.present == len(manifest.files) - 2
    assert rows_of(url) == rows_of(database_url)
    assert list((tmp_path / "elsewhere" / "dicom" / "incoming").iterdir()) == []


def test_a_database_that_holds_something_is_not_overwritten_unless_that_is_said(
    rig: Rig, database_url: str, tmp_path: Path
) -> None:
    path, _, _ = back_up(rig, database_url, tmp_path / "backups")
    kept = rows_of(database_url)
    store(rig, "later")
    later = rows_of(database_url)
    place = Path(database_url.removeprefix("sqlite:///")).parent if "sqlite" in database_url else tmp_path
    with pytest.raises(NodeError, match="not empty"):
        restore(path, database_url, place, rig)
    assert rows_of(database_url) == later
    restore(path, database_url, place, rig, force=True)
    assert rows_of(database_url) == kept
    store(rig, "after all")  # over connections that were open all the time


def test_other_bytes_in_the_storage_are_not_overwritten_unless_that_is_said(
    rig: Rig, database_url: str, tmp_path: Path, elsewhere: Callable[[str], str]
) -> None:
    path, manifest, _ = back_up(rig, database_url, tmp_path / "backups")
    there = FileStorage(tmp_path / "elsewhere" / "dicom")
    there.put(manifest.files[0].key, b"other bytes")
    with pytest.raises(NodeError, match="other bytes"):
        restore(path, elsewhere("sqlite"), tmp_path / "elsewhere", rig)
    assert there.path(manifest.files[0].key).read_bytes() == b"other bytes"
    restore(path, elsewhere("sqlite"), tmp_path / "elsewhere", rig, force=True)
    assert files_of(there.root) == files_of(rig.storage.root)


def reseal(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest, and make its digest again."""
    values = json.loads((path / MANIFEST).read_text())
    change(values)
    (path / MANIFEST).write_text(json.dumps(values))
    (path / SEAL).write_text(f"{digest_of(path / MANIFEST)[0]}  {MANIFEST}\n")


@pytest.mark.parametrize("key", ["../../escaped.dcm", "/escaped.dcm", "a/../../escaped.dcm", ""])
def test_a_manifest_leads_nowhere_outside(rig: Rig, database_url: str, tmp_path: Path, key: str) -> None:
    path, _, _ = back_up(rig, database_url, tmp_path / "backups")
    reseal(path, lambda values: values["files"][0].update(key=key))
    with pytest.raises(NodeError, match="outside"):
        read_manifest(path)


def test_a_backup_of_a_newer_node_is_refused(
    rig: Rig, database_url: str, tmp_path: Path, elsewhere: Callable[[str], str]
) -> None:
    path, _, _ = back_up(rig, database_url, tmp_path / "backups")
    reseal(path, lambda values: values.update(schema="9999"))
    with pytest.raises(NodeError, match="newer version"):
        restore(path, elsewhere("sqlite"), tmp_path / "elsewhere", rig)
    reseal(path, lambda values: values.update(format=2))
    with pytest.raises(NodeError, match="newer version"):
        read_manifest(path)


@pytest.mark.parametrize("into", ["sqlite", "postgresql"])
def test_a_backup_of_an_older_node_is_upgraded(
    tmp_path: Path, rig: Rig, elsewhere: Callable[[str], str], into: str
) -> None:
    from alembic import command

    from dicom_node.queries.schema import make_config

    engine = queries.make_engine(old := f"sqlite:///{tmp_path}/old/jobs.db")
    with engine.begin() as connection:
        command.upgrade(make_config(connection), "0004")
        at = "2026-01-02 03:04:05.000006"
        connection.execute(text(f"INSERT INTO studies VALUES ('1.2', 1, 'P', 'A', '{at}')"))
        connection.execute(
            text(
                "INSERT INTO jobs (job_id, study_instance_uid, revision, state, attempts, deaths, due_at, timings, "
                "first_instance_at, last_instance_at, step_since, created_at, updated_at) VALUES "
                f"(7, '1.2', 1, 'RECEIVING', 0, 0, '{at}', '{{}}', '{at}', '{at}', '{at}', '{at}', '{at}')"
            )
        )
    engine.dispose()
    path, manifest, _ = back_up(rig, old, tmp_path / "backups")
    assert manifest.schema == "0004"
    restore(path, url := elsewhere(into), tmp_path / "elsewhere", rig)
    engine = queries.make_engine(url)
    queries.check_schema(engine)
    with queries.make_sessions(engine)() as session:
        job = session.scalars(select(JobRow)).one()
        assert (job.job_id, job.priority, job.step_since.isoformat()) == (7, "ROUTINE", f"{at}+00:00".replace(" ", "T"))
    engine.dispose()


def test_a_snapshot_that_is_no_database_of_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "odd.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(NodeError, match="no job database"):
        queries.snapshot_revision(tmp_path / "odd.sqlite")


def test_two_backups_at_once_do_not_disturb_each_other(rig: Rig, database_url: str, tmp_path: Path) -> None:
    refused: list[str] = []

    class Second(FileStorage):
        def open(self, key: str) -> BinaryIO:
            if not refused:
                with pytest.raises(NodeError) as caught:
                    back_up(rig, database_url, tmp_path / "backups")
                refused.append(str(caught.value))
            return super().open(key)

    path, _, _ = back_up(rig, database_url, tmp_path / "backups", Second(rig.storage.root))
    assert "another backup" in refused[0]
    assert list(verify_backup(path)) == []


def test_a_full_disk_leaves_no_backup_and_the_next_one_is_whole(rig: Rig, database_url: str, tmp_path: Path) -> None:
    class Failing(FileStorage):
        def open(self, key: str) -> BinaryIO:
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        back_up(rig, database_url, tmp_path / "backups", Failing(rig.storage.root))
    assert [path.name for path in (tmp_path / "backups").iterdir()] == [".lock"]
    path, _, _ = back_up(rig, database_url, tmp_path / "backups")
    assert list(verify_backup(path)) == []


CUT = """
import os, sys
from datetime import UTC, datetime
from pathlib import Path
from dicom_node import backup, queries, restoring
from dicom_node.storage import FileStorage

what, url, root, folder, number = sys.argv[1:]

class Cut(FileStorage):
    left = int(number)
    def _count(self):
        self.left -= 1
        if self.left < 0:
            os._exit(9)
    def open(self, key):
        self._count()
        return super().open(key)
    def put(self, key, source):
        self._count()
        return super().put(key, source)

now = lambda: datetime(2026, 1, 2, 13, tzinfo=UTC)
if what == "backup":
    sessions = queries.make_sessions(queries.make_engine(url))
    backup.make_backup(backup.Node(url, sessions, Cut(Path(root)), "test"), Path(folder), now)
else:
    place = restoring.Place(url, Cut(Path(root)), Path(root).parent)
    restoring.restore_backup(Path(folder), place, now(), lambda session, manifest: None)
"""


def cut_off(what: str, url: str, root: Path, folder: Path, number: int) -> int:
    """Run a backup or a restore in a process that dies at its file `number`; return its exit status."""
    command = [sys.executable, "-c", CUT, what, url, str(root), str(folder), str(number)]
    return subprocess.run(command, cwd=ROOT, check=False, timeout=60).returncode


@pytest.mark.parametrize("number", [0, 4])
def test_a_backup_that_is_killed_leaves_nothing_that_looks_like_one(
    rig: Rig, database_url: str, tmp_path: Path, number: int
) -> None:
    folder = tmp_path / "backups"
    first, _, _ = back_up(rig, database_url, folder)
    store(rig, "new")
    assert cut_off("backup", database_url, rig.storage.root, tmp_path / "fresh", number) == CUT_OFF
    assert list_backups(tmp_path / "fresh") == []
    with pytest.raises(NodeError, match="no backup"):
        find_backup(tmp_path / "fresh")
    assert any(path.suffix == ".part" for path in (tmp_path / "fresh").iterdir())
    assert cut_off("backup", database_url, rig.storage.root, folder, 0) == CUT_OFF  # beside one that is whole
    assert list_backups(folder) == [first]
    assert list(verify_backup(first)) == []
    for place in (folder, tmp_path / "fresh"):
        path, _, _ = back_up(rig, database_url, place)
        assert list(verify_backup(path)) == []
        assert not any(one.suffix == ".part" for one in place.iterdir())


@pytest.mark.parametrize("into", ["sqlite", "postgresql"])
def test_a_restore_that_is_killed_has_not_begun_and_is_begun_again(
    rig: Rig, database_url: str, tmp_path: Path, elsewhere: Callable[[str], str], into: str
) -> None:
    path, manifest, _ = back_up(rig, database_url, tmp_path / "backups")
    url, root = elsewhere(into), tmp_path / "elsewhere" / "dicom"
    root.parent.mkdir()
    assert cut_off("restore", url, root, path, 3) == CUT_OFF
    if into == "sqlite":
        assert not Path(url.removeprefix("sqlite:///")).exists()
    else:
        assert queries.filled_tables(url) == {}
    assert len(files_of(root)) == 3
    _, done = restore(path, url, root.parent, rig)
    assert (done.put, done.present) == (len(manifest.files) - 3, 3)
    assert rows_of(url) == rows_of(database_url)
    assert files_of(root) == files_of(rig.storage.root)
    assert not list(root.parent.glob("*.restoring*"))


def test_nothing_of_a_restore_into_postgresql_stays_if_its_last_step_fails(
    tmp_path: Path, elsewhere: Callable[[str], str]
) -> None:
    sessions = make_sqlite_sessions(tmp_path)
    with sessions.begin() as session:
        session.add(DestinationRow(name="too long" * 9))  # only SQLite takes this
    rig = Rig(tmp_path, sessions, [])
    store(rig, "one")
    path, _, _ = back_up(rig, f"sqlite:///{tmp_path}/knowmvg.db", tmp_path / "backups")
    url = elsewhere("postgresql")
    with pytest.raises(NodeError, match="too long"):
        restore(path, url, tmp_path / "elsewhere", rig)
    assert queries.filled_tables(url) == {}
    engine = queries.make_engine(url)
    with pytest.raises(SchemaError, match="no schema yet"):
        queries.check_schema(engine)
    engine.dispose()


def test_the_files_are_what_the_manifest_says_and_private(rig: Rig, database_url: str, tmp_path: Path) -> None:
    path, manifest, _ = back_up(rig, database_url, tmp_path / "backups")
    for one in manifest.files:
        assert digest_of(path / FILES / one.key) == (one.sha256, one.size)
        assert (path / FILES / one.key).stat().st_mode & 0o077 == 0
    assert Manifest.from_json(manifest.to_json()) == replace(manifest, rows=dict(manifest.rows))
