"""A sharded volume as master: files arrive whole, their pieces never."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lab.gluster.cluster import MASTER
from lab.gluster.site import GlusterSite, gluster_site
from tests.gluster.test_master import change_older, changes

pytestmark = [pytest.mark.gluster, pytest.mark.root]

MIB = 1 << 20
SHARDED = {"features.shard": "on", "features.shard-block-size": "4MB"}
KINDS = ("appended", "grown", "overwritten", "cut", "at the border", "longer", "anew", "renamed", "removed")


def make(root: Path) -> None:
    root.mkdir()
    for kind in KINDS:
        (root / kind).write_bytes(os.urandom(11 * MIB))
    with (root / "sparse").open("wb") as file:
        file.seek(25 * MIB)
        file.write(b"at the end")


def change(root: Path) -> None:
    """Each file in its own way; most of it touches pieces that lie on the other brick than the file itself."""
    with (root / "appended").open("ab") as file:
        file.write(b"x" * 1000)
    with (root / "grown").open("ab") as file:
        file.write(os.urandom(9 * MIB))
    for offset in (0, 5, 9):
        with (root / "overwritten").open("r+b") as file:
            file.seek(offset * MIB)
            file.write(b"overwritten")
    os.truncate(root / "cut", 6 * MIB)
    os.truncate(root / "at the border", 8 * MIB)
    os.truncate(root / "longer", 30 * MIB)
    os.truncate(root / "anew", MIB)
    os.truncate(root / "anew", 13 * MIB)
    with (root / "anew").open("r+b") as file:
        file.seek(9 * MIB)
        file.write(b"a piece of its name again")
    os.rename(root / "renamed", root / "other name")
    (root / "removed").unlink()


def settle(site: GlusterSite, what: str) -> None:
    """Seen by a new mount: one that writes to a piece believes in a time of the file that no other client is told."""
    site.master = site.first.host.mount(MASTER, f"/mnt/{what}", "acl")
    site.settle(what)


def test_content_of_a_sharded_volume(tmp_path: Path) -> None:
    with gluster_site(tmp_path, "distribute 2", options=SHARDED) as site:
        master = site.master
        changes(master, "first")
        for part in ("live", "history"):
            make(master / part)
        site.start()
        settle(site, "hybrid")

        change(master / "live")
        change_older(master, "first")
        make(master / "new")
        settle(site, "live")
        # the one change of a piece that the file's own brick hears nothing of
        with (master / "live" / "overwritten").open("r+b") as file:
            file.seek(6 * MIB)
            file.write(b"once more")
        settle(site, "live2")

        site.stop()
        change(master / "history")
        change(master / "new")
        site.go_on()
        settle(site, "history")
        assert sorted(os.listdir(site.slave)) == sorted([".gsync", "first", "first-moved", "history", "live", "new"])
        assert site.no_failures()
