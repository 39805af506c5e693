"""What a GlusterFS brick has recorded, and whether it has missed anything; read from its changelogs folder alone.

A brick closes a slice every rollover-time and lists it in HTIME, empty or not: the last one listed tells up to when all
changes are there. A hole in the list is a time in which the brick did not run, or hung; the start of its process ends
another. Changes that the other bricks of its set took meanwhile are in none of its changelogs. Neither are the last
changes of a process that was killed: a change is recorded after it is made. Both are gaps.
A slice counts once everybody can see the changes that it records (GlusterInfo.settles).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.model import NS
from gsync.base.process import start_time, started_at
from gsync.changelog import layout
from gsync.changelog.htime import Htime
from gsync.changelog.layout import Changelog, HistoryGap
from gsync.changelog.reader import History
from gsync.state.gluster import CHANGELOG, BrickAt, GlusterInfo

_PIDS = "/run/gluster/vols"
_LATE = 3                # a brick that lists nothing for this many rollovers counts as down
_HOLE = 2.5              # a longer distance between two slices, in rollovers, is more than a busy machine explains
_AT_ONCE = NS            # a slice's ts is in whole seconds
_SHORTEST = 40.0         # s: a rollover takes an fsync, however short rollover-time is
_ARBITER = 2.0           # s: an arbiter finishes a write at once, while the data bricks may still be busy with it


class BrickRecord:
    """The recording of one brick, in the terms of a recorder's status (recorder/status.py), times in ns:
    `complete_up_to`, `unbroken_since`, and `gaps`, a number that changes with each gap."""

    def __init__(self, info: GlusterInfo, brick: BrickAt, folder: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._info, self._brick = info, brick
        self._folder = os.fsencode(folder)
        self._pid_file = os.path.join(_PIDS, info.name, f"{brick.host}-{brick.path.strip('/').replace('/', '-')}.pid")
        self._rollover = info.rollover
        self._seen: tuple[bytes, int] = (b"", 0)   # HTIME file, its size
        self._last = self._since = 0               # s: the last slice looked at; the start of the unbroken part
        self._listed_at = self._clock.monotonic()
        self._set_back = False                     # the clock was set back, and has not caught up yet
        self._process: tuple[int, int, int] = (0, 0, 0)   # pid, start in ticks, start in ns

    @property
    def last_ts(self) -> int:
        return self._last

    def pid(self) -> int | None:
        """The brick's process, None if none runs."""
        try:
            with open(self._pid_file, encoding="ascii") as file:
                pid = int(file.read())
        except (OSError, ValueError):
            return None
        started = start_time(pid)
        if started is None:
            return None
        if self._process[:2] != (pid, started):
            self._process = pid, started, started_at(pid) or 0
        return pid

    @property
    def gaps(self) -> int:
        """The number of gaps as of the last look."""
        return self._since + self._process[1]

    def look(self) -> tuple[int | None, int | None]:
        """(complete up to, unbroken since) in ns, according to the list; None where nothing is listed."""
        files = layout.htime_paths(self._folder)
        if not files:
            return None, None
        start, path = files[-1]
        size = os.path.getsize(path)
        if self._seen[0] != path or size < self._seen[1]:
            self._seen, self._last, self._since = (path, 0), start, start
        if size != self._seen[1]:
            settled = self.settled()
            newest = Htime(path).last()
            self._set_back = self._set_back or (newest is not None and newest.ts < self._last)
            for record in Htime(path).records_after(self._last):
                if settled is not None and record.ts * NS > settled:
                    break
                if record.ts < self._last:
                    self._set_back = True
                    continue
                if self._set_back:      # slices recorded until then are not searched for
                    self._since, self._set_back = record.ts, False
                if record.ts - self._last > max(_HOLE * self._rollover + 2, _SHORTEST):
                    self._since = record.ts
                self._last = record.ts
            else:
                self._seen = path, size
            self._listed_at = self._clock.monotonic()
        since = self._since * NS
        if self.pid() is not None:
            since = max(since, self._process[2])
        return self._last * NS - _AT_ONCE, since

    def settled(self) -> int | None:
        """The end (ns) of the slices that count now; None: all of them."""
        seconds = self._info.settles or (_ARBITER if self._brick.arbiter else 0)
        return self._clock.now() - int(seconds * NS) if seconds else None

    def problem(self, complete_up_to: int | None) -> str:
        """Why the brick does not record now; "" if it does."""
        switch_on = f"gluster volume set {self._info.name} {CHANGELOG} on"
        if complete_up_to is None:
            return f"brick {self._brick} has no changelogs: {switch_on}"
        patience = max(_LATE * self._rollover, _SHORTEST)
        late = self._clock.now() - complete_up_to > patience * NS + 2 * _AT_ONCE
        if self.pid() is None:
            return f"brick {self._brick} does not run: gluster volume status {self._info.name}"
        if self._set_back:
            return f"the clock of brick {self._brick} was set back: when it has caught up, all is looked at"
        if late and self._clock.monotonic() - self._listed_at > patience:
            how = f": {switch_on}" if CHANGELOG in self._info.lacks() else ""
            return f"brick {self._brick} has recorded nothing for {(self._clock.now() - complete_up_to) // NS} s{how}"
        return ""


class BrickHistory(History):
    """The changelogs of a brick; complete only as far back as the brick missed nothing."""

    def __init__(self, folder: bytes, record: BrickRecord) -> None:
        super().__init__(folder)
        self._record = record

    def since(self, start: int, end: int | None = None) -> Iterator[Changelog]:
        return super().since(start, min((t for t in (end, self._record.settled()) if t is not None), default=None))

    def covered_from(self) -> int | None:
        covered, since = super().covered_from(), self._record.look()[1]
        return None if covered is None or since is None else max(covered, since)

    def check(self, stime: int) -> None:
        covered = self.covered_from()
        if covered is None or covered > stime:
            raise HistoryGap("the brick was down, or did not record")
