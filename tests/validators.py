"""Foreign validators of DICOM objects: dciodvfy of dicom3tools, dsrdump and dcmpschk of DCMTK, PixelMed's SR validator.

All are Debian packages. On a laptop without them the tests are skipped; in CI (environment CI=true) they fail.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from tests.acceptance.peers import require

ALLOWED = (
    # One per private code: a private scheme cannot be in the tool's table.
    r"Unrecognized defined term <99KNOWMVG> for value 1 of attribute <Coding Scheme Designator>",
    # Device UID in Contributing Equipment is younger than the tool; IHE AIR asks for it. The second line follows.
    r"Attribute is not present in standard DICOM IOD - \(0x0018,0x1002\) UI Device UID ",
    r"Dicom dataset contains attributes not present in standard DICOM IOD - this is a Standard Extended SOP Class",
    # Type 2 attributes of the study that the image leaves empty.
    r"Missing attribute or value that would be needed to build DICOMDIR - Study (ID|Date|Time)",
    # Laterality is of Type 2C and unknown where the image does not say which body part it shows.
    r"is only permitted to be empty when actually unknown; should be absent .* - attribute <Laterality>",
)


FOREIGN = (
    # What a foreign image brings along: a name in the old style, a body part that is no defined term.
    r"Unrecognized defined term <THORAX> for value 1 of attribute <Body Part Examined>",
    r"Value dubious for this VR - .* PN .* - Retired Person Name form",
)

OUTDATED = "Code (43468-8,LN,"
"""PixelMed's copy of PS3.16 CID 100 is of 2019 and does not have the procedure yet; the present one has."""

LIMITS = [f"-Djdk.xml.xpath{limit}Limit=0" for limit in ("ExprOp", "TotalOp", "ExprGrp")]
JAVA = {"JAVA_TOOL_OPTIONS": " ".join((*LIMITS, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"))}
"""Java 17 stops PixelMed's style sheets without the first ones; the others halve the time of a short run."""


def run(tool: str, *arguments: str) -> list[str]:
    """Return the lines that `tool` prints on both streams."""
    require(tool)
    done = subprocess.run(
        [tool, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        errors="replace",
        env=os.environ | JAVA,
    )
    return (done.stdout + done.stderr).splitlines()


def check_with_dciodvfy(path: Path, allowed: tuple[str, ...] | None = ALLOWED) -> None:
    """No error, and no warning that is not explained; None allows all of these."""
    lines = run("dciodvfy", str(path))
    errors = [line for line in lines if line.startswith("Error")]
    assert errors == [], errors
    warnings = [line.removeprefix("Warning - ") for line in lines if line.startswith("Warning")]
    known = (".*",) if allowed is None else allowed
    unknown = [warning for warning in warnings if not any(re.fullmatch(one, warning) for one in known)]
    assert unknown == [], unknown
    assert {"Comprehensive3DSR", "ComprehensiveSR", "GrayscaleSoftcopyPresentationState"} & set(lines)


def check_report_with_dcmtk(path: Path) -> None:
    """DCMTK reads the SR, its content tree included, and finds nothing wrong."""
    lines = run("dsrdump", "+Pc", str(path))
    errors = [line for line in lines if re.match(r"[EF]:|.*(invalid|error)", line, re.IGNORECASE)]
    assert errors == [], errors
    assert any("Preliminary Flag    : PRELIMINARY" in line for line in lines)


def check_state_with_dcmtk(path: Path) -> None:
    """DCMTK reads the presentation state and finds nothing wrong."""
    lines = run("dcmpschk", str(path))
    assert "Test passed." in " ".join(lines), lines


def check_with_pixelmed(path: Path) -> None:
    """PixelMed knows the IOD, and finds no error against the template, but the one of its outdated table."""
    lines = run("DicomSRValidator", str(path))
    errors = [line for line in lines if line.startswith("Error") and OUTDATED not in line]
    assert errors == [], errors
    assert "IOD validation complete" in lines
