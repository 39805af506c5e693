"""The receiver for a volume: writes files into inodes with the master's gfids, and checks that they arrived.

Promise beyond that of gsync/slave/receiver.py: an item counts only once the bricks report for its gfid the data that
came in the stream. A short file is read back whole and compared. Of a long file, the size is checked, and pieces are
read back: the first, the last, and a random one of every 64 MiB between. Each is compared with the hash of the data
written there. This costs a few percent of a second full read. It finds the typical faults of such systems: an empty or
short file, data in another inode, an acknowledged write that was lost, a brick that has something else. Standard
library only, Python 3.9.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import stat
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO, Protocol

from gsync.base.model import ROOT_GFID, Gfid, check_bname
from gsync.link import stream
from gsync.link.protocol import RESERVED
from gsync.link.stream import BadStream, ItemHeader
from gsync.slave import fence
from gsync.slave.gluster.backend import open_volume
from gsync.slave.gluster.target import kept_site, run_folder, show
from gsync.slave.gluster.volume import File, GlusterVolume, Node, set_node_attrs
from gsync.slave.limbo import LIMBO_NEW, name_in_limbo
from gsync.slave.receiver import Input, Receiver

_PIECE = 1 << 20
_CHECKED = 128 << 10      # bytes in a piece that is read back
_ONE_OF = 64 << 20        # one piece is read back out of this many bytes


class NotArrived(OSError):
    """The bricks do not report the data that was sent to them. The item is retried."""

    def __init__(self, what: str) -> None:
        super().__init__(errno.EIO, f"it did not arrive intact: {what}")


class Right(Protocol):
    """A connection's right to work in the volume: a VolumePass."""

    def check(self) -> None: ...
    def look(self) -> None: ...


class VolumeReceiver(Receiver):
    """Writes files into a volume. show: the pass of the connection with this epoch and ticket; raises Fenced if it has
    no valid one. choose: which pieces of long files are read back."""

    def __init__(self, volume: GlusterVolume, show: Callable[[int, str], Right], source: Input, out: BinaryIO,
                 choose: random.Random) -> None:
        super().__init__(source, out)
        self._volume = volume
        self._show_pass = show
        self._right: Right | None = None
        self._attachable: dict[Gfid, bool] = {}
        self._choose = choose

    def _show(self, epoch: int, ticket: str) -> Callable[[], None]:
        self._right = self._show_pass(epoch, ticket)
        return self._right.check

    def _end_of_box(self) -> None:
        self._attachable.clear()

    # one item

    def _to_limbo(self, head: ItemHeader, data: memoryview) -> None:
        self._new(LIMBO_NEW, name_in_limbo(head.gfid), head, data)

    def _direct(self, number: int, head: ItemHeader, data: memoryview) -> None:
        bname = check_bname(bytes(data[:head.bname_size]))
        self._check_gfid(head.gfid)
        if not self._is_unattached(head.dirgfid):
            raise FileNotFoundError(errno.ENOENT, "the directory is not in limbo")
        self._new(head.dirgfid, bname, head, data)

    @staticmethod
    def _check_gfid(gfid: Gfid) -> None:
        if gfid == ROOT_GFID or gfid.startswith(RESERVED):
            raise ValueError("not the gfid of a file")

    def _is_unattached(self, gfid: Gfid) -> bool:
        """Whether a directory is directly in limbo/new. Asked once per box, and a box ends before it is attached."""
        found = self._attachable.get(gfid)
        if found is None:
            node = self._volume.at(LIMBO_NEW, name_in_limbo(gfid))
            found = self._attachable[gfid] = node is not None and node.gfid == gfid and node.is_dir
        return found

    def _new(self, pargfid: Gfid, bname: bytes, head: ItemHeader, data: memoryview) -> None:
        """Make a file, complete. On OSError or torn data, the name does not exist."""
        self._look()
        volume = self._volume
        self._check_gfid(head.gfid)
        if not volume.refuses_twins and volume.node(head.gfid) is not None:
            self._make_room(pargfid, bname, head.gfid)
        mode = stat.S_IFREG | stat.S_IMODE(head.mode)
        try:
            volume.make(pargfid, bname, head.gfid, mode, head.uid, head.gid)
        except FileExistsError:
            self._make_room(pargfid, bname, head.gfid)
            volume.make(pargfid, bname, head.gfid, mode, head.uid, head.gid)
        try:
            node = self._write(head, data, new=True)
            before_data = head.bname_size + head.xattrs_size
            xattrs = stream.decode_xattrs(bytes(data[head.bname_size:before_data])) if head.xattrs_size else None
            set_node_attrs(volume, node, head.mode, head.uid, head.gid, head.mtime, head.atime, xattrs, frozenset())
        except Exception:
            volume.unlink(pargfid, bname)
            raise

    def _make_room(self, pargfid: Gfid, bname: bytes, gfid: Gfid) -> None:
        """Free a name for a new file: its inode was left by a try whose answer was lost, or is no longer there at the
        master. Unless the file itself has moved elsewhere."""
        there = self._volume.at(pargfid, bname)
        if (there is None or there.gfid != gfid) and self._volume.node(gfid) is not None:
            raise FileExistsError(errno.EEXIST, "the slave has this file under another name")
        with suppress(FileNotFoundError):
            self._volume.unlink(pargfid, bname)

    def _in_place(self, head: ItemHeader, data: memoryview) -> None:
        self._look()
        self._check_gfid(head.gfid)
        node = self._volume.node(head.gfid)
        if node is None or not stat.S_ISREG(node.mode):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), head.gfid.hex())
        self._write(head, data, new=False)

    def _arrived(self, head: ItemHeader) -> Node:
        """The inode as the bricks have it; NotArrived if its size differs."""
        node = self._volume.node(head.gfid)
        if node is None:
            raise NotArrived("the inode is gone")
        if node.size != head.size:
            raise NotArrived(f"{node.size} bytes of {head.size} are there")
        return node

    # data

    def _write(self, head: ItemHeader, data: memoryview, new: bool) -> Node:
        """Write the data into the inode; return the inode as far as it is known now."""
        short = not self._unread
        file = self._volume.open_short(head.gfid) if short else self._volume.open(head.gfid, write=True)
        try:
            if self._unread:
                torn = self._extents(file, head.size, new)
            else:
                torn = data[-1]
                if not torn:
                    self._whole(file, bytes(data[head.bname_size + head.xattrs_size:-1]), new)
            if not torn and self._volume.write_through:
                file.sync()
        finally:
            file.close()
        if torn:
            raise OSError(errno.EAGAIN, "the source changed while it was read")
        if short and new:  # read back whole; it has no xattrs and no times yet
            return Node(head.gfid, stat.S_IFREG | head.mode, head.uid, head.gid, head.size, 1, 0, -1, -1)
        return self._arrived(head)

    @staticmethod
    def _whole(file: File, content: bytes, new: bool) -> None:
        if content:
            file.pwrite(content, 0)
        if not new:
            file.truncate(len(content))
        if file.pread(len(content) + 1, 0) != content:
            raise NotArrived("the volume has other bytes than were sent")

    def _look(self) -> None:
        assert self._right is not None
        self._right.look()

    def _extents(self, file: File, size: int, new: bool) -> int:
        """Write the extents of one item and set the length; the trailer."""
        end = 0
        pieces = _Pieces(self._choose)
        while True:
            offset, length = stream.EXTENT.unpack(self._in.take(stream.EXTENT.size))
            if not length:
                break
            if offset < end or offset + length > size:
                raise BadStream("extents out of order")
            self._in.left = length
            try:
                if not new and offset > end:
                    _zero(file, end, offset)
                while self._in.left:
                    piece = self._in.take(min(self._in.left, _PIECE))
                    self._in.left -= len(piece)
                    self._look()
                    file.pwrite(piece, offset)
                    pieces.written(offset, piece)
                    offset += len(piece)
            except Exception:
                self._in.drain(self._in.left)
                raise
            end = offset
        torn = self._in.take(1)[0]
        self._unread = False
        if not torn:
            self._look()
            if not new and size > end:
                _zero(file, end, size)
            file.truncate(size)
            pieces.check(file)
        return torn


