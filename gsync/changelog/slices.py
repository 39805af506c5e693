"""The list of the slices of one history that gsync recorded: by numbers, which no clock can change.

A history has a random id, made when the recorder begins with a new index. Its slices are numbered from 1 in the order
in which they were closed. The list lies beside GlusterFS's HTIME files as htime/gsync.slices:

    header   16 bytes of magic, 16 bytes of id
    record   number, ts (s), size and CRC-32 of the changelog, CRC-32 of these: big-endian, 32 bytes each

It grows at its end; a purge writes it anew. What a crash left torn at its end is cut off by the writer and left out by
readers. Damage before the end ends the history: HistoryGap.
"""

from __future__ import annotations

import os
import secrets
import struct
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from gsync.base import durable
from gsync.changelog import layout
from gsync.changelog.layout import HistoryGap

_MAGIC = b"gsync slices 1\n\0"
_HEADER = len(_MAGIC) + 16
_FIELDS = struct.Struct(">QQQI")
_RECORD = _FIELDS.size + 4
_UNKNOWN = 0xFFFFFFFF       # in place of a CRC: the changelog is older than the list
_PIECE = 1 << 20
_CHUNK = 4096               # records


class SliceRecord(NamedTuple):
    """One slice. crc: of its changelog; None for one that an older gsync recorded."""

    number: int
    ts: int
    size: int
    crc: int | None


@dataclass(frozen=True)
class Place:
    """A place in a history: the last slice that counts as applied. number 0: the beginning of the history."""

    history: str
    number: int
    ts: int = 0
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Place | None:
        """What `str` made; None for anything else."""
        parts = text.split(":")
        if len(parts) != 4 or not parts[1].isdecimal() or not parts[2].isdecimal():
            return None
        return cls(parts[0], int(parts[1]), int(parts[2]), parts[3])

    def __str__(self) -> str:
        return f"{self.history}:{self.number}:{self.ts}:{self.digest}"


def checksum(path: bytes) -> tuple[int, int]:
    """Size and CRC-32 of a file."""
    size = crc = 0
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            size, crc = size + len(piece), zlib.crc32(piece, crc)
    return size, crc


class Slices:
    """Reads the list of a changelogs folder, as it is at each call."""

    def __init__(self, folder: bytes) -> None:
        self.path = layout.slices_path(folder)

    def id(self) -> str | None:
        """Of the history; None where there is no list."""
        try:
            with self._opened() as (fd, _):
                return _id(fd)
        except FileNotFoundError:
            return None

    def after(self, number: int) -> Iterator[SliceRecord]:
        """The slices with a higher number, in order. HistoryGap if some of them are not in the list any more."""
        with self._opened() as (fd, count):
            first = self._record(fd, 0).number if count else number + 1
            if number + 1 < first:
                raise HistoryGap(f"slice {number + 1} is not in the list any more, which begins with {first}")
            for i in range(number + 1 - first, count):
                yield self._record(fd, i)

    def at_or_before(self, ts: int) -> SliceRecord | None:
        """The last slice that ended at ts or before."""
        with self._opened() as (fd, count):
            i = bisect_right(range(count), ts, key=lambda i: self._record(fd, i).ts)
            return self._record(fd, i - 1) if i else None

    def last(self) -> SliceRecord | None:
        with self._opened() as (fd, count):
            return self._record(fd, count - 1) if count else None

    def place(self, record: SliceRecord | None) -> Place:
        """Of this slice; None: before the first one."""
        with self._opened() as (fd, _):
            return _place(_id(fd), record)

    def holds(self, place: Place) -> bool:
        """Whether this history has been at that place: then all slices after it are the ones that followed."""
        try:
            with self._opened() as (fd, count):
                history = _id(fd)
                if history != place.history:
                    return False
                if place.number == 0:
                    return count == 0 or self._record(fd, 0).number == 1
                i = place.number - self._record(fd, 0).number if count else -1
                return 0 <= i < count and _place(history, self._record(fd, i)) == place
        except (FileNotFoundError, HistoryGap):
            return False

    @contextmanager
    def _opened(self) -> Iterator[tuple[int, int]]:
        """Descriptor, and number of whole records. HistoryGap if it is no list of slices."""
        with open(self.path, "rb", buffering=0) as file:
            fd = file.fileno()
            if os.pread(fd, len(_MAGIC), 0) != _MAGIC:
                raise HistoryGap(f"{os.fsdecode(self.path)}: not a list of slices")
            yield fd, _count(fd)

    def _record(self, fd: int, index: int) -> SliceRecord:
        record = _parse(os.pread(fd, _RECORD, _HEADER + _RECORD * index))
        if record is None:
            raise HistoryGap(f"{os.fsdecode(self.path)}: record {index} is damaged")
        return record


