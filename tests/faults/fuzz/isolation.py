"""Cases in a process of their own, so that one that ends or stops it is known by its seed.

`python -m tests.faults.fuzz.isolation SURFACE FIRST LAST` runs cases, and says on standard output which.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.faults.fuzz.bounds import HangError

ROOT = Path(__file__).parents[3]
MEMORY_BYTES = 2 * 1024**3
HANG_S = 20
"""Without a sign of life: a case that takes so long hangs."""

START_S = 60
ENOUGH = 40
"""Violations after which a run ends: they have few causes."""


@dataclass
class Figures:
    """What became of the cases of one surface."""

    surface: str
    cases: int = 0
    crashes: int = 0
    hangs: int = 0
    writes_outside: int = 0
    half_written: int = 0
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    def note(self, what: str, cause: str) -> None:
        """Count a violation; `what` names the case."""
        if "HangError" in cause or cause.startswith("hang"):
            self.hangs += 1
        elif "outside: " in cause:
            self.writes_outside += 1
        elif "half-written: " in cause:
            self.half_written += 1
        else:
            self.crashes += 1
        self.violations.append(f"{what}: {cause}")

    def row(self) -> dict[str, Any]:
        """Return the counts."""
        return {name: value for name, value in vars(self).items() if name != "violations"}


def run_isolated(surface: str, cases: int, first: int = 0) -> Figures:
    """Run cases of a surface with seeds from `first` on; its process is started again after each violation."""
    figures, began = Figures(surface), time.monotonic()
    seed, end = first, first + cases
    while seed < end and len(figures.violations) < ENOUGH:
        last, cause = _run_until_violation(surface, seed, end)
        if cause:
            figures.note(f"seed {last}", cause)
        seed = last + 1
    figures.cases, figures.seconds = seed - first, round(time.monotonic() - began, 1)
    return figures


def _run_until_violation(surface: str, first: int, end: int) -> tuple[int, str]:
    """Return the last seed that was run, and its violation if it is one."""
    command = [sys.executable, "-X", "faulthandler", "-m", __name__, surface, str(first), str(end)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, env=environment) as process,
    ):
        try:
            return _follow(process, errors, first - 1)
        finally:
            process.kill()


def _follow(process: subprocess.Popen[bytes], errors: IO[str], last: int) -> tuple[int, str]:
    for line in _lines(process):
        if line is None:
            return max(last, 0), "hang: no sign of life"
        said = json.loads(line)
        if "violation" in said:
            return last, str(said["violation"])
        if "end" in said:
            return int(said["end"]) - 1, ""
        last = int(said["seed"])
    code = process.wait()
    errors.seek(0)
    return last, f"the process ended with {code}: {errors.read()[:1500]}"


def _lines(process: subprocess.Popen[bytes]) -> Iterator[str | None]:
    """Yield what the process says, None where it says nothing for too long."""
    assert process.stdout is not None
    pending, within_s = b"", START_S
    while True:
        ready, _, _ = select.select([process.stdout], [], [], within_s)
        if not ready:
            yield None
            return
        chunk = os.read(process.stdout.fileno(), 65536)
        if not chunk:
            return
        within_s = HANG_S
        *lines, pending = (pending + chunk).split(b"\n")
        yield from (line.decode() for line in lines)


def main(surface: str, first: int, end: int) -> None:
    """Run cases, and say of each that it begins."""
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    module = importlib.import_module(f"tests.faults.fuzz.{surface}")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for seed in range(first, end):
        _say({"seed": seed})
        try:
            module.run_case(seed)
        except (Exception, HangError):  # noqa: BLE001  # whatever it is, it is told
            _say({"violation": traceback.format_exc(limit=-6)})
            return
    _say({"end": end})


def _say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
