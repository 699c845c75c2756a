"""Signing in by an OpenID provider on a loopback port: who is let in as what, and what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from fastapi.testclient import TestClient

from dicom_node.accounts import TRIES_OF_ADDRESS
from dicom_node.clock import utc_now
from dicom_node.config import load_settings
from dicom_node.errors import SettingsError
from tests.console import HERE, Browser, Console
from tests.fakes import FrozenClock

CALLBACK = f"{HERE}/sign-in/oidc/callback"


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it uses what authlib calls deprecated
        from oidc_provider_mock import User, run_server_in_thread

        users = [
            User(sub="anna", claims={"preferred_username": "anna.a", "groups": ["radiology-it", "staff"]}),
            User(sub="carl", claims={"preferred_username": "carl.c", "groups": "staff"}),
            User(sub="eve", claims={"preferred_username": "eve.e", "groups": ["kitchen"]}),
        ]
        with run_server_in_thread(user_claims=users, require_nonce=True) as server:
            yield f"http://localhost:{server.server_port}"


@pytest.fixture
def console(tmp_path: Path, issuer: str) -> Iterator[Console]:
    (tmp_path / "secret").write_text("a client's secret\n")
    oidc = {
        "issuer": issuer, "client_id": "knowmvg", "client_secret_file": str(tmp_path / "secret"),
        "roles": {"radiology-it": "admin", "staff": "viewer"}, "label": "Sign in with the clinic's account",
    }  # fmt: skip
    console = Console(tmp_path, {"console": {"oidc": oidc}}, FrozenClock(utc_now()))
    yield console
    console.close()


pytestmark = pytest.mark.filterwarnings("ignore:.*deprecated.*")


def go(browser: TestClient, next: str = "/") -> str:
    """Begin at the console; return where the browser is sent."""
    answer = browser.get("/sign-in/oidc", params={"next": next})
    assert answer.status_code == 303, answer.text
    return answer.headers["location"]


def approve(url: str, sub: str) -> str:
    """Sign in at the provider; return where it sends the browser back to."""
    answer = httpx.post(url, data={"sub": sub})
    assert answer.status_code == 302, answer.text
    return answer.headers["location"]


def sign_in(console: Console, sub: str, next: str = "/") -> Browser:
    browser = console.browser()
    browser.last = browser.get(approve(go(browser, next), sub))
    return browser


@pytest.mark.parametrize(("sub", "name", "role"), [("anna", "anna.a", "admin"), ("carl", "carl.c", "viewer")])
def test_who_has_a_role_at_the_provider_is_let_in(console: Console, sub: str, name: str, role: str) -> None:
    browser = sign_in(console, sub, "/?state=FAILED")
    assert (browser.last.status_code, browser.last.headers["location"]) == (303, "/?state=FAILED")
    assert f"{name} ({role})" in browser.get("/").text
    (entry,) = console.events("sign-in")
    assert (entry.event.success, entry.event.actor, entry.event.reason) == (True, name, f"{role}, oidc")


def test_who_has_none_is_refused(console: Console) -> None:
    browser = sign_in(console, "eve")
    assert (browser.last.status_code, "stands for a role" in browser.last.text) == (403, True)
    assert browser.get("/api/v1/jobs").status_code == 401
    (entry,) = console.events("sign-in")
    assert (entry.event.success, entry.event.actor) == (False, "eve.e")


def test_the_browser_is_sent_with_state_nonce_and_a_challenge(console: Console, issuer: str) -> None:
    urls = [urlsplit(go(console.browser())) for _ in range(2)]
    first, second = (parse_qs(url.query) for url in urls)
    assert urls[0]._replace(query="").geturl() == f"{issuer}/oauth2/authorize"
    assert (first["redirect_uri"], first["code_challenge_method"]) == ([CALLBACK], ["S256"])
    for name in ("state", "nonce", "code_challenge"):
        assert len(first[name][0]) == 43
        assert first[name] != second[name]


def test_a_sign_in_that_another_browser_began_is_refused(console: Console) -> None:
    back = approve(go(console.browser()), "anna")
    for browser in (console.browser(), victim := console.browser()):
        if browser is victim:
            go(victim)
        answer = browser.get(back)
        assert (answer.status_code, browser.get("/api/v1/jobs").status_code) == (400, 401)


def test_a_code_counts_once(console: Console) -> None:
    browser = console.browser()
    url = go(browser)
    back, kept = approve(url, "anna"), dict(browser.cookies)
    assert browser.get(back).status_code == 303
    again = console.browser()
    for name, value in kept.items():
        again.cookies.set(name, value, domain="127.0.0.1")
    assert again.get(back).status_code == 403


def test_a_token_for_another_sign_in_is_refused(console: Console) -> None:
    """Its nonce is another one: the browser's cookie is of another sign-in than the code."""
    browser = console.browser()
    back = approve(go(browser), "anna")
    state, _, rest = browser.cookies["knowmvg-oidc"].strip('"').partition(".")
    browser.cookies.clear()
    browser.cookies.set("knowmvg-oidc", f"{state}.{'n' * 43}.{rest.partition('.')[2]}", domain="127.0.0.1")
    answer = browser.get(back)
    assert (answer.status_code, "ID token is refused" in answer.text) == (403, True)


