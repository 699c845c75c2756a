"""How many are taken: a sample, or all of them with `--full`; and what was measured, printed at the end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import pytest

AT_ONCE = 25
"""Seeds of one test."""

SAMPLE, ALL = 50, 1000
MOST, SUM = "largest", "number"
"""First words of what tests record: how the figures of several tests become one."""

_COMBINE: dict[str, Callable[[Iterable[float]], float]] = {MOST: max, SUM: sum}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give `seeds` to the tests that ask for them, `AT_ONCE` to each."""
    if "seeds" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("seeds")
        sample, full = marker.args if marker else (SAMPLE, ALL)
        count = full if metafunc.config.getoption("--full") else sample
        parts = [range(first, min(first + AT_ONCE, count)) for first in range(0, count, AT_ONCE)]
        metafunc.parametrize("seeds", parts, ids=[f"{part.start}-{part.stop - 1}" for part in parts])


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the figures."""
    figures: dict[str, list[float]] = defaultdict(list)
    for report in (*terminalreporter.stats.get("passed", ()), *terminalreporter.stats.get("failed", ())):
        for name, value in report.user_properties:
            if name.split(":")[0] in _COMBINE:
                figures[name].append(value)
    if figures:
        terminalreporter.section("measured")
    for name, values in sorted(figures.items()):
        terminalreporter.write_line(f"{name}: {_COMBINE[name.split(':')[0]](values):.6g}")
