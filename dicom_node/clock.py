"""The only place that reads the time or makes UIDs.

Everything else is given a `Clock`, so that tests freeze it; result UIDs are derived from their inputs, so that the
same study gives the same objects.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Returns the present instant, aware, in UTC."""


def utc_now() -> datetime:
    """Return the present instant in UTC."""
    return datetime.now(UTC)


def derive_uid(*parts: str) -> str:
    """Return the UID 2.25.<n> that belongs to `parts` (PS3.5 B.2): same parts, same UID.

    The 128 bits come from SHA-256 and carry the version and variant bits of a UUID (RFC 9562, version 8).
    """
    digest = hashlib.sha256("\x1f".join(parts).encode()).digest()[:16]
    number = int.from_bytes(digest, "big")
    number = number & ~(0xF << 76) | (0x8 << 76)
    number = number & ~(0x3 << 62) | (0x2 << 62)
    return f"2.25.{number}"
