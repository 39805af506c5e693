"""What bricks have recorded is incomplete, damaged, or looks otherwise than usual: nothing is lost all the same."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import threading
from functools import partial
from pathlib import Path

import pytest

from lab.gluster.cluster import MASTER, ROLLOVER
from lab.gluster.site import GlusterSite, gluster_site
from tests.gluster.test_master import all_crawls, change_older, changes
from tests.gluster.test_reshape import can_make

NEVER = "restored_from_snap=00000000-0000-0000-0000-000000000000"

pytestmark = [pytest.mark.gluster, pytest.mark.root]


def changelogs(brick: Path) -> list[Path]:
    return sorted((brick / ".glusterfs" / "changelogs").glob("2*/*/*/CHANGELOG.*"), key=lambda path: path.name)


def record(site: GlusterSite, on: bool) -> None:
    site.cluster.nodes[0].gluster("volume", "set", MASTER, "changelog.changelog", "on" if on else "off")


def unrecorded(site: GlusterSite, tag: str) -> None:
    """Changes of every kind while nothing is recorded, to what `changes` made under tag and tag-gone."""
    record(site, on=False)
    change_older(site.master, tag)
    shutil.rmtree(site.master / f"{tag}-gone")
    changes(site.master, f"{tag}-off", inherited=False)
    record(site, on=True)
    changes(site.master, f"{tag}-on", inherited=False)


@pytest.mark.parametrize("shape", ["replica 2", "distribute 2"])
def test_recording_is_switched_off_and_on_again(tmp_path: Path, shape: str) -> None:
    with gluster_site(tmp_path, shape) as site:
        for tag in ("live", "live-gone", "history", "history-gone"):
            changes(site.master, tag, inherited=False)
        site.start()
        site.settle("at first")
        unrecorded(site, "live")
        site.settle("while the session runs")
        site.stop()
        unrecorded(site, "history")
        site.go_on()
        site.settle("while it was stopped")
        record(site, on=False)
        site.wait("status says that nothing is recorded",
                  lambda: all("changelog.changelog on" in brick["reason"] for brick in site.report()))
        record(site, on=True)
        site.settle("at last")
        assert site.no_failures()


def test_records_of_deletes_with_their_paths(tmp_path: Path) -> None:
    with gluster_site(tmp_path, "replica 2", options={"changelog.capture-del-path": "on"}) as site:
        all_crawls(site)
        _, brick = site.cluster.bricks()[0]
        assert any(b"\0live/gone-dir\0" in path.read_bytes() for path in changelogs(brick))


def test_a_brick_is_killed_while_it_writes_a_changelog(tmp_path: Path) -> None:
    with gluster_site(tmp_path, "replica 2") as site:
        changes(site.master, "first", inherited=False)
        site.start()
        site.settle("at first")
        end = threading.Event()

        def write() -> None:
            n = 0
            while not end.is_set():
                (site.master / f"file{n}").write_text(str(n))
                os.rename(site.master / f"file{n}", site.master / f"renamed{n}")
                if n % 3 == 0:
                    (site.master / f"renamed{n}").unlink()
                n += 1

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for node, brick in site.cluster.bricks() * 2:
                site.cluster.kill_brick(node, brick)
                live = brick / ".glusterfs" / "changelogs" / "CHANGELOG"
                if live.exists() and live.stat().st_size > 100:      # as if it had not come to the end of a record
                    os.truncate(live, live.stat().st_size - 7)
                site.cluster.start_bricks()
                site.wait("healed", site.cluster.healed)
        finally:
            end.set()
            writer.join()
        change_older(site.master, "first")
        site.settle("after it")
        assert site.no_failures()


def test_a_changelog_ends_in_the_middle_of_a_record(tmp_path: Path) -> None:
    with gluster_site(tmp_path, "one brick") as site:
        changes(site.master, "first")
        site.start()
        site.settle("at first")
        site.stop()
        _, brick = site.cluster.bricks()[0]
        before, walks = len(changelogs(brick)), site.walks()
        changes(site.master, "second")
        change_older(site.master, "first")
        site.wait("it is recorded", lambda: len(changelogs(brick)) > before, 10 * ROLLOVER)
        last = changelogs(brick)[-1]
        os.truncate(last, last.stat().st_size - 5)
        site.go_on()
        site.settle("without the last record")
        assert site.walks() == walks + 1
        assert site.no_failures()


def test_the_volume_is_set_back(tmp_path: Path) -> None:
    """As by `gluster snapshot restore`: bricks and changelogs are what they were, and glusterd's file tells."""
    with gluster_site(tmp_path, "replica 2") as site:
        changes(site.master, "kept")
        for name in ("changed", "removed"):
            (site.master / name).write_text("before")
        site.start()
        site.settle("at first")
        set_volume(site, on=False)
        for _, brick in site.cluster.bricks():
            subprocess.run(["cp", "-a", brick, f"{brick}-snapshot"], check=True)
        set_volume(site, on=True)
        site.wait("it can be written to", lambda: can_make(site.master / "later"))
        site.wait("all bricks know it", site.cluster.healed)
        (site.master / "changed").write_text("behind")
        (site.master / "removed").unlink()
        (site.master / "new").write_text("new")
        change_older(site.master, "kept")
        site.settle("with later changes")
        set_volume(site, on=False)
        for node, brick in site.cluster.bricks():
            node.run("kill", "-9", node.path("/run/glusterd.pid").read_text().strip())
            shutil.rmtree(brick)
            os.rename(f"{brick}-snapshot", brick)
            info = node.path(f"/var/lib/glusterd/vols/{MASTER}/info")
            told = info.read_text()
            assert NEVER in told
            info.write_text(told.replace(NEVER, NEVER.replace("0", "5")))
        for node in site.cluster.nodes:
            node.run("glusterd", "--pid-file=/run/glusterd.pid")
        site.wait("the pool is whole", lambda: _whole(site))
        set_volume(site, on=True)
        node = site.first.host
        site.watch_from(site.first, node.mount(MASTER, "/mnt/anew", "acl"))  # the other mount keeps what it has read
        site.wait("it is what it was", lambda: can_read(site.master / "removed"))
        site.settle("set back")
        assert (site.master / "changed").read_text() == "before"
        assert (site.slave / "changed").read_text() == "before"
        assert site.no_failures()


