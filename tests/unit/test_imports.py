"""Imports point down only, and what goes to a slave host runs there: read from the source with ast."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsync.link import bundle
from lab import REPOSITORY as ROOT

# The rooms, lowest first; rooms of one line may import each other, files never in a circle.
LAYERS = [
    ["base"],
    ["changelog", "state"],
    ["link"],
    ["slave", "sync", "master"],
    ["recorder"],
    ["engine"],
    ["session"],
    ["service"],
    ["transfer.stores"],
    ["transfer.queue"],
    ["transfer.catalog"],
    ["transfer.archive"],
    ["transfer.delivery"],
    ["transfer"],
    ["cli", "__main__"],
]

def matches(module: str, patterns: list[str]) -> bool:
    return any((module + ".").startswith(p + ".") for p in patterns)


def layer_of(module: str) -> int | None:
    """The layer of a module (its name without "gsync."); None: it has no place yet."""
    return next((i for i, patterns in enumerate(LAYERS) if matches(module, patterns)), None)


def in_agent(module: str) -> bool:
    """Whether the master brings this module along for the slave host: Python 3.9, standard library only."""
    return bundle.goes_along("" if module == "__init__" else module)


def read_modules(root: Path) -> dict[str, ast.Module]:
    """Every module of the gsync package below `root`, by its name without "gsync."."""
    modules = {}
    for path in sorted((root / "gsync").rglob("*.py")):
        parts = path.relative_to(root / "gsync").with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 1:
            parts = parts[:-1]
        modules[".".join(parts)] = ast.parse(path.read_bytes(), str(path))
    return modules


def imports(name: str, tree: ast.Module, known: set[str]) -> Iterator[str]:
    """The full names of the modules that a module imports, anywhere in it; `known` are gsync's own."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import; use the full name"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full.removeprefix("gsync.") in known else node.module


def own(full: str) -> str | None:
    """The name within gsync of an imported module, None for others; gsync itself is "__init__"."""
    if full == "gsync":
        return "__init__"
    return full.removeprefix("gsync.") if full.startswith("gsync.") else None


def wrong_imports(modules: dict[str, ast.Module]) -> list[str]:
    """What breaks the order of layers, as lines for a person."""
    wrong = []
    for name, tree in modules.items():
        if name == "__init__":
            wrong += [f"gsync/__init__.py imports {full}" for full in imports(name, tree, set(modules))]
            continue
        layer = layer_of(name)
        if layer is None:
            wrong.append(f"{name} has no place in LAYERS")
            continue
        for full in imports(name, tree, set(modules)):
            target = own(full)
            if target is None or target == "__init__":
                continue
            below = layer_of(target)
            if below is None or below > layer:
                wrong.append(f"{name} imports {full}, which is above it")
    return wrong


def circles(modules: dict[str, ast.Module]) -> list[list[str]]:
    """Files that import each other in a circle, imports inside functions counted: each circle's files (Tarjan)."""
    edges = {name: sorted({target for full in imports(name, tree, set(modules)) if (target := own(full)) in modules})
             for name, tree in modules.items()}
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found = []

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for target in edges[name]:
            if target not in number:
                visit(target)
                lowest[name] = min(lowest[name], lowest[target])
            elif target in stack:
                lowest[name] = min(lowest[name], number[target])
        if lowest[name] == number[name]:
            circle = stack[stack.index(name):]
            del stack[stack.index(name):]
            if len(circle) > 1:
                found.append(sorted(circle))

    for name in sorted(modules):
        if name not in number:
            visit(name)
    return found


def wrong_agent_imports(modules: dict[str, ast.Module]) -> list[str]:
    """What the agent's modules import that a slave host does not have, as lines for a person."""
    wrong = []
    for name, tree in modules.items():
        if not in_agent(name):
            continue
        for full in imports(name, tree, set(modules)):
            target = own(full)
            if target is None and full.partition(".")[0] not in sys.stdlib_module_names:
                wrong.append(f"{name} imports {full}, which is not in the standard library")
            elif target is not None and not in_agent(target):
                wrong.append(f"{name} imports {full}, which is not in the agent")
    return wrong


