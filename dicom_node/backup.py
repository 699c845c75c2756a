"""Backups: a snapshot of the job database, then the files that its rows refer to, and a manifest of both.

A backup is a folder of its own below the one that holds them all. It is made under a temporary name and renamed when
everything in it is synced, so that what has a name is whole. Files that the backup before holds already are linked, not
copied: each backup is whole, and costs what is new. Files are copied after the snapshot was taken; a row is only
committed when its file is there, so that what the snapshot refers to is there, but for what retention removes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from sqlalchemy.orm import Session, sessionmaker

from dicom_node.clock import Clock
from dicom_node.errors import NodeError
from dicom_node.queries import (
    Referenced,
    count_rows,
    is_removed,
    note_removed,
    referenced_files,
    snapshot_revision,
    take_snapshot,
)
from dicom_node.storage import CHUNK_BYTES, Storage, dataset_digest, sync

FORMAT = 1
MANIFEST, DATABASE, FILES = "manifest.json", "database.sqlite", "files"
SEAL = f"{MANIFEST}.sha256"
"""The digest of the manifest, as `sha256sum -c` reads it."""

UNFINISHED = ".part"
TRIES = 3
"""Of a file that is gone and comes again: an instance that retention removed may be sent anew at any time."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A file of a backup: its key, size in bytes and SHA-256, and the digest that its row has (of the dataset alone,
    where it was received)."""

    key: str
    size: int
    sha256: str
    row_sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup holds. Instants are ISO texts, UTC; what was committed before `began_at` is in it.

    `removed` are instances whose bytes retention removed meanwhile, `missing` keys that the storage did not have
    though rows refer to them, `damaged` those whose bytes were not those of their row: these are not in it.
    """

    version: str
    engine: str
    schema: str
    began_at: str
    ended_at: str
    database: Kept
    rows: Mapping[str, int]
    files: tuple[Kept, ...]
    removed: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the manifest as JSON text, a line for each file."""
        values = asdict(self)
        files = ",\n  ".join(json.dumps(one) for one in values.pop("files"))
        text = json.dumps({"format": FORMAT, **values}, indent=1, ensure_ascii=False).removesuffix("\n}")
        return f'{text},\n "files": [\n  {files}\n ]\n}}\n'

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Return the manifest that `text` came from. Raises NodeError where it is none of this version's."""
        try:
            values = json.loads(text)
            if values.pop("format") != FORMAT:
                raise NodeError("the backup is in the format of a newer version of the node: upgrade the node")
            files = tuple(Kept(**one) for one in values.pop("files"))
            for name in ("removed", "missing", "damaged"):
                values[name] = tuple(values[name])
            made = cls(**values | {"database": Kept(**values["database"]), "files": files})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise NodeError(f"the manifest of the backup cannot be read: {type(error).__name__}") from error
        for one in made.files:
            check_key(one.key)
        return made


@dataclass(slots=True)
class Copied:
    """What became of the files of a snapshot, and how many were copied rather than linked, in bytes."""

    files: dict[str, Kept] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    linked: int = 0
    copied_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """What is backed up: `url` is the database's; `version` is the node's."""

    url: str
    sessions: sessionmaker[Session]
    storage: Storage
    version: str


Previous = tuple[Path, Mapping[str, Kept]]
"""The files of the backup before: where they are, and what each is."""


def make_backup(node: Node, folder: Path, clock: Clock, *, full: bool = False) -> tuple[Path, Manifest, Copied]:
    """Make a backup in `folder`; return where it is, its manifest, and what was copied. `full`: nothing is linked.

    Raises NodeError where another backup runs, OSError where it cannot be written; then there is none.
    """
    with _alone_in(folder):
        previous = None if full else _previous(folder)
        began_at = clock()
        unfinished = folder / f"{began_at:%Y-%m-%dT%H%M%SZ}{UNFINISHED}"
        unfinished.mkdir(mode=0o700)
        try:
            manifest, copied = _fill(node, unfinished, previous, began_at, clock)
            path = _free_name(unfinished)
            unfinished.rename(path)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)  # where it was not renamed
        _sync_folder(folder)
        return path, manifest, copied


