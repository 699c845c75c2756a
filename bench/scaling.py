"""How the grounding of studies grows with the workers: 1, 2, 4 processes that share one database, broker and storage.

    python -m bench.scaling [--workers 1 2 4] [--studies 16] [--wait 1.0] [--runs 5]

The model is replaced by a fixed wait, so that what is measured is everything around it (claims, rings, files, rows) and
not the cores of this machine; the rest is the node's own: PostgreSQL, Redis, the sweep, the steps. Each worker gets the
same number of studies, and has an `io` worker at its side. `grounded` counts from the first ring to the last row
GROUNDED; `delivered` to the last row DELIVERED, with a stand-in as archive: writing, sending and taking do take a core,
so that this one stops growing where the cores end. The share of linear compares with the rate of one worker in the
same round; medians of all rounds.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

import yaml
from sqlalchemy import func, select

from dicom_node.clock import utc_now
from dicom_node.config import Settings, load_settings
from dicom_node.instance import read_instance
from dicom_node.queries import Arrival, record_instance, upgrade_schema
from dicom_node.storage import instance_key
from dicom_node.tables import EventRow, JobRow
from grounding.types import Grounding, Image, ModelIdentity, ReportText
from tests.builders import encode, make_cxr_dataset, make_report_dataset
from tests.fakes import FakeGrounder, FakePacs
from tests.servers import Postgres, Redis
from workers import tasks
from workers.app import make_app
from workers.main import make_resources
from workers.resources import Resources
from workers.scheduler import sweep

TARGET = 0.95
END_S = 600
SWEEP_S = 1.0
MEASURED = {"grounded": "study grounded", "delivered": "results delivered"}
"""What is told of a round, and the event of a job's timeline that ends it."""


@dataclass(frozen=True)
class WaitingGrounder:
    """A grounder that takes its time and none of a core; what it answers is the fake's."""

    seconds: float
    answers: FakeGrounder

    @property
    def identity(self) -> ModelIdentity:
        """Whom the results name."""
        return self.answers.identity

    def prepare(self, images: Sequence[Image], report: ReportText) -> tuple[Sequence[Image], ReportText]:
        """Return what `ground` takes."""
        return self.answers.prepare(images, report)

    def ground_prepared(self, studies: Sequence[tuple[Sequence[Image], ReportText]]) -> list[Grounding]:
        """Wait for each: that it gains nothing from a batch makes workers comparable."""
        return [self.ground(images, report) for images, report in studies]

    def ground(self, images: Sequence[Image], report: ReportText) -> Grounding:
        """Wait, then answer."""
        time.sleep(self.seconds)
        return self.answers.ground(images, report)


def run_worker(config: Path, queue: str, wait_s: float) -> None:
    """Work on a queue as `knowmvg worker` does, with a model that waits; tell when it is ready."""
    settings = load_settings(config, {})
    grounder = WaitingGrounder(wait_s, FakeGrounder())
    resources = replace(make_resources(settings, secrets.token_hex(16)), load_grounder=lambda: grounder)
    app = make_app(settings)
    lanes = tasks.add_tasks(app, resources)
    tasks.consume(app, (queue,), f"{queue}-{os.getpid()}@bench", functools.partial(print, "ready", flush=True), lanes)
    os._exit(0)


