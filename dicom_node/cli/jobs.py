"""`knowmvg jobs`: look into the job database, and try again or stop what is in it."""

from __future__ import annotations

import functools
from typing import Annotated, Any, get_args

import typer
from typer.core import TyperGroup

from dicom_node.cli.changing import audited_change
from dicom_node.cli.findings import FINDING_COLUMNS, finding_rows
from dicom_node.cli.options import ConfigOption, JsonOption, open_sessions, parse_since
from dicom_node.cli.terminal import print_json, print_table, printable, printable_instant
from dicom_node.clock import utc_now
from dicom_node.config import load_settings
from dicom_node.errors import NodeError


class ListByDefault(TyperGroup):
    """A group of commands whose `list` may be left out: `knowmvg jobs --state FAILED`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `list` in front of options that follow the group's name."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=ListByDefault,
    help="The job database: list (default), show, retry, cancel, resend, reground.",
    rich_markup_mode=None,
)

MAX_JOB_ID = 2**31 - 1
"""What the database's integers hold."""


def check_state(value: str | None) -> str | None:
    """Refuse what is no state, rather than find nothing."""
    if value is None:
        return None
    from dicom_node.study import State  # reads DICOM headers: not for every command

    if value.upper() in get_args(State):
        return value.upper()
    raise typer.BadParameter(f"{value!r} is not one of {', '.join(get_args(State))}")


StateOption = Annotated[
    str | None, typer.Option("--state", callback=check_state, metavar="S", help="Jobs in this state.")
]


