"""The table of findings that `jobs show`, `ground` and `demo` print, from the findings of findings.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

FINDING_COLUMNS = ("PHRASE", "FOUND", "SIDE", "BOX (x1 y1 x2 y2, pixels)", "CONFIDENCE")


def finding_rows(findings: Iterable[Mapping[str, Any]]) -> list[list[object]]:
    """Return one row per box, and one for each phrase without a box."""
    return [row for finding in findings for row in _rows(finding)]


def _rows(finding: Mapping[str, Any]) -> list[list[object]]:
    side = (finding.get("site") or {}).get("laterality")
    if not finding["boxes"]:
        found = "negated" if finding["negated"] else "not localised"
        return [[finding["phrase"], found, side, None, None]]
    return [
        [finding["phrase"], "yes", side, " ".join(f"{value:.0f}" for value in box["xyxy"]), f"{box['score']:.2f}"]
        for box in finding["boxes"]
    ]
