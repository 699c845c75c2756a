"""What a process counts: bounded labels, sums of several processes, and histograms that lose nothing."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dicom_node.recorder import METRICS, OTHER, Recorder, Samples, add, from_json, gauges, to_json

ARRIVED, SECONDS = "knowmvg_instances_received", "knowmvg_step_seconds"


def test_titles_that_are_not_configured_are_counted_together() -> None:
    recorder = Recorder(peers=["PACS"], destinations=["archive"])
    for number in range(1000):
        recorder.count(ARRIVED, f"SCAN{number}", "image")
        recorder.count("knowmvg_deliveries", f"gone{number}", "query")
    recorder.count(ARRIVED, "PACS", "image")
    assert recorder.samples() == {
        (ARRIVED, OTHER, "image"): (1000.0,),
        (ARRIVED, "PACS", "image"): (1.0,),
        ("knowmvg_deliveries", OTHER, "query"): (1000.0,),
    }


def test_a_value_on_a_limit_is_in_its_bucket_and_one_beyond_all_in_the_last() -> None:
    recorder, limits = Recorder(), METRICS[SECONDS].buckets
    for value in (limits[0], limits[-1], limits[-1] + 1, -5.0):  # a clock of another host may be ahead
        recorder.observe(SECONDS, value, "ground")
    (counts,) = recorder.samples().values()
    assert (counts[0], counts[len(limits) - 1], counts[len(limits)]) == (2, 1, 1)
    assert counts[-1] == limits[0] + 2 * limits[-1] + 1


def test_many_threads_count_together() -> None:
    recorder = Recorder()

    def work() -> None:
        for _ in range(2000):
            recorder.count(ARRIVED, "PACS", "image")

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert recorder.samples() == {(ARRIVED, OTHER, "image"): (16000.0,)}


def test_a_metric_or_a_label_that_is_none_is_a_fault() -> None:
    with pytest.raises(KeyError):
        Recorder().count("knowmvg_patients")
    with pytest.raises(ValueError, match="labels"):
        Recorder().count(ARRIVED, "PACS")


counters = st.dictionaries(
    st.tuples(st.just(ARRIVED), st.sampled_from(["A", "B"]), st.just("image")),
    st.tuples(st.integers(0, 10**6).map(float)),
)


@given(counters, counters)
def test_what_is_added_and_taken_away_is_as_it_was(one: Samples, other: Samples) -> None:
    total = add(one, other)
    assert total == add(other, one)
    back = add(total, other, -1.0)
    assert {key: values for key, values in back.items() if any(values)} == {k: v for k, v in one.items() if any(v)}


def test_samples_of_another_version_spoil_nothing() -> None:
    mine: Samples = {(SECONDS, "ground"): (1.0, 2.0, 3.0)}
    theirs: Samples = {(SECONDS, "ground"): (1.0,), ("knowmvg_forgotten", "x"): (1.0,), ("knowmvg_broker_up",): (1.0,)}
    assert add(mine, theirs) == mine
    assert gauges(theirs) == {("knowmvg_broker_up",): (1.0,)}
    assert from_json(to_json(theirs)) == theirs  # type: ignore[arg-type]
