"""How pages write numbers, instants and UIDs, and which pages there are. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from pydicom.uid import UID

PAGES = (
    ("/", "Overview", "viewer"),
    ("/jobs", "Jobs", "viewer"),
    ("/destinations", "Destinations and peers", "viewer"),
    ("/audit", "Audit", "admin"),
    ("/configuration", "Configuration", "admin"),
)
"""Address, name, and the role that it asks for."""

_SPANS = ((86400, 3600, "d", "h"), (3600, 60, "h", "min"), (60, 1, "min", "s"))
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def write_span(seconds: float) -> str:
    """Return a time span for people: "0.41 s", "3 min 5 s", "2 h 10 min", "3 d 4 h"."""
    if seconds < 10:
        return f"{max(seconds, 0.0):.2f} s"
    for unit, below, name, lesser in _SPANS:
        if seconds >= unit:
            return f"{int(seconds // unit)} {name} {int(seconds % unit // below)} {lesser}"
    return f"{seconds:.0f} s"


def write_bytes(size: float) -> str:
    """Return a number of bytes for people: "7.6 MiB"."""
    for unit in _UNITS:
        if size < 1024 or unit == _UNITS[-1]:
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def write_iso(value: Any) -> str:
    """Return an instant as machines read it."""
    return value.isoformat(timespec="seconds") if isinstance(value, datetime) else str(value)


def name_class(uid: str) -> str:
    """Return the name of a SOP class without what all of them have in common."""
    return UID(uid).name.removesuffix(" Storage").removesuffix(" - For Presentation") if uid else ""


FILTERS: Mapping[str, Callable[..., str]] = {
    "span": write_span, "bytes": write_bytes, "iso": write_iso, "sop_class": name_class,
}  # fmt: skip
