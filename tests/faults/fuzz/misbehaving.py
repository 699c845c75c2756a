"""A surface whose odd cases end badly, each in another way: what the harness is tried on."""

from __future__ import annotations

import os

from tests.faults.fuzz.bounds import HangError, Violation


def run_case(seed: int) -> None:
    """End as the seed says."""
    match seed:
        case 1:
            os.abort()
        case 3:
            os._exit(0)
        case 5:
            raise HangError("it took too long")
        case 7:
            raise ZeroDivisionError
        case 9:
            raise Violation("outside: a file")
