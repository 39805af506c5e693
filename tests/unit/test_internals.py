"""The internals pages, and what cites them, agree with the repository: rules and tests, paths, links, types.

A rule of convergence, a scenario and an invariant are cited by number (`rule 13`, `scenario 22`, `invariant 9`), in
code, tests and documents.
"""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from lab import REPOSITORY

PAGES = [*sorted((REPOSITORY / "docs/internals").glob("*.md")),
         *(REPOSITORY / f"{name}.md" for name in ("ARCHITECTURE", "CONTRIBUTING", "SECURITY", "CHANGELOG"))]
CONVERGENCE = REPOSITORY / "docs/internals/convergence.md"
ARCHITECTURE = REPOSITORY / "ARCHITECTURE.md"
_CITATION = re.compile(r"\b(rule|scenario|invariant)s?[ \n]+(?:#\s*)?(\d+(?:(?:,? (?:and|or|to) |, ?)\d+)*)",
                       re.IGNORECASE)
_HEADING = re.compile(r"^### (Rule|Scenario) (\d+)\. \S.*$", re.MULTILINE)


@dataclass(frozen=True)
class Section:
    """A rule or scenario: its text, up to the next heading."""

    kind: str
    number: int
    text: str

    def bullet(self, label: str) -> str:
        """What a labelled bullet says, its further lines included; "" if there is none."""
        found = re.search(rf"^- \*{label}\*: (.*?)(?=^- |^$|\Z)", self.text, re.MULTILINE | re.DOTALL)
        return found[1] if found else ""

    @property
    def tests(self) -> list[str]:
        return re.findall(r"`(test_\w+)`", self.bullet("Tests"))


def sections(page: str) -> list[Section]:
    """The rules and scenarios of the convergence page."""
    heads = list(_HEADING.finditer(page))
    ends = [re.compile(r"^#{1,3} ", re.MULTILINE).search(page, head.end()) for head in heads]
    return [Section(head[1].lower(), int(head[2]), page[head.end():end.start() if end else len(page)] + "\n")
            for head, end in zip(heads, ends, strict=True)]


def invariants(page: str) -> set[int]:
    """The numbers of the invariants that ARCHITECTURE lists."""
    part = page.partition("\n## Invariants\n")[2].partition("\n## ")[0]
    return {int(number) for number in re.findall(r"^(\d+)\. \*\*", part, re.MULTILINE)}


def citations(text: str) -> Iterator[tuple[str, int]]:
    """What a text cites: kind and number. Of a range ("rules 1 to 5"), the two ends."""
    for found in _CITATION.finditer(text):
        yield from ((found[1].lower(), int(number)) for number in re.findall(r"\d+", found[2]))


def texts() -> Iterator[Path]:
    """All that may cite: code, tests, tools, documents."""
    for folder in ("gsync", "lab", "tests", "docs"):
        for path in sorted((REPOSITORY / folder).rglob("*")):
            if path.suffix in (".py", ".md") and path != Path(__file__):
                yield path
    yield from sorted(REPOSITORY.glob("*.md"))
    yield from (path for path in sorted((REPOSITORY / "tools").iterdir()) if path.is_file())


@pytest.fixture(scope="module")
def known() -> dict[str, set[int]]:
    found = sections(CONVERGENCE.read_text())
    return {kind: {section.number for section in found if section.kind == kind} for kind in ("rule", "scenario")} \
        | {"invariant": invariants(ARCHITECTURE.read_text())}


@pytest.fixture(scope="module")
def tests() -> set[str]:
    """The names of all tests there are."""
    return {name for path in (REPOSITORY / "tests").rglob("test_*.py")
            for name in re.findall(r"^\s*def (test_\w+)\(", path.read_text(), re.MULTILINE)}


def test_every_citation_leads_somewhere(known: dict[str, set[int]]) -> None:
    wrong = [f"{path.relative_to(REPOSITORY)} cites {kind} {number}, which there is not"
             for path in texts() for kind, number in citations(path.read_text()) if number not in known[kind]]
    assert wrong == []


def said(module: Path) -> Iterator[str]:
    """The comments and docstrings of a module."""
    with module.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.COMMENT or (token.type == tokenize.STRING and token.string.startswith('"""')):
                yield token.string


def test_a_citation_says_what_it_cites() -> None:
    bare = re.compile(r"(?<![\w\])}.])\[(?:invariants? )?\d{1,2}(?:, \d{1,2})*\]")
    wrong = [f"{path.relative_to(REPOSITORY)}: {text.strip()}" for path in texts()
             if path.suffix == ".py" and bare.search(path.read_text()) for text in said(path) if bare.search(text)]
    assert wrong == []


def test_numbers_are_used_once_and_in_order() -> None:
    found = sections(CONVERGENCE.read_text())
    for kind in ("rule", "scenario"):
        numbers = [section.number for section in found if section.kind == kind]
        assert numbers == sorted(set(numbers))


def test_every_rule_and_scenario_names_tests_that_exist(tests: set[str]) -> None:
    found = sections(CONVERGENCE.read_text())
    assert [f"{s.kind} {s.number} names no test" for s in found if not s.tests] == []
    assert [f"{s.kind} {s.number} names {name}, which is no test" for s in found for name in s.tests
            if name not in tests] == []


