"""One thread that reads the associations of small instances, and files what has come of all of them together.

A thread for each of them costs more than its instances where they come by the hundred a second: threads hand the
interpreter to each other at every call of the system. Here one thread takes in what has come, until nothing more has,
and then syncs, commits and answers all of it at once; meanwhile the next instances come. Nobody waits for company.

Associations are lent to it by their own threads, which go on watching over them, and take them back for everything that
is no small C-STORE, or where this thread is held up by a disk or a database.
"""

from __future__ import annotations

import contextlib
import logging
import select
import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from dicom_node.spool import Answer, StoreRequest

logger = logging.getLogger(__name__)

GROUP = 64
"""Instances that are filed together at most, each in an open file."""

ROUNDS = 64
"""So often it is looked for more before what is complete is filed: somebody may send without an end."""

LOOK_S = 0.5
"""Between two looks whether it is to end, while nothing comes."""

STOP_S = 10.0
"""For what is being filed when it is to end; a disk that hangs is not waited for any longer."""


class Lent(Protocol):
    """A connection whose association is established. Whoever reads it holds `turn`."""

    number: int
    """Its file descriptor, also when it is closed."""

    turn: threading.Lock
    is_lent: bool

    @property
    def is_ahead(self) -> bool:
        """Whether more has come than a look at the socket tells."""

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
        self._first: list[Lent] = []
        self._complete: dict[Lent, StoreRequest] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="multiplexer", daemon=True)
        self._thread.start()

    def lend(self, one: Lent) -> None:
        """Begin to read a connection that does not block. Raises OSError where the system watches no more of them."""
        self._lent[one.number] = one
        try:
            self._epoll.register(one.number, select.EPOLLIN)
        except (OSError, ValueError) as error:  # ValueError: it is closed, at the end
            del self._lent[one.number]
            raise OSError(f"the connection cannot be watched: {error}") from error

    def remove(self, one: Lent) -> None:
        """Read it no more; the caller holds its turn."""
        if self._lent.get(one.number) is one:
            del self._lent[one.number]
            with contextlib.suppress(OSError, ValueError):  # it is closed, or all is
                self._epoll.unregister(one.number)

    def stop(self) -> None:
        """End the thread, when it has filed what it has; wait for that `STOP_S` at most."""
        self._stop.set()
        self._thread.join(STOP_S)
        if not self._thread.is_alive():
            self._epoll.close()

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._serve()
            except Exception as error:  # a bug ends associations, and not the thread of all of them
                logger.exception("unexpected failure")
                self._fail_all(error)
                self._stop.wait(LOOK_S)  # if it is to be like that from now on, then not all the time

    def _serve(self) -> None:
        """Take in what has come, file what is complete of it, and answer."""
        first, self._first = self._first, []
        ready = list(dict.fromkeys([*first, *self._poll(0 if first else LOOK_S)]))
        passed: list[Lent] = []
        for _ in range(ROUNDS):
            room = GROUP - len(self._complete)
            passed = ready[room:]
            for one in ready[:room]:
                if (request := self._read(one)) is not None:
                    self._complete[one] = request
            if not ready or len(self._complete) >= GROUP:
                break
            ready = [one for one in dict.fromkeys([*passed, *self._poll(0)]) if one not in self._complete]
        if self._complete:
            self._file(list(self._complete.values()))
        self._first = [*passed, *self._first]

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

    def _file(self, requests: Sequence[StoreRequest]) -> None:
        """File and answer the requests that are complete, whose connections' turns end."""
        answers = self._store(requests)
        for answer, (one, request) in zip(answers, list(self._complete.items()), strict=True):
            try:
                one.answer(request, answer)
                if one.is_lent and one.is_ahead:
                    self._first.append(one)
            except Exception as error:  # noqa: BLE001 - its own thread deals with it
                one.fail(error)
            finally:
                del self._complete[one]
                one.turn.release()

    def _fail_all(self, error: Exception) -> None:
        """Return what was not answered yet to the own threads."""
        while self._complete:
            one, _ = self._complete.popitem()
            with contextlib.suppress(Exception):  # or the turns of the others would never end
                one.fail(error)
            one.turn.release()
