"""Puts the files of a stream into a slave directory: into limbo/new, into a new directory there, or in place.

Promise beyond that of gsync/slave/receiver.py: an item counts only once its bytes, and for new files its attributes,
are in the file, and for DIRECT items its name is in the index. A failed item leaves nothing in limbo/new. Nothing
outside ROOT is touched, whatever the headers say. Not here: naming the files in limbo/new, attributes of files in
place, making anything durable (the agent). Standard library only, Python 3.9. The cost per small file decides gsync's
speed: `_new` is written for that.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import stat
import threading
from collections.abc import Callable
from typing import BinaryIO

from gsync.base.fsid import syncfs
from gsync.base.model import ROOT_GFID, Gfid, check_bname
from gsync.base.namespace import UNKNOWN_CTIME, IndexEntry
from gsync.link import stream
from gsync.link.protocol import RESERVED, MetaRow
from gsync.link.stream import ItemHeader
from gsync.slave.directory.longfiles import LongFiles
from gsync.slave.directory.tree import SlaveTree
from gsync.slave.fence import show
from gsync.slave.receiver import Input, Receiver, Watch

_WRITE_BACK_FILES = 4000  # files handed to the disk together, so that the commit's syncfs is short
_DIRS_KEPT = 200
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def _write_back_all(fd: int) -> None:
    """Write back a whole file system. The agent still finds an error: it has a descriptor of its own."""
    with contextlib.suppress(OSError):
        syncfs(fd)


class _Dir:
    """A directory that files are made in, and the attributes that its file system gives a new file there."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.uid = -1  # unknown before the first file
        self.gid = -1
        try:
            os.getxattr(fd, b"system.posix_acl_default")
            self.has_acl = True
        except OSError:
            self.has_acl = False


