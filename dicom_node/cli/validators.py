"""Foreign validators of DICOM objects, run on files: what they print, and whether it holds an error.

dciodvfy and dcentvfy of dicom3tools, dsrdump and dcmpschk of DCMTK, PixelMed's DicomSRValidator. One that is not
installed is told as such.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

LIMIT_S = 120

OUTDATED = "Code (43468-8,LN,"
"""PixelMed's copy of PS3.16 CID 100 is of 2019 and does not have the procedure yet; the present one has."""

LIMITS = [f"-Djdk.xml.xpath{limit}Limit=0" for limit in ("ExprOp", "TotalOp", "ExprGrp")]
JAVA = {"JAVA_TOOL_OPTIONS": " ".join((*LIMITS, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"))}
"""Java 17 stops PixelMed's style sheets without the first ones; the others halve the time of a short run."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A validator: how it is called, and which of the lines that it prints are errors."""

    program: str
    options: tuple[str, ...]
    errors: Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a tool said of files: its lines, and those that are errors; `ran` is False where it is not installed."""

    tool: str
    files: tuple[str, ...]
    ran: bool
    lines: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """One line for a list."""
        found = "not installed" if not self.ran else f"{len(self.errors)} error(s)"
        return f"{self.tool}: {', '.join(self.files)}: {found}"


def _begin_with_error(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if line.startswith("Error") and OUTDATED not in line]


def _of_dcmtk(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if re.match(r"[EF]:|.*(invalid|error)", line, re.IGNORECASE)]


def _unless_passed(lines: Sequence[str]) -> list[str]:
    return [] if any("Test passed." in line for line in lines) else list(lines) or ["it printed nothing"]


def _of_pixelmed(lines: Sequence[str]) -> list[str]:
    unfinished = [] if "IOD validation complete" in lines else ["the validation was not completed"]
    return _begin_with_error(lines) + unfinished


TOOLS = {
    "dciodvfy": Tool("dciodvfy", (), _begin_with_error),
    "dcentvfy": Tool("dcentvfy", (), _begin_with_error),
    "dsrdump": Tool("dsrdump", ("+Pc",), _of_dcmtk),
    "dcmpschk": Tool("dcmpschk", (), _unless_passed),
    "DicomSRValidator": Tool("DicomSRValidator", (), _of_pixelmed),
}


def validate(name: str, folder: Path, files: Sequence[str]) -> Verdict:
    """Run a validator on files of a folder."""
    tool, named = TOOLS[name], tuple(files)
    if shutil.which(tool.program) is None:
        return Verdict(name, named, False)
    try:
        done = subprocess.run(
            [tool.program, *tool.options, *named], cwd=folder, capture_output=True, text=True, errors="replace",
            check=False, timeout=LIMIT_S, env=os.environ | JAVA,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        return Verdict(name, named, True, (), (f"it did not run to its end: {error}",))
    lines = tuple((done.stdout + done.stderr).splitlines())
    return Verdict(name, named, True, lines, tuple(tool.errors(lines)))
