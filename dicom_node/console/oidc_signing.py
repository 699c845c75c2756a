"""Signing in by an OpenID provider: to it, and back from it. Who has no role there is not let in."""

from __future__ import annotations

import logging
from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse
from starlette.responses import Response

from dicom_node.accounts import TRIES_OF_ADDRESS
from dicom_node.config import OidcSettings
from dicom_node.console.oidc import Asked, Provider, ProviderError, discover, name_in, role_in
from dicom_node.console.signing import ask_to_wait, begin, note_refusal, of_address, own_path, set_cookie, show_sign_in
from dicom_node.console.site import Here, RefusedError, Site
from dicom_node.console.visitors import address_of, cookie_name, is_same
from dicom_node.logs import log_event
from dicom_node.queries import begin_try, succeed_try

logger = logging.getLogger(__name__)

router = APIRouter(include_in_schema=False)

ASKED_COOKIE = "oidc"


def settings_of(here: Here) -> OidcSettings:
    """Return the settings of the provider. Raises RefusedError where none is configured."""
    if here.settings.console.oidc is None:
        raise RefusedError(404, "no OpenID provider is configured (console.oidc)")
    return here.settings.console.oidc


Configured = Annotated[OidcSettings, Depends(settings_of)]


@router.get("/sign-in/oidc")
def go(request: Request, here: Here, settings: Configured, next: str = "/") -> Response:
    """Send a browser to the provider."""
    asked = Asked.draw()
    try:
        url = find_provider(request, settings).authorization_url(asked, _redirect_uri(request, here))
    except ProviderError as error:
        log_event(logger, "provider away", level=logging.WARNING, reason=str(error))
        return show_sign_in(request, here, next, f"The OpenID provider is away: {error}.", 503)
    answer = RedirectResponse(url, 303)
    kept = urlsafe_b64encode(own_path(next).encode()).decode()
    value = ".".join((asked.state, asked.nonce, asked.verifier, kept))
    set_cookie(answer, here.settings.console, cookie_name(here.settings.console, ASKED_COOKIE), value)
    return answer


@router.get("/sign-in/oidc/callback")
def come_back(
    request: Request, here: Here, settings: Configured, code: str = "", state: str = "", error: str = ""
) -> Response:
    """Take what the provider says of who signs in."""
    asked, next = _asked(request.cookies.get(cookie_name(here.settings.console, ASKED_COOKIE), ""))
    if asked is None or not is_same(state, asked.state):
        return show_sign_in(request, here, "/", "The sign-in was not begun in this browser, or too long ago.", 400)
    of_here = of_address(address_of(request))
    with here.sessions.begin() as session:
        wait = begin_try(session, {of_here: TRIES_OF_ADDRESS}, here.clock())
    if wait:  # before anything is noted: anybody may begin a sign-in, and say what the provider never said
        return show_sign_in(request, here, "/", ask_to_wait(wait), 429)
    if error or not code:
        said = "".join(letter for letter in error[:64] if letter.isprintable())
        return _refuse(request, here, f"the provider says {said or 'nothing'}", 403)
    try:
        provider = find_provider(request, settings)
        claims = provider.claims_of(code, asked, _redirect_uri(request, here), here.clock())
    except ProviderError as fault:
        return _refuse(request, here, str(fault), 403)
    name, role = name_in(claims, settings), role_in(claims, settings)
    if role is None:
        reason = f"none of its values of {settings.role_claim} stands for a role (console.oidc.roles)"
        return _refuse(request, here, reason, 403, name)
    with here.sessions.begin() as session:
        succeed_try(session, "", of_here)
    old = request.cookies.get(cookie_name(here.settings.console))
    answer = begin(here, (name, role, "oidc"), address_of(request), old, next)
    answer.delete_cookie(
        cookie_name(here.settings.console, ASKED_COOKIE), secure=here.settings.console.has_secure_cookies, httponly=True
    )
    return answer


def find_provider(request: Request, settings: OidcSettings) -> Provider:
    """Return the provider; what it says of itself is asked for once. Raises ProviderError."""
    known: Provider | None = getattr(request.app.state, "provider", None)
    if known is None:
        known = request.app.state.provider = discover(settings)
    return known


def _asked(cookie: str) -> tuple[Asked | None, str]:
    parts = cookie.split(".")
    try:
        return Asked(*parts[:3]), own_path(urlsafe_b64decode(parts[3]).decode())
    except (IndexError, TypeError, ValueError):
        return None, "/"


def _redirect_uri(request: Request, here: Site) -> str:
    base = here.settings.console.public_url or f"{request.url.scheme}://{request.headers['host']}"
    return f"{base.rstrip('/')}/sign-in/oidc/callback"


def _refuse(request: Request, here: Site, reason: str, status: int, name: str = "") -> Response:
    """Say that nobody was signed in; why, the log and the audit trail know, too."""
    log_event(logger, "sign-in by the provider failed", level=logging.WARNING, reason=reason)
    note_refusal(here, name, address_of(request), f"OpenID provider: {reason}"[:255])
    return show_sign_in(request, here, "/", f"The OpenID provider did not sign you in: {reason}.", status)
