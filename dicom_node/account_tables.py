"""The job database, too: the rows of who may use the console, and who is signed in. Nothing here is about a patient."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from dicom_node.tables import Base


class UserRow(Base):
    """Somebody who may sign in with a password."""

    __tablename__ = "users"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    role: Mapped[str] = mapped_column(String(8))
    """viewer, operator or admin."""
    password_hash: Mapped[str] = mapped_column(String(255))
    disabled_at: Mapped[datetime | None]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class SignInRow(Base):
    """Somebody who is signed in; of the token in the cookie, its SHA-256."""

    __tablename__ = "sign_ins"

    token_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), index=True)
    role: Mapped[str] = mapped_column(String(8))
    """The role at the sign-in; that of an account in `users` or in the configuration counts as it is now."""
    origin: Mapped[str] = mapped_column(String(8))
    """Where the account is: table, file (the configuration) or oidc (the OpenID provider)."""
    created_at: Mapped[datetime] = mapped_column(index=True)
    seen_at: Mapped[datetime]
    """When it was used last, to the minute."""


class ApiTokenRow(Base):
    """A token with which a program may use the console's JSON; of the token, its SHA-256."""

    __tablename__ = "api_tokens"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    token_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    role: Mapped[str] = mapped_column(String(8))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]


class SignInFailureRow(Base):
    """Failures in a row to sign in, of a name from an address, or of an address; every console sees them."""

    __tablename__ = "sign_in_failures"

    subject: Mapped[str] = mapped_column(String(64), primary_key=True)
    """SHA-256 of the name and the address: in the field for the name there may stand a password."""
    failures: Mapped[int]
    last_at: Mapped[datetime] = mapped_column(index=True)
