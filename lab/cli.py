"""The gsync command called in this process, with a state directory of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from gsync.cli import main
from gsync.state.home import Home


class Cli:
    """Calls gsync with a state directory of its own."""

    def __init__(self, folder: Path, capture: pytest.CaptureFixture[str]) -> None:
        self.home = Home(str(folder / "home"))
        self._capture = capture
        self.err = ""

    def __call__(self, *args: str, code: int = 0) -> str:
        self._capture.readouterr()
        assert main.call(args) == code
        out, self.err = self._capture.readouterr()
        return out

    def fails(self, *args: str, code: int) -> str:
        """Run a command that must fail; return the one line that it prints on stderr."""
        assert self(*args, code=code) == ""
        assert self.err.startswith("gsync: ")
        assert self.err.count("\n") == 1
        return self.err.removeprefix("gsync: ").rstrip("\n")
