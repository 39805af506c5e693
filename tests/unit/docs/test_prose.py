"""The checker of the English finds what the word list refuses, where people read it and nowhere else."""

from pathlib import Path

import pytest

from tools import prose


def found(path: Path, text: str) -> list[str]:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    read = prose.of_page if path.suffix == ".md" else prose.of_module
    return [problem.what for each in read(path) for problem in prose.problems(each, prose.words())]


def test_a_refused_word_of_a_page(tmp_path: Path) -> None:
    assert found(tmp_path / "a.md", "# Title\n\nIt is gone on with\nlater.\n") == [
        "'is gone on with': say: resume, continue"]


def test_a_refused_word_that_a_line_divides(tmp_path: Path) -> None:
    assert found(tmp_path / "a.md", "It is gone on\nwith later.\n") == ["'is gone on with': say: resume, continue"]


def test_code_of_a_page_is_left_alone(tmp_path: Path) -> None:
    assert found(tmp_path / "a.md", "It is `gone on with`.\n\n```sh\nis gone on with\n```\n") == []


def test_a_cell_of_a_table(tmp_path: Path) -> None:
    assert len(found(tmp_path / "a.md", "| a | b |\n|---|---|\n| c | is gone on with |\n")) == 1


@pytest.mark.parametrize("code", [
    'raise UsageError(f"{name!r} is too much")', 'raise Faulty("x" + f"{y} is too much")',
    'About("It is too much.", restarts=())', 'typer.Option("--x", help="It is too much.")'])
def test_a_refused_word_of_a_message(tmp_path: Path, code: str) -> None:
    assert found(tmp_path / "a.py", code) == ["'is too much': say: unexpected argument: x"]


def test_help_of_a_command(tmp_path: Path) -> None:
    assert len(found(tmp_path / "cli" / "a.py", 'def run():\n    """It is too much."""\n')) == 1


def test_other_texts_of_a_program_are_left_alone(tmp_path: Path) -> None:
    assert found(tmp_path / "a.py", '"""It is too much."""\nquery = "SELECT it is too much"\n') == []


def test_a_long_sentence(tmp_path: Path) -> None:
    (problem,) = found(tmp_path / "a.md", "word " * (prose.SENTENCE + 1) + "end.\n")
    assert problem.startswith(f"a sentence of {prose.SENTENCE + 2} words")


def test_many_clauses_with_what(tmp_path: Path) -> None:
    (problem,) = found(tmp_path / "a.md", "What one does is what the other did.\n")
    assert problem.startswith("several clauses")
