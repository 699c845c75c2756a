"""`knowmvg check`: one line for each part, and exit status 1 if any of them cannot work."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dicom_node.cli import main
from dicom_node.cli.checks import check_configuration, check_destination, check_rows, run_checks
from dicom_node.cli.demo import free_ports
from dicom_node.config import DestinationSettings, load_settings
from dicom_node.console.health import Check, check_storage
from dicom_node.queries import SCHEMA_REVISION, upgrade_schema
from tests.fakes import FakePacs

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a configuration with the sections given."""

    def _write(**sections: Any) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({"receiver": {"min_free_bytes": 1}} | sections))
        return path

    return _write


def by_name(checks: list[Check]) -> dict[str, Check]:
    """Return the checks by their names."""
    return {check.name: check for check in checks}


def test_every_part_is_tried_and_what_fails_says_what_to_do(write: Write, tmp_path: Path) -> None:
    with FakePacs() as pacs:
        destination = {"name": "pacs", "ae_title": "ARCHIVE", "host": "127.0.0.1", "port": pacs.port}
        config = write(destinations=[destination], model={"path": "no-model"})
        checks = by_name(list(run_checks(config)))
    assert list(checks) == ["configuration", "database", "broker", "storage", "destination pacs", "model"]
    assert {name for name, check in checks.items() if not check.ok} == {"database", "model"}
    assert "`knowmvg db upgrade`" in checks["database"].detail
    assert str(tmp_path / "no-model") in checks["model"].detail
    assert "ARCHIVE at 127.0.0.1" in checks["destination pacs"].detail
    assert "receiver.peers is empty" in checks["configuration"].detail


def test_a_database_with_the_schema_is_fine(write: Write) -> None:
    settings = load_settings(write(), {})
    upgrade_schema(settings.database.url)
    check = check_rows(settings)
    assert check.ok
    assert f"schema {SCHEMA_REVISION}" in check.detail


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # pynetdicom leaves the socket open
def test_an_archive_that_is_away_is_named(write: Write) -> None:
    (port,) = free_ports(1)
    destination = DestinationSettings(name="pacs", ae_title="ARCHIVE", host="127.0.0.1", port=port)
    check = check_destination(load_settings(write(), {}), destination)
    assert (check.name, check.ok) == ("destination pacs", False)
    assert f"127.0.0.1:{port}" in check.detail


def test_a_storage_without_room_or_right_to_write_is_named(write: Write, tmp_path: Path) -> None:
    full = check_storage(load_settings(write(receiver={"min_free_bytes": "1000TiB"}), {}))
    assert not full.ok
    assert "receiver.min_free_bytes" in full.detail
    room = check_storage(load_settings(write(), {}))
    assert room.ok
    assert not (tmp_path / "var").exists()
    in_file = tmp_path / "file"
    in_file.write_text("")
    nowhere = check_storage(load_settings(write(storage={"url": f"file://{in_file}/dicom"}), {}))
    assert not nowhere.ok
    assert f"{in_file} is no folder" in nowhere.detail


def run_main(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command line and return its exit status."""
    monkeypatch.setattr(sys, "argv", ["knowmvg", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


def test_a_wrong_configuration_is_the_only_check(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "wrong.yaml").write_text("receiver: {port: 0}")
    assert run_main(monkeypatch, "check", "--json", "--config", str(tmp_path / "wrong.yaml")) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["ok"] is False
    (check,) = document["checks"]
    assert (check["name"], check["ok"]) == ("configuration", False)
    assert "receiver.port" in check["detail"]
    assert run_main(monkeypatch, "check", "--config", str(tmp_path / "wrong.yaml")) == 1
    assert capsys.readouterr().out.startswith("FAIL  configuration")


def test_a_database_that_does_not_answer_is_told_on_one_line(write: Write) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))  # bound, not listening: refused
        port = unheard.getsockname()[1]
        check = check_rows(
            load_settings(write(database={"url": f"postgresql+psycopg://node@127.0.0.1:{port}/node"}), {})
        )
    assert not check.ok
    assert "does not answer" in check.detail
    assert "\n" not in check.line


def test_the_file_that_was_read_is_named_and_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert next(run_checks(None)).detail.startswith("built-in defaults: ")
    path = tmp_path / "config.yaml"
    path.write_text("broker: {url: 'redis://:secret@queue'}\n")
    path.chmod(0o644)
    found = next(run_checks(None)).detail
    assert found.startswith("config.yaml: ")
    assert "secrets in config.yaml" in found


def test_secrets_that_others_can_read_are_named(tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("secret")
    password.chmod(0o644)
    path = tmp_path / "config.yaml"
    path.write_text(f"broker: {{url: 'redis://queue', password_file: {password}}}\n")
    found = check_configuration(load_settings(path, {}), path)
    assert f"other users can read the secrets in {password}: chmod 600" in found.detail
    tls = f"{{certificate: {tmp_path}/console.pem, key: {password}}}"
    path.write_text(f"console: {{tls: {tls}}}\n")
    assert str(password) in check_configuration(load_settings(path, {}), path).detail
    password.chmod(0o600)
    assert "chmod" not in check_configuration(load_settings(path, {}), path).detail
    password.chmod(0o640)  # as containers are given it, where it is root's
    by_group = check_configuration(load_settings(path, {}), path).detail
    assert ("chmod" in by_group) == (password.stat().st_uid != 0)
    password.chmod(0o600)
    path.write_text("broker: {url: 'redis://:secret@queue'}\n")
    path.chmod(0o644)
    assert str(path) in check_configuration(load_settings(path, {}), path).detail.partition("secrets in")[2]
