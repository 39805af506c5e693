"""The receiver: takes boxes of files from stdin and puts them where their headers say (`agent --receive ROOT`).

Promise: an item counts (is not in its box's `failed`) only once its bytes, and for new files its attributes, are in
the file, and for DIRECT items its name is in the index. A failed item leaves nothing in limbo/new and never hurts the
others: its bytes are drained. Nothing outside ROOT is touched, whatever the headers say.
Not here: naming what lies in limbo/new, attributes of files in place, making anything durable (the agent).
Standard library only, Python 3.9. The cost per small file decides gsync's speed: _small is written for that.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import signal
import sqlite3
import stat
import sys
import threading
from collections.abc import Callable
from typing import BinaryIO

from gsync.base import rpc
from gsync.base.errors import SlaveError, Transient
from gsync.base.fsid import syncfs
from gsync.base.model import ROOT_GFID, Gfid, check_bname, shown
from gsync.base.namespace import UNKNOWN_CTIME, Entry
from gsync.link import stream
from gsync.link.protocol import RESERVED, Fenced, MetaRow
from gsync.link.stream import BadStream, Header
from gsync.slave.directory.tree import SlaveTree
from gsync.slave.fence import AGENT_LOCK, show
from gsync.slave.ground import is_volume, volume_of

_BUFFER = 4 << 20
_PIECE = 1 << 20
_DIRECT = 4 << 20  # what is written past the page cache at once
_ALIGNED = 4096  # where such a write may begin and end, on nearly every disk
# Bytes of a long file, and files, that are handed to the disk together, so that the commit's syncfs is short.
_WRITE_BACK, _WRITE_BACK_FILES = 16 << 20, 4000
_DIRS_KEPT = 200
_LOOK_EVERY = 15.0  # seconds
_F_SETPIPE_SZ = 1031
_SYNC_FILE_RANGE_WRITE = 2
_FALLOC_PUNCH_HOLE = 0x01 | 0x02  # with FALLOC_FL_KEEP_SIZE
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

_libc = ctypes.CDLL(None, use_errno=True)


def _write_back(fd: int, offset: int, length: int) -> None:
    """Start writing this range to disk; a hint, so its result does not matter."""
    _libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(length), _SYNC_FILE_RANGE_WRITE)


def _write_back_all(fd: int) -> None:
    """The same for a whole file system. An error is still there to be found by the agent: it has a descriptor of its
    own."""
    with contextlib.suppress(OSError):
        syncfs(fd)


def _punch(fd: int, offset: int, length: int) -> None:
    """Make a hole; where the file system has none, zeros."""
    if _libc.fallocate(fd, _FALLOC_PUNCH_HOLE, ctypes.c_int64(offset), ctypes.c_int64(length)) == 0:
        return
    zeros = bytes(min(length, _PIECE))
    end = offset + length
    while offset < end:
        offset += os.pwrite(fd, zeros[:end - offset], offset)


class Orphaned(Exception):
    """The agent that this receiver belongs to is gone."""


class Input:
    """What has arrived and is not used up yet: one buffer, filled by big reads."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.view = memoryview(bytearray(_BUFFER))
        self.at = 0
        self.end = 0
        self.left = 0
        self._splice: Callable[..., int] | None = getattr(os, "splice", None)

    def ensure(self, size: int) -> bool:
        """Have `size` bytes ready at `at`; False if the stream ended before the first of them."""
        while self.end - self.at < size:
            if len(self.view) - self.at < size or len(self.view) - self.end < 1 << 16:
                left = self.view[self.at:self.end]
                view = self.view if size <= len(self.view) else memoryview(bytearray(size + _BUFFER))
                view[:len(left)] = bytes(left)
                self.view, self.at, self.end = view, 0, len(left)
            got = os.readv(self.fd, [self.view[self.end:]])
            if not got:
                if self.end > self.at:
                    raise EOFError("the stream ended inside an item")
                return False
            self.end += got
        return True

    def take(self, size: int) -> memoryview:
        """The next `size` bytes, valid until the next call of ensure."""
        if not self.ensure(size):
            raise EOFError("the stream ended inside an item")
        start = self.at
        self.at = start + size
        return self.view[start:self.at]

    def fill(self, view: memoryview) -> None:
        """Put the next bytes of the stream into view, until it is full; `left` says how much then comes."""
        done = min(self.end - self.at, len(view))
        view[:done] = self.view[self.at:self.at + done]
        self.at += done
        while done < len(view):
            got = os.readv(self.fd, [view[done:]])
            if not got:
                raise EOFError("the stream ended inside an item")
            done += got
        self.left -= len(view)

    def copy(self, fd: int, offset: int, length: int) -> None:
        """Move the next `length` bytes into fd; on OSError `left` of them are still in the stream."""
        self.left = length
        while self.left:
            ready = min(self.end - self.at, self.left)
            if ready:
                done = os.pwrite(fd, self.view[self.at:self.at + ready], offset)
                self.at += done
            elif self._splice is not None:
                try:
                    done = self._splice(self.fd, fd, min(self.left, _PIECE), offset_dst=offset)
                except OSError as exc:
                    if exc.errno != errno.EINVAL:
                        raise
                    self._splice = None  # stdin is no pipe, or the file system cannot
                    continue
                if not done:
                    raise EOFError("the stream ended inside an item")
            else:
                self.ensure(1)
                if self.end == self.at:
                    raise EOFError("the stream ended inside an item")
                continue
            self.left -= done
            offset += done

    def drain(self, length: int) -> None:
        """Drop the next `length` bytes."""
        while length:
            if self.at == self.end:
                self.at = self.end = 0
            if not self.ensure(1):
                raise EOFError("the stream ended inside an item")
            step = min(self.end - self.at, length)
            self.at += step
            length -= step


