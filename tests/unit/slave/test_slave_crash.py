"""The agent's work killed after every single step: the next agent recovers, a replay makes all right."""

from __future__ import annotations

import os
import random
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gsync.base import fsid
from gsync.base.model import ROOT_GFID as ROOT
from lab.slave_model import (
    FIFO,
    REG,
    Killed,
    Planner,
    Slave,
    World,
    check_index,
    check_limbo_empty,
    check_tree,
    walk,
)

Change = Callable[[World], None]


def swap(world: World, one: tuple[bytes, bytes], two: tuple[bytes, bytes]) -> None:
    world.rename(one, (ROOT, b"\ntmp"))
    world.rename(two, one)
    world.rename((ROOT, b"\ntmp"), two)


def start(world: World) -> None:
    """What is on the slave before each change."""
    a, b = world.mkdir(ROOT, b"a"), world.mkdir(ROOT, b"b\n\xff")
    inner = world.mkdir(a, b"inner")
    world.create(ROOT, b"f", b"f's bytes")
    world.create(ROOT, b"g", b"g's bytes")
    linked = world.create(a, b"h", b"h's bytes")
    world.link(linked, b, b"h2")
    world.create(inner, b"deep", b"deep bytes")
    world.symlink(b, b"link", b"../nowhere")
    world.make(b, b"fifo", FIFO)


def files_swapped(world: World) -> None:
    swap(world, (ROOT, b"f"), (ROOT, b"g"))


def directories_swapped(world: World) -> None:
    swap(world, (ROOT, b"a"), (ROOT, b"b\n\xff"))


def chain_of_renames(world: World) -> None:
    world.rename((ROOT, b"g"), (ROOT, b"z"))
    world.rename((ROOT, b"f"), (ROOT, b"g"))
    world.rename((ROOT, b"a"), (ROOT, b"f"))
    world.rename((ROOT, b"b\n\xff"), (ROOT, b"a"))


def renamed_over(world: World) -> None:
    world.rename((ROOT, b"f"), (ROOT, b"g"))
    world.rename((world.names[ROOT, b"a"], b"h"), (world.names[ROOT, b"b\n\xff"], b"link"))


def replaced_by_a_new_file(world: World) -> None:
    world.create(ROOT, b"new", b"fresh bytes")
    world.rename((ROOT, b"new"), (ROOT, b"f"))


def hard_links(world: World) -> None:
    a, b = world.names[ROOT, b"a"], world.names[ROOT, b"b\n\xff"]
    world.remove((a, b"h"))
    world.link(world.names[ROOT, b"f"], a, b"f too")
    world.remove((ROOT, b"g"))
    world.link(world.names[ROOT, b"f"], ROOT, b"g")
    new = world.create(b, b"new", b"many names")
    world.link(new, a, b"new")
    world.link(world.names[b, b"link"], a, b"symlink with two names")


def directory_into_its_sibling(world: World) -> None:
    world.rename((ROOT, b"a"), (world.names[ROOT, b"b\n\xff"], b"a"))


def directory_turned_inside_out(world: World) -> None:
    a = world.names[ROOT, b"a"]
    inner = world.names[a, b"inner"]
    world.rename((a, b"inner"), (ROOT, b"outer"))
    world.rename((ROOT, b"a"), (inner, b"a"))


def directory_replaced_by_a_file(world: World) -> None:
    world.remove((ROOT, b"a"))
    world.create(ROOT, b"a", b"a file now")


def file_replaced_by_a_directory(world: World) -> None:
    world.remove((ROOT, b"f"))
    world.create(world.mkdir(ROOT, b"f"), b"inside", b"inside bytes")


def deep_new_tree(world: World) -> None:
    parent = ROOT
    for level in range(6):
        parent = world.mkdir(parent, b"level%d" % level)
        world.create(parent, b"file", b"at level %d" % level)
    world.symlink(parent, b"link")


