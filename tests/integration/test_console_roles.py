"""Who may what: every route of the console, for each role and for who is not signed in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fastapi.routing import iter_route_contexts

from tests.console import Browser, Console


@dataclass(frozen=True)
class Rule:
    """Which role a route asks for (None: nobody is asked), and what it is called with."""

    role: str | None
    url: str = ""
    body: Any = None


EVERYBODY, VIEWER, OPERATOR, ADMIN = (Rule(role) for role in (None, "viewer", "operator", "admin"))
MANY = {"ids": [99]}

RULES: dict[tuple[str, str], Rule] = {
    ("GET", "/healthz"): EVERYBODY,
    ("GET", "/readyz"): EVERYBODY,
    ("GET", "/metrics"): EVERYBODY,
    ("GET", "/static"): Rule(None, "/static/console.css"),
    ("GET", "/sign-in"): EVERYBODY,
    ("POST", "/sign-in"): EVERYBODY,
    ("POST", "/sign-out"): VIEWER,
    ("GET", "/sign-in/oidc"): EVERYBODY,
    ("GET", "/sign-in/oidc/callback"): EVERYBODY,
    ("GET", "/"): VIEWER,
    ("GET", "/jobs"): VIEWER,
    ("GET", "/jobs/{job_id}"): Rule("viewer", "/jobs/1"),
    ("GET", "/jobs/{job_id}/films/{uid}"): Rule("viewer", "/jobs/1/films/1.2.3"),
    ("GET", "/jobs/{job_id}/results/{uid}.png"): Rule("viewer", "/jobs/1/results/1.2.3.png"),
    ("GET", "/jobs/{job_id}/results/{uid}.dcm"): Rule("viewer", "/jobs/1/results/1.2.3.dcm"),
    ("GET", "/destinations"): VIEWER,
    ("GET", "/audit"): ADMIN,
    ("GET", "/configuration"): ADMIN,
    ("POST", "/jobs/retry"): OPERATOR,
    ("POST", "/jobs/cancel"): OPERATOR,
    ("POST", "/jobs/{job_id}/{what}"): Rule("operator", "/jobs/1/resend"),
    ("POST", "/deliveries/{delivery_id}/replay"): Rule("operator", "/deliveries/1/replay"),
    ("POST", "/destinations/{name}/echo"): Rule("operator", "/destinations/nowhere/echo"),
    ("POST", "/peers/{ae_title}/echo"): Rule("operator", "/peers/NOBODY/echo"),
    ("GET", "/api/v1/jobs"): VIEWER,
    ("GET", "/api/v1/jobs/{job_id}"): Rule("viewer", "/api/v1/jobs/1"),
    ("POST", "/api/v1/jobs/retry"): Rule("operator", body=MANY),
    ("POST", "/api/v1/jobs/cancel"): Rule("operator", body=MANY),
    ("POST", "/api/v1/jobs/{job_id}/retry"): Rule("operator", "/api/v1/jobs/1/retry"),
    ("POST", "/api/v1/jobs/{job_id}/cancel"): Rule("operator", "/api/v1/jobs/1/cancel"),
    ("POST", "/api/v1/jobs/{job_id}/resend"): Rule("operator", "/api/v1/jobs/1/resend"),
    ("POST", "/api/v1/jobs/{job_id}/reground"): Rule("operator", "/api/v1/jobs/1/reground"),
    ("GET", "/api/v1/deliveries"): VIEWER,
    ("POST", "/api/v1/deliveries/replay"): Rule("operator", body=MANY),
    ("POST", "/api/v1/deliveries/{delivery_id}/replay"): Rule("operator", "/api/v1/deliveries/1/replay"),
    ("GET", "/api/v1/destinations"): VIEWER,
    ("POST", "/api/v1/destinations/{name}/echo"): Rule("operator", "/api/v1/destinations/nowhere/echo"),
    ("GET", "/api/v1/peers"): VIEWER,
    ("POST", "/api/v1/peers/{ae_title}/echo"): Rule("operator", "/api/v1/peers/NOBODY/echo"),
    ("GET", "/api/v1/audit"): ADMIN,
    ("GET", "/api/v1/configuration"): ADMIN,
    ("GET", "/api/v1/me"): VIEWER,
    ("GET", "/api/v1/openapi.json"): EVERYBODY,
}

ROLES = ("viewer", "operator", "admin")
VISITORS = ("nobody", *ROLES)


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    console = Console(tmp_path_factory.mktemp("console"))
    console.file_studies()
    for role in ROLES:
        console.add_user(role, role)
    yield console
    console.close()


@pytest.fixture(scope="module")
def browsers(console: Console) -> dict[str, tuple[Browser, str]]:
    """A browser of each role, and what its forms send; and of nobody."""
    found = {"nobody": (console.browser(), "")}
    for role in ROLES:
        browser = console.sign_in(role)
        found[role] = browser, browser.get("/api/v1/me").json()["csrf"]
    return found


def routes_of(console: Console) -> set[tuple[str, str]]:
    """Return (method, path) of every route of the application."""
    found = iter_route_contexts(console.app.routes)
    return {(method, str(one.path)) for one in found for method in one.methods or {"GET"}}


def test_every_route_has_a_rule(console: Console) -> None:
    assert routes_of(console) == set(RULES)


@pytest.mark.parametrize("visitor", VISITORS)
@pytest.mark.parametrize(("method", "path"), RULES, ids=lambda value: value)
def test_a_route_is_open_to_its_role_and_those_above(
    console: Console, browsers: dict[str, tuple[Browser, str]], method: str, path: str, visitor: str
) -> None:
    rule, (browser, csrf) = RULES[method, path], browsers[visitor]
    if path == "/sign-out" and visitor != "nobody":
        browser = console.sign_in(visitor)
        csrf = browser.get("/api/v1/me").json()["csrf"]
    url = rule.url or path
    answer = browser.request(method, url, json=rule.body, headers={"X-CSRF-Token": csrf} if csrf else {})
    assert answer.status_code < 500 or path == "/readyz"
    is_open = rule.role is None or VISITORS.index(visitor) >= VISITORS.index(rule.role)
    if visitor == "nobody" and rule.role is not None:
        expected = 401 if path.startswith("/api/") else 303
        assert answer.status_code == expected
        assert "PID" not in answer.text
    elif not is_open:
        assert answer.status_code == 403
        assert f"asks for the role {rule.role}" in answer.text
    elif rule.role is not None:
        assert answer.status_code not in (401, 403)


@pytest.mark.parametrize("role", ROLES)
def test_a_token_may_what_its_role_may(console: Console, role: str) -> None:
    head = {"Authorization": f"Bearer {console.add_token(f'of-{role}', role)}"}
    for (method, path), rule in RULES.items():
        if rule.role is None or path == "/sign-out":
            continue
        answer = console.browser().request(method, rule.url or path, json=rule.body, headers=head)
        assert (answer.status_code == 403) == (ROLES.index(role) < ROLES.index(rule.role)), path
        assert answer.status_code != 401


@pytest.mark.parametrize("visitor", VISITORS)
@pytest.mark.parametrize(
    "path", ["/", "/sign-in", "/nothing", "/api/v1/jobs", "/api/v1/nothing", "/static/console.css"]
)
def test_every_answer_says_what_browsers_must_not_do(
    browsers: dict[str, tuple[Browser, str]], path: str, visitor: str
) -> None:
    headers = browsers[visitor][0].get(path).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert (headers["x-content-type-options"], headers["cache-control"]) == ("nosniff", "no-store")
