"""Restoring a backup into an empty database and storage: the files first, then all rows in one step.

A restore that was cut off is simply begun again: files that are there already are left as they are, and the database
is filled by its last step alone. Until then nobody can take the node for one that works.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from sqlalchemy.orm import Session

from dicom_node.backup import DATABASE, FILES, Kept, Manifest, copy_digesting, find_fault, read_manifest
from dicom_node.errors import NodeError
from dicom_node.queries import SCHEMA_REVISION, filled_tables, load_snapshot, prepare_snapshot
from dicom_node.storage import Storage

SHOWN = 5


@dataclass(frozen=True, slots=True)
class Place:
    """Where a backup is restored to. `workspace` is a folder for the snapshot, on the disk of a SQLite database."""

    url: str
    storage: Storage
    workspace: Path


@dataclass(slots=True)
class Restored:
    """What a restore did: files put, files that were there already, and what is wrong with others of the backup."""

    put: int = 0
    present: int = 0
    faults: list[str] = field(default_factory=list)


def restore_backup(
    backup: Path, place: Place, now: datetime, note: Callable[[Session, Manifest], None], *, force: bool = False
) -> tuple[Manifest, Restored]:
    """Restore a backup; `note` adds to the rows what is to be kept of it. Return its manifest, and what was done.

    Raises NodeError where the backup is of a newer version, or damaged, or where something is in the place already;
    with `force` what is there is replaced, and what is whole is restored.
    """
    manifest = read_manifest(backup)
    if manifest.schema > SCHEMA_REVISION:
        raise NodeError(
            f"the backup has the schema {manifest.schema} of a newer version of the node ({manifest.version}) than "
            f"this one ({SCHEMA_REVISION}): upgrade the node"
        )
    if fault := find_fault(backup / DATABASE, manifest.database):
        raise NodeError(f"the backup {backup} cannot be restored: {fault}")
    if not force:
        _refuse_filled(place)
    snapshot = place.workspace / f"{DATABASE}.restoring"
    _remove(snapshot)
    try:
        shutil.copyfile(backup / DATABASE, snapshot)
        snapshot.chmod(0o600)
        prepare_snapshot(snapshot, now, lambda session: note(session, manifest))
        restored = _restore_files(backup / FILES, manifest, place.storage, force=force)
        if restored.faults and not force:
            shown = "; ".join(restored.faults[:SHOWN])
            raise NodeError(
                f"{len(restored.faults)} file(s) of the backup are damaged or missing: {shown}. The database is not "
                "restored; --force restores what is whole, and rows of the others, whose instances must be sent again"
            )
        load_snapshot(snapshot, place.url)
    finally:
        _remove(snapshot)
    return manifest, restored


def _refuse_filled(place: Place) -> None:
    path = place.url.removeprefix("sqlite:///")
    if path != place.url and not Path(path).exists():
        return
    if filled := filled_tables(place.url):
        rows = ", ".join(f"{name} ({count})" for name, count in filled.items())
        raise NodeError(
            f"the job database is not empty: {rows}. A backup replaces all of it: name an empty one, or say --force"
        )


def _restore_files(folder: Path, manifest: Manifest, storage: Storage, *, force: bool) -> Restored:
    done = Restored()
    for kept in manifest.files:
        if storage.exists(kept.key):
            if _is_same(storage, kept):
                done.present += 1
                continue
            if not force:
                raise NodeError(
                    f"the storage has other bytes at {kept.key} than the backup: name an empty storage, or say --force"
                )
        _restore_file(folder / kept.key, kept, storage, done)
    return done


def _is_same(storage: Storage, kept: Kept) -> bool:
    with storage.open(kept.key) as stream:
        return copy_digesting(stream) == (kept.sha256, kept.size)


def _restore_file(path: Path, kept: Kept, storage: Storage, done: Restored) -> None:
    with storage.receive() as file:
        incoming = Path(file.name)
        try:
            with path.open("rb") as stream:
                fault = "" if copy_digesting(stream, file) == (kept.sha256, kept.size) else "damaged"
        except FileNotFoundError:
            fault = "missing"
    if fault:
        incoming.unlink()
        done.faults.append(f"{kept.key} ({fault})")
        return
    storage.put(kept.key, incoming)
    done.put += 1


def _remove(snapshot: Path) -> None:
    for ending in ("", "-wal", "-shm", "-journal"):
        snapshot.with_name(snapshot.name + ending).unlink(missing_ok=True)