class SliceWriter:
    """Adds to the list. One that is missing or damaged begins anew, with another id: whoever had a place in the former
    history has to look at all of the tree. last_ts: of the last slice, -1 if there is none."""

    def __init__(self, folder: bytes, new_id: Callable[[], bytes] = lambda: secrets.token_bytes(16)) -> None:
        self._folder, self._path, self._new_id = folder, layout.slices_path(folder), new_id
        self._fd, self._count, self._number, self.last_ts = -1, 0, 0, -1
        try:
            self._open()
        except (FileNotFoundError, HistoryGap):
            self.begin_anew()

    def append(self, tss: Sequence[int]) -> None:
        """List these changelogs, which are durable in their places. After an OSError the call may be repeated."""
        if not tss:
            return
        records = [SliceRecord(number, ts, *checksum(layout.changelog_path(self._folder, ts)))
                   for number, ts in enumerate(tss, self._number + 1)]
        os.pwrite(self._fd, b"".join(map(_encode, records)), _HEADER + _RECORD * self._count)
        os.fsync(self._fd)
        self._count += len(records)
        self._number, self.last_ts = records[-1].number, records[-1].ts

    def begin_anew(self) -> None:
        """A new history. The changelogs that are there are in it, but nobody is known to have applied them."""
        records = [SliceRecord(number, changelog.ts, os.path.getsize(changelog.path), None)
                   for number, changelog in enumerate(layout.stored(self._folder), 1)]
        durable.replace_file(self._path, _MAGIC + self._new_id() + b"".join(map(_encode, records)))
        self._open()

    def forget(self, ts: int) -> None:
        """Drop what is listed before the last slice that ended at ts or before: its changelogs are gone. That slice
        stays listed, so that whoever has just applied it goes on from there."""
        kept = 0
        for i in range(self._count):
            record = _parse(os.pread(self._fd, _RECORD, _HEADER + _RECORD * i))
            if record is None or record.ts > ts:
                break
            kept = i
        if kept <= self._count // 2:
            return  # not worth writing the rest anew
        rest = os.pread(self._fd, _RECORD * (self._count - kept), _HEADER + _RECORD * kept)
        durable.replace_file(self._path, os.pread(self._fd, _HEADER, 0) + rest)
        self._open()

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _open(self) -> None:
        """HistoryGap if the list is damaged before its end. What is torn at its end is cut off."""
        self.close()
        self._fd = os.open(self._path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        if os.pread(self._fd, len(_MAGIC), 0) != _MAGIC or os.fstat(self._fd).st_size < _HEADER:
            raise HistoryGap(f"{os.fsdecode(self._path)}: not a list of slices")
        self._count, self._number, self.last_ts = 0, 0, -1
        for record in _records(self._fd):
            if record is None or (self._count and record.number != self._number + 1) or record.ts <= self.last_ts:
                break
            self._count, self._number, self.last_ts = self._count + 1, record.number, record.ts
        if self._count < _count(self._fd) - 1:  # more than the last write can have torn
            raise HistoryGap(f"{os.fsdecode(self._path)}: record {self._count} is damaged")
        os.ftruncate(self._fd, _HEADER + _RECORD * self._count)


def _records(fd: int) -> Iterator[SliceRecord | None]:
    """All whole records; None for a damaged one."""
    at = _HEADER
    while data := os.pread(fd, _RECORD * _CHUNK, at):
        at += len(data)
        yield from (_parse(data[i:i + _RECORD]) for i in range(0, len(data) - _RECORD + 1, _RECORD))


def _place(history: str, record: SliceRecord | None) -> Place:
    if record is None:
        return Place(history, 0)
    return Place(history, record.number, record.ts, "" if record.crc is None else f"{record.crc:08x}")


def _id(fd: int) -> str:
    return os.pread(fd, 16, len(_MAGIC)).hex()


def _count(fd: int) -> int:
    return max(0, os.fstat(fd).st_size - _HEADER) // _RECORD


def _encode(record: SliceRecord) -> bytes:
    fields = _FIELDS.pack(record.number, record.ts, record.size, _UNKNOWN if record.crc is None else record.crc)
    return fields + zlib.crc32(fields).to_bytes(4, "big")


def _parse(data: bytes) -> SliceRecord | None:
    if len(data) != _RECORD or zlib.crc32(data[:-4]).to_bytes(4, "big") != data[-4:]:
        return None
    number, ts, size, crc = _FIELDS.unpack_from(data)
    return SliceRecord(number, ts, size, None if crc == _UNKNOWN else crc)
