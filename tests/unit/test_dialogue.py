"""Answers and what was asked: only what answers a request counts."""

from __future__ import annotations

from typing import Any

import pytest
from pydicom.uid import UID
from pynetdicom.dimse_primitives import C_ECHO, C_FIND, C_STORE, N_ACTION

from dicom_node.dialogue import is_answer


@pytest.mark.parametrize(
    ("kind", "number", "uid", "counts"),
    [
        (C_STORE, 7, "1.2.3", True), (C_STORE, 7, None, True), (C_STORE, 6, "1.2.3", False),
        (C_STORE, 7, "1.2.4", False), (C_ECHO, 7, None, False), (N_ACTION, 7, "1.2.3", False),
    ],
)  # fmt: skip
def test_only_the_answer_to_a_request_counts(kind: Any, number: int, uid: str | None, counts: bool) -> None:
    request: Any = C_STORE()
    request.MessageID, request.AffectedSOPInstanceUID = 7, UID("1.2.3")
    answer = kind()
    answer.MessageIDBeingRespondedTo, answer.Status = number, 0x0000
    if uid is not None:
        answer.AffectedSOPInstanceUID = UID(uid)
    assert is_answer(answer, request) is counts


@pytest.mark.parametrize("asked", [C_FIND, N_ACTION])
@pytest.mark.parametrize(("kind", "number", "counts"), [(None, 7, True), (None, 6, False), (C_STORE, 7, False)])
def test_queries_and_requests_for_commitment_are_answered_by_their_number(
    asked: Any, kind: Any, number: int, counts: bool
) -> None:
    request, answer = asked(), (kind or asked)()
    request.MessageID = 7
    answer.MessageIDBeingRespondedTo, answer.Status = number, 0x0000
    assert is_answer(answer, request) is counts


def test_nothing_answers_what_was_not_asked() -> None:
    answer = C_FIND()
    answer.MessageIDBeingRespondedTo, answer.Status = 1, 0x0000
    assert not is_answer(answer, None)
