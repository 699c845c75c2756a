"""OpenID Connect: the authorization code flow with PKCE, and what a provider's ID token says of who signs in.

Only tokens that the provider signed with a key of its own count; what it says is checked against what was asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast
from urllib.parse import urlencode

import httpx
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from dicom_node.accounts import highest, make_token
from dicom_node.config import OidcSettings, Role
from dicom_node.errors import NodeError
from dicom_node.tls import authorities_context

ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Signatures with a key that the provider alone has."""

TIMEOUT_S = 10
LEEWAY_S = 60
"""So much may clocks differ."""


class ProviderError(NodeError):
    """The provider does not answer, or not as it should."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a sign-in was begun with; the browser keeps it until it comes back."""

    state: str
    nonce: str
    verifier: str

    @classmethod
    def draw(cls) -> Asked:
        """Return values that nobody can guess."""
        return cls(make_token(), make_token(), make_token())


@dataclass(frozen=True, slots=True)
class Provider:
    """A provider, by what it says of itself (OpenID Connect Discovery 1.0)."""

    settings: OidcSettings
    metadata: Mapping[str, Any]

    def authorization_url(self, asked: Asked, redirect_uri: str) -> str:
        """Return where a browser is sent to sign in."""
        query = {
            "response_type": "code",
            "client_id": self.settings.client_id,
            "redirect_uri": redirect_uri,
            "scope": " ".join(self.settings.scopes),
            "state": asked.state,
            "nonce": asked.nonce,
            "code_challenge": create_s256_code_challenge(asked.verifier),
            "code_challenge_method": "S256",
        }
        url: str = self.metadata["authorization_endpoint"]
        return f"{url}{'&' if '?' in url else '?'}{urlencode(query)}"

    def claims_of(self, code: str, asked: Asked, redirect_uri: str, now: datetime) -> dict[str, Any]:
        """Return what the provider says of who signed in. Raises ProviderError."""
        with _client(self.settings) as client:
            answer = self._redeem(client, code, asked, redirect_uri)
            try:
                keys = KeySet.import_key_set(cast(Any, _fetch(client, self.metadata["jwks_uri"])))
                token = jwt.decode(str(answer["id_token"]), keys, algorithms=ALGORITHMS)
                self._check(token.claims, asked, now)
            except (JoseError, KeyError, ValueError, TypeError) as error:
                raise ProviderError(f"its ID token is refused: {type(error).__name__}: {error}") from error
            claims = dict(token.claims)
            if self.settings.role_claim not in claims and "userinfo_endpoint" in self.metadata:
                claims = self._userinfo(client, str(answer.get("access_token", "")), claims)
        return claims

    def _redeem(self, client: httpx.Client, code: str, asked: Asked, redirect_uri: str) -> dict[str, Any]:
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": redirect_uri,
            "code_verifier": asked.verifier,
        }
        secret = _read_secret(self.settings)
        auth = httpx.BasicAuth(self.settings.client_id, secret) if secret else None
        if auth is None:
            form["client_id"] = self.settings.client_id
        try:
            answer = client.post(self.metadata["token_endpoint"], data=form, auth=auth or httpx.USE_CLIENT_DEFAULT)
            answer.raise_for_status()
            document: dict[str, Any] = dict(answer.json())
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise ProviderError(f"it gives no token: {_explain(error)}") from error
        return document

    def _check(self, claims: Mapping[str, Any], asked: Asked, now: datetime) -> None:
        """Refuse a token that is not for us, not for this sign-in, or too old (OpenID Connect Core 1.0, 3.1.3.7)."""
        jwt.JWTClaimsRegistry(
            now=int(now.timestamp()), leeway=LEEWAY_S,
            iss={"essential": True, "value": self.metadata["issuer"]},
            aud={"essential": True, "value": self.settings.client_id},
            nonce={"essential": True, "value": asked.nonce},
            exp={"essential": True}, sub={"essential": True},
        ).validate(dict(claims))  # fmt: skip
        if claims.get("azp", self.settings.client_id) != self.settings.client_id:
            raise ValueError("it was issued to another client (azp)")

    def _userinfo(self, client: httpx.Client, access_token: str, claims: dict[str, Any]) -> dict[str, Any]:
        more = _fetch(client, self.metadata["userinfo_endpoint"], {"Authorization": f"Bearer {access_token}"})
        if more.get("sub") != claims["sub"]:
            raise ProviderError("its user info is about somebody else")
        return more | claims


def discover(settings: OidcSettings) -> Provider:
    """Return the provider of an issuer. Raises ProviderError."""
    with _client(settings) as client:
        metadata = _fetch(client, f"{settings.issuer.rstrip('/')}/.well-known/openid-configuration")
    if str(metadata.get("issuer", "")).rstrip("/") != settings.issuer.rstrip("/"):
        raise ProviderError(f"it calls itself {metadata.get('issuer')!r}, not console.oidc.issuer")
    missing = {"authorization_endpoint", "token_endpoint", "jwks_uri"} - metadata.keys()
    if missing:
        raise ProviderError(f"it does not say where its {', '.join(sorted(missing))} is")
    return Provider(settings, metadata)


def role_in(claims: Mapping[str, Any], settings: OidcSettings) -> Role | None:
    """Return the highest role that the values of a claim stand for; None if none of them stands for any."""
    found = claims.get(settings.role_claim, ())
    values = [found] if isinstance(found, str) else found if isinstance(found, list | tuple) else []
    return highest([settings.roles[value] for value in values if isinstance(value, str) and value in settings.roles])


def name_in(claims: Mapping[str, Any], settings: OidcSettings) -> str:
    """Return the name of who signed in, on one line and not too long for its row."""
    name = claims.get(settings.name_claim) or claims["sub"]
    return "".join(letter for letter in str(name) if letter.isprintable())[:64]


def _client(settings: OidcSettings) -> httpx.Client:
    return httpx.Client(timeout=TIMEOUT_S, verify=authorities_context(settings.ca), follow_redirects=False)


def _fetch(client: httpx.Client, url: str, headers: Mapping[str, str] | None = None) -> dict[str, Any]:
    try:
        answer = client.get(url, headers=dict(headers or {}))
        answer.raise_for_status()
        document = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise ProviderError(f"{url} does not answer as it should: {_explain(error)}") from error
    if not isinstance(document, dict):
        raise ProviderError(f"{url} does not answer with an object")
    return dict(document)


def _read_secret(settings: OidcSettings) -> str:
    if settings.client_secret_file is None:
        return ""
    try:
        return settings.client_secret_file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ProviderError(f"console.oidc.client_secret_file cannot be read: {error}") from error


def _explain(error: Exception) -> str:
    return f"status {error.response.status_code}" if isinstance(error, httpx.HTTPStatusError) else type(error).__name__
