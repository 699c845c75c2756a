"""The shape of the code: sizes, names, docstrings, and that nothing in it speaks of the machine it was written on."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("dicom_node", "grounding", "workers")
LONG_FILES = {"grounding/network/model.py": 600}
FORBIDDEN = {
    *("manager", "helper", "helpers", "util", "utils", "common", "misc", "service", "data", "info", "wrapper"),
    *("base", "impl"),
}
TEXTS = {".py", ".md", ".toml", ".yaml", ".sh", ".lock", ".in", ".json", ".ini", ""}


def tracked_files() -> list[Path]:
    """Return the files of the repository; without git (an unpacked archive), what lies there."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return [path for line in listed.stdout.splitlines() if (path := ROOT / line).is_file()]
    return [path for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts]


def modules() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(tree: ast.Module) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the lines of a function's body without its docstring."""
    body = function.body[1:] if ast.get_docstring(function) and len(function.body) > 1 else function.body
    return (body[-1].end_lineno or 0) - body[0].lineno + 1


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_says_what_it_is_and_is_not_too_long(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if not text.strip():
        return
    assert ast.get_docstring(ast.parse(text)), "a module begins with what it is"
    assert len(text.splitlines()) <= LONG_FILES.get(name_of(path), 400)


def test_functions_are_short() -> None:
    sizes = {
        f"{name_of(path)}:{function.name}": body_lines(function)
        for path in modules()
        for function in functions(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert {name: size for name, size in sizes.items() if size > 60} == {}
    assert statistics.median(sizes.values()) < 10
    assert statistics.quantiles(sizes.values(), n=10)[-1] < 30


def test_names_say_something() -> None:
    modules_named = [name_of(path) for path in modules() if FORBIDDEN & set(path.stem.split("_"))]
    classes_named = [
        f"{name_of(path)}:{node.name}"
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
        and node.name != "Base"
        and FORBIDDEN & {word.lower() for word in re.findall("[A-Z][a-z]*", node.name)}
    ]
    assert modules_named == []
    assert classes_named == []


def test_everything_is_caught_only_where_foreign_bytes_are_read_and_at_the_edge_of_a_step() -> None:
    allowed = {
        "dicom_node/instance.py", "dicom_node/filing.py", "dicom_node/storing.py", "dicom_node/transport.py",
        "dicom_node/multiplexer.py",
        "grounding/checkpoint.py",
        "workers/steps.py", "workers/deliver.py", "workers/tasks.py", "workers/tell.py", "workers/auditing.py",
        "workers/watching.py",
    }  # fmt: skip
    broad = {
        name_of(path)
        for path in modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or (isinstance(node.type, ast.Name) and node.type.id in {"Exception", "BaseException"}))
    }
    assert broad <= allowed


def test_no_file_speaks_of_the_machine_it_was_written_on() -> None:
    machine = re.compile(r"(?<![\w.~])/(?:work|home|root|tmp|Users)/\w")
    speaking = [
        f"{name_of(path)}: {match[0]}"
        for path in tracked_files()
        if path.suffix in TEXTS
        if (match := machine.search(path.read_text(encoding="utf-8")))
    ]
    assert speaking == []


def test_nothing_is_skipped_without_a_reason_or_left_to_do() -> None:
    unfinished = re.compile(r"\b(?:TODO|FIXME)\b|raise NotImplementedError|pytest\.mark\.(?:skip|xfail)\b(?!if\()")
    found = [
        f"{name_of(path)}: {match[0]}"
        for path in tracked_files()
        if path.suffix == ".py" and path != Path(__file__)
        if (match := unfinished.search(path.read_text(encoding="utf-8")))
    ]
    assert found == []


def test_the_repository_stays_small() -> None:
    large = {name_of(path): path.stat().st_size for path in tracked_files() if path.stat().st_size > 1_000_000}
    assert all(name.startswith("grounding/checkpoints/") for name in large), large
    assert sum(path.stat().st_size for path in (ROOT / "grounding" / "checkpoints").rglob("*")) <= 40 * 1024**2


UNSAFE_MODULES = {"pickle", "cPickle", "marshal", "shelve", "joblib", "dill"}


def test_nothing_that_runs_code_is_ever_loaded() -> None:
    """No pickle in any clothes, no YAML that makes objects, no eval."""
    found = []
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = {alias.name.split(".")[0] for alias in node.names} if isinstance(node, ast.Import) else set()
            names |= {(node.module or "").split(".")[0]} if isinstance(node, ast.ImportFrom) else set()
            call = ast.unparse(node) if isinstance(node, ast.Call) else ""
            unsafe_call = call.startswith(("eval(", "exec(", "yaml.load(", "yaml.unsafe_load(")) or (
                call.startswith("torch.load(") and "weights_only=True" not in call
            )
            found += [f"{name_of(path)}: {call or sorted(names)}"] if names & UNSAFE_MODULES or unsafe_call else []
    assert found == []
