"""The decoders of pixel data, for a process that decodes none: the receiver.

pydicom loads every decoder that is installed when it is imported: 25 MB of each process, and libraries that read what
senders send. A name that stands for nothing among the loaded modules cannot be imported (the Python reference, 5.3.1).
"""

from __future__ import annotations

import sys
from typing import Any

DECODERS = ("gdcm", "_gdcm", "PIL", "pylibjpeg", "openjpeg", "libjpeg", "rle", "jpeg_ls")
"""Packages that pydicom decodes with, beside numpy."""


def keep_decoders_out() -> None:
    """Let this process never load a decoder; before pydicom is imported, or it is too late."""
    if "pydicom" not in sys.modules:
        loaded: dict[str, Any] = sys.modules
        loaded |= dict.fromkeys(DECODERS)
