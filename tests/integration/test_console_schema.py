"""The API as it is described: whatever is sent, it answers as the description says, and never with a fault."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
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


def test_the_description_is_kept(console: Console, token: str) -> None:
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", console.app, headers={"Host": "127.0.0.1"})
    headers = {"Authorization": f"Bearer {token}", "Host": "127.0.0.1"}
    found: list[Any] = list(schema.get_all_operations())
    operations = [one.ok() for one in found]
    assert len(operations) >= 17
    for operation in operations:
        for mode in GenerationMode:
            keep_to(operation.as_strategy(generation_mode=mode), headers)


def keep_to(cases: Any, headers: dict[str, str]) -> None:
    """Send what is drawn, and check each answer."""

    @settings(
        max_examples=25, deadline=None, derandomize=True, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    )  # fmt: skip
    @given(case=cases)
    def send(case: Any) -> None:
        case.call_and_validate(headers=headers, checks=CHECKS)

    send()


def test_it_is_described_without_sign_in(console: Console) -> None:
    description = console.browser().get("/api/v1/openapi.json").json()
    assert description["info"]["title"] == "KnowMVG Node"
    operations = [one for path in description["paths"].values() for one in path.values()]
    assert len(operations) >= 17
    assert not [one for one in operations if "422" in one["responses"] or "401" not in one["responses"]]
