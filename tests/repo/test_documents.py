"""The documents tell the truth: what they name exists, and what exists is named."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydicom.uid import UID
from sqlalchemy import Table

from dicom_node.config import DestinationSettings, PeerSettings, Section, Settings
from dicom_node.delivery import DELIVERY
from dicom_node.scp import STORAGE_CLASSES
from dicom_node.storing import STORE_STATUS
from dicom_node.tables import Base

ROOT = Path(__file__).parents[2]
README, OPERATE, CONFORMANCE = (
    (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/operate.md", "docs/conformance.md")
)
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def test_the_two_commands_come_first_and_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    commands = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert commands[:2] == ["demo", "test"]
    assert all(re.search(rf"^{command}:", makefile, re.MULTILINE) for command in commands)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8"))
    assert [target for target in targets if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_paths_that_are_named_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = re.findall(r"`((?:dicom_node|grounding|workers|migrations|tests|bench|docs)/[\w./]*)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_tree_names_every_module_of_the_node() -> None:
    tree = re.search(r"```\ndicom_node/.*?```", README, re.DOTALL)
    assert tree
    words = set(re.findall(r"\w+", tree[0]))
    modules = {path.stem for path in (ROOT / "dicom_node").iterdir() if not path.name.startswith("_")}
    assert modules - words == set()


def test_commands_that_are_named_exist() -> None:
    named = {name for path in DOCUMENTS for name in re.findall(r"`?knowmvg ([a-z]+)", path.read_text(encoding="utf-8"))}
    done = subprocess.run(
        [sys.executable, "-m", "dicom_node.cli", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    commands = set(re.findall(r"^  (\w+)", done.stdout, re.MULTILINE))
    assert named <= commands, named - commands
    assert {"demo", "up", "receiver", "worker", "scheduler", "console", "ground", "jobs", "check", "db", "train",
            "evaluate", "config"} <= commands  # fmt: skip


@pytest.mark.parametrize("uid", STORAGE_CLASSES, ids=lambda uid: UID(uid).name)
def test_every_sop_class_that_is_received_is_in_the_conformance_statement(uid: str) -> None:
    assert re.search(rf"\b{re.escape(uid)}(?![\d.])", CONFORMANCE)


def test_every_status_is_in_the_conformance_statement() -> None:
    statuses = {code for _, code in STORE_STATUS} | {meaning.statuses[0] for meaning in DELIVERY} | {0xC211}
    assert [f"0x{code:04X}" for code in sorted(statuses) if f"0x{code:04X}" not in CONFORMANCE] == []


@pytest.mark.parametrize("table", Base.metadata.sorted_tables, ids=lambda table: table.name)
def test_every_column_is_in_the_handbook(table: Table) -> None:
    section = re.search(rf"^### {table.name}\b.*?(?=^#|\Z)", OPERATE, re.MULTILINE | re.DOTALL)
    assert section, f"docs/operate.md has no section on the table {table.name}"
    assert [column.name for column in table.columns if f"`{column.name}`" not in section[0]] == []


def keys_of(section: type[Section]) -> dict[str, Any]:
    """Return the keys of a section, nested as in the file."""
    found: dict[str, Any] = {}
    for name, field in section.model_fields.items():
        nested = next((a for a in (field.annotation, *get_args(field.annotation)) if is_section(a)), None)
        found[name] = keys_of(nested) if nested else None
    return found


def is_section(annotation: object) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)


def test_the_configuration_file_shows_every_key_with_a_comment() -> None:
    text = (ROOT / "config.yaml").read_text(encoding="utf-8")
    shown = yaml.safe_load(text)
    for name, keys in keys_of(Settings).items():
        first = shown[name][0] if isinstance(shown[name], list) else shown[name]
        assert set(first) == set(keys), name
    assert set(shown["receiver"]["peers"][0]) == set(PeerSettings.model_fields)
    assert set(shown["destinations"][0]) == set(DestinationSettings.model_fields)
    Settings.model_validate(shown)
