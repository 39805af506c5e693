"""Hints that wait: merged, in order, bounded in memory, and never lost without a word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Protocol

import pytest

from gsync.base.model import ROOT_GFID, Gfid, Name
from gsync.recorder.detector import ChangeHint, Hint, LostWatch, NameHint, Overflow, RenameHint
from gsync.recorder.hints import APPEARED, DATA, IS_DIR, META, HintLimits, Hints

FILE = bytes(15) + b"f"


def name(n: int) -> Name:
    return ROOT_GFID, b"%d" % n


class Queue:
    """A detector that tells what it is given."""

    name = "queue"

    def __init__(self, sees_all: bool) -> None:
        self.sees_all = sees_all
        self.queued: list[Hint] = []

    def fileno(self) -> int:
        return -1

    def watch(self, gfid: Gfid, handle: bytes, fd: int) -> None:
        pass

    def unwatch(self, gfid: Gfid) -> None:
        pass

    def read(self) -> Iterator[Hint]:
        queued, self.queued = self.queued, []
        yield from queued

    def close(self) -> None:
        pass


class Clock:
    now = 100

    def __call__(self) -> int:
        return self.now


class Maker(Protocol):
    def __call__(self, sees_all: bool, limits: HintLimits = ...) -> tuple[Hints, Queue, Clock]: ...


@pytest.fixture
def hints_of(tmp_path: Path) -> Iterator[Maker]:
    with ExitStack() as opened:
        def make(sees_all: bool, limits: HintLimits = HintLimits()) -> tuple[Hints, Queue, Clock]:  # noqa: B008
            queue, clock = Queue(sees_all), Clock()
            return opened.enter_context(closing(Hints(queue, bytes(tmp_path), clock, 0, limits))), queue, clock

        yield make


def test_what_is_told_of_one_name_or_inode_is_one_hint(hints_of: Maker) -> None:
    hints, queue, _ = hints_of(sees_all=True)
    queue.queued += [NameHint(name(1), False), NameHint(name(1), True), NameHint(name(1), False)]
    queue.queued += [ChangeHint(FILE, None, True), ChangeHint(FILE, None, False)]
    assert hints.drain()
    assert len(hints) == 2
    assert hints.take_names() == ({name(1): APPEARED}, {})
    assert hints.take_changes() == {FILE: DATA | META}
    assert DATA & META == 0
    assert len(hints) == 0
    assert not hints.drain()


def test_a_detector_of_names_tells_a_story_in_order(hints_of: Maker) -> None:
    """A change that is told twice counts once, until something is renamed."""
    hints, queue, _ = hints_of(sees_all=False)
    change, rename = ChangeHint(None, name(1), True), RenameHint(name(1), name(2))
    queue.queued += [change, change, rename, change]
    hints.drain()
    assert list(hints.tell()) == [change, rename, change]
    assert list(hints.tell()) == []


def test_a_change_that_was_told_counts_again_when_it_comes_again(hints_of: Maker) -> None:
    hints, queue, _ = hints_of(sees_all=False)
    change = ChangeHint(None, name(1), True)
    for _ in range(2):
        queue.queued.append(change)
        hints.drain()
        assert list(hints.tell()) == [change]


@pytest.mark.parametrize("is_dir", [True, False])
def test_of_a_rename_both_names_are_looked_at_and_nothing_is_said_to_be_new(hints_of: Maker, is_dir: bool) -> None:
    hints, queue, _ = hints_of(sees_all=True)
    queue.queued.append(RenameHint(name(1), name(2), is_dir=is_dir))
    hints.drain()
    assert hints.take_names() == ({name(2): 0, name(1): IS_DIR if is_dir else 0}, {name(2): name(1)})


@pytest.mark.parametrize("sees_all", [True, False])
def test_memory_is_bounded_and_the_rest_comes_in_order(hints_of: Maker, sees_all: bool) -> None:
    hints, queue, clock = hints_of(sees_all, HintLimits(in_memory=20, block=10))
    queue.queued += [RenameHint(name(2 * n), name(2 * n + 1)) for n in range(300)]
    hints.drain()
    last, most = hints.last, hints.in_memory
    order: list[Name] = []
    assert hints.drained_at == 0  # what waits may be as old as that
    clock.now = 200
    while len(hints):
        for hint in hints.tell():
            hints.note(hint)
        order += hints.take_names()[1]
        hints.drain()
        most = max(most, hints.in_memory)
    assert order == [name(2 * n + 1) for n in range(300)]
    assert most <= 20 + 2 * 10  # a block more than wanted, of two names a hint
    assert hints.taken == last == 300 - (10 if sees_all else 20)
    assert (hints.gap, hints.drained_at) == ("", 200)


def test_too_many_on_disk_are_given_up_for_a_look_at_the_tree(hints_of: Maker) -> None:
    hints, queue, _ = hints_of(True, HintLimits(in_memory=5, on_disk=10, block=3))
    queue.queued += [NameHint(name(n), True) for n in range(30)]
    hints.drain()
    assert (len(hints), hints.gap) == (0, "too many changes at once")


def test_what_ends_a_story_is_heard_at_once_however_much_waits(hints_of: Maker) -> None:
    hints, queue, _ = hints_of(True, HintLimits(in_memory=1, block=2))
    queue.queued += [*(NameHint(name(n), True) for n in range(9)), LostWatch(FILE), Overflow()]
    hints.drain()
    assert hints.gap == "the kernel dropped events"
    assert hints.take_lost() == {FILE}
    assert hints.take_lost() == set()


def test_a_new_directory_is_urgent_only_where_it_must_be_watched(hints_of: Maker) -> None:
    for sees_all in (True, False):
        hints, queue, _ = hints_of(sees_all)
        queue.queued.append(NameHint(name(1), True, is_dir=True))
        hints.drain()
        assert hints.urgent is not sees_all
