"""Where bytes are kept: what is put under a key is either there whole and synced, or not there at all.

New bytes are written to `incoming`, synced, and renamed; what a crash leaves there is swept at a later start: its name
tells the host and the process that wrote it. Keys are relative paths made by `instance_key` and `result_key`, the only
two places that name files.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import secrets
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

INCOMING = "incoming"
CHUNK_BYTES = 1024**2
_OF_STUDIES = re.compile("[0-9a-f]{2}")
HEAD_BYTES = 144
"""Preamble, prefix, and the element that gives the length of the rest of the File Meta Information (PS3.10 7.1)."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file in storage: its key, the SHA-256 of its content, its size in bytes."""

    key: str
    sha256: str
    size: int


class Storage(Protocol):
    """What keeps the bytes; safe to use from many threads and processes. Anything may raise OSError."""

    def receive(self) -> BinaryIO:
        """Return a new file on this host's disk for what comes; the caller files or removes it (`name`)."""

    def file(self, key: str, path: Path) -> None:
        """Move such a file, whose content is synced already, under `key`, durably."""

    def file_all(self, files: Sequence[tuple[str, Path]]) -> Sequence[OSError | None]:
        """Do that with several at once, which costs less; return what each of them met with. Raises nothing."""

    def put(self, key: str, source: Path | bytes) -> StoredFile:
        """File bytes, or such a file, under `key`, durably. What is there already is replaced, in one step."""

    def open(self, key: str) -> BinaryIO:
        """Open `key` for reading. Raises FileNotFoundError where there is none."""

    def exists(self, key: str) -> bool:
        """Tell whether there is something under `key`."""

    def remove(self, key: str) -> None:
        """Remove `key`, if it is there."""

    def free_bytes(self) -> int:
        """Return how many bytes can still be received."""

    def sweep_incoming(self, older_than: float) -> int:
        """Remove what was left unfinished; see `FileStorage.sweep_incoming`."""

    def find_fault(self) -> str:
        """Return why nothing that is kept can be reached now, and what to do; empty where it can."""


def instance_key(study_instance_uid: str, sop_instance_uid: str, sha256: str) -> str:
    """Return the key of a received instance. Other bytes under the same UID get another key; nothing is overwritten."""
    return f"{_beginning(study_instance_uid)}-{_name(sop_instance_uid)}.{sha256[:16]}.dcm"


def result_key(study_instance_uid: str, revision: int, sop_instance_uid: str) -> str:
    """Return the key of a result of a study's revision."""
    return f"{_beginning(study_instance_uid)}-result-{revision}-{_name(sop_instance_uid)}.dcm"


def _beginning(study_instance_uid: str) -> str:
    """Return what the keys of a study begin with. Few folders for all studies: a new one costs two syncs more."""
    name = _name(study_instance_uid)
    return f"{name[:2]}/{name}"


def _name(uid: str) -> str:
    """Return the name of what has a UID: nothing that was received is ever part of a path. The rows tell which."""
    return hashlib.sha256(uid.encode()).hexdigest()[:32]


