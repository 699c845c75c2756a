"""Back-pressure: when the door closes, when it opens again, and that the alarm is raised once."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node import pressure
from dicom_node.pressure import LEAST_FREE, REOPEN, Pressure, Reading, decide

MB = 1024**2


@pytest.mark.parametrize(
    ("closed", "free", "fault", "is_closed"),
    [
        ("", 100 * MB, "", False),
        ("", 99 * MB, "", True),
        ("why", 100 * MB, "", True),  # a little above the limit is not enough to open it again
        ("why", 111 * MB, "", False),
        ("", 500 * MB, "database away", True),
        ("database away", 500 * MB, "", False),
    ],
)
def test_the_door_closes_at_the_limit_and_opens_above_it(closed: str, free: int, fault: str, is_closed: bool) -> None:
    assert bool(decide(closed, Reading(free, fault), 100 * MB)) is is_closed


def test_without_a_limit_it_closes_where_nothing_fits() -> None:
    assert decide("", Reading(LEAST_FREE - 1), 0)
    assert not decide("", Reading(LEAST_FREE), 0)


@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_what_opens_the_door_does_not_close_it_again(free: int, limit: int) -> None:
    if not decide("closed", Reading(free), limit):
        assert not decide("", Reading(free), limit)
        assert free >= limit * REOPEN - 1


def test_the_alarm_is_raised_once_and_ended_once() -> None:
    readings = [Reading(500), Reading(3), Reading(2), Reading(1), Reading(10**12), Reading(10**12)]
    told: list[bool] = []
    door = Pressure(lambda: readings.pop(0), 100 * MB)
    door.changed = lambda closed: told.append(bool(closed))
    for _ in range(6):
        door.look()
    assert told == [True, False]
    door.close("a write failed")
    door.close("another")
    assert told == [True, False, True]
    assert door.closed == "another"


def test_a_database_that_takes_too_long_closes_the_door(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pressure, "SLOW_PROBE_S", 0.0)
    begun, go_on = threading.Event(), threading.Event()

    def measure() -> Reading:
        begun.set()
        go_on.wait(10)
        return Reading(10**12)

    door = Pressure(measure, 0)
    look = threading.Thread(target=door.look)
    look.start()
    begun.wait(10)
    assert door.closed == "the database does not answer"
    go_on.set()
    look.join()
    assert door.closed == ""
