"""Snapshots of the job database: one SQLite file, whatever engine it is taken of and loaded into.

SQLite is copied by its online backup; of PostgreSQL every table is read in one REPEATABLE READ transaction. Neither
holds a writer back, and both hold everything that was committed before they began. A snapshot is a database of the
schema it was taken with: it is upgraded as one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Boolean, Connection, Engine, Float, Integer, Table, inspect, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.orm import Session
from sqlalchemy.types import TypeEngine

from dicom_node.errors import NodeError, SchemaError
from dicom_node.queries.engine import make_engine, make_sessions
from dicom_node.queries.leases import give_back_leases, lease_tokens
from dicom_node.queries.schema import SCHEMA_REVISION, UPGRADE_LOCK, make_config, upgrade_schema
from dicom_node.tables import Base, InstanceRow, StudyRow, UtcDateTime

TABLES: tuple[Table, ...] = tuple(Base.metadata.sorted_tables)
"""Those that others refer to come first."""

VERSION_TABLE = "alembic_version"
INSTANT = "%Y-%m-%d %H:%M:%S.%f"
"""How SQLAlchemy keeps an instant in SQLite; they are compared as texts, so that it must be exactly this."""


@dataclass(frozen=True, slots=True)
class Referenced:
    """A file that a row refers to. `sha256` and `size` are what the row says; `is_result`: the digest is of the whole
    file, else of the dataset in it. Size is None where the row has none."""

    key: str
    sha256: str
    size: int | None
    sop_instance_uid: str
    is_result: bool


# ---- taking ----------------------------------------------------------------------------------------------------------


def take_snapshot(url: str, target: Path) -> None:
    """Write a snapshot of the database to the new file `target`. Raises DBAPIError if the database is away."""
    source = make_url(url)
    if source.get_backend_name() == "sqlite":
        with closing(sqlite3.connect(str(source.database))) as there, closing(sqlite3.connect(target)) as here:
            there.backup(here)  # all pages at once: a writer meanwhile neither waits nor makes it begin again
    else:
        _read_postgresql(url, target)
    close_file(target)


def close_file(path: Path) -> None:
    """Leave a SQLite database as one file without a journal beside it. Raises NodeError where it is damaged."""
    try:
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
            found = connection.execute("PRAGMA quick_check").fetchone()[0]
    except sqlite3.DatabaseError as error:
        raise NodeError(f"{path} is no sound SQLite database: {error}") from error
    if found != "ok":
        raise NodeError(f"the job database is damaged, its snapshot does not pass SQLite's check: {found}")


def _read_postgresql(url: str, target: Path) -> None:
    upgrade_schema(f"sqlite:///{target}")
    engine = make_engine(url)
    try:
        with engine.connect().execution_options(isolation_level="REPEATABLE READ") as source, source.begin():
            source.execute(text("SET TRANSACTION READ ONLY"))
            source.execute(text("SET LOCAL statement_timeout = 0"))
            revision = source.scalar(text(f"SELECT version_num FROM {VERSION_TABLE}"))
            if revision != SCHEMA_REVISION:
                raise SchemaError(
                    f"the database has the schema {revision}, not {SCHEMA_REVISION}: `knowmvg db upgrade`"
                )
            with closing(sqlite3.connect(target)) as here, here:
                for table in TABLES:
                    _insert(here, table, _rows_of(source, table))
    finally:
        engine.dispose()


def _rows_of(source: Connection, table: Table) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of a PostgreSQL table as SQLite keeps them."""
    readers = [_reader(column.type) for column in table.columns]
    driver: Any = source.connection.driver_connection
    with _plain_errors(table), driver.cursor() as cursor, cursor.copy(f"COPY {_named(table)} TO STDOUT") as copy:
        for row in copy.rows():
            yield tuple(None if value is None else read(value) for read, value in zip(readers, row, strict=True))


def _insert(here: sqlite3.Connection, table: Table, rows: Iterable[tuple[Any, ...]]) -> None:
    places = ", ".join("?" for _ in table.columns)
    here.executemany(f"INSERT INTO {_named(table)} VALUES ({places})", rows)


def _reader(kind: TypeEngine[Any]) -> Callable[[str], Any]:
    """Return what makes of PostgreSQL's text the value that SQLite holds."""
    if isinstance(kind, UtcDateTime):
        return lambda value: datetime.fromisoformat(value).astimezone(UTC).strftime(INSTANT)
    if isinstance(kind, Boolean):
        return lambda value: int(value == "t")
    if isinstance(kind, Integer):
        return int
    return float if isinstance(kind, Float) else str


@contextmanager
def _plain_errors(table: Table) -> Iterator[None]:
    """Turn what PostgreSQL's driver raises into NodeError; only the first line holds nothing of a row."""
    import psycopg

    try:
        yield
    except psycopg.Error as error:
        reason = str(error).partition("\n")[0]
        raise NodeError(f"the table {table.name} cannot be copied: {reason or type(error).__name__}") from error


def _named(table: Table) -> str:
    columns = ", ".join(f'"{column.name}"' for column in table.columns)
    return f'"{table.name}" ({columns})'


# ---- reading ---------------------------------------------------------------------------------------------------------


def snapshot_revision(path: Path) -> str:
    """Return the schema that a snapshot has. Raises NodeError where it is no database of a node."""
    try:
        with closing(_open_to_read(path)) as connection:
            row = connection.execute(f"SELECT version_num FROM {VERSION_TABLE}").fetchone()
    except sqlite3.DatabaseError as error:
        raise NodeError(f"{path} is no job database: {error}") from error
    return str(row[0]) if row else ""


def count_rows(path: Path) -> dict[str, int]:
    """Return how many rows each table of a snapshot has."""
    with closing(_open_to_read(path)) as connection:
        return {name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in _names(connection)}


