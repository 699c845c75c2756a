"""Accounts of the console as rows: users, who is signed in, API tokens, and failures to sign in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from dicom_node.account_tables import ApiTokenRow, SignInFailureRow, SignInRow, UserRow
from dicom_node.accounts import LONGEST_WAIT, Origin, SignIn, wait_after
from dicom_node.config import Role
from dicom_node.errors import NodeError
from dicom_node.queries.inserting import insert_or_ignore

SEEN_EVERY = timedelta(minutes=1)
"""A sign-in that is used is written to so often."""

FORGET_FAILURES_AFTER = timedelta(hours=1)
"""Of a name that nobody tries; longer than anybody is made to wait."""


@dataclass(frozen=True, slots=True)
class User:
    """Somebody who may sign in with a password, unless disabled."""

    name: str
    role: Role
    password_hash: str
    disabled_at: datetime | None
    created_at: datetime
    updated_at: datetime

    def to_json(self) -> dict[str, Any]:
        """Return the user as `users list --json` prints it, without the hash."""
        instants = {name: getattr(self, name) for name in ("disabled_at", "created_at", "updated_at")}
        return {"name": self.name, "role": self.role} | {
            name: at.isoformat(timespec="milliseconds") if at else None for name, at in instants.items()
        }


@dataclass(frozen=True, slots=True)
class ApiToken:
    """A token for programs; what it reads itself is not kept."""

    name: str
    role: Role
    created_at: datetime
    expires_at: datetime | None

    def to_json(self) -> dict[str, Any]:
        """Return the token as `tokens list --json` prints it."""
        expires = self.expires_at.isoformat(timespec="milliseconds") if self.expires_at else None
        created = self.created_at.isoformat(timespec="milliseconds")
        return {"name": self.name, "role": self.role, "created_at": created, "expires_at": expires}


# ---- users -----------------------------------------------------------------------------------------------------------


def add_user(session: Session, name: str, role: Role, password_hash: str, now: datetime) -> None:
    """Make a user. Raises NodeError if there is one of this name."""
    made = insert_or_ignore(
        session, UserRow, name=name, role=role, password_hash=password_hash, created_at=now, updated_at=now
    )
    if not made:
        raise NodeError(f"there is a user {name} already; `knowmvg users password {name}` gives another password")


def find_user(session: Session, name: str) -> User | None:
    """Return a user, disabled or not; None if there is none of this name."""
    row = session.get(UserRow, name)
    return None if row is None else _user(row)


def list_users(session: Session) -> tuple[User, ...]:
    """Return all users, by name."""
    return tuple(map(_user, session.scalars(select(UserRow).order_by(UserRow.name))))


def has_users(session: Session) -> bool:
    """Tell whether there is any user."""
    return session.scalar(select(UserRow.name).limit(1)) is not None


def change_role(session: Session, name: str, role: Role, now: datetime) -> None:
    """Give a user another role, from the next request on. Raises NodeError if there is none."""
    _change(session, name, now, role=role)


def change_password(session: Session, name: str, password_hash: str, now: datetime) -> None:
    """Give a user another password, and end what is signed in with the old one. Raises NodeError if there is none."""
    _change(session, name, now, password_hash=password_hash)
    end_sign_ins(session, name)


def change_disabled(session: Session, name: str, now: datetime, *, disabled: bool) -> None:
    """Let a user no longer in, or in again. Raises NodeError if there is none."""
    _change(session, name, now, disabled_at=now if disabled else None)
    if disabled:
        end_sign_ins(session, name)


def remove_user(session: Session, name: str) -> None:
    """Remove a user. Raises NodeError if there is none."""
    if session.scalar(delete(UserRow).where(UserRow.name == name).returning(UserRow.name)) is None:
        raise NodeError(_unknown(name))
    end_sign_ins(session, name)


def _change(session: Session, name: str, now: datetime, **values: Any) -> None:
    changed = update(UserRow).where(UserRow.name == name).values(values | {"updated_at": now})
    if session.scalar(changed.returning(UserRow.name)) is None:
        raise NodeError(_unknown(name))


def _unknown(name: str) -> str:
    return f"there is no user {name}; `knowmvg users list` names them"


def _user(row: UserRow) -> User:
    role = cast(Role, row.role)
    return User(row.name, role, row.password_hash, row.disabled_at, row.created_at, row.updated_at)


# ---- who is signed in ------------------------------------------------------------------------------------------------


def open_sign_in(session: Session, token_sha256: str, sign_in: SignIn, oldest: timedelta) -> None:
    """Keep that somebody signed in, and forget who did so longer ago than `oldest`."""
    session.execute(delete(SignInRow).where(SignInRow.created_at < sign_in.created_at - oldest))
    session.add(
        SignInRow(
            token_sha256=token_sha256, name=sign_in.name, role=sign_in.role, origin=sign_in.origin,
            created_at=sign_in.created_at, seen_at=sign_in.seen_at,
        )
    )  # fmt: skip


def find_sign_in(session: Session, token_sha256: str) -> SignIn | None:
    """Return the sign-in of a token, over or not; None if there is none."""
    row = session.get(SignInRow, token_sha256)
    if row is None:
        return None
    return SignIn(row.name, cast(Role, row.role), cast(Origin, row.origin), row.created_at, row.seen_at)


def note_seen(session: Session, token_sha256: str, now: datetime) -> None:
    """Keep that a sign-in was used."""
    session.execute(update(SignInRow).where(SignInRow.token_sha256 == token_sha256).values(seen_at=now))


def end_sign_in(session: Session, token_sha256: str) -> str | None:
    """End a sign-in; return whose it was."""
    ended = delete(SignInRow).where(SignInRow.token_sha256 == token_sha256).returning(SignInRow.name)
    return session.scalar(ended)


def end_sign_ins(session: Session, name: str) -> None:
    """End all sign-ins of a user of the table."""
    session.execute(delete(SignInRow).where(SignInRow.name == name, SignInRow.origin == "table"))


def end_every_sign_in(session: Session, name: str) -> int:
    """End all sign-ins of a name, wherever its account is; return how many there were."""
    ended = delete(SignInRow).where(SignInRow.name == name).returning(SignInRow.token_sha256)
    return len(session.scalars(ended).all())


# ---- tokens ----------------------------------------------------------------------------------------------------------


def add_token(session: Session, token: ApiToken, token_sha256: str) -> None:
    """Make a token. Raises NodeError if there is one of this name."""
    made = insert_or_ignore(
        session, ApiTokenRow, name=token.name, token_sha256=token_sha256, role=token.role, created_at=token.created_at,
        expires_at=token.expires_at,
    )  # fmt: skip
    if not made:
        raise NodeError(f"there is a token {token.name} already; `knowmvg tokens revoke {token.name}` ends it")


def find_token(session: Session, token_sha256: str) -> ApiToken | None:
    """Return a token, expired or not; None if there is none."""
    row = session.scalar(select(ApiTokenRow).where(ApiTokenRow.token_sha256 == token_sha256))
    return None if row is None else _token(row)


def list_tokens(session: Session) -> tuple[ApiToken, ...]:
    """Return all tokens, by name."""
    return tuple(map(_token, session.scalars(select(ApiTokenRow).order_by(ApiTokenRow.name))))


def revoke_token(session: Session, name: str) -> None:
    """End a token. Raises NodeError if there is none of this name."""
    if session.scalar(delete(ApiTokenRow).where(ApiTokenRow.name == name).returning(ApiTokenRow.name)) is None:
        raise NodeError(f"there is no token {name}; `knowmvg tokens list` names them")


def _token(row: ApiTokenRow) -> ApiToken:
    return ApiToken(row.name, cast(Role, row.role), row.created_at, row.expires_at)


# ---- failures to sign in ---------------------------------------------------------------------------------------------


def begin_try(session: Session, subjects: dict[str, int], now: datetime) -> timedelta:
    """Count a try to sign in as a failure of these subjects until it has succeeded; return how long is to be waited
    before one, in which case nothing is counted.

    `subjects` says of each how many failures are allowed in a row. Counted first: of many tries at once each is seen.
    """
    session.execute(delete(SignInFailureRow).where(SignInFailureRow.last_at < now - FORGET_FAILURES_AFTER))
    if wait := _wait(_lock_failures(session, subjects), subjects, now):  # nothing is kept of names that are not tried
        return wait
    for subject in sorted(subjects):
        insert_or_ignore(session, SignInFailureRow, subject=subject, failures=0, last_at=now)
    rows = _lock_failures(session, subjects)
    if wait := _wait(rows, subjects, now):
        return wait
    for row in rows:
        row.failures, row.last_at = row.failures + 1, now
    return timedelta(0)


def succeed_try(session: Session, subject: str, *others: str) -> None:
    """Forget the failures of a subject that has signed in, and that this try was counted as one of others."""
    session.execute(delete(SignInFailureRow).where(SignInFailureRow.subject == subject))
    for other in sorted(others):
        counted = update(SignInFailureRow).where(SignInFailureRow.subject == other, SignInFailureRow.failures > 0)
        session.execute(counted.values(failures=SignInFailureRow.failures - 1))


def _lock_failures(session: Session, subjects: Iterable[str]) -> Sequence[SignInFailureRow]:
    known = select(SignInFailureRow).where(SignInFailureRow.subject.in_(list(subjects)))
    ordered = known.order_by(SignInFailureRow.subject).execution_options(populate_existing=True)
    return session.scalars(ordered.with_for_update()).all()


def _wait(rows: Iterable[SignInFailureRow], subjects: dict[str, int], now: datetime) -> timedelta:
    left = [row.last_at + wait_after(row.failures, subjects[row.subject]) - now for row in rows]
    return min(max([timedelta(0), *left]), LONGEST_WAIT)
