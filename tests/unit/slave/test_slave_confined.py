"""Nothing outside ROOT is touched, whoever plants what in the slave tree; foreign changes there are never a crash."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsync.base.errors import SlaveError
from gsync.base.model import NS
from gsync.base.model import ROOT_GFID as ROOT
from gsync.link.protocol import FillRow, MetaRow, RemoveRow
from lab.slave_model import DIR, FIFO, LNK, REG, Planner, Slave, World, check_index, check_tree
from lab.trees import compare

F, D, G = b"f" * 16, b"d" * 16, b"g" * 16


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder with something in it that must be the same at the end."""
    path, copy = tmp_path / "outside", tmp_path / "copy"
    path.mkdir()
    (path / "dir").mkdir()
    (path / "file").write_bytes(b"precious")
    (path / "dir" / "file").write_bytes(b"precious too")
    subprocess.run(["cp", "-a", path, copy], check=True)
    yield path
    assert compare(path, copy) == []


@pytest.fixture
def world(slave: Slave) -> World:
    """A master and, in `slave`, its copy: d/{f,sub/g}, link -> somewhere."""
    world = World()
    d = world.mkdir(ROOT, b"d")
    world.create(d, b"f", b"bytes of f")
    world.create(world.mkdir(d, b"sub"), b"g", b"bytes of g")
    world.symlink(ROOT, b"link")
    Planner(world, slave.apply, random.Random(1)).batch(world.dirty, 10)
    return world


def row(pargfid: bytes, bname: bytes, gfid: bytes, mode: int, target: bytes | None = None, nlink: int = 1) -> FillRow:
    return FillRow(pargfid, bname, gfid, mode, 50, nlink, 0, 0, 1, 1, 0, target, [])


def everything_again(slave: Slave, world: World, stime: int = 100) -> None:
    """As a hybrid crawl would: all names that either side has."""
    dirty = {*world.names, *(e.name for g in [ROOT, *world.nodes] for e in slave.tree.index.children(g))}
    Planner(world, slave.apply, random.Random(2)).batch(dirty, stime)


# planted symlinks


@pytest.mark.parametrize("target", ["outside", "outside/dir", "outside/file", ".gsync", "nowhere", ".", ".."])
def test_a_symlink_planted_at_a_directorys_place(
        slave: Slave, world: World, root: Path, outside: Path, target: str) -> None:
    """It is no directory of ours: the real one is made again beside, and the symlink goes."""
    shutil.rmtree(root / "d")
    (root / "d").symlink_to(outside.parent / target if target.startswith("out") else target)
    d = world.names[ROOT, b"d"]
    f = world.names[d, b"f"]
    assert slave.apply.fill([row(d, b"new", F, LNK, b"x"), row(d, b"f", f, REG)]).answers == ["parent", "parent"]
    assert slave.apply.remove([RemoveRow(d, b"f", 50), RemoveRow(d, b"file", 50)]).errors == []
    assert slave.apply.meta([MetaRow(f, 0o777, 1, 1, 5, 5, []), MetaRow(d, 0o777, 1, 1, 5, 5, [])]) == [-1, -1]
    assert slave.apply.expose([f]) == [-1]
    with pytest.raises(FileNotFoundError):
        slave.tree.open_file(f)
    everything_again(slave, world)
    assert check_tree(root, world) == check_index(slave.tree) == []


def test_a_symlink_planted_at_a_files_place(slave: Slave, world: World, root: Path, outside: Path) -> None:
    f = world.names[world.names[ROOT, b"d"], b"f"]
    (root / "d/f").unlink()
    (root / "d/f").symlink_to(outside / "file")
    assert slave.apply.meta([MetaRow(f, 0o777, 1, 1, 5, 5, [])]) == [-1]
    assert slave.apply.expose([f]) == [-1]
    assert slave.apply.digest([f]) == [(-1, 0, "")]
    with pytest.raises(FileNotFoundError):
        slave.tree.open_file(f, os.O_RDWR)
    everything_again(slave, world)
    assert check_tree(root, world) == check_index(slave.tree) == []


def test_attributes_of_a_symlink_are_its_own(slave: Slave, root: Path, outside: Path) -> None:
    assert slave.apply.fill([row(ROOT, b"l", F, LNK, os.fsencode(outside / "file"))]).answers == ["ok"]
    assert slave.apply.meta([MetaRow(F, LNK, os.geteuid(), os.getegid(), 5 * NS, 6 * NS, [])]) == [0]
    assert (root / "l").lstat().st_mtime_ns == 5 * NS


