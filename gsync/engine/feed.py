"""The changelogs to apply next, past ones (History Crawl) and those just written (Changelog Crawl) alike.

The kernel wakes it when the recorder has written something; nothing here polls.
"""

from __future__ import annotations

import os
import select
from dataclasses import dataclass
from typing import Protocol

import inotify_simple

from gsync.base.model import NS
from gsync.changelog.layout import Changelog
from gsync.changelog.reader import History
from gsync.recorder.status import RecorderStatus


class RecorderView(Protocol):
    """A brick's recorder, as a worker sees it."""

    def status(self) -> RecorderStatus | None: ...
    def poke(self) -> object:
        """Request a cut now."""
    def wait_complete(self, until_ns: int) -> None:
        """Return once complete_up_to has passed; Transient if that does not come."""


@dataclass(frozen=True)
class Portion:
    """The changelogs of one batch, oldest first. upto: once they are applied, the slave holds all changes up to
    then."""

    changelogs: list[Changelog]
    upto: int | None
    last: bool      # there is no newer changelog yet


def restart_position(stime: int) -> int:
    """The position to read from when the slave holds everything up to stime.

    A slice that ends in the same second may be written after stime was taken; applying the slice of that second again
    changes nothing.
    """
    return (stime // NS - 1) * NS


class Feed:
    """Lists the changelogs after a position (ns, always the end of a slice that was read)."""

    def __init__(self, history: History, batch_size: int) -> None:
        self._history, self._batch_size = history, batch_size

    def take(self, position: int, complete_up_to: int | None) -> Portion:
        """Whole changelogs after position, up to the batch size and at least one. HistoryGap if some are missing.

        complete_up_to: the recorder's value from before this call; the changelogs up to then are listed by now.
        """
        changelogs: list[Changelog] = []
        size = 0
        last = True
        for changelog in self._history.since(position):
            size += os.path.getsize(changelog.path)
            if changelogs and size > self._batch_size:
                last = False
                break
            changelogs.append(changelog)
        end = changelogs[-1].ts * NS if changelogs else None
        if last and complete_up_to is not None:
            end = max(end or 0, complete_up_to)
        return Portion(changelogs, end, last)


class Waker:
    """Sleeps until the recorder has written a changelog or its status, or `wake_fd` becomes readable."""

    def __init__(self, brick: str, changelogs: str, wake_fd: int) -> None:
        self._inotify = inotify_simple.INotify()
        flags = inotify_simple.flags
        self._inotify.add_watch(brick, flags.MOVED_TO | flags.CREATE)
        self._changelogs = changelogs
        self._htime = False
        self._wake_fd = wake_fd

    def wait(self, seconds: float) -> None:
        if not self._htime and os.path.isdir(os.path.join(self._changelogs, "htime")):
            flags = inotify_simple.flags
            self._inotify.add_watch(os.path.join(self._changelogs, "htime"), flags.MODIFY | flags.CREATE)
            self._htime = True
            return
        select.select([self._inotify.fileno(), self._wake_fd], [], [], seconds)
        self._inotify.read(timeout=0)

    def close(self) -> None:
        self._inotify.close()
