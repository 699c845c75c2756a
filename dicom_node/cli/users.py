"""`knowmvg users` and `knowmvg tokens`: who may use the console, and as what. Every change is audited."""

from __future__ import annotations

import getpass
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import typer

from dicom_node.cli.jobs import ListByDefault
from dicom_node.cli.options import ConfigOption, JsonOption, open_sessions
from dicom_node.cli.terminal import print_json, print_table, printable_instant
from dicom_node.clock import utc_now
from dicom_node.config import Role, Settings, load_settings
from dicom_node.config.values import check_name
from dicom_node.errors import NodeError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

app = typer.Typer(
    cls=ListByDefault, help="Who may sign in to the console: list (default), add, role, password, …",
    rich_markup_mode=None,
)  # fmt: skip
tokens_app = typer.Typer(
    cls=ListByDefault, help="Tokens of programs that use the console's JSON: list (default), add, revoke.",
    rich_markup_mode=None,
)  # fmt: skip


def parse_role(value: str) -> str:
    """Refuse what is no role."""
    if value in get_args(Role):
        return value
    raise typer.BadParameter(f"{value!r} is not one of {', '.join(get_args(Role))}")


def parse_name(value: str) -> str:
    """Refuse what is no name."""
    try:
        return check_name(value)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


NameArgument = Annotated[
    str, typer.Argument(metavar="NAME", callback=parse_name, help="Letters, digits, dots, dashes.")
]
RoleOption = Annotated[
    str, typer.Option("--role", metavar="ROLE", callback=parse_role, help="viewer, operator or admin.")
]
PasswordFileOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Read the password from there, in place of asking for it; - is stdin."),
]


