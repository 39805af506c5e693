"""What a detector promises, on each of them: hints at whatever happens in the directories that it was told of."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gsync.base.fsid import Inodes
from gsync.base.model import ROOT_GFID, Gfid
from gsync.recorder import detectors, fanotify
from gsync.recorder.detector import (
    ChangeHint,
    Detector,
    Hint,
    LostWatch,
    NameHint,
    RenameHint,
    RootGone,
    Unavailable,
)
from lab.recording import FACTORIES
from lab.trees import HOSTILE_NAMES


@dataclass
class Watched:
    """A folder with the directory d, both watched, beside the folder outside."""

    tree: Path
    outside: Path
    inodes: Inodes
    detector: Detector
    known: set[Gfid]

    def gfid(self, path: Path) -> Gfid:
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            return self.inodes.gfid(self.inodes.handles.of_fd(fd))
        finally:
            os.close(fd)

    def watch(self, path: Path) -> Gfid:
        fd = os.open(path, os.O_RDONLY)
        try:
            handle = self.inodes.handles.of_fd(fd)
            self.known.add(self.inodes.gfid(handle))
            self.detector.watch(self.inodes.gfid(handle), handle, fd)
            return self.inodes.gfid(handle)
        finally:
            os.close(fd)

    def names(self) -> set[tuple[Gfid, bytes]]:
        """All names that are hinted at."""
        names = set()
        for hint in self.detector.read():
            if isinstance(hint, RenameHint):
                names |= {hint.old, hint.new}
            elif isinstance(hint, NameHint):
                names.add(hint.name)
        return names

    def read(self) -> list[Hint]:
        return list(self.detector.read())


def watched_by(name: str, folder: Path) -> Iterator[Watched]:
    (folder / "tree" / "d").mkdir(parents=True)
    (folder / "outside").mkdir()
    root_fd = os.open(folder / "tree", os.O_RDONLY)
    inodes = Inodes(root_fd, b"tag!")
    known: set[Gfid] = set()
    detector = FACTORIES[name](root_fd, inodes, known.__contains__)
    watched = Watched(folder / "tree", folder / "outside", inodes, detector, known)
    watched.watch(watched.tree)
    watched.watch(watched.tree / "d")
    yield watched
    detector.close()
    os.close(root_fd)


@pytest.fixture(params=[pytest.param("fanotify", marks=pytest.mark.root), "inotify"])
def watched(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Watched]:
    yield from watched_by(request.param, tmp_path)


@pytest.fixture
def by_fanotify(tmp_path: Path) -> Iterator[Watched]:
    yield from watched_by("fanotify", tmp_path)


@pytest.fixture
def by_inotify(tmp_path: Path) -> Iterator[Watched]:
    yield from watched_by("inotify", tmp_path)


def test_it_says_nothing_when_nothing_happens(watched: Watched) -> None:
    assert watched.read() == []


def test_a_new_name_appeared_and_a_removed_one_did_not(watched: Watched) -> None:
    (watched.tree / "f").touch()
    os.mkdir(watched.tree / "d" / "sub")
    hints = [h for h in watched.read() if isinstance(h, NameHint)]
    assert hints == [NameHint((ROOT_GFID, b"f"), True, False),
                     NameHint((watched.gfid(watched.tree / "d"), b"sub"), True, True)]
    (watched.tree / "f").unlink()
    assert [h for h in watched.read() if isinstance(h, NameHint)] == [NameHint((ROOT_GFID, b"f"), False, False)]


@pytest.mark.parametrize("bname", [n for n in HOSTILE_NAMES if n != b".gsync"], ids=repr)
def test_names_are_told_byte_for_byte(watched: Watched, bname: bytes) -> None:
    os.mknod(os.fsencode(watched.tree) + b"/" + bname)
    assert watched.names() == {(ROOT_GFID, bname)}


def test_a_rename_within_the_tree_is_one_hint_with_both_names(watched: Watched) -> None:
    (watched.tree / "f").touch()
    gfid, d = watched.gfid(watched.tree / "f"), watched.gfid(watched.tree / "d")
    watched.read()
    (watched.tree / "f").rename(watched.tree / "d" / "g")
    (watched.tree / "d").rename(watched.tree / "e")
    hints = [h for h in watched.read() if isinstance(h, RenameHint)]
    assert [(h.old, h.new) for h in hints] == [((ROOT_GFID, b"f"), (d, b"g")), ((ROOT_GFID, b"d"), (ROOT_GFID, b"e"))]
    assert all(h.gfid in (None, g) for h, g in zip(hints, [gfid, d], strict=True))


def test_a_rename_out_and_in_tells_the_name_inside(watched: Watched) -> None:
    (watched.tree / "f").touch()
    watched.read()
    (watched.tree / "f").rename(watched.outside / "f")
    assert watched.read() == [NameHint((ROOT_GFID, b"f"), False, False)]
    (watched.outside / "f").rename(watched.tree / "g")
    assert watched.read() == [NameHint((ROOT_GFID, b"g"), True, False)]


def changed(watched: Watched, path: Path, data: bool) -> bool:
    """Whether there is a hint that this inode changed, by its gfid or its name."""
    name = (watched.gfid(path.parent), os.fsencode(path.name))
    return any(isinstance(h, ChangeHint) and h.data == data and (h.gfid == watched.gfid(path) or h.name == name)
               for h in watched.read())


def test_writes_and_attributes_are_told_apart(watched: Watched) -> None:
    path = watched.tree / "d" / "f"
    path.touch()
    watched.read()
    path.write_bytes(b"x")
    assert changed(watched, path, data=True)
    os.truncate(path, 0)
    assert changed(watched, path, data=True)
    path.chmod(0o600)
    assert changed(watched, path, data=False)
    os.setxattr(path, "user.x", b"y")
    assert changed(watched, path, data=False)
    os.utime(path)
    assert changed(watched, path, data=False)
    (watched.tree / "d").chmod(0o700)
    assert changed(watched, watched.tree / "d", data=False)
    watched.tree.chmod(0o700)
    assert ChangeHint(ROOT_GFID, None, False) in watched.read()


def test_a_link_appears(watched: Watched) -> None:
    (watched.tree / "f").touch()
    watched.read()
    os.link(watched.tree / "f", watched.tree / "d" / "l")
    hints = watched.read()
    assert NameHint((watched.gfid(watched.tree / "d"), b"l"), True, False) in hints


def test_events_come_in_order_and_all_of_them(watched: Watched) -> None:
    for n in range(2000):
        (watched.tree / f"{n}").touch()
    hints = [h.name[1] for h in watched.read() if isinstance(h, NameHint)]
    assert hints == [b"%d" % n for n in range(2000)]
    assert watched.read() == []


def test_it_is_readable_when_there_is_something(watched: Watched) -> None:
    import select

    if watched.detector.name != "fanotify":  # to that one other tests, on the same file system, are something too
        assert select.select([watched.detector.fileno()], [], [], 0)[0] == []
    (watched.tree / "f").touch()
    assert select.select([watched.detector.fileno()], [], [], 90)[0]


@pytest.mark.root
def test_what_happens_elsewhere_on_the_file_system_is_not_told_by_fanotify(by_fanotify: Watched) -> None:
    (by_fanotify.outside / "d").mkdir()
    (by_fanotify.outside / "d" / "f").write_bytes(b"x")
    (by_fanotify.outside / "d").rename(by_fanotify.outside / "e")
    shutil.rmtree(by_fanotify.outside / "e")
    assert by_fanotify.read() == []


@pytest.mark.root
def test_a_directory_is_heard_of_from_when_it_is_known(by_fanotify: Watched) -> None:
    (by_fanotify.outside / "d").mkdir()
    (by_fanotify.outside / "d" / "f").touch()
    assert by_fanotify.read() == []
    gfid = by_fanotify.watch(by_fanotify.outside / "d")
    (by_fanotify.outside / "d" / "g").touch()
    assert by_fanotify.names() == {(gfid, b"g")}


@pytest.mark.root
def test_what_is_written_through_a_name_outside_is_told_by_fanotify(by_fanotify: Watched) -> None:
    (by_fanotify.tree / "f").touch()
    gfid = by_fanotify.gfid(by_fanotify.tree / "f")
    by_fanotify.known.add(gfid)
    by_fanotify.read()
    os.link(by_fanotify.tree / "f", by_fanotify.outside / "f")
    (by_fanotify.outside / "f").write_bytes(b"x")
    assert ChangeHint(gfid, None, True) in by_fanotify.read()
    (by_fanotify.outside / "f").write_bytes(b"y")
    assert ChangeHint(gfid, None, True) in by_fanotify.read()


@pytest.mark.root
def test_what_the_recorder_itself_does_is_not_told(by_fanotify: Watched) -> None:
    own = detectors.fanotify(os.open(by_fanotify.tree, os.O_RDONLY), by_fanotify.inodes, lambda gfid: True)
    (by_fanotify.tree / "f").touch()
    assert [h for h in own.read() if isinstance(h, NameHint) and h.name[0] == ROOT_GFID] == []
    subprocess.run(["touch", by_fanotify.tree / "g"], check=True)
    assert NameHint((ROOT_GFID, b"g"), True, False) in own.read()
    own.close()


@pytest.mark.root
def test_fanotify_says_why_it_is_not_there(monkeypatch: pytest.MonkeyPatch, by_inotify: Watched) -> None:
    root_fd = os.open("/proc", os.O_RDONLY)
    try:
        with pytest.raises(Unavailable):
            FACTORIES["fanotify"](root_fd, by_inotify.inodes, lambda gfid: True)
    finally:
        os.close(root_fd)
    monkeypatch.setattr(fanotify, "_REPORT_DFID_NAME_TARGET", 0x8000_0000)  # a kernel that does not know it
    with pytest.raises(Unavailable, match="fanotify_init: Invalid argument"):
        FACTORIES["fanotify"](0, by_inotify.inodes, lambda gfid: True)


def test_inotify_tells_that_a_watch_is_gone(by_inotify: Watched) -> None:
    gfid = by_inotify.gfid(by_inotify.tree / "d")
    (by_inotify.tree / "d").rmdir()
    assert LostWatch(gfid) in by_inotify.read()
    by_inotify.detector.unwatch(gfid)


def test_inotify_tells_that_the_root_is_gone(by_inotify: Watched) -> None:
    by_inotify.tree.rename(by_inotify.tree.with_name("away"))
    assert by_inotify.read() == [RootGone()]


def test_a_directory_that_left_is_not_heard_of(by_inotify: Watched) -> None:
    by_inotify.detector.unwatch(by_inotify.gfid(by_inotify.tree / "d"))
    (by_inotify.tree / "d" / "f").touch()
    assert by_inotify.read() == []
