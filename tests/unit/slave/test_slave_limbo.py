"""What waits in limbo and for how long, the trash, and deleting for good."""

from __future__ import annotations

import errno
import itertools
import os
import random
import stat
from datetime import date, timedelta
from pathlib import Path

import pytest

from gsync.base.model import ROOT_GFID as ROOT
from gsync.base.model import Gfid
from gsync.link.protocol import FillRow, RemoveRow
from lab.slave_model import DIR, REG, Planner, Slave, World, check_index, check_limbo_empty, check_tree

DAY = 24 * 3600


@pytest.fixture
def world() -> World:
    return World()


def sync(slave: Slave, world: World, stime: int) -> Planner:
    planner = Planner(world, slave.apply, random.Random(1))
    planner.batch(world.dirty, stime)
    world.dirty.clear()
    return planner


def fill_row(pargfid: Gfid, bname: bytes, gfid: Gfid, mode: int = REG, since: int = 50, nlink: int = 1) -> FillRow:
    return FillRow(pargfid, bname, gfid, mode, since, nlink, os.geteuid(), os.getegid(), 1, 1, 0, None, [])


def inode(slave: Slave, path: str) -> int:
    return (Path(os.fsdecode(slave.root)) / path).lstat().st_ino


def waiting(slave: Slave) -> list[str]:
    return sorted(os.listdir(slave.tree.old_fd))


# what waits


def test_what_is_removed_waits_until_the_stime_has_passed_its_removal(slave: Slave, world: World, root: Path) -> None:
    """Rule 25: a later batch may want it."""
    f = world.create(ROOT, b"f")
    sync(slave, world, 10)
    assert slave.apply.remove([RemoveRow(ROOT, b"f", 50)]).displaced == [f]
    assert not (root / "f").exists()
    answer = slave.apply.commit(49, 49, 0, clear=True)
    assert (answer.removed, answer.left, waiting(slave)) == (0, 1, [f.hex()])
    assert slave.apply.leftover_gfids(b"", 10) == [f]
    answer = slave.apply.commit(50, 50, 0, clear=True)
    assert (answer.removed, answer.left) == (1, 0)
    slave.tree.sweep()
    assert check_limbo_empty(slave.tree) == []


def test_an_interim_commit_lets_nothing_go_and_keeps_what_was_touched(slave: Slave, world: World) -> None:
    f = world.create(ROOT, b"f")
    sync(slave, world, 10)
    slave.apply.remove([RemoveRow(ROOT, b"f", 5)])
    slave.apply.commit(None, None, 0, clear=False)
    assert waiting(slave) == [f.hex()]
    assert slave.apply.leftover_names(None, 10) == [(ROOT, b"f")]


def test_what_waits_comes_back_as_the_same_inode(slave: Slave, world: World, root: Path) -> None:
    f = world.create(ROOT, b"f")
    d = world.mkdir(ROOT, b"d")
    world.create(d, b"inside")
    sync(slave, world, 10)
    before = inode(slave, "f"), inode(slave, "d"), inode(slave, "d/inside")
    slave.apply.remove([RemoveRow(ROOT, b"f", 50), RemoveRow(ROOT, b"d", 50)])
    answer = slave.apply.fill([fill_row(ROOT, b"f2", f), fill_row(ROOT, b"d2", d, DIR)])
    assert answer.answers == ["ok", "ok"]
    assert (inode(slave, "f2"), inode(slave, "d2"), inode(slave, "d2/inside")) == before
    assert check_index(slave.tree) == []
    assert waiting(slave) == []


def test_a_child_is_moved_out_of_a_directory_that_waits(slave: Slave, world: World) -> None:
    d = world.mkdir(ROOT, b"d")
    f = world.create(d, b"f")
    sync(slave, world, 10)
    before = inode(slave, "d/f")
    slave.apply.remove([RemoveRow(ROOT, b"d", 50)])
    assert slave.apply.fill([fill_row(d, b"new", b"n" * 16)]).answers == ["parent"]
    assert slave.apply.fill([fill_row(ROOT, b"f", f)]).answers == ["ok"]
    assert inode(slave, "f") == before
    slave.apply.commit(60, 60, 0, clear=True)
    slave.tree.sweep()
    assert check_index(slave.tree) == check_limbo_empty(slave.tree) == []