@pytest.mark.parametrize("place", ["limbo", "limbo/new", "limbo/old", "limbo/del"])
def test_a_symlink_planted_for_a_state_folder_stops_the_agent(slave: Slave, outside: Path, root: Path, place: str
                                                              ) -> None:
    slave.close()
    try:
        shutil.rmtree(root / ".gsync" / place)
        (root / ".gsync" / place).symlink_to(outside)
        with pytest.raises((OSError, SlaveError), match=r"Not a directory|symbolic link"):
            Slave(root)
    finally:
        shutil.rmtree(root / ".gsync")
        reopened = Slave(root)
        slave.tree, slave.taken = reopened.tree, reopened.taken


def test_a_symlink_planted_for_the_trash(root: Path, outside: Path) -> None:
    with Slave(root, delete_retention=100) as slave:
        slave.apply.fill([row(ROOT, b"l", F, LNK, b"x")])
        (root / ".gsync/trash").rmdir()
        (root / ".gsync/trash").symlink_to(outside)
        slave.apply.remove([RemoveRow(ROOT, b"l", 5)])
        with pytest.raises(OSError, match=r"Not a directory|symbolic link"):
            slave.apply.commit(10, 10, 0, clear=True)


def test_gsyncs_own_folder_is_out_of_reach(slave: Slave, root: Path) -> None:
    """Under another name too, as a file system without case might tell it."""
    inode = (root / ".gsync").stat().st_ino
    (root / ".gsync").rename(root / "other name")
    answer = slave.apply.fill([row(ROOT, b"other name", F, LNK, b"x")])
    assert (answer.answers, [p.errno for p in answer.errors]) == (["error"], [errno.EPERM])
    assert [p.errno for p in slave.apply.remove([RemoveRow(ROOT, b"other name", 5)]).errors] == [errno.EPERM]
    (root / "other name").rename(root / ".gsync")
    assert (root / ".gsync").stat().st_ino == inode


# directories that move while the agent has them open


def test_a_directory_moved_out_of_the_tree_is_left_alone(slave: Slave, world: World, root: Path, tmp_path: Path
                                                         ) -> None:
    d = world.names[ROOT, b"d"]
    slave.apply.fill([row(d, b"warm", F, LNK, b"x")])  # the agent has it open now
    stolen = tmp_path / "stolen"
    (root / "d").rename(stolen)
    before = sorted(p.name for p in stolen.iterdir())
    assert slave.apply.fill([row(d, b"new", G, LNK, b"x")]).answers == ["parent"]
    assert slave.apply.remove([RemoveRow(d, b"f", 50)]).displaced == []
    assert slave.apply.meta([MetaRow(d, DIR, 0, 0, 5, 5, [])]) == [-1]
    assert sorted(p.name for p in stolen.iterdir()) == before
    everything_again(slave, world)
    assert check_tree(root, world) == check_index(slave.tree) == []


def test_another_directory_at_a_directorys_place_is_not_taken_for_it(world: World, slave: Slave, root: Path) -> None:
    d = world.names[ROOT, b"d"]
    (root / "d").rename(root / "moved by somebody")
    (root / "d").mkdir()
    slave.close()
    with Slave(root) as again:  # nothing is open there yet
        assert again.apply.fill([row(d, b"new", F, LNK, b"x")]).answers == ["parent"]
        assert again.apply.remove([RemoveRow(d, b"f", 50)]).displaced == []
        assert list((root / "d").iterdir()) == []
        assert (root / "moved by somebody/f").exists()
    reopened = Slave(root)
    slave.tree, slave.taken = reopened.tree, reopened.taken


def test_names_that_change_all_the_time_lead_nowhere_else(slave: Slave, world: World, root: Path, outside: Path
                                                          ) -> None:
    """Somebody swaps a directory and a symlink to the outside, as fast as possible, while the agent works there."""
    d = world.names[ROOT, b"d"]
    (root / "swap").symlink_to(outside)
    ends = threading.Event()

    def swap() -> None:
        while not ends.is_set():
            for one, two in (("d", "tmp"), ("swap", "d"), ("d", "swap"), ("tmp", "d")):
                with contextlib.suppress(OSError):
                    (root / one).rename(root / two)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        codes = set()
        for n in range(300):
            answer = slave.apply.fill([row(d, b"file", n.to_bytes(16, "big"), LNK, b"x")])
            codes |= set(answer.answers)
            slave.apply.remove([RemoveRow(d, b"file", 50)])
            slave.apply.meta([MetaRow(d, DIR, 0, 0, 5, 5, [])])
        assert codes <= {"ok", "parent", "error"}
    finally:
        ends.set()
        thread.join()


