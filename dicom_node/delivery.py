"""What an archive's answers mean for a delivery, and what becomes of a dispatch. Pure.

A part of a result is PENDING until the archive took it (STORED) and DELIVERED when the archive confirmed that it has
it: by storage commitment, else by a query that finds it. A dispatch is all parts of a job for one destination.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["stored", "present", "transient", "permanent"]
"""Of a C-STORE response: taken; there already (to be confirmed); to be tried again; refused for good."""

PartState = Literal["PENDING", "STORED", "DELIVERED", "FAILED"]
DispatchState = Literal["PENDING", "CONFIRMING", "DELIVERED", "DEAD", "CANCELLED"]
OPEN_DISPATCHES: tuple[DispatchState, ...] = ("PENDING", "CONFIRMING")

NOT_ACCEPTED = "its SOP class is not accepted"
"""Detail of a part that the archive negotiated no presentation context for."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What statuses mean for a delivery, and in the words of the standard."""

    statuses: range
    verdict: Verdict
    text: str


def _one(status: int, verdict: Verdict, text: str) -> Meaning:
    return Meaning(range(status, status + 1), verdict, text)


DELIVERY: tuple[Meaning, ...] = (
    # PS3.4 B.2.3, Table B.2-1
    _one(0x0000, "stored", "success"),
    _one(0xB000, "stored", "stored, with coercion of data elements"),
    _one(0xB006, "stored", "stored, elements discarded"),
    _one(0xB007, "stored", "stored, although the data set does not match the SOP class"),
    Meaning(range(0xB000, 0xC000), "stored", "stored, with a warning"),
    Meaning(range(0xA700, 0xA800), "transient", "refused: out of resources"),
    Meaning(range(0xA900, 0xAA00), "permanent", "data set does not match SOP class"),
    Meaning(range(0xC000, 0xD000), "permanent", "cannot understand"),
    # PS3.7 Annex C
    _one(0x0001, "stored", "stored, with a warning: requested optional attributes are not supported"),
    _one(0x0107, "stored", "stored, with a warning: attribute list error"),
    _one(0x0116, "stored", "stored, with a warning: attribute value out of range"),
    _one(0x0105, "permanent", "no such attribute"),
    _one(0x0106, "permanent", "invalid attribute value"),
    _one(0x0110, "transient", "processing failure"),
    _one(0x0111, "present", "duplicate SOP instance: the archive says that it has it"),
    _one(0x0112, "permanent", "no such SOP instance"),
    _one(0x0115, "permanent", "invalid argument value"),
    _one(0x0117, "permanent", "invalid SOP instance"),
    _one(0x0118, "permanent", "no such SOP class"),
    _one(0x0119, "permanent", "class-instance conflict"),
    _one(0x0120, "permanent", "missing attribute"),
    _one(0x0121, "permanent", "missing attribute value"),
    _one(0x0122, "permanent", "SOP class not supported"),
    _one(0x0124, "permanent", "not authorized"),
    _one(0x0210, "transient", "duplicate invocation"),
    _one(0x0211, "permanent", "unrecognized operation"),
    _one(0x0212, "permanent", "mistyped argument"),
    _one(0x0213, "transient", "resource limitation"),
    _one(0xFE00, "transient", "cancelled"),
)
"""What a C-STORE status means; the first row that fits counts. A status that is not here is a failure that a repetition
cannot cure."""

UNKNOWN_STATUS = "a status that the standard does not define for C-STORE"


def read_status(status: int | None) -> Meaning:
    """Return what a C-STORE status means; None is no answer at all."""
    if status is None:
        return Meaning(range(0), "transient", "no answer: it broke off, or took too long")
    found = next((meaning for meaning in DELIVERY if status in meaning.statuses), None)
    return found or _one(status, "permanent", UNKNOWN_STATUS)


FAILURE_REASONS = {
    0x0110: "processing failure",
    0x0112: "it does not have the instance",
    0x0119: "it has the instance under another SOP class",
    0x0122: "SOP class not supported",
    0x0131: "duplicate transaction UID",
    0x0213: "resource limitation",
}
"""Failure Reason (0008,1197) of a storage commitment, PS3.3 C.14.1.1."""


def settle(parts: Collection[PartState]) -> DispatchState:
    """Return the state of a dispatch from those of its parts; something refused for good waits for the others."""
    if "PENDING" in parts:
        return "PENDING"
    if "STORED" in parts:
        return "CONFIRMING"
    return "DEAD" if "FAILED" in parts else "DELIVERED"
