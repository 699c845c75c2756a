"""One thread that reads the associations of small instances, and files what has come of all of them together.

A thread for each of them costs more than its instances where they come by the hundred a second: threads hand the
interpreter to each other at every call of the system. Here one thread takes in what has come, until nothing more has,
and then syncs, commits and answers all of it at once; meanwhile the next instances come. Nobody waits for company.

Associations are lent to it by their own threads, which go on watching over them, and take them back for everything that
is no small C-STORE, or where this thread is held up by a disk or a database.
"""

from __future__ import annotations

import contextlib
import select
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from dicom_node.spool import Answer, StoreRequest

GROUP = 64
"""Instances that are filed together at most."""

ROUNDS = 64
"""So often it is looked for more before what is complete is filed: somebody may send without an end."""

LOOK_S = 0.5
"""Between two looks whether it is to end, while nothing comes."""


class Lent(Protocol):
    """A connection whose association is established. Whoever reads it holds `turn`."""

    number: int
    """Its file descriptor, also when it is closed."""

    turn: threading.Lock
    is_lent: bool

    def read_ahead(self) -> StoreRequest | None:
        """Take in what has come, without waiting; return a request that is complete."""

    def answer(self, request: StoreRequest, answer: Answer) -> None:
        """Answer a request."""

    def fail(self, error: Exception) -> None:
        """Return to the own thread, which is to raise this."""


class Multiplexer:
    """Reads what is lent to it, in a thread of its own."""

    def __init__(self, store: Callable[[Sequence[StoreRequest]], Sequence[Answer]]) -> None:
        """`store` files what has come at one time."""
        self._store = store
        self._epoll = select.epoll()
        self._lent: dict[int, Lent] = {}
        self._answered: list[Lent] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="multiplexer", daemon=True)
        self._thread.start()

    def lend(self, one: Lent) -> None:
        """Begin to read a connection that does not block."""
        self._lent[one.number] = one
        self._epoll.register(one.number, select.EPOLLIN)

    def remove(self, one: Lent) -> None:
        """Read it no more; the caller holds its turn."""
        if self._lent.get(one.number) is one:
            del self._lent[one.number]
            with contextlib.suppress(OSError, ValueError):  # it is closed, or all is
                self._epoll.unregister(one.number)

    def stop(self) -> None:
        """End the thread, when it has filed what it has."""
        self._stop.set()
        self._thread.join()
        self._epoll.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._serve()

    def _serve(self) -> None:
        """Take in what has come, file what is complete of it, and answer."""
        complete: dict[Lent, StoreRequest] = {}
        ready: Iterable[Lent] = self._answered or self._poll(LOOK_S)
        for _ in range(ROUNDS):
            if not ready or len(complete) >= GROUP:
                break
            for one in ready:
                if (request := self._read(one)) is not None:
                    complete[one] = request
            ready = [one for one in self._poll(0) if one not in complete]
        if complete:
            self._file(complete)
        self._answered = list(complete)  # more of them may have come already

    def _poll(self, within_s: float) -> list[Lent]:
        found = [self._lent.get(number) for number, _ in self._epoll.poll(within_s)]
        return [one for one in found if one is not None]  # the others were just taken back

    def _read(self, one: Lent) -> StoreRequest | None:
        """Return a request that is complete; its connection's turn is kept until it is answered."""
        if not one.turn.acquire(blocking=False):
            return None  # its own thread takes it back
        request = None
        try:
            if one.is_lent:
                request = one.read_ahead()
        except Exception as error:  # noqa: BLE001 - of foreign bytes; its own thread deals with it, as ever
            one.fail(error)
        finally:
            if request is None:
                one.turn.release()
        return request

    def _file(self, complete: dict[Lent, StoreRequest]) -> None:
        """File and answer requests, whose connections' turns end."""
        try:
            answers: Sequence[Answer | Exception] = self._store(list(complete.values()))
        except Exception as error:  # noqa: BLE001 - a bug ends associations, and not the thread of all of them
            answers = [error] * len(complete)
        for (one, request), answer in zip(complete.items(), answers, strict=True):
            try:
                if isinstance(answer, Exception):
                    raise answer
                one.answer(request, answer)
            except Exception as error:  # noqa: BLE001 - as above
                one.fail(error)
            finally:
                one.turn.release()