def test_every_rule_says_why_and_where() -> None:
    rules = [section for section in sections(CONVERGENCE.read_text()) if section.kind == "rule"]
    assert [rule.number for rule in rules if not rule.bullet("Why") or not rule.bullet("Where")] == []


def test_every_scenario_names_its_rules(known: dict[str, set[int]]) -> None:
    for section in sections(CONVERGENCE.read_text()):
        if section.kind == "scenario":
            numbers = {int(number) for number in re.findall(r"\d+", section.bullet("Rules"))}
            assert numbers, f"scenario {section.number} names no rule"
            assert numbers <= known["rule"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("as rule 13 says", [("rule", 13)]),
        ("(rules 21 and 22)", [("rule", 21), ("rule", 22)]),
        ("Rules 1 to 5 hold", [("rule", 1), ("rule", 5)]),
        ("scenarios 4, 5 and 7", [("scenario", 4), ("scenario", 5), ("scenario", 7)]),
        ("the order of rule\n24: first", [("rule", 24)]),
        ("# that is rule\n# 24", [("rule", 24)]),
        ("invariant 9", [("invariant", 9)]),
        ("overruled 5 times", []),
    ],
)
def test_citations_are_found(text: str, expected: list[tuple[str, int]]) -> None:
    assert list(citations(text)) == expected


def test_a_rule_without_tests_is_found() -> None:
    page = "### Rule 1. One\n\nText.\n\n- *Why*: so\n- *Tests*: `test_a`,\n  `test_b`\n\n### Rule 2. Two\n\nText.\n"
    assert [section.tests for section in sections(page)] == [["test_a", "test_b"], []]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_begins_with_one_sentence_of_what_it_answers(page: Path) -> None:
    title, first, *_ = page.read_text().split("\n\n")
    assert title.startswith("# ")
    assert first.startswith("This page ")
    assert re.findall(r"[.?!](?=\s|$)", first) == ["."]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_path_that_a_page_names_is_there(page: Path) -> None:
    named = re.findall(r"`((?:gsync|lab|tests|tools|scripts|conf|docs)/[\w./-]*)`", page.read_text())
    assert [path for path in named if not (REPOSITORY / path).exists()] == []


def names_of(module: Path) -> set[str]:
    """What a module defines: functions and classes, and their methods as Class.method."""
    found = set()
    for node in ast.parse(module.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{each.name}" for each in node.body if isinstance(each, ast.FunctionDef)}
    return found


def test_what_is_asked_for_most_is_where_the_table_says() -> None:
    part = ARCHITECTURE.read_text().partition("\n## Where is …?\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\|[^|]*\| `([^`]+)` \| `([^`]+)` \|$", part, re.MULTILINE)
    assert len(rows) > 30
    assert [row for row in rows if row[1] not in names_of(REPOSITORY / row[0])] == []


def test_every_script_and_tool_is_described() -> None:
    page = (REPOSITORY / "docs/internals/testing.md").read_text()
    there = [path for folder in ("scripts", "tools") for path in (REPOSITORY / folder).iterdir()
             if path.is_file() and path.suffix not in (".toml", ".txt")]
    assert len(there) > 10
    assert [path.name for path in there if f"`{path.parent.name}/{path.name}`" not in page] == []


def test_the_map_has_every_room() -> None:
    rooms = {f"{path.parent.relative_to(REPOSITORY)}/" for path in (REPOSITORY / "gsync").rglob("__init__.py")}
    part = ARCHITECTURE.read_text().partition("\n## The rooms\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(gsync/[^`]+)` \|", part, re.MULTILINE)) == rooms - {"gsync/"}


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs make them."""
    titles = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_relative_link_of_a_page_leads_somewhere(page: Path) -> None:
    wrong = []
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.is_file() or (anchor and anchor not in anchors(target.read_text())):
            wrong.append(link)
    assert wrong == []


def test_every_type_that_carries_a_word_is_there() -> None:
    rows = re.findall(r"^\|.*\| ([^|]*) \|$", (REPOSITORY / "docs/internals/words.md").read_text(), re.MULTILINE)
    types = {name for row in rows for name in re.findall(r"`([A-Z]\w+)`", row)}
    defined = {name for path in (REPOSITORY / "gsync").rglob("*.py")
               for name in re.findall(r"^(?:class )?([A-Z]\w+)\b(?=[(:]| = )", path.read_text(), re.MULTILINE)}
    assert len(types) > 30
    assert types - defined == set()


def test_every_durable_step_is_in_the_crash_table() -> None:
    steps = {label for path in (REPOSITORY / "gsync").rglob("*.py") if "cli" not in path.parts
             for label in re.findall(r"step\(\"([^\"]+)\"\)", path.read_text())}
    page = (REPOSITORY / "docs/internals/crash.md").read_text().partition("\n## The steps by name\n")[2]
    told = {label for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE)
            for label in re.findall(r"`([^`]+)`", row)}
    assert steps == told
