"""`When something is wrong` quotes messages that the program has."""

import ast
import re
from collections.abc import Iterator

import pytest

from lab.pages import DOCS, REPOSITORY

_ROW = re.compile(r"^\| (`.*?) \| ", re.MULTILINE)
_QUOTED = re.compile(r"`` (.+?) ``|`(.+?)`")
_OF_OTHERS = {"Permission denied", "No space left on device"}  # of ssh, of the kernel


def messages() -> Iterator[str]:
    """Every text of the program, with … for what is put into it."""
    for path in (REPOSITORY / "gsync").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)


def quoted() -> list[str]:
    page = (DOCS / "when-something-is-wrong.md").read_text()
    return [one or other for row in _ROW.findall(page) for one, other in _QUOTED.findall(row)]


@pytest.fixture(scope="module")
def known() -> list[str]:
    return list(messages())


@pytest.mark.parametrize("message", sorted(set(quoted()) - _OF_OTHERS))
def test_a_quoted_message_exists(message: str, known: list[str]) -> None:
    wanted = re.compile(".*".join(map(re.escape, message.split("…"))), re.DOTALL)
    assert any(wanted.search(text) for text in known)
