"""Whether the database and the storage can be used, in one sentence each; for `/readyz` and `knowmvg check`."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from dicom_node.config import Settings, masked
from dicom_node.errors import NodeError, SchemaError
from dicom_node.objects import open_storage, spool_of
from dicom_node.queries import check_schema, current_revision


@dataclass(frozen=True)
class Check:
    """What was tried, whether it works, and what was found or what to do."""

    name: str
    ok: bool
    detail: str

    @property
    def line(self) -> str:
        """Return `ok    storage   …` for people."""
        return f"{'ok' if self.ok else 'FAIL':<5} {self.name:<14} {self.detail}"

    def to_json(self) -> dict[str, Any]:
        """Return the check as JSON values."""
        return asdict(self)


def check_database(settings: Settings, engine: Engine) -> Check:
    """Tell whether the database answers and has the schema of this version."""
    url = masked(settings)["database"]["url"]
    try:
        check_schema(engine)
        return Check("database", True, f"{url}, schema {current_revision(engine)}")
    except SchemaError as error:
        return Check("database", False, str(error))
    except DBAPIError as error:
        return Check("database", False, f"{url} does not answer: {error.orig}; see database.url")


def check_storage(settings: Settings) -> Check:
    """Tell whether the storage folder can be written and has the free space that the receiver asks for."""
    root = spool_of(settings)
    folder = next(path for path in (root, *root.parents) if path.exists())  # the node makes the rest itself
    if not folder.is_dir():
        return Check("storage", False, f"{root}: {folder} is no folder; see storage.url")
    if not os.access(folder, os.W_OK | os.X_OK):
        return Check("storage", False, f"{root}: this user may not write there; see storage.url")
    free, needed = shutil.disk_usage(folder).free, settings.receiver.min_free_bytes
    if free < needed:
        return Check(
            "storage",
            False,
            f"{root}: {free / 2**30:.1f} GiB free, receiver.min_free_bytes is {needed / 2**30:.1f} GiB",
        )
    if settings.storage.is_bucket:
        return _check_bucket(settings)
    return Check("storage", True, f"{root}, {free / 2**30:.1f} GiB free")


def _check_bucket(settings: Settings) -> Check:
    try:
        fault = open_storage(settings).find_fault()
    except NodeError as error:
        fault = str(error)
    return Check("storage", not fault, fault or f"{settings.storage.url} answers")