def test_a_name_is_taken_away_in_a_directory_that_waits(slave: Slave, world: World, root: Path) -> None:
    """The directory may come back within the batch, and the name was said to be gone."""
    d = world.mkdir(ROOT, b"d")
    f = world.create(d, b"f")
    sync(slave, world, 10)
    slave.apply.remove([RemoveRow(ROOT, b"d", 50)])
    assert slave.apply.remove([RemoveRow(d, b"f", 50)]).displaced == [f]
    assert slave.apply.fill([fill_row(ROOT, b"back", d, DIR)]).answers == ["ok"]
    assert list((root / "back").iterdir()) == []
    assert check_index(slave.tree) == []


def test_one_of_several_links_goes_at_once(slave: Slave, world: World, root: Path) -> None:
    f = world.create(ROOT, b"f")
    world.link(f, ROOT, b"f2")
    sync(slave, world, 10)
    answer = slave.apply.remove([RemoveRow(ROOT, b"f", 50)])
    assert (answer.displaced, waiting(slave)) == ([], [])
    assert (root / "f2").stat().st_nlink == 1


def test_a_link_for_rsync_does_not_count_as_another_name(slave: Slave, world: World) -> None:
    """Else the only copy would go with limbo/link."""
    f = world.create(ROOT, b"f")
    sync(slave, world, 10)
    assert slave.apply.expose([f, b"no such inode..."]) == [0, -1]
    assert slave.apply.remove([RemoveRow(ROOT, b"f", 50)]).displaced == [f]
    slave.apply.unexpose([f])
    assert waiting(slave) == [f.hex()]


def test_writing_to_the_link_for_rsync_writes_to_the_file(slave: Slave, world: World, root: Path) -> None:
    f = world.create(ROOT, b"f")
    sync(slave, world, 10)
    slave.apply.expose([f])
    (root / ".gsync/limbo/link" / f.hex()).write_bytes(b"from rsync")
    slave.apply.unexpose([f])
    assert (root / "f").read_bytes() == b"from rsync"
    assert check_limbo_empty(slave.tree) == []


def test_the_victim_of_a_rename_waits_if_it_was_its_last_name(slave: Slave, world: World, root: Path) -> None:
    """Rule 22: it may have moved on (scenario 22)."""
    f, g = world.create(ROOT, b"f", b"F"), world.create(ROOT, b"g", b"G")
    sync(slave, world, 10)
    answer = slave.apply.fill([fill_row(ROOT, b"g", f)])
    assert (answer.answers, answer.displaced, waiting(slave)) == (["ok"], [g], [g.hex()])
    assert (root / "g").read_bytes() == b"F"
    assert slave.apply.fill([fill_row(ROOT, b"elsewhere", g)]).answers == ["ok"]
    assert (root / "elsewhere").read_bytes() == b"G"
    assert waiting(slave) == []


def test_a_name_that_is_another_link_of_the_same_inode_is_left_alone(slave: Slave, world: World) -> None:
    """Scenario 26: rename(2) between two links of one inode does nothing and says nothing."""
    f = world.create(ROOT, b"f")
    world.link(f, ROOT, b"f2")
    sync(slave, world, 10)
    slave.apply.remove([RemoveRow(ROOT, b"f", 50)])
    slave.apply.remove([RemoveRow(ROOT, b"f2", 50)])
    os.link(f.hex().encode(), b"f", src_dir_fd=slave.tree.old_fd, dst_dir_fd=slave.tree.root_fd)
    assert slave.apply.fill([fill_row(ROOT, b"f", f)]).answers == ["ok"]
    assert slave.apply.known([f]) == [1]
    slave.apply.commit(40, 40, 0, clear=True)  # not old enough, but only a spare link
    assert waiting(slave) == []
    assert check_index(slave.tree) == []


