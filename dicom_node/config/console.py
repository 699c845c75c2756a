"""The section `console`: where it listens, who may sign in, and as what."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from dicom_node.config.section import Port, Section
from dicom_node.config.values import check_host_name, check_http_url, check_name, check_password_hash
from dicom_node.sockets import is_loopback

Role = Literal["viewer", "operator", "admin"]
"""A viewer sees; an operator also has work tried again, cancelled and sent; an administrator sees audit trail and
configuration, too."""


class CertificateSettings(Section):
    """TLS of the console: its certificate and key."""

    certificate: Path
    key: Path


class UserSettings(Section):
    """Somebody who may sign in with a password; `knowmvg users hash` makes `password_hash`."""

    role: Role
    password_hash: Annotated[str, AfterValidator(check_password_hash)]


class OidcSettings(Section):
    """Sign-in by an OpenID provider. Who has none of the values of `roles` in the claim `role_claim` is refused."""

    issuer: Annotated[str, AfterValidator(check_http_url)]
    client_id: str = Field(min_length=1)
    client_secret_file: Path | None = None
    scopes: tuple[str, ...] = ("openid", "profile")
    name_claim: str = Field(default="preferred_username", min_length=1)
    role_claim: str = Field(default="groups", min_length=1)
    roles: dict[str, Role] = Field(min_length=1)
    label: str = Field(default="Sign in with the hospital's account", min_length=1, max_length=64)
    ca: Path | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if "openid" not in self.scopes:
            raise ValueError("scopes must name openid, or the provider says nothing of who signs in")
        issuer = urlsplit(self.issuer)
        if issuer.scheme == "http" and not is_loopback(issuer.hostname or ""):
            raise ValueError("issuer is http: who signs in could be anybody; write https")
        return self


Users = Annotated[
    dict[Annotated[str, AfterValidator(check_name)], UserSettings],
    BeforeValidator(lambda value: {} if value == [] else value),
]
"""An empty list is none, as in files that were written before there was a sign-in."""


class ConsoleSettings(Section):
    """The HTTP process: pages and JSON of the jobs, health, metrics. `public_url` is where administrators find it."""

    host: str = "127.0.0.1"
    port: Port = 8042
    public_url: Annotated[str, AfterValidator(lambda value: value and check_http_url(value))] = ""
    allowed_hosts: tuple[Annotated[str, AfterValidator(check_host_name)], ...] = ()
    tls: CertificateSettings | None = None
    behind_proxy: bool = False
    proxies: tuple[str, ...] = ("127.0.0.1", "::1")
    users: Users = Field(default_factory=dict)
    local_role: Role | None = None
    idle_s: float = Field(default=1800, ge=60, le=86400)
    longest_s: float = Field(default=12 * 3600, ge=60, le=30 * 86400)
    secure_cookies: bool | None = None
    oidc: OidcSettings | None = None

    @property
    def has_secure_cookies(self) -> bool:
        """Whether browsers are told to send its cookies over TLS alone."""
        return self.secure_cookies if self.secure_cookies is not None else self.tls is not None or self.behind_proxy

    @model_validator(mode="after")
    def _protected(self) -> Self:
        if not is_loopback(self.host) and self.tls is None and not self.behind_proxy:
            raise ValueError(
                f"host is {self.host}, which others can reach: passwords and patients' data would pass in clear; give "
                "tls.certificate and tls.key, or say behind_proxy: true where only a proxy with TLS can reach it, or "
                "use 127.0.0.1"
            )
        if self.behind_proxy and self.local_role is not None:
            raise ValueError(
                "local_role is for requests from this host, and behind a proxy all seem to be: leave it out"
            )
        return self


def mask_console(values: dict[str, Any], mask: str) -> None:
    """Mask what the section's plain values hold of passwords."""
    for user in values["users"].values():
        user["password_hash"] = mask