def referenced_files(path: Path) -> Iterator[Referenced]:
    """Yield the files that a snapshot's rows refer to, but for what the retention rule removed."""
    with closing(_open_to_read(path)) as connection:
        for statement, is_result in _REFERENCES:
            for key, sha256, size, uid in connection.execute(statement):
                yield Referenced(key, sha256, size, uid, is_result)


_REFERENCES = (
    ("SELECT storage_key, sha256, size_bytes, sop_instance_uid FROM instances WHERE removed_at IS NULL", False),
    ("SELECT storage_key, sha256, NULL, sop_instance_uid FROM conflicts", False),
    ("SELECT storage_key, sha256, NULL, sop_instance_uid FROM results", True),
)


def is_removed(session: Session, sop_instance_uid: str) -> bool:
    """Tell whether the retention rule removed the bytes of an instance; one that is at it is waited for."""
    statement = (
        select(InstanceRow.removed_at)
        .join(StudyRow, StudyRow.study_instance_uid == InstanceRow.study_instance_uid)
        .where(InstanceRow.sop_instance_uid == sop_instance_uid)
        .with_for_update(key_share=True, of=StudyRow)
    )
    return session.scalar(statement) is not None


def note_removed(path: Path, sop_instance_uids: Iterable[str], at: datetime) -> None:
    """Have a snapshot say that the bytes of these instances were removed: it must not promise what is not there."""
    rows = [(at.astimezone(UTC).strftime(INSTANT), uid) for uid in sop_instance_uids]
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany("UPDATE instances SET removed_at = ? WHERE sop_instance_uid = ?", rows)


def _open_to_read(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)


def _names(connection: sqlite3.Connection) -> list[str]:
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    return sorted({row[0] for row in names} - {VERSION_TABLE})


# ---- loading ---------------------------------------------------------------------------------------------------------


def prepare_snapshot(path: Path, now: datetime, note: Callable[[Session], None]) -> None:
    """Make a copy of a snapshot ready to be worked on: the schema of this version, and nobody at work on anything.

    `note` adds what is to be kept of it. Raises SchemaError if it is of a newer version.
    """
    url = f"sqlite:///{path}"
    upgrade_schema(url)
    engine = make_engine(url)
    try:
        with make_sessions(engine).begin() as session:
            for token in lease_tokens(session):  # their holders are gone with the original: no deaths
                give_back_leases(session, token, now)
            note(session)
    finally:
        engine.dispose()
    close_file(path)


def filled_tables(url: str) -> Mapping[str, int]:
    """Return the tables of a database that hold anything, with the number of their rows; a SQLite file must exist."""
    engine = make_engine(url)
    try:
        with engine.connect() as connection:
            known = {table.name: table for table in TABLES}
            names = sorted(set(inspect(connection).get_table_names()) & known.keys())
            counts = {name: _count_of(connection, known[name]) for name in names}
    finally:
        engine.dispose()
    return {name: count for name, count in counts.items() if count}


def _count_of(connection: Connection, table: Table) -> int:
    return connection.scalar(text(f'SELECT count(*) FROM "{table.name}"')) or 0


def load_snapshot(path: Path, url: str) -> None:
    """Have the database hold what a prepared snapshot holds, and nothing else: all of it in one step, or nothing.

    A new SQLite database is `path`, moved there; an old one is overwritten in a transaction of its own.
    """
    target = make_url(url)
    if target.get_backend_name() != "sqlite":
        return _write_postgresql(path, make_engine(url))
    there = Path(str(target.database))
    if not there.exists():
        path.replace(there)
        return None
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(there)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        source.backup(connection)
    path.unlink()
    return None


def _write_postgresql(path: Path, engine: Engine) -> None:
    from alembic import command

    try:
        with engine.begin() as connection, closing(_open_to_read(path)) as source:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": UPGRADE_LOCK})
            for name in (*(table.name for table in reversed(TABLES)), VERSION_TABLE):
                connection.execute(text(f'DROP TABLE IF EXISTS "{name}"'))
            command.upgrade(make_config(connection), "head")
            for table in TABLES:
                _fill(connection, table, source)
    finally:
        engine.dispose()


def _fill(connection: Connection, table: Table, source: sqlite3.Connection) -> None:
    columns = ", ".join(f'"{column.name}"' for column in table.columns)
    writers = [_writer(column.type) for column in table.columns]
    driver: Any = connection.connection.driver_connection
    with _plain_errors(table), driver.cursor() as cursor:
        with cursor.copy(f"COPY {_named(table)} FROM STDIN") as copy:
            for row in source.execute(f'SELECT {columns} FROM "{table.name}"'):
                copy.write_row(
                    [None if value is None else write(value) for write, value in zip(writers, row, strict=True)]
                )
        for column in table.primary_key.columns:
            if isinstance(column.type, Integer):
                _count_on(connection, table.name, column.name)


def _count_on(connection: Connection, table: str, column: str) -> None:
    """Have the sequence of a column go on where its rows end."""
    last = f'SELECT coalesce(max("{column}"), 0) + 1 FROM "{table}"'
    connection.execute(text(f"SELECT setval(pg_get_serial_sequence('{table}', '{column}'), ({last}), false)"))


def _writer(kind: TypeEngine[Any]) -> Callable[[Any], str]:
    """Return what makes of a value in SQLite PostgreSQL's text."""
    if isinstance(kind, UtcDateTime):
        return lambda value: f"{value}+00"
    if isinstance(kind, Boolean):
        return lambda value: "t" if value else "f"
    if isinstance(kind, JSON):
        return str
    return repr if isinstance(kind, Float) else str
