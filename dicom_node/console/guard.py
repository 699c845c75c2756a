"""What holds for every request: whom the console answers, what every answer says to browsers, how large a body may be.

A request that is addressed to another host is refused: a page of another site that rebinds its name to this host's
address gets nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dicom_node.console.refusing import refuse
from dicom_node.sockets import is_loopback

MAX_BODY_BYTES = 256 * 1024
BODY_WITHIN_S = 30
"""So long the body of a request may take."""

HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Not `no-referrer`: with that, browsers send `Origin: null` with forms, and no form could be told from a foreign one
(Fetch, 3.3, "append a request Origin header")."""


class Guard:
    """The outermost layer of the application."""

    def __init__(self, app: ASGIApp, allowed_hosts: Collection[str] = ()) -> None:
        self._app, self._allowed = app, frozenset(allowed_hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may be answered."""
        if scope["type"] != "http":
            return
        is_head = scope["method"] == "HEAD"
        if is_head:  # answered as GET is, and not sent
            scope = {**scope, "method": "GET", "is_head": True}
        answer = _Answer(send, is_head=is_head)
        headers = Headers(scope=scope)
        if not is_allowed(headers.get("host", ""), self._allowed):
            reason = "this console does not answer under that name; it answers on 127.0.0.1 or localhost, and on the "
            await refuse(scope["path"], 421, f"{reason}names in console.allowed_hosts")(scope, receive, answer)
        elif not _is_small(headers.get("content-length", "0")):
            await refuse(scope["path"], 413, "the request is too large")(scope, receive, answer)
        else:
            await self._app(scope, _Bounded(receive), answer)


class _Answer:
    """Sends an answer with the headers that all have; to HEAD, without its body."""

    def __init__(self, send: Send, *, is_head: bool) -> None:
        self._send, self._is_head = send, is_head

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        elif self._is_head and message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await self._send(message)


class _Bounded:
    """Receives a body that is not larger than allowed and comes in time; of another one, an end that comes too soon."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._left = receive, MAX_BODY_BYTES
        self._deadline = time.monotonic() + BODY_WITHIN_S
        self._is_whole = False

    async def __call__(self) -> Message:
        try:
            within_s = None if self._is_whole else max(self._deadline - time.monotonic(), 0)
            message = await asyncio.wait_for(self._receive(), within_s)
        except TimeoutError:
            return {"type": "http.disconnect"}
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            self._is_whole = not message.get("more_body", False)
            if self._left < 0:
                return {"type": "http.disconnect"}
        return message


def _is_small(length: str) -> bool:
    return length.isascii() and length.isdigit() and len(length) < 10 and int(length) <= MAX_BODY_BYTES


def host_of(header: str) -> str:
    """Return the host that a Host header names, without its port; an empty text if it names none."""
    try:
        return urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return ""


def is_allowed(header: str, allowed: Collection[str]) -> bool:
    """Tell whether a Host header names this host, or one of those that are allowed."""
    host = host_of(header)
    return is_loopback(host) or host in allowed


def headers_of(answer: Any) -> None:
    """Give an answer the headers that all have, where it does not pass the guard."""
    for name, value in HEADERS.items():
        answer.headers[name] = value
