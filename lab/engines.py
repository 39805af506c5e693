"""A small world for tests of the data engines: files on a master side, a real agent on a slave side, one engine."""

from __future__ import annotations

import copy
import errno
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from gsync.base.fsid import Inodes
from gsync.base.model import ROOT_GFID, Gfid
from gsync.link.client import SlaveClient
from gsync.link.link import Link, Slave
from gsync.link.local import LocalLink
from gsync.link.protocol import FillRow
from gsync.sync.auto import engine_maker
from gsync.sync.engine import Engine, Flow
from gsync.sync.postbox import FileRequest, Result

TAG = b"test"


class Files:
    """A Source over the files of one folder. Everything goes through real descriptors; `meddle` runs once a file is
    open and its length is known."""

    def __init__(self, folder: Path) -> None:
        self._root = -1
        self.use(folder)

    def use(self, folder: Path) -> None:
        """Forget everything and start again in another folder."""
        if self._root >= 0:
            self.close()
        folder.mkdir()
        self.folder = os.fsencode(folder)
        self._root = os.open(folder, os.O_RDONLY)
        self._inodes = Inodes(self._root, TAG)
        self.paths: dict[Gfid, bytes] = {}
        self.errors: dict[Gfid, int] = {}
        self.meddle: Callable[[bytes], None] = lambda path: None
        self.opened = 0

    def close(self) -> None:
        os.close(self._root)

    def path(self, name: bytes) -> bytes:
        return os.path.join(self.folder, name)

    def add(self, name: bytes, data: bytes = b"") -> Gfid:
        """Add a file with this content; the source knows it from then on."""
        fd = os.open(self.path(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        with open(fd, "wb") as file:
            file.write(data)
        return self.know(name)

    def know(self, name: bytes) -> Gfid:
        seen = self._inodes.look(self._root, ROOT_GFID, name)
        assert seen is not None
        self.paths[seen.gfid] = self.path(name)
        return seen.gfid

    # the Source

    def open(self, gfid: Gfid) -> tuple[int, os.stat_result]:
        if gfid in self.errors:
            raise OSError(self.errors[gfid], os.strerror(self.errors[gfid]))
        if gfid not in self.paths:
            raise FileNotFoundError(errno.ENOENT, "gone")
        self.opened += 1
        fd = os.open(self.paths[gfid], os.O_RDONLY | os.O_NOFOLLOW)
        if self._inodes.gfid(self._inodes.handles.of_fd(fd)) != gfid:
            os.close(fd)
            raise FileNotFoundError(errno.ENOENT, "another inode")
        return fd, os.fstat(fd)

    def fstat(self, fd: int) -> os.stat_result:
        return os.fstat(fd)

    def changed(self, fd: int, st: os.stat_result) -> bool:
        return os.fstat(fd).st_ctime_ns != st.st_ctime_ns

    def xattrs(self, gfid: bytes, fd: int, st: os.stat_result) -> list[tuple[bytes, bytes]]:
        self.meddle(os.readlink(b"/proc/self/fd/%d" % fd))
        return [(os.fsencode(n), os.getxattr(fd, n)) for n in os.listxattr(fd)]


class World:
    """One slave tree with its agent, and one engine of the given sync-method. The end of the `with` ends everything."""

    epoch = 1

    def __init__(self, folder: Path, link: Link, method: str, source: Files | None = None, flow: Flow | None = None
                 ) -> None:
        self.root = os.fsencode(link.slave.path)
        self.link = link
        self.source = source or Files(folder / "master")
        self.client = SlaveClient(link)
        try:
            self.hello = self.client.hello("00000000-0000-0000-0000-00000000c0de", "test", "test", self.epoch)
            self.flow = flow or Flow()
            self.engine: Engine = engine_maker(method, link, self.client, self.source, self.epoch)(self.flow)
        except BaseException:
            self.client.close()
            raise

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.engine.close()
        self.client.close()
        self.source.close()

    def move(self, *requests: FileRequest) -> list[Result]:
        """Let the engine move one box; return the results in the order of the requests."""
        results: list[Result] = []
        self.engine.move(requests, results.extend)
        self.engine.flush(results.extend)
        assert sorted(r.request for r in results) == sorted(requests), "each request has exactly one result"
        return sorted(results, key=lambda result: requests.index(result.request))

    def fill(self, name: bytes, gfid: Gfid, pargfid: Gfid = ROOT_GFID, mode: int = stat.S_IFREG | 0o644) -> str:
        (answer,) = self.fill_all({name: gfid}, pargfid, mode)
        return answer

    def fill_all(self, names: dict[bytes, Gfid], pargfid: Gfid = ROOT_GFID, mode: int = stat.S_IFREG | 0o644
                 ) -> set[str]:
        """Fill these names; return the agent's codes."""
        answer = self.client.fill([FillRow(pargfid, name, gfid, mode, 1, 1, os.geteuid(), os.getegid(), 0, 0, 0)
                                   for name, gfid in names.items()])
        assert not answer.errors, answer.errors
        return set(answer.answers)

    def new(self, *gfids: Gfid) -> list[Result]:
        return self.move(*(FileRequest(gfid, "N", bytes(16), b"", 0) for gfid in gfids))

    def place(self, name: bytes, gfid: Gfid) -> Result:
        """Bring a new file to the slave, all the way to its name."""
        assert self.fill(name, gfid) == "new"
        (result,) = self.new(gfid)
        if not result.errno:
            assert self.fill(name, gfid) == "ok"
        return result

    def in_place(self, *gfids: Gfid) -> list[Result]:
        return self.move(*(FileRequest(gfid, "P", bytes(16), b"", 0) for gfid in gfids))

    def copy(self, name: bytes) -> bytes:
        """The path of a name at the slave."""
        return os.path.join(self.root, name)

    def limbo(self) -> list[str]:
        """The entries of limbo/new."""
        return sorted(os.fsdecode(name) for name in os.listdir(self.copy(b".gsync/limbo/new")))


def local(root: Path) -> Link:
    root.mkdir(parents=True, exist_ok=True)
    return LocalLink(Slave(os.fsencode(root)))


def at(link: Link, root: Path) -> Link:
    """The same connection, for another slave tree on that host."""
    root.mkdir(parents=True, exist_ok=True)
    other = copy.copy(link)
    other.slave = replace(link.slave, path=os.fsencode(root))
    return other


def content(path: bytes) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def allocated(path: bytes) -> int:
    """Bytes that the file takes on disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        return os.fstat(fd).st_blocks * 512
    finally:
        os.close(fd)


def xattrs(path: bytes) -> dict[str, bytes]:
    return {name: os.getxattr(path, name) for name in os.listxattr(path)}