def old_things_moved_into_a_new_directory(world: World) -> None:
    new = world.mkdir(ROOT, b"new")
    world.rename((ROOT, b"a"), (new, b"a"))
    world.rename((ROOT, b"f"), (new, b"f"))
    world.create(new, b"fresh", b"fresh bytes")


def tree_moved_in_from_outside(world: World) -> None:
    """One record, for its top."""
    before = set(world.dirty)
    top = world.mkdir(ROOT, b"top")
    for n in range(12):
        world.create(world.mkdir(top, b"%d" % n), b"file", b"in %d" % n)
    world.dirty = before | {(ROOT, b"top")}


def written_in_place(world: World) -> None:
    f = world.names[ROOT, b"f"]
    world.nodes[f].data = b"f's BYTES"  # no longer: ext4 would write more of it by itself
    world.written.add(f)
    world.dirty.add((ROOT, b"f"))


def tree_deleted_with_a_child_moved_out(world: World) -> None:
    a = world.names[ROOT, b"a"]
    world.rename((a, b"inner"), (ROOT, b"saved"))
    world.remove((ROOT, b"a"))


def everything_deleted(world: World) -> None:
    for name in [n for n in world.names if n[0] == ROOT]:
        world.remove(name)


CHANGES = [
    start, files_swapped, directories_swapped, chain_of_renames, renamed_over, replaced_by_a_new_file, hard_links,
    directory_into_its_sibling, directory_turned_inside_out, directory_replaced_by_a_file,
    file_replaced_by_a_directory, deep_new_tree, tree_moved_in_from_outside, written_in_place,
    old_things_moved_into_a_new_directory, tree_deleted_with_a_child_moved_out, everything_deleted,
]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory where that is possible: hundreds of commits, each with its syncfs."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="gsync-test-") as name:
        yield Path(name)


class Case:
    """A synced slave and a change of its master that is to be brought over."""

    def __init__(self, folder: Path, change: Change, seed: int) -> None:
        self.root = folder / "slave"
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()
        self.world = World()
        self.seed = seed
        if change is not start:
            start(self.world)
            with Slave(self.root) as slave:
                self.apply(slave, 10)
                self.planner(slave).quiet(20)
            self.world.dirty.clear()
        change(self.world)

    def planner(self, slave: Slave) -> Planner:
        return Planner(self.world, slave.apply, random.Random(self.seed))

    def apply(self, slave: Slave, stime: int) -> None:
        self.planner(slave).batch(self.world.dirty, stime)

    def killed(self, step: int, stime: int = 30) -> bool:
        """Apply, and die at this step, of the start or of the batch; False if it was done before."""
        self.steps: list[str] = []

        def on_step(n: int, name: str) -> None:
            self.steps.append(name)
            if n == step:
                raise Killed(name)

        try:
            with Slave(self.root, on_step) as slave:
                self.apply(slave, stime)
        except Killed:
            return True
        return False

    def wrong(self, stime: int = 40) -> list[str]:
        """Bring it to an end; what is not as it must be."""
        with Slave(self.root) as slave:
            found = [f"after recovery: {text}" for text in check_index(slave.tree, foreign=True)]
            self.apply(slave, stime)
            found += check_tree(self.root, self.world) + check_index(slave.tree)
            self.planner(slave).quiet(stime + 10)
            return found + check_tree(self.root, self.world) + check_index(slave.tree) + check_limbo_empty(slave.tree)


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_brought_over(folder: Path, change: Change) -> None:
    assert Case(folder, change, seed=1).wrong() == []


@pytest.mark.parametrize("change", CHANGES)
def test_killed_after_every_step(folder: Path, change: Change) -> None:
    step, more = 0, True
    while more:
        case = Case(folder, change, seed=step)
        more = case.killed(step)
        assert case.wrong() == [], f"killed at step {step}"
        step += 1
    assert step > 5


