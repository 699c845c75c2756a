"""The console's HTTP server: which path is answered by what. Nothing here changes a row.

Who looks at a study is audited, and a look that cannot be audited is refused. There is no sign-in yet, so that it
listens on this host alone and answers only requests addressed to this host (a page of another site that rebinds its
name to 127.0.0.1 is refused).
"""

from __future__ import annotations

import ipaddress
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET, AF_INET6
from typing import Any
from urllib.parse import parse_qs, urlsplit

from sqlalchemy.orm import Session, sessionmaker

from dicom_node.clock import Clock
from dicom_node.config import Settings
from dicom_node.console.health import readiness
from dicom_node.console.metrics import render_metrics
from dicom_node.console.pages import STATES, render_error, render_job, render_jobs
from dicom_node.errors import NodeError
from dicom_node.logs import log_event
from dicom_node.queries import (
    DATABASE_ERRORS,
    JobDetail,
    JobFilter,
    about_study,
    count_jobs,
    list_jobs,
    note_audit,
    show_job,
)

logger = logging.getLogger(__name__)

HTML, JSON, TEXT = ("text/html; charset=utf-8", "application/json", "text/plain; charset=utf-8")
METRICS = "text/plain; version=0.0.4; charset=utf-8"
REQUEST_TIMEOUT_S = 10
MAX_LISTED = 1000
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Answer:
    """An HTTP response."""

    status: int
    content_type: str
    body: str


