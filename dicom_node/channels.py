"""The ways by which administrators are told: a webhook (JSON, signed) and e-mail. One call sends one message.

A message holds no patient data: its kind, a destination's name, numbers of jobs, and times.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import smtplib
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from email.message import EmailMessage
from email.utils import format_datetime
from pathlib import Path
from typing import Any, Protocol

from dicom_node.config import EmailSettings, Settings, WebhookSettings
from dicom_node.errors import NodeError

Content = dict[str, Any]

TEXTS: dict[str, tuple[str, str]] = {
    "dead letter": ("{count} given up: deliveries to {subject}", "Look at `knowmvg deliveries --state DEAD`, mend the "
                    "cause, then `knowmvg deliveries replay`."),
    "quarantine": ("{count} quarantined", "These studies killed their worker or did not fit into memory. Look at "
                   "`knowmvg jobs show ID` and the worker's log, then `knowmvg jobs retry ID`."),
    "disk low": ("disk space is low", "Make room, or the receiver refuses what comes. Senders keep what it refuses."),
    "disk recovered": ("disk space again", "There is space for what comes."),
    "destination down": ("{subject} does not answer", "Results for it wait, and are sent when it answers again."),
    "destination recovered": ("{subject} answers again", "What waited for it is on its way."),
    "test": ("a test", "This channel works."),
}  # fmt: skip
"""Of each kind: a title, and what to do."""


class ChannelError(NodeError):
    """A message could not be sent; the text says why."""


@dataclass(frozen=True)
class Letter:
    """What is sent: `number` tells a message that comes twice, as it may after a crash."""

    number: int
    at: datetime
    content: Content
    node: str
    link: str

    @property
    def title(self) -> str:
        """One line."""
        return f"KnowMVG Node {self.node}: {self._words[0].format(**self.content)}"

    @property
    def _words(self) -> tuple[str, str]:
        return TEXTS.get(self.content["kind"], ("{kind}, {subject}", "A newer version of the node noted this."))

    @property
    def text(self) -> str:
        """All of it, for people."""
        content = self.content
        lines = [f"{self.title}.", self._words[1]]
        if content["count"] > 1:
            lines.append(f"{content['count']} times between {content['first_at']} and {content['last_at']}.")
        if jobs := content["jobs"]:
            more = content["count"] - len(jobs)
            lines.append(f"Jobs {', '.join(map(str, jobs))}{f' and {more} more' if more > 0 else ''}.")
        return "\n".join([*lines, *([self.link] if self.link else [])]) + "\n"

    def to_json(self) -> dict[str, Any]:
        """Return the letter as a webhook is sent it."""
        return {
            "id": self.number, "at": self.at.isoformat(timespec="seconds"), "node": self.node, **self.content,
            "text": self.text, "link": self.link or None,
        }  # fmt: skip


class Channel(Protocol):
    """A way to tell."""

    @property
    def name(self) -> str:
        """How messages and log lines name it."""
        ...

    def send(self, letter: Letter) -> None:
        """Send one letter. Raises ChannelError."""
        ...

    def check(self, letter: Letter) -> str:
        """Try whether letters are taken, and tell how that was tried. Raises ChannelError."""
        ...


@dataclass(frozen=True)
class Webhook:
    """An HTTP address that is posted JSON."""

    settings: WebhookSettings

    @property
    def name(self) -> str:
        """`webhook` and its name."""
        return f"webhook {self.settings.name}"

    def send(self, letter: Letter) -> None:
        """Post a letter. Whatever is not answered with 2xx is a failure; redirections are not followed."""
        import httpx  # seldom needed, and large

        body = json.dumps(letter.to_json(), ensure_ascii=False).encode()
        settings = self.settings
        with explained():
            try:
                context = ssl.create_default_context(cafile=settings.ca)
                with httpx.Client(timeout=settings.timeout_s, verify=context, trust_env=False) as client:
                    answer = client.post(settings.url, content=body, headers=self._headers(letter, body))
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise ChannelError(f"nobody takes it ({type(error).__name__})") from error
        if not answer.is_success:
            raise ChannelError(f"answered HTTP {answer.status_code}")

    def check(self, letter: Letter) -> str:
        """Post a test letter."""
        self.send(letter)
        return "took a test message"

    def _headers(self, letter: Letter, body: bytes) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "X-KnowMVG-Message": str(letter.number)}
        if self.settings.secret_file is not None:
            secret, stamp = read_secret(self.settings.secret_file), letter.at.isoformat(timespec="seconds")
            headers |= {"X-KnowMVG-Timestamp": stamp, "X-KnowMVG-Signature": sign(secret, stamp, body)}
        return headers


@dataclass(frozen=True)
class Email:
    """A mail server that takes messages for its recipients."""

    settings: EmailSettings
    name: str = "email"

    def send(self, letter: Letter) -> None:
        """Send a letter to all recipients; one that is refused by some of them only was sent."""
        message = EmailMessage()
        message["From"], message["To"] = self.settings.sender, ", ".join(self.settings.recipients)
        message["Subject"], message["Date"] = letter.title, format_datetime(letter.at)
        message["Message-ID"] = f"<{letter.number}.{letter.at:%Y%m%d%H%M%S}.{letter.node.strip().lower()}@knowmvg>"
        message.set_content(letter.text)
        with self._server() as server:
            server.send_message(message)

    def check(self, letter: Letter) -> str:
        """Sign in, and send nothing."""
        with self._server() as server:
            server.noop()
        return f"{self.settings.host}:{self.settings.port} lets this node in"

    @contextmanager
    def _server(self) -> Iterator[smtplib.SMTP]:
        settings = self.settings
        with explained():
            context = ssl.create_default_context(cafile=settings.ca)
            make: Callable[..., smtplib.SMTP] = smtplib.SMTP
            options: dict[str, Any] = {"timeout": settings.timeout_s}
            if settings.security == "tls":
                make, options["context"] = smtplib.SMTP_SSL, context
            with make(settings.host, settings.port, **options) as server:
                if settings.security == "starttls":
                    server.starttls(context=context)
                if settings.user:
                    server.login(settings.user, read_secret(settings.password_file) if settings.password_file else "")
                yield server


@contextmanager
def explained() -> Iterator[None]:
    """Turn what sockets, TLS and mail servers raise into ChannelError, without secrets or whole replies."""
    try:
        yield
    except smtplib.SMTPResponseException as error:
        raise ChannelError(f"{type(error).__name__}, answered {error.smtp_code}") from error
    except smtplib.SMTPException as error:
        raise ChannelError(type(error).__name__) from error
    except ssl.SSLError as error:
        raise ChannelError(f"TLS: {error.reason or type(error).__name__}") from error
    except OSError as error:
        raise ChannelError(str(error.strerror or type(error).__name__)) from error
    except ValueError as error:  # a name or a password that cannot be encoded
        raise ChannelError(type(error).__name__) from error


def sign(secret: str, stamp: str, body: bytes) -> str:
    """Return the signature of a body: HMAC-SHA256 of the time, a dot, and the body."""
    return "sha256=" + hmac.new(secret.encode(), f"{stamp}.".encode() + body, hashlib.sha256).hexdigest()


def read_secret(path: Path) -> str:
    """Return the secret that a file holds. Raises ChannelError that names the file."""
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ChannelError(f"the secret in {path} cannot be read") from error


def make_channels(settings: Settings) -> tuple[Channel, ...]:
    """Return the channels of the settings."""
    notifications = settings.notifications
    email = (Email(notifications.email),) if notifications.email else ()
    return (*map(Webhook, notifications.webhooks), *email)


def make_letter(number: int, at: datetime, content: Content, settings: Settings) -> Letter:
    """Return a message as it is sent; with `console.public_url`, a link to what it is about."""
    link = settings.console.public_url.rstrip("/")
    if link and len(content["jobs"]) == 1:
        link = f"{link}/jobs/{content['jobs'][0]}"
    return Letter(number, at, content, settings.receiver.ae_title, link)


def make_test(at: datetime, settings: Settings) -> Letter:
    """Return a letter that tells nothing but that letters come."""
    stamp = at.isoformat(timespec="seconds")
    content = {"kind": "test", "subject": "test", "count": 1, "jobs": [], "first_at": stamp, "last_at": stamp}
    return make_letter(0, at, content, settings)