@pytest.mark.root
def test_a_mount_point_in_the_tree_is_not_entered(slave: Slave, world: World, root: Path, outside: Path) -> None:
    d, link = world.names[ROOT, b"d"], world.names[ROOT, b"link"]
    subprocess.run(["mount", "-t", "tmpfs", "none", root / "d"], check=True)
    try:
        (root / "d/f").write_bytes(b"of another file system")
        answer = slave.apply.fill([row(d, b"new", F, LNK, b"x"), row(ROOT, b"d", link, LNK)])
        assert answer.answers == ["parent", "error"]
        assert [p.errno for p in answer.errors] == [errno.EBUSY]
        assert [p.errno for p in slave.apply.remove([RemoveRow(ROOT, b"d", 50)]).errors] == [errno.EBUSY]
        assert (root / "d/f").read_bytes() == b"of another file system"
    finally:
        subprocess.run(["umount", root / "d"], check=True)


# foreign changes


def meddle(root: Path, rng: random.Random) -> None:
    """Somebody else's changes to the slave tree."""
    paths = [p for p in sorted(root.rglob("*")) if ".gsync" not in p.relative_to(root).parts]
    if not paths:
        return
    for n in range(rng.randint(1, 4)):
        path = rng.choice(paths)
        try:
            kind = rng.randrange(5)
            if kind == 0:
                path.rename(rng.choice(paths))
            elif kind == 1:
                path.rename(root / f"foreign{n}")
            elif kind == 2 and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif kind == 3:
                path.unlink()
                path.symlink_to("/etc/passwd")
            else:
                path.unlink()
                path.mkdir()
        except OSError:
            pass


@pytest.mark.parametrize("seed", range(30))
def test_after_any_foreign_change_all_can_be_put_right(slave: Slave, world: World, root: Path, seed: int) -> None:
    rng = random.Random(seed)
    world.link(world.names[world.names[ROOT, b"d"], b"f"], ROOT, b"f too")
    world.make(ROOT, b"fifo", FIFO)
    everything_again(slave, world)
    meddle(root, rng)
    everything_again(slave, world, 200)
    wanted = world.paths()
    assert [text for text in check_tree(root, world) if "too much" not in text] == []
    assert all(os.path.lexists(os.fsencode(root) + b"/" + path) for path in wanted)
    assert check_index(slave.tree, foreign=True) == []


@pytest.mark.parametrize("seed", range(10))
def test_foreign_changes_while_no_agent_runs_after_a_kill(root: Path, seed: int) -> None:
    world, rng = World(), random.Random(seed)
    d = world.mkdir(ROOT, b"d")
    world.create(d, b"f", b"F")
    world.create(world.mkdir(d, b"sub"), b"g", b"G")
    with Slave(root) as slave:
        everything_again(slave, world)
        world.rename((ROOT, b"d"), (ROOT, b"e"))
        world.rename((d, b"f"), (ROOT, b"f"))
        slave.apply.fill([row(ROOT, b"e", d, DIR), row(ROOT, b"f", world.names[ROOT, b"f"], REG)])
        slave.apply.remove([RemoveRow(d, b"sub", 300)])
    meddle(root, rng)
    meddle(root / ".gsync/limbo/old", rng)
    with Slave(root) as slave:
        everything_again(slave, world, 200)
        assert [text for text in check_tree(root, world) if "too much" not in text] == []
        assert check_index(slave.tree, foreign=True) == []


def test_a_foreign_inode_in_the_way_gives_way(slave: Slave, root: Path) -> None:
    (root / "file").write_bytes(b"foreign")
    (root / "dir").mkdir()
    (root / "dir/inside").write_bytes(b"foreign")
    rows = [row(ROOT, b"file", F, DIR), row(ROOT, b"dir", G, LNK, b"x")]
    assert slave.apply.fill(rows).answers == ["made", "ok"]
    assert slave.apply.fill(rows).answers == ["ok", "ok"]
    assert stat.S_ISDIR((root / "file").lstat().st_mode)
    assert os.readlink(root / "dir") == "x"
    assert all(name.startswith("x.") for name in os.listdir(slave.tree.old_fd))
    slave.apply.commit(100, 100, 0, clear=True)
    slave.tree.sweep()
    assert os.listdir(slave.tree.old_fd) == []


def test_foreign_names_are_not_listed_but_can_be_removed(slave: Slave, world: World, root: Path) -> None:
    (root / "foreign").write_bytes(b"")
    assert slave.apply.names_in(ROOT, None, 10) == ([(n[1], g) for n, g in sorted(world.names.items())
                                                    if n[0] == ROOT], None)
    assert slave.apply.remove([RemoveRow(ROOT, b"foreign", 5), RemoveRow(ROOT, b"not there", 5)]).errors == []
    assert not (root / "foreign").exists()
