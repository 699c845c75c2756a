"""A small node that Prometheus watches: real rows, files, sockets and servers, and a clock that is moved from one
scrape to the next. What was scraped is given to `promtool`, which tells what fires by the shipped rules, and when.
"""

from __future__ import annotations

import functools
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.orm import Session, sessionmaker

from dicom_node import queries
from dicom_node.channels import make_channels
from dicom_node.clock import utc_now
from dicom_node.config import Settings
from dicom_node.console.health import readiness
from dicom_node.console.metrics import render_metrics
from dicom_node.recorder import Recorder
from dicom_node.reporting import Reporter
from tests.acceptance.peers import ROOT, require
from tests.builders import make_cxr_dataset, make_report_dataset
from tests.fakes import FakePacs, FrozenClock
from tests.rig import Rig
from workers.app import check_broker
from workers.notifying import Notifier
from workers.tasks import TASK_QUEUES
from workers.watching import look_after_rows, look_at_broker

RULES = ROOT / "deploy" / "monitoring" / "alerts.yaml"
SCRAPE_S = 15
"""Between two scrapes, and two evaluations of the rules; as deploy/monitoring/prometheus.yaml has it."""
WITHIN = 120 // SCRAPE_S
"""Scrapes within which an alert is to fire."""
ROLES = ("receiver", "scheduler", "worker gpu", "worker io")

Scrape = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@dataclass
class Seen:
    """What Prometheus has scraped, from the first scrape on, and how often the node was ready by its own account."""

    scrapes: list[Scrape] = field(default_factory=list)
    began_at: float = 0.0
    ready: list[tuple[str, ...]] = field(default_factory=list)
    """What `/readyz` had to complain of at each scrape."""


class Watched:
    """The parts of a node, each of which may be dead, and what is seen of them."""

    def __init__(self, folder: Path, sessions: sessionmaker[Session], *archives: FakePacs, **sections: Any) -> None:
        self.rig = Rig(folder, sessions, archives, **{"receiver": RECEIVER} | sections)
        self.rig.clock = FrozenClock(utc_now())
        self.rig.resources = replace(self.rig.resources, clock=self.rig.clock)
        self.alive = {*ROLES, "console"}
        self.hanging: set[str] = set()
        """Those of them that live and do nothing."""
        self.seen = Seen(began_at=self.rig.clock().timestamp() + SCRAPE_S)
        self.recorders = {role: Recorder.of(self.settings) for role in ROLES} | {
            "scheduler": self.rig.resources.recorder
        }
        self.reporters = {role: self._reporter(role) for role in ROLES}
        self.studies = 0

    @property
    def settings(self) -> Settings:
        """The configuration."""
        return self.rig.settings

    def _reporter(self, role: str) -> Reporter:
        return Reporter(self.recorders[role], self.rig.sessions, self.rig.clock, role)

    def restart(self, role: str) -> None:
        """Start a part again that was killed: it counts from nothing."""
        self.recorders[role] = Recorder.of(self.settings)
        if role == "scheduler":
            self.rig.resources = replace(self.rig.resources, recorder=self.recorders[role])
        self.reporters[role] = self._reporter(role)
        self.alive.add(role)

    def store_study(self) -> int:
        """File a study."""
        self.studies += 1
        image = make_cxr_dataset(study=f"{self.studies}")
        self.rig.store(image)
        job_id = self.rig.store(make_report_dataset(study=f"{self.studies}", image=image)).job_id
        assert job_id is not None
        return job_id

    def tick(self, count: int = 1, during: Callable[[], object] = lambda: None) -> None:
        """Let 15 s pass, the living parts do their work and report, and Prometheus scrape; so often."""
        for _ in range(count):
            during()
            self.rig.clock.move(seconds=SCRAPE_S)
            self._work()
            self._scrape()

    def _work(self) -> None:
        if "scheduler" in self.alive:
            with suppress(*queries.DATABASE_ERRORS):
                self.rig.sweep()
            with suppress(*queries.DATABASE_ERRORS):
                look_after_rows(self.rig.resources)
            look_at_broker(self.rig.resources, functools.partial(check_broker, self.settings))
            for channel in make_channels(self.settings):
                with suppress(*queries.DATABASE_ERRORS):
                    Notifier(self.rig.resources, channel).send_due()
        rings, self.rig.rings = self.rig.rings, []
        for task, number in rings:
            role = f"worker {TASK_QUEUES[task]}"
            if role in self.alive - self.hanging:
                try:
                    self.rig.run(task, number, recorder=self.recorders[role])
                except Exception:  # noqa: BLE001 - a bug of a step, which the worker's log would show
                    continue
        for role in self.alive - {"console"}:
            self.reporters[role].report()

    def _scrape(self) -> None:
        now = self.rig.clock()
        if "console" not in self.alive:
            self.seen.scrapes.append({("up", (("job", "knowmvg"),)): 0.0})
            self.seen.ready.append(())
            return
        with self.rig.sessions() as session:
            text = render_metrics(session, now, self.settings)
        found: Scrape = {("up", (("job", "knowmvg"),)): 1.0}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                shift = self.seen.began_at if sample.name.endswith("_timestamp_seconds") else 0.0
                found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value - shift
        self.seen.scrapes.append(found)
        engine = self.rig.sessions.kw["bind"]
        self.seen.ready.append(tuple(one.name for one in readiness(self.settings, engine, now) if not one.ok))


