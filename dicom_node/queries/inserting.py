"""Inserting rows whose key may be taken, on either engine."""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Table
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from dicom_node.queries.direct import fetch
from dicom_node.tables import Base


def table_of(row: type[Base]) -> Table:
    """Return the table of a mapped row: statements on it are cheaper than those on the row."""
    table = row.__table__
    assert isinstance(table, Table)
    return table


@functools.cache
def _insert_or_ignore(dialect: str, row: type[Base]) -> Any:
    table = table_of(row)
    to = postgresql if dialect == "postgresql" else sqlite
    return to.insert(table).on_conflict_do_nothing().returning(*table.primary_key.columns)


def insert_new(connection: Connection, row: type[Base], rows: Sequence[Mapping[str, Any]]) -> Collection[Any]:
    """Insert those rows whose key is free, with all of their values; return their primary keys."""
    return fetch(connection, _insert_or_ignore(connection.dialect.name, row), rows) if rows else ()


def insert_or_ignore(session: Session, row: type[Base], **values: Any) -> bool:
    """Insert a row unless its key is taken; return whether it was inserted."""
    session.flush()
    return bool(session.connection().execute(_insert_or_ignore(session.get_bind().dialect.name, row), [values]).all())
