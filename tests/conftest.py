"""What every test runs under: torch on one thread, and no settings from the environment of whoever runs the tests."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("KNOWMVG__")]:
        monkeypatch.delenv(name)
