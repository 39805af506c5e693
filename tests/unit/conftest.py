"""What the tests of a slave tree share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.slave_model import Slave


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
