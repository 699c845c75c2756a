"""The commands of the administrator: effective configuration, migrations, and whether everything can work."""

from __future__ import annotations

from typing import Annotated

import typer

from dicom_node.cli.options import (
    ConfigOption,
    JsonOption,
    describe_database_error,
    keep_private,
    open_sessions,
    parse_since,
    refuse_absent_file,
)
from dicom_node.cli.terminal import print_json, print_table
from dicom_node.clock import utc_now
from dicom_node.config import load_settings, masked
from dicom_node.errors import NodeError

db_app = typer.Typer(help="The schema of the job database.", no_args_is_help=True, rich_markup_mode=None)


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module to `app`."""
    app.command()(check)
    app.command("config")(show_config)
    app.command("audit")(show_audit)
    app.add_typer(db_app, name="db")


def check(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Try every part of the node, one line each.

    Configuration, database, broker, storage, every destination and the model; exit status 1 if any fails.
    """
    from dicom_node.cli.checks import run_checks

    checks = []
    for outcome in run_checks(config):
        checks.append(outcome)
        if not as_json:
            typer.echo(outcome.line)
    if as_json:
        print_json({"ok": all(outcome.ok for outcome in checks), "checks": [outcome.to_json() for outcome in checks]})
    if not all(outcome.ok for outcome in checks):
        raise typer.Exit(1)


def show_config(config: ConfigOption = None) -> None:
    """Print the effective configuration as YAML.

    Passwords are masked.
    """
    import yaml

    typer.echo(yaml.safe_dump(masked(load_settings(config)), sort_keys=False, allow_unicode=True), nl=False)


def show_audit(
    config: ConfigOption = None,
    since: Annotated[str | None, typer.Option(metavar="T", help="Since then: 45m, 2h, 3d ago, or an ISO time.")] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most so many, the latest first.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List the audit trail, the latest first.

    Who was refused, what came and went, what administrators did.
    """
    after = parse_since(since, utc_now()) if since else None
    settings = load_settings(config)
    from dicom_node.queries import list_audit

    with open_sessions(settings).begin() as session:
        entries = list_audit(session, limit, since=after)
    if as_json:
        print_json([entry.to_json() for entry in entries])
        return
    rows = [
        [f"{entry.at:%Y-%m-%d %H:%M:%S}", entry.process, entry.event.kind, entry.event.actor or entry.event.peer,
         entry.event.actor_address, entry.event.study_instance_uid, entry.event.reason]
        for entry in entries
    ]  # fmt: skip
    print_table(("AT (UTC)", "PROCESS", "EVENT", "WHO", "FROM", "STUDY", "WHY"), rows)


@db_app.command()
def upgrade(config: ConfigOption = None) -> None:
    """Bring the schema of the job database to this version of the node."""
    keep_private()
    settings = load_settings(config)
    from sqlalchemy.exc import DBAPIError

    from dicom_node.queries import upgrade_schema

    try:
        upgrade_schema(settings.database.url)
    except DBAPIError as error:
        raise NodeError(describe_database_error(settings, error.orig)) from error
    except OSError as error:
        raise NodeError(describe_database_error(settings, error)) from error
    typer.echo(f"{masked(settings)['database']['url']} has the newest schema.", err=True)


@db_app.command()
def current(config: ConfigOption = None) -> None:
    """Print the revision of the schema, and whether it is the one this version needs."""
    settings = load_settings(config)
    from sqlalchemy.exc import DBAPIError

    from dicom_node.queries import check_schema, current_revision, make_engine

    try:
        refuse_absent_file(settings)
        engine = make_engine(settings.database.url)
        typer.echo(current_revision(engine) or "(no schema)")
        check_schema(engine)
    except DBAPIError as error:
        raise NodeError(describe_database_error(settings, error.orig)) from error
