"""The page of figures: a section for each benchmark, between marks, each with the machine, commit and day of its own.

Running one benchmark again replaces its section and leaves the others as they are.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path

BEGIN, END = "<!-- bench {} -->", "<!-- end {} -->"


def describe_machine() -> str:
    """Return what it ran on, in a line."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.split(": ", 1)[1] for line in lines if line.startswith("model name")), platform.machine())
    return f"{os.cpu_count()} cores of {model}, Python {platform.python_version()}, senders on the same cores."


def describe_commit() -> str:
    """Return the commit that was measured, and whether any code differed from it."""
    commit = subprocess.run(["git", "rev-parse", "--short=7", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", ".", ":!docs"], check=False).returncode
    return (commit.stdout.strip() or "unknown") + (" and changes" if changed else "")


def make_section(name: str, what: str, command: str, day: str, output: str) -> str:
    """Return the section of a benchmark; what it printed as tables stays tables."""
    shown = output.strip()
    if not any(line.startswith("|") for line in shown.splitlines()):
        shown = f"```text\n{shown}\n```"
    where = f"`{command}` · {day}, commit {describe_commit()} · {describe_machine()}"
    return f"{BEGIN.format(name)}\n### {name}\n{what}\n\n{where}\n\n{shown}\n{END.format(name)}"


def insert_section(page: str, name: str, section: str) -> str:
    """Return a page with a section in its place, or at its end."""
    place = re.compile(f"{re.escape(BEGIN.format(name))}.*?{re.escape(END.format(name))}", re.DOTALL)
    if place.search(page):
        return place.sub(lambda _: section, page)
    return f"{page.rstrip()}\n\n{section}\n".lstrip()