def test_imports_point_down_only() -> None:
    assert wrong_imports(read_modules(ROOT)) == []


def test_no_files_import_each_other_in_a_circle() -> None:
    assert circles(read_modules(ROOT)) == []


def test_a_circle_is_found() -> None:
    sources = {"base.a": "from gsync.base import b", "base.b": "def f():\n    from gsync.base.c import g",
               "base.c": "from gsync.base.a import h", "base.d": "from gsync.base import a"}
    assert circles({name: ast.parse(source) for name, source in sources.items()}) == [["base.a", "base.b", "base.c"]]


def test_agent_modules_need_only_the_standard_library_and_each_other() -> None:
    assert wrong_agent_imports(read_modules(ROOT)) == []


def newer_than_python_3_9(folder: Path, paths: list[Path]) -> str:
    """What vermin says of syntax and of names of the standard library that came after 3.9; "" if there is nothing."""
    argv = [sys.executable, "-c", "from vermin import main; main()", "--no-tips", "--no-config-file", "--target=3.9-",
            "--violations"]
    done = subprocess.run([*argv, *map(str, paths)], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr if done.returncode else ""


def test_agent_modules_are_written_in_python_3_9() -> None:
    paths = [path for path in sorted((ROOT / "gsync").rglob("*.py"))
             if bundle.goes_along(bundle.module_of(path))]
    assert len(paths) > 20
    assert newer_than_python_3_9(ROOT, paths) == ""


@pytest.mark.parametrize("source", [
    "match 1:\n    case 1:\n        pass", "zip([], [], strict=True)", "(1).bit_count()",
    "from itertools import pairwise",
    "import dataclasses\n\n\n@dataclasses.dataclass(slots=True)\nclass A:\n    a: int",
])
def test_what_is_newer_is_found(source: str, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(source + "\n")
    assert "Minimum required versions: 3.10" in newer_than_python_3_9(tmp_path, [tmp_path / "a.py"])


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("base.model", "import gsync.cli.main", "above"),
        ("base.model", "def f():\n    from gsync.link import client", "above"),
        ("master.posix", "from gsync.recorder.recorder import Recorder", "above"),
        ("changelog.reader", "from gsync.master import posix", "above"),
        ("utils", "import os", "no place"),
        ("__init__", "from gsync.base import model", "__init__"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str, complaint: str) -> None:
    names = ["cli.main", "link.client", "base.model", "recorder.recorder", "master.posix"]
    modules = {name: ast.parse("") for name in names} | {module: ast.parse(source)}
    (line,) = wrong_imports(modules)
    assert complaint in line


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("slave.agent", "import xattr", "standard library"),
        ("base.namespace", "import pydantic", "standard library"),
        ("base.rpc", "from gsync.link.client import Client", "not in the agent"),
        ("slave.agent", "from gsync.changelog import records", "not in the agent"),
    ],
)
def test_a_wrong_import_in_the_agent_is_found(module: str, source: str, complaint: str) -> None:
    modules = {name: ast.parse("") for name in ["link.client", "changelog.records"]} | {module: ast.parse(source)}
    (line,) = wrong_agent_imports(modules)
    assert complaint in line


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("base.model", "import os\nfrom gsync.base import errors\nfrom gsync.base.errors import GsyncError"),
        ("cli.main", "import typer\nfrom gsync import __version__\nfrom gsync.master import posix"),
        ("link.client", "import paramiko\nfrom gsync.base import rpc"),
    ],
)
def test_a_right_import_is_not_complained_of(module: str, source: str) -> None:
    names = ["base.errors", "base.log", "base.rpc", "master.posix"]
    modules = {name: ast.parse("") for name in names} | {module: ast.parse(source)}
    assert wrong_imports(modules) == []
    assert wrong_agent_imports(modules) == []
