"""The sequences that broke GlusterFS's own geo-replication: live, after a stop (history), and when the same changelogs
are read again."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.gluster.site import GlusterSite, gluster_site

pytestmark = [pytest.mark.gluster, pytest.mark.root]

COUNT = 200  # of what is done over and over


def log_rotation(root: Path) -> None:
    root.mkdir()
    for n in range(20):
        for k in range(4, 0, -1):
            if (root / f"log.{k}").exists():
                os.rename(root / f"log.{k}", root / f"log.{k + 1}")
        if (root / "log").exists():
            os.rename(root / "log", root / "log.1")
        (root / "log").write_text(f"generation {n}\n" * 100)


def link_rename_unlink(root: Path) -> None:
    root.mkdir()
    for n in range(20):
        first = root / f"first{n}"
        first.write_text(str(n))
        (root / f"second{n}").hardlink_to(first)
        os.rename(root / f"second{n}", root / f"third{n}")
        first.unlink()


def symlink_renamed(root: Path) -> None:
    root.mkdir()
    for n in range(10):
        link = root / f"link{n}"
        link.symlink_to("somewhere")
        for k in range(3):
            os.rename(link, root / f"link{n}.{k}")
            link = root / f"link{n}.{k}"
        (root / f"link{n}").mkdir()          # a directory with the symlink's first name
        (root / f"link{n}" / "in it").touch()


def snapshots(root: Path) -> None:
    root.mkdir()
    (root / "now" / "sub").mkdir(parents=True)
    for n in range(10):
        (root / "now" / f"f{n}").write_text(str(n))
        (root / "now" / "sub" / f"g{n}").write_text(str(n))
    for n in range(3):
        subprocess.run(["cp", "-al", root / "now", root / f"snapshot{n}"], check=True)
        (root / "now" / f"f{n}").unlink()
        (root / "now" / f"f{n}").write_text("new")
    shutil.rmtree(root / "snapshot0")


def same_destination(root: Path) -> None:
    root.mkdir()
    for n in range(COUNT):
        (root / f"new{n}").write_text(f"{n}" * 50)
        os.rename(root / f"new{n}", root / "destination")


def directories_across_parents(root: Path) -> None:
    for parent in ("p", "q", "r"):
        (root / parent).mkdir(parents=True)
    for n in range(10):
        (root / "p" / f"d{n}" / "below").mkdir(parents=True)
        (root / "p" / f"d{n}" / "below" / "file").write_text(str(n))
        os.rename(root / "p" / f"d{n}", root / "q" / f"d{n}")
        (root / "p" / f"d{n}").mkdir()       # its first name again, for another one
        os.rename(root / "q" / f"d{n}", root / "r" / f"e{n}")
    os.rename(root / "r" / "e0", root / "p" / "d1" / "e0")
    os.rename(root / "p" / "d1", root / "q" / "x")
    os.rename(root / "q", root / "r" / "q")


def create_and_rename(root: Path) -> None:
    root.mkdir()
    for n in range(1000):
        (root / f".tmp{n}").write_text(str(n))
        os.rename(root / f".tmp{n}", root / f"file{n}")


def file_then_directory(root: Path) -> None:
    """The bricks replay by themselves: CREATE f, UNLINK f, MKDIR f on one, MKDIR f on the other."""
    root.mkdir()
    for n in range(20):
        name = root / f"name{n}"
        name.write_text("a file")
        name.unlink()
        name.mkdir()
        (name / "file").write_text("in the directory")
        shutil.rmtree(name)
        if n % 2:
            name.write_text("a file again")


SEQUENCES = (log_rotation, link_rename_unlink, symlink_renamed, snapshots, same_destination, directories_across_parents,
             file_then_directory)


def all_of_them(root: Path) -> None:
    root.mkdir()
    for sequence in SEQUENCES:
        sequence(root / sequence.__name__)


def live_and_by_history(site: GlusterSite, change: Callable[[Path], None]) -> None:
    change(site.master / "live")
    site.settle("live")
    site.stop()
    change(site.master / "history")
    site.go_on()
    site.settle("history")


def in_three_ways(site: GlusterSite, change: Callable[[Path], None]) -> None:
    site.start()
    site.settle("at first")
    begin = time.time_ns()
    walks = site.walks()
    live_and_by_history(site, change)
    site.stop()
    site.set_back(begin)
    site.go_on()
    site.settle("the same changelogs again")
    assert site.walks() == walks         # the changelogs did it
    assert site.no_failures()


@pytest.mark.parametrize("shape", ["replica 2", "distribute 2 x replica 2"])
def test_live_history_and_replay(tmp_path: Path, shape: str) -> None:
    with gluster_site(tmp_path, shape) as site:
        in_three_ways(site, all_of_them)


def test_a_thousand_files_that_are_made_and_renamed_with_one_sync_job(tmp_path: Path) -> None:
    with gluster_site(tmp_path, "distribute 2", ["sync-jobs=1"]) as site:
        in_three_ways(site, create_and_rename)


def test_to_a_volume(tmp_path: Path) -> None:
    """There is no index at the slave: the volume is asked where its directories are."""
    with gluster_site(tmp_path, "distribute 2 x replica 2", slave="distribute 2") as site:
        site.start()
        site.settle("at first")
        live_and_by_history(site, all_of_them)
        assert site.no_failures()
