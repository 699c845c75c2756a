"""The console's HTTP server: uvicorn on a socket of ours. It logs no request: their lines may hold patient ids.

It speaks TLS where the configuration says so, and waits only so long for a request to come.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from sqlalchemy.orm import Session, sessionmaker
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from dicom_node.clock import Clock
from dicom_node.config import ConsoleSettings, Settings
from dicom_node.console.app import make_app
from dicom_node.logs import log_event
from dicom_node.objects import open_storage
from dicom_node.tls import console_context

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_S = 10
"""From the connection, or from an answer, to the end of the next request's headers."""

SEND_WITHIN_S = 120
"""So long a client may take to read what it asked for: a large film has some megabytes."""

MAX_CONNECTIONS = 200
"""More are answered with 503."""

STOP_S = 3
"""So long answers under way may take when the console stops."""


class PatientProtocol(H11Protocol):
    """HTTP/1.1 that hangs up on who connects and does not ask, or asks and does not read."""

    _sending: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait."""
        super().connection_made(transport)
        self._deadline: asyncio.TimerHandle = self.loop.call_later(REQUEST_TIMEOUT_S, self._hang_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._deadline.cancel()
        self.resume_writing()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Begin to wait again: uvicorn itself does so no more once the first byte of another request is there."""
        super().on_response_complete()
        self._deadline.cancel()
        self._deadline = self.loop.call_later(REQUEST_TIMEOUT_S, self._hang_up)

    def pause_writing(self) -> None:
        """Let who does not read have some time."""
        super().pause_writing()
        self._sending = self._sending or self.loop.call_later(SEND_WITHIN_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on: it has been read."""
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
        super().resume_writing()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer who says no more, where the request is whole; TLS knows no connection that is closed by half."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.more_body or cycle.response_complete or self.scheme == "https":
            return False
        cycle.keep_alive = False
        return True

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, where nothing is being answered already; who answers is told that nobody listens."""
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()

    def _hang_up(self) -> None:
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            self.transport.close()  # which waits for what is not read yet
            self._deadline = self.loop.call_later(SEND_WITHIN_S, self.transport.abort)


class ConsoleServer:
    """Serves an application on a socket that listens from the beginning."""

    def __init__(self, app: FastAPI, settings: ConsoleSettings, port: int) -> None:
        """Raises SettingsError for a certificate that cannot be used, OSError where it cannot listen."""
        context = console_context(settings.tls) if settings.tls else None
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        self._socket = socket.create_server((settings.host, port), family=family, backlog=128)
        # asyncio does this for sockets of its own alone; without it each answer waits 40 ms for an acknowledgement
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port: int = self._socket.getsockname()[1]
        self.app = app
        self._server = uvicorn.Server(
            uvicorn.Config(
                app, http=PatientProtocol, loop="asyncio", ws="none", lifespan="off", log_config=None, access_log=False,
                server_header=False, timeout_keep_alive=REQUEST_TIMEOUT_S, limit_concurrency=MAX_CONNECTIONS,
                timeout_graceful_shutdown=STOP_S, proxy_headers=settings.behind_proxy,
                forwarded_allow_ips=list(settings.proxies),
                ssl_context_factory=(lambda *_: context) if context else None,
            )
        )  # fmt: skip

    def serve(self) -> None:
        """Answer until `stop` is called; from a thread other than the first, signals are left alone."""
        self._server.run(sockets=[self._socket])

    def stop(self) -> None:
        """Have `serve` end, which takes a moment."""
        self._server.should_exit = True

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()


def make_server(
    settings: Settings, sessions: sessionmaker[Session], clock: Clock, port: int | None = None
) -> ConsoleServer:
    """Return a server that listens already, on `port` (0: the system's choice) instead of the settings' if given.

    Raises SettingsError for a certificate that cannot be used, OSError where it cannot listen.
    """
    host, port = settings.console.host, settings.console.port if port is None else port
    app = make_app(settings, sessions, clock, open_storage(settings))
    server = ConsoleServer(app, settings.console, port)
    log_event(logger, "console listens", host=host, port=server.port)
    return server
