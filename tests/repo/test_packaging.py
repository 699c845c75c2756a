"""What is installed: the lock holds what the project asks for, and a built wheel holds what the code reads."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PINS = dict(re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;]+)", LOCK, re.MULTILINE))
READ_BY_THE_CODE = (
    "migrations/**/*.py",
    "grounding/knowledge/*",
    "grounding/checkpoints/default/*",
    "grounding/configs/*",
    "dicom_node/console/templates/*",
    "dicom_node/console/static/*",
)
REQUIRED = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.parametrize("text", REQUIRED)
def test_the_lock_holds_a_version_that_the_project_allows(text: str) -> None:
    requirement = Requirement(text)
    pin = PINS.get(normalized(requirement.name))
    assert pin, f"{requirement.name} is not in requirements.lock: make lock"
    assert requirement.specifier.contains(pin, prereleases=True)


def test_every_locked_package_has_hashes_and_no_index_is_named() -> None:
    entries = re.split(r"\n(?=[A-Za-z0-9])", LOCK.strip())
    assert all("--hash=sha256:" in entry for entry in entries)
    assert re.search(r"https?://|--(?:extra-)?index-url|--find-links", LOCK) is None


def test_torch_is_installed_beside_the_lock_in_the_version_of_the_project() -> None:
    torch = next(Requirement(text) for text in REQUIRED if text.startswith("torch"))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"TORCH  := torch{torch.specifier}" in makefile
    assert re.search(r"^torch==\S+ ; sys_platform == 'never'", LOCK, re.MULTILINE)


def test_a_wheel_holds_migrations_knowledge_and_the_model(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = [
        path.relative_to(ROOT).as_posix()
        for pattern in READ_BY_THE_CODE
        for path in ROOT.glob(pattern)
        if "__pycache__" not in path.parts
    ]
    assert wanted
    assert [name for name in wanted if name not in held] == []
    assert not [name for name in held if name.startswith(("tests/", "bench/"))]


def test_ci_runs_what_developers_run() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    commands = [line for line in lines[1:] if line and not line.startswith(("#", "set ", "export ", "cd "))]
    assert commands == ["make test"]
