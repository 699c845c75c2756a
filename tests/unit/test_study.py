"""When a study is complete, how long a step is tried: decisions on values and `now`."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.config import AssemblySettings
from dicom_node.instance import Instance
from dicom_node.study import (
    END_STATES,
    LONGEST_PAUSE,
    MAX_ATTEMPTS,
    NEXT,
    SPREAD,
    STEP_PATIENCE,
    WORKING_STATES,
    Complete,
    JobFacts,
    NotApplicable,
    State,
    Waiting,
    backoff,
    batch_size,
    completion,
    look_again_at,
    may_retry,
    quarantine_reason,
)

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
SETTINGS = AssemblySettings(quiet_period_s=5, max_age_s=60)
IMAGE = Instance("1.2.840.10008.5.1.4.1.1.1.1", "1.1", "1", "1.5", "1.2.840.10008.1.2.1")
REPORT = Instance("1.2.840.10008.5.1.4.1.1.88.11", "1.2", "1", "1.6", "1.2.840.10008.1.2.1")
PARTIAL = replace(REPORT, completion_flag="PARTIAL")
DOSE = replace(REPORT, title=("113701", "DCM"))


def make_job(first_s: float = 0, last_s: float = 0, state: State = "RECEIVING", attempts: int = 0) -> JobFacts:
    """Return a job whose first and last instance came so many seconds after NOW."""
    first, last = NOW + timedelta(seconds=first_s), NOW + timedelta(seconds=last_s)
    return JobFacts(1, "1", 1, state, attempts, 0, first, last, NOW, first, None, None, None, {})


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("instances", "last_s", "now_s", "verdict"),
    [
        ([IMAGE, REPORT], 2, 6.9, Waiting(at(2), at(7))),
        ([IMAGE, REPORT], 2, 7, Complete(at(2))),
        ([REPORT, IMAGE], 2, 100, Complete(at(2))),
        ([IMAGE, REPORT], 58, 59, Waiting(at(58), at(60))),  # the maximum age ends the quiet period
        ([IMAGE, REPORT], 58, 60, Complete(at(58))),
        ([IMAGE], 0, 6, Waiting(at(0), at(60))),
        ([REPORT], 0, 59.9, Waiting(at(0), at(60))),
        ([IMAGE, PARTIAL], 0, 10, Waiting(at(0), at(60))),
        ([IMAGE, DOSE], 0, 10, Waiting(at(0), at(60))),
    ],
)
def test_completion(instances: list[Instance], last_s: float, now_s: float, verdict: object) -> None:
    assert completion(make_job(last_s=last_s), instances, SETTINGS, at(now_s)) == verdict


@pytest.mark.parametrize(
    ("instances", "words"),
    [
        ([IMAGE], "no report arrived within 60 s"),
        ([REPORT], "no image arrived within 60 s"),
        ([IMAGE, PARTIAL], "PARTIAL"),
        ([IMAGE, DOSE], "no report arrived"),
    ],
)
def test_what_is_missing_at_maximum_age_is_said(instances: list[Instance], words: str) -> None:
    verdict = completion(make_job(), instances, SETTINGS, at(60))
    assert isinstance(verdict, NotApplicable)
    assert words in verdict.reason


@given(
    instances=st.lists(st.sampled_from([IMAGE, REPORT, PARTIAL, DOSE]), min_size=1),
    last_s=st.floats(0, 100),
    now_s=st.floats(0, 200),
    later_s=st.floats(0, 200),
)
def test_completion_is_monotone_in_now(instances: list[Instance], last_s: float, now_s: float, later_s: float) -> None:
    """Once a study is complete, or too old, time alone does not change that; and who waits until then is done then."""
    job = make_job(last_s=last_s)
    now = max(job.last_instance_at, at(now_s))
    verdict = completion(job, instances, SETTINGS, now)
    if isinstance(verdict, Waiting):
        assert verdict.until > now
        assert not isinstance(completion(job, instances, SETTINGS, verdict.until), Waiting)
    else:
        assert completion(job, instances, SETTINGS, now + timedelta(seconds=later_s)) == verdict


def test_a_study_is_looked_at_after_the_quiet_period_but_at_least_every_minute() -> None:
    quiet = timedelta(seconds=5)
    assert look_again_at(NOW, NOW, quiet) == at(5)
    assert look_again_at(NOW, at(30), quiet) == at(35)
    assert look_again_at(NOW, at(58), quiet) == at(60)
    assert look_again_at(NOW, at(90), quiet) == at(90)


def test_every_working_state_has_a_next_one_and_no_end_has() -> None:
    assert {"RECEIVING", *WORKING_STATES} == set(NEXT)
    assert not set(END_STATES) & set(NEXT)
    assert set(NEXT.values()) == {*WORKING_STATES, "DELIVERED"}


def test_pauses_double_from_two_seconds_to_a_quarter_of_an_hour() -> None:
    pauses = [backoff(attempts).total_seconds() for attempts in range(1, 12)]
    assert pauses == [2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]


@given(st.integers(-5, 10**6))
def test_no_pause_is_longer_than_the_longest(attempts: int) -> None:
    assert timedelta() < backoff(attempts) <= backoff(attempts + 1) <= LONGEST_PAUSE


@given(st.integers(1, 30), st.text(min_size=1, max_size=8))
def test_pauses_are_spread_the_same_way_each_time(attempts: int, key: str) -> None:
    pause = backoff(attempts, key)
    assert pause == backoff(attempts, key)
    assert abs(pause / backoff(attempts) - 1) <= SPREAD + 1e-6


def test_pauses_of_many_are_spread() -> None:
    pauses = [backoff(5, f"dispatch {number}") for number in range(200)]
    assert max(pauses) - min(pauses) > backoff(5) * 0.4


def test_bugs_are_tried_a_few_times_and_what_is_away_for_a_day() -> None:
    for state in ("COMPLETE", "GROUNDED"):
        assert may_retry(make_job(state=state, attempts=MAX_ATTEMPTS - 1), at(10**7), foreseen=False)
        assert not may_retry(make_job(state=state, attempts=MAX_ATTEMPTS), NOW, foreseen=False)
        waiting = make_job(state=state, attempts=10**4)
        assert may_retry(waiting, NOW + timedelta(hours=23), foreseen=True)
        assert not may_retry(waiting, NOW + STEP_PATIENCE, foreseen=True)


def test_work_is_set_aside_after_three_deaths() -> None:
    assert [quarantine_reason("x", deaths) is None for deaths in range(5)] == [True, True, True, False, False]


@pytest.mark.parametrize(
    ("wanted", "seconds_each", "size"),
    [(8, None, 8), (8, 0.0, 8), (8, 0.1, 8), (8, 0.5, 6), (8, 1.4, 2), (8, 60.0, 1), (1, None, 1), (64, 0.1, 30)],
)
def test_a_batch_takes_a_few_seconds_at_most(wanted: int, seconds_each: float | None, size: int) -> None:
    assert batch_size(wanted, seconds_each) == size
