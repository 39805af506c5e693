"""A copy that was made by other means is taken over by names; what is not on the master goes."""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from gsync.base.model import ROOT_GFID as ROOT
from gsync.link.protocol import FillRow
from lab.slave_model import (
    DIR,
    FIFO,
    LNK,
    REG,
    Killed,
    Planner,
    Slave,
    World,
    check_index,
    check_limbo_empty,
    check_tree,
)

F, G, D = b"f" * 16, b"g" * 16, b"d" * 16


@pytest.fixture
def copy(root: Path) -> Path:
    """Somebody's copy of `master()`, with some things wrong."""
    (root / "d").mkdir()
    (root / "d/same").write_bytes(b"same bytes")
    (root / "d/differs").write_bytes(b"old bytes")
    (root / "link").symlink_to("target")
    (root / "wrong link").symlink_to("elsewhere")
    (root / "one").write_bytes(b"linked")
    os.link(root / "one", root / "two")
    (root / "three").write_bytes(b"split")
    os.link(root / "three", root / "four")
    (root / "kind").write_bytes(b"a file")
    (root / "too much").mkdir()
    (root / "too much/inside").write_bytes(b"foreign")
    (root / "d/foreign\n\xff").write_bytes(b"foreign")
    os.mkfifo(root / "fifo", 0o600)
    return root


@pytest.fixture
def world() -> World:
    world = World()
    d = world.mkdir(ROOT, b"d")
    world.create(d, b"same", b"same bytes")
    world.create(d, b"differs", b"new bytes")
    world.symlink(ROOT, b"link", b"target")
    world.symlink(ROOT, b"wrong link", b"right")
    world.link(world.create(ROOT, b"one", b"linked"), ROOT, b"two")
    world.create(ROOT, b"three", b"split")
    world.create(ROOT, b"four", b"split")
    world.mkdir(ROOT, b"kind")
    world.make(ROOT, b"fifo", FIFO)
    world.create(world.mkdir(ROOT, b"missing"), b"inside", b"new")
    world.written |= world.nodes.keys()  # a worker that adopts compares all files
    return world


@pytest.fixture
def slave(copy: Path) -> Iterator[Slave]:
    with Slave(copy, adopt=True) as slave:
        yield slave


def both_sides(slave: Slave, world: World) -> set[tuple[bytes, bytes]]:
    """As a hybrid crawl: every name of the master, every name in the directories that the slave has."""
    names = set(world.names)
    for gfid in [ROOT, *world.nodes]:
        after: bytes | None = None
        while True:
            page, after = slave.apply.names_in(gfid, after, 3)
            names |= {(gfid, bname) for bname, _ in page}
            if after is None:
                break
    return names


def take_over(slave: Slave, world: World, stime: int = 10) -> Planner:
    """Adoption shows foreign names in a directory once the directory is known: as many rounds as there are levels."""
    planner = Planner(world, slave.apply, random.Random(3))
    for _ in range(3):
        planner.batch(both_sides(slave, world), stime)
    planner.quiet(stime + 10)
    return planner


def row(bname: bytes, gfid: bytes, mode: int, target: bytes | None = None, nlink: int = 1) -> FillRow:
    return FillRow(ROOT, bname, gfid, mode, 5, nlink, os.geteuid(), os.getegid(), 1, 1, 0, target, [])


def test_a_copy_is_taken_over_without_sending_what_is_there(slave: Slave, world: World, copy: Path) -> None:
    inodes = {name: (copy / name).lstat().st_ino for name in ("d", "d/same", "d/differs", "link", "one", "fifo")}
    planner = take_over(slave, world)
    assert check_tree(copy, world) == check_index(slave.tree) == check_limbo_empty(slave.tree) == []
    assert {name: (copy / name).lstat().st_ino for name in inodes} == inodes
    assert len(planner.sent) == 2  # missing/inside, and one of three and four


def test_the_answers(slave: Slave, copy: Path) -> None:
    rows = [row(b"d", D, DIR), row(b"one", F, REG, nlink=2), row(b"two", F, REG, nlink=2), row(b"three", G, REG),
            row(b"four", b"4" * 16, REG), row(b"link", b"l" * 16, LNK, b"target"),
            row(b"kind", b"k" * 16, DIR), row(b"nothing", b"n" * 16, REG)]
    assert slave.apply.fill(rows).answers == ["adopted", "adopted", "ok", "adopted", "new", "adopted", "made", "new"]
    assert slave.apply.leftover_dirs(b"", 10) == sorted([D, b"k" * 16])


def test_it_is_the_same_again_after_a_kill_at_any_step(copy: Path, world: World) -> None:
    for step in range(0, 60, 3):
        def die(n: int, name: str, step: int = step) -> None:
            if n == step:
                raise Killed(name)

        try:
            with Slave(copy, die, adopt=True) as slave:
                take_over(slave, world)
        except Killed:
            continue
    with Slave(copy, adopt=True) as slave:
        take_over(slave, world)
        assert check_tree(copy, world) == check_index(slave.tree) == check_limbo_empty(slave.tree) == []


def test_foreign_names_are_listed_page_by_page_in_order(slave: Slave, copy: Path) -> None:
    slave.apply.fill([row(b"d", D, DIR), row(b"one", F, REG, nlink=2)])
    there = sorted(os.fsencode(p.name) for p in copy.iterdir() if p.name != ".gsync")
    for limit in (1, 2, 3, 100):
        found: list[tuple[bytes, bytes | None]] = []
        after: bytes | None = None
        while True:
            page, after = slave.apply.names_in(ROOT, after, limit)
            found += page
            if after is None:
                break
        assert [bname for bname, _ in found] == there
        assert {bname: gfid for bname, gfid in found if gfid} == {b"d": D, b"one": F}


def test_without_adopting_the_same_copy_is_replaced(copy: Path, world: World) -> None:
    Slave(copy, adopt=True).close()  # now it is ours
    inode = (copy / "d/same").stat().st_ino
    with Slave(copy) as slave:
        planner = Planner(world, slave.apply, random.Random(3))
        planner.batch(world.names, 10)
        planner.quiet(20)
        wrong = check_tree(copy, world)
        assert [text for text in wrong if "too much" not in text] == []
        assert (copy / "d/same").stat().st_ino != inode
        assert stat.S_ISDIR((copy / "kind").lstat().st_mode)
        assert check_index(slave.tree, foreign=True) == []
