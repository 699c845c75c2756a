"""`knowmvg deliveries`: what is on its way to which destination, and dead letters sent again."""

from __future__ import annotations

from typing import Annotated, get_args

import typer

from dicom_node.cli.changing import audited_change
from dicom_node.cli.jobs import MAX_JOB_ID, ListByDefault
from dicom_node.cli.options import ConfigOption, JsonOption, open_sessions
from dicom_node.cli.terminal import print_json, print_table, printable_instant
from dicom_node.config import load_settings

app = typer.Typer(
    cls=ListByDefault, help="Results on their way to destinations: list (default), replay.", rich_markup_mode=None
)


def check_state(value: str | None) -> str | None:
    """Refuse what is no state, rather than find nothing."""
    if value is None:
        return None
    from dicom_node.delivery import DispatchState

    if value.upper() in get_args(DispatchState):
        return value.upper()
    raise typer.BadParameter(f"{value!r} is not one of {', '.join(get_args(DispatchState))}")


StateOption = Annotated[
    str | None, typer.Option("--state", callback=check_state, metavar="S", help="In this state: PENDING, DEAD, …")
]
DestinationOption = Annotated[str | None, typer.Option(metavar="NAME", help="To this destination.")]

COLUMNS = ("ID", "JOB", "DESTINATION", "STATE", "TRIES", "AGAIN AT (UTC)", "STUDY", "WHY")
ALL = 1_000_000


@app.command("list")
def list_command(
    config: ConfigOption = None,
    state: StateOption = None,
    destination: DestinationOption = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most so many, the latest first.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List deliveries, the latest first: the results of one job to one destination each."""
    settings = load_settings(config)
    from dicom_node.queries import DispatchFilter, list_dispatches

    with open_sessions(settings).begin() as session:
        wanted = DispatchFilter(state, destination, limit)
        deliveries = [one.to_json() for one in list_dispatches(session, wanted)]
    if as_json:
        print_json(deliveries)
    elif deliveries:
        keys = (
            "dispatch_id",
            "job_id",
            "destination",
            "state",
            "attempts",
            "again_at",
            "study_instance_uid",
            "failure",
        )
        rows = [[printable_instant(d[k]) if k == "again_at" and d[k] else d[k] for k in keys] for d in deliveries]
        print_table(COLUMNS, rows)
    else:
        typer.echo("No deliveries.", err=True)


@app.command("replay")
def replay_command(
    delivery_ids: Annotated[
        list[int] | None, typer.Argument(min=1, max=MAX_JOB_ID, metavar="ID...", help="Dead letters.")
    ] = None,
    config: ConfigOption = None,
    every: Annotated[bool, typer.Option("--all", help="All dead letters (of --destination).")] = False,
    destination: DestinationOption = None,
) -> None:
    """Send dead letters again: those that are named, or all."""
    settings = load_settings(config)
    from dicom_node.queries import DispatchFilter, list_dispatches, replay_dispatch

    if bool(delivery_ids) == every:
        raise typer.BadParameter("name deliveries, or say --all")
    if every:
        with open_sessions(settings).begin() as session:
            dead = list_dispatches(session, DispatchFilter("DEAD", destination, ALL))
        delivery_ids = [one.dispatch_id for one in dead]
    audited_change(
        settings, delivery_ids or [], replay_dispatch, "delivery {} will be tried again", "replayed delivery {}"
    )
