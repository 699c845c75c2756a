"""Statements that SQLite is given as they are: what SQLAlchemy does for each call takes longer than the answer.

They are written, typed and compiled by SQLAlchemy Core like all others, but compiled once. On PostgreSQL, where a round
trip costs more than both, it runs them itself. For what is asked for every instance that comes; all else is not worth
it.
"""

from __future__ import annotations

import sqlite3
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import Column, Connection, Delete, Dialect, Insert, Select, Update, bindparam
from sqlalchemy.exc import DBAPIError

KEPT = 512
"""Statements that are kept compiled: those of a few questions, for each number of keys up to that of a group."""

Convert = Callable[[Any], Any]


class KeyedQuestion:
    """A question about those rows that have one of some keys; of each number of keys it is one statement."""

    def __init__(self, statement: Select[Any], column: Column[str]) -> None:
        self._statement, self._column = statement, column
        self._by_count: dict[int, Select[Any]] = {}

    def ask(self, connection: Connection, keys: Sequence[str]) -> Sequence[Any]:
        """Return the rows; no statement is run about no keys."""
        if not keys:
            return ()
        statement = self._by_count.get(len(keys))
        if statement is None:
            names = [bindparam(f"key_{number}", type_=self._column.type) for number in range(len(keys))]
            statement = self._by_count.setdefault(len(keys), self._statement.where(self._column.in_(names)))
        return fetch(connection, statement, [{f"key_{number}": key for number, key in enumerate(keys)}])


def fetch(connection: Connection, statement: Select[Any] | Insert, rows: Sequence[Mapping[str, Any]]) -> Sequence[Any]:
    """Run a statement that returns rows for each of `rows`, which have all of its values; return all that it returns.

    Raises DBAPIError, as SQLAlchemy does.
    """
    if connection.dialect.name != "sqlite":
        return connection.execute(statement, rows if len(rows) > 1 else rows[0]).all()
    given = _give(statement, tuple(rows[0]), connection.dialect)
    cursor: Any = connection.connection.cursor()
    found: list[Any] = []
    try:
        for row in rows:
            cursor.execute(given.sql, given.bind(row))
            found += cursor.fetchall()
    except sqlite3.Error as error:
        raise _as_raised(error, given.sql, connection.dialect) from error
    finally:
        cursor.close()
    return [given.load(row) for row in found]


def write(connection: Connection, statement: Insert | Update | Delete, rows: Sequence[Mapping[str, Any]]) -> int:
    """Run a statement that returns nothing for each of `rows`; return how many rows of the database an update changed.

    Raises DBAPIError, as SQLAlchemy does.
    """
    if connection.dialect.name != "sqlite":
        return connection.execute(statement, rows if len(rows) > 1 else rows[0]).rowcount
    given = _give(statement, tuple(rows[0]), connection.dialect)
    cursor: Any = connection.connection.cursor()
    try:
        cursor.executemany(given.sql, [given.bind(row) for row in rows])
        return int(cursor.rowcount)
    except sqlite3.Error as error:
        raise _as_raised(error, given.sql, connection.dialect) from error
    finally:
        cursor.close()


@dataclass(frozen=True, slots=True)
class _Given:
    """A statement as the driver takes it: its text, and how values go in and come out."""

    sql: str
    parameters: tuple[tuple[str, Convert | None], ...]
    constants: Mapping[str, Any]
    columns: tuple[Convert | None, ...]
    make_row: Callable[..., Any]

    def bind(self, row: Mapping[str, Any]) -> tuple[Any, ...]:
        values = {**self.constants, **row} if self.constants else row
        return tuple([convert(values[name]) if convert else values[name] for name, convert in self.parameters])

    def load(self, row: Sequence[Any]) -> Any:
        return self.make_row(
            *[convert(value) if convert else value for convert, value in zip(self.columns, row, strict=True)]
        )


@lru_cache(KEPT)
def _give(statement: Select[Any] | Insert | Update | Delete, names: tuple[str, ...], dialect: Dialect) -> _Given:
    is_select = isinstance(statement, Select)
    compiled: Any = statement.compile(dialect=dialect, column_keys=None if is_select else list(names))
    ordered = compiled.positiontup or ()
    columns = tuple(statement.exported_columns)
    return _Given(
        str(compiled),
        tuple((name, compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect)) for name in ordered),
        {name: compiled.params[name] for name in ordered if name not in names},
        tuple(column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns),
        namedtuple("Row", [column.key for column in columns]),  # type: ignore[misc]
    )


def _as_raised(error: sqlite3.Error, sql: str, dialect: Dialect) -> BaseException:
    """Return the error as SQLAlchemy raises it; without values, which are patients' data."""
    return DBAPIError.instance(sql, None, error, sqlite3.Error, hide_parameters=True, dialect=dialect)