def test_an_unattached_directory_goes_at_the_commit_and_its_old_content_waits(slave: Slave, world: World) -> None:
    f = world.create(ROOT, b"f")
    sync(slave, world, 10)
    new = b"new directory..."
    assert slave.apply.fill([fill_row(ROOT, b"new", new, DIR)]).answers == ["made"]
    assert slave.apply.fill([fill_row(new, b"f", f), fill_row(new, b"g", b"g" * 16)]).answers == ["ok", "direct"]
    slave.apply.remove([RemoveRow(ROOT, b"f", 50)])
    slave.apply.commit(20, 20, 0, clear=True)
    slave.tree.sweep()
    assert waiting(slave) == [f.hex()]
    assert slave.apply.known([new, f]) == [0, 1]
    assert check_index(slave.tree) == []


def test_a_directory_is_let_go_with_all_its_rows(slave: Slave, world: World) -> None:
    d = world.mkdir(ROOT, b"d")
    for n in range(5):
        sub = world.mkdir(d, b"%d" % n)
        for m in range(5):
            world.create(sub, b"%d" % m)
    sync(slave, world, 10)
    world.remove((ROOT, b"d"))
    sync(slave, world, 20).quiet(30)
    assert slave.tree.index.count()[0] == 0
    assert check_limbo_empty(slave.tree) == []


# deleting


def test_a_tree_deeper_than_any_path_is_deleted(slave: Slave, world: World) -> None:
    parent = ROOT
    for level in range(30):
        parent = world.mkdir(parent, b"%02d" % level * 120)
    world.create(parent, b"bottom")
    sync(slave, world, 10)
    assert check_tree(slave.root, world) == check_index(slave.tree) == []
    world.remove((ROOT, b"00" * 120))
    sync(slave, world, 20).quiet(30)
    assert check_limbo_empty(slave.tree) == check_index(slave.tree) == []


def test_a_thousand_levels_are_filled_and_deleted(slave: Slave, world: World) -> None:
    """More than descriptors are kept, and than Python recurses."""
    gfids = [ROOT, *(b"deep" + level.to_bytes(12, "big") for level in range(1100))]
    rows = [fill_row(parent, b"d", gfid, DIR) for parent, gfid in itertools.pairwise(gfids)]
    assert slave.apply.fill(rows).answers == ["made"] * 1100
    assert slave.apply.fill(rows[::-1]).answers == ["ok"] * 1100
    assert slave.apply.fill([fill_row(gfids[-1], b"f", b"f" * 16)]).answers == ["new"]
    assert check_index(slave.tree) == []
    slave.apply.remove([RemoveRow(ROOT, b"d", 50)])
    slave.apply.commit(60, 60, 0, clear=True)
    assert slave.tree.sweep()
    assert check_limbo_empty(slave.tree) == check_index(slave.tree) == []


def test_deleting_stops_when_there_is_something_to_do_and_goes_on_later(slave: Slave, world: World) -> None:
    d = world.mkdir(ROOT, b"d")
    for n in range(50):
        world.create(d, b"%d" % n)
    sync(slave, world, 10)
    slave.apply.remove([RemoveRow(ROOT, b"d", 50)])
    slave.apply.commit(60, 60, 0, clear=True)
    left = iter(range(20))
    assert not slave.tree.sweep(lambda: next(left, None) is not None)
    assert check_limbo_empty(slave.tree) != []
    assert slave.tree.sweep()
    assert check_limbo_empty(slave.tree) == []


# the trash


