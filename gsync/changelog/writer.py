"""Writes the changelogs of one brick, in GlusterFS's layout.

Promise: when roll() has returned, its slice is on stable storage, in its place and in the list (HTIME). A crash
before that loses the slice at most, or the next open finds it. One writer per folder: the caller holds the recorder's
lock. File system errors are raised as OSError; the caller may retry the same call.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import BinaryIO

from gsync.base import durable
from gsync.changelog import layout, records
from gsync.changelog.htime import MOST_RECORDS, HtimeWriter
from gsync.changelog.layout import Changelog
from gsync.changelog.records import HEADER, Record
from gsync.changelog.slices import SliceWriter

_BUFFER = 1 << 20


class ChangelogWriter:
    """The live changelog and the list of the finished ones.

    `now` is the clock in whole seconds. The constructor repairs what a crash left: it adds a slice that is missing from
    the list, cuts a torn record off the live file and rolls it. A slice without records writes nothing, not even in
    HTIME: GlusterFS lists those, but its readers do not need them. list_size: entries of an HTIME file.
    """

    def __init__(self, folder: bytes, now: int, list_size: int = MOST_RECORDS) -> None:
        self.folder = os.path.abspath(folder)
        self.pending = 0  # bytes of records that wait for roll()
        self._live: BinaryIO | None = None
        durable.make_dirs(layout.htime_folder(self.folder))
        self._list = HtimeWriter(self.folder, now, list_size)
        self.slices = SliceWriter(self.folder)
        listed = min(self._list.last_ts, self.slices.last_ts)
        self._unlisted = [changelog.ts for changelog in layout.stored(self.folder, listed)]
        self.last_ts = max([self._list.start - 1, self._list.last_ts, self.slices.last_ts, *self._unlisted])
        self._recover_live(now)
        self._write_list()
        layout.keep_covered_from(self.folder)

    def next_ts(self, now: int) -> int:
        """The ts for a slice that ends now: later than the last one, even if the clock was set back."""
        return max(now, self.last_ts + 1)

    def append(self, items: bytes | Iterable[Record]) -> None:
        """Add records, encoded or not, to the live slice. They are durable after roll()."""
        data = items if isinstance(items, bytes) else b"".join(map(records.encode, items))
        if not data:
            return
        if self._live is None:
            fd = os.open(layout.live_path(self.folder), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            self._live = os.fdopen(fd, "wb", _BUFFER)
            self._live.write(HEADER)
        self._live.write(data)
        self.pending += len(data)

    def roll(self, ts: int) -> Changelog | None:
        """End the slice at ts: make it durable, in its place and listed. None if it has no records.

        ts must be later than last_ts (see next_ts).
        """
        if ts <= self.last_ts:
            raise ValueError(f"ts {ts} is not later than {self.last_ts}")
        changelog = None
        if self._live is not None:
            self._live.flush()
            os.fsync(self._live.fileno())
            changelog = self._place(ts)
            self._live.close()
            self._live = None
            self.pending = 0
        self._write_list()
        return changelog

    def close(self) -> None:
        """Let go of the files. Records that were not rolled are found at the next open."""
        if self._live is not None:
            self._live.close()
            self._live = None
        self.slices.close()
        self._list.close()

    def _place(self, ts: int) -> Changelog:
        """Move the live file, whose contents are durable, to its place."""
        path = layout.changelog_path(self.folder, ts)
        durable.make_dirs(os.path.dirname(path))
        os.rename(layout.live_path(self.folder), path)
        self._unlisted.append(ts)
        self.last_ts = ts
        return Changelog(ts, path)

    def _write_list(self) -> None:
        """Make the places of new changelogs durable, then list them."""
        if not self._unlisted:
            return
        for day in {os.path.dirname(layout.changelog_path(self.folder, ts)) for ts in self._unlisted}:
            durable.fsync_dir(day)
        durable.fsync_dir(self.folder)
        # By number first: a reader of HTIME then finds each slice in the list of numbers too.
        self.slices.append([ts for ts in self._unlisted if ts > self.slices.last_ts])
        self._list.append([ts for ts in self._unlisted if ts > self._list.last_ts])
        self._unlisted = []

    def _recover_live(self, now: int) -> None:
        live = layout.live_path(self.folder)
        try:
            with open(live, "r+b") as file:
                end = records.sound_end(file)
                file.truncate(end)
                os.fsync(file.fileno())
        except FileNotFoundError:
            return
        if end:
            self._place(self.next_ts(now))
        else:
            os.unlink(live)
