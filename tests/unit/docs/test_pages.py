"""What holds for every page of the documents."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer

from gsync.cli import main
from gsync.session.options import table
from lab import REPOSITORY
from lab.pages import DOCS, blocks, pages
from tools.draw_pictures import IMAGES, PICTURES

_PAGES = pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(REPOSITORY)))
_KINDS = {"sh", "python", "ini", "json", "text", "console", "test"}
_COMMAND = re.compile(r"^(\$ |# )?(scripts/)?gsync [^\n\[|…]+$", re.MULTILINE)  # a synopsis has one of these


@_PAGES
def test_a_block_says_what_it_is(page: Path) -> None:
    assert {block.kind for block in blocks(page)} <= _KINDS


@_PAGES
def test_a_command_is_run_or_has_a_reason(page: Path) -> None:
    assert [block.line for block in blocks(page) if block.kind == "console" and not block.notes.get("not run")] == []
    assert [block.line for block in blocks(page) if block.kind == "text" and _COMMAND.search(block.text)] == []


def test_every_command_and_option_is_in_the_pages() -> None:
    told = "".join(page.read_text() for page in pages())
    missing: list[str] = []

    def look(command: Any, path: str) -> None:
        for parameter in command.params:
            missing.extend(f"{path} {option}" for option in parameter.opts
                           if option.startswith("--") and option not in told)
        for name, each in getattr(command, "commands", {}).items():
            if name not in told:
                missing.append(f"{path} {name}")
            look(each, f"{path} {name}")

    look(typer.main.get_command(main.make_app()), "gsync")
    assert missing == []


def test_the_readme_links_to_every_page() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    assert [str(page) for page in pages() if DOCS in page.parents and f"]({page.relative_to(REPOSITORY)})" not in readme
            ] == []


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text().split()) <= 900


_SETTING = re.compile(r"^\| ((?:`[a-z-]+`(?:, )?)+) \| (?:`([^`]*)`)? ?\|", re.MULTILINE)


def test_the_settings_are_all_told_with_their_defaults() -> None:
    told = "".join((DOCS / page).read_text() for page in ("operating/settings.md", "queue.md"))
    rows = {name: default for names, default in _SETTING.findall(told) for name in names.replace("`", "").split(", ")}
    assert set(table()) - set(rows) == set()
    assert {name: default for name, default in rows.items()
            if default and name in table() and name != "meta-volume-mnt"  # in one row with use-meta-volume
            and table()[name].text(table()[name].default) != default} == {}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_as_it_is_drawn(name: str) -> None:
    assert (IMAGES / f"{name}.svg").read_text() == str(PICTURES[name]())
