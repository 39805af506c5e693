"""The receiving side of a stream: takes boxes of files from stdin, item by item, and answers for each box.

Promise: an item counts (is not in its box's `failed`) only once the subclass has put it where its header says. A failed
item does not affect the others: its bytes are drained. No header field that is out of bounds reaches a subclass. Not
here: where the bytes go (directory/receive, gluster/receive). Standard library only, Python 3.9.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
from collections.abc import Callable
from typing import BinaryIO

from gsync.base import rpc
from gsync.link import stream
from gsync.link.stream import BadStream, ItemHeader
from gsync.slave.fence import AGENT_LOCK

_BUFFER = 4 << 20
_PIECE = 1 << 20
_F_SETPIPE_SZ = 1031


class Orphaned(Exception):
    """The agent that this receiver belongs to has gone."""


class Input:
    """Data that has arrived and is not used yet: one buffer, filled by large reads."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.view = memoryview(bytearray(_BUFFER))
        self.at = 0
        self.end = 0
        self.left = 0
        self._splice: Callable[..., int] | None = getattr(os, "splice", None)

    def ensure(self, size: int) -> bool:
        """Wait until `size` bytes are ready at `at`; False if the stream ends before the first of them."""
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
        """Fill view with the next bytes of the stream; `left` is how many bytes come after it."""
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
        """Move the next `length` bytes into fd; on OSError, `left` of them are still in the stream."""
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
                    self._splice = None  # stdin is not a pipe, or the file system cannot splice
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
        """Discard the next `length` bytes."""
        while length:
            if self.at == self.end:
                self.at = self.end = 0
            if not self.ensure(1):
                raise EOFError("the stream ended inside an item")
            step = min(self.end - self.at, length)
            self.at += step
            length -= step


class Receiver:
    """Serves one sender: stream on source, answers on out. The subclass decides where files are made."""

    def __init__(self, source: Input, out: BinaryIO) -> None:
        self._in = source
        self._out = out
        self._failed: list[tuple[int, int, str]] = []
        self._unread = False
        os.umask(0)  # so the mode given to open(2) is the file's mode
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
            head = ItemHeader._make(stream.HEADER.unpack(self._in.take(size_of_header)))
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
        """A function that raises Fenced once the connection's pass is no longer valid; it is called once here."""
        raise NotImplementedError

    # one item

    def _item(self, number: int, head: ItemHeader) -> None:
        """Take one item from the stream; if it cannot be put in its place, note it in `failed`."""
        inline = head.flags & stream.INLINE
        if head.xattrs_size > stream.XATTRS_MAX or head.bname_size > stream.NAME_MAX or head.size > (
                stream.INLINE_MAX if inline else stream.SIZE_MAX):
            raise BadStream("header out of bounds")
        before_data = head.bname_size + head.xattrs_size
        data = self._in.take(before_data + head.size + 1 if inline else before_data)
        if not inline:
            data = memoryview(bytes(data))  # still needed after the buffer has moved on
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

    def _in_place(self, head: ItemHeader, data: memoryview) -> None:
        raise NotImplementedError

    def _direct(self, number: int, head: ItemHeader, data: memoryview) -> None:
        raise NotImplementedError

    def _to_limbo(self, head: ItemHeader, data: memoryview) -> None:
        raise NotImplementedError

    def _end_of_box(self) -> None:
        """Called before the box is answered for."""
        raise NotImplementedError

    def _drain_extents(self) -> None:
        while True:
            length = stream.EXTENT.unpack(self._in.take(stream.EXTENT.size))[1]
            if not length:
                break
            self._in.drain(length)
        self._in.take(1)


class Watch:
    """Ends this process once the agent that was at work at its start has gone. The connection may be dead without our
    stdin having noticed, and the next agent waits for us. every: seconds between two looks."""

    def __init__(self, locks_fd: int, every: float = 15) -> None:
        self._fd = os.open(AGENT_LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=locks_fd)
        self._agent = os.pread(self._fd, 4096, 0)
        signal.signal(signal.SIGALRM, self._look)
        signal.setitimer(signal.ITIMER_REAL, every, every)

    def _look(self, signum: int, frame: object) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # the agent holds it exclusively
        except BlockingIOError:
            if os.pread(self._fd, 4096, 0) == self._agent:
                return
        raise Orphaned("the agent has ended")
