"""Every history of the convergence design's scenario list, on the real code. The numbers are that list's."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from gsync.base.fsid import Inodes
from gsync.base.model import NS, ROOT_GFID, Gfid
from gsync.engine.parts import Limits
from gsync.engine.states import Order
from gsync.master.posix import PosixTree
from gsync.master.tree import DirReader, Resolved
from gsync.recorder import detectors
from gsync.recorder.detector import Detector, Knows
from gsync.recorder.fanotify import Fanotify
from lab.model.world import Killed, ModelTree, World


def fanotify(root_fd: int, inodes: Inodes, knows: Knows) -> Detector:
    """fanotify that hears this process too: it is recorder and user in one."""
    return Fanotify(root_fd, inodes, knows, ignore_pid=0)


DETECTORS = {"inotify": detectors.inotify, "fanotify": fanotify}


@pytest.fixture(params=["inotify", pytest.param("fanotify", marks=pytest.mark.root)])
def w(request: pytest.FixtureRequest) -> Iterator[World]:
    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=folder) as base:
        world = World(Path(base) / "w", DETECTORS[request.param])
        yield world
        world.close()


def synced(w: World) -> None:
    w.quiet()
    w.check_equal()
    w.sent.clear()


def killed(w: World, where: str) -> None:
    """One cycle that ends at this step, worker and agent with it."""
    def step(name: str) -> None:
        if name == where:
            raise Killed(name)

    w.step = step
    with pytest.raises(Killed):
        for _ in range(10):
            w.cycle()
    w.step = lambda name: None


def killed_before_commit(w: World) -> None:
    def between(method: str) -> None:
        if method == "commit":
            raise Killed(method)

    w.between = between
    with pytest.raises(Killed):
        w.cycle()
    w.between = lambda name: None


def stopped_at(w: World, call: str) -> None:
    """One cycle in which the worker is told to stop before the agent's first call of this name."""
    def stop() -> None:
        w.order = Order.STOP

    at(w, call, stop)
    w.cycle()
    assert w.worker is None, f"{call} was not called"


def at(w: World, method: str, action: Callable[[], None]) -> None:
    """Do something on the master just before the agent's next call of this method."""
    def between(name: str) -> None:
        if name == method:
            w.between = lambda name: None
            action()

    w.between = between


def cut(w: World) -> None:
    w.poll()
    w.cut()


def done(w: World) -> None:
    w.quiet()
    w.check_equal()


def test_01_resolve_aba_suppressed(w: World) -> None:
    synced(w)
    w.mk("m/a")
    cut(w)
    w.mv("m/a", "m/b")
    w.cycle()
    w.mv("m/b", "m/a")
    done(w)


def test_02_gap_aba(w: World) -> None:
    w.mk("m/a", "old")
    synced(w)
    w.rm("m/a")
    cut(w)
    w.recorder_dies()
    w.mk("m/a", "again")
    w.cycle()
    w.rm("m/a")
    done(w)


def test_02_gap_aba_of_an_enumerated_child(w: World) -> None:
    synced(w)
    w.mkdir("m/d")
    cut(w)
    w.recorder_dies()
    w.mk("m/d/c")
    w.cycle()
    w.rm("m/d/c")
    w.recorder_up()
    w.recorder_dies()
    done(w)


def test_doubt_outlives_a_batch_that_has_nothing_to_resolve(w: World) -> None:
    """The walk's doubt, and a batch that only asks for the agent's leftovers (rules 7 and 20). A random history."""
    w.mk("m/a", "1")
    w.cycle()
    w.recorder_dies()
    w.worker_dies()
    w.cycle()
    w.rm("m/a")
    w.cycle()
    done(w)
    assert not (w.slave / "a").exists()


