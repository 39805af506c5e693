"""What the tests of commands share, and those of a slave tree."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli import Cli
from tests.slave_model import Slave


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    cli = Cli(tmp_path, capsys)
    monkeypatch.setenv("GSYNC_HOME", cli.home.path)
    return cli


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    path = tmp_path / "tree"
    path.mkdir()
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "slave"
    path.mkdir()
    return path


@pytest.fixture
def slave(root: Path) -> Iterator[Slave]:
    with Slave(root) as slave:
        yield slave