@pytest.mark.parametrize("change", [files_swapped, directories_swapped, replaced_by_a_new_file, hard_links,
                                    directory_turned_inside_out, old_things_moved_into_a_new_directory])
def test_killed_after_every_step_where_inodes_are_known_by_name_alone(
        folder: Path, monkeypatch: pytest.MonkeyPatch, change: Change) -> None:
    monkeypatch.setattr(fsid, "_makes_up_numbers", lambda fd: True)
    test_killed_after_every_step(folder, change)


@pytest.mark.parametrize("change", CHANGES)
def test_killed_after_every_step_and_again_in_the_recovery(folder: Path, change: Change) -> None:
    step, more = 0, True
    while more:
        case = Case(folder, change, seed=step)
        more = case.killed(step)
        for again in range(0, 12, 3):
            case.killed(again, stime=31)
        assert case.wrong() == [], f"killed at step {step}"
        step += 2


@pytest.mark.parametrize("change", [c for c in CHANGES if c not in (start, written_in_place)])
def test_killed_and_the_master_went_back_meanwhile(folder: Path, change: Change) -> None:
    """What an unfinished batch has made but the master has no more goes, though no record names it."""
    step, more = 0, True
    while more:
        case = Case(folder, change, seed=step)
        more = case.killed(step)
        if "committed" in case.steps:
            break  # from now on only a record could tell
        world = World()
        start(world)
        first = {node.gfid for node in world.nodes.values()}
        case.world.names = world.names
        case.world.nodes = {g: n for g, n in case.world.nodes.items() if g in first}
        case.world.dirty = set()
        assert case.wrong() == [], f"killed at step {step}"
        step += 1


@pytest.mark.parametrize("change", CHANGES)
def test_a_new_file_is_never_visible_before_it_is_whole(folder: Path, change: Change) -> None:
    case = Case(folder, change, seed=3)
    contents = {node.data for node in case.world.nodes.values() if stat.S_ISREG(node.mode)}
    contents.add(b"f's bytes")

    def look(n: int, name: str) -> None:
        for path, _, _, _, st in walk(slave.tree.root_fd):
            if stat.S_ISREG(st.st_mode):
                with (case.root / path.decode("utf-8", "surrogateescape")).open("rb") as file:
                    assert file.read() in contents, f"{path!r} after {name}"
                assert (st.st_mode, st.st_mtime_ns) == (REG, 1_600_000_000_123_456_789), f"{path!r} after {name}"

    slave = Slave(case.root)
    slave.on_step = look
    with slave:
        case.apply(slave, 30)
    assert len(slave.steps) > 5


def test_a_replay_sends_nothing_again_that_was_in_place(folder: Path) -> None:
    case = Case(folder, old_things_moved_into_a_new_directory, seed=5)
    fresh = case.world.names[case.world.names[ROOT, b"new"], b"fresh"]
    step, more = 0, True
    while more:
        case = Case(folder, old_things_moved_into_a_new_directory, seed=step)
        more = case.killed(step)
        with Slave(case.root) as slave:
            planner = case.planner(slave)
            planner.batch(case.world.dirty, 40)
            assert set(planner.sent) <= {fresh}, f"killed at step {step}"
        step += 1


def test_deleted_trees_that_a_power_cut_brings_back_are_deleted_again(folder: Path) -> None:
    """Scenario 25: the rows of limbo/old/<dir> are gone, the directory is back."""
    case = Case(folder, everything_deleted, seed=1)
    gone = folder / "gone"
    with Slave(case.root) as slave:
        case.apply(slave, 30)
        old = case.root / ".gsync/limbo/old"
        subprocess.run(["cp", "-a", old, gone], check=True)
        case.planner(slave).quiet(40)
        assert list(old.iterdir()) == []
    for thing in gone.iterdir():
        thing.rename(old / thing.name)
    with Slave(case.root) as slave:
        slave.tree.sweep()
        assert check_limbo_empty(slave.tree) == []
        assert check_index(slave.tree) == []
