"""Servers for tests, of their own on free loopback ports, without privileges, gone with the test run."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests.acceptance.peers import missing

START_S = 30
FOLDERS = ("/usr/lib/postgresql", "/usr/local/pgsql")
"""Where distributions keep the server's programs, which they leave out of PATH."""

SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "150",
    "shared_buffers": "32MB",
    "fsync": "off",
}


def find_program(name: str) -> Path | None:
    """Return the newest server program of this name."""
    found = [path for folder in FOLDERS for path in Path(folder).glob(f"**/bin/{name}")]
    return max(found, default=None) or (Path(path) if (path := shutil.which(name)) else None)


@contextmanager
def run_postgres() -> Iterator[str]:
    """Give the URL of a running server (without a database name); skips the test where there is none installed."""
    initdb, server = find_program("initdb"), find_program("postgres")
    if initdb is None or server is None:
        missing("PostgreSQL is not installed")
    assert initdb is not None and server is not None
    # not below tmp_path: that belongs to this user, and the server must run as another where this one is root
    folder = Path(tempfile.mkdtemp(prefix="knowmvg-postgres-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(folder, "postgres", "postgres")
        _run([initdb, "-D", folder / "data", "-U", "tester", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"], folder)
        with _serve(server, folder) as port:
            yield f"postgresql+psycopg://tester@127.0.0.1:{port}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Postgres:
    """A PostgreSQL server that a test may kill and start again; skips the test where there is none installed."""

    def __init__(self) -> None:
        initdb, server = find_program("initdb"), find_program("postgres")
        if initdb is None or server is None:
            missing("PostgreSQL is not installed")
        assert initdb is not None and server is not None
        self.folder = Path(tempfile.mkdtemp(prefix="knowmvg-postgres-"))
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        arguments = ["-U", "tester", "-A", "trust", "-E", "UTF8", "--no-locale", "-N"]
        _run([initdb, "-D", self.folder / "data", *arguments], self.folder)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        options = [f"-c{key}={value}" for key, value in {**SETTINGS, "port": str(self.port)}.items()]
        self._command = _unprivileged([server, "-D", self.folder / "data", *options])
        self.url = f"postgresql+psycopg://tester@127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start, and wait for an answer; the processes of one that was killed must be gone first."""
        deadline = time.monotonic() + START_S
        while True:
            with (self.folder / "server.log").open("ab") as log:
                self._process = subprocess.Popen(self._command, cwd=self.folder, stdout=log, stderr=log)
            try:
                _wait_for(f"{self.url.replace('+psycopg', '')}/postgres", self._process, self.folder / "server.log")
                return
            except RuntimeError:
                self._process.kill()
                self._process.wait()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def create(self, name: str) -> str:
        """Make an empty database and return its URL."""
        return create_database(self.url, name)

    def run(self, statement: str) -> None:
        """Execute a statement as the superuser, outside a transaction."""
        with psycopg.connect(f"{self.url.replace('+psycopg', '')}/postgres", autocommit=True) as connection:
            connection.execute(statement.encode())

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """End it and remove its files."""
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(START_S)
        shutil.rmtree(self.folder, ignore_errors=True)


def create_database(server_url: str, name: str) -> str:
    """Make an empty database and return its URL."""
    with psycopg.connect(f"{server_url.replace('+psycopg', '')}/postgres", autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}"'.encode())
    return f"{server_url}/{name}"


@contextmanager
def _serve(server: Path, folder: Path) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    options = [f"-c{key}={value}" for key, value in {**SETTINGS, "port": str(port)}.items()]
    log = (folder / "server.log").open("wb")
    command = _unprivileged([server, "-D", folder / "data", *options])
    process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)
    try:
        _wait_for(f"postgresql://tester@127.0.0.1:{port}/postgres", process, folder / "server.log")
        yield port
    finally:
        os.killpg(process.pid, signal.SIGQUIT)  # at once: nothing of it is needed any more
        process.wait(START_S)
        log.close()


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            psycopg.connect(url, connect_timeout=2).close()
        except psycopg.OperationalError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"PostgreSQL does not start: {log.read_text()[-2000:]}") from None
            time.sleep(0.05)
        else:
            return


def _run(command: Sequence[str | Path], folder: Path) -> None:
    subprocess.run(_unprivileged(command), cwd=folder, check=True, capture_output=True, timeout=START_S)


def _unprivileged(command: Sequence[str | Path]) -> list[str]:
    """Return `command` as a user may run it: PostgreSQL refuses to run as root."""
    words = [str(word) for word in command]
    if os.geteuid() != 0:
        return words
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *words]


class Redis:
    """A Redis server that keeps its messages over a restart; skips the test where there is none installed."""

    def __init__(self, folder: Path) -> None:
        program = shutil.which("redis-server")
        if program is None:
            missing("redis-server is not installed")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes"]
        self._command = [str(program), *options, "--appendfsync", "always", "--save", "", "--logfile", "redis.log"]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.start()

    def start(self) -> None:
        """Start, and wait for an answer."""
        self._process = subprocess.Popen(self._command)
        deadline = time.monotonic() + START_S
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < deadline, "redis-server does not start"
            time.sleep(0.02)

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False
