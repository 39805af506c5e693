"""What is durable when: seen by another process, at the moment of each commit, in files of the real parts."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gsync.base.model import ROOT_GFID, Gfid
from gsync.base.namespace import Namespace
from gsync.changelog.reader import History
from gsync.engine.doubt import Doubt
from gsync.engine.ledger import Ledger
from gsync.engine.parts import Limits
from gsync.engine.unfinished import UnfinishedWalk
from gsync.engine.worklist import ChangelogDB
from gsync.recorder import detectors
from gsync.recorder.status import read_status
from lab.model.world import Killed, ModelTree, World


@pytest.fixture
def w() -> Iterator[World]:
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=folder) as base:
        world = World(Path(base) / "w", detectors.inotify)
        yield world
        world.close()


class Unreadable(ModelTree):
    """A master whose disk gives no contents."""

    def open(self, gfid: Gfid) -> tuple[int, os.stat_result]:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def at_commits(w: World, look: Callable[[], int]) -> list[int]:
    """What another process sees just before each commit of the agent."""
    seen: list[int] = []

    def between(method: str) -> None:
        if method == "commit":
            seen.append(look())

    w.between = between
    return seen


def cut(w: World) -> None:
    w.poll()
    w.cut()


def other_db(w: World) -> ChangelogDB:
    return ChangelogDB(str(w.base / f"changelog.{w.node}.db"))


def is_in_doubt(w: World) -> bool:
    db = other_db(w)
    try:
        return Doubt(db).any
    finally:
        db.close()


def failures(w: World) -> int:
    ledger = Ledger(str(w.base / "ledger.db"))
    try:
        return ledger.count()
    finally:
        ledger.close()


def test_the_doubt_of_a_batch_is_kept_before_its_commit(w: World) -> None:
    """rule 20: else a crash between the two forgets it, and the stime has passed it."""
    w.quiet()
    w.mk("m/a")
    cut(w)
    assert not is_in_doubt(w)
    doubts = at_commits(w, lambda: is_in_doubt(w))
    w.cycle()
    assert doubts == [True]


def test_the_doubt_of_a_walk_is_kept_before_its_commit(w: World) -> None:
    w.mk("m/a")
    cut(w)
    doubts = at_commits(w, lambda: is_in_doubt(w))
    w.cycle()
    assert doubts == [True]


def test_failures_are_in_the_ledger_before_the_commit_that_passes_them(w: World) -> None:
    """invariant 1: the stime passes only what status counts."""
    w.quiet()
    w.tree_class = Unreadable
    w.mk("m/a")
    cut(w)
    counts = at_commits(w, lambda: failures(w))
    w.cycle()
    assert counts == [1]


def test_a_mended_failure_leaves_the_ledger_after_the_commit(w: World) -> None:
    """rule 28"""
    w.quiet()
    w.tree_class = Unreadable
    w.mk("m/a")
    cut(w)
    w.cycle()
    w.tree_class = ModelTree
    w.ledger.hurry()
    counts = at_commits(w, lambda: failures(w))
    w.cycle()
    assert (counts, failures(w)) == ([1], 0)


@pytest.mark.parametrize(("nth", "left"), [(1, 2), (2, 1), (3, 0)])
def test_a_walk_forgets_a_directory_after_the_interim_commit_that_covers_it(w: World, nth: int, left: int) -> None:
    """rule 28: killed at its nth commit, it looks at what the commits before did not cover, and at nothing else."""
    w.mkdir("m/d")
    w.mk("m/d/f")
    w.quiet()
    w.forget_stime()
    w.limits = Limits(interim_commit=0.0)
    calls: list[str] = []

    def between(method: str) -> None:
        calls.append(method)
        if calls.count("commit") == nth:
            raise Killed(method)

    w.between = between
    with pytest.raises(Killed):
        w.cycle()
    calls.clear()
    w.between = calls.append
    w.cycle()
    assert calls.count("list") == left  # once for each directory


def test_a_walk_is_forgotten_after_the_commit_that_ends_it(w: World) -> None:
    """rule 28: killed before that, it is resumed."""
    def is_noted() -> bool:
        db = other_db(w)
        try:
            return UnfinishedWalk.load(db) is not None
        finally:
            db.close()

    w.mk("m/a")
    cut(w)
    noted = at_commits(w, is_noted)
    w.cycle()
    assert noted == [True]
    w.worker_stops()
    assert not is_noted()


def test_a_slice_is_in_its_changelog_before_it_is_in_the_index_and_there_before_it_is_published(w: World) -> None:
    """rule 4"""
    seen: dict[str, tuple[bool, bool, bool]] = {}
    cut(w)
    before = read_status(w.brick.status)
    last = History(os.fsencode(w.brick.changelogs)).last_ts
    assert before is not None and before.complete_up_to is not None

    def look(step: str) -> None:
        index = Namespace(w.brick.namespace, readonly=True)
        status = read_status(w.brick.status)
        try:
            seen[step] = (History(os.fsencode(w.brick.changelogs)).last_ts != last,
                          bool(index.children(ROOT_GFID, b"", 10)),
                          status is not None and status.complete_up_to != before.complete_up_to)
        finally:
            index.close()

    w.mk("m/a")
    w.poll()
    w.step = look
    w.cut()
    w.step = lambda name: None
    look("at the end")
    steps = ("recorder append", "recorder roll", "recorder commit", "recorder publish", "at the end")
    assert {step: seen[step] for step in steps} == {
        "recorder append": (False, False, False),
        "recorder roll": (False, False, False),
        "recorder commit": (True, False, False),
        "recorder publish": (True, True, False),
        "at the end": (True, True, True),
    }