class _Pieces:
    """Which pieces of a long file are read back, and the content they must have."""

    def __init__(self, choose: random.Random) -> None:
        self._choose = choose
        self._kept: list[tuple[int, int, bytes]] = []
        self._last: tuple[int, int, bytes] | None = None
        self._next = 0

    def written(self, offset: int, data: memoryview) -> None:
        """Note data that was written there. Called in the order of the file."""
        tail = data[-_CHECKED:]
        self._last = (offset + len(data) - len(tail), len(tail), _digest(tail))
        if offset + len(data) > self._next:
            start = self._choose.randrange(max(1, len(data) - _CHECKED)) if self._kept else 0
            piece = data[start:start + _CHECKED]
            self._kept.append((offset + start, len(piece), _digest(piece)))
            self._next = offset + len(data) + self._choose.randrange(_ONE_OF)

    def check(self, file: File) -> None:
        """Raise NotArrived if a piece differs."""
        for offset, length, digest in self._kept + ([self._last] if self._last else []):
            if _digest(file.pread(length, offset)) != digest:
                raise NotArrived(f"the volume has other bytes than were sent, at {offset}")


def _digest(data: bytes | memoryview) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


def _zero(file: File, start: int, end: int) -> None:
    """Make a hole where the source has one, in a file that existed before."""
    zeros = bytes(min(end - start, _PIECE))
    while start < end:
        size = min(end - start, len(zeros))
        file.pwrite(zeros[:size], start)
        start += size


def receive(name: str, source: Input, out: BinaryIO, watch: Callable[[int], object]) -> None:
    """Receive for the volume until the stream ends. watch: called with the folder that holds the locks."""
    site = kept_site(name)
    folder = run_folder(site.id)
    fence.take_shared(fence.open_lock(folder, fence.RECEIVERS_LOCK))  # held until this process exits
    watch(folder)
    volume = open_volume(site)

    def shown(epoch: int, ticket: str) -> Right:
        return show(volume, site, fence.show(folder, epoch, ticket), epoch, ticket)

    try:
        VolumeReceiver(volume, shown, source, out, random.Random()).serve()
    finally:
        volume.close()
