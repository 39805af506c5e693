"""The stream engine: whole files as one stream to a receiver at the slave (format: gsync/link/stream.py).

Small files are read whole and sent in big writes; large ones are sent with sendfile, holes left out. The next box is
sent while one is still on its way; its results come with the receiver's answer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gsync.base import rpc
from gsync.base.errors import GsyncError, SlaveError
from gsync.base.fate import SLAVE
from gsync.base.model import NS
from gsync.link import stream
from gsync.link.client import error_of
from gsync.link.link import Link
from gsync.sync.engine import Flow, Report, Source
from gsync.sync.postbox import FileRequest, Result

_WRITE = 256 << 10  # bytes gathered before they are written
_READ = 128 << 10  # an extent up to this is read and gathered instead of sent by itself
_LIMITED_PIECE = 256 << 10  # longest extent under a rate limit
_AT_ONCE = 1 << 20  # bytes per sendfile: a pause waits for it
_LOOK = 128 << 10  # bytes checked for zeros at once
_TRIES = 3
_BOXES_OUT = 2
_BLOCK = 4096  # so much is not sparse, whatever its block count says
_WHOLE, _TORN = bytes([stream.WHOLE]), bytes([stream.TORN])
_PLACES = {"N": stream.NEW, "D": stream.DIRECT, "P": stream.IN_PLACE}
_LAST_EXTENT = stream.EXTENT.pack(0, 0)


@dataclass
class _Box:
    """A box on its way: what each of its items was, and the results that are known already."""

    number: int
    items: list[Result | None] = field(default_factory=list)  # None: torn, whatever the receiver says
    results: list[Result] = field(default_factory=list)


class StreamEngine:
    """An Engine over one receiver process."""

    direct = True

    def __init__(self, link: Link, source: Source, epoch: int, ticket: str, flow: Flow) -> None:
        self._link = link
        self._source = source
        self._flow = flow
        self._out = deque[_Box]()
        self._boxes = 0
        self._gathered: list[bytes] = []  # goes out with the next write
        self._size = 0
        self._gather(stream.encode_hello(epoch, ticket))
        self._ready = False
        self._piece = _LIMITED_PIECE if flow.limited else stream.EXTENT_MAX
        self._channel = link.agent([b"--receive", link.slave.path])
        self._answers = queue.SimpleQueue[Any]()
        self._reader = threading.Thread(target=self._read_answers, name="answers of a receiver")
        self._reader.start()

    # the engine's contract

    def move(self, box: Sequence[FileRequest], report: Report) -> None:
        if not self._boxes:
            self._write_gathered()  # the hello: it gets ready while the first files are read
        self._boxes += 1
        out = _Box(self._boxes)
        self._out.append(out)
        for request in box:
            self._send(request, out)
        self._gather(stream.encode_end(out.number))
        self._write_gathered()
        while len(self._out) >= _BOXES_OUT or not self._answers.empty():
            self._take_answer(report)

    def flush(self, report: Report) -> None:
        while self._out:
            self._take_answer(report)

    def abort(self) -> None:
        self._channel.kill()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._channel.end_input()
        self._channel.end()
        self._reader.join()
        self._channel.close()

    # answers

    def _read_answers(self) -> None:
        try:
            while (answer := rpc.read_frame(self._channel.stdout)) is not None:
                self._answers.put(answer)
        except (rpc.BadFrame, OSError, ValueError) as exc:
            self._answers.put({"error": {"type": "transient", "message": f"the receiver's answer: {exc}"}})
        self._answers.put(None)

    def _take_answer(self, report: Report) -> None:
        """Wait for the next answer of the receiver and report its box."""
        answer = self._answers.get()
        if answer is None:
            raise self._link.error(self._channel)
        if "error" in answer:
            raise error_of(self._link.slave, answer["error"])
        if not self._ready:
            self._ready = True
            return
        box = self._out.popleft()
        failed = {index: (err, message) for index, err, message in answer["failed"]}
        slave_wide: GsyncError | None = None
        for index, result in enumerate(box.items):
            if result is None:
                continue
            if index in failed:
                err, message = failed[index]
                result = result._replace(errno=err, message=f"slave: {message}", bytes=0)
                if err in SLAVE.full:
                    slave_wide = SlaveError(f"slave {self._link.slave}: {message}")
            box.results.append(result)
        report(box.results)
        if slave_wide:
            raise slave_wide

    def _lost(self) -> GsyncError:
        """The error after the link broke while writing: the answers may tell the reason."""
        while (answer := self._answers.get()) is not None:
            if "error" in answer:
                return error_of(self._link.slave, answer["error"])
        return self._link.error(self._channel)

    # writing

    def _write(self, data: bytes) -> None:
        try:
            self._channel.write(data)
        except OSError as exc:
            raise self._lost() from exc

    def _gather(self, *pieces: bytes) -> None:
        self._gathered += pieces
        self._size += sum(map(len, pieces))
        if self._size >= _WRITE:
            self._write_gathered()

    def _write_gathered(self) -> None:
        if self._gathered:
            self._flow.pay(self._size)
            data = b"".join(self._gathered)
            self._gathered.clear()
            self._size = 0
            self._write(data)

    # one file

    def _send(self, request: FileRequest, box: _Box) -> None:
        try:
            fd, st = self._source.open(request.gfid)
        except OSError as exc:
            box.results.append(_failed(request, exc))
            return
        try:
            for attempt in range(_TRIES):
                if attempt:
                    st = self._source.fstat(fd)
                if st.st_size <= stream.INLINE_MAX and (st.st_size <= _BLOCK or st.st_blocks * 512 >= st.st_size):
                    sent = self._send_short(fd, st, request, box, last=attempt == _TRIES - 1)
                else:
                    sent = self._send_long(fd, st, request, box)
                if sent:
                    return
            raise OSError(errno.EAGAIN, "the file keeps changing while it is read")
        except OSError as exc:
            box.results.append(_failed(request, exc))
        finally:
            os.close(fd)

    def _xattrs(self, fd: int, st: os.stat_result, request: FileRequest) -> bytes:
        """The encoded xattrs to send; b"" if only data is sent."""
        if request.place == "P":
            return b""
        if request.place == "D" and st.st_nlink > 1:
            raise OSError(errno.EMLINK, "the file has other names too")
        xattrs = self._source.xattrs(request.gfid, fd, st)
        if not xattrs:
            return b""
        blob = stream.encode_xattrs(xattrs)
        if len(blob) > stream.XATTRS_MAX:
            raise OSError(errno.E2BIG, "the extended attributes are too long")
        return blob

    def _send_short(self, fd: int, st: os.stat_result, request: FileRequest, box: _Box, last: bool) -> bool:
        """Send a file in one piece. If it changed while it was read, send nothing, except on the last try."""
        xattrs = self._xattrs(fd, st, request)
        data = _read(fd, st.st_size)
        changed = self._source.changed(fd, st)
        if changed and not last:
            return False
        self._gather(_header(request, st, xattrs, len(data), stream.INLINE), data, _WHOLE)
        box.items.append(Result(request, 0, "", len(data), changed))
        return True

    def _send_long(self, fd: int, st: os.stat_result, request: FileRequest, box: _Box) -> bool:
        """Send a file extent by extent; False if it shrank, so that what was sent is void."""
        size = st.st_size
        self._gather(_header(request, st, self._xattrs(fd, st, request), size, 0))
        box.items.append(None)
        sent, failure = 0, None
        sparse = st.st_blocks * 512 < size
        try:
            for offset, length in _extents(fd, size, self._piece) if sparse else _pieces(0, size, self._piece):
                self._send_extent(fd, offset, length)
                sent += length
        except _Torn as torn:
            failure = torn
        after = os.fstat(fd)
        if failure is None and after.st_size < size:
            failure = _Torn(None)  # holes where there was data a moment ago
        self._gather(_LAST_EXTENT, _TORN if failure else _WHOLE)
        if failure is None:
            box.items[-1] = Result(request, 0, "", sent, after.st_ctime_ns != st.st_ctime_ns)
            return True
        if failure.cause is not None:
            raise failure.cause
        return False

    def _send_extent(self, fd: int, offset: int, length: int) -> None:
        """Send one extent; _Torn, after padding, if the source no longer has it."""
        if length <= _READ:
            data, cause = b"", None
            try:
                data = _read(fd, length, offset)
            except OSError as exc:
                cause = exc
            short = length - len(data)
            self._gather(stream.EXTENT.pack(offset, length), data, bytes(short))
            if short:
                raise _Torn(cause)
            return
        self._gather(stream.EXTENT.pack(offset, length))
        self._write_gathered()
        self._flow.pay(length)
        out, end = self._channel.stdin, offset + length
        while offset < end:
            self._flow.hold()
            try:
                done = os.sendfile(out, fd, offset, min(end - offset, _AT_ONCE))
            except (BrokenPipeError, ConnectionError) as exc:
                raise self._lost() from exc
            except OSError as exc:
                if exc.errno == errno.EINVAL:  # a file system that has no sendfile
                    self._send_read(fd, offset, end - offset)
                    return
                self._pad(end - offset)
                raise _Torn(exc) from exc
            if not done:
                self._pad(end - offset)
                raise _Torn(None)
            offset += done

    def _send_read(self, fd: int, offset: int, length: int) -> None:
        """Send the bytes of an extent without sendfile."""
        while length:
            try:
                data = os.pread(fd, min(length, _WRITE), offset)
            except OSError as exc:
                self._pad(length)
                raise _Torn(exc) from exc
            if not data:
                self._pad(length)
                raise _Torn(None)
            self._write(data)
            offset += len(data)
            length -= len(data)

    def _pad(self, length: int) -> None:
        zeros = bytes(min(length, _WRITE))
        while length:
            self._write(zeros[:length])
            length -= min(length, len(zeros))


def _header(request: FileRequest, st: os.stat_result, xattrs: bytes, size: int, flags: int) -> bytes:
    """Header, name and xattrs of an item."""
    bname = request.bname if request.place == "D" else b""
    return stream.HEADER.pack(stream.FILE, _PLACES[request.place], flags, len(bname), len(xattrs), request.gfid,
                              request.dirgfid, st.st_mode, st.st_uid, st.st_gid, *divmod(st.st_mtime_ns, NS),
                              *divmod(st.st_atime_ns, NS), size) + bname + xattrs


class _Torn(Exception):
    """The source is shorter than announced, or cannot be read (then `cause` says why)."""

    def __init__(self, cause: OSError | None) -> None:
        super().__init__(cause)
        self.cause = cause


def _failed(request: FileRequest, exc: OSError) -> Result:
    return Result(request, exc.errno or errno.EIO, exc.strerror or str(exc), 0, False)


def _read(fd: int, size: int, offset: int = 0) -> bytes:
    """`size` bytes of a file, fewer if it ends before."""
    data = os.pread(fd, size, offset)
    while len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def _pieces(offset: int, end: int, longest: int) -> Iterator[tuple[int, int]]:
    while offset < end:
        length = min(longest, end - offset)
        yield offset, length
        offset += length


def _extents(fd: int, size: int, longest: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of everything that is not a hole, up to `size`."""
    at = 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
            at = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError as exc:
            if exc.errno == errno.ENXIO:
                return  # a hole up to the end
            if exc.errno == errno.EOPNOTSUPP:  # a sharded GlusterFS volume
                yield from _not_zero(fd, size)
                return
            raise _Torn(exc) from exc
        yield from _pieces(start, at, longest)


def _not_zero(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """The same for a source that does not report its holes."""
    for offset, length in _pieces(0, size, _LOOK):
        try:
            data = _read(fd, length, offset)
        except OSError as exc:
            raise _Torn(exc) from exc
        if data.count(0) < length:
            yield offset, length
