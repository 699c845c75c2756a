"""Who holds a lease, and whether that process still lives; for the workers of one host.

Each worker holds a kernel lock on a file of its own, named as its lease token. The kernel drops the lock at any death,
kill -9 included, so that the scheduler frees the leases of the dead at once instead of waiting for them to run out.
flock, not lockf: it excludes within one process too. A fork would keep it, so a worker never forks (solo pool).
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class Owner:
    """A lease token and the lock that says that its holder lives."""

    def __init__(self, folder: Path, token: str) -> None:
        """`folder` is on a local disk; `token` is new for each process."""
        folder.mkdir(parents=True, exist_ok=True)
        self.token = token
        self._path = folder / token
        self._descriptor = self._lock()
        while not self._is_in_place():  # somebody cleared it up between its making and its locking
            os.close(self._descriptor)
            self._descriptor = self._lock()

    def _lock(self) -> int:
        descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        return descriptor

    def _is_in_place(self) -> bool:
        try:
            return self._path.stat().st_ino == os.fstat(self._descriptor).st_ino
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give up the lock and its file, at a clean end."""
        self._path.unlink(missing_ok=True)
        os.close(self._descriptor)


def is_alive(folder: Path, token: str) -> bool:
    """Return whether the process that made `token` still holds its lock; clears up after one that died."""
    path = folder / token
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        path.unlink(missing_ok=True)
        return False
    finally:
        os.close(descriptor)


def clear_the_dead(folder: Path) -> None:
    """Remove what processes left that died without a lease."""
    for path in folder.glob("*"):
        is_alive(folder, path.name)
