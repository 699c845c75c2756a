"""Who is STAT, and who comes next: decisions on values and `now`."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.config import PrioritySettings
from dicom_node.instance import Instance
from dicom_node.priority import PLACES, Priority, Urgency, WaitingJob, choose_next, urgency_of

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
BOUND = timedelta(minutes=15)
IMAGE = Instance("1.2.840.10008.5.1.4.1.1.1.1", "1.1", "1", "1.5", "1.2.840.10008.1.2.1")
REPORT = Instance("1.2.840.10008.5.1.4.1.1.88.11", "1.2", "1", "1.6", "1.2.840.10008.1.2.1")
DOSE = replace(REPORT, title=("113701", "DCM"), procedure_priority="STAT", c_store_priority="HIGH")
RULES = ({"calling_ae_title": "ER_CR", "priority": "STAT"}, {"calling_ae_title": "SHOUTER", "priority": "ROUTINE"})


def urgency(*received: tuple[Instance, str], **settings: Any) -> Urgency:
    return urgency_of(received, PrioritySettings(**settings))


@pytest.mark.parametrize("value", ["STAT", "HIGH"])
@pytest.mark.parametrize("instance", [IMAGE, REPORT])
def test_an_order_that_is_urgent_makes_its_study_stat(instance: Instance, value: str) -> None:
    urgent = replace(instance, procedure_priority=value)
    assert urgency((IMAGE, "CR"), (urgent, "RIS")).priority == "STAT"
    assert urgency((IMAGE, "CR"), (urgent, "RIS"), header=False).priority == "ROUTINE"


@pytest.mark.parametrize("value", ["", "ROUTINE", "MEDIUM", "LOW", "URGENT?"])
def test_other_orders_are_routine(value: str) -> None:
    assert urgency((replace(IMAGE, procedure_priority=value), "CR"), (REPORT, "RIS")) == Urgency("ROUTINE", "")


@pytest.mark.parametrize(("value", "priority"), [("HIGH", "STAT"), ("MEDIUM", "ROUTINE"), ("LOW", "ROUTINE")])
def test_a_store_of_high_priority_makes_its_study_stat(value: str, priority: str) -> None:
    assert urgency((replace(REPORT, c_store_priority=value), "RIS")).priority == priority
    assert urgency((replace(REPORT, c_store_priority=value), "RIS"), c_store=False).priority == "ROUTINE"


def test_a_rule_counts_before_all_that_is_said() -> None:
    urgent = replace(IMAGE, procedure_priority="STAT", c_store_priority="HIGH")
    assert urgency((IMAGE, "ER_CR"), rules=RULES) == Urgency("STAT", "rule for ER_CR")
    assert urgency((urgent, "SHOUTER"), rules=RULES).priority == "ROUTINE"
    assert urgency((urgent, "SHOUTER"), (REPORT, "ER_CR"), rules=RULES).priority == "STAT"  # the first rule that fits
    assert urgency((IMAGE, "CR"), rules=RULES) == Urgency()


def test_what_is_not_grounded_makes_nothing_urgent() -> None:
    assert urgency((IMAGE, "CR"), (DOSE, "ER_CR"), rules=RULES) == Urgency()


def jobs(priority: Priority, *minutes: float, first: int = 1) -> list[WaitingJob]:
    """Return jobs that have waited so many minutes."""
    return [WaitingJob(first + n, priority, NOW - timedelta(minutes=m)) for n, m in enumerate(minutes)]


@pytest.mark.parametrize(
    ("stat", "routine", "room", "given", "chosen"),
    [
        ((), (), 8, 0, ()),
        ((1, 2), (5, 9), 8, 0, (2, 1, 102, 101)),
        ((1, 2), (5, 9), 1, 0, (2,)),
        ((1, 2), (5, 9), 0, 0, ()),
        ((1, 2, 3, 4, 5), (16, 17), 4, 0, (5, 4, 3, 102)),  # the fourth place is kept for one that waited too long
        ((1, 2, 3, 4, 5), (16, 17), 4, 2, (5, 102, 4, 3)),
        ((1, 2, 3, 4, 5), (14, 15), 4, 0, (5, 4, 3, 2)),
        ((1, 2, 3, 4, 5), (16,), 1, 3, (101,)),
        ((1,), (16, 17), 3, 3, (102, 1, 101)),
        ((1, 2, 3, 4, 5), (), 4, 3, (5, 4, 3, 2)),
    ],
)
def test_stat_comes_first_and_routine_not_never(
    stat: tuple[float, ...], routine: tuple[float, ...], room: int, given: int, chosen: tuple[int, ...]
) -> None:
    waiting = jobs("ROUTINE", *routine, first=101) + jobs("STAT", *stat)
    assert choose_next(waiting, room, NOW, BOUND, given) == chosen


@given(st.integers(1, 9), st.integers(0, 7), st.lists(st.floats(0, 90), max_size=20), st.lists(st.floats(0, 90)))
def test_every_place_is_given_to_somebody_once(room: int, given: int, stat: list[float], routine: list[float]) -> None:
    waiting = jobs("STAT", *stat) + jobs("ROUTINE", *routine, first=101)
    chosen = choose_next(waiting, room, NOW, BOUND, given)
    assert len(chosen) == len(set(chosen)) == min(room, len(waiting))
    assert set(chosen) <= {job.job_id for job in waiting}


@given(st.integers(1, 8), st.integers(1, 40))
def test_neither_starves_the_other_however_many_come(room: int, overdue: int) -> None:
    """More STAT studies than there is room for come all the time, and a backlog of routine ones has waited too long."""
    waiting = jobs("ROUTINE", *[60.0] * overdue, first=1_000_000)
    given, number, left = 0, 0, overdue
    while left:
        waiting += jobs("STAT", *[0.0] * room, first=number)
        number += room
        chosen = set(choose_next(waiting, room, NOW, BOUND, given))
        given += len(chosen)
        waiting = [job for job in waiting if job.job_id not in chosen]
        left = sum(job.priority == "ROUTINE" for job in waiting)
        assert given // PLACES <= overdue - left + 1
        assert overdue - left <= given // PLACES + 1
    assert given <= PLACES * overdue + room
