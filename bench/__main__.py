"""Every benchmark, one after the other: `python -m bench [NAME ...] [--full] [--page FILE]`.

In small, as `make bench` runs them, they show that they work and roughly where things are; in full they take two hours
and give the figures that docs/performance.md holds. `--page` puts what they print into the sections of a Markdown page.
"""

from __future__ import annotations

import argparse
import ast
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from bench.page import insert_section, make_section

SMALL = {
    "backlog": ["--jobs", "20000", "--records", "200"],
    "batching": ["--studies", "16", "--batches", "8"],
    "broker": ["--messages", "60"],
    "burst": ["--studies", "12"],
    "console": ["--jobs", "20000", "--requests", "20"],
    "full_size": ["--size", "tiny", "--studies", "4", "--batches", "1", "4", "--caches", "growing", "static"],
    "growth": ["--huge", "50000000", "--instances", "400"],
    "latency": ["--studies", "6"],
    "memory": ["--seconds", "2"],
    "model": ["--studies", "5"],
    "neighbours": ["--rounds", "1", "--count", "100"],
    "receiver": ["--rounds", "1", "--share", "0.1", "--curve", "1", "4"],
    "scaling": ["--studies", "4", "--runs", "1"],
}
"""The arguments that make a benchmark small."""

FULL: dict[str, list[str]] = {
    "batching": ["--studies", "16", "--batches", "4", "8"],
    "burst": ["--models", "shipped", "full"],
    "full_size": SMALL["full_size"],
    "neighbours": ["--rounds", "15"],
    "receiver": [
        "--receivers",
        "node",
        "Orthanc",
        "storescp --fork",
        "plain pynetdicom",
        "--curve",
        "1",
        "4",
        "16",
        "32",
    ],
}
"""Those that are given for the whole page; the others have none."""


def main() -> int:
    """Run the benchmarks named on the command line, or all; return 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SMALL)}")
    parser.add_argument("--full", action="store_true", help="as long as docs/performance.md asks for")
    parser.add_argument("--page", type=Path, help="the Markdown page whose sections are written")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(SMALL))
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}")
    failed = [name for name in arguments.names or SMALL if not run(name, arguments.full, arguments.page)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def run(name: str, full: bool, page: Path | None) -> bool:
    """Run one, show what it prints as it comes, and keep that in the page; return whether it succeeded."""
    given = FULL.get(name, []) if full else SMALL[name]
    print(f"==== {name}", flush=True)
    began, output = time.monotonic(), ""
    process = subprocess.Popen([sys.executable, "-m", f"bench.{name}", *given], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        output += line
    succeeded = process.wait() == 0
    print(f"==== {name}: {time.monotonic() - began:.0f} s\n", flush=True)
    if page is not None and succeeded:
        command, day = f"python -m {shlex.join([f'bench.{name}', *given])}", f"{datetime.now(UTC):%Y-%m-%d}"
        section = make_section(name, describe(name), command, day, output)
        before = page.read_text(encoding="utf-8") if page.exists() else "# Performance\n"
        page.write_text(insert_section(before, name, section), encoding="utf-8")
    return succeeded


def describe(name: str) -> str:
    """Return the first line of a benchmark's own description."""
    text = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
