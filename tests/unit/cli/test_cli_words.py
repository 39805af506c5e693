"""`COMMAND [SESSION] [VERB]`: what may be left out, and what groups say that are given nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from gsync.base.errors import UsageError
from gsync.cli.words import session_and_verb
from gsync.session.session import SessionHome
from lab.cli import Cli

VERBS = ("list", "drop")


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ([], (None, "list", [])), (["list"], (None, "list", [])), (["s"], ("s", "list", [])),
        (["s", "drop", "x"], ("s", "drop", ["x"])), (["drop", "x"], (None, "drop", ["x"])),
        (["list", "drop"], (None, "list", ["drop"])),
    ],
)
def test_words(words: list[str], meant: tuple[str | None, str, list[str]]) -> None:
    assert session_and_verb(words, VERBS) == meant


def test_a_second_word_that_is_no_verb() -> None:
    with pytest.raises(UsageError, match="unexpected argument: remove; expected one of list, drop"):
        session_and_verb(["s", "remove"], VERBS)


def test_nothing_to_show_is_said(cli: Cli, tree: Path) -> None:
    assert "create one with gsync create MASTER SLAVE" in cli.fails("failures", code=2)
    sessions = SessionHome(cli.home)
    cli.home.add("photos", str(tree))
    sessions.save(sessions.find_or_new("photos", "h:/copy", "s"))
    assert cli("failures") == "s: no failures\n"
    assert cli("hold") == "s: no deletes are held\n"


@pytest.mark.parametrize("group", ["volume", "recorder"])
def test_a_group_without_a_command_shows_its_help(cli: Cli, group: str) -> None:
    assert cli(group, code=2) == ""
    assert cli.err.startswith(f"Usage: gsync {group} ")
    assert "\n\nCommands:\n" in cli.err
