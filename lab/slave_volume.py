"""A slave volume in memory: as much of GlusterFS as names need, with the product's own code above it.

`MemoryVolume` is a GlusterVolume made of dictionaries. It adds properties of a real one that dictionaries lack: gfids,
link counts, rename(2) that does nothing between links of one inode, directories that must be empty. It has no bricks:
tests/gluster covers their faults. `VolumeSlave` opens it as an agent does, with a hook that can kill it after any step;
`VolumePlanner` brings a World to it.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from gsync.base.model import ROOT_GFID, STATE_DIR, Gfid
from gsync.link.protocol import FillRow
from gsync.slave.gluster.limbo import LIMBO_DEL
from gsync.slave.gluster.operations import VolumeOperations
from gsync.slave.gluster.state import VolumeState
from gsync.slave.gluster.target import make_folders
from gsync.slave.gluster.volume import GlusterVolume, Node, Space, set_node_attrs
from gsync.slave.limbo import LIMBO_NEW, LIMBO_OLD, name_in_limbo
from lab.slave_model import Killed, Planner, World


def failure(err: int) -> OSError:
    return OSError(err, os.strerror(err))


@dataclass
class Inode:
    """nlink: the number of its names; for a directory, its parent is kept instead."""

    mode: int
    uid: int = 0
    gid: int = 0
    rdev: int = 0
    mtime: int = 0
    atime: int = 0
    data: bytearray = field(default_factory=bytearray)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    names: dict[bytes, Gfid] = field(default_factory=dict)
    home: tuple[Gfid, bytes] | None = None
    nlink: int = 0

    @property
    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)


class MemoryFile:
    """A File."""

    def __init__(self, volume: MemoryVolume, gfid: Gfid) -> None:
        self._volume, self._gfid = volume, gfid

    @property
    def _data(self) -> bytearray:
        return self._volume.inode(self._gfid).data

    def pwrite(self, data: bytes | memoryview, offset: int) -> None:
        held = self._data
        held.extend(bytes(max(0, offset - len(held))))
        held[offset:offset + len(data)] = data

    def pread(self, size: int, offset: int) -> bytes:
        return bytes(self._data[offset:offset + size])

    def truncate(self, size: int) -> None:
        held = self._data
        del held[size:]
        held.extend(bytes(size - len(held)))

    def sync(self) -> None:
        self._volume.calls += 1

    def close(self) -> None:
        """Nothing to close."""


class MemoryVolume:
    """refuses_twins: as a volume of one brick does. Without it, a second inode with a gfid is the caller's fault. dead:
    the process that used it has been killed. calls: the calls that would be round trips to the bricks."""

    name, id = "volume", "00000000-0000-0000-0000-000000000001"

    def __init__(self, *, refuses_twins: bool = False) -> None:
        self.refuses_twins = refuses_twins
        self.write_through = False
        self.inodes: dict[Gfid, Inode] = {ROOT_GFID: Inode(stat.S_IFDIR | 0o755)}
        self.dead = False
        self.calls = 0

    def inode(self, gfid: Gfid) -> Inode:
        """The inode; FileNotFoundError if there is none."""
        if self.dead:
            raise Killed("this process has ended")
        self.calls += 1
        if gfid not in self.inodes:
            raise failure(errno.ENOENT)
        return self.inodes[gfid]

    def _folder(self, gfid: Gfid) -> Inode:
        inode = self.inode(gfid)
        if not inode.is_dir:
            raise failure(errno.ENOTDIR)
        return inode

    def _node(self, gfid: Gfid) -> Node:
        inode = self.inodes[gfid]
        return Node(gfid, inode.mode, inode.uid, inode.gid, len(inode.data), inode.nlink, inode.rdev, inode.mtime,
                    inode.atime)

    # looking

    def node(self, gfid: Gfid) -> Node | None:
        try:
            self.inode(gfid)
        except FileNotFoundError:
            return None
        return self._node(gfid)

    def at(self, pargfid: Gfid, bname: bytes) -> Node | None:
        try:
            folder = self._folder(pargfid)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if bname == b"..":
            return self._node(folder.home[0]) if folder.home else None
        gfid = folder.names.get(bname)
        return None if gfid is None else self._node(gfid)

    def parent(self, gfid: Gfid) -> tuple[Gfid, bytes] | None:
        try:
            return self._folder(gfid).home
        except FileNotFoundError:
            return None

    def names(self, gfid: Gfid) -> Iterator[tuple[bytes, Node]]:
        for bname, other in sorted(self._folder(gfid).names.items()):
            yield bname, self._node(other)

    def readlink(self, gfid: Gfid) -> bytes:
        return bytes(self.inode(gfid).data)

    # changing

    def make(self, pargfid: Gfid, bname: bytes, gfid: Gfid, mode: int, uid: int = 0, gid: int = 0, rdev: int = 0,
             target: bytes | None = None) -> None:
        folder = self._folder(pargfid)
        if bname in folder.names or (gfid in self.inodes and self.refuses_twins):
            raise failure(errno.EEXIST)
        assert gfid not in self.inodes, f"a second inode with the gfid {gfid.hex()}"
        if stat.S_ISLNK(mode) and target is None:
            raise ValueError("a symlink without a target")
        self.inodes[gfid] = Inode(mode, uid, gid, rdev, data=bytearray(target or b""))
        self._put(pargfid, bname, gfid)

    def _put(self, pargfid: Gfid, bname: bytes, gfid: Gfid) -> None:
        self.inodes[pargfid].names[bname] = gfid
        inode = self.inodes[gfid]
        inode.nlink += 1
        if inode.is_dir:
            inode.home = pargfid, bname

    def _take(self, pargfid: Gfid, bname: bytes) -> None:
        gfid = self.inodes[pargfid].names.pop(bname)
        inode = self.inodes[gfid]
        inode.nlink -= 1
        if not inode.nlink:
            del self.inodes[gfid]

    def link(self, gfid: Gfid, pargfid: Gfid, bname: bytes) -> None:
        inode, folder = self.inode(gfid), self._folder(pargfid)
        if inode.is_dir:
            raise failure(errno.EPERM)
        if bname in folder.names:
            raise failure(errno.EEXIST)
        self._put(pargfid, bname, gfid)

    def rename(self, pargfid: Gfid, bname: bytes, to_pargfid: Gfid, to_bname: bytes) -> None:
        source, target = self._folder(pargfid), self._folder(to_pargfid)
        gfid, there = source.names.get(bname), target.names.get(to_bname)
        if gfid is None:
            raise failure(errno.ENOENT)
        if gfid == there:
            return
        moving = self.inodes[gfid]
        above: Gfid | None = to_pargfid
        while moving.is_dir and above is not None:
            if above == gfid:
                raise failure(errno.EINVAL)
            home = self.inodes[above].home
            above = home[0] if home else None
        if there is not None:
            replaced = self.inodes[there]
            if replaced.is_dir != moving.is_dir:
                raise failure(errno.EISDIR if replaced.is_dir else errno.ENOTDIR)
            if replaced.names:
                raise failure(errno.ENOTEMPTY)
            self._take(to_pargfid, to_bname)
        moving.nlink += 1  # never gone between the two
        self._take(pargfid, bname)
        moving.nlink -= 1
        self._put(to_pargfid, to_bname, gfid)

    def unlink(self, pargfid: Gfid, bname: bytes) -> None:
        gfid = self._folder(pargfid).names.get(bname)
        if gfid is None:
            raise failure(errno.ENOENT)
        if self.inodes[gfid].is_dir:
            raise failure(errno.EISDIR)
        self._take(pargfid, bname)

    def rmdir(self, pargfid: Gfid, bname: bytes) -> None:
        gfid = self._folder(pargfid).names.get(bname)
        if gfid is None:
            raise failure(errno.ENOENT)
        if self._folder(gfid).names:
            raise failure(errno.ENOTEMPTY)
        self._take(pargfid, bname)

    def open(self, gfid: Gfid, write: bool = False) -> MemoryFile:
        self.inode(gfid)
        return MemoryFile(self, gfid)

    def open_short(self, gfid: Gfid) -> MemoryFile:
        return self.open(gfid, write=True)

    # attributes

    def set_attrs(self, gfid: Gfid, mode: int | None, owner: tuple[int, int] | None, times: tuple[int, int] | None
                  ) -> None:
        inode = self.inode(gfid)
        if owner is not None:
            inode.uid, inode.gid = owner
        if mode is not None:
            inode.mode = stat.S_IFMT(inode.mode) | mode
        if times is not None:
            inode.mtime, inode.atime = times

    def xattrs(self, gfid: Gfid) -> dict[bytes, bytes]:
        return dict(self.inode(gfid).xattrs)

    def set_xattr(self, gfid: Gfid, name: bytes, value: bytes) -> None:
        self.inode(gfid).xattrs[name] = value

    def remove_xattr(self, gfid: Gfid, name: bytes) -> None:
        if self.inode(gfid).xattrs.pop(name, None) is None:
            raise failure(errno.ENODATA)

    # the volume

    def pathinfo(self, gfid: Gfid) -> bytes:
        return b""

    def space(self) -> Space:
        return Space(1 << 40, None)

    def sync(self) -> None:
        self.inode(ROOT_GFID)

    def anew(self) -> AbstractContextManager[GlusterVolume]:
        return nullcontext(self)

    def close(self) -> None:
        """Nothing to close."""


class VolumeSlave:
    """A slave volume, served in this process. on_step is told every step, with the number of steps before it, and may
    raise Killed."""

    _connections = itertools.count(1)

    def __init__(self, volume: MemoryVolume, on_step: Callable[[int, str], None] = lambda n, name: None,
                 adopt: bool = False, delete_retention: int = 0) -> None:
        volume.dead = False
        self.volume = volume
        self.steps: list[str] = []
        self._on_step = on_step
        make_folders(volume)
        state = VolumeState(volume, f"{next(self._connections):020d}-{os.getpid():08x}")
        self.apply = VolumeOperations(volume, state, adopt, delete_retention, self._step)
        state.begin()
        self.apply.recover()
        state.begin()
        state.drop_others()

    def _step(self, name: str) -> None:
        self.steps.append(name)
        try:
            self._on_step(len(self.steps) - 1, name)
        except Killed:
            self.volume.dead = True
            raise


@dataclass
class VolumePlanner(Planner):
    """A Planner for a VolumeSlave."""

    @property
    def _operations(self) -> VolumeOperations:
        assert isinstance(self.apply, VolumeOperations)
        return self.apply

    def _sweep(self) -> None:
        self._operations.sweep()

    def _make(self, row: FillRow, pargfid: Gfid, bname: bytes) -> None:
        volume = self._operations.volume
        there = volume.at(pargfid, bname)
        if there is not None:
            volume.unlink(pargfid, bname)
        self.sent.append(row.gfid)
        volume.make(pargfid, bname, row.gfid, row.mode, row.uid, row.gid)
        self._write(row.gfid, self.world.nodes[row.gfid].data)
        node = volume.node(row.gfid)
        assert node is not None
        set_node_attrs(volume, node, row.mode, row.uid, row.gid, row.mtime, row.atime, row.xattrs, frozenset())

    def _receive_new(self, row: FillRow) -> None:
        self._make(row, LIMBO_NEW, name_in_limbo(row.gfid))

    def _receive_direct(self, row: FillRow) -> bool:
        there = self._operations.volume.at(LIMBO_NEW, name_in_limbo(row.pargfid))
        if there is None:
            return False
        self._make(row, row.pargfid, row.bname)
        return True

    def _read(self, gfid: Gfid) -> bytes:
        return self._operations.volume.open(gfid).pread(1 << 30, 0)

    def _write(self, gfid: Gfid, data: bytes) -> None:
        file = self._operations.volume.open(gfid, write=True)
        file.pwrite(data, 0)
        file.truncate(len(data))


def check_volume(volume: MemoryVolume, world: World) -> list[str]:
    """Every difference between the volume and the world."""
    there: dict[bytes, tuple[int, bytes, int, Gfid]] = {}
    todo = [(ROOT_GFID, b"")]
    while todo:
        folder, path = todo.pop()
        for bname, node in volume.names(folder):
            if folder == ROOT_GFID and bname == STATE_DIR:
                continue
            there[path + bname] = (node.mode, bytes(volume.inodes[node.gfid].data), node.mtime, node.gfid)
            if node.is_dir:
                todo.append((node.gfid, path + bname + b"/"))
    wanted = world.paths()
    return [f"{path!r}: {there.get(path)} instead of {wanted.get(path)}"
            for path in sorted(there.keys() | wanted.keys()) if there.get(path) != wanted.get(path)]


def check_volume_limbo(volume: MemoryVolume) -> list[str]:
    """The entries left in limbo."""
    return [f"left in limbo: {bname!r}" for folder in (LIMBO_NEW, LIMBO_OLD, LIMBO_DEL)
            for bname, _ in volume.names(folder)]