class _Dir:
    """A directory that files are made in, and what its file system gives a new file there."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.uid = -1  # not known before the first file
        self.gid = -1
        try:
            os.getxattr(fd, b"system.posix_acl_default")
            self.has_acl = True
        except OSError:
            self.has_acl = False


class Receiver:
    """Serves one sender: stream on source, answers on out. What a file is made in is the subclass's business."""

    def __init__(self, source: Input, out: BinaryIO) -> None:
        self._in = source
        self._out = out
        self._failed: list[tuple[int, int, str]] = []
        self._unread = False
        os.umask(0)  # the mode given to open(2) is the file's, then
        with contextlib.suppress(OSError):
            fcntl.fcntl(source.fd, _F_SETPIPE_SZ, _PIECE)

    def serve(self) -> None:
        """Take boxes until the stream ends; BadStream or EOFError if it ends wrongly."""
        hello = stream.decode_hello(self._line())
        if hello.protocol != stream.PROTOCOL:
            raise BadStream(f"the sender speaks version {hello.protocol}, this receiver {stream.PROTOCOL}")
        check = self._show(hello.epoch, hello.ticket)
        self._answer({"ready": stream.PROTOCOL})
        size_of_header = stream.HEADER.size
        item = 0
        while self._in.ensure(size_of_header):
            head = Header._make(stream.HEADER.unpack(self._in.take(size_of_header)))
            if head.kind == stream.FILE:
                self._item(item, head)
                item += 1
            elif head.kind == stream.END:
                check()
                self._end_of_box()
                self._answer({"box": head.size, "failed": self._failed})
                self._failed = []
                item = 0
            else:
                raise BadStream(f"item of unknown kind {head.kind}")

    def _line(self) -> bytes:
        line = b""
        while not line.endswith(b"\n"):
            if len(line) > 1000:
                raise BadStream(f"not a hello: {line[:200]!r}")
            line += self._in.take(1)
        return line

    def _answer(self, message: object) -> None:
        self._out.write(rpc.encode(message))
        self._out.flush()

    def _show(self, epoch: int, ticket: str) -> Callable[[], None]:
        """Fenced if the connection has no pass (any more); a function that looks again."""
        raise NotImplementedError

    # one item

    def _item(self, number: int, head: Header) -> None:
        """Take one item off the stream; if it cannot be put where it belongs, note it in `failed`."""
        inline = head.flags & stream.INLINE
        if head.xattrs_size > stream.XATTRS_MAX or head.bname_size > stream.NAME_MAX or head.size > (
                stream.INLINE_MAX if inline else stream.SIZE_MAX):
            raise BadStream("header out of bounds")
        before_data = head.bname_size + head.xattrs_size
        data = self._in.take(before_data + head.size + 1 if inline else before_data)
        if not inline:
            data = memoryview(bytes(data))  # it is needed when the buffer has gone on
        self._unread = not inline
        try:
            if head.place == stream.IN_PLACE:
                self._in_place(head, data)
            elif head.place == stream.DIRECT:
                self._direct(number, head, data)
            else:
                self._to_limbo(head, data)
        except OSError as exc:
            self._failed.append((number, exc.errno or errno.EIO, exc.strerror or str(exc)))
        except (ValueError, OverflowError) as exc:
            self._failed.append((number, errno.EINVAL, str(exc)))
        if self._unread:
            self._drain_extents()

    def _in_place(self, head: Header, data: memoryview) -> None:
        raise NotImplementedError

    def _direct(self, number: int, head: Header, data: memoryview) -> None:
        raise NotImplementedError

    def _to_limbo(self, head: Header, data: memoryview) -> None:
        raise NotImplementedError

    def _end_of_box(self) -> None:
        """Before the box is answered for."""
        raise NotImplementedError

    def _drain_extents(self) -> None:
        while True:
            length = stream.EXTENT.unpack(self._in.take(stream.EXTENT.size))[1]
            if not length:
                break
            self._in.drain(length)
        self._in.take(1)


