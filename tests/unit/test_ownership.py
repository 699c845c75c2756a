"""Whether the holder of a lease lives: the kernel knows."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from workers.ownership import Owner, clear_the_dead, is_alive

HOLD = (
    "import sys; from pathlib import Path; from workers.ownership import Owner\n"
    "owner = Owner(Path(sys.argv[1]), sys.argv[2]); print('held', flush=True); sys.stdin.read()"
)


def test_owner_is_alive_until_it_is_released(tmp_path: Path) -> None:
    owner = Owner(tmp_path / "owners", "token")
    assert is_alive(tmp_path / "owners", "token")
    assert is_alive(tmp_path / "owners", "token")  # asking does not take the lock away
    owner.release()
    assert not is_alive(tmp_path / "owners", "token")


def test_unknown_token_is_dead(tmp_path: Path) -> None:
    assert not is_alive(tmp_path / "owners", "never made")


def test_owner_that_was_killed_is_dead_and_its_file_cleared(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path), "token"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert is_alive(tmp_path, "token")
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not is_alive(tmp_path, "token")
    assert list(tmp_path.iterdir()) == []


def test_what_the_dead_left_is_cleared_and_the_living_are_not_touched(tmp_path: Path) -> None:
    owner = Owner(tmp_path, "living")
    (tmp_path / "dead").touch()
    clear_the_dead(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["living"]
    assert is_alive(tmp_path, "living")
    owner.release()
    clear_the_dead(tmp_path / "never made")
