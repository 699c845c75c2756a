"""What several commands share: the options, the settings they start from, and the database they open."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dicom_node.config import Settings, load_settings
from dicom_node.errors import NodeError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session, sessionmaker

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Configuration file [default: config.yaml here if there is one, else the built-in defaults]",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")]

_AGO = re.compile(r"^(\d+)\s*([smhdw])$")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


PRIVATE = 0o077
"""What the node writes holds patients' data: files are 0600 and folders 0700, whatever the user's shell says."""


def keep_private() -> None:
    """Have this process write files that this user alone can read."""
    os.umask(PRIVATE)


def share_cores() -> None:
    """Have torch's threads sleep while they wait for each other; before torch is imported.

    They spin by default, and on cores that others use too (of the queue `io`, of the archive) they spin while the one
    that they wait for is not let run: the model took 0.5 to 5 seconds then instead of 0.2.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def begin(process: str, config: Path | None) -> Settings:
    """Return the settings of a long-running command, its log lines named after `process`."""
    from dicom_node.logs import configure_logging

    keep_private()
    share_cores()
    settings = load_settings(config)
    configure_logging(process)
    return settings


def open_sessions(settings: Settings) -> sessionmaker[Session]:
    """Return the session factory of the job database; raises NodeError if it is away or its schema is old."""
    from sqlalchemy.exc import DBAPIError

    from dicom_node.queries import check_schema, make_engine, make_sessions

    refuse_absent_file(settings)
    engine = make_engine(settings.database.url)
    try:
        check_schema(engine)
    except DBAPIError as error:
        raise NodeError(describe_database_error(settings, error.orig)) from error
    return make_sessions(engine)


def refuse_absent_file(settings: Settings) -> None:
    """Raise NodeError where the SQLite file is missing, which would be made, empty, by looking into it."""
    path = settings.database.url.removeprefix("sqlite:///")
    if path != settings.database.url and not Path(path).exists():
        raise NodeError(f"there is no job database at {path} yet; `knowmvg up` or `knowmvg db upgrade` makes it")


def describe_database_error(settings: Settings, error: BaseException | None) -> str:
    """Return a sentence for a database that does not answer, without its password."""
    from dicom_node.config import masked

    return f"database {masked(settings)['database']['url']} cannot be used: {error}; see database.url"


def parse_since(text: str, now: datetime) -> datetime:
    """Return the instant that `text` means: 45m, 2h, 3d ago, or an ISO time (UTC unless it names its zone)."""
    text = text.strip()
    try:
        if match := _AGO.match(text):
            return now - timedelta(**{_UNITS[match[2]]: int(match[1])})
        instant = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise typer.BadParameter(
            f"{text!r} is neither an age such as 45m, 2h or 3d nor a time such as 2026-01-31T12:00"
        ) from None
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)
