"""The same rules in a real Prometheus that scrapes a real node, its parts as processes, in real time: how many seconds
after a fault the alert fires, and after its end it has cleared. `make faults` alone does this; it takes minutes.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.acceptance.peers import ROOT, Node, Process, free_port, require, wait_until
from tests.fakes import FakePacs
from tests.faults.site import Site, Tally, associate, make_study
from tests.faults.watched import RULES
from tests.servers import Postgres, Redis

WITHIN_S = 120
CLEARS_S = 600
"""What counts over five minutes, a destination that is tried again after its pause."""
PARTS = {
    "receiver": ["receiver"],
    "console": ["console"],
    "gpu": ["worker", "--queues", "gpu"],
    "io": ["worker", "--queues", "io"],
    "scheduler": ["scheduler"],
}


class Prometheus:
    """A Prometheus with the shipped rules on a free loopback port."""

    def __init__(self, folder: Path, target: str) -> None:
        require("prometheus")
        folder.mkdir()
        shutil.copy(RULES, folder / "alerts.yaml")
        settings = yaml.safe_load((RULES.parent / "prometheus.yaml").read_text(encoding="utf-8"))
        settings["global"] = {"scrape_interval": "5s", "evaluation_interval": "5s"}
        settings["scrape_configs"][0] |= {"static_configs": [{"targets": [target]}], "scrape_timeout": "5s"}
        (folder / "prometheus.yaml").write_text(yaml.safe_dump(settings))
        self._url = f"http://127.0.0.1:{(port := free_port())}"
        options = [
            f"--config.file={folder / 'prometheus.yaml'}", f"--storage.tsdb.path={folder / 'rows'}",
            f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
        ]  # fmt: skip
        self.process = Process(["prometheus", *options], folder / "log", folder)
        wait_until(self._answers, "Prometheus to start")

    def firing(self) -> set[str]:
        """Return what fires now."""
        alerts = self._get("/api/v1/alerts")["data"]["alerts"]
        return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}

    def _answers(self) -> bool:
        try:
            return bool(self._get("/api/v1/query?query=up")["data"]["result"])
        except OSError:
            return False

    def _get(self, path: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self._url}{path}", timeout=10) as answer:
            return dict(json.load(answer))


class Parts:
    """The parts of a node, each a process that may be killed and started again."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.processes: dict[str, Process] = {}
        for name in PARTS:
            self.start(name)

    def start(self, name: str) -> None:
        """Start a part."""
        command = [sys.executable, "-m", "dicom_node.cli", *PARTS[name], "--config", str(self.node.config)]
        self.processes[name] = Process(command, self.node.folder / f"{name}.log", ROOT)

    def kill(self, name: str) -> None:
        """End a part as `kill -9` does."""
        self.processes[name].kill()

    def readiness(self) -> tuple[int, str]:
        """Return what `/readyz` answers."""
        try:
            with urllib.request.urlopen(f"{self.node.console}/readyz", timeout=30) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError:
            return 0, "no answer"

    def close(self) -> None:
        """End all of them."""
        for process in self.processes.values():
            process.kill()


class Ward:
    """The node, its servers and its archive, watched."""

    def __init__(self, folder: Path) -> None:
        self.pacs = FakePacs().start()
        self.postgres, self.redis = Postgres(), Redis(folder)
        archive = {"name": "archive", "ae_title": self.pacs.ae_title, "host": "127.0.0.1", "port": self.pacs.port}
        self.node = Node(
            folder / "node", destinations=[archive], database={"url": self.postgres.create("jobs")},
            broker={"url": self.redis.url},
        )  # fmt: skip
        self.node.run("db", "upgrade")
        self.parts = Parts(self.node)
        self.site = Site(self.node, self.pacs)
        wait_until(lambda: self.parts.readiness()[0] == 200, "the node to be ready", 120)
        self.prometheus = Prometheus(folder / "prometheus", self.node.console.removeprefix("http://"))

    def close(self) -> None:
        """End all of it."""
        self.prometheus.process.kill()
        self.parts.close()
        self.redis.close()
        self.postgres.close()
        self.pacs.stop()

    # each fault: how it begins, and how it ends

    def refuse_results(self) -> None:
        """Have the archive refuse for now."""
        self.pacs.status = 0xA700
        self.site.send(make_study(f"refused {time.monotonic_ns()}"))

    def leave(self) -> None:
        """Have the archive be away."""
        self.pacs.stop()
        self.site.send(make_study(f"away {time.monotonic_ns()}"))

    def knock(self) -> None:
        """Have a stranger call, twice: Prometheus sees the second as an increase for sure."""
        for _ in range(2):
            assert associate(self.node.port, make_study("stranger"), "STRANGER").is_rejected
            time.sleep(6)

    def bury(self) -> None:
        """Have the archive refuse for good."""
        self.pacs.status = 0xA900
        self.site.send(make_study(f"buried {time.monotonic_ns()}"))

    def replay(self) -> None:
        """Have the archive take what it refused."""
        self.pacs.status = 0x0000
        self.node.run("deliveries", "replay", "--all")


