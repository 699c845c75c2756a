"""The API as it is described: whatever is sent, it answers as the description says, and never with a fault."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.console import Console

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    archive = {"name": "pacs", "ae_title": "PACS", "host": "127.0.0.1", "port": 1}
    console = Console(tmp_path_factory.mktemp("console"), {"destinations": [archive]})
    console.file_studies()
    yield console
    console.close()


@pytest.fixture(scope="module")
def token(console: Console) -> str:
    return console.add_token("fuzz", "admin")


@pytest.fixture
def api_schema(console: Console) -> Any:
    return schemathesis.openapi.from_asgi("/api/v1/openapi.json", console.app, base_url="http://127.0.0.1")


schema = schemathesis.pytest.from_fixture("api_schema")


@schema.parametrize()
@settings(
    max_examples=30, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip
def test_the_description_is_kept(case: Any, token: str) -> None:
    headers = {"Authorization": f"Bearer {token}", "Host": "127.0.0.1"}
    case.call_and_validate(headers=headers, checks=CHECKS)


def test_it_is_described_without_sign_in(console: Console) -> None:
    description = console.browser().get("/api/v1/openapi.json").json()
    assert description["info"]["title"] == "KnowMVG Node"
    operations = [one for path in description["paths"].values() for one in path.values()]
    assert len(operations) >= 17
    assert not [one for one in operations if "422" in one["responses"] or "401" not in one["responses"]]