def test_deleted_things_go_to_the_trash_of_the_day_whole(root: Path, world: World) -> None:
    d = world.mkdir(ROOT, b"photos\n\xff")
    world.create(d, b"one", b"picture")
    long = world.create(ROOT, b"n" * 255, b"long")
    with Slave(root, delete_retention=DAY) as slave:
        sync(slave, world, 10)
        for bname in (b"photos\n\xff", b"n" * 255):
            slave.apply.remove([RemoveRow(ROOT, bname, 15)])
        slave.apply.commit(20, 20, 0, clear=True)
        trash = os.fsencode(root / ".gsync/trash" / date.today().isoformat())
        assert sorted(os.listdir(trash)) == sorted([b"photos\n\xff." + d.hex()[:8].encode(),
                                                    b"n" * 246 + b"." + long.hex()[:8].encode()])
        with open(trash + b"/photos\n\xff." + d.hex()[:8].encode() + b"/one", "rb") as file:
            assert file.read() == b"picture"
        assert check_index(slave.tree) == check_limbo_empty(slave.tree) == []


def test_the_same_thing_twice_a_day_gets_two_places(root: Path, world: World) -> None:
    with Slave(root, delete_retention=DAY) as slave:
        for stime in (10, 30):
            world.make(ROOT, b"f", REG, b"%d" % stime)
            world.nodes = {b"same gfid again!": world.nodes.popitem()[1]}
            world.names[ROOT, b"f"] = world.nodes[b"same gfid again!"].gfid = b"same gfid again!"
            sync(slave, world, stime)
            world.remove((ROOT, b"f"))
            sync(slave, world, stime + 5).quiet(stime + 10)
        trash = root / ".gsync/trash" / date.today().isoformat()
        assert sorted(p.read_bytes() for p in trash.iterdir()) == [b"10", b"30"]


def test_old_days_leave_the_trash(root: Path) -> None:
    with Slave(root, delete_retention=2 * DAY) as slave:
        trash = root / ".gsync/trash"
        days = [date.today() - timedelta(days=n) for n in (0, 1, 2, 4, 400)]
        for day in days:
            (trash / day.isoformat()).mkdir()
            (trash / day.isoformat() / "thing").write_bytes(b"")
        (trash / "not a day").mkdir()
        slave.apply.commit(10, 10, 0, clear=True)
        slave.tree.sweep()
        assert {p.name for p in trash.iterdir()} == {"not a day", *(day.isoformat() for day in days[:3])}


def test_a_foreign_file_in_the_way_goes_to_the_trash_too(root: Path, world: World) -> None:
    with Slave(root, delete_retention=DAY) as slave:
        (root / "f").write_bytes(b"put here by somebody")
        world.create(ROOT, b"f")
        sync(slave, world, 10).quiet(20)
        (thing,) = (root / ".gsync/trash" / date.today().isoformat()).iterdir()
        assert thing.read_bytes() == b"put here by somebody"
        assert thing.name.startswith("f.")
        assert check_tree(root, world) == check_index(slave.tree) == []


# file systems without hard links


class NoLinks:
    """link(2) as it is where there are no hard links."""

    def __init__(self, error: int) -> None:
        self.error = error

    def __call__(self, *args: object, **more: object) -> None:
        raise OSError(self.error, os.strerror(self.error))


@pytest.mark.parametrize("error", [errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_without_hard_links_a_file_that_only_moves_is_renamed(
        slave: Slave, world: World, root: Path, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    f, g = world.create(ROOT, b"f", b"F"), world.create(ROOT, b"g", b"G")
    sync(slave, world, 10)
    monkeypatch.setattr(os, "link", NoLinks(error))
    answer = slave.apply.fill([fill_row(ROOT, b"moved", f), fill_row(ROOT, b"g2", g, nlink=2)])
    assert answer.answers == ["ok", "error"]
    assert [(p.row, p.errno) for p in answer.errors] == [(1, error)]
    assert answer.vacated == [(ROOT, b"f")]
    assert (root / "moved").read_bytes() == b"F"
    assert (root / "g").read_bytes() == b"G"
    assert check_index(slave.tree) == []
    assert slave.apply.fill([fill_row(ROOT, b"g", f)]).answers == ["ok"]  # over a victim, which waits all the same
    assert waiting(slave) == [g.hex()]
    assert stat.S_ISREG((root / "g").lstat().st_mode)
    assert check_index(slave.tree) == []
