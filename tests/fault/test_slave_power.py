"""Power cuts at the slave: what had reached the disk at any step is enough to go on from.

The slave tree is an ext4 file system in an image file. At a step the image is copied: without a sync the copy holds
what ext4 had written by then and nothing else, as after a power cut. The copy is mounted, a new agent recovers there
and the batch is applied again.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from gsync.base.fsid import syncfs
from lab.images import FsImage, mounted_copy
from lab.slave_model import Planner, Slave, World, check_index, check_limbo_empty, check_tree, walk
from tests.unit.slave import test_slave_crash as crash

pytestmark = [pytest.mark.root, pytest.mark.slow]

CHANGES = [crash.start, crash.chain_of_renames, crash.replaced_by_a_new_file, crash.hard_links,
           crash.directory_turned_inside_out, crash.deep_new_tree, crash.written_in_place,
           crash.old_things_moved_into_a_new_directory, crash.everything_deleted]


def commit_journal(root: Path) -> None:
    """Have ext4 write its journal, as it does every few seconds: all names are durable then, unsynced bytes are not."""
    fd = os.open(root / ".gsync/limbo", os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def incomplete_files(root: Path, contents: set[bytes]) -> list[bytes]:
    """Files in the visible tree that hold what no file ever was (invariant 5)."""
    found = []
    fd = os.open(root, os.O_RDONLY)
    for path, _, dirfd, name, st in walk(fd):
        if stat.S_ISREG(st.st_mode):
            with open(os.open(name, os.O_RDONLY, dir_fd=dirfd), "rb") as file:
                if file.read() not in contents:
                    found.append(path)
    os.close(fd)
    return found


@pytest.mark.parametrize("change", CHANGES)
def test_the_power_fails_at_a_step(tmp_path: Path, change: Callable[[World], None]) -> None:
    rng = random.Random(change.__name__)
    with FsImage(tmp_path / "fs", 24 << 20, options="commit=300") as fs:
        root, world = fs.path / "slave", World()
        root.mkdir()
        if change is not crash.start:
            crash.start(world)
            with Slave(root) as slave:
                Planner(world, slave.apply, rng).batch(world.dirty, 10)
                Planner(world, slave.apply, rng).quiet(20)
            world.dirty.clear()
        change(world)
        contents = {n.data for n in world.nodes.values() if stat.S_ISREG(n.mode)}
        cuts = 0

        def maybe_cut(n: int, name: str) -> None:
            nonlocal cuts
            if rng.random() < 0.3 and name != "committed":
                return  # not at every step: each takes a second
            cuts += 1
            if rng.random() < 0.5:
                commit_journal(root)
            committed = "committed" in slave.steps
            with mounted_copy(tmp_path / "fs/image", tmp_path) as disk:
                found = disk / "slave"
                if change is crash.start and not found.exists():
                    return
                if change is not crash.written_in_place:
                    assert incomplete_files(found, contents) == [], f"cut at step {n}, {name}"
                with Slave(found) as after:
                    wrong = check_index(after.tree, foreign=True)
                    assert (after.tree.index.fact("stime") == 30) is committed
                    if committed:
                        wrong += check_tree(found, world)
                    planner = Planner(world, after.apply, random.Random(n))
                    planner.batch(world.dirty, 40)
                    wrong += check_tree(found, world) + check_index(after.tree)
                    planner.quiet(50)
                    wrong += check_tree(found, world) + check_index(after.tree) + check_limbo_empty(after.tree)
                    assert wrong == [], f"cut at step {n}, {name}"

        slave = Slave(root)
        slave.steps.clear()
        slave.on_step = maybe_cut
        with slave:
            Planner(world, slave.apply, rng).batch(world.dirty, 30)
        assert cuts > 1


def test_the_copy_is_what_a_power_cut_leaves(tmp_path: Path) -> None:
    """The means of this test itself: what was not synced is not in the copy, what was is."""
    with FsImage(tmp_path / "fs", 24 << 20) as fs:
        (fs.path / "synced").write_bytes(b"1")
        fd = os.open(fs.path, os.O_RDONLY)
        syncfs(fd)
        os.close(fd)
        (fs.path / "not synced").write_bytes(b"2")
        with mounted_copy(tmp_path / "fs/image", tmp_path) as root:
            assert {p.name for p in root.iterdir()} == {"synced", "lost+found"}
