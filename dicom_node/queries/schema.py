"""The schema of the job database: which revision it is at, whether this code can work with it, and its upgrade.

Migrations are Alembic's, in the folder `migrations` beside the packages; only `upgrade_schema` loads Alembic.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, Engine, inspect, text

from dicom_node.errors import SchemaError
from dicom_node.queries.engine import make_engine

if TYPE_CHECKING:
    from alembic.config import Config

SCHEMA_REVISION = "0007"
"""The revision that this version of the code works with: the last one in `migrations/versions`."""

MIGRATIONS = Path(__file__).parents[2] / "migrations"
UPGRADE_LOCK = 0x4B4E4F57
"""PostgreSQL advisory lock: of several processes that upgrade at once, one does."""


def current_revision(engine: Engine) -> str | None:
    """Return the revision of the schema, or None where there is none. Raises DBAPIError if the database is away."""
    with engine.connect() as connection:
        return _read_revision(connection)


def check_schema(engine: Engine) -> None:
    """Raise SchemaError, which says what to do, unless the schema is the one that this code works with."""
    revision = current_revision(engine)
    if revision == SCHEMA_REVISION:
        return
    where = engine.url.render_as_string(hide_password=True)
    if revision is None or revision < SCHEMA_REVISION:
        found = "no schema yet" if revision is None else f"the old schema {revision}"
        raise SchemaError(f"the database {where} has {found}, not {SCHEMA_REVISION}: run `knowmvg db upgrade`")
    raise SchemaError(
        f"the database {where} has the schema {revision} of a newer version of the node than this one "
        f"({SCHEMA_REVISION}): upgrade the node"
    )


def upgrade_schema(url: str) -> None:
    """Bring the schema to this version. Raises SchemaError if it is newer, DBAPIError if the database is away."""
    from alembic import command

    engine = make_engine(url)
    try:
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":
                connection.execute(text("SET LOCAL statement_timeout = 0"))
                connection.execute(text("SET LOCAL lock_timeout = '5min'"))
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": UPGRADE_LOCK})
            revision = _read_revision(connection)
            if revision is None or revision < SCHEMA_REVISION:
                command.upgrade(make_config(connection), "head")
        check_schema(engine)
    finally:
        engine.dispose()


def make_config(connection: Connection) -> Config:
    """Return Alembic's configuration for an open connection."""
    from alembic.config import Config

    # Left to itself Alembic writes to the standard output of the moment it was imported, which may be closed by now.
    config = Config(stdout=sys.stdout)
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def _read_revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
    return revision
