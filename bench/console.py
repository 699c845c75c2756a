"""How long the console takes for each of its pages, with as many jobs as a hospital has in years.

    python -m bench.console [--jobs 100000] [--engines sqlite postgresql] [--requests 50]

The console answers over HTTP on loopback, one request after the other, as an administrator of this host; the database
is made by `tests/backlog.py`, and one study besides has its files, results and films. A film's first picture, which is
decoded, and those that follow are told apart.
"""

from __future__ import annotations

import argparse
import http.client
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from sqlalchemy import text

from dicom_node.config import Settings
from dicom_node.console.app import make_app
from dicom_node.console.films import Films
from dicom_node.console.server import ConsoleServer
from dicom_node.objects import open_storage
from dicom_node.queries import make_engine, make_sessions, upgrade_schema
from tests.backlog import UID_OF_FIRST, fill
from tests.builders import make_cxr_dataset, make_pixels, make_report_dataset
from tests.fakes import FakePacs
from tests.rig import Rig
from tests.servers import create_database, run_postgres

PAGE_MS, SEARCH_MS = 150.0, 300.0
"""Targets of the 95th percentile."""

UNDER_WAY = 400
NOW = datetime.now(UTC)


def pages(job_id: int, film: str) -> dict[str, tuple[str, float]]:
    """Return the addresses that are asked for, and what each may take."""
    found = {
        "overview": ("/", PAGE_MS),
        "jobs": ("/jobs", PAGE_MS),
        "jobs, a later page": ("/jobs?before=50000", PAGE_MS),
        "jobs, FAILED": ("/jobs?state=FAILED", PAGE_MS),
        "job with films and results": (f"/jobs/{job_id}", PAGE_MS),
        "job whose files are gone": ("/jobs/99", PAGE_MS),
        "destinations and peers": ("/destinations", PAGE_MS),
        "audit": ("/audit", PAGE_MS),
        "configuration": ("/configuration", PAGE_MS),
        "film, kept": (film, PAGE_MS),
    }
    searches = {
        "accession number": "who=ACC-77",
        "patient of many studies": "who=PHANTOM",
        "study UID": f"who={UID_OF_FIRST}",
        "instance UID": f"who={UID_OF_FIRST}.1",
        "nobody": "who=no+such",
        "words of a failure": "state=FAILED&text=archive",
        "words that nothing has": "text=no+such+words",
        "AE title that sent nothing": "ae=NOBODY",
        "AE title and a day long ago": f"ae=PACS&since={NOW.year - 1}-06-01T00:00&until={NOW.year - 1}-06-02T00:00",
    }
    found |= {f"search, {name}": (f"/jobs?{query}", SEARCH_MS) for name, query in searches.items()}
    found["audit of an actor"] = (f"/audit?who={UID_OF_FIRST}", SEARCH_MS)
    return found


@contextmanager
def serving(engine_name: str, jobs: int, folder: Path) -> Iterator[tuple[ConsoleServer, int, str]]:
    """A console over a database of so many jobs; yield it, the job that has files, and the address of its film."""
    with ExitStack() as stack:
        url = f"sqlite:///{folder}/knowmvg.db"
        if engine_name == "postgresql":
            url = create_database(stack.enter_context(run_postgres()), "console")
        upgrade_schema(url)
        engine = make_engine(url)
        stack.callback(engine.dispose)
        fill(engine, jobs, NOW, UNDER_WAY)
        if engine_name == "postgresql":
            with engine.begin() as connection:
                for table, key in (("dispatches", "dispatch_id"), ("deliveries", "id"), ("audit", "id")):
                    connection.execute(text(f"SELECT setval('{table}_{key}_seq', (SELECT max({key}) FROM {table}))"))
        pacs = stack.enter_context(FakePacs())
        sessions = make_sessions(engine)
        rig = Rig(folder, sessions, [pacs])
        rig.clock.at = NOW
        film = make_cxr_dataset(study="filed", pixels=np.repeat(np.repeat(make_pixels(), 22, 0), 30, 1))
        rig.store(film)
        rig.store(make_report_dataset(study="filed", image=film))
        rig.clock.move(seconds=6)
        job_id = _settle(rig)
        settings = Settings.model_validate(
            {
                "node": {"data_dir": folder},
                "database": {"url": url},
                "storage": {"url": f"file://{folder}/dicom"},
                "destinations": [
                    {"name": name, "ae_title": "PACS", "host": "127.0.0.1", "port": pacs.port}
                    for name in ("pacs", "research")
                ],
                "console": {"local_role": "admin"},
            }
        )
        app = make_app(settings, sessions, lambda: datetime.now(UTC), open_storage(settings))
        app.state.films = Films()
        server = ConsoleServer(app, settings.console, 0)
        thread = threading.Thread(target=server.serve, daemon=True)
        thread.start()
        stack.callback(server.close)
        stack.callback(thread.join)
        stack.callback(server.stop)
        yield server, job_id, f"/jobs/{job_id}/films/{film.SOPInstanceUID}"


def _settle(rig: Rig) -> int:
    """Have the newest study grounded, written and delivered; return its job."""
    with rig.sessions() as session:
        job_id = int(session.execute(text("SELECT max(job_id) FROM jobs")).scalar_one())
    with rig.sessions.begin() as session:
        session.execute(text("UPDATE jobs SET state = 'COMPLETE' WHERE job_id = :job"), {"job": job_id})
    rig.rings.append(("ground", job_id))
    rig.answer()
    return job_id


def ask(port: int, path: str, requests: int) -> list[float]:
    """Return how many milliseconds each of so many requests took, on one connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    times = []
    for _ in range(requests):
        began = time.perf_counter()
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        times.append(1000 * (time.perf_counter() - began))
        if answer.status != 200:
            raise SystemExit(f"{path}: {answer.status}")
    connection.close()
    return times


def measure(engine_name: str, jobs: int, requests: int) -> list[str]:
    """Print the times of every page, and return those that took longer than they may."""
    missed = []
    with tempfile.TemporaryDirectory(prefix="knowmvg-bench-") as name, serving(engine_name, jobs, Path(name)) as found:
        server, job_id, film = found
        print(f"\n{engine_name}, {jobs} jobs, {requests} requests each, milliseconds")
        print(f"{'page':36} {'p50':>8} {'p95':>8} {'target':>8}")
        print(f"{'film, first picture (decoded)':36} {ask(server.port, film, 1)[0]:8.1f}")
        for page, (path, target) in pages(job_id, film).items():
            times = ask(server.port, path, requests)
            p95 = statistics.quantiles(times, n=20)[-1]
            met = "met" if p95 <= target else "MISSED"
            print(f"{page:36} {statistics.median(times):8.1f} {p95:8.1f} {target:8.0f} {met}", flush=True)
            if p95 > target:
                missed.append(f"{engine_name}: {page}")
    return missed


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and end with status 1 where a page took longer than it may."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--engines", nargs="+", default=["sqlite", "postgresql"], choices=["sqlite", "postgresql"])
    parser.add_argument("--requests", type=int, default=50)
    options = parser.parse_args(arguments)
    missed = [one for name in options.engines for one in measure(name, options.jobs, options.requests)]
    if missed:
        raise SystemExit(f"longer than they may: {', '.join(missed)}")


if __name__ == "__main__":
    main()
