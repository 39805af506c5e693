"""Where things lie in a changelogs folder, by GlusterFS's rules (dates in UTC), and the mark of coverage.

    CHANGELOG                           the live file: the slice that is being recorded
    YYYY/MM/DD/CHANGELOG.<ts>           the slice that ended at ts
    htime/HTIME.<T0>                    their list from T0 on
    htime/covered_from                  ours: history is complete from this time (ns) on
    htime/gsync.slices                  ours: the slices by number, with size and CRC (slices)
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from typing import NamedTuple

from gsync.base import durable
from gsync.base.errors import GsyncError
from gsync.base.model import NS

LIVE = b"CHANGELOG"
_COVERED_FROM = b"htime/covered_from"
_SLICES = b"htime/gsync.slices"
_DIGITS = re.compile(rb"\d+")
_STORED = re.compile(rb"CHANGELOG\.(\d+)")
_HTIME = re.compile(rb"HTIME\.(\d+)")


class HistoryGap(GsyncError):
    """The recorded history lacks some of what was asked for: it was purged or is damaged. ts: of the damaged changelog,
    if one is known."""

    def __init__(self, message: str, ts: int = 0) -> None:
        super().__init__(message)
        self.ts = ts


class Changelog(NamedTuple):
    """A finished changelog."""

    ts: int
    path: bytes


def live_path(folder: bytes) -> bytes:
    return os.path.join(folder, LIVE)


def changelog_path(folder: bytes, ts: int) -> bytes:
    """The place of CHANGELOG.<ts>; of the same length for every ts."""
    return os.path.join(folder, time.strftime("%Y/%m/%d/CHANGELOG.", time.gmtime(ts)).encode() + b"%010d" % ts)


def slices_path(folder: bytes) -> bytes:
    return os.path.join(folder, _SLICES)


def htime_folder(folder: bytes) -> bytes:
    return os.path.join(folder, b"htime")


def htime_path(folder: bytes, start: int) -> bytes:
    return os.path.join(htime_folder(folder), b"HTIME.%010d" % start)


def htime_paths(folder: bytes) -> list[tuple[int, bytes]]:
    """(T0, path) of every HTIME file, oldest first."""
    return _numbered(htime_folder(folder), _HTIME)


def stored(folder: bytes, after: int = -1) -> Iterator[Changelog]:
    """The changelogs that are on disk with a ts > after, oldest first, whether listed in HTIME or not."""
    first_day = os.path.dirname(changelog_path(folder, max(after, 0)))
    for year in _dated(folder):
        for month in _dated(year):
            for day in _dated(month):
                if day >= first_day:
                    yield from (Changelog(ts, path) for ts, path in _numbered(day, _STORED) if ts > after)


def covered_from(folder: bytes) -> int | None:
    """The time (ns) from which on the history is complete; None: there is none.

    Without a mark it is the start of the newest HTIME file: GlusterFS begins one each time that recording is
    switched on, and nothing is known of the time before.
    """
    mark = _mark(folder)
    if mark is not None:
        return mark
    htimes = htime_paths(folder)
    return htimes[-1][0] * NS if htimes else None


def set_covered_from(folder: bytes, time_ns: int) -> None:
    """Say, durably, from which time on the history is complete."""
    durable.replace_file(os.path.join(folder, _COVERED_FROM), b"%d\n" % time_ns)


def keep_covered_from(folder: bytes) -> None:
    """See to it that there is a mark, so that HTIME files may come and go."""
    if _mark(folder) is None and (time_ns := covered_from(folder)) is not None:
        set_covered_from(folder, time_ns)


def _mark(folder: bytes) -> int | None:
    path = os.path.join(folder, _COVERED_FROM)
    try:
        with open(path, "rb") as file:
            text = file.read()
        return int(text)
    except FileNotFoundError:
        return None
    except ValueError:
        raise HistoryGap(f"{os.fsdecode(path)}: not a time: {text[:40]!r}") from None


def _dated(folder: bytes) -> list[bytes]:
    """The folders in a folder that have a number for a name, in order."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [os.path.join(folder, name) for name in sorted(names) if _DIGITS.fullmatch(name)]


def _numbered(folder: bytes, pattern: re.Pattern[bytes]) -> list[tuple[int, bytes]]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    found = ((int(m[1]), os.path.join(folder, name)) for name in names if (m := pattern.fullmatch(name)))
    return sorted(found)
