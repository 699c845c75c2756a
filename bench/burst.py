"""A burst of studies at once: how fast the node as a whole is beside receiving alone and the model alone.

    python -m bench.burst [--models shipped full] [--studies 500] [--size 1024] [--device auto] [--io 1]
        [--associations 4]

All three in the same run over the same studies (a generated film and its report): received by a node whose other parts
do not run; grounded by the model in batches, with the next ones read meanwhile, as a worker does; and from the first
byte sent to the last result in the archive, through a node that runs whole and warm (`knowmvg up`, SQLite, embedded
broker; `--io` more workers of the queue `io` at its side), with a stand-in as archive. Every study must be delivered,
each result once. Target: within 10 % of the slower of the two alone.

`shipped` is the small model that comes with the node; `full` the full design with random weights (`bench.full_size`),
on a processor in sizes of which two cores compute a study in about a second. Both are given all cores, alone as in the
node.
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

from transformers import logging

from bench.batching import read_and_ground
from bench.full_size import SIZES, save_model
from bench.studies import Archive, Written, phantoms, send_all, write_studies
from dicom_node.config import load_settings
from dicom_node.queries import count_jobs, make_engine, make_sessions
from grounding.checkpoint import choose_device, load_predictor
from grounding.phantoms.study import PhantomStudy
from tests.acceptance.peers import ROOT, Node, Process, wait_until

TARGET = 0.9
END_S = 3600
LOOK_S = 0.5


STUDIES = {"shipped": 500, "full": 60}
"""How many of each model, unless told otherwise."""

BATCH = 8
"""Studies that the model alone is given at once: what a worker takes."""


def prepare_model(name: str, folder: Path, device: str) -> str:
    """Return the `model.path` of a model; one that does not ship is made in `folder`."""
    if name == "shipped":
        return "default"
    logging.disable_progress_bar()
    where = choose_device(device)
    size = "full" if where.type == "cuda" else "middle"
    path = save_model(folder, SIZES[size], where)
    weights = sum(file.stat().st_size for file in folder.rglob("*.safetensors"))
    print(f"full design with random weights, size {size}: {weights / 1e6:.0f} MB of weights", flush=True)
    return str(path)


def of_model(path: str, kinds: Sequence[PhantomStudy], studies: int, device: str) -> float:
    """Return the studies per second that the model grounds, with reading them to its canvas."""
    predictor = load_predictor(path, device)
    given = [([kinds[number % len(kinds)].image], kinds[number % len(kinds)].report) for number in range(studies)]
    read_and_ground(predictor, given[: 2 * BATCH], BATCH)  # warms up
    began = time.monotonic()
    read_and_ground(predictor, given, BATCH)
    return studies / (time.monotonic() - began)


def make_node(folder: Path, archive: Archive, model: str, device: str) -> Node:
    """Return a node of its own; no part of it runs yet."""
    folder.mkdir()
    destination = {"name": "archive", "ae_title": "ARCHIVE", "host": "127.0.0.1", "port": archive.port}
    return Node(
        folder, destinations=[destination], model={"path": model, "device": device}, receiver={"max_associations": 100}
    )


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
    node = make_node(folder, archive, "default", "cpu")
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


def measure(name: str, folder: Path, kinds: Sequence[PhantomStudy], arguments: argparse.Namespace) -> None:
    """Measure all three with one model, and print."""
    count, device = arguments.studies or STUDIES[name], arguments.device
    (folder / "outbox").mkdir()
    path = prepare_model(name, folder, device)
    model = of_model(path, kinds, min(count, 128), device)
    print(f"{name} model alone {model:.2f} studies/s", flush=True)
    with Archive() as archive:
        studies = write_studies(folder / "outbox", "burst", count, kinds)
        warm = write_studies(folder / "outbox", "warm", 2, kinds)
        receiver = of_receiver(folder / "receiver", archive, studies, arguments.associations)
        print(f"received alone {receiver:.1f} studies/s", flush=True)
        node = make_node(folder / "node", archive, path, device)
        whole, door = of_node(node, archive, warm, studies, arguments)
    twice = sum(times > 1 for times in archive.stores.values())
    print(
        f"{count} studies through the whole node {whole:.2f} studies/s, its door meanwhile {door:.1f}; all delivered, "
        f"{twice} results twice"
    )
    share = whole / min(receiver, model)
    print(f"{name} model: {100 * share:.0f} % of the slower of the two alone; target {100 * TARGET:.0f} %", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(STUDIES), default=["shipped"])
    parser.add_argument("--studies", type=int, help=f"with each model; else {STUDIES}")
    parser.add_argument("--size", type=int, default=1024, help="pixels of a side")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--io", type=int, default=0, help="workers of the queue io beside the one of `knowmvg up`")
    parser.add_argument("--associations", type=int, default=4)
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))  # as a node has by itself, unlike one in the tests
    kinds = phantoms(arguments.size)
    print(
        f"{arguments.size} x {arguments.size} pixels, {os.cpu_count()} cores, device {arguments.device}, "
        f"{1 + arguments.io} io workers, {arguments.associations} associations",
        flush=True,
    )
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            measure(name, Path(folder), kinds, arguments)


if __name__ == "__main__":
    main()