class FileStorage:
    """A folder of files on one file system; safe to use from many threads and processes."""

    def __init__(self, root: Path) -> None:
        """`root` is made when the first file is put."""
        self.root = root
        self.incoming = root / INCOMING
        self._root, self._incoming = str(root), str(self.incoming)  # a path costs more than a file is written in
        self._folders: set[str] = set()
        self._folders_lock = threading.Lock()

    def receive(self) -> BinaryIO:
        """Return a new file in `incoming`, open for writing and reading; the caller puts or removes it (`name`)."""
        self._make_folder(self._incoming)
        name = f"{_host()}-{os.getpid()}-{secrets.token_hex(8)}.part"
        return open(f"{self._incoming}/{name}", "x+b", opener=_open_private)

    def put(self, key: str, source: Path | bytes) -> StoredFile:
        """File `source` under `key`, durably: bytes are written, a path (in `incoming`) is moved. Raises OSError.

        What is there already under `key` is replaced, in one step.
        """
        if isinstance(source, Path):
            return self._put(key, source)
        with self.receive() as file:
            path = Path(file.name)
        try:
            path.write_bytes(source)
            return self._put(key, path)
        finally:
            path.unlink(missing_ok=True)  # of a disk that is full; what was moved away is there no more

    def _put(self, key: str, path: Path) -> StoredFile:
        sha256, size = sync_and_digest(path)
        self.file(key, path)
        return StoredFile(key, sha256, size)

    def file(self, key: str, path: Path) -> None:
        """Move `path`, whose content is synced already, under `key`, durably."""
        for fault in self.file_all([(key, path)]):
            if fault is not None:
                raise fault

    def file_all(self, files: Sequence[tuple[str, Path]]) -> Sequence[OSError | None]:
        """Move such files under their keys; each folder is synced once. Returns what each of them met with."""
        faults = [fault_of(self._move, key, path) for key, path in files]
        unsynced = {folder: fault_of(_sync_folder, folder) for folder in {self._folder(key) for key, _ in files}}
        return [fault or unsynced[self._folder(key)] for (key, _), fault in zip(files, faults, strict=True)]

    def _move(self, key: str, path: Path) -> None:
        self._make_folder(self._folder(key))
        os.replace(path, f"{self._root}/{key}")  # noqa: PTH105 - see `_root`

    def _folder(self, key: str) -> str:
        return f"{self._root}/{key.rpartition('/')[0]}"

    def path(self, key: str) -> Path:
        """Return where `key` is."""
        return self.root / key

    def open(self, key: str) -> BinaryIO:
        """Open the file `key` for reading."""
        return self.path(key).open("rb")

    def exists(self, key: str) -> bool:
        """Tell whether there is a file `key`."""
        return self.path(key).is_file()

    def remove(self, key: str) -> None:
        """Remove the file `key`, if it is there."""
        self.path(key).unlink(missing_ok=True)

    def find_fault(self) -> str:
        """Return that the folder is away, or an empty text."""
        return "" if self.root.is_dir() else f"the storage {self.root} is away: mount it again"

    def free_bytes(self) -> int:
        """Return the free space of the file system, in bytes."""
        self._make_folder(self._incoming)
        return shutil.disk_usage(self.incoming).free

    def sweep_incoming(self, older_than: float) -> int:
        """Remove what was left in `incoming` and return how many files that were; before this process receives any.

        That is what processes of this host left that are gone, and anything that was not written to after `older_than`
        (seconds of the epoch, as the file system's): other hosts may share the folder.
        """
        removed = 0
        for path in self.incoming.glob("*.part"):
            try:
                if _is_left(path.name) or path.stat().st_mtime < older_than:
                    path.unlink()
                    removed += 1
            except FileNotFoundError:  # put or removed by its owner in the meantime
                continue
        return removed

    def _make_folder(self, name: str) -> None:
        """Make a folder and those above it, durably: on return its entry is synced, whichever thread made it."""
        if name in self._folders and os.path.isdir(name):  # noqa: PTH112 - as above
            return
        with self._folders_lock:
            if name in self._folders and os.path.isdir(name):  # noqa: PTH112
                return
            folder = Path(name)
            missing = [folder, *folder.parents][: folder.parents.index(self.root.parent) + 1]
            for part in reversed(missing):
                made = self._siblings(part)
                for one in made:
                    one.mkdir(mode=0o700, parents=True, exist_ok=True)
                _sync_folder(str(part.parent))
            self._folders.update(map(str, made))

    def _siblings(self, folder: Path) -> list[Path]:
        """Return the folders that are made with `folder`: those of all studies at once, for one sync instead of 256."""
        if folder.parent != self.root or not _OF_STUDIES.fullmatch(folder.name):
            return [folder]
        return [self.root / f"{number:02x}" for number in range(256)]


def fault_of(act: Callable[..., None], *arguments: Any) -> OSError | None:
    """Return the OSError that an act ends in."""
    try:
        act(*arguments)
    except OSError as error:
        return error
    return None


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@functools.cache
def _host() -> str:
    return _name(os.uname().nodename)[:12]


def _is_left(name: str) -> bool:
    """Tell whether the process of this host that made an unfinished file is gone."""
    host, _, rest = name.partition("-")
    number = rest.partition("-")[0]
    if host != _host() or not number.isdecimal():
        return False
    if int(number) == os.getpid():  # an earlier one of the same number: in a container it is always the same
        return True
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def sync_and_digest(path: Path) -> tuple[str, int]:
    """Sync the content of `path` to disk; return its SHA-256 and its size in bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        os.fsync(file.fileno())
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
        return digest.hexdigest(), file.tell()


def dataset_digest(file: BinaryIO) -> tuple[str, int]:
    """Return the SHA-256 of the dataset of a DICOM file, without its File Meta Information, and the size of the file.

    Raises OSError; ValueError never: what is no DICOM file has the digest of all its bytes.
    """
    digest = hashlib.sha256()
    head = file.read(HEAD_BYTES)
    is_dicom = head[128:132] == b"DICM" and head[132:138] == b"\x02\x00\x00\x00UL"
    file.seek(HEAD_BYTES + int.from_bytes(head[140:144], "little") if is_dicom else 0)
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest(), file.seek(0, os.SEEK_END)


def sync(path: Path) -> None:
    """Sync the content of `path` to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