@contextmanager
def working(config: Path, queue: str, wait_s: float) -> Iterator[None]:
    """Run a worker process from when it is ready to the end of the block."""
    command = [sys.executable, "-m", "bench.scaling", "--worker", str(config), "--queue", queue, "--wait", str(wait_s)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (
        (config.parent / "workers.log").open("a") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as process,
    ):
        try:
            if process.stdout is None or process.stdout.readline() != "ready\n":
                raise SystemExit(f"a worker does not start:\n{(config.parent / 'workers.log').read_text()[-2000:]}")
            yield
        finally:
            process.terminate()


def file_studies(resources: Resources, names: Sequence[str]) -> None:
    """File studies of one film and its report, as the receiver does, complete at once."""
    for name in names:
        film = make_cxr_dataset(study=name)
        for ds in (film, make_report_dataset(study=name, image=film)):
            content = encode(ds)
            instance = read_instance(content)
            digest = hashlib.sha256(content).hexdigest()
            key = instance_key(instance.study_instance_uid, instance.sop_instance_uid, digest)
            stored = resources.storage.put(key, content)
            with resources.sessions.begin() as session:
                record_instance(session, Arrival(instance, stored, "PACS", resources.clock()), timedelta(0))


def measure_round(resources: Resources, names: Sequence[str]) -> dict[str, float]:
    """Ground and deliver studies; return the studies per second of each stage, in the time of the rows."""
    file_studies(resources, names)
    with resources.sessions() as session:
        newest = session.scalar(select(func.max(JobRow.job_id))) or 0
    first = newest - len(names)
    began = resources.clock()
    sweep(resources)
    deadline = time.monotonic() + END_S
    while any((ended := ends_of(resources, event, first))[1] < len(names) for event in MEASURED.values()):
        if time.monotonic() > deadline:
            raise SystemExit(f"only {ended[1]} of {len(names)} studies came to their end in {END_S} s")
        time.sleep(SWEEP_S)
        sweep(resources)
    ends = {stage: ends_of(resources, event, first)[0] for stage, event in MEASURED.items()}
    return {stage: len(names) / (end - began).total_seconds() for stage, end in ends.items()}


def ends_of(resources: Resources, event: str, after: int) -> tuple[datetime, int]:
    """Return when an event happened last, and to how many of the jobs after that number."""
    statement = select(func.max(EventRow.at), func.count()).where(EventRow.event == event, EventRow.job_id > after)
    with resources.sessions() as session:
        last, count = session.execute(statement).one()
    return last or utc_now(), count


def write_config(folder: Path, database: str, broker: str, port: int) -> Path:
    """Write the configuration that all processes share."""
    destination = {"name": "archive", "ae_title": "ARCHIVE", "host": "127.0.0.1", "port": port}
    sections = {
        "node": {"data_dir": str(folder / "var")},
        "database": {"url": database},
        "broker": {"url": broker},
        "assembly": {"quiet_period_s": 0},
        "model": {"batch_size": 1},  # a wait for each study gains nothing from a batch, which one worker would take
        "destinations": [destination],
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


@contextmanager
def site() -> Iterator[tuple[Path, Settings]]:
    """Give the configuration of a node on PostgreSQL and Redis, with an archive; no part of it runs yet."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        port = stack.enter_context(FakePacs("ARCHIVE")).port
        postgres, redis = Postgres(), Redis(folder)
        stack.callback(postgres.close)
        stack.callback(redis.kill)
        url = postgres.create("jobs")
        upgrade_schema(url)
        config = write_config(folder, url, redis.url, port)
        yield config, load_settings(config, {})


def measure(counts: Sequence[int], studies: int, wait_s: float, runs: int) -> dict[int, list[dict[str, float]]]:
    """Return the rates of every round, by number of workers; the numbers take turns, so that a slow minute hits all."""
    rates: dict[int, list[dict[str, float]]] = {count: [] for count in counts}
    with site() as (config, settings):
        resources = make_resources(settings, secrets.token_hex(16))
        for run in range(runs):
            for count in counts:
                with ExitStack() as stack:
                    for queue in ("gpu", "io") * count:
                        stack.enter_context(working(config, queue, wait_s))
                    names = [f"scaling {run} {count} {number}" for number in range(count * studies)]
                    rates[count].append(measure_round(resources, names))
    return rates


def print_table(rates: dict[int, list[dict[str, float]]]) -> None:
    """Print a line for each number of workers: the median rates, and their shares of linear."""
    least = min(rates)
    print("workers   grounded /s   of linear    delivered /s   of linear")
    for count, rounds in rates.items():
        line = f"{count:7}"
        for stage in MEASURED:
            rate = statistics.median(one[stage] for one in rounds)
            shares = [
                one[stage] / first[stage] * least / count for one, first in zip(rounds, rates[least], strict=True)
            ]
            line += f"{rate:14.2f}{100 * statistics.median(shares):11.1f} %"
        print(line, flush=True)
    print(f"target: at least {100 * TARGET:.0f} % of linear")


def main() -> None:
    """Run the benchmark, or one worker of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--studies", type=int, default=16, help="for each worker")
    parser.add_argument("--wait", type=float, default=1.0, help="seconds that the model takes")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--queue", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is not None:
        run_worker(arguments.worker, arguments.queue, arguments.wait)
        return
    print(f"{arguments.studies} studies for each worker, model replaced by a wait of {arguments.wait} s")
    print_table(measure(arguments.workers, arguments.studies, arguments.wait, arguments.runs))


if __name__ == "__main__":
    main()
