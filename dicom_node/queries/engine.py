"""Engines as the node needs them: durable commits, writers that wait for each other, dead connections noticed.

SQLite: WAL, a sync per commit, and every transaction that may write takes the write lock at its start, because one that
reads first and then writes cannot wait for another writer and fails. One that only reads waits for nobody.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker

SQLITE_WAIT_S = 30
"""For the write lock: transactions are milliseconds long, but a checkpoint on a slow disk may take seconds."""

SQLITE_AGAIN_S = 0.01

SQLITE_PACE_S = 0.002
"""So long a connection waits by itself before it is asked again: SQLite's own waits grow to 100 ms, fifty times as
long as the transactions that they wait for, so that of several processes none would get on."""

SQLITE_LOG_PAGES = 16_384
"""So long (64 MiB) SQLite's log gets before a commit copies it into the database by itself: `copy_log` does that, so
that nobody who waits for a commit waits for pages all over a large database. Without a scheduler it stays bounded."""

POSTGRESQL_OPTIONS = "-c timezone=UTC -c synchronous_commit=on -c lock_timeout=15s -c statement_timeout=60s"
"""A commit that is answered is on disk, whatever the server's default; nothing waits for ever."""

ENGINE: dict[str, Any] = {"pool_size": 8, "max_overflow": 16, "pool_timeout": 30, "hide_parameters": True}
"""Parameters stay out of what is raised, and so out of the log: they are patients' data."""

DATABASE_ERRORS = (DBAPIError, PoolTimeoutError)
"""All that a database raises."""

AWAY_ERRORS = (OperationalError, InterfaceError, InternalError, PoolTimeoutError)
"""What it raises while it is away, full, locked or read-only; the rest is about what it was asked."""


ONLY_READS = "only_reads"
"""Execution option of connections whose transactions write nothing."""


class Sessions(sessionmaker[Session]):
    """A factory of sessions: `with sessions() as session` reads, `with sessions.begin() as session` is a transaction.

    On SQLite the former takes no lock, and what it would write is not kept; `kw["bind"]` is the engine of the latter.
    """

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine, expire_on_commit=False)
        self._for_reading = engine.execution_options(**{ONLY_READS: True})

    def __call__(self, **options: Any) -> Session:
        """Return a session that reads, unless it is given another `bind`."""
        return super().__call__(**{"bind": self._for_reading} | options)

    def begin(self) -> AbstractContextManager[Session]:
        """Begin a transaction, which is committed at the end of the block."""
        return self._begin()

    @contextmanager
    def _begin(self) -> Iterator[Session]:
        with self(bind=self.kw["bind"]) as session, session.begin():
            yield session


def make_engine(url: str) -> Engine:
    """Return an engine for `url` (sqlite or postgresql+psycopg); nothing is connected yet."""
    parsed = make_url(url)
    return _make_sqlite(parsed) if parsed.get_backend_name() == "sqlite" else _make_postgresql(parsed)


def make_sessions(engine: Engine) -> sessionmaker[Session]:
    """Return the factory of sessions; `with sessions.begin() as session` is one transaction."""
    return Sessions(engine)


def explain(error: Exception) -> str:
    """Return what a database says, fit for a log: without statements and their values, which may be a patient's."""
    if isinstance(error, OperationalError | InterfaceError | InternalError) and error.orig is not None:
        return str(error.orig).partition("\n")[0]
    cause = error.orig if isinstance(error, DBAPIError) else None
    return type(cause or error).__name__


def probe(session: Session) -> str:
    """Return why nothing can be written now, or an empty text. Raises DBAPIError where the database does not answer.

    On SQLite the beginning of the transaction takes the write lock, which tells already.
    """
    if session.get_bind().dialect.name == "sqlite":
        session.execute(text("SELECT 1"))
        return ""
    read_only = session.scalar(text("SELECT current_setting('transaction_read_only')"))
    return "the database is read-only" if read_only == "on" else ""


def copy_log(sessions: sessionmaker[Session]) -> None:
    """Copy what SQLite's log holds into the database, beside readers and writers; other databases do so themselves.

    Raises DBAPIError.
    """
    engine: Engine = sessions.kw["bind"]
    if engine.dialect.name == "sqlite":
        with closing(engine.raw_connection()) as connection:
            connection.cursor().execute("PRAGMA wal_checkpoint(PASSIVE)")


def _make_postgresql(url: URL) -> Engine:
    arguments = {"connect_timeout": 10, "application_name": "knowmvg", "options": POSTGRESQL_OPTIONS}
    keep_alive = {"keepalives": 1, "keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
    return create_engine(url, connect_args=arguments | keep_alive, pool_pre_ping=True, pool_recycle=1800, **ENGINE)


def _make_sqlite(url: URL) -> Engine:
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(url, connect_args={"timeout": SQLITE_PACE_S}, **ENGINE)
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin)
    return engine


def _set_up_sqlite(connection: sqlite3.Connection, _: object) -> None:
    connection.isolation_level = None  # transactions begin where we say, not where the driver thinks
    _switch_to_wal(connection)
    for pragma in ("synchronous=FULL", "foreign_keys=ON", f"wal_autocheckpoint={SQLITE_LOG_PAGES}"):
        connection.execute(f"PRAGMA {pragma}")


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Switch to WAL; of two that do so at once SQLite refuses one without waiting, because each waits for the other."""
    deadline = time.monotonic() + SQLITE_WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() > deadline:
                raise
            time.sleep(SQLITE_AGAIN_S)
        else:
            return


def _begin(connection: Connection) -> None:
    """Begin a transaction; what it has to wait for it waits for here, and no statement of it afterwards.

    One that may write takes the write lock. One that only reads takes its view of the database, for which it waits for
    nobody but who opens or closes that.
    """
    if connection.get_execution_options().get(ONLY_READS):
        _wait_for(connection, "BEGIN")
        _wait_for(connection, "SELECT 1 FROM sqlite_schema LIMIT 1")
    else:
        _wait_for(connection, "BEGIN IMMEDIATE")


def _wait_for(connection: Connection, statement: str) -> None:
    """Run a statement as soon as the database lets it, within `SQLITE_WAIT_S`."""
    deadline = time.monotonic() + SQLITE_WAIT_S
    driver: Any = connection.connection.driver_connection
    while time.monotonic() < deadline:
        try:
            driver.execute(statement)
        except sqlite3.OperationalError as error:
            if not _is_busy(error):
                break
        else:
            return
    connection.exec_driver_sql(statement)  # which raises what SQLAlchemy makes of it


def _is_busy(error: sqlite3.OperationalError) -> bool:
    """Tell whether another connection is in the way; the primary code is the lowest byte (SQLITE_BUSY_RECOVERY, …)."""
    return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