RECEIVER = {"min_free_bytes": 0, "peers": [{"ae_title": "PACS", "address": "127.0.0.1"}]}


def check_alerts(seen: Seen, folder: Path, alert: str, began: int, ended: int) -> None:
    """Have promtool check that an alert fires within two minutes of the scrape `began`, and no other ever does; that
    none fired before, and that it is over at the last scrape. `ended`: the last scrape of the fault."""
    require("promtool")
    firing = f'ALERTS{{alertstate="firing",alertname="{alert}"}}'
    others = f'ALERTS{{alertstate="firing",alertname!="{alert}"}}'
    last = len(seen.scrapes) - 1
    tests = [_expect(f"count by (alertname) ({others})", at, None) for at in range(last + 1)]
    tests += [_expect(f"count({firing})", at, None) for at in (*range(began), last)]
    tests += [_expect(f"count({firing}) > bool 0", at, 1) for at in {min(began + WITHIN, ended), ended}]
    run_promtool(seen.scrapes, folder, tests)


def _expect(expression: str, at: int, value: float | None) -> dict[str, Any]:
    samples = [] if value is None else [{"labels": "{}", "value": value}]
    return {"expr": expression, "eval_time": f"{at * SCRAPE_S}s", "exp_samples": samples}


def run_promtool(scrapes: Sequence[Scrape], folder: Path, tests: list[dict[str, Any]]) -> None:
    """Run tests of expressions over what was scraped and the shipped rules."""
    names = dict.fromkeys(key for scrape in scrapes for key in scrape)
    series = [{"series": _spell(key), "values": _values([one.get(key) for one in scrapes])} for key in names]
    document = {
        "rule_files": [str(RULES)],
        "evaluation_interval": f"{SCRAPE_S}s",
        "tests": [{"interval": f"{SCRAPE_S}s", "input_series": series, "promql_expr_test": tests}],
    }
    path = folder / "scraped.yaml"
    path.write_text(yaml.safe_dump(document))
    done = subprocess.run(
        ["promtool", "test", "rules", str(path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def _spell(key: tuple[str, tuple[tuple[str, str], ...]]) -> str:
    name, labels = key
    given = {"instance": "node", "job": "knowmvg"} | dict(labels)
    return f"{name}{{{','.join(f'{label}={value!r}' for label, value in sorted(given.items()))}}}".replace("'", '"')


def _values(values: list[float | None]) -> str:
    """Spell values as promtool reads them; a series that a scrape no longer has is stale from then on."""
    words, before = [], None
    for value in values:
        words.append(repr(float(value)) if value is not None else "stale" if before is not None else "_")
        before = value
    return " ".join(words)
