"""The command `knowmvg sample-pack`: sample studies with their results, for integrators."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dicom_node.errors import NodeError


def add_commands(app: typer.Typer) -> None:
    """Add the command of this module to `app`."""
    app.command("sample-pack")(sample_pack)


def sample_pack(
    out: Annotated[Path, typer.Option("--out", file_okay=False, metavar="DIR", help="A new folder, or an older pack.")],
) -> None:
    """Write sample studies with their results, pictures and the logs of validators.

    Exit status 1 if a validator that is installed finds an error.
    """
    from dicom_node.cli.sample_studies import CASES, write_pack

    try:
        verdicts = write_pack(out)
    except OSError as error:
        raise NodeError(f"the sample pack cannot be written to {out}: {error}") from error
    absent = sorted({verdict.tool for verdict in verdicts if not verdict.ran})
    faulty = [verdict for verdict in verdicts if verdict.errors]
    typer.echo(f"{out}: {len(CASES)} cases, {len(verdicts)} validations, {len(faulty)} with errors; read README.txt")
    for name in absent:
        typer.echo(f"{name}: not installed")
    for verdict in faulty:
        typer.echo(f"{verdict.summary}: {verdict.errors[0]}", err=True)
    if faulty:
        raise typer.Exit(1)