def set_volume(site: GlusterSite, on: bool) -> None:
    site.cluster.nodes[0].gluster("volume", "start" if on else "stop", MASTER)


def can_read(path: Path) -> bool:
    try:
        return bool(path.read_bytes())
    except OSError:
        return False


def _whole(site: GlusterSite) -> bool:
    return site.cluster.nodes[0].run("gluster", "--mode=script", "pool", "list").count("Connected") >= 2


def test_a_brick_without_copies_is_killed_before_it_has_recorded_all(tmp_path: Path) -> None:
    with gluster_site(tmp_path, "distribute 2") as site:
        changes(site.master, "first")
        site.start()
        site.settle("at first")
        node, brick = site.cluster.bricks()[0]
        live = brick / ".glusterfs" / "changelogs" / "CHANGELOG"
        for n in itertools.count():
            site.wait("all bricks can be written to", partial(can_make, site.master / f"dir{n}"))
            for m in range(20):
                (site.master / f"dir{n}" / f"file{m}").write_text("unrecorded")
            site.cluster.kill_brick(node, brick)
            recorded = live.read_bytes() if live.exists() else b""
            if (header := recorded.find(b"\n") + 1) < len(recorded):
                break
            site.cluster.start_bricks()
        os.truncate(live, header)
        site.cluster.start_bricks()
        site.wait("all bricks can be written to", lambda: can_make(site.master / "last"))
        site.settle("what nobody has recorded")
        assert site.no_failures()
