"""The thread that reads many connections: nobody is passed over for ever, and nothing ends it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from dicom_node import multiplexer as module
from dicom_node.multiplexer import Multiplexer
from tests.acceptance.peers import wait_until


class Connection:
    """One that is lent. Each byte of its peer is a request, which is answered with a byte."""

    def __init__(self) -> None:
        self.peer, self._own = socket.socketpair()
        self._own.setblocking(False)
        self.number = self._own.fileno()
        self.turn = threading.Lock()
        self.is_lent = True
        self.is_ahead = False
        self.failure: Exception | None = None

    def read_ahead(self) -> Any:
        return self if self._own.recv(1) else None

    def answer(self, _: Any, answer: Any) -> None:
        assert self.turn.locked()
        self._own.send(answer)

    def fail(self, error: Exception) -> None:
        self.failure = error

    def is_answered(self) -> bool:
        self.peer.settimeout(10)
        return self.peer.recv(1) == b"+"

    def close(self) -> None:
        self.peer.close()
        self._own.close()


@pytest.fixture
def connect() -> Iterator[Callable[[int], list[Connection]]]:
    made: list[Connection] = []

    def make(count: int) -> list[Connection]:
        made.extend(Connection() for _ in range(count))
        return made[-count:]

    yield make
    for one in made:
        one.close()


class Store:
    """Files requests: notes how many there are at a time."""

    def __init__(self) -> None:
        self.groups: list[int] = []
        self.order: list[Any] = []
        self.open = threading.Event()
        self.open.set()

    def __call__(self, requests: Sequence[Any]) -> Any:
        self.groups.append(len(requests))
        self.order.extend(requests)
        assert self.open.wait(30)
        return [b"+"] * len(requests)


def test_no_more_are_filed_together_than_may_be_and_nobody_is_passed_over(
    connect: Callable[[int], list[Connection]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GROUP", 4)
    store = Store()
    multiplexer = Multiplexer(store)
    connections = connect(11)
    store.open.clear()
    for one in connections:
        one.peer.send(b"..")
        multiplexer.lend(one)  # type: ignore[arg-type]
    store.open.set()
    assert all(one.is_answered() for one in connections)  # the second byte of the first ones waits for the others
    assert all(one.is_answered() for one in connections)
    multiplexer.stop()
    assert max(store.groups) == 4
    assert sum(store.groups) == 22


def test_those_that_were_passed_over_come_first(
    connect: Callable[[int], list[Connection]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GROUP", 2)
    store = Store()
    multiplexer = Multiplexer(store)
    connections = connect(5)
    store.open.clear()
    for one in connections:
        multiplexer.lend(one)  # type: ignore[arg-type]
    connections[0].peer.send(b".")
    wait_until(lambda: store.groups == [1], "the first to be filed", 10)
    for one in connections:
        one.peer.send(b"....")
    store.open.set()
    assert all(one.is_answered() for one in connections for _ in range(4))
    multiplexer.stop()
    assert {*store.order[1:6]} == {*connections}


def test_a_failure_of_its_own_ends_neither_the_thread_nor_a_turn(
    connect: Callable[[int], list[Connection]], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store()
    multiplexer = Multiplexer(store)
    first, second = connect(2)
    poll = multiplexer._poll

    def fail_once(within_s: float) -> list[Any]:
        if multiplexer._complete:
            raise ZeroDivisionError
        return poll(within_s)

    monkeypatch.setattr(multiplexer, "_poll", fail_once)
    first.peer.send(b".")
    multiplexer.lend(first)  # type: ignore[arg-type]
    wait_until(lambda: first.failure is not None, "the connection to be returned", 10)
    monkeypatch.setattr(multiplexer, "_poll", poll)
    assert isinstance(first.failure, ZeroDivisionError)
    assert first.turn.acquire(timeout=10)
    second.peer.send(b".")
    multiplexer.lend(second)  # type: ignore[arg-type]
    assert second.is_answered()
    multiplexer.stop()


def test_the_end_does_not_wait_for_a_disk_that_hangs(
    connect: Callable[[int], list[Connection]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STOP_S", 0.1)
    store = Store()
    multiplexer = Multiplexer(store)
    (one,) = connect(1)
    store.open.clear()
    multiplexer.lend(one)  # type: ignore[arg-type]
    one.peer.send(b".")
    wait_until(lambda: store.groups == [1], "it to be filed", 10)
    multiplexer.stop()
    assert multiplexer._thread.is_alive()
    store.open.set()
    assert one.is_answered()
    multiplexer._thread.join(10)
    assert not multiplexer._thread.is_alive()
    multiplexer.stop()


def test_one_that_cannot_be_watched_is_not_kept(connect: Callable[[int], list[Connection]]) -> None:
    multiplexer = Multiplexer(Store())
    (one,) = connect(1)
    one.number = 10_000_000
    with pytest.raises(OSError, match="Bad file descriptor"):
        multiplexer.lend(one)  # type: ignore[arg-type]
    multiplexer.stop()
    with pytest.raises(OSError, match="cannot be watched"):
        multiplexer.lend(one)  # type: ignore[arg-type]
    assert not multiplexer._lent
