"""Writes the extents of a long file, bypassing the page cache where possible.

That halves the processor's work, and keeps the host's cached data in memory. Ranges between extents become holes.
Standard library only, Python 3.9.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os

from gsync.link import stream
from gsync.link.stream import BadStream
from gsync.slave.receiver import Input

_PIECE = 1 << 20
_DIRECT = 4 << 20  # bytes per write that bypasses the page cache
_ALIGNED = 4096  # alignment of such a write, valid on nearly every disk
_WRITE_BACK = 16 << 20  # bytes handed to the disk together, so that the commit's syncfs is short
_SYNC_FILE_RANGE_WRITE = 2
_FALLOC_PUNCH_HOLE = 0x01 | 0x02  # with FALLOC_FL_KEEP_SIZE

_libc = ctypes.CDLL(None, use_errno=True)


class LongFiles:
    """Takes the data of one item after another from the stream. unread: after `write` has failed, whether part of that
    item's data is still to come."""

    def __init__(self, source: Input) -> None:
        self._in = source
        self.unread = False
        self._past_cache = True  # until this file system refuses writes that bypass the page cache
        self._aligned: memoryview | None = None

    def write(self, fd: int, size: int, *, punch: bool) -> int:
        """Write the extents of one item and set the length; return the trailer. With `punch`, the ranges between
        extents become holes."""
        end = written_back = 0
        self.unread = True
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
        self.unread = False
        if not torn:
            if punch and size > end:
                _punch(fd, end, size - end)
            os.ftruncate(fd, size)
        return torn

    def _copy(self, fd: int, offset: int, length: int) -> None:
        """Move one extent into the file, bypassing the page cache where possible."""
        end = offset + length
        if self._past_cache and length >= _DIRECT and offset % _ALIGNED == 0:
            if self._aligned is None:
                self._aligned = memoryview(mmap.mmap(-1, _DIRECT))  # aligned to a page of memory
            self._set_direct(fd, True)
            try:
                while self._past_cache and (size := min(end - offset, _DIRECT) // _ALIGNED * _ALIGNED):
                    self._in.fill(self._aligned[:size])
                    self.write_past_cache(fd, self._aligned[:size], offset)
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

    def write_past_cache(self, fd: int, data: memoryview, offset: int) -> None:
        """Write all of it; through the page cache after all if the file system refuses this offset or length."""
        done = 0
        while done < len(data):
            try:
                done += os.pwrite(fd, data[done:], offset + done)
            except OSError as exc:
                if exc.errno != errno.EINVAL or not self._past_cache:
                    raise
                self._past_cache = False
                self._set_direct(fd, False)


def _write_back(fd: int, offset: int, length: int) -> None:
    """Start writing this range to disk. It is a hint, so the result does not matter."""
    _libc.sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(length), _SYNC_FILE_RANGE_WRITE)


def _punch(fd: int, offset: int, length: int) -> None:
    """Make a hole; where the file system has none, write zeros."""
    if _libc.fallocate(fd, _FALLOC_PUNCH_HOLE, ctypes.c_int64(offset), ctypes.c_int64(length)) == 0:
        return
    zeros = bytes(min(length, _PIECE))
    end = offset + length
    while offset < end:
        offset += os.pwrite(fd, zeros[:end - offset], offset)
