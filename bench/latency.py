"""How long a study takes from the acknowledgement of its last instance to its last result in the archive.

    python -m bench.latency [--studies 40] [--quiet-period 1.0] [--size 1024] [--device auto]

One study at a time, in a node that runs whole and warm (`knowmvg up`, SQLite, embedded broker), with a stand-in as
archive. Excluded are the quiet period, which is a wish, and the model's own time for that study, measured before,
alone. What is left is told stage by stage, from the timeline of the jobs. Target: a 95th percentile below 1.0 s.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.studies import Archive, Line, Written, phantoms, write_studies
from grounding.checkpoint import load_predictor
from grounding.phantoms.study import PhantomStudy
from tests.acceptance.peers import Node

TARGET_S = 1.0
END_S = 120
STAGES = {
    "study complete": "the sweep finds it complete",
    "study grounded": "claim, read, decode, model",
    "results written": "SR and GSPS written",
    "results delivered": "delivered and confirmed",
}
"""Events of a job's timeline, and what happens until each."""


def model_seconds(kinds: Sequence[PhantomStudy], device: str) -> list[float]:
    """Return the median time that the model takes for each kind of study, alone."""
    predictor = load_predictor("default", device)
    prepared = [predictor.prepare([study.image], study.report) for study in kinds]
    medians = []
    for study in prepared:
        times = []
        for _ in range(4):
            began = time.monotonic()
            predictor.ground_prepared([study])
            times.append(time.monotonic() - began)
        medians.append(statistics.median(times[1:]))
    return medians


def measure(
    node: Node, archive: Archive, studies: Sequence[Written], quiet_s: float
) -> list[tuple[float, dict[str, Any]]]:
    """Send studies, each when the one before has ended; return the seconds after the quiet period, and the jobs."""
    line, told = Line(node.port), []
    for study in studies:
        taken = line.send(study)
        job = node.wait_for(study.uid, "DELIVERED", seconds=END_S)
        told.append((max(archive.came[study.uid].values()) - taken - quiet_s, job))
    line.close()
    return told


def stage_seconds(job: dict[str, Any], quiet_s: float) -> dict[str, float]:
    """Return how long each stage took, from the last instance filed; the first one without the quiet period."""
    at = {entry["event"]: datetime.fromisoformat(entry["at"]) for entry in job["timeline"]}
    moments = [at["instance filed"], *(at[event] for event in STAGES)]
    spans = [(after - before).total_seconds() for before, after in itertools.pairwise(moments)]
    spans[0] -= quiet_s
    return dict(zip(STAGES, spans, strict=True))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=40)
    parser.add_argument("--quiet-period", type=float, default=1.0)
    parser.add_argument("--size", type=int, default=1024, help="pixels of a side")
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()
    quiet_s = arguments.quiet_period
    kinds = phantoms(arguments.size)
    model = model_seconds(kinds, arguments.device)
    with tempfile.TemporaryDirectory() as name, Archive() as archive:
        folder = Path(name)
        destination = {"name": "archive", "ae_title": "ARCHIVE", "host": "127.0.0.1", "port": archive.port}
        node = Node(
            folder / "node", destinations=[destination], assembly={"quiet_period_s": quiet_s},
            model={"device": arguments.device},
        )  # fmt: skip
        node.start()
        try:
            measure(node, archive, write_studies(folder, "warm", 1, kinds), quiet_s)
            told = measure(node, archive, write_studies(folder, "latency", arguments.studies, kinds), quiet_s)
        finally:
            node.stop()
    report(told, model, quiet_s)


def report(told: Sequence[tuple[float, dict[str, Any]]], model: Sequence[float], quiet_s: float) -> None:
    """Print the percentiles, and the stages."""
    rest = sorted(seconds - model[number % len(model)] for number, (seconds, _) in enumerate(told))
    p95 = statistics.quantiles(rest, n=20)[-1] if len(rest) > 1 else rest[0]
    print(
        f"{len(rest)} studies; without the quiet period of {quiet_s} s and the model (median "
        f"{statistics.median(model):.3f} s): p50 {statistics.median(rest):.3f} s, p95 {p95:.3f} s, max {rest[-1]:.3f} s"
    )
    stages = [stage_seconds(job, quiet_s) for _, job in told]
    for event, what in STAGES.items():
        print(f"  {what:30} median {statistics.median(stage[event] for stage in stages):.3f} s")
    print(f"target: p95 below {TARGET_S} s: {'met' if p95 < TARGET_S else 'MISSED'}")


if __name__ == "__main__":
    main()
