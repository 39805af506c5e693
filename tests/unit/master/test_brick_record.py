"""What a GlusterFS brick has recorded, and from when on it counts."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from gsync.base.model import NS
from gsync.changelog import layout
from gsync.master.gluster.record import BrickHistory, BrickRecord
from gsync.state.gluster import BrickAt, GlusterInfo


@pytest.mark.parametrize(("fragments", "counts"), [(2, 2), (1, 3)], ids=["dispersed", "whole copies"])
def test_a_slice_counts_once_everyone_sees_what_it_records(tmp_path: Path, fragments: int, counts: int) -> None:
    """Whoever writes to a file of a dispersed volume keeps its new length to himself for a while, here 100 s."""
    folder, now = os.fsencode(tmp_path), int(time.time())
    slices = [now - 204, now - 200, now - 50]
    paths = [layout.changelog_path(folder, ts) for ts in slices]
    for path in paths:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        Path(os.fsdecode(path)).touch()
    (tmp_path / "htime").mkdir()
    (tmp_path / "htime" / f"HTIME.{now - 208:010d}").write_bytes(b"".join(path + b"\0" for path in paths))
    brick = BrickAt(0, "node", "host", "/brick", 0)
    info = GlusterInfo("v", "id", "T", True, True, fragments, (brick,),
                       {"disperse.eager-lock-timeout": "100", "changelog.rollover-time": "100"})
    record = BrickRecord(info, brick, str(tmp_path))
    for _ in range(2):
        complete, since = record.look()
        assert (complete, since) == (slices[:counts][-1] * NS - NS, (now - 208) * NS)
        assert [found.ts for found in BrickHistory(folder, record).since(0)] == slices[:counts]
    assert [found.ts for found in BrickHistory(folder, record).since(0, slices[0] * NS)] == slices[:1]


def test_a_clock_that_was_set_back_is_a_gap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of that time are listed behind those with the same times, and none of them is looked for."""
    folder, now = os.fsencode(tmp_path), int(time.time())
    (tmp_path / "htime").mkdir()
    htime = tmp_path / "htime" / f"HTIME.{now - 300:010d}"
    brick = BrickAt(0, "node", "host", "/brick", 0)
    info = GlusterInfo("v", "id", "T", True, True, 1, (brick,), {})
    record = BrickRecord(info, brick, str(tmp_path))
    monkeypatch.setattr(record, "pid", os.getpid)

    def listed(*times: int) -> tuple[int | None, int | None]:
        with htime.open("ab") as file:
            file.writelines(layout.changelog_path(folder, now - t) + b"\0" for t in times)
        return record.look()

    assert listed(285, 270, 255) == ((now - 255) * NS - NS, (now - 300) * NS)
    assert listed(280, 265) == ((now - 255) * NS - NS, (now - 300) * NS)
    assert "set back" in record.problem(now * NS)
    caught_up = (now - 240) * NS - NS, (now - 240) * NS
    assert listed(240) == caught_up
    assert record.problem(now * NS) == ""
    assert BrickRecord(info, brick, str(tmp_path)).look() == caught_up