def test_what_cannot_be_read_is_a_failure_of_its_own(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is not seen because of it is not taken for removed."""
    for n in range(5):
        w.mk(f"m/{n}")
    synced(w)

    def failing(name: object) -> object:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def unreadable(*args: object) -> Iterator[object]:
        return map(failing, [""])

    with monkeypatch.context() as patched:
        patched.setattr(PosixTree, "stat", lambda tree, gfid: next(unreadable()))
        w.write("m/1", "changed")
        w.quiet()
        assert (w.slave / "1").read_text() == "changed"
        patched.setattr("gsync.master.tree.islice", unreadable)
        w.forget_stime()
        w.quiet()
    failure, = w.ledger.all()
    assert (failure.what, failure.errno) == ("dir", errno.EIO)
    assert len(os.listdir(w.slave)) == 6


def test_03_inotify_blind_window(w: World) -> None:
    synced(w)
    w.mkdir("m/c")
    cut(w)
    w.rm("m/c")
    w.mkdir("m/c")
    w.mk("m/c/x")
    w.cycle()
    w.mv("m/c/x", "m/c/y")
    done(w)


def test_04_moved_in_and_on(w: World) -> None:
    w.mk("m/a", "old")
    synced(w)
    w.mv("m/a", "o/a")
    w.write("o/a", "written outside")
    w.mv("o/a", "m/b")
    w.mv("m/b", "m/c")
    done(w)


def test_05_link_from_outside(w: World) -> None:
    w.mk("m/a", "old")
    synced(w)
    w.mv("m/a", "o/a")
    w.write("o/a", "written outside")
    w.ln("o/a", "m/b")
    done(w)


@pytest.mark.parametrize("nth", range(8))
def test_06_index_before_changelog(w: World, nth: int) -> None:
    synced(w)
    w.mk("m/a")
    w.mkdir("m/d")
    w.mk("m/d/x")
    w.poll()
    left = [nth]

    def step(name: str) -> None:
        if name.startswith("recorder"):
            if left[0] == 0:
                raise Killed(name)
            left[0] -= 1

    w.step = step
    with suppress(Killed):
        w.cut()
    w.step = lambda name: None
    w.recorder_dies()
    done(w)


def test_08_undrained_cut(w: World) -> None:
    w.mk("m/a", "old")
    synced(w)
    w.write("m/a", "new, its event is still queued")
    w.cut()
    w.cycle()
    done(w)


def test_09_names_of_two_batches(w: World) -> None:
    synced(w)
    w.mk("m/a")
    cut(w)

    def moved_on() -> None:
        w.mv("m/a", "m/b")
        cut(w)

    at(w, "send", moved_on)
    w.cycle()
    done(w)


def test_10_pulled_then_crash_then_deleted(w: World) -> None:
    synced(w)
    w.mkdir("m/p")
    w.mk("m/p/f")
    cut(w)
    w.mv("m/p", "m/q")
    killed_before_commit(w)
    w.recorder_dies()
    w.rm("m/q")
    done(w)


def test_11_new_without_d_then_crash(w: World) -> None:
    synced(w)
    w.mk("m/a")
    cut(w)
    w.mv("m/a", "m/c")
    w.cycle()
    cut(w)
    killed_before_commit(w)
    done(w)


def test_12_hybrid_moved_dir(w: World) -> None:
    w.mkdir("m/a")
    w.mkdir("m/b/e")
    w.mkdir("m/z")
    synced(w)
    w.mk("m/b/e/n")
    cut(w)
    w.worker_dies()
    w.lose_history()
    at(w, "fill", lambda: w.mv("m/b/e", "m/a/e"))
    done(w)


@pytest.mark.parametrize("where", ["receiver data new", "agent names to touch noted", "agent synced", "agent renamed",
                                   "agent names changed", "agent names follow"])
def test_13_14_killed_while_a_file_is_unfinished_or_named(w: World, where: str) -> None:
    w.mk("m/b", "b")
    synced(w)
    w.mk("m/a", "a" * 1000)
    w.mv("m/b", "m/c")
    cut(w)
    killed(w, where)
    w.mkdir("m/d")
    w.mv("m/c", "m/d/c")
    done(w)


def test_15_data_without_meta(w: World) -> None:
    w.mk("m/a", "old")
    synced(w)
    w.write("m/a", "new")
    w.chmod("m/a", 0o640)
    done(w)


def test_16_dir_mtime(w: World) -> None:
    w.mkdir("m/d")
    synced(w)
    os.utime(w.path("m/d"), ns=(10**18, 10**18))
    w.mkdir("m/d/c")
    done(w)


def test_17_pulled_parent(w: World) -> None:
    synced(w)
    w.mkdir("m/c/x")
    cut(w)
    w.mv("m/c", "m/b")
    w.cycle()
    done(w)


def test_18_closure_rename_in_gap(w: World) -> None:
    w.mkdir("m/c")
    w.mk("m/c/f")
    synced(w)
    w.mk("m/c/g")
    w.recorder_dies()
    w.mv("m/c", "m/b")
    w.cycle()
    done(w)
    assert len(w.sent) == 1, "a rename moves no data"


def test_19_cycle_pull(w: World) -> None:
    w.mkdir("m/a/b")
    w.mk("m/a/b/a")
    synced(w)
    w.rm("m/a/b/a")
    cut(w)
    w.mv("m/a/b", "m/b")
    w.mv("m/a", "m/b/a")
    w.cycle()
    done(w)


def test_20_vacated_name(w: World) -> None:
    w.mkdir("m/a")
    w.mk("m/a/1")
    w.mkdir("m/b")
    w.mk("m/b/2")
    synced(w)
    w.mv("m/a", "m/t")
    w.mv("m/b", "m/a")
    w.mv("m/t", "m/b")
    cut(w)

    def again() -> None:
        w.mv("m/a", "m/t")
        w.mv("m/b", "m/a")
        w.mv("m/t", "m/b")

    at(w, "fill", again)
    w.cycle()
    done(w)
    assert w.sent == []


def test_21_unknown_is_not_absent(w: World) -> None:
    w.mkdir("m/d")
    w.mk("m/d/f", "old")
    synced(w)
    w.write("m/d/f", "new")
    w.rm("m/d/f")
    w.mk("m/d/f", "newer")
    cut(w)
    w.mv("m/d", "m/e")
    w.cycle()
    done(w)


def test_22_victim_moved_on(w: World) -> None:
    w.mk("m/a", "a")
    w.mk("m/b", "b")
    synced(w)
    w.mv("m/a", "m/c")
    w.mv("m/b", "m/a")
    cut(w)
    done(w)
    assert w.sent == []


def test_23_deferred_delete(w: World) -> None:
    w.mkdir("m/d")
    w.mkdir("m/e")
    w.mk("m/d/f")
    synced(w)
    w.mk("m/d/x")
    cut(w)
    w.rm("m/d/x")
    w.mv("m/d/f", "m/e/g")
    w.rm("m/d")
    w.cycle()
    done(w)
    assert w.sent == []


def test_24_not_in_tree_is_absent(w: World) -> None:
    w.mkdir("m/a")
    w.mk("m/a/b")
    synced(w)
    w.rm("m/a/b")
    cut(w)
    w.rm("m/a")
    w.cycle()
    done(w)


def test_27_records_newer_than_the_index(w: World) -> None:
    synced(w)
    Path(w.brick.namespace + ".old").write_bytes(Path(w.brick.namespace).read_bytes())
    w.mk("m/a")
    cut(w)
    w.rm("m/a")  # as if the file system had fallen back
    w.recorder_dies()
    os.replace(w.brick.namespace + ".old", w.brick.namespace)
    for suffix in ("-wal", "-shm"):
        Path(w.brick.namespace + suffix).unlink(missing_ok=True)
    done(w)


def test_28_quiet_tree_limbo(w: World) -> None:
    w.mk("m/a")
    w.mk("m/b")
    synced(w)
    w.rm("m/a")
    cut(w)
    while w.cycle():
        pass
    done(w)


def test_too_many_deletes_are_held_until_approved(w: World) -> None:
    w.limits = Limits(max_delete=3)
    w.mkdir("m/d")
    for i in range(5):
        w.mk(f"m/d/{i}")
    w.mk("m/a")
    synced(w)
    w.rm("m/d")
    w.mk("m/b")
    w.quiet()
    assert sorted(p.name for p in w.slave.iterdir()) == [".gsync", "a", "b", "d"]
    assert len(list((w.slave / "d").iterdir())) == 5
    assert w.ledger.count_held() >= 1
    w.ledger.approve()
    done(w)
    assert w.ledger.count_held() == 0


def test_a_held_name_that_comes_back_is_not_held_any_more(w: World) -> None:
    w.limits = Limits(max_delete=1)
    w.mk("m/a", "old")
    w.mk("m/b", "old")
    synced(w)
    w.rm("m/a")
    w.rm("m/b")
    w.quiet()
    assert w.ledger.count_held() == 2
    w.mk("m/a", "new")
    w.mk("m/b", "new")
    done(w)
    assert w.ledger.count_held() == 0


@pytest.fixture(params=["by the recorder's index", "by the file system"])
def first_crawl(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in a new directory is read in both ways: the index may be complete, or still be made."""
    if request.param == "by the file system":
        monkeypatch.setattr(PosixTree, "read_indexed", lambda tree, gfid: None)


@pytest.mark.usefixtures("first_crawl")
def test_a_file_that_moves_to_an_unread_directory_during_the_first_crawl(w: World) -> None:
    count = 30
    for i in range(count):
        w.mkdir(f"m/{i}")
        w.mk(f"m/{i}/f", str(i))

    def move() -> None:
        for i in range(count):
            w.mv(f"m/{i}/f", f"m/{(i + 1) % count}/g")
        cut(w)

    at(w, "send", move)
    done(w)
    assert len(w.sent) > count  # some were sent by their new name too, and refused there


@pytest.mark.usefixtures("first_crawl")
def test_what_changes_between_reading_and_sending_in_the_first_crawl(w: World) -> None:
    for i in range(5):
        w.mkdir(f"m/{i}")
        for name in ("gone", "replaced", "linked", "written", "stays"):
            w.mk(f"m/{i}/{name}", name)

    def change() -> None:
        for i in range(5):
            w.rm(f"m/{i}/gone")
            w.rm(f"m/{i}/replaced")
            w.mkdir(f"m/{i}/replaced")
            w.ln(f"m/{i}/linked", f"m/{(i + 1) % 5}/link{i}")
            w.mk(f"m/{i}/written", "more")
        w.mv("m/0", "m/1/moved")

    at(w, "send", change)
    done(w)


@pytest.mark.usefixtures("first_crawl")
def test_hard_links_in_the_first_crawl(w: World) -> None:
    w.mkdir("m/a/b")
    w.mkdir("m/c")
    w.mk("m/a/1")
    w.ln("m/a/1", "m/a/b/2")
    w.ln("m/a/1", "m/c/3")
    w.ln("m/a/1", "m/4")
    done(w)
    assert len({os.lstat(w.slave / name).st_ino for name in ("a/1", "a/b/2", "c/3", "4")}) == 1


def test_new_directory_that_leaves_with_guests_in_guests(w: World) -> None:
    """What moved into a directory that is thrown away unfinished is kept whole: nobody asks again what is in it."""
    w.mkdir("m/d/x")
    w.mk("m/d/x/f")
    synced(w)
    w.mkdir("m/e")
    w.mk("m/e/new")
    w.mv("m/d/x", "m/d/y")
    w.mv("m/d/y/f", "m/d/y/g")
    w.mv("m/d", "m/e/d")
    cut(w)
    at(w, "send", lambda: w.mv("m/e", "o/e"))
    w.cycle()
    w.mv("o/e/d", "m/back")
    done(w)


def test_a_new_directory_beside_many_that_are_gone_again(w: World) -> None:
    """None of the first few that are to be enumerated can be opened: the others still are."""
    synced(w)
    w.mkdir("m/a")
    w.mk("m/a/f")
    for i in range(40):
        w.mkdir(f"m/d{i}")
    cut(w)
    for i in range(40):
        w.rm(f"m/d{i}")
    w.cycle()
    done(w)


def test_a_directory_that_is_outside_for_a_moment(w: World) -> None:
    """What is in it is looked for just then, and the recorder hears of both moves at once."""
    w.mkdir("m/d")
    w.mk("m/d/f", "old")
    synced(w)
    w.mk("m/d/g")
    w.mk("m/new")
    cut(w)
    w.mv("m/d", "o/d")

    def back() -> None:
        if w.path("o/d").exists():
            w.mv("o/d", "m/e")

    at(w, "fill", back)
    w.cycle()
    back()
    done(w)


def test_a_directory_that_becomes_the_state_folder(w: World) -> None:
    """What is in it is not waited for."""
    synced(w)
    w.mkdir("m/d/e")
    w.mk("m/d/f")
    w.mk("m/d/e/f")
    cut(w)
    w.mv("m/d", "m/.gsync")
    done(w)
    w.mv("m/.gsync", "m/d")
    done(w)


def test_live_changes_gather_for_the_change_interval(w: World) -> None:
    w.mk("m/f", "1")
    synced(w)
    w.worker_stops()
    w.limits = Limits(change_interval=3600.0)
    for text in ("2", "3", "4"):
        w.write("m/f", text)
        w.poll()
        w.cut()
        while w.cycle():
            pass
        assert (w.slave / "f").read_text() == "2"
    w.clock.step(3600 * NS)
    synced(w)
    assert (w.slave / "f").read_text() == "4"


def test_51_a_file_that_is_changed_and_gone_before_its_content_is_read(w: World) -> None:
    """Rule 18: the commit claims the change; the slave must not show the former content then."""
    w.mkdir("m/d")
    w.mk("m/d/a", "old")
    synced(w)
    w.write("m/d/a", "new")
    cut(w)
    w.rm("m/d/a")
    w.cycle()  # its commit is checked
    assert not (w.slave / "d" / "a").exists()
    done(w)


def test_50_a_directory_that_moves_before_the_first_walk_reads_its_new_place(w: World) -> None:
    """Rule 29: the recorder has not looked at the rename yet, so the index lacks the directory's new name."""
    w.mkdir("m/d")
    w.mk("m/d/a")
    w.mkdir("m/e")
    w.mk("m/e/b")
    cut(w)
    w.mv("m/d", "m/e/d")
    w.cycle()  # its commit is checked
    assert (w.slave / "e" / "d" / "a").exists()
    done(w)


def test_a_comparing_walk_that_begins_anew_compares_what_the_first_one_had_not(w: World) -> None:
    """rule 29: the walk is interrupted, the recorder has a gap meanwhile, and the stime was reset."""
    w.mk("m/a", "right")
    synced(w)
    w.forget_stime()
    (w.slave / "a").write_text("wrong")
    stopped_at(w, "digest")
    w.recorder_dies()
    done(w)


def test_an_adopting_walk_that_begins_anew_compares_what_the_first_one_had_not(w: World) -> None:
    w.adopt = True
    w.mk("m/a", "right")
    cut(w)
    (w.slave / "a").write_text("wrong")
    stopped_at(w, "digest")
    w.recorder_dies()
    done(w)


def interrupted(w: World) -> None:
    """A first walk that has committed the root, its files in place, and not m/d/e."""
    w.limits = Limits(interim_commit=0.0)
    w.mkdir("m/d/e")
    w.mk("m/d/e/a")
    w.mk("m/b.skip")
    w.mk("m/c")
    cut(w)

    def committed() -> None:
        w.clock.step(10 * NS)  # what has landed does not wait for company any more
        at(w, "send", stop)

    def stop() -> None:
        w.order = Order.STOP

    at(w, "commit", lambda: at(w, "commit", committed))
    w.cycle()
    assert w.worker is None
    assert (w.slave / "c").exists()


def test_an_interrupted_walk_is_resumed(w: World) -> None:
    """rule 29: what it has committed is not walked again."""
    read: list[Gfid] = []

    class Noting(ModelTree):
        def read_dir(self, gfid: Gfid) -> DirReader | Resolved:
            read.append(gfid)
            return super().read_dir(gfid)

    interrupted(w)
    w.tree_class = Noting
    w.cycle()
    assert read and ROOT_GFID not in read
    done(w)


def test_a_walk_is_not_resumed_with_other_patterns(w: World) -> None:
    w.patterns = ["*.skip"]
    interrupted(w)
    w.patterns = []
    done(w)


def test_a_walk_is_not_resumed_at_a_slave_that_was_emptied(w: World) -> None:
    interrupted(w)
    for path in w.slave.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    done(w)


def test_a_walk_is_not_resumed_after_a_reset_that_asks_for_more(w: World) -> None:
    """It compared what is younger than the stime; now everything is to be compared."""
    interrupted(w)
    done(w)
    w.lose_history()
    w.worker_stops()
    w.mk("m/d/new")
    cut(w)
    at(w, "commit", lambda: setattr(w, "order", Order.STOP))
    w.cycle()
    (w.slave / "c").write_text("wrong")
    w.forget_stime()
    done(w)
