"""What a case may cost and touch: time, memory, and no file outside its folder."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Violation(AssertionError):
    """A case did what it may not."""


class HangError(BaseException):
    """A case took too long; nothing may catch it on the way."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise HangError in the main thread after so much processor time: other processes do not count."""
    before = signal.signal(signal.SIGVTALRM, _raise)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@contextmanager
def memory_within(megabytes: int) -> Iterator[None]:
    """Raise Violation if the process came to hold so much more memory than it ever had; only the first time tells."""
    before = _most_held()
    yield
    if (more := _most_held() - before) > megabytes * 1024:
        raise Violation(f"it held {more // 1024} MiB more than before")


def _most_held() -> int:
    """Return the greatest resident size so far, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    raise HangError("it took too much processor time")


class WriteWatch:
    """Sees what Python code opens for writing, makes, renames or removes, while it is on.

    An audit hook cannot be taken out again, so that one is put in once and looks whether any watch is on.
    """

    _on: WriteWatch | None = None
    _hooked = False

    def __init__(self, allowed: Path | None) -> None:
        self.outside: list[str] = []
        self._allowed = os.fspath(allowed.resolve()) + os.sep if allowed is not None else None

    def __enter__(self) -> WriteWatch:
        if not WriteWatch._hooked:
            WriteWatch._hooked = True
            sys.addaudithook(_see)
        WriteWatch._on = self
        return self

    def __exit__(self, *_: object) -> None:
        WriteWatch._on = None

    def see(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take note of a path that is written to."""
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & WRITING):
            return
        for path in arguments[: 2 if event == "os.rename" else 1]:
            if isinstance(path, str | bytes) and not self._is_allowed(os.fsdecode(path)):
                self.outside.append(f"{event} {os.fsdecode(path)[:200]}")

    def _is_allowed(self, path: str) -> bool:
        whole = os.path.abspath(path)  # noqa: PTH100  # the hook is called within pathlib, too
        if "__pycache__" in whole or whole.startswith("/dev/"):
            return True
        return self._allowed is not None and (whole + os.sep).startswith(self._allowed)


_WATCHED = frozenset({"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"})


def _see(event: str, arguments: tuple[Any, ...]) -> None:
    watch = WriteWatch._on
    if watch is not None and event in _WATCHED:
        watch.see(event, arguments)