@app.command("list")
def list_command(  # noqa: PLR0913 - one parameter per option
    config: ConfigOption = None,
    state: StateOption = None,
    study: Annotated[str | None, typer.Option(metavar="UID", help="Jobs of this Study Instance UID.")] = None,
    patient: Annotated[str | None, typer.Option(metavar="ID", help="Jobs of this Patient ID.")] = None,
    accession: Annotated[str | None, typer.Option(metavar="N", help="Jobs with this Accession Number.")] = None,
    since: Annotated[
        str | None, typer.Option(metavar="T", help="Changed since then: 45m, 2h, 3d ago, or an ISO time in UTC.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="At most so many, the latest first.")] = 50,
    as_json: JsonOption = False,
) -> None:
    """List jobs, the latest first."""
    after = parse_since(since, utc_now()) if since else None
    settings = load_settings(config)
    from dicom_node.queries import JobFilter, list_jobs

    wanted = JobFilter(state=state, study=study, patient=patient, accession=accession, since=after, limit=limit)
    with open_sessions(settings).begin() as session:
        jobs = [job.to_json() for job in list_jobs(session, wanted)]
    if as_json:
        print_json(jobs)
    elif jobs:
        print_table(LIST_COLUMNS, [_list_row(job) for job in jobs])
    else:
        typer.echo("No jobs.", err=True)


@app.command("show")
def show_command(
    job_id: Annotated[int, typer.Argument(min=1, max=MAX_JOB_ID, metavar="ID", help="A number from `knowmvg jobs`.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one job: its timeline, findings, results and deliveries."""
    settings = load_settings(config)
    from dicom_node.queries import show_job

    with open_sessions(settings).begin() as session:
        detail = show_job(session, job_id)
        job = detail.to_json() if detail else None
    if job is None:
        raise NodeError(_unknown(job_id))
    if as_json:
        print_json(job)
    else:
        _print_job(job)


@app.command("retry")
def retry_command(
    job_ids: Annotated[list[int], typer.Argument(min=1, max=MAX_JOB_ID, metavar="ID...", help="Jobs that have ended.")],
    config: ConfigOption = None,
) -> None:
    """Try jobs again from the step that failed.

    A delivered job is delivered again.
    """
    settings = load_settings(config)
    from dicom_node.queries import retry_job

    audited_change(settings, job_ids, retry_job, "job {} will be tried again", "retried job {}")


@app.command("cancel")
def cancel_command(
    job_ids: Annotated[list[int], typer.Argument(min=1, max=MAX_JOB_ID, metavar="ID...", help="Jobs under way.")],
    config: ConfigOption = None,
) -> None:
    """Stop jobs that are under way; what was received is kept."""
    settings = load_settings(config)
    from dicom_node.queries import cancel_job

    audited_change(settings, job_ids, cancel_job, "job {} cancelled", "cancelled job {}")


@app.command("resend")
def resend_command(
    job_ids: Annotated[
        list[int], typer.Argument(min=1, max=MAX_JOB_ID, metavar="ID...", help="Jobs that have results.")
    ],
    config: ConfigOption = None,
    destination: Annotated[str | None, typer.Option(metavar="NAME", help="To this destination alone.")] = None,
) -> None:
    """Send results that exist again, as they are, whether the archives have them or not."""
    settings = load_settings(config)
    from dicom_node.queries import resend_job

    names = [one.name for one in settings.destinations]
    if destination is not None and destination not in names:
        raise NodeError(f"there is no destination {destination}; the configuration has {', '.join(names) or 'none'}")
    resend = functools.partial(resend_job, destination=destination)
    where = f"to {destination}" if destination else "to every destination"
    audited_change(settings, job_ids, resend, f"job {{}} will be sent again {where}", f"resent job {{}} {where}")


@app.command("reground")
def reground_command(
    job_ids: Annotated[list[int], typer.Argument(min=1, max=MAX_JOB_ID, metavar="ID...", help="Jobs that have ended.")],
    config: ConfigOption = None,
) -> None:
    """Compute studies again with the model as it is now, as their next revisions.

    The new results name those that they replace.
    """
    settings = load_settings(config)
    from dicom_node.queries import reground_job

    audited_change(settings, job_ids, reground_job, "the study of job {} will be grounded anew", "regrounded job {}")


def _unknown(job_id: int) -> str:
    return f"there is no job {job_id}; `knowmvg jobs` lists the jobs"


LIST_COLUMNS = ("JOB", "STATE", "OUTCOME", "REV", "TRIES", "PRIORITY", "UPDATED (UTC)", "STUDY", "WHY")


def _list_row(job: dict[str, Any]) -> list[object]:
    keys = (
        *("job_id", "state", "outcome", "revision", "attempts", "priority"),
        *("updated_at", "study_instance_uid", "failure"),
    )
    return [printable_instant(job[key]) if key == "updated_at" else job[key] for key in keys]


def _print_job(job: dict[str, Any]) -> None:
    typer.echo(f"Job {job['job_id']}: {job['state']}" + (f" ({job['outcome']})" if job["outcome"] else ""))
    if job["failure"]:
        typer.echo(f"Why: {printable(job['failure'])}")
    for warning in job["warnings"]:
        typer.echo(f"Warning: {printable(warning)}")
    typer.echo(
        f"Study {job['study_instance_uid']}, revision {job['revision']}, {job['priority']}, "
        f"tries of this step {job['attempts']}"
    )
    for title, columns, rows in _sections(job):
        if rows:
            typer.echo(f"\n{title}")
            print_table(columns, rows)


def _sections(job: dict[str, Any]) -> list[tuple[str, tuple[str, ...], list[list[object]]]]:
    return [
        (
            "Timeline",
            ("AT (UTC)", "EVENT", "DETAIL"),
            [[printable_instant(e["at"]), e["event"], e["detail"]] for e in job["timeline"]],
        ),
        ("Timings", ("STAGE", "SECONDS"), [[stage, f"{s:.2f}"] for stage, s in job["timings"].items()]),
        ("Findings", FINDING_COLUMNS, finding_rows(job["findings"])),
        ("Results", ("SOP CLASS", "SOP INSTANCE"), [[r["sop_class"], r["sop_instance_uid"]] for r in job["results"]]),
        (
            "Destinations",
            ("DELIVERY", "DESTINATION", "STATE", "TRIES", "AGAIN AT (UTC)", "WHY"),
            [
                [d["dispatch_id"], d["destination"], d["state"], d["attempts"], _when(d["again_at"]), d["failure"]]
                for d in job["dispatches"]
            ],
        ),
        (
            "Deliveries",
            ("DESTINATION", "STATE", "STATUS", "CONFIRMED BY", "SOP INSTANCE", "DETAIL"),
            [
                [
                    d["destination"],
                    d["state"],
                    _status(d["status"]),
                    d["confirmed_by"],
                    d["sop_instance_uid"],
                    d["detail"],
                ]
                for d in job["deliveries"]
            ],
        ),
        ("Revisions of the study", REVISION_COLUMNS, _revision_rows(job) if len(job["revisions"]) > 1 else []),
    ]


REVISION_COLUMNS = ("REV", "JOB", "STATE", "DESTINATION", "PART", "SOP INSTANCE")


def _revision_rows(job: dict[str, Any]) -> list[list[object]]:
    """Return one row for each result that an archive holds of any revision, and one for a revision without any."""
    nothing: dict[str, Any] = {"destination": None, "part": None, "sop_instance_uid": None}
    return [
        [r["revision"], r["job_id"], r["state"], held["destination"], _part(held["part"]), held["sop_instance_uid"]]
        for r in job["revisions"]
        for held in r["delivered"] or [nothing]
    ]


def _part(part: str | None) -> str | None:
    return part.partition(":")[0] if part else None


def _when(instant: str | None) -> str | None:
    return printable_instant(instant) if instant else None


def _status(status: object) -> object:
    return f"0x{status:04X}" if isinstance(status, int) else status
