"""Brokers that need no server, side by side: how fast a ring is heard, what kill -9 loses, what idling costs.

    python bench/broker.py [--messages 400]

Each candidate is driven through Celery as the node drives it (solo pool, no results). `lost` are messages that never
came to an end over five kill -9 of the worker; the node's sweep rings those again from the job rows. `deaths` are
workers that ended by themselves while several writers and readers shared the broker. `dead` counts the moments (of
those at which a file is opened or locked) where a kill -9 of the first writer leaves a broker that no worker can use
again.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from celery import Celery

CANDIDATES = {
    "filesystem (1 s)": 1.0,
    "filesystem (0.1 s)": 0.1,
    "embedded": 0.1,
}


def make_app(candidate: str, folder: Path) -> Celery:
    """Return a Celery application on `candidate`, whose one task writes its start and its end to a log."""
    app = Celery("bench", broker="memory://" if candidate == "embedded" else "filesystem://")
    app.conf.update(
        task_ignore_result=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_enable_remote_control=False,
        task_default_queue="bell",
    )
    if candidate == "embedded":
        app.conf.broker_transport = "workers.embedded_broker:Transport"
        app.conf.broker_transport_options = {"path": str(folder / "broker.db")}
    else:
        for name in ("messages", "taken"):
            (folder / name).mkdir(exist_ok=True)
        app.conf.broker_transport_options = {
            "data_folder_in": str(folder / "messages"),
            "data_folder_out": str(folder / "messages"),
            "control_folder": str(folder / "control"),
            "processed_folder": str(folder / "taken"),
            "store_processed": True,
            "polling_interval": CANDIDATES[candidate],
        }

    @app.task(name="ring")
    def ring(number: int, seconds: float) -> None:
        note(folder, "start", number)
        time.sleep(seconds)
        note(folder, "end", number)

    return app


def note(folder: Path, event: str, number: int) -> None:
    """Append one line to the log; a short O_APPEND write is atomic."""
    with (folder / "log").open("ab", buffering=0) as log:
        log.write(f"{event} {number} {time.monotonic()}\n".encode())


@dataclass(frozen=True)
class Log:
    """What the tasks wrote: the instants of first starts, and how often each number started and ended."""

    first_start: dict[int, float]
    starts: Counter[int]
    ends: Counter[int]


def read_log(folder: Path) -> Log:
    """Read what the tasks wrote so far."""
    log = Log({}, Counter(), Counter())
    path = folder / "log"
    for line in path.read_text().splitlines() if path.exists() else []:
        event, number, at = line.split()
        if event == "start":
            log.first_start.setdefault(int(number), float(at))
        (log.starts if event == "start" else log.ends)[int(number)] += 1
    return log


class Worker:
    """One worker process of a candidate."""

    def __init__(self, candidate: str, folder: Path) -> None:
        command = [sys.executable, __file__, "--worker", candidate, "--folder", str(folder)]
        with (folder / "worker.log").open("a") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def cpu_seconds(self) -> float:
        """Return the processor time that the process has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """End the process as `kill -9` does."""
        self.process.kill()
        self.process.wait()


def wait_for_ends(folder: Path, count: int, quiet_s: float = 5.0) -> Log:
    """Return the log once `count` messages ended, or nothing new was written for `quiet_s`."""
    log, changed_at = read_log(folder), time.monotonic()
    while len(log.ends) < count and time.monotonic() - changed_at < quiet_s:
        time.sleep(0.02)
        if (new := read_log(folder)).starts.total() != log.starts.total():
            changed_at = time.monotonic()
        log = new
    return log


