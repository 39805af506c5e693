"""The commands of each page do what the page says, one after the other, on hosts of their own."""

from pathlib import Path

import pytest

from lab import REPOSITORY
from lab.pages import blocks, pages, run

_TOLD = [page for page in pages() if any(block.kind == "sh" for block in blocks(page))]


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.parametrize("page", _TOLD, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_the_commands_of_a_page(page: Path, tmp_path: Path) -> None:
    done = run(page, tmp_path)
    assert done.returncode == 0, done.stdout
