"""Whether one sender slows another: a bulk sender alone, beside one that stalls, and beside one that trickles.

    python -m bench.neighbours [--rounds 7] [--bytes 500000] [--count 400] [--associations 4]

All in one network namespace that has nothing but loopback, against one receiver of the node. The stalled ones have each
sent half of an instance and say nothing more; the trickling one sends an instance of 10 KB each quarter of a second. In
each round the bulk sender has its turn alone and beside each, and the rates of a round are compared with each other.
Target: the bulk sender's rate changes by less than 10 %. What the trickling one waits for its answers is told, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.load import Message, Sender, receive
from bench.receiver import run
from bench.receivers import ENVIRONMENT, RECEIVERS, Network

TARGET = 0.10
STALLED = 4
TRICKLE_BYTES, TRICKLE_S = 10_000, 0.25
NEIGHBOURS = ("nobody", "stalled", "trickling")


def be_neighbour(kind: str, port: int, ae_title: str) -> None:
    """Be such a sender until standard input ends; print the milliseconds that each answer took."""
    size = 8_000_000 if kind == "stalled" else TRICKLE_BYTES
    arguments = argparse.Namespace(port=port, ae_title=ae_title, bytes=size, per_study=3)
    senders = [Sender(arguments, range(0), threading.Barrier(1)) for _ in range(STALLED if kind == "stalled" else 1)]
    stop = threading.Event()
    threading.Thread(target=_wait_for_end, args=(stop,), daemon=True).start()
    connections = [sender.take_over() for sender in senders]
    message = Message(senders[0].context_id, size, senders[0].max_pdu_bytes)
    milliseconds = []
    print("ready", flush=True)
    if kind == "stalled":
        for number, connection in enumerate(connections):
            connection.sendall(message.encode(800_000 + number, 3)[: size // 2])
        stop.wait()
    number = 800_000
    while not stop.wait(TRICKLE_S):
        began = time.perf_counter()
        message.send(connections[0], number, 3)
        if status := receive(connections[0]):
            raise SystemExit(f"answered with 0x{status:04X}")
        milliseconds.append(1000 * (time.perf_counter() - began))
        number += 1
    print(json.dumps(milliseconds))
    for sender in senders:
        sender.close()


def _wait_for_end(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()


@contextmanager
def neighbour(kind: str, network: Network, port: int, ae_title: str) -> Iterator[list[float]]:
    """Have such a sender beside the block; the list holds what it waited for, afterwards."""
    waited: list[float] = []
    if kind == "nobody":
        yield waited
        return
    command = [*network.enter, sys.executable, "-m", "bench.neighbours", "--be", kind, str(port), ae_title]
    process = subprocess.Popen(
        command,
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise SystemExit("the other sender does not start")
    try:
        time.sleep(0.5)
        yield waited
    finally:
        told, _ = process.communicate("", timeout=60)
        waited += json.loads(told)


def measure(arguments: argparse.Namespace, network: Network, port: int, ae_title: str) -> None:
    """Measure round by round, and print the medians."""
    load = [*network.enter, sys.executable, "-m", "bench.load", str(port), ae_title, "--bytes", str(arguments.bytes)]
    load += ["--associations", str(arguments.associations), "--count"]
    run([*load, "40", "--first", "900000"])
    rates: dict[str, list[float]] = {kind: [] for kind in NEIGHBOURS}
    waited: list[float] = []
    first = 1
    for turn in range(arguments.rounds):
        for kind in NEIGHBOURS[turn % 3 :] + NEIGHBOURS[: turn % 3]:
            with neighbour(kind, network, port, ae_title) as waits:
                done = json.loads(run([*load, str(arguments.count), "--first", str(first)]))
            rates[kind].append(arguments.count / done["seconds"])
            first += arguments.count
            waited += waits
    report(rates, waited)


def report(rates: dict[str, list[float]], waited: list[float]) -> None:
    """Print what each neighbour made of the rate."""
    for kind in NEIGHBOURS:
        changes = [beside / alone - 1 for beside, alone in zip(rates[kind], rates["nobody"], strict=True)]
        change = statistics.median(changes)
        verdict = "" if kind == "nobody" else f": {change:+.1%}, {'met' if abs(change) < TARGET else 'MISSED'}"
        print(f"bulk sender beside {kind:10} {statistics.median(rates[kind]):6.0f} instances/s{verdict}")
    if len(waited) > 1:
        p95 = statistics.quantiles(waited, n=20)[-1]
        print(
            f"the trickling sender waited {statistics.median(waited):.1f} ms (median), {p95:.1f} ms (95th percentile)"
        )
    print(f"target: a change below {TARGET:.0%}")


def main() -> None:
    """Measure, or be a neighbour."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--bytes", type=int, default=500_000)
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--associations", type=int, default=4)
    parser.add_argument("--be", nargs=3, metavar=("KIND", "PORT", "AE_TITLE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.be:
        be_neighbour(arguments.be[0], int(arguments.be[1]), arguments.be[2])
        return
    network = Network()
    try:
        with tempfile.TemporaryDirectory() as name, RECEIVERS["node"](Path(name), network) as (port, ae_title):
            measure(arguments, network, port, ae_title)
    finally:
        network.close()


if __name__ == "__main__":
    main()
