"""Signing in to the console: who is let in, for how long, and what a forged form gets."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from dicom_node.accounts import TRIES_OF_ADDRESS, TRIES_OF_NAME, digest
from dicom_node.console.visitors import csrf_of
from dicom_node.queries import (
    begin_try,
    change_disabled,
    change_password,
    change_role,
    remove_user,
    revoke_token,
)
from tests.console import HASH, HERE, PASSWORD, Console, csrf_in


@pytest.fixture
def console(tmp_path: Path) -> Iterator[Console]:
    console = Console(tmp_path)
    console.add_user("anna", "viewer")
    yield console
    console.close()


def is_in(browser: TestClient) -> bool:
    return browser.get("/api/v1/jobs").status_code == 200


def cookie_of(browser: TestClient) -> str:
    value = browser.cookies.get("knowmvg")
    assert value
    return value


def test_who_is_not_signed_in_is_asked_to(console: Console) -> None:
    browser = console.browser()
    answer = browser.get("/?state=FAILED")
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?next=%2F%3Fstate%3DFAILED")
    answer = browser.get("/api/v1/jobs")
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    page = browser.get("/sign-in?next=%2F%3Fstate%3DFAILED")
    assert 'value="/?state=FAILED"' in page.text
    assert "users add" not in page.text


def test_who_signs_in_is_let_in_and_audited(console: Console) -> None:
    browser = console.sign_in("anna")
    assert (browser.last.status_code, browser.last.headers["location"]) == (303, "/")
    assert is_in(browser)
    assert "anna (viewer)" in browser.get("/").text
    (entry,) = console.events("sign-in")
    assert (entry.event.success, entry.event.actor, entry.event.actor_address) == (True, "anna", "192.0.2.7")


def test_the_cookie_is_kept_from_scripts_and_other_sites(tmp_path: Path) -> None:
    for number, (section, name, secure) in enumerate(
        [({}, "knowmvg", False), ({"secure_cookies": True}, "__Host-knowmvg", True)]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        console = Console(folder, {"console": section})
        console.add_user("anna", "viewer")
        page = (browser := console.browser()).get("/sign-in")
        form = {"name": "anna", "password": PASSWORD, "csrf": csrf_in(page.text)}
        kept = page.headers["set-cookie"].partition(";")[0]
        cookies = browser.post("/sign-in", data=form, headers={"Cookie": kept}).headers.get_list("set-cookie")
        (cookie,) = [one for one in cookies if one.startswith(f"{name}=")]
        assert "HttpOnly" in cookie
        assert "SameSite=lax" in cookie
        assert ("Secure" in cookie) == secure
        assert "Max-Age" not in cookie
        console.close()


@pytest.mark.parametrize(
    ("name", "password", "actor", "why"),
    [
        ("anna", "not the password", "anna", "wrong password"),
        ("nobody", PASSWORD, "", "unknown name"),
        ("", "", "", "unknown name"),
        ("anna", PASSWORD * 100, "anna", "wrong password"),
        ("disabled", PASSWORD, "disabled", "disabled"),
    ],
)
def test_who_is_not_let_in_is_not_told_why_but_the_audit_trail_is(
    console: Console, name: str, password: str, actor: str, why: str
) -> None:
    console.add_user("disabled", "admin")
    with console.sessions.begin() as session:
        change_disabled(session, "disabled", console.clock(), disabled=True)
    browser = console.sign_in(name, password)
    assert browser.last.status_code == 401
    assert "The name or the password is wrong." in browser.last.text
    assert not is_in(browser)
    (entry,) = console.events("sign-in")
    assert (entry.event.success, entry.event.actor, entry.event.reason) == (False, actor, why)


def test_a_name_that_no_database_takes_is_refused(console: Console) -> None:
    """PostgreSQL takes no NUL; it is not to be told as a database that is away."""
    assert console.sign_in("an\0na").last.status_code == 400


def test_who_fails_often_waits_longer_each_time_and_others_do_not(console: Console) -> None:
    browser = console.browser()
    for _ in range(5):
        assert console.sign_in("anna", "wrong password", browser).last.status_code == 401
    assert console.sign_in("anna", PASSWORD, browser).last.status_code == 429
    assert "wait 2 s" in browser.last.text
    assert console.sign_in("anna", browser=console.browser("192.0.2.8")).last.status_code == 303
    console.clock.move(seconds=2)
    assert console.sign_in("anna", "wrong password", browser).last.status_code == 401
    console.clock.move(seconds=3)
    assert console.sign_in("anna", PASSWORD, browser).last.status_code == 429
    console.clock.move(seconds=1)
    assert console.sign_in("anna", PASSWORD, browser).last.status_code == 303
    assert console.sign_in("anna", "wrong password").last.status_code == 401


def test_another_console_knows_of_failures(console: Console) -> None:
    for _ in range(5):
        console.sign_in("anna", "wrong password")
    other = Console(console.folder, clock=console.clock)
    assert other.sign_in("anna").last.status_code == 429
    other.close()


def test_an_address_that_tries_many_names_waits(console: Console) -> None:
    with console.sessions.begin() as session:
        for number in range(TRIES_OF_ADDRESS):
            subjects = {digest(f"name{number}\n192.0.2.7"): TRIES_OF_NAME, digest("\n192.0.2.7"): TRIES_OF_ADDRESS}
            assert not begin_try(session, subjects, console.clock())
    assert console.sign_in("anna").last.status_code == 429
    assert console.sign_in("anna", browser=console.browser("192.0.2.8")).last.status_code == 303


def test_a_sign_in_ends_when_nobody_is_seen_and_in_any_case(console: Console) -> None:
    browser = console.sign_in("anna")
    console.clock.move(minutes=29)
    assert is_in(browser)
    console.clock.move(minutes=29)
    assert is_in(browser)
    console.clock.move(minutes=30)
    assert not is_in(browser)
    browser = console.sign_in("anna")
    for _ in range(12 * 3 - 1):
        console.clock.move(minutes=20)
        assert is_in(browser)
    console.clock.move(minutes=20)
    assert not is_in(browser)


def test_a_page_that_keeps_itself_up_to_date_keeps_nobody_signed_in(console: Console) -> None:
    browser = console.sign_in("anna")
    for _ in range(29):
        console.clock.move(minutes=1)
        assert browser.get("/jobs", headers={"X-Refresh": "1"}).status_code == 200
    console.clock.move(minutes=1)
    assert browser.get("/jobs", headers={"X-Refresh": "1"}).status_code == 303
    assert not is_in(browser)


def test_a_sign_in_has_a_token_of_its_own_whatever_cookie_was_there(console: Console) -> None:
    browser = console.browser()
    browser.cookies.set("knowmvg", "chosen by somebody else", domain="127.0.0.1")
    console.sign_in("anna", browser=browser)
    first = cookie_of(browser)
    assert first != "chosen by somebody else"
    page = console.browser()
    page.cookies.set("knowmvg", first, domain="127.0.0.1")
    assert is_in(page)


def test_signing_in_again_ends_what_was_signed_in(console: Console) -> None:
    browser = console.sign_in("anna")
    first = cookie_of(browser)
    secret = browser.cookies.get("knowmvg-form") or "f" * 20
    browser.cookies.set("knowmvg-form", secret, domain="127.0.0.1")
    form = {"name": "anna", "password": PASSWORD, "csrf": csrf_of(secret)}
    assert browser.post("/sign-in", data=form).status_code == 303
    thief = console.browser()
    thief.cookies.set("knowmvg", first, domain="127.0.0.1")
    assert not is_in(thief)
    assert is_in(browser)


def test_who_signs_out_is_out_wherever_the_cookie_went(console: Console) -> None:
    browser = console.sign_in("anna")
    kept, csrf = cookie_of(browser), csrf_in(browser.get("/").text)
    assert browser.post("/sign-out", data={"csrf": csrf}).headers["location"] == "/sign-in"
    assert not is_in(browser)
    thief = console.browser()
    thief.cookies.set("knowmvg", kept, domain="127.0.0.1")
    assert not is_in(thief)
    assert [entry.event.actor for entry in console.events("sign-out")] == ["anna"]


@pytest.mark.parametrize("what", ["disabled", "removed", "password"])
def test_a_sign_in_ends_at_once_when_its_account_does(console: Console, what: str) -> None:
    browser = console.sign_in("anna")
    assert is_in(browser)
    with console.sessions.begin() as session:
        if what == "disabled":
            change_disabled(session, "anna", console.clock(), disabled=True)
        elif what == "removed":
            remove_user(session, "anna")
        else:
            change_password(session, "anna", HASH, console.clock())
    assert not is_in(browser)


def test_a_role_counts_from_the_next_request_on(console: Console) -> None:
    browser = console.sign_in("anna")
    assert "anna (viewer)" in browser.get("/").text
    with console.sessions.begin() as session:
        change_role(session, "anna", "admin", console.clock())
    assert "anna (admin)" in browser.get("/").text


def test_users_of_the_configuration_sign_in_and_are_gone_with_it(tmp_path: Path) -> None:
    users = {"carl": {"role": "operator", "password_hash": HASH}}
    console = Console(tmp_path, {"console": {"users": users}})
    browser = console.sign_in("carl")
    assert "carl (operator)" in browser.get("/").text
    console.add_user("carl", "admin")
    assert "carl (operator)" in browser.get("/").text
    later = Console(tmp_path)
    later.app.state.site = console.app.state.site.__class__(
        later.settings, console.sessions, console.clock, console.app.state.site.storage
    )
    thief = later.browser()
    thief.cookies.set("knowmvg", cookie_of(browser), domain="127.0.0.1")
    assert not is_in(thief)
    console.close()
    later.close()


def test_before_there_is_a_user_the_page_says_which_command_makes_one(tmp_path: Path) -> None:
    console = Console(tmp_path)
    assert "knowmvg users add NAME --role admin" in console.browser().get("/sign-in").text
    console.close()


@pytest.mark.parametrize(
    "next", ["//evil.example", "https://evil.example/", "/\\evil.example", "javascript:alert(1)", ""]
)
def test_nobody_is_sent_to_another_site(console: Console, next: str) -> None:
    browser = console.browser()
    page = browser.get("/sign-in", params={"next": next})
    form = {"name": "anna", "password": PASSWORD, "csrf": csrf_in(page.text), "next": next}
    assert browser.post("/sign-in", data=form).headers["location"] == "/"


@pytest.mark.parametrize(
    ("token", "headers", "status"),
    [
        ("right", {"Origin": HERE}, 303),
        ("right", {}, 303),
        ("right", {"Sec-Fetch-Site": "same-origin"}, 303),
        ("", {"Origin": HERE}, 403),
        ("0" * 64, {"Origin": HERE}, 403),
        ("another's", {"Origin": HERE}, 403),
        ("right", {"Origin": "https://evil.example"}, 403),
        ("right", {"Origin": "null"}, 403),
        ("right", {"Origin": "http://127.0.0.1:9999"}, 403),
        ("right", {"Sec-Fetch-Site": "cross-site"}, 403),
        ("right", {"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
@pytest.mark.parametrize("path", ["/sign-out", "/sign-in"])
def test_a_form_that_is_forged_changes_nothing(
    console: Console, path: str, token: str, headers: dict[str, str], status: int
) -> None:
    other = csrf_in(console.sign_in("anna").get("/").text)
    browser = console.browser() if path == "/sign-in" else console.sign_in("anna")
    own = csrf_in(browser.get("/sign-in" if path == "/sign-in" else "/").text)
    form = {"name": "anna", "password": PASSWORD, "csrf": {"right": own, "another's": other}.get(token, token)}
    answer = browser.post(path, data=form, headers=headers)
    assert answer.status_code == status
    if path == "/sign-out":
        assert is_in(browser) == (status == 403)
    else:
        assert is_in(browser) == (status == 303)


def test_this_host_may_be_let_in_without_signing_in(tmp_path: Path) -> None:
    console = Console(tmp_path, {"console": {"local_role": "viewer", "allowed_hosts": ["console.example"]}})
    assert is_in(console.browser("127.0.0.1"))
    assert is_in(console.browser("::1"))
    assert not is_in(console.browser("192.0.2.7"))
    browser = console.browser("127.0.0.1")
    assert browser.get("/api/v1/jobs", headers={"Host": "console.example"}).status_code == 401
    console.close()


def test_only_the_names_that_are_allowed_are_answered(tmp_path: Path) -> None:
    console = Console(tmp_path, {"console": {"allowed_hosts": ["console.example"]}})
    browser = console.browser()
    for host, status in (("console.example", 200), ("CONSOLE.example:443", 200), ("evil.example", 421), ("", 421)):
        assert browser.get("/healthz", headers={"Host": host}).status_code == status
    console.close()


def test_a_database_that_takes_no_writes_keeps_nobody_out_who_is_in(console: Console) -> None:
    browser = console.sign_in("anna")
    console.clock.move(minutes=2)
    full = "CREATE TRIGGER full BEFORE UPDATE ON sign_ins BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
    with console.engine.begin() as connection:
        connection.exec_driver_sql(full)
    assert is_in(browser)


def test_a_sign_in_that_cannot_be_audited_is_none(console: Console) -> None:
    with console.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER full BEFORE INSERT ON audit BEGIN SELECT RAISE(ABORT, 'disk is full'); END"
        )
    browser = console.sign_in("anna")
    assert browser.last.status_code == 503
    assert not is_in(browser)


def test_a_token_is_let_in_until_it_expires_or_is_revoked(console: Console) -> None:
    browser = console.browser()
    lasting, passing = console.add_token("lasting", "viewer"), console.add_token("passing", "viewer", timedelta(days=1))

    def status(token: str) -> int:
        return browser.get("/api/v1/jobs", headers={"Authorization": f"Bearer {token}"}).status_code

    assert [status(lasting), status(passing), status(lasting[:-1]), status("")] == [200, 200, 401, 401]
    console.clock.move(days=1)
    assert [status(lasting), status(passing)] == [200, 401]
    with console.sessions.begin() as session:
        revoke_token(session, "lasting")
    assert status(lasting) == 401


def test_a_wrong_token_is_not_made_good_by_a_cookie(console: Console) -> None:
    browser = console.sign_in("anna")
    assert browser.get("/api/v1/jobs", headers={"Authorization": "Bearer wrong"}).status_code == 401
