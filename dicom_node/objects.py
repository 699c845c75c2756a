"""Instances in a bucket of an object store that speaks S3; on their way there they are files on this host.

A PUT that is answered is durable, as far as the store promises that; it carries the SHA-256 of what it brings, which
the store compares. There are no renames and no locks: keys derive from what they hold, so that two who put the same key
put the same bytes. What the store says of its troubles may hold keys and addresses, nothing of a patient.
"""

from __future__ import annotations

import errno
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import yaml

from dicom_node.config import Settings
from dicom_node.errors import NodeError
from dicom_node.storage import FileStorage, Storage, StoredFile, fault_of, sync_and_digest

if TYPE_CHECKING:
    from obstore.store import S3Store

PART_BYTES = 8 * 1024**2
PARTS_AT_ONCE = 2
"""Larger objects go up in parts, so many at a time: what one instance holds in memory stays below 25 MB."""

PUTS_AT_ONCE = 16
"""Of what is filed together, which is small."""

READ_BYTES = 1024**2

CLIENT: dict[str, Any] = {"connect_timeout": "5s", "timeout": "20s"}
RETRIES: dict[str, Any] = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=15),
    "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2.0},
}
"""A store that is away is noticed within a second, one that hangs within 20 s (a part of 8 MB must pass in that time),
before a sender's patience ends: it is told to try again later (0xA700)."""


NO_RETRIES = {**RETRIES, "max_retries": 0}
LOOK_CLIENT = {**CLIENT, "timeout": "4s", "connect_timeout": "2s"}
"""A look whether the store is there is quick."""

LOOK_S = 10.0
"""So long after a look that found all well there is no other one, unless something has failed since: each costs."""


class StoreAwayError(OSError):
    """The object store does not answer, or refuses; `strerror` says why."""


