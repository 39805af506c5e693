"""`gsync failures`, where nothing has failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from lab.cli import Cli


@pytest.mark.parametrize("gfid", ["x", "abcd", "00000000-0000-0000-0000-00000000000g"])
def test_what_is_no_gfid_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], gfid: str) -> None:
    cli = Cli(tmp_path, capsys)
    (tmp_path / "m").mkdir()
    state = ("--state", cli.home.path)
    cli("create", str(tmp_path / "m"), str(tmp_path / "s"), "--name", "one", *state)
    line = cli.fails("failures", "drop", gfid, "--reason", "gone", *state, code=2)
    assert line == f"failures drop: not a GFID: {gfid}; `gsync failures list` shows them"
