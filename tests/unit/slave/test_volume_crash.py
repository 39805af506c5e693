"""The agent's work on a volume killed after every single step: the next agent recovers, a replay makes all right.

The volume is dictionaries (lab/slave_volume); the changes and histories are those of a slave directory.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings

from gsync.base.model import ROOT_GFID, Gfid
from gsync.link.protocol import FillRow
from lab.slave_model import DIR, REG, Killed, World
from lab.slave_volume import MemoryVolume, VolumePlanner, VolumeSlave, check_volume, check_volume_limbo
from tests.unit.slave.test_slave_crash import CHANGES, Change, start
from tests.unit.slave.test_slave_histories import BATCHES, Batch, operate


class VolumeCase:
    """A synced volume and a change of its master that is to be brought over."""

    def __init__(self, change: Change, seed: int, *, refuses_twins: bool) -> None:
        self.volume = MemoryVolume(refuses_twins=refuses_twins)
        self.world = World()
        self.seed = seed
        if change is not start:
            start(self.world)
            slave = VolumeSlave(self.volume)
            self.planner(slave).batch(self.world.dirty, 10)
            self.planner(slave).quiet(20)
            self.world.dirty.clear()
        change(self.world)

    def planner(self, slave: VolumeSlave) -> VolumePlanner:
        return VolumePlanner(self.world, slave.apply, random.Random(self.seed))

    def killed(self, step: int, stime: int = 30) -> bool:
        """Apply, and die at this step, of the start or of the batch; False if it was done before."""
        def on_step(n: int, name: str) -> None:
            if n == step:
                raise Killed(name)

        try:
            self.planner(VolumeSlave(self.volume, on_step)).batch(self.world.dirty, stime)
        except Killed:
            return True
        return False

    def wrong(self, stime: int = 40) -> list[str]:
        """Bring it to an end; what is not as it must be."""
        slave = VolumeSlave(self.volume)
        self.planner(slave).batch(self.world.dirty, stime)
        found = check_volume(self.volume, self.world)
        self.planner(slave).quiet(stime + 10)
        return found + check_volume(self.volume, self.world) + check_volume_limbo(self.volume)


@pytest.mark.parametrize("refuses_twins", [False, True], ids=["several bricks", "one brick"])
@pytest.mark.parametrize("change", CHANGES)
def test_killed_after_every_step(change: Change, refuses_twins: bool) -> None:
    step, more = 0, True
    while more:
        case = VolumeCase(change, step, refuses_twins=refuses_twins)
        more = case.killed(step)
        assert case.wrong() == [], f"killed at step {step}"
        step += 1
    assert step > 3


@pytest.mark.parametrize("change", CHANGES)
def test_killed_after_every_step_and_again_in_the_recovery(change: Change) -> None:
    step, more = 0, True
    while more:
        case = VolumeCase(change, step, refuses_twins=False)
        more = case.killed(step)
        for again in range(0, 12, 3):
            case.killed(again, stime=31)
        assert case.wrong() == [], f"killed at step {step}"
        step += 1


def live(batches: list[Batch]) -> list[str]:
    """What is wrong at the end, or after a batch, of this history."""
    world, volume = World(), MemoryVolume()
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
                slave = VolumeSlave(volume, on_step)
                VolumePlanner(world, slave.apply, random.Random(batch.seed)).batch(world.dirty, stime)
                wrong += check_volume(volume, world)
            except Killed:
                continue
            world.dirty.clear()
            break
    slave = VolumeSlave(volume)
    VolumePlanner(world, slave.apply, random.Random(0)).quiet(stime + 10)
    return wrong + check_volume(volume, world) + check_volume_limbo(volume)


@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(BATCHES)
def test_any_history_ends_equal(batches: list[Batch]) -> None:
    assert live(batches) == []


def calls_of(volume: MemoryVolume, slave: VolumeSlave, rows: list[FillRow], answer: str) -> int:
    """What would be round trips to the bricks."""
    before = volume.calls
    assert set(slave.apply.fill(rows).answers) == {answer}
    return volume.calls - before


def row(pargfid: Gfid, number: int, mode: int = REG) -> FillRow:
    return FillRow(pargfid, b"n%d" % number, b"calls" + number.to_bytes(11, "big"), mode, 1, 1, 0, 0, 1, 1, 0)


@pytest.mark.parametrize("refuses_twins", [False, True], ids=["several bricks", "one brick"])
def test_what_is_right_or_new_costs_one_look_at_the_volume(refuses_twins: bool) -> None:
    volume = MemoryVolume(refuses_twins=refuses_twins)
    slave = VolumeSlave(volume)
    folder = row(ROOT_GFID, 0, DIR)
    assert slave.apply.fill([folder]).answers == ["made"]
    few, many = ([row(folder.gfid, n) for n in range(1, 1 + count)] for count in (1, 101))
    assert calls_of(volume, slave, many, "direct") - calls_of(volume, slave, few, "direct") == 100
    for each in many:
        volume.make(each.pargfid, each.bname, each.gfid, each.mode)
    assert slave.apply.fill([folder]).answers == ["ok"]
    assert calls_of(volume, slave, many, "ok") - calls_of(volume, slave, few, "ok") == 100