class ObjectStorage:
    """A bucket; implements `dicom_node.storage.Storage`. `spool` holds what comes until it is there."""

    def __init__(self, store: S3Store, looking: S3Store, prefix: str, spool: FileStorage) -> None:
        """`looking` is the same bucket, asked quickly or not at all."""
        self._store, self._looking, self._prefix, self._spool = store, looking, prefix, spool
        self._well_until = 0.0

    def receive(self) -> BinaryIO:
        """Return a new file in the spool; the caller files or removes it (`name`)."""
        return self._spool.receive()

    def file(self, key: str, path: Path) -> None:
        """Put a file of the spool under `key`; it is removed when the store has answered. Raises OSError."""
        self._put(key, path)
        path.unlink(missing_ok=True)

    def file_all(self, files: Sequence[tuple[str, Path]]) -> Sequence[OSError | None]:
        """Put several at once: each waits for the store. Returns what each of them met with."""
        if len(files) == 1:
            return [fault_of(self.file, *files[0])]
        with ThreadPoolExecutor(min(len(files), PUTS_AT_ONCE)) as puts:
            return list(puts.map(partial(fault_of, self.file), *zip(*files, strict=True)))

    def put(self, key: str, source: Path | bytes) -> StoredFile:
        """Put `source` under `key`. Raises OSError."""
        if isinstance(source, bytes):
            with self.receive() as file:
                path = Path(file.name)
            try:
                path.write_bytes(source)
                return self.put(key, path)
            finally:
                path.unlink(missing_ok=True)
        sha256, size = sync_and_digest(source)
        self.file(key, source)
        return StoredFile(key, sha256, size)

    def open(self, key: str) -> BinaryIO:
        """Return a copy of `key` on this host's disk, which is gone when it is closed. Raises OSError."""
        import obstore

        self._spool.free_bytes()  # makes the folder
        with ExitStack() as stack:
            file: Any = stack.enter_context(tempfile.TemporaryFile(dir=self._spool.incoming))
            with self._told():
                found = obstore.get(self._store, self._name(key))
                expected = found.meta["size"]
                for chunk in found.stream(min_chunk_size=READ_BYTES):
                    file.write(chunk)
            if file.tell() != expected:
                raise StoreAwayError(errno.EIO, f"the object store gave {file.tell()} of {expected} bytes")
            file.seek(0)
            stack.pop_all()
        return file  # type: ignore[no-any-return]

    def exists(self, key: str) -> bool:
        """Tell whether there is something under `key`. Raises OSError where the store does not say."""
        import obstore

        try:
            with self._told():
                obstore.head(self._store, self._name(key))
        except FileNotFoundError:
            self._well_until = 0.0  # or the bucket is: `find_fault` looks anew
            return False
        return True

    def remove(self, key: str) -> None:
        """Remove `key`, if it is there. Raises OSError."""
        import obstore

        try:
            with self._told():
                obstore.delete(self._store, self._name(key))
        except FileNotFoundError:
            return

    def free_bytes(self) -> int:
        """Return the free space of the spool, in bytes: a bucket has no end."""
        return self._spool.free_bytes()

    def sweep_incoming(self, older_than: float) -> int:
        """Remove what was left in the spool; its senders were not told that it is kept."""
        return self._spool.sweep_incoming(older_than)

    def find_fault(self) -> str:
        """Return why the bucket cannot be reached, or an empty text."""
        import obstore

        if time.monotonic() < self._well_until:
            return ""
        try:
            with self._told():
                obstore.list_with_delimiter(self._looking, self._name("-"))
        except OSError as error:
            return f"the bucket cannot be used ({error.strerror}): see storage.url, endpoint and credentials"
        self._well_until = time.monotonic() + LOOK_S
        return ""

    def try_out(self, name: str) -> str:
        """Put, read and remove a small object of this name; return what went wrong, or an empty text."""
        try:
            self.put(name, b"a look by knowmvg check")
            try:
                with self.open(name) as file:
                    same = file.read() == b"a look by knowmvg check"
            finally:
                self.remove(name)
        except OSError as error:
            return error.strerror or type(error).__name__
        return "" if same else "it gives back other bytes than it was given"

    def _put(self, key: str, path: Path) -> None:
        import obstore

        with self._told():
            obstore.put(
                self._store, self._name(key), path, use_multipart=path.stat().st_size > PART_BYTES,
                chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE,
            )  # fmt: skip

    def _name(self, key: str) -> str:
        return f"{self._prefix}/{key}" if self._prefix else key

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what the store raises into what files raise."""
        from obstore.exceptions import BaseError, NotFoundError, PermissionDeniedError, UnauthenticatedError

        try:
            yield
        except (BaseError, FileNotFoundError, PermissionError) as error:
            is_known = isinstance(error, FileNotFoundError | NotFoundError)
            if is_known and "NoSuchBucket" not in str(error):
                raise FileNotFoundError(errno.ENOENT, "the object store has no such object") from error
            self._well_until = 0.0
            if "NoSuchBucket" in str(error):
                raise StoreAwayError(errno.ENODEV, "there is no such bucket") from error
            if isinstance(error, PermissionDeniedError | UnauthenticatedError | PermissionError):
                raise StoreAwayError(errno.EACCES, "the object store refuses these credentials") from error
            raise StoreAwayError(
                errno.EIO, f"the object store does not answer as it should ({_kind(error)})"
            ) from error


def _kind(error: Exception) -> str:
    """Return what kind of trouble it is, without addresses and bodies."""
    said = str(error).partition("Debug source")[0]
    status = re.search(r"status code: (\d{3} [A-Za-z ]+)", said)
    if status:
        return status[1]
    known = ("timed out", "refused", "dns error", "certificate", "error sending request")
    return next((word for word in known if word in said), type(error).__name__)


def open_storage(settings: Settings) -> Storage:
    """Return the storage that the settings name; nothing is reached yet. Raises NodeError for bad credentials files."""
    return open_bucket(settings) if settings.storage.is_bucket else FileStorage(settings.storage.root)


def spool_of(settings: Settings) -> Path:
    """Return the folder of this host that instances come to: their place, or their way into a bucket."""
    return settings.node.data_dir / "spool" if settings.storage.is_bucket else settings.storage.root


def open_bucket(settings: Settings) -> ObjectStorage:
    """Return the bucket. Raises NodeError where its credentials cannot be read."""
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    storage = settings.storage
    bucket, prefix = storage.bucket
    config: dict[str, Any] = {"checksum_algorithm": "sha256", **_credentials(storage.credentials_file)}
    config |= {"endpoint": storage.endpoint} if storage.endpoint else {}
    config |= {"region": storage.region} if storage.region else {}

    def connect(client: dict[str, Any], retries: dict[str, Any]) -> S3Store:
        options: Any = {**client, "allow_http": storage.allow_http}
        return S3Store(bucket, client_options=options, retry_config=retries, **config)  # type: ignore[arg-type]

    try:
        store, looking = connect(CLIENT, RETRIES), connect(LOOK_CLIENT, NO_RETRIES)
    except (BaseError, ValueError) as error:
        raise NodeError(f"storage.url {storage.url} cannot be used ({type(error).__name__}): see its keys") from error
    return ObjectStorage(store, looking, prefix, FileStorage(spool_of(settings)))


def _credentials(path: Path | None) -> dict[str, str]:
    if path is None:
        return {}
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        return {name: str(found[name]) for name in ("access_key_id", "secret_access_key")}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError) as error:
        raise NodeError(
            f"storage.credentials_file {path} cannot be used ({type(error).__name__}): it is YAML with access_key_id "
            "and secret_access_key"
        ) from error