class RefusedError(NodeError):
    """The request cannot be answered; `status` is the HTTP status that says so."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Pages:
    """Answers requests from the job database."""

    settings: Settings
    sessions: sessionmaker[Session]
    clock: Clock

    def answer(self, path: str, query: Mapping[str, str], address: str | None = None) -> Answer:
        """Return the response to GET `path`; raises RefusedError.

        `address` is whose look at a study is audited; None: nobody is shown it (HEAD).
        """
        match [part for part in path.split("/") if part]:
            case []:
                return Answer(200, HTML, self._list_page(query))
            case ["jobs", job_id]:
                return Answer(200, HTML, render_job(self._job(job_id, address)))
            case ["api", "v1", "jobs"]:
                return Answer(200, JSON, _encode(self._jobs(query)))
            case ["api", "v1", "jobs", job_id]:
                return Answer(200, JSON, _encode(self._job(job_id, address)))
            case ["healthz"]:
                return Answer(200, TEXT, "ok\n")
            case ["readyz"]:
                return self._readiness()
            case ["metrics"]:
                with self.sessions() as session:
                    return Answer(200, METRICS, render_metrics(session, self.clock(), self.settings))
        raise RefusedError(404, f"there is nothing at {path}")

    def _list_page(self, query: Mapping[str, str]) -> str:
        with self.sessions() as session:
            counts = count_jobs(session)
        return render_jobs(self._jobs(query), counts, query.get("state"))

    def _jobs(self, query: Mapping[str, str]) -> list[dict[str, Any]]:
        with self.sessions() as session:
            return [job.to_json() for job in list_jobs(session, parse_filter(query))]

    def _job(self, job_id: str, address: str | None) -> dict[str, Any]:
        with self.sessions() as session:
            job = show_job(session, int(job_id)) if re.fullmatch(r"[0-9]{1,9}", job_id) else None
        if job is None:
            raise RefusedError(404, f"there is no job {job_id}")
        if address is not None:
            self._note_access(job, address)
        return job.to_json()

    def _note_access(self, job: JobDetail, address: str) -> None:
        try:
            with self.sessions.begin() as session:
                event = about_study(session, "study accessed", job.summary.study_instance_uid)
                event = replace(event, actor_address=address, reason=f"job {job.summary.job_id}")
                note_audit(session, event, "console", self.clock())
        except DATABASE_ERRORS as error:
            log_event(logger, "access not audited", level=logging.ERROR, error=type(error).__name__)
            raise RefusedError(
                503,
                "the access cannot be noted in the audit trail, and is not granted without: the database takes no "
                "writes now (it is read-only, full, locked or away)",
            ) from None

    def _readiness(self) -> Answer:
        engine = self.sessions.kw["bind"]
        faults = [check.line for check in readiness(self.settings, engine, self.clock()) if not check.ok]
        return Answer(503 if faults else 200, TEXT, "".join(f"{line}\n" for line in faults or ["ready"]))


def parse_filter(query: Mapping[str, str]) -> JobFilter:
    """Return the filter that a query string asks for; raises RefusedError for what it does not know."""
    unknown = sorted(set(query) - {"state", "study", "patient", "accession", "since", "limit"})
    if unknown:
        raise RefusedError(
            400, f"unknown filter {', '.join(unknown)}; use state, study, patient, accession, since, limit"
        )
    if any("\0" in value for value in query.values()):
        raise RefusedError(400, "a filter has the character NUL (%00), which no value has")
    if query.get("state", STATES[0]) not in STATES:
        raise RefusedError(400, f"state is one of {', '.join(STATES)}")
    try:
        since = datetime.fromisoformat(query["since"]) if "since" in query else None
        if since and since.tzinfo:
            since = since.astimezone(UTC)
        limit = int(query.get("limit", "50"))
    except (ValueError, OverflowError) as error:
        raise RefusedError(400, f"since is an ISO time with its zone, limit a number: {error}") from None
    if (since and since.tzinfo is None) or not 1 <= limit <= MAX_LISTED:
        raise RefusedError(400, f"since must name its zone (2026-01-31T12:00Z), and limit be 1 to {MAX_LISTED}")
    values = {name: query.get(name) for name in ("state", "study", "patient", "accession")}
    return JobFilter(**values, since=since, limit=limit)


class ConsoleServer(ThreadingHTTPServer):
    """One thread per request; `pages` answers."""

    daemon_threads = True

    def __init__(self, host: str, port: int, pages: Pages) -> None:
        self.address_family = AF_INET6 if ":" in host else AF_INET
        super().__init__((host, port), RequestHandler)
        self.pages = pages


class RequestHandler(BaseHTTPRequestHandler):
    """Reads a request, writes the answer."""

    server: ConsoleServer
    server_version = "knowmvg"
    sys_version = ""
    timeout = REQUEST_TIMEOUT_S

    def do_GET(self) -> None:
        """Answer a GET request."""
        self._write(self._answer())

    def do_HEAD(self) -> None:
        """Answer a HEAD request."""
        self._write(self._answer())

    def send_response(self, code: int, message: str | None = None) -> None:
        """Begin an answer, with status and headers even for who asks in HTTP/0.9, which has neither."""
        if self.request_version == "HTTP/0.9":
            self.request_version = "HTTP/1.0"
        super().send_response(code, message)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: request lines may hold patient ids and accession numbers."""

    def _answer(self) -> Answer:
        try:
            url = urlsplit(self.path)
        except ValueError:  # its host is none: "http://["
            return _refusal("", 400, "the address is not one of HTTP")
        try:
            refuse_foreign_host(self.headers.get("Host", ""))
            query = {name: values[-1] for name, values in parse_qs(url.query, keep_blank_values=False).items()}
            address = None if self.command == "HEAD" else str(self.client_address[0])
            return self.server.pages.answer(url.path, query, address)
        except RefusedError as error:
            return _refusal(url.path, error.status, str(error))
        except (*DATABASE_ERRORS, NodeError) as error:
            log_event(logger, "request failed", level=logging.ERROR, error=type(error).__name__)
            return _refusal(url.path, 503, "the job database does not answer; see /readyz")

    def _write(self, answer: Answer) -> None:
        body = answer.body.encode()
        self.send_response(answer.status)
        for name, value in {**HEADERS, "Content-Type": answer.content_type, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def make_server(
    settings: Settings, sessions: sessionmaker[Session], clock: Clock, port: int | None = None
) -> ConsoleServer:
    """Return a server that listens already, on `port` (0: the system's choice) instead of the settings' if given.

    Raises NodeError for a host that others could reach.
    """
    host, port = settings.console.host, settings.console.port if port is None else port
    if not is_loopback(host):
        raise NodeError(
            f"console.host is {host}, but this version has no sign-in and shows patient data: use 127.0.0.1, "
            "and reach it from elsewhere through an SSH tunnel or a proxy that asks who is there"
        )
    server = ConsoleServer(host, port, Pages(settings, sessions, clock))
    log_event(logger, "console listens", host=host, port=server.server_port)
    return server


def is_loopback(host: str) -> bool:
    """Tell whether only this host can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def refuse_foreign_host(header: str) -> None:
    """Raise RefusedError unless the Host header names this host."""
    try:
        host = urlsplit(f"//{header}").hostname or ""
    except ValueError:
        host = ""
    if not is_loopback(host):
        raise RefusedError(421, "this console answers only on 127.0.0.1 or localhost")


def _refusal(path: str, status: int, reason: str) -> Answer:
    if path.startswith("/api/"):
        return Answer(status, JSON, _encode({"error": reason}))
    return Answer(status, HTML, render_error(status, reason))


def _encode(document: object) -> str:
    return json.dumps(document, ensure_ascii=False) + "\n"
