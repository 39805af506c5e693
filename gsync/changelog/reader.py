"""The history of a brick: which changelogs hold the changes since a time.

Reads what GlusterFS's bricks and gsync's recorder write, wherever the folder is now, also while they write it. To wake
when there is more, watch the folder htime/ (IN_MODIFY, IN_CREATE): its files grow with each slice.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from gsync.base.model import NS
from gsync.changelog import layout
from gsync.changelog.htime import Htime
from gsync.changelog.layout import Changelog, HistoryGap


class History:
    """All times are in ns, except last_ts."""

    def __init__(self, folder: bytes) -> None:
        self.folder = folder

    def since(self, start: int, end: int | None = None) -> Iterator[Changelog]:
        """The changelogs of the slices that ended after `start`, and not after `end`, oldest first.

        HistoryGap if one of them no longer exists, or the list is damaged.
        """
        for htime in self._htimes():
            for record in htime.records_after(start // NS):
                if end is not None and record.ts * NS > end:
                    return
                if record.place is None:
                    continue
                path = os.path.join(self.folder, record.place)
                if not os.path.exists(path):
                    raise HistoryGap(f"{os.fsdecode(path)}: changelog is missing", record.ts)
                yield Changelog(record.ts, path)

    def covered_from(self) -> int | None:
        """The time from which on the history is complete (if no file was taken away since); None: there is none."""
        return layout.covered_from(self.folder)

    def reaches_back_to(self, time: int) -> bool:
        """Whether every change after `time` can be read from the changelogs (and, the latest, will be)."""
        try:
            covered = self.covered_from()
            if covered is None or covered > time:
                return False
            for _ in self.since(time):
                pass
        except HistoryGap:
            return False
        return True

    def check(self, stime: int) -> None:
        """HistoryGap if changes after that time were not recorded, and nothing else makes up for it."""
        return  # gsync's own recorder finds what it has missed and records it

    @property
    def last_ts(self) -> int | None:
        """The end of the last slice that is listed."""
        return next((record.ts for htime in reversed(self._htimes()) if (record := htime.last())), None)

    def _htimes(self) -> list[Htime]:
        return [Htime(path) for _, path in layout.htime_paths(self.folder)]
