"""The written reference says what the program says."""

from __future__ import annotations

from pathlib import Path

import pytest

from gsync.base import errors
from gsync.cli.main import EXIT_CODES
from tools import reference


def test_the_written_files_are_those_of_the_program() -> None:
    assert reference.differing() == [], "run .venv/bin/python tools/reference.py"


def test_every_command_and_option_is_in_its_page_and_manual() -> None:
    files = reference.files()
    for top in reference.commands():
        if not top.hidden:
            page = files[f"docs/reference/{top.path.removeprefix('gsync ')}.md"].replace("\\|", "|")
            manual = files[f"docs/man/{top.path.replace(' ', '-')}.1"].replace("\\-", "-")
            for command in top.all():
                for text in (command.path, *(parameter.name for parameter in (*command.arguments, *command.options))):
                    assert text in page
                    assert text.replace("…", "...") in manual or (command is not top and text.upper() in manual)


def test_every_setting_is_in_the_page_and_the_manual() -> None:
    files = reference.files()
    for row in reference.settings():
        assert f"\n## {row.name}\n" in files["docs/reference/settings.md"]
        assert row.name in files["docs/man/gsync.conf.5"].replace("\\-", "-")
    for name in reference.absent_settings():
        assert f"`{name}`" in files["docs/reference/settings.md"]


@pytest.mark.parametrize("error", [each for each in vars(errors).values()
                                   if isinstance(each, type) and issubclass(each, errors.GsyncError)])
def test_every_error_ends_with_a_code_that_is_explained(error: type[errors.GsyncError]) -> None:
    assert error.exit_code in EXIT_CODES
    assert f"| {error.exit_code} |" in reference.files()["docs/reference/exit-codes.md"]


def test_a_file_that_says_something_else_is_named(tmp_path: Path) -> None:
    for name, text in reference.files().items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert reference.differing(tmp_path) == []
    (tmp_path / "docs/man/gsync-run.1").unlink()
    (tmp_path / "docs/reference/status.md").write_text("another text")
    (tmp_path / "docs/reference/gone.md").write_text("of a command that is gone")
    assert reference.differing(tmp_path) == ["docs/man/gsync-run.1", "docs/reference/gone.md",
                                             "docs/reference/status.md"]


@pytest.mark.parametrize(("text", "first"), [
    ("Stop sessions. They resume\nlater.", "Stop sessions."), ("Stop\nsessions", "Stop sessions"),
    ("Bytes such as 1.5G or 10M. 0 means no limit.", "Bytes such as 1.5G or 10M.")])
def test_the_first_sentence_ends_at_a_full_stop(text: str, first: str) -> None:
    assert reference.first_sentence(text) == first