def measure_latency(candidate: str, folder: Path) -> tuple[float, float, float]:
    """Return median and largest ms from ring to start on an idle worker, and the percentage of a core idling costs."""
    app, worker, gaps, sent = make_app(candidate, folder), Worker(candidate, folder), random.Random(7), {}
    app.send_task("ring", (0, 0.0))
    wait_for_ends(folder, 1, quiet_s=20)
    for number in range(1, 21):
        time.sleep(gaps.uniform(0.0, 0.4))
        sent[number] = time.monotonic()
        app.send_task("ring", (number, 0.0))
        wait_for_ends(folder, number + 1)
    log = read_log(folder)
    used, began = worker.cpu_seconds(), time.monotonic()
    time.sleep(6)
    idle = (worker.cpu_seconds() - used) / (time.monotonic() - began)
    worker.kill()
    waits = sorted(1000 * (log.first_start[number] - at) for number, at in sent.items())
    return waits[len(waits) // 2], waits[-1], 100 * idle


def measure_kills(candidate: str, folder: Path, messages: int) -> tuple[int, int]:
    """Return how many messages were lost, and ended twice, over five kill -9 in mid-task."""
    app = make_app(candidate, folder)
    for number in range(messages):
        app.send_task("ring", (number, 0.005))
    worker = Worker(candidate, folder)
    for part in range(1, 6):
        wait_for_ends(folder, messages * part // 7, quiet_s=20)
        worker.kill()
        worker = Worker(candidate, folder)
    log = wait_for_ends(folder, messages, quiet_s=8)
    worker.kill()
    return messages - len(log.ends), sum(count - 1 for count in log.ends.values())


def measure_race(candidate: str, folder: Path, messages: int) -> tuple[int, int, int]:
    """Return lost, ended twice, and workers that died, with three writers and three readers at once."""
    workers = [Worker(candidate, folder) for _ in range(3)]
    part = messages // 3
    script = [sys.executable, __file__, "--write", str(part), "--folder", str(folder), "--worker", candidate]
    writers = [subprocess.Popen([*script, "--first", str(i * part)]) for i in range(3)]
    for writer in writers:
        writer.wait()
    log = wait_for_ends(folder, part * 3, quiet_s=8)
    deaths = sum(worker.process.poll() is not None for worker in workers)
    for worker in workers:
        worker.kill()
    return part * 3 - len(log.ends), sum(count - 1 for count in log.ends.values()), deaths


def measure_torn(candidate: str, folder: Path) -> tuple[int, int]:
    """Return at how many of the moments tried a killed first writer leaves the broker dead, and how many were tried."""
    dead = moment = 0
    while True:
        moment += 1
        (home := folder / str(moment)).mkdir()
        script = [
            sys.executable,
            __file__,
            "--worker",
            candidate,
            "--folder",
            str(home),
            "--write",
            "1",
            "--first",
            "0",
        ]
        if subprocess.run([*script, "--die-at", str(moment)], check=False).returncode == 0:
            return dead, moment - 1
        worker = Worker(candidate, home)
        subprocess.run([*script[:-1], "1"], check=False, stderr=subprocess.DEVNULL)
        dead += 1 not in wait_for_ends(home, 2, quiet_s=6).ends
        worker.kill()


def die_at(moment: int, folder: Path) -> None:
    """End this process, as kill -9 does, at the `moment`th time that it opens or locks a file of the broker."""
    seen = 0

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal seen
        touches = event in ("fcntl.flock", "sqlite3.connect/handle")
        touches = touches or (event == "open" and str(arguments[0]).startswith(str(folder)))
        seen += touches
        if touches and seen == moment:
            os._exit(137)

    sys.addaudithook(count)


def print_table(messages: int) -> None:
    """Measure every candidate in folders of its own and print one line each."""
    print("broker              ring ms: median, max   idle %   killed: lost, twice   race: lost, twice, deaths   dead")
    for candidate in CANDIDATES:
        with tempfile.TemporaryDirectory() as name:
            folders = [Path(name) / part for part in ("latency", "kills", "race", "torn")]
            for folder in folders:
                folder.mkdir()
            median, largest, idle = measure_latency(candidate, folders[0])
            lost, twice = measure_kills(candidate, folders[1], messages)
            race = measure_race(candidate, folders[2], 3 * messages)
            dead, moments = measure_torn(candidate, folders[3])
        print(
            f"{candidate:20}{median:15.0f},{largest:5.0f}{idle:9.1f}{lost:14},{twice:6}"
            f"{race[0]:14},{race[1]:6},{race[2]:7}{dead:4} of {moments}"
        )


def main() -> None:
    """Run the benchmark, or one worker or writer of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=400)
    parser.add_argument("--worker", choices=CANDIDATES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--die-at", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker is None:
        print_table(arguments.messages)
        return
    app = make_app(arguments.worker, arguments.folder)
    if arguments.write is None:
        app.worker_main(["worker", "-P", "solo", "-l", "WARNING", "--without-gossip", "--without-mingle"])
    die_at(arguments.die_at, arguments.folder)
    for number in range(arguments.first, arguments.first + arguments.write):
        app.send_task("ring", (number, 0.0))


if __name__ == "__main__":
    main()
