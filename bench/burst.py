"""A burst of studies at once: how fast the node as a whole is beside receiving alone and the model alone.

    python -m bench.burst [--studies 500] [--size 1024] [--device auto] [--io 1] [--associations 4]

All three in the same run over the same studies (a generated film and its report): received by a node whose other parts
do not run; grounded by the model in batches, with the next ones read meanwhile, as a worker does; and from the first
byte sent to the last result in the archive, through a node that runs whole and warm (`knowmvg up`, SQLite, embedded
broker; `--io` more workers of the queue `io` at its side), with a stand-in as archive. Every study must be delivered,
each result once. Target: within 10 % of the slower of the two alone.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.batching import read_and_ground
from bench.studies import Archive, Written, phantoms, send_all, write_studies
from dicom_node.config import load_settings
from dicom_node.queries import count_jobs, make_engine, make_sessions
from grounding.checkpoint import load_predictor
from grounding.phantoms.study import PhantomStudy
from tests.acceptance.peers import ROOT, Node, Process, wait_until

TARGET = 0.9
END_S = 3600
LOOK_S = 0.5


def of_model(kinds: Sequence[PhantomStudy], studies: int, device: str, batch_size: int) -> float:
    """Return the studies per second that the model grounds, with reading them to its canvas."""
    predictor = load_predictor("default", device)
    given = [([kinds[number % len(kinds)].image], kinds[number % len(kinds)].report) for number in range(studies)]
    read_and_ground(predictor, given[: 2 * batch_size], batch_size)  # warms up
    began = time.monotonic()
    read_and_ground(predictor, given, batch_size)
    return studies / (time.monotonic() - began)


def make_node(folder: Path, archive: Archive, device: str) -> Node:
    """Return a node of its own; no part of it runs yet."""
    destination = {"name": "archive", "ae_title": "ARCHIVE", "host": "127.0.0.1", "port": archive.port}
    return Node(folder, destinations=[destination], model={"device": device}, receiver={"max_associations": 100})


@contextmanager
def part(node: Node, *arguments: str) -> Iterator[Process]:
    """Run another part of a node."""
    command = [sys.executable, "-m", "dicom_node.cli", *arguments, "--config", str(node.config)]
    process = Process(command, node.folder / "part.log", ROOT)
    try:
        yield process
    finally:
        process.stop()


def of_receiver(folder: Path, archive: Archive, studies: Sequence[Written], associations: int) -> float:
    """Return the studies per second that the receiver takes, with no other part of the node beside it."""
    node = make_node(folder, archive, "cpu")
    node.run("db", "upgrade")
    with part(node, "receiver"):
        wait_until(lambda: is_open(node.port), "the receiver to listen")
        began, taken = send_all(node.port, studies, associations)
    return len(studies) / (max(taken.values()) - began)


def is_open(port: int) -> bool:
    """Tell whether something listens on a port of this host."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def of_node(
    node: Node, archive: Archive, warm: Sequence[Written], studies: Sequence[Written], arguments: argparse.Namespace
) -> tuple[float, float]:
    """Return the studies per second of the whole node, and of its door meanwhile."""
    with ExitStack() as stack:
        node.start()
        stack.callback(node.stop)
        for _ in range(arguments.io):
            stack.enter_context(part(node, "worker", "--queues", "io"))
        send_all(node.port, warm, 1)
        wait_for(node, len(warm))
        began, taken = send_all(node.port, studies, arguments.associations)
        wait_for(node, len(warm) + len(studies))
    last = max(max(archive.came[study.uid].values()) for study in studies)
    return len(studies) / (last - began), len(studies) / (max(taken.values()) - began)


def wait_for(node: Node, count: int) -> None:
    """Wait until so many jobs are DELIVERED. Ends the program where they are not."""
    deadline = time.monotonic() + END_S
    while time.monotonic() < deadline:
        states = states_of(node)
        if states.get("DELIVERED", 0) == count:
            return
        if bad := {state: number for state, number in states.items() if state in ("FAILED", "NOT_APPLICABLE")}:
            raise SystemExit(f"studies were lost: {bad}")
        time.sleep(LOOK_S)
    raise SystemExit(f"not all were delivered in {END_S} s: {states_of(node)}")


def states_of(node: Node) -> dict[str, int]:
    """Return the number of jobs in each state."""
    engine = make_engine(load_settings(node.config, {}).database.url)
    try:
        with make_sessions(engine)() as session:
            return dict(count_jobs(session))
    finally:
        engine.dispose()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--size", type=int, default=1024, help="pixels of a side")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--io", type=int, default=0, help="workers of the queue io beside the one of `knowmvg up`")
    parser.add_argument("--associations", type=int, default=4)
    arguments = parser.parse_args()
    kinds = phantoms(arguments.size)
    print(
        f"{arguments.studies} studies of {arguments.size} x {arguments.size} pixels, {os.cpu_count()} cores, device "
        f"{arguments.device}, {1 + arguments.io} io workers, {arguments.associations} associations",
        flush=True,
    )
    model = of_model(kinds, min(arguments.studies, 128), arguments.device, 8)
    print(f"model alone {model:.1f} studies/s", flush=True)
    with tempfile.TemporaryDirectory() as name, Archive() as archive:
        folder = Path(name)
        for place in ("outbox", "receiver", "node"):
            (folder / place).mkdir()
        studies = write_studies(folder / "outbox", "burst", arguments.studies, kinds)
        warm = write_studies(folder / "outbox", "warm", 2, kinds)
        receiver = of_receiver(folder / "receiver", archive, studies, arguments.associations)
        print(f"received alone {receiver:.1f} studies/s", flush=True)
        node = make_node(folder / "node", archive, arguments.device)
        whole, door = of_node(node, archive, warm, studies, arguments)
    twice = sum(count > 1 for count in archive.stores.values())
    print(f"the whole node {whole:.2f} studies/s, its door meanwhile {door:.1f}; all delivered, {twice} results twice")
    share = whole / min(receiver, model)
    print(f"{100 * share:.0f} % of the slower of the two alone; target {100 * TARGET:.0f} %")


if __name__ == "__main__":
    main()
