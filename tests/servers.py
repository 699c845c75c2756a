"""Servers for tests, of their own on free loopback ports, without privileges, gone with the test run."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import amqp
import psycopg

from tests.acceptance.peers import free_port, missing

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
    """A Redis server that keeps its messages over a restart; skips the test where there is none installed.

    With `certificate` (and its key) it speaks TLS at `tls_url`, too.
    """

    def __init__(self, folder: Path, certificate: tuple[Path, Path] | None = None) -> None:
        program = shutil.which("redis-server")
        if program is None:
            missing("redis-server is not installed")
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port: int = free.getsockname()[1]
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--appendonly", "yes"]
        self._command = [str(program), *options, "--appendfsync", "always", "--save", "", "--logfile", "redis.log"]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        if certificate is not None:
            self.tls_url = f"rediss://127.0.0.1:{(port := free_port())}/0"
            files = ["--tls-cert-file", str(certificate[0]), "--tls-key-file", str(certificate[1])]
            self._command += ["--tls-port", str(port), *files, "--tls-auth-clients", "no"]
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

    close = kill

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


STARTS = 3
"""A free port may be somebody else's by the time that it is bound."""


class RabbitMQ:
    """A RabbitMQ server and its port mapper, on loopback alone; skips the test where there is none installed.

    It keeps its messages over a kill. Queues are the only thing that a test leaves: `reset` removes them. With
    `certificate` (and its key) it speaks TLS at `tls_url`, too.
    """

    PROGRAMS = Path("/usr/lib/rabbitmq/bin")
    QUEUES = ("gpu", "io")

    def __init__(self, certificate: tuple[Path, Path] | None = None) -> None:
        if not (self.PROGRAMS / "rabbitmq-server").exists() or shutil.which("epmd") is None:
            missing("rabbitmq-server is not installed")
        for left in reversed(range(STARTS)):
            self._set_up(certificate)
            try:
                return self.start()
            except BaseException as error:
                self.close()
                if not left or not isinstance(error, AssertionError):
                    raise

    def _set_up(self, certificate: tuple[Path, Path] | None) -> None:
        """Choose ports, write what it is told, and start its port mapper."""
        self.folder = Path(tempfile.mkdtemp(prefix="knowmvg-rabbitmq-"))
        self.port, distribution, mapper = free_port(), free_port(), free_port()
        self.url = f"amqp://guest:guest@127.0.0.1:{self.port}//"
        settings = [f"listeners.tcp.1 = 127.0.0.1:{self.port}", "log.console = false", "log.file.level = warning"]
        if certificate is not None:
            self.tls_url = f"amqps://guest:guest@127.0.0.1:{(port := free_port())}//"
            kept = [shutil.copy(path, self.folder) for path in certificate]
            settings += [f"listeners.ssl.1 = 127.0.0.1:{port}", "ssl_options.verify = verify_none"]
            settings += [f"ssl_options.certfile = {kept[0]}", f"ssl_options.keyfile = {kept[1]}"]
        (self.folder / "rabbitmq.conf").write_text("\n".join(settings) + "\n")
        (self.folder / "enabled_plugins").write_text("[].\n")
        for path in [self.folder, *self.folder.iterdir()] if os.geteuid() == 0 else []:
            shutil.chown(path, "rabbitmq", "rabbitmq")
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),  # of the cookie by which `rabbitmqctl` is let in
            "LANG": "C.UTF-8",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(mapper),
            "RABBITMQ_NODENAME": f"tests-{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "none"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_PID_FILE": str(self.folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CTL_ERL_ARGS": "-start_epmd false",
        }
        self._process = self._mapper = self._run("epmd")

    def start(self) -> None:
        """Start, and wait until it lets somebody in."""
        self._process = self._run(str(self.PROGRAMS / "rabbitmq-server"))
        deadline = time.monotonic() + 3 * START_S
        while not self._answers():
            assert self._process.poll() is None and time.monotonic() < deadline, self._log()
            time.sleep(0.1)

    def reset(self) -> None:
        """Remove what tests may have left."""
        with self._connect() as connection, connection.channel() as channel:
            for name in self.QUEUES:
                channel.queue_delete(name)

    def control(self, *arguments: str) -> str:
        """Run `rabbitmqctl` and return what it prints."""
        command = [str(self.PROGRAMS / "rabbitmqctl"), "--quiet", *arguments]
        done = subprocess.run(
            self._unprivileged(command), env=self._environment, capture_output=True, text=True, check=True, timeout=60,
            cwd=self.folder,
        )  # fmt: skip
        return done.stdout

    def kill(self) -> None:
        """End it as `kill -9` does.

        Not in the three seconds after it took a new quorum queue: only then is the queue's name on disk (dets), and
        RabbitMQ 3.10 would come back with a queue that never finds a leader.
        """
        self.control("eval", "lists:foreach(fun dets:sync/1, dets:all()).")
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def close(self) -> None:
        """End it and its port mapper, and remove its files."""
        for process in (self._process, self._mapper):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, *command: str) -> subprocess.Popen[bytes]:
        with (self.folder / "console").open("ab") as log:
            return subprocess.Popen(
                self._unprivileged(command), env=self._environment, cwd=self.folder, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    @staticmethod
    def _unprivileged(command: Sequence[str]) -> list[str]:
        if os.geteuid() != 0:
            return list(command)
        return ["setpriv", "--reuid=rabbitmq", "--regid=rabbitmq", "--clear-groups", "--", *command]

    def _connect(self) -> amqp.Connection:
        return amqp.Connection(f"127.0.0.1:{self.port}", userid="guest", password="guest", connect_timeout=2)

    def _answers(self) -> bool:
        try:
            with self._connect():
                return True
        except (OSError, amqp.exceptions.AMQPError):
            return False

    def _log(self) -> str:
        return (self.folder / "console").read_text(errors="replace")[-2000:]


class ObjectStore:
    """A server that speaks S3 (moto), empty at start, with one bucket; it forgets everything when it ends."""

    bucket = "films"

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start, and wait for an answer."""
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + START_S
        while not self._makes_bucket():
            assert self._process.poll() is None and time.monotonic() < deadline, "the object store does not start"
            time.sleep(0.05)

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self._process.kill()
        self._process.wait()

    close = kill

    def section(self, credentials: Path) -> dict[str, object]:
        """Return what a configuration says of it; `credentials` is where the file with them is written."""
        credentials.write_text("access_key_id: node\nsecret_access_key: secret\n")
        credentials.chmod(0o600)
        return {
            "url": f"s3://{self.bucket}/knowmvg", "endpoint": self.url, "region": "us-east-1", "allow_http": True,
            "credentials_file": str(credentials),
        }  # fmt: skip

    def _makes_bucket(self) -> bool:
        try:
            request = urllib.request.Request(f"{self.url}/{self.bucket}", method="PUT")
            with urllib.request.urlopen(request, timeout=5):
                return True
        except OSError:
            return False
