"""How a worker goes on from where it stands: every row is a reason."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from gsync.base.model import NS
from gsync.engine.position import CLOCKS_APART, Follow, Mark, Recorded, Standing, Walk, Why, choose
from gsync.engine.unfinished import SUSPECT_MARGIN, UnfinishedWalk

MINE = Mark.of("me", "[]", "")
OTHERS = replace(MINE, by="another")
STIME = 1000 * NS
NOW = 2000 * NS              # what the recorder has recorded up to, and so the cut of a walk that begins
CUT = 1500 * NS              # of a walk that was interrupted
RECORDED = Recorded(gaps=3, watching_since=10 * NS, unbroken_since=20 * NS, complete_up_to=NOW)
SYNCED = Standing(MINE, STIME, MINE)
NEW = Standing(MINE, fresh=True)
RESET = Standing(MINE)       # the slave holds something, and nobody knows what
NEAR = SUSPECT_MARGIN
FAR = SUSPECT_MARGIN + CLOCKS_APART


@dataclass
class Since:
    """Changelogs that reach back to a time."""

    begin: int = 0

    def reaches_back_to(self, time: int) -> bool:
        return self.begin <= time


def interrupted(floor: int | None, **more: object) -> UnfinishedWalk:
    return replace(UnfinishedWalk(CUT, floor, RECORDED.gaps, str(MINE)), **more)  # type: ignore[arg-type]


FOLLOWS = [
    ("in step", SYNCED, RECORDED, 0, Follow(STIME - NS)),
    ("history that reaches back just far enough", SYNCED, RECORDED, STIME, Follow(STIME - NS)),
    ("a stime that nobody marked, as gsyncd's", replace(SYNCED, mark=None), RECORDED, 0, Follow(STIME - NS)),
    ("after another worker, all since recorded here: from a little earlier, and all is in doubt",
     replace(SYNCED, mark=OTHERS), RECORDED, 0, Follow(STIME - CLOCKS_APART - NS, doubts_all=True)),
    ("the same, the recorder began just in time", replace(SYNCED, mark=OTHERS),
     replace(RECORDED, unbroken_since=STIME - CLOCKS_APART), 0, Follow(STIME - CLOCKS_APART - NS, doubts_all=True)),
]


@pytest.mark.parametrize(("standing", "recorded", "begin", "course"), [row[1:] for row in FOLLOWS],
                         ids=[row[0] for row in FOLLOWS])
def test_the_changelogs_are_followed(standing: Standing, recorded: Recorded, begin: int, course: Follow) -> None:
    assert choose(standing, recorded, Since(begin), None) == course


WALKS = [
    # a new slave, or one of which nothing is known
    ("an empty slave: all is sent, nothing is compared", NEW, None, 0, Walk(NOW, None, Why.FIRST)),
    ("no stime, but it holds something: everything is compared", RESET, None, 0, Walk(NOW, 0, Why.FIRST)),
    # what has changed since the stime is not known any more
    ("history is missing", SYNCED, None, STIME + 1, Walk(NOW, STIME - NEAR, Why.HISTORY)),
    ("history is missing back to where another clock's stime may be", replace(SYNCED, mark=OTHERS), None, STIME,
     Walk(NOW, STIME - FAR, Why.HISTORY)),
    ("history broke off while it was followed", SYNCED.has_broken(Why.HISTORY), None, 0,
     Walk(NOW, STIME - NEAR, Why.HISTORY)),
    ("a changelog that is no good, and younger than all that is recorded, lies before the cut",
     SYNCED.has_broken(Why.HISTORY, past=3000), None, 0, Walk(3000 * NS, STIME - NEAR, Why.HISTORY)),
    ("the recorder has a gap since a walk", SYNCED.has_broken(Why.DOUBT), None, 0,
     Walk(NOW, STIME - NEAR, Why.DOUBT)),
    # the stime holds for something else
    ("set back to a snapshot: everything is compared", replace(SYNCED, mark=replace(MINE, restored="snap")), None, 0,
     Walk(NOW, 0, Why.SET_BACK)),
    ("other patterns", replace(SYNCED, mark=replace(MINE, patterns="x")), None, 0,
     Walk(NOW, STIME - NEAR, Why.FILTERS)),
    # a walk that was interrupted goes on
    ("the first one", RESET, interrupted(None), 0, Walk(CUT, None, Why.FIRST, resumes=True)),
    ("one that compares everything", RESET, interrupted(0), 0, Walk(CUT, 0, Why.FIRST, resumes=True)),
    ("one that compares what is younger than the stime", SYNCED, interrupted(STIME - NEAR), 0,
     Walk(CUT, STIME - NEAR, Why.INTERRUPTED, resumes=True)),
    ("one after the master was set back", replace(SYNCED, mark=replace(MINE, restored="snap")), interrupted(0), 0,
     Walk(CUT, 0, Why.SET_BACK, resumes=True)),
    # or begins anew: what has changed since its cut is not known, and what it had to compare it may not have compared
    ("the first one, a gap since", RESET, interrupted(None, gaps=2), 0, Walk(NOW, CUT - NEAR, Why.FIRST)),
    ("the first one, history is missing since", RESET, interrupted(None), CUT + 1, Walk(NOW, CUT - NEAR, Why.FIRST)),
    ("one that compares everything, a gap since", RESET, interrupted(0, gaps=2), 0, Walk(NOW, 0, Why.FIRST)),
    ("one that compares what is younger than the stime, a gap since", SYNCED, interrupted(STIME - NEAR, gaps=2), 0,
     Walk(NOW, STIME - NEAR, Why.INTERRUPTED)),
    ("its cut is before the stime, which another worker set", replace(SYNCED, stime=NOW, mark=OTHERS),
     interrupted(None), 0, Walk(NOW, CUT - FAR, Why.INTERRUPTED)),
    # or since what it has done counts no more
    ("through other patterns", RESET, interrupted(None, mark=str(replace(MINE, patterns="x"))), 0,
     Walk(NOW, CUT - NEAR, Why.FIRST)),
    ("of a master that was set back meanwhile", replace(SYNCED, mark=replace(MINE, restored="snap")),
     interrupted(STIME - NEAR), 0, Walk(NOW, 0, Why.SET_BACK)),
    ("of a master that was set back again", replace(SYNCED, mark=replace(MINE, restored="snap")),
     interrupted(0, mark=str(replace(MINE, restored="snap"))), 0, Walk(NOW, 0, Why.SET_BACK)),
    ("the stime was reset meanwhile: everything is compared", RESET, interrupted(STIME - NEAR), 0,
     Walk(NOW, 0, Why.FIRST)),
    ("the slave was emptied meanwhile", NEW, interrupted(None), 0, Walk(NOW, None, Why.FIRST)),
    ("the slave was emptied instead of compared", NEW, interrupted(0), 0, Walk(NOW, None, Why.FIRST)),
]


@pytest.mark.parametrize(("standing", "before", "begin", "course"), [row[1:] for row in WALKS],
                         ids=[row[0] for row in WALKS])
def test_the_tree_is_walked(standing: Standing, before: UnfinishedWalk | None, begin: int, course: Walk) -> None:
    assert choose(standing, RECORDED, Since(begin), before) == course


@pytest.mark.parametrize("unbroken", [None, STIME - CLOCKS_APART + 1])
def test_the_tree_is_walked_after_another_worker_if_not_all_since_is_recorded_here(unbroken: int | None) -> None:
    assert choose(replace(SYNCED, mark=OTHERS), replace(RECORDED, unbroken_since=unbroken), Since(), None) == Walk(
        NOW, STIME - FAR, Why.TAKEN_OVER)


def test_a_walk_compares_more_where_other_clocks_stamp_the_files() -> None:
    course = choose(SYNCED, RECORDED, Since(STIME + 1), None, writers_apart=3600 * NS)
    assert course == Walk(NOW, STIME - NEAR - 3600 * NS, Why.HISTORY)


def test_a_walk_is_cut_where_watching_began_if_nothing_is_complete_yet() -> None:
    course = choose(NEW, replace(RECORDED, watching_since=NOW + 5, complete_up_to=None), Since(), None)
    assert course == Walk(NOW + 5, None, Why.FIRST)


def test_after_a_commit_the_stime_is_this_workers() -> None:
    standing = replace(SYNCED, mark=replace(OTHERS, restored="snap", patterns="x")).committed(NOW, 2)
    assert (standing.stime, standing.limbo) == (NOW, 2)
    assert not (standing.taken_over or standing.set_back or standing.filtered_otherwise or standing.apart)


def test_a_mark_reads_as_it_was_written() -> None:
    for mark in (MINE, replace(MINE, restored="5f0c")):
        assert Mark.parse(str(mark)) == mark
    assert Mark.parse(None) is None and Mark.parse("") is None
