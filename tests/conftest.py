"""What holds for every test: those marked `root` are left out when not run as root; hypothesis watches no clock."""

import os
from pathlib import Path

import hypothesis
import pytest

from lab.cli import Cli

hypothesis.settings.register_profile("gsync", deadline=None)
hypothesis.settings.load_profile("gsync")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if os.geteuid() == 0:
        return
    needs_root = [item for item in items if item.get_closest_marker("root")]
    config.hook.pytest_deselected(items=needs_root)
    items[:] = [item for item in items if not item.get_closest_marker("root")]


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    cli = Cli(tmp_path, capsys)
    monkeypatch.setenv("GSYNC_HOME", cli.home.path)
    return cli
