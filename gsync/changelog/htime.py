"""HTIME files: the list of changelogs, as records of equal length, so that a time is found by binary search.

A record is the absolute path of a changelog and a NUL; a slice without changes has `changelog.<ts>` and no file.
Only the last parts of the path are used: the folder may have been moved since. What GlusterFS keeps in xattrs
beside it (last ts and count) is written where the file system allows it; gsync does not need it.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from gsync.base import durable
from gsync.changelog import layout
from gsync.changelog.layout import HistoryGap

_PATH = re.compile(rb"/((?:\d{4}/\d\d/\d\d/)?)(CHANGELOG|changelog)\.(\d{1,20})\Z")
_LONGEST_PATH = 1 << 13
_CHUNK = 4096  # records
MOST_RECORDS = 1 << 16  # then gsync begins a new file, so that the list can be purged too


class HtimeRecord(NamedTuple):
    """One slice: place is where its changelog lies below the changelogs folder, None if the slice was empty."""

    ts: int
    place: bytes | None
    listed: bytes  # the path as recorded


class Htime:
    """Reads one HTIME file, as it is at each call. A torn last record is left out; damage raises HistoryGap."""

    def __init__(self, path: bytes) -> None:
        self.path = path

    def records_after(self, ts: int) -> Iterator[HtimeRecord]:
        """The slices that ended later than ts, in order."""
        with self._opened() as (fd, size, count):
            first = bisect_right(range(count), ts, key=lambda i: self._record(fd, size, i).ts)
            for begin in range(first, count, _CHUNK):
                data = os.pread(fd, size * min(_CHUNK, count - begin), size * begin)
                for i in range(len(data) // size):
                    yield self._parse(data[i * size : (i + 1) * size], begin + i)

    def first(self) -> HtimeRecord | None:
        with self._opened() as (fd, size, count):
            return self._record(fd, size, 0) if count else None

    def last(self) -> HtimeRecord | None:
        with self._opened() as (fd, size, count):
            return self._record(fd, size, count - 1) if count else None

    @contextmanager
    def _opened(self) -> Iterator[tuple[int, int, int]]:
        """(descriptor, size of a record, number of whole records)"""
        with open(self.path, "rb", buffering=0) as file:
            yield file.fileno(), *_measure(file.fileno())

    def _record(self, fd: int, size: int, index: int) -> HtimeRecord:
        return self._parse(os.pread(fd, size, size * index), index)

    def _parse(self, record: bytes, index: int) -> HtimeRecord:
        try:
            return parse_record(record)
        except ValueError as exc:
            raise HistoryGap(f"{os.fsdecode(self.path)}: record {index} is damaged: {exc}") from None


class HtimeWriter:
    """Adds to the newest HTIME file of a changelogs folder; makes one, that begins `now`, where there is none.

    What a crash left unreadable at its end is cut off. last_ts is the last one listed, -1 if none is. most: records of
    a file.
    """

    def __init__(self, folder: bytes, now: int, most: int = MOST_RECORDS) -> None:
        self._folder, self._most = folder, most
        self.last_ts = -1
        self._fd = -1
        files = layout.htime_paths(folder)
        if not files:
            self._begin(now)
            return
        self.start, path = files[-1]
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._size, self._count, last = _sound_part(self._fd)
        os.ftruncate(self._fd, self._size * self._count)
        while last is None and len(files) > 1:
            files.pop()
            with open(files[-1][1], "rb") as older:
                _, _, last = _sound_part(older.fileno())
        if last is not None:
            self.last_ts = last.ts

    def append(self, tss: Sequence[int]) -> None:
        """List these changelogs, durably. After an OSError the same call may be tried again."""
        if not tss:
            return
        data = b"".join(layout.changelog_path(self._folder, ts) + b"\0" for ts in tss)
        size = len(data) // len(tss)
        if self._count >= self._most or (self._count and size != self._size):  # full, or the folder was moved
            self._begin(max(self.last_ts, self.start + 1))
        os.pwrite(self._fd, data, size * self._count)  # over what a failed call may have left
        os.fsync(self._fd)
        self._size = size
        self._count += len(tss)
        self.last_ts = tss[-1]
        _set_xattr(self._fd, "glusterfs.htime", b"%d:%d" % (self.last_ts, self._count))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _begin(self, start: int) -> None:
        path = layout.htime_path(self._folder, start)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        self.close()
        self._fd, self.start, self._size, self._count = fd, start, 0, 0
        durable.fsync_dir(os.path.dirname(path))
        _set_xattr(fd, "glusterfs.htime", b"0:0")
        _set_xattr(os.path.dirname(path), "glusterfs.current_htime", os.path.basename(path))


def parse_record(record: bytes) -> HtimeRecord:
    """The meaning of one record, its NUL included; ValueError if it is none."""
    path = record[:-1]
    m = _PATH.search(path)
    if m is None or b"\0" in path or record[-1:] != b"\0":
        raise ValueError(f"not the path of a changelog: {record[:80]!r}")
    return HtimeRecord(int(m[3]), m[1] + m[2] + b"." + m[3] if m[2] == b"CHANGELOG" else None, path)


def _measure(fd: int) -> tuple[int, int]:
    """(size of a record, number of whole records); the first record tells the size of all."""
    size = os.pread(fd, _LONGEST_PATH, 0).find(b"\0") + 1
    return size, os.fstat(fd).st_size // size if size else 0


def _sound_part(fd: int) -> tuple[int, int, HtimeRecord | None]:
    """(size of a record, number of records up to the last readable one, that one)"""
    size, count = _measure(fd)
    while count:
        with suppress(ValueError):
            return size, count, parse_record(os.pread(fd, size, size * (count - 1)))
        count -= 1
    return 0, 0, None


def _set_xattr(target: int | bytes, name: str, value: bytes) -> None:
    for namespace in ("trusted.", "user."):
        with suppress(OSError):
            os.setxattr(target, namespace + name, value)
            return
