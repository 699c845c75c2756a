"""How the commands print: tables for people, JSON for programs. Nothing here knows what it prints."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import datetime

import typer

PIPED_WIDTH = 1000
"""Lines into a pipe or a file are never wrapped, so that grep finds a UID."""


def print_json(document: object) -> None:
    """Print one JSON document."""
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print aligned columns under their names; a terminal too narrow for them wraps inside the cells."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    console = Console(soft_wrap=False, width=None if sys.stdout.isatty() else PIPED_WIDTH)
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().splitlines():
        typer.echo(line.rstrip())


def printable(value: object) -> str:
    """Return `value` as one line without control characters, which could move a terminal's cursor."""
    if value is None:
        return "-"
    return "".join(letter if letter.isprintable() else " " for letter in str(value))


def printable_instant(text: str) -> str:
    """Return an ISO instant to the second, as `2026-01-31 12:00:00`."""
    return f"{datetime.fromisoformat(text):%Y-%m-%d %H:%M:%S}"
