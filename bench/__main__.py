"""Every benchmark, one after the other, in its small size: `python -m bench [NAME ...]`."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

SMALL = {
    "backlog": ["--jobs", "20000", "--records", "200"],
    "broker": ["--messages", "60"],
    "receiver": ["--large", "10", "--small", "60"],
    "model": ["--studies", "5"],
    "full_size": ["--size", "tiny", "--studies", "4", "--batches", "1", "4", "--caches", "growing", "static"],
}
"""The arguments that make a benchmark small."""


def main() -> int:
    """Run the benchmarks named on the command line, or all; return 1 if one fails."""
    folder = Path(__file__).parent
    found = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    failed = 0
    for name in sys.argv[1:] or found:
        print(f"==== {name}", flush=True)
        began = time.monotonic()
        failed |= subprocess.run([sys.executable, "-m", f"bench.{name}", *SMALL.get(name, [])], check=False).returncode
        print(f"==== {name}: {time.monotonic() - began:.0f} s\n", flush=True)
    return int(failed != 0)


if __name__ == "__main__":
    sys.exit(main())
