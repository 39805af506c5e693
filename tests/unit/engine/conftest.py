"""The world of a batch's parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.batches import Between


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Between]:
    between = Between(tmp_path)
    yield between
    between.close()