@app.command("list")
def list_command(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the users of the job database, and those of the configuration."""
    settings = load_settings(config)
    from dicom_node.queries import list_users

    with open_sessions(settings)() as session:
        users = [user.to_json() | {"origin": "table"} for user in list_users(session)]
    users += [
        {"name": name, "role": user.role, "disabled_at": None, "created_at": None, "updated_at": None, "origin": "file"}
        for name, user in sorted(settings.console.users.items())
    ]
    if as_json:
        print_json(users)
    elif users:
        rows = [[u["name"], u["role"], _when(u["disabled_at"]), _when(u["updated_at"]), u["origin"]] for u in users]
        print_table(("NAME", "ROLE", "DISABLED (UTC)", "CHANGED (UTC)", "FROM"), rows)
    else:
        typer.echo("No users; `knowmvg users add NAME --role admin` makes the first one.", err=True)


@app.command("add")
def add_command(
    name: NameArgument, role: RoleOption, config: ConfigOption = None, password_file: PasswordFileOption = None
) -> None:
    """Let somebody sign in with a password of at least 12 characters, which is asked for twice."""
    settings = load_settings(config)
    from dicom_node.accounts import hash_password
    from dicom_node.queries import add_user

    if name in settings.console.users:
        raise NodeError(f"{name} is a user of the configuration (console.users), which would hide this one")
    hashed = hash_password(ask_password(password_file))
    _change(
        settings, lambda session, now: add_user(session, name, cast(Role, role), hashed, now), f"added {name} as {role}"
    )
    typer.echo(f"{name} may sign in as {role}.")


@app.command("role")
def role_command(
    name: NameArgument,
    role: Annotated[str, typer.Argument(metavar="ROLE", callback=parse_role, help="viewer, operator or admin.")],
    config: ConfigOption = None,
) -> None:
    """Give a user another role; it counts from their next request on."""
    settings = load_settings(config)
    from dicom_node.queries import change_role

    _change(settings, lambda session, now: change_role(session, name, cast(Role, role), now), f"made {name} {role}")
    typer.echo(f"{name} is {role} now.")


@app.command("password")
def password_command(name: NameArgument, config: ConfigOption = None, password_file: PasswordFileOption = None) -> None:
    """Give a user another password, and end what is signed in with the old one."""
    settings = load_settings(config)
    from dicom_node.accounts import hash_password
    from dicom_node.queries import change_password

    hashed = hash_password(ask_password(password_file))
    _change(settings, lambda session, now: change_password(session, name, hashed, now), f"new password of {name}")
    typer.echo(f"{name} has a new password.")


@app.command("disable")
def disable_command(name: NameArgument, config: ConfigOption = None) -> None:
    """Let a user in no longer, and end what is signed in."""
    settings = load_settings(config)
    from dicom_node.queries import change_disabled

    _change(settings, lambda session, now: change_disabled(session, name, now, disabled=True), f"disabled {name}")
    typer.echo(f"{name} may no longer sign in; `knowmvg users enable {name}` lets them in again.")


@app.command("enable")
def enable_command(name: NameArgument, config: ConfigOption = None) -> None:
    """Let a user in again."""
    settings = load_settings(config)
    from dicom_node.queries import change_disabled

    _change(settings, lambda session, now: change_disabled(session, name, now, disabled=False), f"enabled {name}")
    typer.echo(f"{name} may sign in again.")


@app.command("remove")
def remove_command(name: NameArgument, config: ConfigOption = None) -> None:
    """Remove a user, and end what is signed in. What they did stays in the audit trail."""
    settings = load_settings(config)
    from dicom_node.queries import remove_user

    _change(settings, lambda session, now: remove_user(session, name), f"removed {name}")
    typer.echo(f"{name} is removed.")


@app.command("sign-out")
def sign_out_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As the console shows it, of whatever origin.")],
    config: ConfigOption = None,
) -> None:
    """End what somebody has signed in, also by the configuration or the OpenID provider."""
    settings = load_settings(config)
    from dicom_node.queries import end_every_sign_in

    ended: list[int] = []
    _change(settings, lambda session, now: ended.append(end_every_sign_in(session, name)), f"signed {name} out")
    typer.echo(f"{ended[0]} sign-ins of {name} ended.")


@app.command("hash")
def hash_command(password_file: PasswordFileOption = None) -> None:
    """Print the hash of a password, for console.users of the configuration."""
    from dicom_node.accounts import hash_password

    typer.echo(hash_password(ask_password(password_file)))


@tokens_app.command("list")
def list_tokens_command(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List tokens; what they read themselves is not kept."""
    settings = load_settings(config)
    from dicom_node.queries import list_tokens

    with open_sessions(settings)() as session:
        tokens = [token.to_json() for token in list_tokens(session)]
    if as_json:
        print_json(tokens)
    elif tokens:
        rows = [[t["name"], t["role"], _when(t["created_at"]), _when(t["expires_at"])] for t in tokens]
        print_table(("NAME", "ROLE", "MADE (UTC)", "EXPIRES (UTC)"), rows)
    else:
        typer.echo("No tokens.", err=True)


@tokens_app.command("add")
def add_token_command(
    name: NameArgument,
    role: RoleOption,
    config: ConfigOption = None,
    days: Annotated[
        int | None, typer.Option(min=1, max=3650, help="Days until it expires; without, it never does.")
    ] = None,
) -> None:
    """Make a token for a program, and print it: this once."""
    settings = load_settings(config)
    from dicom_node.accounts import TOKEN_PREFIX, digest, make_token
    from dicom_node.queries import ApiToken, add_token

    token, now = make_token(TOKEN_PREFIX), utc_now()
    made = ApiToken(name, cast(Role, role), now, now + timedelta(days=days) if days else None)
    _change(settings, lambda session, now: add_token(session, made, digest(token)), f"added token {name} as {role}")
    typer.echo(token)


@tokens_app.command("revoke")
def revoke_command(name: NameArgument, config: ConfigOption = None) -> None:
    """End a token at once."""
    settings = load_settings(config)
    from dicom_node.queries import revoke_token

    _change(settings, lambda session, now: revoke_token(session, name), f"revoked token {name}")
    typer.echo(f"token {name} is revoked.")


def ask_password(path: Path | None) -> str:
    """Return a new password from a file's first line, or from the terminal, asked for twice. Raises NodeError."""
    from dicom_node.accounts import check_password

    if path is not None:
        try:
            text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise NodeError(f"the password file {path} cannot be read: {error}") from error
        return check_password(text.partition("\n")[0].rstrip("\r"))
    if not sys.stdin.isatty():
        raise NodeError("a password is asked for at a terminal; without one, name a file: --password-file FILE")
    password = check_password(getpass.getpass("New password: "))
    if getpass.getpass("Again: ") != password:
        raise NodeError("the two are not the same; nothing was changed")
    return password


def _change(settings: Settings, change: Callable[[Session, datetime], None], reason: str) -> None:
    """Change accounts in one transaction with its audit event."""
    from dicom_node.audit import AuditEvent
    from dicom_node.queries import note_audit

    with open_sessions(settings).begin() as session:
        change(session, utc_now())
        note_audit(session, AuditEvent("account changed", actor=getpass.getuser(), reason=reason), "cli", utc_now())


def _when(instant: str | None) -> str | None:
    return printable_instant(instant) if instant else None
