"""Random histories of the master, batches in random order, kills at random steps: the slave ends as the master is."""

from __future__ import annotations

import random
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gsync.base import fsid
from gsync.base.model import ROOT_GFID
from lab.slave_model import FIFO, LNK, REG, Killed, Planner, Slave, World, check_index, check_limbo_empty, check_tree

NAMES = [b"a", b"b", b"c\n", b"\xff"]
# An operation: its kind, and numbers that choose what it works on among what there is.
OPERATIONS = st.tuples(st.sampled_from(["mkdir", "make", "remove", "link", "rename", "rename"]),
                       st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))


@dataclass
class Batch:
    """Operations; then a batch that is killed at these steps, one try after the other, and at last goes through."""

    operations: list[tuple[str, int, int, int]]
    kills: list[int]
    seed: int


BATCHES = st.lists(st.builds(Batch, st.lists(OPERATIONS, max_size=12), st.lists(st.integers(0, 40), max_size=2),
                             st.integers(0, 1000)), min_size=1, max_size=4)


def operate(world: World, kind: str, one: int, two: int, three: int) -> None:
    """Do the operation if it is possible now."""
    dirs = [ROOT_GFID] + [g for g, n in sorted(world.nodes.items()) if stat.S_ISDIR(n.mode) and world.names_of(g)]
    names = sorted(world.names)
    new = dirs[one % len(dirs)], NAMES[two % len(NAMES)]
    old = names[three % len(names)] if names else None
    occupant = world.names.get(new)
    if kind == "mkdir" and occupant is None:
        world.mkdir(*new)
    elif kind == "make" and (occupant is None or not stat.S_ISDIR(world.nodes[occupant].mode)):
        mode = (REG, REG, LNK, FIFO)[three % 4]
        world.make(*new, mode, b"" if mode == FIFO else b"content %d" % len(world.nodes))
    elif old is None:
        return
    elif kind == "remove":
        world.remove(old)
    elif kind == "link" and occupant is None and not stat.S_ISDIR(world.nodes[world.names[old]].mode):
        world.link(world.names[old], *new)
    elif kind == "rename":
        gfid = world.names[old]
        into_itself = stat.S_ISDIR(world.nodes[gfid].mode) and world.is_below(new[0], gfid)
        onto_its_parent = occupant is not None and world.is_below(old[0], occupant)
        if not into_itself and not onto_its_parent:
            world.rename(old, new)


def live(root: Path, batches: list[Batch]) -> list[str]:
    """What is wrong at the end, or after a batch, of this history."""
    world = World()
    stime = 10
    wrong = []
    for batch in batches:
        for operation in batch.operations:
            operate(world, *operation)
        for step in [*batch.kills, None]:
            stime += 10

            def on_step(n: int, name: str, step: int | None = step) -> None:
                if n == step:
                    raise Killed(name)

            try:
                with Slave(root, on_step) as slave:
                    wrong += check_index(slave.tree, foreign=True)
                    Planner(world, slave.apply, random.Random(batch.seed)).batch(world.dirty, stime)
                    wrong += check_tree(root, world) + check_index(slave.tree)
            except Killed:
                continue
            world.dirty.clear()
            break
    with Slave(root) as slave:
        Planner(world, slave.apply, random.Random(0)).quiet(stime + 10)
        return wrong + check_tree(root, world) + check_index(slave.tree) + check_limbo_empty(slave.tree)


def ends_equal(batches: list[Batch]) -> None:
    memory = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(dir=memory if memory.is_dir() else None, prefix="gsync-test-"))
    try:
        assert live(root, batches) == []
    finally:
        shutil.rmtree(root)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(BATCHES)
def test_any_history_ends_equal(batches: list[Batch]) -> None:
    ends_equal(batches)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(BATCHES)
def test_any_history_ends_equal_where_inodes_are_known_by_name_alone(batches: list[Batch]) -> None:
    """On FAT and its kind."""
    with mock.patch.object(fsid, "_makes_up_numbers", lambda fd: True):
        ends_equal(batches)
