"""The commands `knowmvg backup` and `knowmvg restore`: a copy of rows and files that a node can be made of again."""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from dicom_node.cli.options import (
    ConfigOption,
    JsonOption,
    describe_database_error,
    keep_private,
    open_sessions,
)
from dicom_node.cli.terminal import print_json
from dicom_node.clock import utc_now
from dicom_node.config import Settings, load_settings
from dicom_node.errors import NodeError

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from dicom_node.backup import Manifest

MAKE = "make"
SHOWN = 20
"""So many files are named that are not in a backup; the manifest names all."""


class MakesByDefault(TyperGroup):
    """`backup DIR` is `backup make DIR`; a folder called as a command is given as ./verify."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command in front that is meant."""
        if args and args[0] not in (*self.commands, "-h", "--help"):
            args = [MAKE, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=MakesByDefault,
    help="Back up database and files while the node runs: `knowmvg backup DIR`.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="The folder that holds the backups.")]
BackupArgument = Annotated[
    Path, typer.Argument(exists=True, file_okay=False, metavar="DIR", help="A backup, or the folder: its latest one.")
]


@app.command(MAKE)
def make(
    folder: FolderArgument,
    full: Annotated[bool, typer.Option("--full", help="Copy every file, also those the last backup has.")] = False,
    keep: Annotated[
        int | None, typer.Option("--keep", min=1, metavar="N", help="Then remove all but the latest N backups.")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a backup in a folder of its own below DIR.

    What was acknowledged before it began is in it. Exit status 1 if files are missing or damaged in the storage.
    """
    keep_private()
    settings = load_settings(config)
    sessions = open_sessions(settings)
    from dicom_node.backup import Node, make_backup, remove_old
    from dicom_node.objects import open_storage

    node = Node(settings.database.url, sessions, open_storage(settings), node_version())
    with plain_errors(settings), _audited_failure(sessions, folder):
        path, manifest, copied = make_backup(node, folder, utc_now, full=full)
        whole = not (manifest.missing or manifest.damaged)
        with sessions.begin() as session:
            _note(session, "backup made", f"{path}: {len(manifest.files)} files", success=whole)
        old = remove_old(folder, keep) if keep is not None and whole else []
    if as_json:
        print_json(_summary(path, manifest) | {"linked": copied.linked, "copied_bytes": copied.copied_bytes})
    else:
        typer.echo(
            f"{path}: schema {manifest.schema}, {sum(manifest.rows.values())} rows, {len(manifest.files)} files "
            f"({copied.linked} linked, {len(manifest.files) - copied.linked} copied, {copied.copied_bytes} bytes)"
        )
        for one in old:
            typer.echo(f"removed {one}")
    _tell_lacking(manifest)
    if not whole:
        raise typer.Exit(1)


@app.command()
def verify(backup: BackupArgument, as_json: JsonOption = False) -> None:
    """Read every byte of a backup, and hold its rows against its files.

    Exit status 1 if anything is wrong. Neither database nor storage is needed.
    """
    from dicom_node.backup import find_backup, read_manifest, verify_backup

    with plain_file_errors():
        path = find_backup(backup)
        manifest = read_manifest(path)
        faults = list(verify_backup(path))
    if as_json:
        print_json({"ok": not faults, **_summary(path, manifest), "faults": faults})
    else:
        for fault in faults:
            typer.echo(fault)
        typer.echo(f"{path}: {len(faults)} fault(s), {len(manifest.files)} files, begun {manifest.began_at}")
    if faults:
        raise typer.Exit(1)


@app.command("list")
def list_all(folder: BackupArgument, as_json: JsonOption = False) -> None:
    """List the backups in DIR, the oldest first."""
    from dicom_node.backup import list_backups, read_manifest

    found = []
    for path in list_backups(folder):
        try:
            found.append(_summary(path, read_manifest(path)))
        except NodeError as error:
            typer.echo(f"knowmvg: {error}", err=True)
    if as_json:
        print_json(found)
        return
    for one in found:
        typer.echo(f"{one['path']}: begun {one['began_at']}, schema {one['schema']}, {one['files']} files")


def restore(
    backup: BackupArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Replace what is there; restore what is whole of a damaged backup.")
    ] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Restore a backup into the empty database and storage of the configuration.

    The node must not run. A backup of an older version is upgraded.
    """
    keep_private()
    settings = load_settings(config)
    from dicom_node.backup import find_backup
    from dicom_node.objects import open_storage
    from dicom_node.restoring import Place, restore_backup
    from workers.supervisor import NodeLock

    def note(session: Session, manifest: Manifest) -> None:
        _note(session, "backup restored", f"{path}, begun {manifest.began_at}")

    path = find_backup(backup)
    with plain_errors(settings):
        lock = NodeLock(settings.node.data_dir)
        try:
            place = Place(settings.database.url, open_storage(settings), _workspace(settings))
            manifest, done = restore_backup(path, place, utc_now(), note, force=force)
        finally:
            lock.release()
    if as_json:
        counts = {"put": done.put, "present": done.present, "faults": done.faults}
        print_json(_summary(path, manifest) | counts)
    else:
        typer.echo(
            f"{path} is restored: {sum(manifest.rows.values())} rows, {done.put} files put, "
            f"{done.present} there already"
        )
        for fault in done.faults:
            typer.echo(f"not restored: {fault}", err=True)
    _tell_lacking(manifest)
    typer.echo(f"Of what came after {manifest.began_at} not all is in it: have the senders send it again.", err=True)
    if done.faults:
        raise typer.Exit(1)


def node_version() -> str:
    """Return the version of the node that is installed."""
    try:
        return version("knowmvg-node")
    except PackageNotFoundError:  # run from a checkout
        return "unknown"


@contextmanager
def plain_file_errors() -> Iterator[None]:
    """Turn what a disk raises into NodeError, which `main` prints as one sentence."""
    try:
        yield
    except OSError as error:
        raise NodeError(f"{error.filename or 'the backup'}: {error.strerror or error}") from error


@contextmanager
def plain_errors(settings: Settings) -> Iterator[None]:
    """Turn what database and disk raise into NodeError."""
    import sqlite3

    from sqlalchemy.exc import DBAPIError

    from dicom_node.queries import explain

    try:
        with plain_file_errors():
            yield
    except DBAPIError as error:
        raise NodeError(describe_database_error(settings, NodeError(explain(error)))) from error
    except sqlite3.Error as error:
        raise NodeError(describe_database_error(settings, error)) from error


def _workspace(settings: Settings) -> Path:
    """Return where a snapshot is made ready: beside a SQLite database, so that it can be moved there in one step."""
    path = settings.database.url.removeprefix("sqlite:///")
    folder = Path(path).parent if path != settings.database.url else settings.node.data_dir
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def _audited_failure(sessions: Any, folder: Path) -> Iterator[None]:
    """Have the audit trail say that a backup could not be made, where it can still say anything."""
    from dicom_node.queries import DATABASE_ERRORS

    try:
        yield
    except (NodeError, OSError) as error:
        try:
            with sessions.begin() as session:
                _note(session, "backup made", f"{folder}: {error}", success=False)
        except DATABASE_ERRORS:
            typer.echo("knowmvg: the failure could not be audited", err=True)
        raise


def _note(session: Session, kind: Any, reason: str, *, success: bool = True) -> None:
    from dicom_node.audit import AuditEvent
    from dicom_node.queries import note_audit

    note_audit(session, AuditEvent(kind, success=success, actor=getpass.getuser(), reason=reason), "cli", utc_now())


def _summary(path: Path, manifest: Manifest) -> dict[str, Any]:
    values = asdict(manifest)
    return {"path": str(path), **values, "database": manifest.database.sha256, "files": len(manifest.files)}


def _tell_lacking(manifest: Manifest) -> None:
    """Name what rows refer to and the backup does not hold."""
    for what, names in (
        ("removed by the retention rule meanwhile", manifest.removed),
        ("missing in the storage", manifest.missing),
        ("damaged in the storage", manifest.damaged),
    ):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            typer.echo(f"{len(names)} not in the backup, {what}: {', '.join(names[:SHOWN])}{more}", err=True)


def add_commands(root: typer.Typer) -> None:
    """Add the commands of this module to `root`."""
    root.add_typer(app, name="backup")
    root.command()(restore)
