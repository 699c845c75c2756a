"""`knowmvg users` and `knowmvg tokens`: what they make is let in, what they end is not, and all of it is audited."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from dicom_node.accounts import verify_password
from dicom_node.cli import app
from dicom_node.config import load_settings, masked
from dicom_node.errors import NodeError, SettingsError
from tests.console import HASH, PASSWORD, Console

SECRET = "correct horse battery"


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    console = Console(tmp_path)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"database": {"url": f"sqlite:///{tmp_path}/knowmvg.db"}}))
    (tmp_path / "secret").write_text(f"{SECRET}\nsecond line\n")
    yield console
    console.close()


def run(console: Console, *arguments: str, stdin: str | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [*arguments, "--config", str(console.folder / "config.yaml")], input=stdin)
    if isinstance(result.exception, NodeError):
        return 1, result.stdout, str(result.exception)
    return result.exit_code, result.stdout, result.stderr


def test_the_life_of_a_user(console: Console) -> None:
    file = ("--password-file", str(console.folder / "secret"))
    assert run(console, "users", "add", "anna", "--role", "operator", *file)[0] == 0
    assert "anna (operator)" in console.sign_in("anna", SECRET).get("/").text
    assert run(console, "users", "add", "anna", "--role", "viewer", *file)[0] == 1
    assert run(console, "users", "role", "anna", "admin")[0] == 0
    assert "anna (admin)" in console.sign_in("anna", SECRET).get("/").text
    assert run(console, "users", "password", "anna", "--password-file", "-", stdin="another long password\n")[0] == 0
    assert console.sign_in("anna", SECRET).last.status_code == 401
    assert run(console, "users", "disable", "anna")[0] == 0
    assert console.sign_in("anna", "another long password").last.status_code == 401
    (listed,) = json.loads(run(console, "users", "list", "--json")[1])
    assert (listed["name"], listed["role"], listed["disabled_at"] is None) == ("anna", "admin", False)
    assert "anna" in run(console, "users")[1]
    assert run(console, "users", "enable", "anna")[0] == 0
    assert console.sign_in("anna", "another long password").last.status_code == 303
    assert run(console, "users", "remove", "anna")[0] == 0
    assert json.loads(run(console, "users", "list", "--json")[1]) == []
    reasons = [entry.event.reason for entry in reversed(console.events("account changed"))]
    assert reasons == [
        "added anna as operator", "made anna admin", "new password of anna", "disabled anna", "enabled anna",
        "removed anna",
    ]  # fmt: skip


@pytest.mark.parametrize("command", ["role NAME admin", "disable NAME", "enable NAME", "remove NAME"])
def test_a_user_that_is_none_is_told(console: Console, command: str) -> None:
    status, _, said = run(console, "users", *command.replace("NAME", "nobody").split())
    assert (status, "there is no user nobody" in said) == (1, True)
    assert console.events("account changed") == []


@pytest.mark.parametrize(
    ("password", "why"),
    [("short", "at least 12"), ("x" * 1025, "at most 1024"), ("", "at least 12")],
)
def test_a_password_that_is_too_short_is_refused(console: Console, password: str, why: str) -> None:
    (console.folder / "secret").write_text(password)
    arguments = ("--role", "admin", "--password-file", str(console.folder / "secret"))
    status, _, said = run(console, "users", "add", "anna", *arguments)
    assert (status, why in said, password in said and len(password) > 0) == (1, True, False)


def test_without_a_terminal_a_file_is_asked_for(console: Console) -> None:
    status, _, said = run(console, "users", "add", "anna", "--role", "admin", stdin="x\n")
    assert (status, "--password-file" in said) == (1, True)


@pytest.mark.parametrize("arguments", ["add anna --role boss", "add an/na --role admin", "role anna boss"])
def test_what_is_no_name_and_no_role_is_refused(console: Console, arguments: str) -> None:
    assert run(console, "users", *arguments.split())[0] == 2


def test_what_is_signed_in_ends_when_an_administrator_says_so(tmp_path: Path) -> None:
    console = Console(tmp_path, {"console": {"users": {"carl": {"role": "viewer", "password_hash": HASH}}}})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"database": {"url": f"sqlite:///{tmp_path}/knowmvg.db"}}))
    browser = console.sign_in("carl")
    assert browser.get("/api/v1/jobs").status_code == 200
    assert run(console, "users", "sign-out", "carl")[:2] == (0, "1 sign-ins of carl ended.\n")
    assert browser.get("/api/v1/jobs").status_code == 401
    assert console.events("account changed")[0].event.reason == "signed carl out"
    console.close()


def test_the_life_of_a_token(console: Console) -> None:
    status, token, _ = run(console, "tokens", "add", "reporting", "--role", "viewer", "--days", "90")
    assert (status, token.startswith("knowmvg_")) == (0, True)
    head = {"Authorization": f"Bearer {token.strip()}"}
    assert console.browser().get("/api/v1/jobs", headers=head).status_code == 200
    (listed,) = json.loads(run(console, "tokens", "list", "--json")[1])
    assert (listed["name"], listed["role"]) == ("reporting", "viewer")
    assert token.strip() not in json.dumps(listed)
    assert run(console, "tokens", "add", "reporting", "--role", "viewer")[0] == 1
    assert run(console, "tokens", "revoke", "reporting")[0] == 0
    assert console.browser().get("/api/v1/jobs", headers=head).status_code == 401
    assert run(console, "tokens", "revoke", "reporting")[0] == 1
    reasons = [entry.event.reason for entry in console.events("account changed")]
    assert reasons == ["revoked token reporting", "added token reporting as viewer"]


def test_nothing_that_lets_in_is_in_the_database(console: Console) -> None:
    token = run(console, "tokens", "add", "reporting", "--role", "viewer")[1].strip()
    run(console, "users", "add", "anna", "--role", "viewer", "--password-file", str(console.folder / "secret"))
    browser = console.sign_in("anna", SECRET)
    console.close()
    held = b"".join(path.read_bytes() for path in console.folder.glob("knowmvg.db*"))
    for secret in (token, SECRET, browser.cookies["knowmvg"]):
        assert secret.encode() not in held


def test_a_hash_for_the_configuration(console: Console) -> None:
    result = CliRunner().invoke(app, ["users", "hash", "--password-file", str(console.folder / "secret")])
    assert verify_password(SECRET, result.stdout.strip())
    users = {"carl": {"role": "viewer", "password_hash": result.stdout.strip()}}
    file = console.folder / "config.yaml"
    file.write_text(yaml.safe_dump({"console": {"users": users}}))
    shown = masked(load_settings(file, {}))
    assert shown["console"]["users"] == {"carl": {"role": "viewer", "password_hash": "********"}}


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ({"users": {"carl": {"role": "boss", "password_hash": HASH}}}, "console.users.carl.role"),
        ({"users": {"carl": {"role": "viewer", "password_hash": PASSWORD}}}, "knowmvg users hash"),
        ({"users": {"carl": {"rolle": "viewer", "password_hash": HASH}}}, "unknown key; allowed here: role"),
        ({"host": "0.0.0.0"}, "behind_proxy"),
        ({"host": "::"}, "behind_proxy"),
        ({"host": "node.example"}, "behind_proxy"),
        ({"behind_proxy": True, "local_role": "viewer"}, "local_role"),
        ({"allowed_hosts": ["https://node.example"]}, "without port"),
        ({"oidc": {"issuer": "https://id.example", "client_id": "a", "roles": {}}}, "console.oidc.roles"),
    ],
)
def test_what_would_let_anybody_in_is_refused(console: Console, section: dict[str, object], why: str) -> None:
    file = console.folder / "config.yaml"
    file.write_text(yaml.safe_dump({"console": section}))
    with pytest.raises(SettingsError, match=why.replace(".", r"\.")) as refused:
        load_settings(file, {})
    assert PASSWORD not in str(refused.value)


def test_a_file_that_was_written_before_there_was_a_sign_in_is_read(console: Console) -> None:
    file = console.folder / "config.yaml"
    file.write_text("console: {users: []}\n")
    assert load_settings(file, {}).console.users == {}
