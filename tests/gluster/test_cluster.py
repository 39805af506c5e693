"""The site that the tests of this folder stand on does what they take for granted."""

from functools import partial
from pathlib import Path

import pytest

from lab.gluster.cluster import MASTER, ROLLOVER, cluster
from lab.hosts import wait_until

pytestmark = [pytest.mark.gluster, pytest.mark.root]


def lists_a_slice(htime: Path) -> bool:
    return b"/CHANGELOG." in htime.read_bytes()


def test_bricks_record_and_nothing_outlives_the_site(tmp_path: Path) -> None:
    with cluster(tmp_path) as site:
        first = site.hosts["m1"].pid
        (site.master / "file").write_bytes(b"x")
        bricks = site.bricks(MASTER)
        assert [node.name for node, _ in bricks] == ["m1", "m2"]
        for _, brick in bricks:
            htime = next((brick / ".glusterfs/changelogs/htime").iterdir())
            wait_until("a slice was listed", partial(lists_a_slice, htime), 10 * ROLLOVER)
        node, brick = bricks[1]
        site.kill_brick(node, brick)
        wait_until("the brick has ended", lambda: not site.brick_pid(node, brick))
        (site.master / "file").write_bytes(b"y")
        site.start_bricks()
        wait_until("the brick is healed", site.healed)
        assert (brick / "file").read_bytes() == b"y"
        (site.slave / "copy").write_bytes(b"z")
    assert not Path(f"/proc/{first}").exists()
    assert not list(tmp_path.glob("disk/mnt/*"))
