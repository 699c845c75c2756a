"""The threads of an association of ours: while one asks, the other takes no answer, whenever it was just looking."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from dicom_node.attending import _Checkpoint


class Association:
    """What a checkpoint knows of one."""

    _is_paused = False


@pytest.mark.parametrize("look", [1, 2])
def test_who_asks_while_the_thread_passes_waits_until_it_is_back(look: int) -> None:
    association: Any = Association()
    looks: list[bool] = []

    class Asked(_Checkpoint):
        """Is cleared by another thread right after one of the looks at it."""

        def is_set(self) -> bool:
            found = super().is_set()
            looks.append(found)
            if len(looks) == look:
                self.clear()
                looks.append(association._is_paused)
            return found

    checkpoint = Asked(association)
    checkpoint.wake()
    passed = threading.Event()

    def pass_by() -> None:
        checkpoint.wait()
        passed.set()

    thread = threading.Thread(target=pass_by, daemon=True)
    thread.start()
    went_on = passed.wait(0.3)
    was_found_paused = looks[look]
    assert not (went_on and was_found_paused)
    checkpoint.set()
    checkpoint.wake()
    thread.join(5)
    assert passed.is_set()
