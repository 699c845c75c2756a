"""What stands in deploy/monitoring/ is about metrics that there are, and each alert tells what to do."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from dicom_node.console.metrics import render_metrics
from dicom_node.recorder import METRICS
from tests.fakes import FakePacs, FrozenClock
from tests.rig import make_settings, make_sqlite_sessions

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
ALERTS = yaml.safe_load((MONITORING / "alerts.yaml").read_text(encoding="utf-8"))
RULES: list[dict[str, Any]] = [rule for group in ALERTS["groups"] for rule in group["rules"]]
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))
OPERATE = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")


def expressions() -> Iterator[str]:
    yield from (rule["expr"] for rule in RULES)
    yield from (target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", []))


def names_of(expression: str) -> set[str]:
    return set(re.findall(r"\bknowmvg_\w+", expression))


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names that a console shows, and those that a process may set."""
    folder = tmp_path_factory.mktemp("shown")
    sessions = make_sqlite_sessions(folder)
    pacs = FakePacs()
    pacs.port = 104
    settings = make_settings(folder, [pacs], {})
    with sessions() as session:
        body = render_metrics(session, FrozenClock()(), settings)
    sessions.kw["bind"].dispose()
    names = {sample.name for family in text_string_to_metric_families(body) for sample in family.samples}
    ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    names |= {f"{one.name}{end}" for one in METRICS.values() for end in ends.get(one.kind, ("",))}
    return names | {"knowmvg_scheduler_sweep_age_seconds", "knowmvg_certificate_expiry_timestamp_seconds",
                    "knowmvg_process_seen_seconds"}  # fmt: skip


def test_every_metric_that_is_asked_for_is_shown(shown: set[str]) -> None:
    asked = {name for expression in expressions() for name in names_of(expression)}
    assert len(asked) > 30
    assert asked - shown == set()


def test_every_metric_is_in_the_dashboard_or_an_alert() -> None:
    asked = {name for expression in expressions() for name in names_of(expression)}
    unused = [name for name in METRICS if not any(one.startswith(name) for one in asked)]
    assert unused == ["knowmvg_scheduler_swept_timestamp_seconds"]  # as knowmvg_scheduler_sweep_age_seconds


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_it_is_and_what_to_do_and_fires_soon(rule: dict[str, Any]) -> None:
    assert rule["for"] in ("30s", "1m") if "for" in rule else True
    assert rule["labels"]["severity"] in ("critical", "warning")
    notes = rule["annotations"]
    assert len(notes["summary"]) > 10 and len(notes["description"]) > 40
    document, _, anchor = notes["runbook"].partition("#")
    assert (document, anchor) == ("docs/operate.md", rule["alert"].lower())
    row = re.search(rf'^\| <a id="{anchor}"></a>`{rule["alert"]}` \|(.+)\|(.+)\|$', OPERATE, re.MULTILINE)
    assert row and all(len(cell.strip()) > 10 for cell in row.groups())


def test_the_dashboard_is_laid_out_without_gaps_and_overlaps() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len(taken) == 24 * (max(y for _, y in taken) + 1)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_prometheus_takes_the_rules_the_scrape_configuration_and_every_question(tmp_path: Path) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed; the other tests here read the same files")
    questions = [
        target["expr"].replace("$__rate_interval", "5m")
        for panel in DASHBOARD["panels"] for target in panel.get("targets", [])
    ]  # fmt: skip
    rules = [{"record": f"q{number}", "expr": question} for number, question in enumerate(questions)]
    (tmp_path / "questions.yaml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    for kind, path in (
        ("rules", MONITORING / "alerts.yaml"), ("config", MONITORING / "prometheus.yaml"),
        ("rules", tmp_path / "questions.yaml"),
    ):  # fmt: skip
        done = subprocess.run(["promtool", "check", kind, str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_files_for_compose_and_kubernetes_name_what_is_there() -> None:
    added = yaml.safe_load((MONITORING / "compose.yaml").read_text(encoding="utf-8"))["services"]["prometheus"]
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
    assert added["network_mode"].removeprefix("service:") in compose["services"]
    files = [volume.split(":")[0] for volume in added["volumes"] if volume.startswith("./")]
    assert files and all((ROOT / "deploy" / name).exists() for name in files)
    monitor, policy = yaml.safe_load_all((MONITORING / "kubernetes.yaml").read_text(encoding="utf-8"))
    console = yaml.safe_load((ROOT / "deploy" / "kubernetes" / "base" / "console.yaml").read_text(encoding="utf-8"))
    labels = console["spec"]["template"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert policy["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
