"""Every benchmark, one after the other, in its small size: `python -m bench [NAME ...]`."""

from __future__ import annotations

import subprocess
import sys
import time

SMALL = {
    "backlog": ["--jobs", "20000", "--records", "200"],
    "console": ["--jobs", "20000", "--requests", "20"],
    "broker": ["--messages", "60"],
    "receiver": ["--rounds", "1", "--share", "0.1", "--curve", "1", "4"],
    "model": ["--studies", "5"],
    "batching": ["--studies", "16", "--batches", "8"],
    "scaling": ["--studies", "4", "--runs", "1"],
    "memory": ["--seconds", "2"],
    "full_size": ["--size", "tiny", "--studies", "4", "--batches", "1", "4", "--caches", "growing", "static"],
}
"""The arguments that make a benchmark small."""


def main() -> int:
    """Run the benchmarks named on the command line, or all; return 1 if one fails."""
    failed = 0
    for name in sys.argv[1:] or sorted(SMALL):
        print(f"==== {name}", flush=True)
        began = time.monotonic()
        failed |= subprocess.run([sys.executable, "-m", f"bench.{name}", *SMALL.get(name, [])], check=False).returncode
        print(f"==== {name}: {time.monotonic() - began:.0f} s\n", flush=True)
    return int(failed != 0)


if __name__ == "__main__":
    sys.exit(main())
