"""Random changes of every kind before and during batches, and deaths, on the real code in one process.

The changes are those of tests/trees.py, which are richer than test_histories can check step by step; here only the end
counts: equal, nothing left behind. GSYNC_CHURNS says how many seeds are tried, GSYNC_CHURN_SEED which one comes first.
"""

from __future__ import annotations

import contextlib
import os
import random
import tempfile
from pathlib import Path

import pytest

from lab.model.world import Killed, World
from lab.trees import Churn, compare
from tests.model.test_scenarios import DETECTORS

CHURNS = int(os.environ.get("GSYNC_CHURNS", "6"))
FIRST = int(os.environ.get("GSYNC_CHURN_SEED", "1"))


class Unwatched(World):
    """A world that does not remember what was when: there is too much of it."""

    def note(self) -> None:
        pass

    def check_commit(self, stime: int | None, walked: bool) -> None:
        pass


def live(w: World, churn: Churn, rng: random.Random) -> None:
    """Some changes, and one cycle of the worker in which more happens."""
    for _ in range(rng.randint(1, 120)):
        churn.step()
    w.poll()
    if rng.random() < 0.5:
        w.cut()

    def between(method: str) -> None:
        if rng.random() < 0.1:
            for _ in range(rng.randint(1, 5)):
                churn.step()
            if rng.random() < 0.3:
                w.poll()

    left = [rng.randint(0, 60) if rng.random() < 0.3 else 10**9]

    def step(name: str) -> None:
        left[0] -= 1
        if left[0] < 0 and not name.startswith("recorder"):
            raise Killed(name)

    w.between, w.step = between, step
    with contextlib.suppress(Killed):
        w.cycle()
    w.between = w.step = lambda name: None
    if rng.random() < 0.1:
        w.recorder_dies()
        for _ in range(rng.randint(0, 20)):
            churn.step()
        w.recorder_up()


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["inotify", pytest.param("fanotify", marks=pytest.mark.root)])
@pytest.mark.parametrize("seed", range(FIRST, FIRST + CHURNS))
def test_every_churn_converges(seed: int, detector: str) -> None:
    rng = random.Random(seed)
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=folder) as base:
        w = Unwatched(Path(base) / "w", DETECTORS[detector])
        try:
            with Churn(w.master, seed, detector == "fanotify", w.outside, max_entries=800) as churn:
                for _ in range(4):
                    live(w, churn, rng)
                w.quiet()
                lines = compare(w.master, w.slave)
                assert [line for line in lines if "sparse: " not in line] == []  # the syncer here writes holes as zeros
                limbo = w.slave / ".gsync" / "limbo"
                assert [str(p) for part in ("new", "old", "link") for p in (limbo / part).iterdir()] == []
                assert w.ledger.all() == []
        finally:
            w.close()