class TreeReceiver(Receiver):
    """Puts files into a directory tree."""

    def __init__(self, tree: SlaveTree, source: Input, out: BinaryIO) -> None:
        super().__init__(source, out)
        self._tree = tree
        self._handle_of = tree.handles.of_fd
        self._may_chown = tree.caps.chown
        self._limbo = _Dir(tree.new_fd)
        self._dirs: dict[Gfid, _Dir] = {}
        self._rows: list[IndexEntry] = []
        self._row_items: list[int] = []
        self._new_files = 0
        self._writer: threading.Thread | None = None
        self._long = LongFiles(source)

    def _show(self, epoch: int, ticket: str) -> Callable[[], None]:
        return show(self._tree.state_fd, epoch, ticket).check

    def _to_limbo(self, head: ItemHeader, data: memoryview) -> None:
        os.close(self._new(self._limbo, head.gfid.hex().encode(), head, data))

    def _direct(self, number: int, head: ItemHeader, data: memoryview) -> None:
        bname = check_bname(bytes(data[:head.bname_size]))
        if head.gfid == ROOT_GFID or head.gfid.startswith(RESERVED):
            raise ValueError("not the gfid of a file")
        where = self._dirs.get(head.dirgfid) or self._open_dir(head.dirgfid)
        fd = self._new(where, bname, head, data)
        try:
            handle = self._handle_of(fd)
        finally:
            os.close(fd)
        self._rows.append(IndexEntry(head.dirgfid, bname, head.gfid, stat.S_IFREG, handle, UNKNOWN_CTIME, head.size))
        self._row_items.append(number)

    def _open_dir(self, gfid: Gfid) -> _Dir:
        if len(self._dirs) >= _DIRS_KEPT:
            self._close_dirs()
        where = self._dirs[gfid] = _Dir(self._tree.open_limbo_dir(gfid))
        return where

    def _close_dirs(self) -> None:
        for where in self._dirs.values():
            os.close(where.fd)
        self._dirs.clear()

    def _new(self, where: _Dir, name: bytes, head: ItemHeader, data: memoryview) -> int:
        """Make the file `name`, complete; return its descriptor. On OSError or torn data, the name does not exist."""
        self._new_files += 1
        try:
            fd = os.open(name, _CREATE, head.mode & 0o777, dir_fd=where.fd)
        except FileExistsError:
            os.unlink(name, dir_fd=where.fd)  # left by a try whose answer was lost
            fd = os.open(name, _CREATE, head.mode & 0o777, dir_fd=where.fd)
        try:
            if where.uid < 0:
                st = os.fstat(fd)
                where.uid, where.gid = st.st_uid, st.st_gid
            before_data = head.bname_size + head.xattrs_size
            if self._unread:
                torn = self._take_long(fd, head.size, punch=False)
            else:
                torn = data[-1]
                if head.size:
                    _write(fd, data[before_data:-1])
            if torn:
                raise OSError(errno.EAGAIN, "the source changed while it was read")
            if ((head.uid != where.uid and self._may_chown) or head.gid != where.gid or head.mode & 0o7000
                    or head.xattrs_size or where.has_acl):
                xattrs = stream.decode_xattrs(bytes(data[head.bname_size:before_data]))
                self._tree.set_attrs(fd, MetaRow(head.gfid, head.mode, head.uid, head.gid, head.mtime, head.atime,
                                                 xattrs))
            else:
                os.utime(fd, ns=(head.atime, head.mtime))
        except BaseException:
            os.close(fd)
            os.unlink(name, dir_fd=where.fd)
            raise
        return fd

    def _in_place(self, head: ItemHeader, data: memoryview) -> None:
        fd = self._tree.open_file(head.gfid, os.O_WRONLY)
        try:
            if self._unread:
                torn = self._take_long(fd, head.size, punch=True)
            else:
                torn = data[-1]
                if not torn:
                    _write(fd, data[head.bname_size + head.xattrs_size:-1])
                    os.ftruncate(fd, head.size)
        finally:
            os.close(fd)
        if torn:
            raise OSError(errno.EAGAIN, "the source changed while it was read")


    def _take_long(self, fd: int, size: int, *, punch: bool) -> int:
        """Move a long file's data into it; return the trailer."""
        try:
            return self._long.write(fd, size, punch=punch)
        finally:
            self._unread = self._long.unread

    # the end of a box

    def _end_of_box(self) -> None:
        """Put the names of this box's DIRECT items into the index."""
        index = self._tree.index
        try:
            if self._rows:
                with index.transaction():
                    refused = index.put_direct(self._rows)
                for place in refused:
                    self._withdraw(self._row_items[place], self._rows[place])
            self._tree.settle()
        except sqlite3.Error as exc:
            self._failed += [(number, errno.EIO, f"index of the slave: {exc}") for number in self._row_items]
        self._tree.turn()
        self._close_dirs()
        self._rows, self._row_items = [], []
        if self._new_files >= _WRITE_BACK_FILES and (self._writer is None or not self._writer.is_alive()):
            self._new_files = 0
            self._writer = threading.Thread(target=_write_back_all, args=(self._tree.root_fd,), daemon=True)
            self._writer.start()

    def _withdraw(self, number: int, entry: IndexEntry) -> None:
        """The slave has this inode under another name: the sender must ask where it belongs."""
        where = self._dirs.get(entry.pargfid) or self._open_dir(entry.pargfid)
        os.unlink(entry.bname, dir_fd=where.fd)
        self._failed.append((number, errno.EEXIST, "the slave has this file under another name"))


def _write(fd: int, data: memoryview) -> None:
    done = os.write(fd, data)
    while done < len(data):
        done += os.write(fd, data[done:])


def receive(root: bytes, source: Input, out: BinaryIO, watch: Callable[[int], object] = Watch) -> None:
    """Receive for the slave directory until the stream ends. watch: called with the folder of the locks."""
    tree = SlaveTree(root)
    tree.lock_receivers(alone=False)  # held until this process exits
    watch(tree.state_fd)
    TreeReceiver(tree, source, out).serve()
