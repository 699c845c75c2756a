"""How fast the receiver takes instances in, beside other makers' receivers on the same machine, in the same run.

    python -m bench.receiver [--rounds 5] [--sizes "100 KB" "0.5 MB" "8 MB"] [--curve 1 2 4 8 16 32]

All run in a network namespace that has nothing but loopback, one after the other, and `bench.load` sends to each. The
node syncs every instance and its folder, and commits its row, before it answers; Orthanc syncs its file; storescp and
plain pynetdicom sync nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.receivers import ENVIRONMENT, RECEIVERS, Network

SIZES = {"100 KB": (100_000, 800), "0.5 MB": (500_000, 400), "8 MB": (8_000_000, 48)}
"""Bytes of an instance, and how many of them a round sends."""

WARM_UP = 40


@dataclass(frozen=True)
class Measured:
    """What one load came to."""

    per_second: float
    milliseconds: Sequence[float]

    def quantile(self, share: float) -> float:
        """Return the milliseconds that this share of the answers took at most."""
        ordered = sorted(self.milliseconds)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@dataclass(frozen=True)
class Place:
    """Where receivers run: a network with nothing but loopback, and a folder for those of each.

    What they received is emptied, and removed at the end of the run only: when ext4 makes a file, it passes over every
    one that was removed in the last minutes, which would take a fifth of the time of those measured after others.
    """

    network: Network
    root: Path

    @contextmanager
    def folder(self) -> Iterator[Path]:
        """Give a folder, and empty its files."""
        folder = Path(tempfile.mkdtemp(dir=self.root))
        yield folder
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                os.truncate(path, 0)


def measure(name: str, size: str, associations: int, count: int, place: Place) -> Measured:
    """Start a receiver, warm it up, and send to it."""
    network = place.network
    with place.folder() as folder, RECEIVERS[name](folder, network) as (port, ae_title):
        load = [*network.enter, sys.executable, "-m", "bench.load", str(port), ae_title, "--bytes", str(SIZES[size][0])]
        run(
            [
                *load,
                "--count",
                str(max(associations, WARM_UP)),
                "--associations",
                str(associations),
                "--first",
                "900000",
            ]
        )
        done = json.loads(run([*load, "--count", str(count), "--associations", str(associations)]))
    return Measured(count / done["seconds"], done["milliseconds"])


def run(command: Sequence[str]) -> str:
    """Return what a command prints."""
    return subprocess.run(command, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True, check=True, timeout=600).stdout


def compare(sizes: Sequence[str], names: Sequence[str], rounds: int, place: Place, share: float) -> None:
    """Print a table: medians over rounds in which each receiver had its turn, and ratios to each peer's."""
    tell("4 associations", *names)
    tell("---", *["---"] * len(names))
    for size in sizes:
        count = max(8, int(SIZES[size][1] * share))
        rates: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(rounds):
            for name in names:
                rates[name].append(measure(name, size, 4, count, place).per_second)
        medians = {name: statistics.median(values) for name, values in rates.items()}
        spreads = [f"{medians[name]:.0f} ({min(rates[name]):.0f}–{max(rates[name]):.0f})" for name in names]
        tell(f"{size}, instances/s: median (least–most)", *spreads)
        ratios = [
            statistics.median(own / other for own, other in zip(rates[names[0]], rates[name], strict=True))
            for name in names
        ]
        tell(f"{size}, {names[0]} is … times as fast", *[f"{ratio:.2f}" for ratio in ratios])


def draw_curve(size: str, names: Sequence[str], concurrency: Sequence[int], place: Place, share: float) -> None:
    """Print a table: what each receiver does with so many associations at once."""
    print(flush=True)
    tell(f"{size}, associations", "receiver", "instances/s", "p50 ms", "p95 ms", "max ms")
    tell(*["---"] * 6)
    for associations in concurrency:
        for name in names:
            count = max(associations, int(SIZES[size][1] * share))
            one = measure(name, size, associations, count, place)
            quantiles = [f"{one.quantile(part):.1f}" for part in (0.5, 0.95, 1.0)]
            tell(str(associations), name, f"{one.per_second:.0f}", *quantiles)


def tell(*cells: str) -> None:
    """Print a line of a Markdown table."""
    print("| " + " | ".join(cells) + " |", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="*", choices=SIZES, default=list(SIZES))
    parser.add_argument("--receivers", nargs="*", choices=RECEIVERS, default=list(RECEIVERS))
    parser.add_argument("--curve", nargs="*", type=int, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--share", type=float, default=1.0, help="of the instances that a full round sends")
    arguments = parser.parse_args()
    network = Network()
    try:
        with tempfile.TemporaryDirectory() as root:
            place = Place(network, Path(root))
            compare(arguments.sizes, arguments.receivers, arguments.rounds, place, arguments.share)
            if arguments.curve:
                names = [name for name in arguments.receivers if name in ("node", "Orthanc", "storescp --fork")]
                draw_curve("100 KB", names, arguments.curve, place, arguments.share)
    finally:
        network.close()


if __name__ == "__main__":
    main()
