"""The command line: what it refuses and how it says so, what it prints, and that it starts without torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
import typer
import yaml

from dicom_node.cli import main
from dicom_node.cli.findings import finding_rows
from dicom_node.cli.node import parse_queues
from dicom_node.cli.options import parse_since, share_cores
from dicom_node.cli.terminal import print_table, printable, printable_instant
from dicom_node.config import MASK

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run a command line in an empty folder; return its exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def _run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["knowmvg", *arguments])
        with pytest.raises(SystemExit) as caught:
            main()
        written = capsys.readouterr()
        return int(caught.value.code or 0), written.out, written.err

    return _run


COMMANDS = (
    *("up", "receiver", "worker", "scheduler", "console"),
    *("demo", "ground", "train", "evaluate", "check", "config", "db", "jobs"),
    *("db:upgrade", "db:current", "jobs:list", "jobs:show", "jobs:retry", "jobs:cancel"),
)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(run: Run, command: str) -> None:
    status, out, _ = run(*command.split(":"), "--help")
    assert status == 0
    assert out.startswith(f"Usage: knowmvg {command.replace(':', ' ')}")


@pytest.mark.parametrize("command", sorted(set(COMMANDS) - {"db", "jobs", "train"}))
def test_every_command_takes_a_configuration(run: Run, command: str) -> None:
    assert "--config" in run(*command.split(":"), "--help")[1]


@pytest.mark.parametrize(
    "command", ["up", "receiver", "worker", "scheduler", "console", "config", "db upgrade", "jobs", "jobs show 1"]
)
def test_a_wrong_configuration_is_one_message_without_traceback(run: Run, tmp_path: Path, command: str) -> None:
    (tmp_path / "wrong.yaml").write_text("receiver: {port: 0}\nnonsense: 1\n")
    status, out, err = run(*command.split(), "--config", "wrong.yaml")
    assert status == 1
    assert out == ""
    assert err.startswith("knowmvg: wrong.yaml has 2 fault(s):")
    assert "receiver.port" in err and "nonsense" in err
    assert "Traceback" not in err


def test_config_prints_the_effective_settings_with_passwords_masked(run: Run, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("broker: {url: 'redis://:hunter2@mq:6379/0'}\n")
    status, out, _ = run("config")
    assert status == 0
    assert yaml.safe_load(out)["broker"]["url"] == f"redis://:{MASK}@mq:6379/0"
    assert yaml.safe_load(out)["node"]["data_dir"] == str(tmp_path / "var")
    assert "hunter2" not in out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("jobs", "lst"), "No such command 'lst'"),
        (("jobs", "--state", "DONE"), "is not one of RECEIVING, COMPLETE"),
        (("jobs", "--since", "yesterday"), "45m, 2h or 3d"),
        (("jobs", "--limit", "0"), "--limit"),
        (("jobs", "show", "seven"), "valid integer"),
        (("worker", "--queues", "cpu"), "the queues are gpu and io"),
        (("ground", "--image", "absent.dcm", "--report", "absent.txt", "--out", "o"), "absent.dcm"),
        (("evaluate",), "give either --manifest FILE.jsonl or --phantoms N"),
        (("train",), "--config"),
    ],
)
def test_wrong_usage_is_refused_with_what_is_right(run: Run, arguments: tuple[str, ...], says: str) -> None:
    status, out, err = run(*arguments)
    assert status == 2
    assert out == ""
    assert says in " ".join(err.split())


@pytest.mark.parametrize(
    ("text", "instant"),
    [
        ("90s", NOW - timedelta(seconds=90)),
        ("45m", NOW - timedelta(minutes=45)),
        ("2h", NOW - timedelta(hours=2)),
        ("3d", NOW - timedelta(days=3)),
        ("1w", NOW - timedelta(weeks=1)),
        ("2026-01-30", datetime(2026, 1, 30, tzinfo=UTC)),
        ("2026-01-30T08:15", datetime(2026, 1, 30, 8, 15, tzinfo=UTC)),
        ("2026-01-30T08:15+02:00", datetime(2026, 1, 30, 8, 15, tzinfo=timezone(timedelta(hours=2)))),
        ("2026-01-30T08:15Z", datetime(2026, 1, 30, 8, 15, tzinfo=UTC)),
    ],
)
def test_since_is_an_age_or_an_instant(text: str, instant: datetime) -> None:
    assert parse_since(text, NOW) == instant


@pytest.mark.parametrize("text", ["", "2", "h", "2 years", "-2h", "2026-13-01", "999999999999w"])
def test_since_refuses_anything_else(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        parse_since(text, NOW)


@pytest.mark.parametrize(
    ("text", "queues"),
    [("gpu,io", ("gpu", "io")), ("io", ("io",)), (" gpu , gpu ", ("gpu",)), ("io,gpu", ("io", "gpu"))],
)
def test_queues_are_read_once_each(text: str, queues: tuple[str, ...]) -> None:
    assert parse_queues(text) == queues


def test_what_comes_from_outside_cannot_move_the_cursor() -> None:
    assert printable("a\x1b[2Jb\nc\rd") == "a [2Jb c d"
    assert printable(None) == "-"
    assert printable_instant("2026-01-31T12:00:00.125+00:00") == "2026-01-31 12:00:00"


def test_a_table_into_a_pipe_is_not_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    uid = "1." + "2" * 60
    print_table(("ONE", "TWO", "THREE"), [(uid, "[bold]text[/bold]", uid), ("short", None, "x" * 200)])
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["ONE", "TWO", "THREE"]
    assert first.split() == [uid, "[bold]text[/bold]", uid]
    assert second.split() == ["short", "-", "x" * 200]
    assert first.index("[bold]") == head.index("TWO")


def test_each_box_of_a_finding_has_its_row() -> None:
    boxes = [{"xyxy": [1.2, 2.6, 3, 4], "score": 0.5}, {"xyxy": [5, 6, 7, 8], "score": 0.25}]
    site = {"code": "1", "scheme": "SCT", "meaning": "Lung", "laterality": "left"}
    findings = [
        {"phrase": "mass", "boxes": boxes, "negated": False, "localized": True, "site": site},
        {"phrase": "nodule", "boxes": [], "negated": False, "localized": False, "site": None},
        {"phrase": "effusion", "boxes": [], "negated": True, "localized": False},
    ]
    assert finding_rows(findings) == [
        ["mass", "yes", "left", "1 3 3 4", "0.50"],
        ["mass", "yes", "left", "5 6 7 8", "0.25"],
        ["nodule", "not localised", None, None, None],
        ["effusion", "negated", None, None, None],
    ]


def run_python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python in `folder`, where the packages are found whether they are installed or not."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )


@pytest.mark.parametrize("arguments", ["--help", "config", "jobs list", "db upgrade", "jobs list --json"])
def test_short_commands_load_neither_torch_nor_the_queue(tmp_path: Path, arguments: str) -> None:
    program = (
        "import sys, json\n"
        "from dicom_node.cli import main\n"
        f"sys.argv = ['knowmvg', *{arguments.split()!r}]\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'celery', 'kombu', 'scipy', 'highdicom'} & set(sys.modules)\n"
        "print('\\n' + json.dumps(sorted(heavy)))\n"
    )
    done = run_python(tmp_path, "-c", program)
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_the_package_runs_as_a_module(tmp_path: Path) -> None:
    done = run_python(tmp_path, "-m", "dicom_node.cli", "config")
    assert yaml.safe_load(done.stdout)["receiver"]["ae_title"] == "KNOWMVG"


def test_the_receiver_loads_no_decoder() -> None:
    script = (
        "import sys\n"
        "from dicom_node.cli import node\n"
        "node.keep_decoders_out()\n"
        "import dicom_node.scp\n"
        "from dicom_node.decoders import DECODERS\n"
        "loaded = {name.split('.')[0] for name, one in sys.modules.items() if one is not None}\n"
        "sys.exit(f'{loaded & set(DECODERS)}' if loaded & set(DECODERS) or 'pydicom' not in loaded else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_processes_of_the_node_let_idle_threads_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    share_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    share_cores()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