def _fill(
    node: Node, folder: Path, previous: Previous | None, began_at: datetime, clock: Clock
) -> tuple[Manifest, Copied]:
    database = folder / DATABASE
    take_snapshot(node.url, database)
    copied = _copy_files(node, referenced_files(database), folder / FILES, previous)
    if copied.removed:
        note_removed(database, copied.removed, clock())
    sync(database)
    sha256, size = digest_of(database)
    manifest = Manifest(
        version=node.version, engine=node.url.partition(":")[0].partition("+")[0], schema=snapshot_revision(database),
        began_at=began_at.isoformat(), ended_at=clock().isoformat(), database=Kept(DATABASE, size, sha256, sha256),
        rows=count_rows(database), files=tuple(copied.files[key] for key in sorted(copied.files)),
        removed=tuple(copied.removed), missing=tuple(copied.missing), damaged=tuple(copied.damaged),
    )  # fmt: skip
    _write(folder / MANIFEST, manifest.to_json())
    _write(folder / SEAL, f"{digest_of(folder / MANIFEST)[0]}  {MANIFEST}\n")
    for path in (*(folder / FILES).rglob("*"), folder / FILES, folder):
        if path.is_dir():
            _sync_folder(path)
    return manifest, copied


def _previous(folder: Path) -> Previous | None:
    """Return the files of the latest backup whose manifest is sound: a damaged one must not end all that follow."""
    for path in reversed(list_backups(folder)):
        try:
            return path / FILES, {one.key: one for one in read_manifest(path).files}
        except NodeError:
            continue
    return None


def _copy_files(node: Node, referenced: Iterable[Referenced], folder: Path, previous: Previous | None) -> Copied:
    folder.mkdir(mode=0o700)
    before, held = previous or (folder, {})
    done = Copied()
    for one in referenced:
        if one.key in done.files:
            continue
        kept = held.get(one.key)
        if kept is not None and _link(one, kept, before, folder):
            done.files[one.key] = kept
            done.linked += 1
        else:
            _copy(node, one, folder / one.key, done)
    return done


def _link(one: Referenced, kept: Kept, before: Path, folder: Path) -> bool:
    """Link a file that the backup before has with these bytes; False where it has not, or cannot be linked."""
    if kept.row_sha256 != one.sha256 or one.size not in (None, kept.size):
        return False
    target = folder / one.key
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        if (before / one.key).stat().st_size != kept.size:
            return False
        os.link(before / one.key, target)
    except OSError:  # a file system without links, or with too many to one file: it is copied
        return False
    return True


def _copy(node: Node, one: Referenced, target: Path, done: Copied) -> None:
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    stream = _open(node, one)
    if stream is None:
        removed = not one.is_result and _is_removed(node, one)
        (done.removed if removed else done.missing).append(one.sop_instance_uid if removed else one.key)
        return
    with stream, open(target, "xb", opener=_open_private) as file:
        sha256, size = copy_digesting(stream, file)
        file.flush()
        os.fsync(file.fileno())
    with target.open("rb") as file:
        row_sha256 = sha256 if one.is_result else dataset_digest(file)[0]
    if row_sha256 != one.sha256 or one.size not in (None, size):
        target.unlink()
        done.damaged.append(one.key)
        return
    done.files[one.key] = Kept(one.key, size, sha256, row_sha256)
    done.copied_bytes += size


def _open(node: Node, one: Referenced) -> BinaryIO | None:
    for _ in range(TRIES):
        try:
            return node.storage.open(one.key)
        except FileNotFoundError:
            if one.is_result or _is_removed(node, one):
                return None
    return None


def _is_removed(node: Node, one: Referenced) -> bool:
    with node.sessions.begin() as session:
        return is_removed(session, one.sop_instance_uid)


# ---- reading one -----------------------------------------------------------------------------------------------------


def list_backups(folder: Path) -> list[Path]:
    """Return the backups in a folder, the oldest first."""
    return sorted(path.parent for path in folder.glob(f"*/{MANIFEST}") if path.parent.suffix != UNFINISHED)


def latest_backup(folder: Path) -> Path | None:
    """Return the latest backup in a folder, if there is any."""
    return next(reversed(list_backups(folder)), None)


