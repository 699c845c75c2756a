"""Whether a backlog slows the node: every question that it asks of its rows, with a million jobs and with none.

    python -m bench.backlog [--jobs 1000000] [--engines sqlite postgresql] [--repeats 7] [--records 500]

Per engine a database of so many jobs (nearly all of which ended, some thousands under way) and an empty one, as
`tests/backlog.py` makes them. Medians of times until the values are there, as the node asks: statements, rows and
their reading. PostgreSQL runs on a free port of this host with its data in the folder for temporary files, and without
fsync; SQLite syncs each commit.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

from pydicom.uid import UID
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from dicom_node import queries
from dicom_node.config import Settings
from dicom_node.filing import Filing
from dicom_node.instance import Instance, read_instance
from dicom_node.queries import Arrival, make_engine, make_sessions, upgrade_schema
from dicom_node.storage import FileStorage, StoredFile
from tests.backlog import LISTS, STEPS, SWEEP, Question, fill
from tests.builders import encode, make_cxr_dataset
from tests.servers import create_database, run_postgres
from workers.resources import Resources
from workers.scheduler import sweep

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
SWEEP_MS, LIST_MS, RECORD_RATIO = 50.0, 300.0, 1.10
QUIET = timedelta(seconds=5)
UNDER_WAY = 4000


@dataclass
class Report:
    """What was measured; prints each line as it comes."""

    missed: list[str] = field(default_factory=list)

    def add(self, name: str, full: float, empty: float, target_ms: float) -> None:
        """Print medians in milliseconds, and whether the target was met."""
        if full > target_ms:
            self.missed.append(name)
        print(f"{name:44} {full:10.2f} {empty:10.2f} {target_ms:9.0f} {_met(full <= target_ms)}", flush=True)

    def add_ratio(self, name: str, with_jobs: Sequence[float], without: Sequence[float]) -> None:
        """Print how much longer something takes, and whether the target was met; of means, too, which have the rare
        commits in them at which SQLite copies its log into the database."""
        full, empty = statistics.median(with_jobs), statistics.median(without)
        ratio, of_means = full / empty, statistics.mean(with_jobs) / statistics.mean(without)
        if ratio > RECORD_RATIO:
            self.missed.append(name)
        met = _met(ratio <= RECORD_RATIO)
        print(
            f"{name:44} {full:10.3f} {empty:10.3f} {RECORD_RATIO:8.2f}x {met} ({ratio:.3f} x, means {of_means:.3f} x)",
            flush=True,
        )


def _met(met: bool) -> str:
    return "met" if met else "MISSED"


@contextmanager
def databases(engine: str, folder: Path) -> Iterator[tuple[Engine, Engine]]:
    """Two empty databases of one kind, with the schema."""
    with ExitStack() as stack:
        names = ("full", "empty")
        if engine == "postgresql":
            server = stack.enter_context(run_postgres())
            urls = [create_database(server, name) for name in names]
        else:
            urls = [f"sqlite:///{folder / name}.db" for name in names]
        for url in urls:
            upgrade_schema(url)
        full, empty = map(make_engine, urls)
        stack.callback(full.dispose)
        stack.callback(empty.dispose)
        yield full, empty


def median_ms(repeats: int, run: Callable[[], object]) -> float:
    """Return the median of so many runs after a first one."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        run()
        times.append(1000 * (time.perf_counter() - began))
    return statistics.median(times[1:])


def ask(sessions: sessionmaker[Session], question: Question) -> Callable[[], None]:
    """Return what asks once, in a transaction of its own that leaves everything as it was."""

    def run() -> None:
        with sessions() as session:
            question(session, NOW)
            session.rollback()

    return run


def measure_sweep(sessions: sessionmaker[Session], folder: Path, repeats: int) -> float:
    """Return the median of whole sweeps, a second apart, in which as much is due as a second brings."""
    seconds = count()
    resources = Resources(
        settings=Settings(), sessions=sessions, storage=FileStorage(folder / "dicom"),
        clock=lambda: NOW + timedelta(seconds=next(seconds) / 8), load_grounder=_nobody, connect=_nobody,
        ring=lambda task, number: True, token="bench", owners=None,
    )  # fmt: skip
    return median_ms(repeats, lambda: sweep(resources))


def _nobody(*_: object, **__: object) -> object:
    raise AssertionError("the sweep asks for nobody")


def measure_records(
    full: sessionmaker[Session], empty: sessionmaker[Session], records: int
) -> tuple[list[float], list[float]]:
    """Return the milliseconds that each instance took to be filed, in turn on either side."""
    template = read_instance(encode(make_cxr_dataset()))
    lines = [(Filing(full, QUIET), list[float]()), (Filing(empty, QUIET), list[float]())]
    for number in range(records + 20):
        arrival = _arrival(template, number)
        for filing, times in lines if number % 2 else reversed(lines):
            began = time.perf_counter()
            filing.record([arrival])
            times.append(1000 * (time.perf_counter() - began))
    (_, with_jobs), (_, without) = lines
    return with_jobs[20:], without[20:]


def _arrival(template: Instance, number: int) -> Arrival:
    """Return an instance of a study of its own, as every modality's next one is."""
    study = UID(f"2.25.{(number * 2654435761 + 977) % 4294967296}{number}")
    instance = replace(
        template, study_instance_uid=study, sop_instance_uid=UID(f"{study}.1"), series_instance_uid=UID(f"{study}.2"),
        patient_id=f"PID-{number}", accession_number=f"ACC-N{number}",
    )  # fmt: skip
    stored = StoredFile(f"{number}.dcm", "cd" * 32, 8_000_000)
    return Arrival(instance, stored, "PACS", NOW + timedelta(seconds=number), "127.0.0.1", f"bench{number // 10}")


def measure(engine: str, arguments: argparse.Namespace, report: Report) -> None:
    """Measure everything on one engine."""
    with tempfile.TemporaryDirectory(prefix="knowmvg-backlog-") as name, databases(engine, Path(name)) as (full, empty):
        began = time.perf_counter()
        fill(full, arguments.jobs, NOW, min(arguments.jobs // 10, UNDER_WAY))
        print(f"\n{engine}: {arguments.jobs} jobs, made in {time.perf_counter() - began:.0f} s")
        print(f"{'':44} {'ms, full':>10} {'empty':>10} {'target':>10}")
        of_full, of_empty = make_sessions(full), make_sessions(empty)
        for group, target in ((SWEEP, SWEEP_MS), (LISTS, LIST_MS), (STEPS, LIST_MS)):
            for question, asked in group.items():
                times = [median_ms(arguments.repeats, ask(sessions, asked)) for sessions in (of_full, of_empty)]
                report.add(f"{engine} {question}", times[0], times[1], target)
        with_jobs, without = measure_records(of_full, of_empty, arguments.records)
        report.add_ratio(f"{engine} an instance filed", with_jobs, without)
        sweeps = [measure_sweep(sessions, Path(name), 3 * arguments.repeats) for sessions in (of_full, of_empty)]
        report.add(f"{engine} whole sweep", sweeps[0], sweeps[1], SWEEP_MS)
        with of_full() as session:
            assert sum(queries.count_jobs(session).values()) == arguments.jobs + arguments.records + 20


def main() -> None:
    """Measure each engine, and say what missed its target."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--engines", nargs="+", default=["sqlite", "postgresql"], choices=["sqlite", "postgresql"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--records", type=int, default=500)
    arguments = parser.parse_args()
    report = Report()
    for engine in arguments.engines:
        measure(engine, arguments, report)
    print(f"\nmissed: {', '.join(report.missed) or 'none'}")


if __name__ == "__main__":
    main()
