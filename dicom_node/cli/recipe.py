"""Checks a training recipe before hours are spent on it: it must have the keys and types of the shipped one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from dicom_node.errors import NodeError

OPEN_SECTIONS = ("model",)
"""Sections that are checked where they are used: the architecture has keys of its own."""


def check_recipe(path: Path) -> None:
    """Raise NodeError that lists everything in which the recipe at `path` is not like the shipped one."""
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise NodeError(f"{path} cannot be read as YAML: {error}") from error
    shipped = yaml.safe_load(files("grounding").joinpath("configs/small.yaml").read_text(encoding="utf-8"))
    faults = list(_compare(recipe, shipped, ""))
    if faults:
        raise NodeError(f"{path} is no training recipe such as grounding/configs/small.yaml:\n  " + "\n  ".join(faults))


def _compare(value: Any, pattern: Any, where: str) -> Iterator[str]:
    if isinstance(pattern, Mapping):
        if isinstance(value, Mapping):
            yield from _compare_keys(value, pattern, where)
        else:
            yield f"{where or '(whole file)'}: must be a section with the keys {', '.join(pattern)}"
    elif not isinstance(value, int | float if isinstance(pattern, float | int) else type(pattern)):
        yield f"{where}: must be a {type(pattern).__name__}, not {value!r}"


def _compare_keys(value: Mapping[str, Any], pattern: Mapping[str, Any], where: str) -> Iterator[str]:
    prefix = f"{where}." if where else ""
    for key in pattern:
        if key not in value:
            yield f"{prefix}{key}: is missing"
        elif key not in OPEN_SECTIONS:
            yield from _compare(value[key], pattern[key], f"{prefix}{key}")
    for key in value:
        if key not in pattern:
            yield f"{prefix}{key}: unknown key"
