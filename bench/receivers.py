"""Receivers to measure, each in a network namespace that has nothing but loopback: the node's, and its peers'."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import yaml

from tests.acceptance.peers import Network, Orthanc

ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1"}
PORTS = itertools.count(11112)
"""The namespace is our own: every port of it is free. One that was used is not, for a while."""

PLAIN = """
import sys
from pathlib import Path
from pynetdicom import AE, AllStoragePresentationContexts, evt

def store(event):
    ds = event.dataset
    ds.file_meta = event.file_meta
    ds.save_as(Path(sys.argv[2]) / f"{ds.SOPInstanceUID}.dcm", enforce_file_format=True)
    return 0x0000

ae = AE("KNOWMVG")
ae.maximum_associations = 100
ae.supported_contexts = AllStoragePresentationContexts
ae.add_supported_context("1.2.840.10008.1.1")
ae.start_server(("127.0.0.1", int(sys.argv[1])), evt_handlers=[(evt.EVT_C_STORE, store)])
"""
"""pynetdicom as its tutorial has it: decode, and save."""

Receiver = Callable[[Path, Network], AbstractContextManager[tuple[int, str]]]
"""Gives port and AE title of a receiver that keeps what comes in the folder."""


@contextmanager
def running(command: Sequence[str], port: int, enter: Sequence[str]) -> Iterator[None]:
    """Run an SCP until the end of the block, from when it answers C-ECHO."""
    process = subprocess.Popen(
        [*enter, *command], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    echo = [*enter, "echoscu", "-aet", "PACS", "-aec", "KNOWMVG", "127.0.0.1", str(port)]
    try:
        for _ in range(300):
            if subprocess.run(echo, env=ENVIRONMENT, stderr=subprocess.DEVNULL, check=False).returncode == 0:
                break
            time.sleep(0.1)
        else:
            raise SystemExit(f"it does not answer: {' '.join(command)}")
        yield
    finally:
        process.terminate()
        process.wait(20)


def node(processes: int) -> Receiver:
    """Return the node's receiver, of so many processes on one port, on SQLite."""

    @contextmanager
    def receiver(folder: Path, network: Network) -> Iterator[tuple[int, str]]:
        peers = [{"ae_title": "PACS", "address": "127.0.0.1"}]
        port = next(PORTS)
        section = {"port": port, "peers": peers, "processes": processes, "max_associations": 100}
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump({"node": {"data_dir": str(folder)}, "receiver": section}))
        knowmvg = [sys.executable, "-m", "dicom_node.cli"]
        subprocess.run([*knowmvg, "db", "upgrade", "--config", str(config)], check=True, stderr=subprocess.DEVNULL)
        command = [*knowmvg, "receiver", "--config", str(config)]
        others = [
            subprocess.Popen([*network.enter, *command], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
            for _ in range(processes - 1)
        ]
        try:
            with running(command, port, network.enter):
                time.sleep(2 if others else 0)  # until they listen, too
                yield port, "KNOWMVG"
        finally:
            for other in others:
                other.terminate()
                other.wait(20)

    return receiver


@contextmanager
def orthanc(folder: Path, network: Network) -> Iterator[tuple[int, str]]:
    """Orthanc with its SQLite index, syncing its storage as it does by default."""
    server = Orthanc(folder, network, next(PORTS))
    try:
        yield server.port, server.ae_title
    finally:
        server.stop()


@contextmanager
def storescp(folder: Path, network: Network) -> Iterator[tuple[int, str]]:
    """DCMTK's SCP, which syncs nothing; a process for each association, as one alone serves one at a time."""
    port = next(PORTS)
    command = ["storescp", "--fork", "-od", str(folder), "-aet", "KNOWMVG", str(port)]
    with running(command, port, network.enter):
        yield port, "KNOWMVG"


@contextmanager
def plain_pynetdicom(folder: Path, network: Network) -> Iterator[tuple[int, str]]:
    """pynetdicom as its tutorial has it, which syncs nothing."""
    port = next(PORTS)
    with running([sys.executable, "-c", PLAIN, str(port), str(folder)], port, network.enter):
        yield port, "KNOWMVG"


RECEIVERS: dict[str, Receiver] = {
    "node": node(1),
    "node, 2 processes": node(2),
    "Orthanc": orthanc,
    "storescp --fork": storescp,
    "plain pynetdicom": plain_pynetdicom,
}

__all__ = ["ENVIRONMENT", "RECEIVERS", "Network", "Receiver"]