class TreeReceiver(Receiver):
    """Puts files into a directory tree."""

    def __init__(self, tree: SlaveTree, source: Input, out: BinaryIO) -> None:
        super().__init__(source, out)
        self._tree = tree
        self._handle_of = tree.handles.of_fd
        self._may_chown = tree.caps.chown
        self._limbo = _Dir(tree.new_fd)
        self._dirs: dict[Gfid, _Dir] = {}
        self._rows: list[Entry] = []
        self._row_items: list[int] = []
        self._new_files = 0
        self._writer: threading.Thread | None = None
        self._past_cache = True  # whether this file system has not refused writes past the page cache yet
        self._aligned: memoryview | None = None

    def _show(self, epoch: int, ticket: str) -> Callable[[], None]:
        return show(self._tree.state_fd, epoch, ticket).check

    def _to_limbo(self, head: Header, data: memoryview) -> None:
        os.close(self._new(self._limbo, head.gfid.hex().encode(), head, data))

    def _direct(self, number: int, head: Header, data: memoryview) -> None:
        bname = check_bname(bytes(data[:head.bname_size]))
        if head.gfid == ROOT_GFID or head.gfid.startswith(RESERVED):
            raise ValueError("not the gfid of a file")
        where = self._dirs.get(head.dirgfid) or self._open_dir(head.dirgfid)
        fd = self._new(where, bname, head, data)
        try:
            handle = self._handle_of(fd)
        finally:
            os.close(fd)
        self._rows.append(Entry(head.dirgfid, bname, head.gfid, stat.S_IFREG, handle, UNKNOWN_CTIME, head.size))
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

    def _new(self, where: _Dir, name: bytes, head: Header, data: memoryview) -> int:
        """Make the file `name`, complete; its descriptor. On OSError, or torn data, there is no such name."""
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
                torn = self._extents(fd, head.size, punch=False)
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

    def _in_place(self, head: Header, data: memoryview) -> None:
        fd = self._tree.open_file(head.gfid, os.O_WRONLY)
        try:
            if self._unread:
                torn = self._extents(fd, head.size, punch=True)
            else:
                torn = data[-1]
                if not torn:
                    _write(fd, data[head.bname_size + head.xattrs_size:-1])
                    os.ftruncate(fd, head.size)
        finally:
            os.close(fd)
        if torn:
            raise OSError(errno.EAGAIN, "the source changed while it was read")

    # long data

    def _extents(self, fd: int, size: int, punch: bool) -> int:
        """Write the extents of one item and set the length; the trailer. With `punch`, what lies between them
        becomes holes."""
        end = written_back = 0
        while True:
            offset, length = stream.EXTENT.unpack(self._in.take(stream.EXTENT.size))
            if not length:
                break
            if offset < end or offset + length > size:
                raise BadStream("extents out of order")
            self._in.left = length
            try:
                if punch and offset > end:
                    _punch(fd, end, offset - end)
                self._copy(fd, offset, length)
            except OSError:
                self._in.drain(self._in.left)
                raise
            end = offset + length
            if end - written_back >= _WRITE_BACK:
                _write_back(fd, written_back, end - written_back)
                written_back = end
        torn = self._in.take(1)[0]
        self._unread = False
        if not torn:
            if punch and size > end:
                _punch(fd, end, size - end)
            os.ftruncate(fd, size)
        return torn

    def _copy(self, fd: int, offset: int, length: int) -> None:
        """Move one extent into the file, as far as possible past the page cache: the processor has half the work then,
        and what the host keeps in memory stays there."""
        end = offset + length
        if self._past_cache and length >= _DIRECT and offset % _ALIGNED == 0:
            if self._aligned is None:
                self._aligned = memoryview(mmap.mmap(-1, _DIRECT))  # begins with a page of memory
            self._set_direct(fd, True)
            try:
                while self._past_cache and (size := min(end - offset, _DIRECT) // _ALIGNED * _ALIGNED):
                    self._in.fill(self._aligned[:size])
                    self._write_direct(fd, self._aligned[:size], offset)
                    offset += size
            finally:
                self._set_direct(fd, False)
        self._in.copy(fd, offset, end - offset)

    def _set_direct(self, fd: int, direct: bool) -> None:
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        try:
            fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT)
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
            self._past_cache = False

    def _write_direct(self, fd: int, data: memoryview, offset: int) -> None:
        """Through the page cache after all, if the file system does not like where this begins or how long it is."""
        done = 0
        while done < len(data):
            try:
                done += os.pwrite(fd, data[done:], offset + done)
            except OSError as exc:
                if exc.errno != errno.EINVAL or not self._past_cache:
                    raise
                self._past_cache = False
                self._set_direct(fd, False)

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

    def _withdraw(self, number: int, entry: Entry) -> None:
        """The slave has this inode by another name: the sender has to ask where it belongs."""
        where = self._dirs.get(entry.pargfid) or self._open_dir(entry.pargfid)
        os.unlink(entry.bname, dir_fd=where.fd)
        self._failed.append((number, errno.EEXIST, "the slave has this file by another name"))


