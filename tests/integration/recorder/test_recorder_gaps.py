"""What the recorder missed, it finds: after crashes at every step, overflows, lost watches, power failures."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gsync.base.clock import Clock
from gsync.base.fsid import Inodes
from gsync.base.model import NS, ROOT_GFID
from gsync.base.namespace import Namespace
from gsync.changelog import layout
from gsync.changelog.reader import History
from gsync.changelog.records import Data, Entry, Fop, Meta
from gsync.master.posix import PosixTree
from gsync.recorder.bounds import BOUNDS, Bounds
from gsync.recorder.detector import ChangeHint, Detector, Knows, LostWatch, NameHint, Overflow
from gsync.recorder.hints import HintLimits
from gsync.recorder.live import GRANULARITY
from gsync.recorder.recording import Recording
from gsync.recorder.scan import ScanSizes
from gsync.recorder.tree import RecordedTree
from lab.recorder_changes import a_directory, hostile_names, one_file
from lab.recording import FACTORIES, Injecting, World

DETECTORS = [pytest.param("fanotify", marks=pytest.mark.root), "inotify", "inotify by path"]


class Killed(BaseException):
    """The recorder died here."""


@pytest.fixture(params=DETECTORS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    def new_detector(root_fd: int, inodes: Inodes, knows: Knows) -> Detector:
        world.injecting = Injecting(FACTORIES[request.param](root_fd, inodes, knows))  # type: ignore[attr-defined]
        return world.injecting  # type: ignore[attr-defined, no-any-return]

    world = World(tmp_path, new_detector)
    yield world
    world.close()


def dying_at(step: str, count: int = 1) -> Callable[[str], None]:
    left = [count]

    def check(name: str) -> None:
        if name == step:
            left[0] -= 1
            if left[0] == 0:
                raise Killed

    return check


@contextlib.contextmanager
def killed(world: World) -> Iterator[None]:
    with pytest.raises(Killed):
        yield
    world.stop()


def changes(world: World) -> None:
    """Some of everything, on what a_directory made."""
    (world.tree / "d").rename(world.tree / "n")
    (world.tree / "n" / "f").write_bytes(b"changed")
    (world.tree / "n" / "sub" / "g").unlink()
    (world.tree / "e" / "deep" / "er").mkdir(parents=True)
    (world.tree / "e" / "deep" / "er" / "new").write_bytes(b"new")


# crashes

STEPS = ["drain", "append", "roll", "commit", "publish"]


@pytest.mark.parametrize("step", STEPS)
def test_a_crash_at_any_step_of_closing_loses_nothing(world: World, step: str) -> None:
    """Scenario 6, index_before_changelog, and its like."""
    a_directory(world.tree, world.outside)
    world.start()
    world.cut()
    world.stop()
    world.start(step=dying_at(step, 2))
    world.cut()
    changes(world)
    with killed(world):
        world.cut()
    world.start()
    world.cut()


@pytest.mark.parametrize("step", STEPS)
def test_the_index_is_never_durable_before_the_records(world: World, step: str) -> None:
    world.start()
    world.cut()
    world.stop()
    world.start(step=dying_at(step, 2))
    world.cut()
    (world.tree / "new").write_bytes(b"x")
    with killed(world):
        world.close_slice()
    said = {name for r in world.new_records() if isinstance(r, Entry) for name in r.names}
    index = Namespace(world.brick.namespace, readonly=True)
    known = index.get(ROOT_GFID, b"new")
    index.close()
    assert known is None or known.name in said


def test_a_crash_during_a_gap_scan_loses_nothing(world: World) -> None:
    a_directory(world.tree, world.outside)
    world.start()
    world.cut()
    for count in range(1, 4):
        world.stop()
        changes(world)
        with killed(world):
            world.start(step=dying_at("scan", count))
        shutil.rmtree(world.tree / "n")
        (world.tree / "e").rename(world.tree / f"e{count}")
        a_directory(world.tree, world.outside)
    world.start()
    world.cut()


def test_a_crash_during_the_first_scan_begins_it_again(world: World) -> None:
    world.options["bounds"] = Bounds(scan=ScanSizes(commit=1))
    a_directory(world.tree, world.outside)
    with killed(world):
        world.start(step=dying_at("scan", 3))
    shutil.rmtree(world.tree / "d")
    world.start()
    assert [r for r in world.cut() if isinstance(r, Entry)] == []
    index = Namespace(world.brick.namespace, readonly=True)
    assert [e.bname for e in index.children(ROOT_GFID)] == [b"e"]
    assert index.count()[0] == 1
    index.close()


def test_records_left_in_the_live_file_are_not_published_before_the_gap_is_closed(world: World) -> None:
    """Their ts would let the stime pass changes that only the gap scan knows."""
    world.start()
    world.cut()
    world.stop()
    world.start(step=dying_at("roll", 1))
    (world.tree / "new").write_bytes(b"x")
    with killed(world):
        world.close_slice()
    (world.tree / "meanwhile").write_bytes(b"x")
    live = Path(os.fsdecode(layout.live_path(os.fsencode(world.brick.changelogs))))
    assert live.exists()
    world.start()
    assert world.new_records() == []
    assert {r.names[0][1] for r in world.cut() if isinstance(r, Entry)} == {b"new", b"meanwhile"}


def test_what_the_index_forgot_is_said_again(world: World) -> None:
    """Scenario 27: changelogs durable, index and tree fell back in a power failure."""
    a_directory(world.tree, world.outside)
    world.start()
    world.cut()
    world.stop()
    saved = world.outside / "namespace.db"
    for end in ("", "-wal", "-shm"):
        if os.path.exists(world.brick.namespace + end):
            shutil.copy(world.brick.namespace + end, str(saved) + end)
    world.start()
    world.cut()
    (world.tree / "lost").write_bytes(b"x")
    (world.tree / "d" / "f").write_bytes(b"changed and lost")
    world.cut()
    world.stop()
    (world.tree / "lost").unlink()
    gfid = world.gfid(world.tree / "d" / "f")
    for end in ("", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(world.brick.namespace + end)
        if os.path.exists(str(saved) + end):
            shutil.copy(str(saved) + end, world.brick.namespace + end)
    world.start()
    records = world.cut()
    assert b"lost" in {name[1] for r in records if isinstance(r, Entry) for name in r.names}
    assert Data(gfid) in records


def test_gaps_are_counted_durably_before_anything_is_looked_at(world: World) -> None:
    one_file(world.tree, world.outside)
    world.start()
    world.cut()
    assert world.recorder is not None and world.recorder.status.gaps == 1
    world.stop()
    with killed(world):
        world.start(step=dying_at("scan"))
    world.start()
    assert world.recorder is not None and world.recorder.status.gaps == 3


# the first scan

def test_the_first_scan_says_nothing_and_history_begins_with_it(world: World) -> None:
    a_directory(world.tree, world.outside)
    before = time.time_ns()
    world.start()
    assert world.cut() == []
    assert world.recorder is not None
    since = world.recorder.status.watching_since
    assert since is not None and since >= before
    assert History(os.fsencode(world.brick.changelogs)).covered_from() == since
    assert world.recorder.status.entries == 5
    world.stop()
    world.start()
    assert world.recorder is not None and world.recorder.status.watching_since == since


@pytest.mark.root
def test_with_fanotify_every_change_counts_from_the_start_of_the_first_scan(tmp_path: Path) -> None:
    """A worker may crawl meanwhile: it reads a file, and then the file changes, and then the scan comes by."""
    world = World(tmp_path, FACTORIES["fanotify"])
    a_directory(world.tree, world.outside)
    one_file(world.outside, world.outside)
    a_directory(world.outside, world.outside)

    def meanwhile(step: str) -> None:
        if step == "scan" and world.slave is None:
            world.slave = world.copy_now()
            changes(world)
            (world.outside / "f").rename(world.tree / "moved in")
            (world.outside / "d").rename(world.tree / "moved in too")
            (world.tree / "moved in too" / "f").write_bytes(b"and changed")

    world.start(step=meanwhile)
    world.cut()
    world.close()


@pytest.mark.root
def test_a_directory_is_offered_by_the_index_once_all_its_names_are_in_it(
        tmp_path: Path) -> None:
    """A worker may crawl during the first scan; one that broke off leaves nothing that could be taken for current."""
    world = World(tmp_path, FACTORIES["fanotify"])
    world.options["bounds"] = Bounds(scan=ScanSizes(commit=1))
    for i in range(6):
        (world.tree / f"{i}").mkdir()
        for j in range(i + 1):
            (world.tree / f"{i}" / f"{j}").write_bytes(b"")
    offered: set[bytes] = set()

    def look(step: str) -> None:
        if step != "scan":
            return
        tree = PosixTree(os.open(world.tree, os.O_RDONLY), world.volume.tag, world.brick.namespace)
        for found in tree.resolve([(ROOT_GFID, b"%d" % i) for i in range(6)]):
            reader = tree.read_indexed(found.gfid)
            if reader is not None:
                assert len(reader.page(10)) == int(found.name[1]) + 1
                reader.close()
                offered.add(found.name[1])
        tree.close()
        if len(offered) == 3:
            raise Killed

    time.sleep(2 * GRANULARITY / NS)  # a directory that changed just now has no ctime in the index
    with pytest.raises(Killed):
        world.start(step=look)
    world.stop()
    told: list[int] = []

    def check(**changes: object) -> None:
        if changes.get("watching_since"):
            told.append(Namespace(world.brick.namespace, readonly=True).count()[0])
            raise Killed

    with closing(Recording(world.volume, world.ignored, world.detector, check, lambda: False, Clock(world.clock),
                           lambda step: None, BOUNDS)) as anew, pytest.raises(Killed):
        anew.scan()
    assert told == [0]
    world.start()
    assert world.cut() == []
    world.close()


# overflow and the like

@pytest.mark.parametrize("when", ["before", "after"])
def test_an_overflow_is_a_gap_that_is_closed_at_once(world: World, when: str) -> None:
    a_directory(world.tree, world.outside)
    world.start()
    world.cut()
    assert world.recorder is not None
    gaps = world.recorder.status.gaps
    if when == "before":
        changes(world)
        world.recording.poll()  # type: ignore[union-attr]
    list(world.injecting.inner.read())  # type: ignore[attr-defined]
    if when == "after":
        changes(world)
        list(world.injecting.inner.read())  # type: ignore[attr-defined]  # what the kernel dropped
    world.injecting.extra = [Overflow()]  # type: ignore[attr-defined]
    world.cut()
    assert world.recorder.status.gaps == gaps + 1
    (world.tree / "e" / "deep" / "later").write_bytes(b"all is watched again") if when == "after" else None
    world.cut()


def test_too_many_hints_are_an_overflow(world: World) -> None:
    world.options["bounds"] = Bounds(HintLimits(in_memory=5, on_disk=10))
    world.start()
    world.cut()
    for n in range(30):
        (world.tree / f"{n}").write_bytes(b"x")
    world.cut()
    assert world.recorder is not None and world.recorder.status.gaps == 2


def test_hints_that_come_too_fast_wait_on_disk(world: World) -> None:
    """In order; every slice holds all that was before its end."""
    world.options["bounds"] = Bounds(HintLimits(in_memory=20, block=10))
    for n in range(300):
        (world.tree / f"a{n}").write_bytes(b"x")
    world.start()
    world.cut()
    for n in range(300):
        (world.tree / f"a{n}").rename(world.tree / f"b{n}")
    records = world.cut()
    assert world.recorder is not None and world.recorder.status.gaps == 1
    renames = [record for record in records if isinstance(record, Entry) and record.fop is Fop.RENAME]
    assert {record.names[1][1] for record in renames} == {b"b%d" % n for n in range(300)}
    assert not [record for record in records if isinstance(record, Data)]


def test_a_lost_watch_is_a_gap_unless_the_directory_is_gone(world: World) -> None:
    a_directory(world.tree, world.outside)
    world.start()
    world.cut()
    gfid = world.gfid(world.tree / "d")
    world.injecting.extra = [LostWatch(gfid)]  # type: ignore[attr-defined]
    world.cut()
    assert world.recorder is not None and world.recorder.status.gaps == 2
    shutil.rmtree(world.tree / "d")
    world.injecting.extra = [LostWatch(gfid)]  # type: ignore[attr-defined]
    world.cut()
    assert world.recorder.status.gaps == 2


def test_hints_at_what_is_not_of_the_tree_say_nothing(world: World) -> None:
    world.start()
    world.cut()
    nobody = bytes(range(16))
    world.injecting.extra = [  # type: ignore[attr-defined]
        NameHint((nobody, b"x"), True), NameHint((nobody, b"x"), False), ChangeHint(nobody, None, True)]
    assert world.cut() == []


# rules

def test_a_cut_takes_in_all_that_was_queued_before_it(world: World) -> None:
    """Scenario 8, undrained_cut."""
    one_file(world.tree, world.outside)
    world.start()
    world.cut()
    for n in range(500):
        (world.tree / f"new{n}").touch()
    (world.tree / "f").write_bytes(b"written last")
    written = time.time_ns()
    world.close_slice()
    assert world.recorder is not None and world.recorder.status.complete_up_to >= written  # type: ignore[operator]
    assert Data(world.gfid(world.tree / "f")) in world.new_records()


def test_what_was_in_a_directory_before_its_watch_is_for_the_worker_to_ask(world: World) -> None:
    """Scenario 3, inotify_blind_window: only y is left to see, so MKDIR says that the directory was scanned."""
    world.start()
    world.cut()
    (world.tree / "c").mkdir()
    (world.tree / "c" / "x").write_bytes(b"x")
    (world.tree / "c" / "x").rename(world.tree / "c" / "y")
    records = [r for r in world.cut() if isinstance(r, Entry)]
    assert (Fop.MKDIR, b"c") in {(r.fop, r.names[0][1]) for r in records}
    assert b"y" in {r.names[0][1] for r in records}


@pytest.mark.parametrize("age", [-3600, 0, 3600])
def test_a_ctime_too_young_to_be_trusted_is_not_kept(world: World, age: int) -> None:
    """Scenario 7, racy_ctime: a later write within the same tick of the clock would leave the same ctime."""
    world.start()
    world.cut()
    world.skipped += age * NS
    (world.tree / "f").write_bytes(b"one")
    recording = world.recording
    assert recording is not None
    while not recording.close_slice():
        time.sleep(recording.until_next_ts())
    ctime, now = os.stat(world.tree / "f").st_ctime_ns, world.clock()
    world.stop()
    index = Namespace(world.brick.namespace, readonly=True)
    entry = index.get(ROOT_GFID, b"f")
    index.close()
    assert entry is not None
    assert entry.ctime in ((ctime,) if age > 0 else (0,) if age < 0 or ctime > now - GRANULARITY else (0, ctime))


def test_an_unknown_ctime_differs_from_every_other(world: World) -> None:
    one_file(world.tree, world.outside)
    world.start()
    world.settle()
    world.stop()
    gfid = world.gfid(world.tree / "f")
    index = Namespace(world.brick.namespace)
    index.set_ctime(gfid, 0, 0)
    index.close()
    world.start()
    assert {Data(gfid), Meta(Fop.SETATTR, gfid)} == set(world.cut())


def test_removals_of_whole_trees_are_one_name(world: World) -> None:
    a_directory(world.tree, world.outside)
    world.start()
    world.settle()
    world.stop()
    shutil.rmtree(world.tree / "d")
    world.start()
    assert [(r.fop, r.names[0][1]) for r in world.cut() if isinstance(r, Entry)] == [(Fop.RMDIR, b"d")]
    index = Namespace(world.brick.namespace, readonly=True)
    assert index.count()[0] == 1
    index.close()


def test_hostile_names_are_found_after_a_stop(world: World) -> None:
    hostile_names(world.tree, world.outside)
    world.start()
    world.settle()
    world.stop()
    for path in sorted(os.listdir(os.fsencode(world.tree)))[::2]:
        os.rename(os.fsencode(world.tree) + b"/" + path, os.fsencode(world.tree) + b"/" + b"z" + path[:254])
    world.start()
    records = world.cut()
    assert {r.fop for r in records if isinstance(r, Entry)} == {Fop.RENAME}
    assert not [r for r in records if isinstance(r, Data)]


def test_a_directory_of_many_names_is_compared_in_pages(world: World) -> None:
    world.options["bounds"] = Bounds(scan=ScanSizes(page=20, in_memory=50))
    (world.tree / "big").mkdir()
    for n in range(200):
        (world.tree / "big" / str(n)).write_bytes(b"x")
    world.start()
    world.settle()
    world.stop()
    for n in range(0, 200, 3):
        (world.tree / "big" / str(n)).unlink()
    (world.tree / "big" / "1").rename(world.tree / "big" / "moved")
    (world.tree / "big" / "2").write_bytes(b"changed")
    (world.tree / "big" / "new").write_bytes(b"x")
    world.start()
    records = world.cut()
    assert len([r for r in records if isinstance(r, Entry)]) == 67 + 2
    assert world.cut() == []


def test_a_file_is_found_under_its_new_name_wherever_the_old_one_was(world: World) -> None:
    """Into a directory that is read before the old one, after it, and out of one that is gone."""
    for name in "abc":
        (world.tree / name).mkdir()
        for n in range(4):
            (world.tree / name / f"{name}{n}").write_bytes(b"%d" % n)
    world.start()
    world.settle()
    world.stop()
    for old, new in [("a/a0", "c/x0"), ("c/c0", "a/x1"), ("b/b0", "x2"), ("b/b1", "c/c1x"), ("a/a1", "a/x3")]:
        (world.tree / old).rename(world.tree / new)
    os.link(world.tree / "c" / "c2", world.tree / "a" / "linked")
    shutil.rmtree(world.tree / "b")
    world.start()
    records = [r for r in world.cut() if isinstance(r, Entry)]
    fops = sorted(r.fop.name for r in records)
    assert fops == ["LINK", "RENAME", "RENAME", "RENAME", "RENAME", "RENAME", "RMDIR"]


@pytest.mark.parametrize("ahead", [0, 5])
def test_a_clock_that_steps_back_does_not_stop_the_record(tmp_path: Path, ahead: int) -> None:
    world = World(tmp_path, FACTORIES["inotify"])
    world.start()
    (world.tree / "one").touch()
    world.cut()
    last = world.recorder.status.last_changelog  # type: ignore[union-attr]
    world.skipped -= (3600 - ahead) * NS
    (world.tree / "two").touch()
    recording = world.recording
    assert recording is not None
    while not recording.close_slice():
        time.sleep(recording.until_next_ts())
    assert world.recorder.status.last_changelog == last + 1  # type: ignore[union-attr, operator]
    assert b"two" in {r.names[0][1] for r in world.new_records() if isinstance(r, Entry)}
    world.close()


def test_what_cannot_be_read_is_not_taken_for_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path, FACTORIES["inotify"])
    a_directory(world.tree, world.outside)
    world.start()
    world.settle()
    world.stop()
    shut = world.gfid(world.tree / "d")
    real = RecordedTree.open_dir

    def open_dir(self: RecordedTree, gfid: bytes, handle: bytes | None = None) -> int:
        if gfid == shut:
            raise PermissionError(13, "Permission denied")
        return real(self, gfid, handle)

    with monkeypatch.context() as patch:
        patch.setattr(RecordedTree, "open_dir", open_dir)
        world.start()
        assert world.cut() == []
        world.stop()
    world.start()
    assert world.cut() == []
    world.close()
