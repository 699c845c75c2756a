"""What an administrator changes from the command line: one transaction each, with its audit event."""

from __future__ import annotations

import getpass
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from dicom_node.cli.options import open_sessions
from dicom_node.clock import utc_now
from dicom_node.config import Settings
from dicom_node.errors import NodeError

if TYPE_CHECKING:
    from dicom_node.queries import Change


def audited_change(settings: Settings, numbers: Sequence[int], change: Change, done: str, reason: str) -> None:
    """Apply `change` to each; exit 1 if any refused it. `done` is printed and `reason` audited, with the number."""
    sessions = open_sessions(settings)
    from dicom_node.queries import Author, change_audited

    author, refused = Author(getpass.getuser(), "cli"), 0
    for number in numbers:
        try:
            with sessions.begin() as session:
                change_audited(session, change, number, author, reason, utc_now())
            typer.echo(done.format(number))
        except NodeError as error:
            refused += 1
            typer.echo(f"knowmvg: {error}", err=True)
    if refused:
        raise typer.Exit(1)