@pytest.mark.parametrize("change", [{"client_id": "another"}, {"issuer": "http://localhost:1"}])
def test_a_provider_that_is_another_or_away_is_told(console: Console, change: dict[str, Any]) -> None:
    oidc = console.settings.console.oidc
    assert oidc is not None
    other = console.settings.console.model_copy(update={"oidc": oidc.model_copy(update=change)})
    site = console.app.state.site
    url = go(browser := console.browser()) if "client_id" in change else ""
    object.__setattr__(site, "settings", console.settings.model_copy(update={"console": other}))
    console.app.state.provider = None
    answer = browser.get(approve(url, "anna")) if url else console.browser().get("/sign-in/oidc")
    assert answer.status_code == (403 if url else 503)


def test_a_provider_that_refuses_is_told(console: Console) -> None:
    browser = console.browser()
    state = parse_qs(urlsplit(go(browser)).query)["state"][0]
    answer = browser.get("/sign-in/oidc/callback", params={"state": state, "error": "<script>access_denied"})
    assert answer.status_code == 403
    assert "&lt;script&gt;access_denied" in answer.text


def test_who_makes_up_refusals_of_the_provider_has_to_wait(console: Console) -> None:
    """Each is noted in the audit trail, and anybody may begin a sign-in."""
    browser = console.browser()
    state = parse_qs(urlsplit(go(browser)).query)["state"][0]
    answers = [
        browser.get("/sign-in/oidc/callback", params={"state": state, "error": "a\0\x1b[2Jb"}).status_code
        for _ in range(TRIES_OF_ADDRESS + 2)
    ]
    assert answers == [403] * TRIES_OF_ADDRESS + [429] * 2
    reasons = {entry.event.reason for entry in console.events("sign-in")}
    assert reasons == {"OpenID provider: the provider says a[2Jb"}


def test_the_page_offers_it_and_only_where_it_is_configured(console: Console, tmp_path: Path) -> None:
    assert "Sign in with the clinic" in console.browser().get("/sign-in").text
    (tmp_path / "plain").mkdir()
    plain = Console(tmp_path / "plain")
    assert "/sign-in/oidc" not in plain.browser().get("/sign-in").text
    assert plain.browser().get("/sign-in/oidc").status_code == 404
    plain.close()


def test_a_provider_in_clear_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    oidc = "{issuer: 'http://id.example', client_id: a, roles: {staff: viewer}}"
    file.write_text(f"console: {{oidc: {oidc}}}\n")
    with pytest.raises(SettingsError, match="write https"):
        load_settings(file, {})
