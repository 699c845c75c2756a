"""Every surface under mutated input: a few hundred cases, or with `--full` 20,000 each; and the shared broken files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from tests.faults.fuzz import bounds, console, datasets, pdus, pictures, reports, seeds
from tests.faults.fuzz.dicom_mutations import lay_out, mutate_file
from tests.faults.fuzz.isolation import Figures, run_isolated
from tests.faults.fuzz.pdu_mutations import make_stream
from tests.faults.site import OUT

ALL = 20_000
MALFORMED = seeds.shared_files("malformed")

long = pytest.mark.timeout(3000)


def publish(figures: Figures, record: Callable[[str, object], None], full: bool) -> None:
    """Keep the figures with the test, those of the long form in the file that is asked for; and fail on a violation."""
    row = figures.row()
    for name, value in row.items():
        record(name, value)
    if full and (path := os.environ.get(OUT)):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    assert figures.violations == []


@long
@pytest.mark.parametrize(("surface", "cases"), [("datasets", 400), ("reports", 300), ("pictures", 150)])
def test_files(surface: str, cases: int, full: bool, record_property: Callable[[str, object], None]) -> None:
    publish(run_isolated(surface, ALL if full else cases), record_property, full)


@long
def test_associations(full: bool, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    publish(pdus.run_cases(tmp_path, ALL if full else 300), record_property, full)


@long
def test_requests(full: bool, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    publish(console.run_cases(tmp_path, ALL if full else 400), record_property, full)


def test_a_message_that_begins_as_a_c_store_and_becomes_another_leaves_no_file(tmp_path: Path) -> None:
    assert pdus.run_cases(tmp_path, 50, first=12_900).violations == []


@pytest.mark.skipif(not MALFORMED, reason="the shared files are not here")
def test_every_shared_broken_file_is_read_or_refused() -> None:
    for path in MALFORMED:
        content = path.read_bytes()
        datasets.check(content, as_file=True)
        reports.check(content)
        pictures.check(content)


# ---- that the harness sees what it is to see -------------------------------------------------------------------------


def test_a_seed_gives_the_same_case_again() -> None:
    def files(seed: int) -> bytes:
        random = Random(seed)
        return mutate_file(random.choice(seeds.datasets()), random, seeds.datasets())

    assert [files(seed) for seed in range(50)] == [files(seed) for seed in range(50)]
    assert make_stream(Random(7), 7) == make_stream(Random(7), 7)


def test_mutations_change_most_files_and_leave_many_readable() -> None:
    read = 0
    for seed in range(200):
        random = Random(seed)
        content = mutate_file(random.choice(seeds.datasets()[:8]), random, seeds.datasets())
        read += datasets.check(content) is not None
    assert 20 < read < 190


def test_elements_are_found_in_sequences_and_of_implicit_vr() -> None:
    for content in seeds.reports()[:4]:
        assert sum(element.tag == 0x0040A160 for element in lay_out(content).elements) > 0


@pytest.mark.parametrize("loop", ["pass", "int('1' * 4000)"])
def test_a_case_that_takes_too_long_is_ended(loop: str) -> None:
    with pytest.raises(bounds.HangError), bounds.within(0.2):
        exec(f"while True: {loop}", {})


def test_a_file_written_elsewhere_is_seen(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with bounds.WriteWatch(tmp_path / "in") as watch:
        (tmp_path / "in" / "a").write_bytes(b"")
        (tmp_path / "in" / "a").read_bytes()
        assert watch.outside == []
        (tmp_path / "b").write_bytes(b"")
        (tmp_path / "in" / "a").rename(tmp_path / "c")
    assert len(watch.outside) == 2


def test_what_becomes_of_a_process_is_known_by_its_seed() -> None:
    figures = run_isolated("misbehaving", 12)
    assert (figures.cases, figures.hangs, figures.crashes, figures.writes_outside) == (12, 1, 3, 1)
    assert [cause.split(":")[0] for cause in figures.violations] == [f"seed {seed}" for seed in (1, 3, 5, 7, 9)]
