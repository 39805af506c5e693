"""Names at a slave directory, and at a slave volume in memory: the contract of tests/slave_contract.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gsync.base.model import Gfid
from lab.slave_side import DirectorySide, MemoryVolumeSide, NamesSide
from lab.slave_volume import MemoryVolume
from tests.slave_contract import NamesContract


@pytest.fixture(params=["directory", "volume of one brick", "volume of several bricks"])
def side(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NamesSide]:
    if request.param == "directory":
        with closing(DirectorySide(tmp_path)) as directory:
            yield directory
    else:
        yield MemoryVolumeSide(MemoryVolume(refuses_twins=request.param == "volume of one brick"))


@pytest.fixture
def top(side: NamesSide) -> Gfid:
    return side.folder(b"top")


class TestNames(NamesContract):
    """Of each of them."""
