"""Accounts of the console: passwords, tokens, roles, and when a sign-in is over. Pure, but for what it draws by lot.

A password is kept as its argon2id hash; a token is long and random, so that its SHA-256 is enough.
"""

from __future__ import annotations

import hashlib
import secrets
import threading
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, get_args

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from dicom_node.config import ConsoleSettings, Role
from dicom_node.errors import NodeError

ROLES: tuple[Role, ...] = get_args(Role)
"""The one that may least comes first; each may all that those before it may."""

SHORTEST_PASSWORD, LONGEST_PASSWORD = 12, 1024
"""Characters. The longest is far over what anybody types: hashing is dear (NIST SP 800-63B-4, 3.1.1.2)."""

TOKEN_PREFIX = "knowmvg_"
"""What an API token begins with, so that one that leaked is known for what it is."""

Origin = Literal["table", "file", "oidc"]
"""Where an account is: in the job database, in the configuration, at the OpenID provider."""

TRIES_OF_NAME, TRIES_OF_ADDRESS = 5, 50
"""Failures of a name from an address, and of an address with whatever names, after which it has to wait. An address
may be a whole hospital's."""

FIRST_WAIT, LONGEST_WAIT = timedelta(seconds=2), timedelta(minutes=15)

_hasher = PasswordHasher()
_hashing = threading.BoundedSemaphore(2)
"""Each takes 64 MiB: many at once would take the console's host down."""


@dataclass(frozen=True, slots=True)
class SignIn:
    """Somebody who is signed in. `role` is the one the sign-in was opened with: an account may have another by now."""

    name: str
    role: Role
    origin: Origin
    created_at: datetime
    seen_at: datetime


def is_over(sign_in: SignIn, settings: ConsoleSettings, now: datetime) -> bool:
    """Tell whether a sign-in has ended: nobody was seen for a while, or it is too old."""
    idle, longest = timedelta(seconds=settings.idle_s), timedelta(seconds=settings.longest_s)
    return now - sign_in.seen_at >= idle or now - sign_in.created_at >= longest


def wait_after(failures: int, allowed: int) -> timedelta:
    """Return how long is to be waited after so many failures in a row, of which `allowed` may come at once."""
    if failures < allowed:
        return timedelta(0)
    return min(FIRST_WAIT * (1 << min(failures - allowed, 16)), LONGEST_WAIT)


def check_password(password: str) -> str:
    """Return a password that may be used. Raises NodeError that says why it may not."""
    if len(password) < SHORTEST_PASSWORD:
        raise NodeError(f"a password has at least {SHORTEST_PASSWORD} characters; this one has {len(password)}")
    if len(password) > LONGEST_PASSWORD:
        raise NodeError(f"a password has at most {LONGEST_PASSWORD} characters")
    return password


def hash_password(password: str) -> str:
    """Return the argon2id hash of a password (RFC 9106, the second recommended option)."""
    with _hashing:
        return _hasher.hash(password)


def verify_password(password: str, hashed: str | None) -> bool:
    """Tell whether a password is the one of a hash; without one it takes as long, and is not."""
    with _hashing:
        try:
            found = _hasher.verify(hashed or _dummy(), password[:LONGEST_PASSWORD])
        except (VerificationError, InvalidHashError):
            return False
    return found and hashed is not None and len(password) <= LONGEST_PASSWORD


_dummies: list[str] = []


def _dummy() -> str:
    """Return the hash of a password that nobody knows."""
    if not _dummies:
        _dummies.append(_hasher.hash(secrets.token_urlsafe()))
    return _dummies[0]


def make_token(prefix: str = "") -> str:
    """Return a token of 256 random bits."""
    return prefix + secrets.token_urlsafe(32)


def digest(token: str) -> str:
    """Return what is kept of a token."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).hexdigest()


def highest(roles: list[Role]) -> Role | None:
    """Return the role of these that may most; None if there is none."""
    return max(roles, key=ROLES.index, default=None)
