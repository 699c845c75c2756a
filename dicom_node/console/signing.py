"""Signing in and out with a name and a password.

Whether the name or the password is wrong is not told, by no word and no time. Who fails often has to wait, and longer
each time; a sign-in has a token of its own, whatever cookie came with the form.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse
from starlette.responses import Response

from dicom_node.accounts import (
    TRIES_OF_ADDRESS,
    TRIES_OF_NAME,
    Origin,
    SignIn,
    digest,
    make_token,
    verify_password,
)
from dicom_node.audit import AuditEvent
from dicom_node.config import ConsoleSettings, Role
from dicom_node.console.filters import Text
from dicom_node.console.site import Here, RefusedError, Site
from dicom_node.console.visitors import (
    SentCsrf,
    Viewer,
    address_of,
    cookie_name,
    csrf_of,
    find_visitor,
    is_same,
    refuse_foreign_page,
)
from dicom_node.console.web import render
from dicom_node.queries import (
    begin_try,
    end_sign_in,
    find_user,
    has_users,
    note_audit,
    open_sign_in,
    succeed_try,
)

router = APIRouter(include_in_schema=False)

FORM_COOKIE = "form"
WRONG = "The name or the password is wrong."


@router.get("/sign-in")
def show_form(request: Request, here: Here, next: str = "/") -> Response:
    """Show the form."""
    if find_visitor(request, here) is not None:
        return RedirectResponse(own_path(next), 303)
    return show_sign_in(request, here, next)


@router.post("/sign-in")
def sign_in(
    request: Request,
    here: Here,
    sent: SentCsrf,
    name: Annotated[Text, Form(max_length=64)] = "",
    password: Annotated[str, Form()] = "",
    next: Annotated[str, Form()] = "/",
) -> Response:
    """Sign in."""
    refuse_forged_form(request, here, sent)
    address = address_of(request)
    subjects = {digest(f"{name}\n{address}"): TRIES_OF_NAME, of_address(address): TRIES_OF_ADDRESS}
    with here.sessions.begin() as session:
        wait = begin_try(session, subjects, here.clock())
    if wait:
        return show_sign_in(request, here, next, ask_to_wait(wait), 429)
    found = check_account(here, name, password, address)
    if found is None:
        return show_sign_in(request, here, next, WRONG, 401)
    with here.sessions.begin() as session:
        succeed_try(session, *subjects)
    return begin(here, (name, *found), address, request.cookies.get(cookie_name(here.settings.console)), next)


@router.post("/sign-out")
def sign_out(request: Request, here: Here, visitor: Viewer) -> Response:
    """Sign out."""
    name = cookie_name(here.settings.console)
    with here.sessions.begin() as session:
        if end_sign_in(session, digest(request.cookies.get(name, ""))) is not None:
            event = AuditEvent("sign-out", actor=visitor.name, actor_address=visitor.address)
            note_audit(session, event, "console", here.clock())
    answer = RedirectResponse("/sign-in", 303)
    answer.delete_cookie(name, secure=here.settings.console.has_secure_cookies, httponly=True, samesite="lax")
    return answer


@dataclass(frozen=True, slots=True)
class Account:
    """Somebody who has a password."""

    role: Role
    origin: Origin
    password_hash: str
    is_disabled: bool = False


def find_account(here: Site, name: str) -> Account | None:
    """Return the account of a name: that of the configuration, else that of the table."""
    if entry := here.settings.console.users.get(name):
        return Account(entry.role, "file", entry.password_hash)
    with here.sessions() as session:
        user = find_user(session, name)
    return Account(user.role, "table", user.password_hash, user.disabled_at is not None) if user else None


def check_account(here: Site, name: str, password: str, address: str) -> tuple[Role, Origin] | None:
    """Return role and origin of the account of a name and its password, after the same time whatever is wrong.

    What is wrong is told to the audit trail alone; there a name is only told if it is one, for it may be a password.
    """
    account = find_account(here, name)
    fits = verify_password(password, account.password_hash if account else None)
    if account is not None and fits and not account.is_disabled:
        return account.role, account.origin
    reason = "unknown name" if account is None else "disabled" if fits else "wrong password"
    note_refusal(here, name if account else "", address, reason)
    return None


def begin(here: Site, visitor: tuple[str, Role, Origin], address: str, old_cookie: str | None, next: str) -> Response:
    """Sign somebody in, audited, with a new token; what the old cookie stood for ends. Return the way to `next`."""
    settings, now, token = here.settings.console, here.clock(), make_token()
    name, role, origin = visitor
    with here.sessions.begin() as session:
        if old_cookie:
            end_sign_in(session, digest(old_cookie))
        open_sign_in(
            session, digest(token), SignIn(name, role, origin, now, now), timedelta(seconds=settings.longest_s)
        )
        event = AuditEvent("sign-in", actor=name, actor_address=address, reason=f"{role}, {origin}")
        note_audit(session, event, "console", now)
    answer = RedirectResponse(own_path(next), 303)
    set_cookie(answer, settings, cookie_name(settings), token)
    answer.delete_cookie(cookie_name(settings, FORM_COOKIE), secure=settings.has_secure_cookies, httponly=True)
    return answer


def note_refusal(here: Site, name: str, address: str, reason: str) -> None:
    """Keep in the audit trail that somebody was not let in."""
    event = AuditEvent("sign-in", success=False, actor=name, actor_address=address, reason=reason)
    with here.sessions.begin() as session:
        note_audit(session, event, "console", here.clock())


def show_sign_in(request: Request, here: Site, next: str, reason: str = "", status: int = 200) -> Response:
    """Show the form, with why it is shown again; made for this browser alone."""
    settings = here.settings.console
    name = cookie_name(settings, FORM_COOKIE)
    secret = request.cookies.get(name) or make_token()
    with here.sessions() as session:
        is_first = not settings.users and settings.oidc is None and not has_users(session)
    answer = render(
        request, "sign_in.html", status, csrf=csrf_of(secret), next=own_path(next), reason=reason, is_first=is_first,
        oidc=settings.oidc,
    )  # fmt: skip
    set_cookie(answer, settings, name, secret)
    return answer


def refuse_forged_form(request: Request, here: Site, sent: str) -> None:
    """Raise RefusedError for a form to sign in that was not made for this browser: somebody else would be signed in."""
    refuse_foreign_page(request, here)
    secret = request.cookies.get(cookie_name(here.settings.console, FORM_COOKIE), "")
    if not (secret and is_same(sent, csrf_of(secret))):
        raise RefusedError(403, "the form is too old, or cookies are off: load /sign-in again")


def of_address(address: str) -> str:
    """Return what failures of an address are counted under, whatever the names."""
    return digest(f"\n{address}")


def ask_to_wait(wait: timedelta) -> str:
    """Return in words how long is to be waited."""
    seconds = math.ceil(wait.total_seconds())
    return f"Too many tries: wait {seconds} s." if seconds < 120 else f"Too many tries: wait {seconds // 60 + 1} min."


def set_cookie(answer: Response, settings: ConsoleSettings, name: str, value: str) -> None:
    """Have a browser keep a value until it is closed, from scripts and from other sites' forms."""
    answer.set_cookie(name, value, secure=settings.has_secure_cookies, httponly=True, samesite="lax", path="/")


def own_path(text: str) -> str:
    """Return where to go on to: a path of this console, never another site."""
    is_own = text.startswith("/") and not text.startswith(("//", "/\\")) and text.isprintable() and text.isascii()
    return text if is_own and not text.startswith("/sign-") else "/"
