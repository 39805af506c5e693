"""`When something is wrong` quotes messages that the program has, and all for which a person has to act."""

import ast
import re
from collections.abc import Iterator

import pytest

from lab import REPOSITORY
from lab.pages import DOCS

_ROW = re.compile(r"^\| (`.*?) \| ", re.MULTILINE)
_QUOTED = re.compile(r"`` (.+?) ``|`(.+?)`")
_OF_OTHERS = {"Permission denied", "No space left on device"}  # of ssh, of the kernel
_ERRORS = {"SlaveError", "Faulty", "NotThere", "UsageError"}
_NOT_FOR_PEOPLE = re.compile(  # between gsync's own programs, of one version
    "hello comes once|no such method|the first request must be hello|no such kind of leftovers|the state was not begun|"
    "not rsync's server side as gsync calls it|not an epoch")
_FEW = 5  # words: a shorter one says all by itself, or lets another text through


def nodes(*, without: frozenset[str] = frozenset()) -> Iterator[ast.AST]:
    """Of the whole program, or without these rooms."""
    for path in (REPOSITORY / "gsync").rglob("*.py"):
        if path.relative_to(REPOSITORY / "gsync").parts[0] not in without:
            yield from ast.walk(ast.parse(path.read_text()))


def text_of(node: ast.AST) -> str:
    """A literal, with … for what is put into it; "" if it is none."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp):
        return text_of(node.left) + text_of(node.right)
    return ""


def errors() -> set[str]:
    """What a person has to act upon. What a command says of its own options, and transfers, say all by themselves."""
    elsewhere = nodes(without=frozenset({"cli", "transfer"}))
    found = {text_of(node.args[0]) for node in elsewhere
             if isinstance(node, ast.Call) and node.args and isinstance(node.func, ast.Name)
             and node.func.id in _ERRORS}
    return {text for text in found if len(re.findall(r"[A-Za-z-]+", text)) > _FEW
            and not text.startswith("-") and not _NOT_FOR_PEOPLE.search(text)}


def pattern(message: str) -> re.Pattern[str]:
    return re.compile(".*".join(map(re.escape, message.split("…"))), re.DOTALL)


def quoted() -> list[str]:
    page = (DOCS / "when-something-is-wrong.md").read_text()
    return [one or other for row in _ROW.findall(page) for one, other in _QUOTED.findall(row)]


@pytest.fixture(scope="module")
def known() -> list[str]:
    return [text for node in nodes() if (text := text_of(node))]


@pytest.mark.parametrize("message", sorted(set(quoted()) - _OF_OTHERS))
def test_a_quoted_message_exists(message: str, known: list[str]) -> None:
    assert any(map(pattern(message).search, known))


def test_a_message_that_needs_a_person_is_quoted() -> None:
    patterns = [pattern(message) for message in quoted()]
    missing = [text for text in errors() if not any(each.search(text) for each in patterns)]
    assert not missing, "\n".join(missing)
