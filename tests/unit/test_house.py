"""The house: one folder, one sentence; one class, one name; no god object; clocks come in. Read from the source."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import REPOSITORY

PACKAGE = REPOSITORY / "gsync"
ATTRIBUTES, ARGUMENTS = 20, 10  # of a class that one holds in the head
SOURCES = {path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_bytes()) for path in PACKAGE.rglob("*.py")}


def classes(tree: ast.Module) -> Iterator[ast.ClassDef]:
    yield from (node for node in tree.body if isinstance(node, ast.ClassDef))


def attributes(made: ast.ClassDef) -> set[str]:
    """Those that its methods set."""
    return {node.attr for node in ast.walk(made) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name) and node.value.id == "self"}


def arguments(made: ast.ClassDef) -> int:
    """Of its constructor."""
    return next((len(node.args.args) + len(node.args.kwonlyargs) - 1 for node in made.body
                 if isinstance(node, ast.FunctionDef) and node.name == "__init__"), 0)


def direct_times(tree: ast.Module) -> list[int]:
    """The lines that ask the host for the time of day, which somebody may set."""
    return [node.lineno for node in ast.walk(tree)
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("time.time", "time.time_ns")]


def test_the_root_has_rooms_only() -> None:
    assert {name for name in SOURCES if "/" not in name} == {"__init__.py", "__main__.py"}


def test_a_room_is_one_sentence() -> None:
    rooms = {path.parent for house in (PACKAGE, REPOSITORY / "lab") for path in house.rglob("*.py")}
    said = {str(room): ast.get_docstring(ast.parse((room / "__init__.py").read_bytes())) for room in rooms}
    assert [room for room, sentence in said.items() if not sentence] == []


def test_every_module_says_what_it_is() -> None:
    assert [name for name, tree in SOURCES.items() if tree.body and not ast.get_docstring(tree)] == []


def test_no_public_class_has_the_name_of_another() -> None:
    places = defaultdict(list)
    for name, tree in SOURCES.items():
        for made in classes(tree):
            if not made.name.startswith("_"):
                places[made.name].append(name)
    assert {made: where for made, where in places.items() if len(where) > 1} == {}


def test_no_class_is_more_than_one_holds_in_the_head() -> None:
    wrong = [f"{name}: {made.name}: {len(attributes(made))} attributes, {arguments(made)} arguments"
             for name, tree in SOURCES.items() for made in classes(tree)
             if len(attributes(made)) > ATTRIBUTES or arguments(made) > ARGUMENTS]
    assert wrong == []


def test_the_time_of_day_comes_in_below_the_command_line() -> None:
    wrong = [f"{name}:{line}" for name, tree in SOURCES.items() if not name.startswith("cli/")
             for line in direct_times(tree)]
    assert wrong == []


@pytest.mark.parametrize(("source", "found"), [("import time\ntime.time()", [2]), ("import time\ntime.time_ns()", [2]),
                                               ("import time\ntime.monotonic()", []), ("f(clock=time.time_ns)", [])])
def test_a_direct_look_at_the_clock_is_found(source: str, found: list[int]) -> None:
    assert direct_times(ast.parse(source)) == found


def test_what_a_class_has_is_counted() -> None:
    (made,) = classes(ast.parse("class A:\n    def __init__(self, x, *, y): self.a = self.b = x\n"
                                "    def f(self): self.c, self.a = 1, 2"))
    assert (attributes(made), arguments(made)) == ({"a", "b", "c"}, 2)


def test_what_is_looked_at_is_the_package() -> None:
    assert len(SOURCES) > 200
    assert Path(PACKAGE / "__main__.py").exists()
