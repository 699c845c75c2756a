"""Requests to the console: each is answered in HTTP, never by an error of the program, or the connection is closed."""

from __future__ import annotations

import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from random import Random

from dicom_node.config import Settings
from dicom_node.console.server import ConsoleServer, make_server
from dicom_node.instance import read_instance
from dicom_node.queries import Arrival, make_engine, make_sessions, record_instance, upgrade_schema
from dicom_node.storage import StoredFile
from tests.builders import encode, make_cxr_dataset, make_report_dataset
from tests.fakes import FrozenClock
from tests.faults.fuzz.bounds import Violation, WriteWatch
from tests.faults.fuzz.http_mutations import make_request
from tests.faults.fuzz.isolation import ENOUGH, Figures

ANSWER_S = 20
SERVER_LOG = logging.getLogger("uvicorn.error")
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2}) [^\r\n]*\r\n")


class Target:
    """A console over a database with two studies, and what its threads raised."""

    def __init__(self, folder: Path) -> None:
        data = folder / "node"
        data.mkdir()
        url = f"sqlite:///{data}/knowmvg.db"
        upgrade_schema(url)
        self.engine = make_engine(url)
        sessions = make_sessions(self.engine)
        settings = Settings.model_validate(
            {"node": {"data_dir": data}, "database": {"url": url}, "storage": {"url": f"file://{data}/dicom"},
             "receiver": {"min_free_bytes": 1}, "console": {"local_role": "admin"}}
        )  # fmt: skip
        image = make_cxr_dataset(study="whole")
        for ds in (image, make_report_dataset(study="whole", image=image), make_cxr_dataset(study="half")):
            stored = StoredFile(f"key/{ds.SOPInstanceUID}", "0" * 64, 1)
            with sessions.begin() as session:
                record_instance(
                    session, Arrival(read_instance(encode(ds)), stored, "PACS", FrozenClock()()), timedelta(5)
                )
        self.raised: list[str] = []
        self.server: ConsoleServer = make_server(settings, sessions, FrozenClock(), port=0)
        self._handler = Raised(self.raised)
        SERVER_LOG.addHandler(self._handler)
        self._thread = threading.Thread(target=self.server.serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the console."""
        self.server.stop()
        self._thread.join()
        self.server.close()
        SERVER_LOG.removeHandler(self._handler)
        self.engine.dispose()


class Raised(logging.Handler):
    """Takes note of what the application, or the server under it, raised."""

    def __init__(self, raised: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._raised = raised

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the exception."""
        error = record.exc_info[1] if record.exc_info else None
        self._raised.append(f"{type(error).__name__}: {error}" if error else record.getMessage())


def run_cases(folder: Path, cases: int, first: int = 0) -> Figures:
    """Send requests with seeds from `first` on."""
    figures, began = Figures("http"), time.monotonic()
    with _watched(folder) as (target, watch):
        for seed in range(first, first + cases):
            figures.cases += 1
            try:
                check(target, make_request(Random(seed)))
                if watch.outside:
                    raise Violation(f"outside: {watch.outside[:3]}")
            except Violation as violation:
                figures.note(f"seed {seed}", str(violation))
                target.raised.clear()
                watch.outside.clear()
            if len(figures.violations) >= ENOUGH:
                break
        _check_alive(target, figures)
    figures.seconds = round(time.monotonic() - began, 1)
    return figures


def run_case(seed: int, folder: Path) -> None:
    """Send one request to a console of its own; raises Violation."""
    with _watched(folder) as (target, _):
        check(target, make_request(Random(seed)))


def check(target: Target, request: bytes) -> None:
    """Raise Violation unless `request` is answered well or the connection is closed."""
    answer = exchange(target.server.port, request)
    if target.raised:
        raise Violation(f"the handler raised {target.raised[0]}")
    if not answer:
        return
    status = _STATUS.match(answer)
    if status is None or int(status[1]) == 500 or b"\r\n\r\n" not in answer:
        raise Violation(f"the answer is {answer[:80]!r}")
    _, _, body = answer.partition(b"\r\n\r\n")
    is_page = b"content-type: text/html" in answer.lower()
    if b"Traceback" in body or (is_page and (b"<script>alert" in body or b"<img" in body)):
        raise Violation("the answer says what it should not")


def exchange(port: int, request: bytes) -> bytes:
    """Send a request, say that no more comes, and return all that is answered."""
    parts: list[bytes] = []
    with socket.create_connection(("127.0.0.1", port), ANSWER_S) as connection:
        try:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                parts.append(part)
        except TimeoutError as error:
            raise Violation("hang: the console neither answers nor hangs up") from error
        except OSError:  # it has hung up on what it does not want to read
            pass
    return b"".join(parts)


def _check_alive(target: Target, figures: Figures) -> None:
    answer = exchange(target.server.port, b"GET /healthz HTTP/1.0\r\nHost: localhost\r\n\r\n")
    if not answer.endswith(b"ok\n"):
        figures.note("afterwards", "hang: the console does not answer any more")


@contextmanager
def _watched(folder: Path) -> Iterator[tuple[Target, WriteWatch]]:
    target = Target(folder)
    try:
        with WriteWatch(folder / "node") as watch:
            yield target, watch
    finally:
        target.close()
