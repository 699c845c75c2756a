"""The tables of docs/faults.md, from what the tests left: `python -m tests.faults.table ROWS [DOCUMENT]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"
HEADS = (
    "fault", "tried", "acknowledged and missing", "results missing", "duplicate results in the archive",
    "needed a person", "measured",
)  # fmt: skip
FUZZ_HEADS = ("surface", "cases", "crashes", "hangs", "writes outside", "half-written files", "seconds")


def render(rows: list[dict[str, Any]]) -> str:
    """Return the two tables in Markdown: the faults, and the fuzzed surfaces."""
    faults = {row["fault"]: row for row in rows if "fault" in row}  # of one that ran again, the last
    surfaces = {row["surface"]: row for row in rows if "surface" in row}
    lines = [_line(HEADS), _line(["---"] * len(HEADS))]
    for row in faults.values():
        counts = [row[head.replace(" in the archive", "").replace(" ", "_")] for head in HEADS[2:6]]
        lines.append(_line([row["fault"], row["tried"], *counts, _describe(row["measured"])]))
    if surfaces:
        lines += ["", _line(FUZZ_HEADS), _line(["---"] * len(FUZZ_HEADS))]
    for row in surfaces.values():
        keys = ("surface", "cases", "crashes", "hangs", "writes_outside", "half_written", "seconds")
        lines.append(_line([row[key] for key in keys]))
    return "\n".join(lines)


def _describe(measured: dict[str, Any]) -> str:
    texts = [f"{name}: {_text(value)}" for name, value in measured.items()]
    return "; ".join(texts)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number}" for name, number in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _line(cells: Any) -> str:
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"


def main(rows: Path, document: Path | None) -> None:
    """Print the table, or put it into a document between its marks."""
    table = render([json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()])
    if document is None:
        sys.stdout.write(table + "\n")
        return
    text = document.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    document.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)
