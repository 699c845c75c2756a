"""Who visits: by a cookie, by a token, or as this host; and what routes ask of them.

A change that comes with a cookie, or from this host, must say what only our own pages know (`Visitor.csrf`), and must
not come from a page of another site.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal
from urllib.parse import urlsplit

from fastapi import Depends, Request
from sqlalchemy.orm import Session

from dicom_node.accounts import ROLES, SignIn, digest, is_over
from dicom_node.config import ConsoleSettings, Role
from dicom_node.console.guard import host_of
from dicom_node.console.site import Here, RefusedError, Site
from dicom_node.logs import log_event
from dicom_node.queries import (
    DATABASE_ERRORS,
    SEEN_EVERY,
    explain,
    find_sign_in,
    find_token,
    find_user,
    note_seen,
)
from dicom_node.sockets import is_loopback

logger = logging.getLogger(__name__)

Way = Literal["cookie", "token", "local"]

SAFE_METHODS = ("GET", "HEAD")
FORM = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True)
class Visitor:
    """Somebody who may see something. `csrf` is what forms send back in the field of that name, and scripts in the
    header X-CSRF-Token; `address` is where the request came from, `way` how they are known."""

    name: str
    role: Role
    csrf: str
    address: str
    way: Way = "cookie"

    def may(self, role: Role) -> bool:
        """Tell whether this visitor may do what `role` may."""
        return ROLES.index(self.role) >= ROLES.index(role)


def cookie_name(settings: ConsoleSettings, what: str = "") -> str:
    """Return the name of the cookie of a sign-in, or of another one; browsers keep `__Host-` to this host and TLS."""
    name = f"knowmvg-{what}" if what else "knowmvg"
    return f"__Host-{name}" if settings.has_secure_cookies else name


def csrf_of(secret: str | bytes) -> str:
    """Return what forms send back that were made for the holder of a secret."""
    key = secret.encode(errors="surrogateescape") if isinstance(secret, str) else secret
    return hmac.new(key, b"csrf", hashlib.sha256).hexdigest()


def is_same(sent: str, wanted: str) -> bool:
    """Compare what was sent with what was wanted, without telling by the time how much of it fits."""
    return hmac.compare_digest(sent.encode(errors="surrogateescape"), wanted.encode())


async def sent_csrf(request: Request) -> str:
    """Return what a request says to be no forgery: in the header, or in a field of its form."""
    if sent := request.headers.get("x-csrf-token"):
        return sent
    if request.method not in SAFE_METHODS and request.headers.get("content-type", "").startswith(FORM):
        field = (await request.form()).get("csrf")
        return field if isinstance(field, str) else ""
    return ""


SentCsrf = Annotated[str, Depends(sent_csrf)]


def address_of(request: Request) -> str:
    """Return the address that a request came from."""
    return request.client.host if request.client else ""


def visitor_of(request: Request, here: Here, sent: SentCsrf) -> Visitor:
    """Return who visits. Raises RefusedError: nobody known, or a change that may be forged."""
    visitor = find_visitor(request, here)
    if visitor is None:
        raise RefusedError(401, "sign in, or send an API token as `Authorization: Bearer …`")
    request.state.visitor = visitor
    if request.method not in SAFE_METHODS and visitor.way != "token":
        refuse_foreign_page(request, here)
        if not is_same(sent, visitor.csrf):
            raise RefusedError(403, "the form is not one of this sign-in, or too old: load the page again and repeat")
    return visitor


def refuse_foreign_page(request: Request, here: Site) -> None:
    """Raise RefusedError for a request that a page of another site sends."""
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "same-origin")
    own = {request.headers.get("host", "").lower(), urlsplit(here.settings.console.public_url).netloc.lower()}
    if (origin is not None and urlsplit_safely(origin) not in own) or site not in ("same-origin", "none"):
        raise RefusedError(403, "the request comes from a page of another site")


def urlsplit_safely(origin: str) -> str | None:
    """Return host and port of an origin; None if it names none, such as `null`."""
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


def find_visitor(request: Request, here: Site) -> Visitor | None:
    """Return who visits, None if nobody is known: by the token if there is one, else by the cookie, else as local."""
    settings, address = here.settings.console, address_of(request)
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        return _by_token(here, token.strip(), address)
    if cookie := request.cookies.get(cookie_name(settings)):
        visitor = _by_cookie(here, cookie, address, is_asked="x-refresh" not in request.headers)
        if visitor is not None:
            return visitor
    if settings.local_role is not None and is_loopback(address) and is_loopback(host_of(request.headers["host"])):
        return Visitor("local", settings.local_role, csrf_of(here.secret), address, "local")
    return None


def _by_token(here: Site, token: str, address: str) -> Visitor | None:
    with here.sessions() as session:
        found = find_token(session, digest(token))
    if found is None or (found.expires_at is not None and found.expires_at <= here.clock()):
        return None
    return Visitor(f"token {found.name}", found.role, "", address, "token")


def _by_cookie(here: Site, cookie: str, address: str, *, is_asked: bool) -> Visitor | None:
    """Return who is signed in. What a page asks for by itself (not `is_asked`) is no sign of somebody being there."""
    now, key = here.clock(), digest(cookie)
    with here.sessions.begin() as session:
        sign_in = find_sign_in(session, key)
        if sign_in is None or is_over(sign_in, here.settings.console, now):
            return None
        role = current_role(session, here.settings.console, sign_in)
    if role is None:
        return None
    if is_asked and now - sign_in.seen_at >= SEEN_EVERY:
        _keep_seen(here, key, now)
    return Visitor(sign_in.name, role, csrf_of(cookie), address)


def current_role(session: Session, settings: ConsoleSettings, sign_in: SignIn) -> Role | None:
    """Return the role that who is signed in has now; None if the account is gone or disabled."""
    if sign_in.origin == "file":
        entry = settings.users.get(sign_in.name)
        return entry.role if entry else None
    if sign_in.origin == "table":
        user = find_user(session, sign_in.name)
        return user.role if user and user.disabled_at is None else None
    return sign_in.role if settings.oidc else None


def _keep_seen(here: Site, key: str, now: datetime) -> None:
    """Keep that somebody was seen; a database that takes no writes ends a sign-in early, and keeps nobody out."""
    try:
        with here.sessions.begin() as session:
            note_seen(session, key, now)
    except DATABASE_ERRORS as error:
        log_event(logger, "sign-in not kept alive", level=logging.WARNING, reason=explain(error))


def require(role: Role) -> Callable[..., Visitor]:
    """Return the dependency of a route that asks for `role`."""

    def check(visitor: Annotated[Visitor, Depends(visitor_of)]) -> Visitor:
        if not visitor.may(role):
            raise RefusedError(403, f"this asks for the role {role}; {visitor.name} is {visitor.role}")
        return visitor

    return check


Viewer = Annotated[Visitor, Depends(require("viewer"))]
Operator = Annotated[Visitor, Depends(require("operator"))]
Admin = Annotated[Visitor, Depends(require("admin"))]
