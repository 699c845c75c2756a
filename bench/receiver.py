"""How fast the receiver takes instances, next to DCMTK's storescp on the same disk; storescu sends both times.

    python -m bench.receiver [--large 40] [--small 300]

The receiver syncs every instance and commits its row before it answers; storescp does neither. Large: 8 MB images,
small: 100 KB ones; each sent on one association, and on four at once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import yaml

from tests.builders import make_cxr_dataset, write

ENVIRONMENT = {**os.environ, "TCP_NODELAY": "1"}
SIDES = {"8 MB": 2000, "100 KB": 220}


def write_instances(folder: Path, count: int, side: int, senders: int) -> list[Path]:
    """Write `count` instances of `side` x `side` pixels into one folder per sender, and return the folders."""
    pixels = np.random.default_rng(7).integers(0, 4096, (side, side), np.uint16)
    folders = [folder / f"{side}-{senders}-{sender}" for sender in range(senders)]
    for one in folders:
        one.mkdir(parents=True)
    for number in range(count):
        ds = make_cxr_dataset(study=f"{side} {senders} {number}", pixels=pixels)
        write(ds, folders[number % senders] / f"{number}.dcm")
    return folders


def free_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def listening(command: list[str], port: int) -> Iterator[None]:
    """Run an SCP until the end of the block, from when it answers C-ECHO."""
    process = subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        echo = ["echoscu", "-aet", "PACS", "-aec", "KNOWMVG", "127.0.0.1", str(port)]
        for _ in range(300):
            if subprocess.run(echo, stderr=subprocess.DEVNULL, check=False).returncode == 0:
                break
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(20)


def send(folders: list[Path], port: int) -> float:
    """Send the content of each folder on an association of its own, all at once; return the seconds it took."""
    command = ["storescu", "-aet", "PACS", "-aec", "KNOWMVG", "-R", "+sd", "127.0.0.1", str(port)]
    began = time.perf_counter()
    senders = [subprocess.Popen([*command, str(folder)], env=ENVIRONMENT) for folder in folders]
    if any(sender.wait() for sender in senders):
        raise SystemExit("storescu failed")
    return time.perf_counter() - began


@contextmanager
def storescp(folder: Path) -> Iterator[int]:
    """DCMTK's SCP, one process for each association."""
    port = free_port()
    with listening(["storescp", "--fork", "-od", str(folder), "-aet", "KNOWMVG", str(port)], port):
        yield port


@contextmanager
def receiver(folder: Path) -> Iterator[int]:
    """The node's receiver on SQLite."""
    port = free_port()
    config = folder / "config.yaml"
    peers = [{"ae_title": "PACS", "address": "127.0.0.1"}]
    config.write_text(yaml.safe_dump({"node": {"data_dir": str(folder)}, "receiver": {"port": port, "peers": peers}}))
    knowmvg = [sys.executable, "-m", "dicom_node.cli"]
    subprocess.run([*knowmvg, "db", "upgrade", "--config", str(config)], check=True, stderr=subprocess.DEVNULL)
    with listening([*knowmvg, "receiver", "--config", str(config)], port):
        yield port


def main() -> None:
    """Measure both, and print one line per size and number of associations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", type=int, default=40)
    parser.add_argument("--small", type=int, default=300)
    arguments = parser.parse_args()
    if shutil.which("storescp") is None:
        raise SystemExit("storescp is not installed: make peers")
    counts = {"8 MB": arguments.large, "100 KB": arguments.small}
    print("instances                 receiver       storescp     receiver/storescp")
    for size, side in SIDES.items():
        for senders in (1, 4):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                folders = write_instances(folder, counts[size], side, senders)
                rates = []
                for scp in (receiver, storescp):
                    (home := folder / scp.__name__).mkdir()
                    with scp(home) as port:
                        rates.append(counts[size] / send(folders, port))
            print(
                f"{counts[size]:4} x {size:6} x {senders} assoc {rates[0]:8.1f} /s   {rates[1]:8.1f} /s"
                f"   {rates[0] / rates[1]:8.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
