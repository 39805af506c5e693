"""For tests of the recorder: a volume with a recorder, and a model of a slave that is fed by its changelogs.

The model treats records as a worker and an agent do (convergence rules 6, 8, 9, 14), without any of their code: if a
recorder omits something, the copy differs from the tree.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from gsync.base.clock import Clock
from gsync.base.fsid import Inodes, is_mount_handle
from gsync.base.model import NS, ROOT_GFID, Gfid, Name
from gsync.changelog.reader import History
from gsync.changelog.records import Data, Entry, Fop, Meta, Problem, Record, read_records
from gsync.recorder import detectors
from gsync.recorder.detector import Detector, DetectorFactory, Hint, Knows
from gsync.recorder.recorder import Recorder
from gsync.recorder.recording import Recording
from gsync.recorder.status import RecorderPort, RecorderStatus, read_status
from gsync.state.home import Home, Volume
from lab.trees import at, walk


def fanotify_of_all(root_fd: int, inodes: Inodes, knows: Knows) -> Detector:
    """fanotify that also reports this process's events, since it plays the user."""
    from gsync.recorder.fanotify import Fanotify

    return Fanotify(root_fd, inodes, knows)


def inotify_by_path(root_fd: int, inodes: Inodes, knows: Knows) -> Detector:
    """inotify for a user who may not open files by their handles."""
    inodes.handles.by_handle = False
    return detectors.inotify(root_fd, inodes, knows)


FACTORIES: dict[str, DetectorFactory] = {
    "fanotify": fanotify_of_all, "inotify": detectors.inotify, "inotify by path": inotify_by_path}


@dataclass(frozen=True)
class Inode:
    """The properties that a copy of an inode must have."""

    kind: int
    data: bytes
    meta: tuple[object, ...]


@dataclass
class Copy:
    """Names and inodes of a tree."""

    names: dict[Name, Gfid] = field(default_factory=dict)
    inodes: dict[Gfid, Inode] = field(default_factory=dict)

    def children(self, gfid: Gfid) -> list[Name]:
        return [name for name in self.names if name[0] == gfid]

    def reachable(self) -> Copy:
        """The copy without inodes that are no longer connected to the root."""
        copy = Copy(inodes={ROOT_GFID: self.inodes[ROOT_GFID]})
        below: dict[Gfid, list[Name]] = {}
        for name in self.names:
            below.setdefault(name[0], []).append(name)
        todo = [ROOT_GFID]
        while todo:
            for name in below.get(todo.pop(), []):
                gfid = self.names[name]
                copy.names[name] = gfid
                if gfid not in copy.inodes:
                    copy.inodes[gfid] = self.inodes[gfid]
                    todo.append(gfid)
        return copy


def _meta(path: bytes | int, st: os.stat_result) -> tuple[object, ...]:
    follow = isinstance(path, int)
    names = os.listxattr(path, follow_symlinks=follow)
    xattrs = sorted((n, os.getxattr(path, n, follow_symlinks=follow)) for n in names)
    return (st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, tuple(xattrs))


def copy_of(volume: Volume) -> Copy:
    """The tree as it is, each inode under its gfid."""
    fd = os.open(volume.path, os.O_RDONLY)
    try:
        inodes = Inodes(fd, volume.tag)
        copy = Copy(inodes={ROOT_GFID: Inode(stat.S_IFDIR, b"", _meta(fd, os.fstat(fd)))})
        for dirfd, bname, _, st in walk(volume.path, exclude=[b".gsync"]):
            pargfid = inodes.gfid(inodes.handles.of_fd(dirfd))
            seen = inodes.look(dirfd, pargfid, bname)
            assert seen is not None
            if is_mount_handle(seen.handle):
                copy.inodes[seen.gfid] = Inode(stat.S_IFDIR, b"", ())
            elif seen.gfid not in copy.inodes:
                data = b""
                if stat.S_ISREG(st.st_mode):
                    file = os.open(bname, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=dirfd)
                    with open(file, "rb") as stream:
                        digest = blake2b()
                        while block := stream.read(1 << 20):
                            digest.update(block)
                        data = digest.digest()
                elif stat.S_ISLNK(st.st_mode):
                    data = os.readlink(bname, dir_fd=dirfd)
                copy.inodes[seen.gfid] = Inode(stat.S_IFMT(st.st_mode), data, _meta(at(dirfd, bname), st))
            copy.names[(pargfid, bname)] = seen.gfid
        return copy.reachable()  # a mount point hides its content
    finally:
        os.close(fd)


