"""The bricks of a volume change while it is replicated: added, rebalanced, removed."""

from __future__ import annotations

import os
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from gsync.engine.unfinished import SUSPECT_MARGIN
from lab.gluster.churn import Churn
from lab.gluster.cluster import MASTER
from lab.gluster.site import GlusterSite, gluster_site
from tests.gluster.test_master import change_older, changes

pytestmark = [pytest.mark.gluster, pytest.mark.root]

FILES = 120
PATIENCE = 240.0


def completed(site: GlusterSite, *words: object) -> bool:
    """Whether the moving of files that this command of `gluster volume` tells of has come to its end."""
    told = ET.fromstring(site.cluster.nodes[0].gluster("--xml", "volume", *words, "status"))
    states = [str(node.findtext("statusStr")) for node in told.iter("aggregate")]
    assert "failed" not in states, ET.tostring(told)
    return states == ["completed"]


def committed(site: GlusterSite, bricks: list[str]) -> bool:
    """Whether GlusterFS removes the bricks now."""
    try:
        site.cluster.nodes[0].gluster("volume", "remove-brick", MASTER, *bricks, "commit")
    except AssertionError as exc:
        if "migration of some files" not in str(exc):
            raise
        return False
    return True


def can_make(folder: Path) -> bool:
    """Whether the folder could be made: a mount loses bricks that were removed before it knows that they were."""
    try:
        folder.mkdir()
    except OSError:
        return False
    return True


def one_active_in_each(site: GlusterSite, subvolumes: int) -> bool:
    states = sorted((brick["subvolume"], brick["state"]) for brick in site.report())
    return states == [(n, state) for n in range(subvolumes) for state in ("Active", "Passive")]


def test_bricks_are_added_and_removed(tmp_path: Path) -> None:
    with gluster_site(tmp_path, "replica 2") as site:
        changes(site.master, "first", inherited=False)
        (site.master / "many").mkdir()
        for n in range(FILES):
            (site.master / "many" / f"file{n}").write_text(f"{n}\n" * 100)
        site.start()
        site.settle("at first")

        first, second = site.cluster.nodes
        old = [f"{node.address}:{brick}" for node, brick in site.cluster.bricks()]
        more = [f"{node.address}:{node.bricks / f'{MASTER}-more'}" for node in (first, second)]
        with Churn(site.master / "churn-add"):
            first.gluster("volume", "add-brick", MASTER, *more, "force")
            change_older(site.master, "first")
            first.gluster("volume", "rebalance", MASTER, "start")
            site.wait("files were moved to the new bricks",
                      lambda: completed(site, "rebalance", MASTER), PATIENCE)
            site.wait("their workers have begun", lambda: one_active_in_each(site, 2))
        assert any((first.bricks / f"{MASTER}-more" / "many").glob("file*"))
        changes(site.master, "added", inherited=False)
        site.settle("with more bricks")
        assert one_active_in_each(site, 2)

        with Churn(site.master / "churn-remove"):    # the first ones, so that the others have new numbers
            first.gluster("volume", "remove-brick", MASTER, *old, "start")
            change_older(site.master, "added")
            site.wait("files were moved off those bricks", lambda: completed(site, "remove-brick", MASTER, *old),
                      PATIENCE)
        for n in range(FILES):       # the last ones that these bricks see, and their changelogs go with them
            (site.master / "many" / f"file{n}").write_text("last")
        os.unlink(site.master / "many" / "file1")
        while not committed(site, old):   # what others had open was skipped
            first.gluster("volume", "remove-brick", MASTER, *old, "stop")
            first.gluster("volume", "remove-brick", MASTER, *old, "start")
            site.wait("they were moved", lambda: completed(site, "remove-brick", MASTER, *old), PATIENCE)
        site.wait("the mount has followed", lambda: can_make(site.master / "after"))
        changes(site.master, "removed", inherited=False)
        site.wait("their workers have ended", lambda: one_active_in_each(site, 1))
        site.first.gsync("failures", "s", "retry")   # what was looked at while it moved
        site.settle("without those bricks")
        assert site.no_failures()


def test_a_brick_is_exchanged_for_another_while_the_session_is_stopped(tmp_path: Path) -> None:
    """There are as many as before, and none of those that there are has recorded what the removed one did last."""
    with gluster_site(tmp_path, "distribute 2") as site:
        folder = site.master / "many"
        folder.mkdir()
        for n in range(40):
            (folder / f"file{n}").write_text("first")
        site.start()
        site.settle("at first")
        site.stop()
        node, brick = site.cluster.bricks()[0]
        for path in (brick / "many").iterdir():
            (folder / path.name).write_text("last")
        site.set_back(time.time_ns() + 10 * SUSPECT_MARGIN, "1of2")  # the other worker had gone on for some time
        more = f"{node.address}:{node.bricks / f'{MASTER}-more'}"
        node.gluster("volume", "add-brick", MASTER, more, "force")
        old = f"{node.address}:{brick}"
        node.gluster("volume", "remove-brick", MASTER, old, "start")
        site.wait("files were moved off the brick", lambda: completed(site, "remove-brick", MASTER, old), PATIENCE)
        node.gluster("volume", "remove-brick", MASTER, old, "commit")
        site.wait("the mount has followed", lambda: can_make(site.master / "after"))
        site.go_on()
        site.wait("what the brick recorded last is at the slave", lambda: all(
            (site.slave / "many" / path.name).read_bytes() == path.read_bytes() for path in folder.iterdir()))
        assert site.no_failures()
