"""Help texts: short, whole and in the same form, of every command, argument, option and setting."""

from __future__ import annotations

import pytest

from gsync.session.options import Row
from lab.cli import Cli
from tools import reference

WIDTH = 60  # columns of a first sentence: what `gsync --help` shows on a terminal of 80
COMMANDS = [pytest.param(command, id=command.path) for top in reference.commands() for command in top.all()]
GROUPS = [pytest.param((), id="gsync"), *(pytest.param(tuple(top.path.split()[1:]), id=top.path)
                                          for top in reference.commands() if top.commands)]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_commands_help_begins_with_a_short_sentence_in_the_imperative(command: reference.Command) -> None:
    assert len(command.summary) <= WIDTH, command.summary
    assert command.summary.endswith("."), command.summary
    verb = command.summary.split()[0].rstrip(",.")
    assert verb[0].isupper() and (verb == "Bring" or not verb.endswith(("ing", "ed", "s"))), command.summary


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_and_argument_has_a_help_that_begins_with_a_short_sentence(command: reference.Command) -> None:
    for parameter in (*command.arguments, *command.options):
        first = reference.first_sentence(parameter.help)
        assert first and len(first) <= WIDTH, f"{parameter.name}: {first}"
        assert first[0].isupper() and first.endswith("."), f"{parameter.name}: {first}"


@pytest.mark.parametrize("row", reference.settings(), ids=lambda row: row.name)
def test_a_settings_help_begins_with_a_short_sentence(row: Row) -> None:
    first = reference.first_sentence(row.about.help)
    assert len(first) <= WIDTH, first
    assert first[0].isupper() and first.endswith("."), first
    assert row.about.help.endswith("."), row.about.help


@pytest.mark.parametrize("args", GROUPS)
def test_no_help_is_cut_in_a_list_of_commands(cli: Cli, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert "..." not in cli(*args, "--help").partition("Commands:")[2]
