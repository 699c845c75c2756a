"""What the parts of a node that runs keep in memory: `knowmvg up` as it is started, idle, and after its first study.

    python -m bench.memory [--seconds 5]

RSS counts what processes share (the interpreter, libraries) in each of them; PSS divides it among those that share it,
so that the sum of PSS is what the node takes of the machine. The model is loaded with the first study: before it the
worker of the queue `gpu` is as small as the other. Figures are of the kernel (smaps_rollup), in MB.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import time
from pathlib import Path

from tests.acceptance.peers import Node
from tests.builders import make_cxr_dataset, make_report_dataset
from tests.fakes import FakePacs

TARGETS_MB = {"receiver": 120}
PARTS = {
    "receiver": ("receiver",),
    "scheduler": ("scheduler",),
    "console": ("console",),
    "worker gpu": ("worker", "gpu"),
    "worker io": ("worker", "io"),
}
"""Words of the command line of each part."""


def find_parts(supervisor: int) -> dict[str, int]:
    """Return the processes of a node by part."""
    found = {"up (supervisor)": supervisor}
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    for child in children:
        words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        found |= {part: int(child) for part, needed in PARTS.items() if set(needed) <= set(words)}
    return found


def measure(pid: int) -> dict[str, float]:
    """Return the resident memory of a process in MB, by kind."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    kinds = {"Rss": "RSS", "Pss": "PSS"}
    return {name: int(re.search(rf"^{kind}:\s+(\d+) kB", rollup, re.M)[1]) / 1000 for kind, name in kinds.items()}


def measure_node(node: Node) -> dict[str, dict[str, float]]:
    """Return the memory of every part."""
    assert node.process is not None
    return {part: measure(pid) for part, pid in find_parts(node.process.child.pid).items()}


def print_table(idle: dict[str, dict[str, float]], after: dict[str, dict[str, float]]) -> None:
    """Print a line for each part."""
    print("MB                      idle: RSS      PSS    after a study: RSS      PSS")
    for part in idle:
        line = f"{part:20}{idle[part]['RSS']:13.0f}{idle[part]['PSS']:9.0f}{after[part]['RSS']:22.0f}"
        line += f"{after[part]['PSS']:9.0f}"
        if part in TARGETS_MB:
            line += f"   target: below {TARGETS_MB[part]}"
        print(line)
    total = [sum(part["PSS"] for part in table.values()) for table in (idle, after)]
    print(f"{'all':20}{'':13}{total[0]:9.0f}{'':22}{total[1]:9.0f}")


def main() -> None:
    """Start a node, measure it, send it a study, and measure it again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5, help="to let it come to rest before each measurement")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, FakePacs() as pacs:
        archive = {"name": "archive", "ae_title": pacs.ae_title, "host": "127.0.0.1", "port": pacs.port}
        node = Node(Path(folder) / "node", destinations=[archive])
        node.start()
        try:
            time.sleep(arguments.seconds)
            idle = measure_node(node)
            film = make_cxr_dataset(study="memory")
            node.send_datasets(film, make_report_dataset(study="memory", image=film))
            node.wait_for(film.StudyInstanceUID, "DELIVERED")
            time.sleep(arguments.seconds)
            print_table(idle, measure_node(node))
        finally:
            node.stop()


if __name__ == "__main__":
    main()
