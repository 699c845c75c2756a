"""How much the receiver grows over what does not fit into it: a huge radiograph, and a study of thousands of instances.

    python -m bench.growth [--huge 200000000] [--instances 2000] [--bytes 100000] [--associations 4]

Each in a receiver of its own that was warmed up before, in a network namespace that has nothing but loopback. Growth is
that of the peak of its resident memory (VmHWM of the kernel) over the resident memory before. Target: below 64 MB.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from bench.receiver import run
from bench.receivers import RECEIVERS, Network

TARGET_MB = 64


def find_receiver(folder: Path) -> int:
    """Return the process of the receiver that keeps its files in `folder`."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_text().split("\0")
        except OSError:  # it has ended
            continue
        if "receiver" in words and str(folder / "config.yaml") in words and "dicom_node.cli" in words:
            return int(process.name)
    raise SystemExit("the receiver does not run")


def resident_mb(pid: int) -> tuple[float, float]:
    """Return the resident memory of a process now, and its peak since the last `forget_peak`."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    now, peak = (int(lines[name].split()[0]) / 1000 for name in ("VmRSS", "VmHWM"))
    return now, peak


def forget_peak(pid: int) -> None:
    """Let the peak begin anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def measure(network: Network, size: int, count: int, associations: int) -> tuple[float, float]:
    """Return the resident memory of a warm receiver, and by how much it grew at most over such a study."""
    with tempfile.TemporaryDirectory() as name, RECEIVERS["node"](Path(name), network) as (port, ae_title):
        load = [*network.enter, sys.executable, "-m", "bench.load", str(port), ae_title, "--per-study", str(count)]
        warm = ["--bytes", "100000", "--count", "200", "--associations", "4", "--first", "900000"]
        run([*load, *warm])
        pid = find_receiver(Path(name))
        forget_peak(pid)
        before, _ = resident_mb(pid)
        run([*load, "--bytes", str(size), "--count", str(count), "--associations", str(associations)])
        return before, resident_mb(pid)[1] - before


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--huge", type=int, default=200_000_000, help="bytes of the one radiograph")
    parser.add_argument("--instances", type=int, default=2000, help="of the one study")
    parser.add_argument("--bytes", type=int, default=100_000, help="of each of them")
    parser.add_argument("--associations", type=int, default=4, help="that bring them")
    arguments = parser.parse_args()
    kinds = {
        f"one radiograph of {arguments.huge / 1e6:.0f} MB": (arguments.huge, 1, 1),
        f"a study of {arguments.instances} instances of {arguments.bytes / 1e3:.0f} KB": (
            arguments.bytes, arguments.instances, arguments.associations,
        ),
    }  # fmt: skip
    network = Network()
    try:
        for what, (size, count, associations) in kinds.items():
            before, growth = measure(network, size, count, associations)
            verdict = "met" if growth < TARGET_MB else "MISSED"
            print(
                f"{what}: {before:.0f} MB before, at most {growth:.1f} MB more; below {TARGET_MB}: {verdict}",
                flush=True,
            )
    finally:
        network.close()


if __name__ == "__main__":
    main()
