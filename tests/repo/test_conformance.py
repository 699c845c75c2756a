"""The conformance statement says what the code does: every row of its tables, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.repo.conformance import EXPECTED, compare, read_tables, sample_sr, sample_state

TEXT = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")
TABLE = r"<!-- table: {} -->\n\|.*\n\|.*\n"


def test_the_tables_are_what_the_code_does() -> None:
    assert compare(TEXT) == []


def first_row(name: str) -> tuple[int, int]:
    """Return where the first row of a table begins and ends."""
    head = re.search(TABLE.format(name), TEXT)
    assert head
    return head.end(), TEXT.index("\n", head.end()) + 1


@pytest.mark.parametrize("name", EXPECTED)
def test_a_missing_an_extra_and_a_changed_row_are_found(name: str) -> None:
    """A check that cannot fail shows nothing."""
    begin, end = first_row(name)
    row = TEXT[begin:end]
    assert [fault for fault in compare(TEXT[:begin] + TEXT[end:]) if f"table {name}: missing" in fault]
    assert [fault for fault in compare(TEXT[:end] + row + TEXT[end:]) if f"table {name}: twice" in fault]
    for column in range(len(EXPECTED[name]()[0])):
        cells = row.split("|")
        cells[column + 1] = " 0x7777 "
        changed = "|".join(cells)
        assert len(compare(TEXT[:begin] + changed + TEXT[end:])) == 2, (name, column)
        added = compare(TEXT[:end] + changed + TEXT[end:])
        assert len(added) == 1, added
        assert added[0].startswith(f"table {name}: extra")


def test_a_table_that_is_gone_or_unknown_is_found() -> None:
    assert compare(TEXT.replace("<!-- table: limits -->", "")) == ["table limits: not in the document"]
    assert compare(TEXT.replace("<!-- table: limits -->", "<!-- table: limited -->")) == [
        "table limits: not in the document",
        "table limited: unknown",
    ]


def test_fixed_values_are_those_of_the_objects() -> None:
    tables = read_tables(TEXT)
    fixed = {
        "sr-attributes": (sample_sr(), {"Modality", "SeriesNumber", "CompletionFlag", "VerificationFlag", "ValueType",
                          "PreliminaryFlag", "ContinuityOfContent", "SpecificCharacterSet", "SeriesDescription"}),
        "gsps-attributes": (sample_state(), {"Modality", "SeriesNumber", "ContentLabel", "SpecificCharacterSet",
                            "ContentDescription", "SeriesDescription", "Manufacturer"}),
    }  # fmt: skip
    for name, (ds, keywords) in fixed.items():
        said = {row[0]: row[2] for row in tables[name]}
        assert {keyword: said[keyword] for keyword in keywords} == {
            keyword: str(ds[keyword].value) for keyword in keywords
        }


def test_the_chapters_stand_in_the_order_of_the_standard() -> None:
    chapters = re.findall(r"^## \d+\. (.+)$", TEXT, re.MULTILINE)
    assert chapters == [
        "Overview", "Introduction", "Networking", "Media interchange", "Character sets", "Security", "Annexes",
    ]  # fmt: skip