def _write(fd: int, data: memoryview) -> None:
    done = os.write(fd, data)
    while done < len(data):
        done += os.write(fd, data[done:])


class Watch:
    """Ends this process once the agent that was at work when it began has gone: the connection may be dead without
    our stdin having noticed, and the next agent waits for us."""

    def __init__(self, locks_fd: int) -> None:
        self._fd = os.open(AGENT_LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=locks_fd)
        self._agent = os.pread(self._fd, 4096, 0)
        signal.signal(signal.SIGALRM, self._look)
        signal.setitimer(signal.ITIMER_REAL, _LOOK_EVERY, _LOOK_EVERY)

    def _look(self, signum: int, frame: object) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # the agent holds it exclusively
        except BlockingIOError:
            if os.pread(self._fd, 4096, 0) == self._agent:
                return
        raise Orphaned("the agent has ended")


def main(root: bytes) -> int:
    """Receive for the slave tree at root until stdin ends; the exit status. What is wrong is said in an answer."""
    out = sys.stdout.buffer
    error: dict[str, object]
    try:
        source = Input(sys.stdin.fileno())
        if not source.ensure(1):  # nothing is touched before the sender speaks: by then the agent has taken the tree
            return 0
        if is_volume(root):
            from gsync.slave.gluster import receive as gluster

            gluster.receive(volume_of(root), source, out, Watch)
            return 0
        tree = SlaveTree(root)
        tree.lock_receivers(alone=False)  # until the end of this process
        Watch(tree.state_fd)
        TreeReceiver(tree, source, out).serve()
        return 0
    except Fenced as exc:
        error = {"type": "fenced", "message": str(exc)}
    except SlaveError as exc:
        error = {"type": "refused", "message": str(exc)}
    except Transient as exc:
        error = {"type": "transient", "message": str(exc)}
    except BlockingIOError:
        error = {"type": "transient", "message": "an agent is just starting there"}
    except OSError as exc:
        error = {"type": "io", "message": f"{exc.filename or shown(root)}: {exc.strerror}", "errno": exc.errno}
    except (BadStream, EOFError, Orphaned) as exc:
        error = {"type": "transient", "message": str(exc)}
    signal.setitimer(signal.ITIMER_REAL, 0)
    with contextlib.suppress(OSError):
        out.write(rpc.encode({"error": error}))
        out.flush()
    return 1