def apply(copy: Copy, records: list[Record], tree: Copy, doubt: set[Name]) -> tuple[Copy, set[Name]]:
    """Resolve records and doubtful names against the tree; return the copy after that, and the resolved names."""
    names, inodes = dict(copy.names), dict(copy.inodes)
    slave = Copy(names, inodes)
    dirty = [name for r in records if isinstance(r, Entry) for name in r.names] + list(doubt)
    enum = [r.gfid for r in records if isinstance(r, Entry) and r.fop == Fop.MKDIR]
    meta = {name[0] for name in dirty}
    for gfid in enum:
        dirty += tree.children(gfid) + slave.children(gfid)
    done: set[Name] = set()
    while dirty:
        name = dirty.pop()
        if name in done:
            continue
        done.add(name)
        found = tree.names.get(name)
        if found is None:
            names.pop(name, None)
            continue
        gfid = found
        inode = tree.inodes[gfid]
        if inode.kind == stat.S_IFDIR:
            for other in [n for n, g in names.items() if g == gfid]:
                del names[other]
        names[name] = gfid
        if gfid not in inodes:
            inodes[gfid] = inode
            dirty += tree.children(gfid)
    for r in records:
        if isinstance(r, Data):
            meta.add(r.gfid)
            if r.gfid in inodes and r.gfid in tree.inodes:
                inodes[r.gfid] = Inode(inodes[r.gfid].kind, tree.inodes[r.gfid].data, inodes[r.gfid].meta)
        elif isinstance(r, Meta):
            meta.add(r.gfid)
    for gfid in meta:
        if gfid in inodes and gfid in tree.inodes:
            inodes[gfid] = Inode(inodes[gfid].kind, inodes[gfid].data, tree.inodes[gfid].meta)
    return slave.reachable(), done


def differences(copy: Copy, tree: Copy) -> list[str]:
    """Every difference between the copy and the tree."""
    out = [f"name {n!r}: {copy.names.get(n)!r} instead of {tree.names.get(n)!r}"
           for n in copy.names.keys() | tree.names.keys() if copy.names.get(n) != tree.names.get(n)]
    out += [f"inode {g.hex()} {[n for n, o in tree.names.items() if o == g]}: {copy.inodes[g]} instead of {inode}"
            for g, inode in tree.inodes.items() if g in copy.inodes and copy.inodes[g] != inode]
    return out


def wait_for(port: RecorderPort, wanted: Callable[[RecorderStatus], bool]) -> RecorderStatus:
    """Wait until the status of a recorder in another thread or process is as wanted; return it."""
    end = time.monotonic() + 90
    while (status := port.status()) is None or not wanted(status):
        assert time.monotonic() < end, f"never came: {status}"
        time.sleep(0.01)
    return status


