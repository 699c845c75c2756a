"""What engines are told that they do not know: which index of a table leads to few rows."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, func


def unindexed(column: Any) -> ColumnElement[str]:
    """Return a column of texts as a value that no index leads to.

    SQLite keeps no statistics: of an index of states, where all but a few rows are DELIVERED, and one that leads to the
    two jobs of a study, it may take the first.
    """
    return func.coalesce(column, "")
