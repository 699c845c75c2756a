"""The console's pages: HTML from the JSON of jobs. Pure; every value is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, get_args
from urllib.parse import urlencode

from dicom_node.study import State

Job = Mapping[str, Any]

STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8882; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 78rem; padding: 1rem 1.5rem 4rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; } caption { text-align: left; }
th, td { border-bottom: 1px solid var(--line); padding: .35rem .8rem .35rem 0; text-align: left; vertical-align: top; }
td { overflow-wrap: anywhere; } .state { white-space: nowrap; font-weight: 600; }
nav a { margin-right: .8rem; } dt { font-weight: 600; } dd { margin: 0 0 .5rem; overflow-wrap: anywhere; }
.why { background: var(--soft); border-left: 4px solid #c33; padding: .6rem 1rem; } .FAILED { color: #c33; }
"""

STATES: tuple[str, ...] = get_args(State)


def render_jobs(jobs: Sequence[Job], counts: Mapping[str, int], state: str | None) -> str:
    """Return the page that lists `jobs`; `counts` are of the whole database, `state` is the filter in force."""
    links = [_link("/", f"all {sum(counts.values())}", current=state is None)]
    links += [_link("/?" + urlencode({"state": s}), f"{s} {counts.get(s, 0)}", current=s == state) for s in STATES]
    rows = [
        [
            f'<a href="/jobs/{int(job["job_id"])}">{int(job["job_id"])}</a>',
            _state(job["state"]),
            _text(job["outcome"]),
            _text(job["priority"]),
            _text(job["revision"]),
            _text(job["study_instance_uid"]),
            _time(job["updated_at"]),
            _text(job["failure"]),
        ]
        for job in jobs
    ]
    table = _table(("Job", "State", "Outcome", "Priority", "Revision", "Study", "Updated (UTC)", "Why"), rows)
    return _page("Jobs", f"<nav>{''.join(links)}</nav>{table if rows else '<p>No jobs.</p>'}")


def render_job(job: Job) -> str:
    """Return the page of one job."""
    parts = [f'<p class="why">{_text(job["failure"])}</p>' if job.get("failure") else ""]
    parts += [f'<p class="why">Warning: {_text(warning)}</p>' for warning in job.get("warnings", ())]
    parts.append(_facts(job))
    revisions = job.get("revisions", ())
    parts += [
        _section("Timeline", ("At (UTC)", "Event", "Detail"), [
            (_time(event["at"]), _text(event["event"]), _text(event["detail"])) for event in job.get("timeline", ())
        ]),
        _section("Findings", ("Phrase", "Localised", "Boxes (pixels)", "Confidence"), [
            _finding_cells(finding) for finding in job.get("findings", ())
        ]),
        _section("Results", ("SOP class", "SOP instance"), [
            (_text(result["sop_class"]), _text(result["sop_instance_uid"])) for result in job.get("results", ())
        ]),
        _section("Deliveries", ("Destination", "State", "SOP instance", "Status", "Confirmed by", "Detail"), [
            _delivery_cells(delivery) for delivery in job.get("deliveries", ())
        ]),
        _section("Destinations", ("Delivery", "Destination", "State", "Tries", "Again at (UTC)", "Why"), [
            _dispatch_cells(dispatch) for dispatch in job.get("dispatches", ())
        ]),
        _section("Revisions of the study", ("Revision", "Job", "State", "Results that archives hold"), [
            _revision_cells(revision) for revision in revisions if len(revisions) > 1
        ]),
        _section("Timings", ("Stage", "Seconds"), [
            (_text(stage), f"{seconds:.2f}") for stage, seconds in job.get("timings", {}).items()
        ]),
    ]  # fmt: skip
    return _page(f"Job {int(job['job_id'])}", "".join(parts))


def render_error(status: int, reason: str) -> str:
    """Return the page of a request that cannot be answered."""
    return _page(f"Error {status}", f'<p class="why">{_text(reason)}</p>')


def _page(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)} · KnowMVG Node</title><style>{STYLE}</style></head>"
        f'<body><p><a href="/">KnowMVG Node</a></p><main><h1>{escape(title)}</h1>{body}</main></body></html>'
    )


def _facts(job: Job) -> str:
    pairs = (
        ("State", _state(job["state"])),
        ("Outcome", _text(job["outcome"])),
        ("Priority", _text(job["priority"])),
        ("Study Instance UID", _text(job["study_instance_uid"])),
        ("Revision", _text(job["revision"])),
        ("Attempts", _text(job["attempts"])),
        ("Created (UTC)", _time(job["created_at"])),
        ("Updated (UTC)", _time(job["updated_at"])),
    )
    return "<dl>" + "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in pairs) + "</dl>"


def _finding_cells(finding: Mapping[str, Any]) -> tuple[str, ...]:
    boxes = finding.get("boxes", ())
    corners = "<br>".join(_text(", ".join(f"{value:.1f}" for value in box["xyxy"])) for box in boxes)
    scores = "<br>".join(f"{box['score']:.2f}" for box in boxes)
    found = "negated" if finding.get("negated") else "yes" if finding["localized"] else "no"
    return (_text(finding["phrase"]), found, corners or "-", scores or "-")


def _revision_cells(revision: Mapping[str, Any]) -> tuple[str, ...]:
    job_id = int(revision["job_id"])
    held = "<br>".join(
        _text(f"{one['destination']}: {one['part'].partition(':')[0]} {one['sop_instance_uid']}")
        for one in revision["delivered"]
    )
    link = _link(f"/jobs/{job_id}", str(job_id), current=False)
    return _text(revision["revision"]), link, _state(revision["state"]), held or "-"


def _dispatch_cells(dispatch: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        _text(dispatch["dispatch_id"]),
        _text(dispatch["destination"]),
        _state(dispatch["state"]),
        _text(dispatch["attempts"]),
        _time(dispatch["again_at"]) if dispatch["again_at"] else "-",
        _text(dispatch["failure"]),
    )


def _delivery_cells(delivery: Mapping[str, Any]) -> tuple[str, ...]:
    status = delivery.get("status")
    return (
        _text(delivery["destination"]),
        _state(delivery["state"]),
        _text(delivery["sop_instance_uid"]),
        _text(f"0x{status:04X}" if isinstance(status, int) else status),
        _text(delivery["confirmed_by"]),
        _text(delivery.get("detail")),
    )


def _section(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"<h2>{escape(title)}</h2>{_table(columns, rows)}" if rows else ""


def _table(columns: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; the cells are HTML already."""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _link(href: str, text: str, *, current: bool) -> str:
    mark = ' aria-current="page"' if current else ""
    return f'<a href="{escape(href)}"{mark}>{escape(text)}</a>'


def _state(state: object) -> str:
    return f'<span class="state {_text(state)}">{_text(state)}</span>'


def _time(value: object) -> str:
    return escape(str(value)[:19].replace("T", " "))


def _text(value: object) -> str:
    return "-" if value is None else escape(str(value))