class World:
    """A tree, a folder beside it on the same file system, a volume, and a recorder that the test steps."""

    def __init__(self, folder: Path, detector: DetectorFactory, *, ignored: tuple[str, ...] = (),
                 tree: Path | None = None, **recorder: object) -> None:
        """The state is in /dev/shm: a test must not wait for a disk that others use."""
        home = tempfile.mkdtemp(prefix="recorder-", dir="/dev/shm")
        self._tidy = weakref.finalize(self, shutil.rmtree, home, ignore_errors=True)  # even if its test has failed
        self.tree, self.outside = tree or folder / "tree", folder / "outside"
        for path in (self.tree, self.outside):
            path.mkdir(exist_ok=True)
        self.home = Home(home)
        self.volume = self.home.add("v", str(self.tree))
        self.brick = self.volume.brick()
        os.makedirs(self.brick.folder, exist_ok=True)
        self.detector, self.options = detector, recorder
        self.ignored = ignored
        self.slave: Copy | None = None
        self.position = 0
        self.doubt: set[Name] = set()  # names that were resolved while the recorder may have been behind (rule 20),
        self.doubt_gaps = 0            # and its gaps at that time
        self.skipped = 0  # ns by which the recorder's clock is ahead: so nobody waits for the next second
        self.recorder: Recorder | None = None
        self.recording: Recording | None = None

    def clock(self) -> int:
        return time.time_ns() + self.skipped

    def start(self, **changes: object) -> None:
        """Start the recorder; the first time, the slave becomes a copy of the tree as it is."""
        options = {"detector": self.detector, "ignored": self.ignored, "clock": Clock(self.clock), **self.options,
                   **changes}
        self.recorder = Recorder(self.volume, **options)  # type: ignore[arg-type]
        self.recording = self.recorder.start()
        if self.slave is None:
            self.slave = copy_of(self.volume)

    def stop(self) -> None:
        """Stop as a crash does, except that the kernel still writes its cached data."""
        if self.recorder is not None:
            self.recorder.close()
            self.recorder = self.recording = None

    def close(self) -> None:
        self.stop()
        self._tidy()

    def cut(self) -> list[Record]:
        """Close a slice; return the new records. The slave has applied them, and must then be equal."""
        self.close_slice()
        records = self.new_records()
        self.sync(records)
        wrong = differences(self.copy(), copy_of(self.volume))
        assert not wrong, "\n".join([*wrong, "records:", *map(str, records)])
        self.doubt.clear()
        return records

    def copy_now(self) -> Copy:
        return copy_of(self.volume)

    def copy(self) -> Copy:
        assert self.slave is not None
        return self.slave

    def settle(self) -> None:
        """Cut until the index knows the ctimes that were too young to be kept at first."""
        for _ in range(3):
            self.skipped += 50_000_000
            self.cut()

    def close_slice(self) -> None:
        assert self.recording is not None
        while not self.recording.close_slice():
            self.skipped += NS

    def new_records(self) -> list[Record]:
        """The records since the last call."""
        records: list[Record] = []
        for changelog in History(os.fsencode(self.brick.changelogs)).since(self.position):
            with open(changelog.path, "rb") as file:
                for record in read_records(file):
                    assert not isinstance(record, Problem), record
                    records.append(record)
            self.position = changelog.ts * NS
        return records

    def sync(self, records: list[Record]) -> None:
        """Apply records as a worker does, at any time: names are resolved to their present state, recorded or not."""
        status = read_status(self.brick.status)
        assert status is not None
        doubt = self.doubt if status.gaps != self.doubt_gaps else set()
        self.slave, handled = apply(self.copy(), records, copy_of(self.volume), doubt)
        self.doubt_gaps = status.gaps
        self.doubt |= handled

    def gfid(self, path: str | Path) -> Gfid:
        fd = os.open(self.tree, os.O_RDONLY)
        try:
            inodes = Inodes(fd, self.volume.tag)
            at_path = os.open(path, os.O_PATH | os.O_NOFOLLOW)
            try:
                return inodes.gfid(inodes.handles.of_fd(at_path))
            finally:
                os.close(at_path)
        finally:
            os.close(fd)


class Injecting:
    """A detector that mixes the test's hints with its own."""

    def __init__(self, inner: Detector) -> None:
        self.inner = inner
        self.extra: list[Hint] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def read(self) -> list[Hint]:
        extra, self.extra = self.extra, []
        return [*self.inner.read(), *extra]