Act = Callable[[Ward], object]

FAULTS: dict[str, tuple[str, Act, Act, str]] = {
    "database killed": ("KnowmvgDatabaseAway", lambda w: w.postgres.kill(), lambda w: w.postgres.start(), "database"),
    "broker killed": ("KnowmvgBrokerAway", lambda w: w.redis.kill(), lambda w: w.redis.start(), "broker"),
    "receiver killed": (
        "KnowmvgReceiverDead", lambda w: w.parts.kill("receiver"), lambda w: w.parts.start("receiver"), "",
    ),
    "gpu worker killed": ("KnowmvgWorkerDead", lambda w: w.parts.kill("gpu"), lambda w: w.parts.start("gpu"), ""),
    "io worker killed": ("KnowmvgWorkerDead", lambda w: w.parts.kill("io"), lambda w: w.parts.start("io"), ""),
    "scheduler killed": (
        "KnowmvgSchedulerDead", lambda w: w.parts.kill("scheduler"), lambda w: w.parts.start("scheduler"), "scheduler",
    ),
    "console killed": (
        "KnowmvgConsoleDown", lambda w: w.parts.kill("console"), lambda w: w.parts.start("console"), "no answer",
    ),
    "archive away": ("KnowmvgDestinationDown", Ward.leave, lambda w: w.pacs.start(), ""),
    "archive refuses for now": (
        "KnowmvgArchiveRefuses", Ward.refuse_results, lambda w: setattr(w.pacs, "status", 0x0000), "",
    ),
    "archive refuses for good": ("KnowmvgDeadLetters", Ward.bury, Ward.replay, ""),
    "unknown sender": ("KnowmvgUnknownSender", Ward.knock, lambda w: None, ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Ward]:
    """The same node for all faults, one after the other: each is over before the next begins."""
    if not request.config.getoption("--full"):
        pytest.skip("with --full; tests/faults/test_alerts.py tries the same rules at a clock that is moved")
    ward = Ward(tmp_path_factory.mktemp("ward"))
    yield ward
    ward.close()


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", FAULTS)
def test_an_alert_fires_within_two_minutes_and_clears(
    name: str, ward: Ward, record_property: Callable[[str, object], None]
) -> None:
    alert, begin, end, unready = FAULTS[name]
    wait_until(lambda: not ward.prometheus.firing() and ward.parts.readiness()[0] == 200, "all to be well", CLEARS_S)
    others: set[str] = set()

    def fires() -> bool:
        firing = ward.prometheus.firing()
        others.update(firing - {alert})
        return alert in firing

    begin(ward)
    began = time.monotonic()
    wait_until(fires, f"{alert} to fire", WITHIN_S + 30)
    fired = time.monotonic() - began
    status, told = ward.parts.readiness()
    assert (status == 200) == (not unready) and unready in told
    end(ward)
    ended = time.monotonic()
    wait_until(lambda: not fires(), f"{alert} to clear", CLEARS_S)
    wait_until(lambda: ward.parts.readiness()[0] == 200, "the node to be ready again", 120)
    row = Tally(f"alert: {name}", "once")
    row.measured = {
        "alert": alert, "fired after s": round(fired), "cleared after s": round(time.monotonic() - ended),
        "other alerts": len(others),
    }  # fmt: skip
    row.publish(record_property)
    assert fired <= WITHIN_S
    assert others == set()
