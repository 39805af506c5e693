"""Checks the English of the documents and of gsync's messages: `python tools/prose.py` prints all problems.

It reads pages with markdown-it, and messages with ast: the texts of exceptions, findings and options, and the commands'
help. The words are in tools/words.toml. A sentence has at most SENTENCE words, and a short paragraph at most one clause
that begins with "what".

Ready-made tools do not fit: vale comes as a binary that is loaded at run time, proselint reads code as prose and has no
project word lists. Spelling is left to codespell.
"""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parent.parent
SENTENCE = 35       # words
WHAT = 40           # words in a paragraph for each further clause that begins with "what"
_CALLS = {"About", "Finding", "Option", "Argument", "say", "print", "print_error", "ValueError", "Typer"}
_ERROR = re.compile(r"(Error|Faulty|Transient|Busy|Refused|NotThere|Unavailable|Fenced|Killed|Incomplete|HistoryGap)$")
_END = re.compile(r"(?<=[.!?:;])\s+")
_WHAT = re.compile(r"\bwhat\b", re.IGNORECASE)


@dataclass(frozen=True)
class Word:
    """Words to avoid, where, and their replacement."""

    find: re.Pattern[str]
    say: str
    where: tuple[str, ...]


@dataclass(frozen=True)
class Text:
    """A paragraph of a page, or a message."""

    path: Path
    line: int
    kind: str
    text: str


@dataclass(frozen=True)
class Problem:
    at: Text
    what: str

    def __str__(self) -> str:
        return f"{self.at.path.relative_to(ROOT)}:{self.at.line}: {self.what}"


def words() -> list[Word]:
    with (ROOT / "tools" / "words.toml").open("rb") as file:
        rows = tomllib.load(file)["word"]
    return [Word(re.compile(rf"\b(?:{row['find']})(?!\w)", re.IGNORECASE), row["say"],
                 tuple(row.get("in", ("pages", "messages")))) for row in rows]


def pages() -> list[Path]:
    """The pages to check. Not the reference: it is made of the program's messages, which are checked themselves."""
    found = [page for page in (ROOT / "docs").rglob("*.md") if "reference" not in page.parts]
    return [*sorted(ROOT.glob("*.md")), *sorted(found)]


def of_page(path: Path) -> Iterator[Text]:
    """A page's paragraphs, without code."""
    tokens = MarkdownIt().enable("table").parse(path.read_text())
    for token in tokens:
        if token.type == "inline" and token.children is not None:
            line = token.map[0] + 1 if token.map else 0
            yield Text(path, line, "pages", "".join(_plain(child) for child in token.children))


def _plain(token: Token) -> str:
    if token.type == "text":
        return token.content
    if token.type == "code_inline":
        return "CODE"
    return " " if token.type in ("softbreak", "hardbreak") else ""


def of_module(path: Path) -> Iterator[Text]:
    """A module's messages to people."""
    tree = ast.parse(path.read_text())
    docstrings = path.parts[-2] == "cli"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _says(node):
            for argument in [*node.args, *(each.value for each in node.keywords if each.arg in ("help", None, "text"))]:
                if text := _text(argument):
                    yield Text(path, argument.lineno, "messages", text)
        elif docstrings and isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            help_text = ast.get_docstring(node)
            if help_text:
                for paragraph in help_text.split("\n\n"):
                    yield Text(path, node.lineno, "messages", " ".join(paragraph.split()))


def _says(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else \
        call.func.id if isinstance(call.func, ast.Name) else ""
    return name in _CALLS or _ERROR.search(name) is not None


def _text(node: ast.expr) -> str:
    """A literal, with … for inserted values; otherwise ""."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) and " " in node.value else ""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return ""


def problems(text: Text, known: list[Word]) -> Iterator[Problem]:
    for word in known:
        if text.kind in word.where and (match := word.find.search(text.text)):
            yield Problem(text, f"{match[0]!r}: say: {word.say}")
    for sentence in _END.split(text.text):
        count = len(sentence.split())
        if count > SENTENCE:
            yield Problem(text, f"a sentence of {count} words: {sentence[:50]}…")
    if len(_WHAT.findall(text.text)) > 1 + len(text.text.split()) // WHAT:
        yield Problem(text, f"several clauses with \"what\": {text.text[:50]}…")


def texts() -> Iterator[Text]:
    for page in pages():
        yield from of_page(page)
    for module in sorted((ROOT / "gsync").rglob("*.py")):
        yield from of_module(module)


def main() -> int:
    known = words()
    found = [problem for text in texts() for problem in problems(text, known)]
    for problem in found:
        print(problem)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