def find_backup(path: Path) -> Path:
    """Return the backup that `path` is, or the latest one in it. Raises NodeError where there is none."""
    found = path if (path / MANIFEST).is_file() else latest_backup(path)
    if found is None or found.suffix == UNFINISHED:
        raise NodeError(f"there is no backup at {path}, nor is one in it")
    return found


def remove_old(folder: Path, keep: int) -> list[Path]:
    """Remove all but the latest `keep` backups of a folder; return those that are gone. What later ones link stays."""
    with _alone_in(folder):
        old = list_backups(folder)[:-keep]
        for path in old:
            unfinished = path.with_name(path.name + UNFINISHED)  # half removed it must not look whole
            path.rename(unfinished)
            shutil.rmtree(unfinished)
    return old


def read_manifest(backup: Path) -> Manifest:
    """Return the manifest of a backup. Raises NodeError where it is not the one that was written."""
    try:
        sealed, (found, _) = (backup / SEAL).read_text().split()[0], digest_of(backup / MANIFEST)
        text = (backup / MANIFEST).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError, IndexError) as error:
        raise NodeError(f"the manifest of the backup {backup} cannot be read: {error}") from error
    if found != sealed:
        raise NodeError(f"the manifest of the backup {backup} is damaged: its digest is not the one in {SEAL}")
    return Manifest.from_json(text)


def verify_backup(backup: Path) -> Iterator[str]:
    """Yield what is wrong with a backup: every byte of it is read, and its rows are held against its files."""
    manifest = read_manifest(backup)
    database = backup / DATABASE
    if fault := find_fault(database, manifest.database):
        yield fault
        return
    known = {one.key: one for one in manifest.files}
    excused = {*manifest.missing, *manifest.damaged}
    yield from (f"{key}: the storage did not have it when the backup was made" for key in manifest.missing)
    yield from (f"{key}: it was damaged in the storage when the backup was made" for key in manifest.damaged)
    for one in referenced_files(database):
        kept = known.get(one.key)
        if kept is None and one.key not in excused:
            yield f"{one.key}: a row refers to it, but the manifest does not list it"
        elif kept is not None and kept.row_sha256 != one.sha256:
            yield f"{one.key}: it is listed with other bytes than its row has"
    for one_kept in manifest.files:
        if fault := find_fault(backup / FILES / one_kept.key, one_kept):
            yield fault


def find_fault(path: Path, kept: Kept) -> str:
    """Return what is wrong with a file of a backup, or an empty text."""
    try:
        found = digest_of(path)
    except OSError as error:
        return f"{kept.key}: cannot be read ({error.strerror})"
    return "" if found == (kept.sha256, kept.size) else f"{kept.key}: damaged, its bytes are not those of the manifest"


def check_key(key: str) -> None:
    """Raise NodeError unless `key` is a path below a folder: a backup may come from anywhere."""
    path = PurePosixPath(key)
    if not key or path.is_absolute() or ".." in path.parts or "\\" in key or "\0" in key:
        raise NodeError(f"the manifest of the backup names the file {key!r}, which lies outside of it")


def digest_of(path: Path) -> tuple[str, int]:
    """Return the SHA-256 of a file and its size in bytes. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest(), os.fstat(file.fileno()).st_size


def copy_digesting(source: BinaryIO, target: BinaryIO | None = None) -> tuple[str, int]:
    """Read a stream to its end, into `target` if there is one; return the SHA-256 of what went by, and its size."""
    digest, size = hashlib.sha256(), 0
    while chunk := source.read(CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
        if target is not None:
            target.write(chunk)
    return digest.hexdigest(), size


# ---- folders ---------------------------------------------------------------------------------------------------------


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Keep other backups out of a folder, and remove what one left that was killed. Raises NodeError if one runs."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(folder / ".lock", "ab", opener=_open_private) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NodeError(f"another backup is being made in {folder}") from None
        for path in folder.glob(f"*{UNFINISHED}"):
            shutil.rmtree(path)
        yield


def _free_name(unfinished: Path) -> Path:
    """Return a name for a backup that no other has, in the order of time."""
    path = unfinished.with_suffix("")
    number = 1
    while path.exists():
        number += 1
        path = unfinished.with_name(f"{unfinished.stem}-{number:03}")
    return path


def _write(path: Path, text: str) -> None:
    with open(path, "x", encoding="utf-8", opener=_open_private) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
