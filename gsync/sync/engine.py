"""What an engine is: it moves the data of a box of requests to a slave and says of each what became of it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from gsync.base.errors import Stopped
from gsync.base.model import Gfid
from gsync.sync.postbox import FileRequest, Result
from gsync.sync.timetable import Timetable

_BURST = 0.1       # seconds that an idle line may catch up
_LOOK_AGAIN = 2.0  # seconds after which who waits looks whether the rate has changed


class Source(Protocol):
    """Where the data comes from; used by several threads at once."""

    def open(self, gfid: Gfid) -> tuple[int, os.stat_result]:
        """A descriptor of the regular file with this identity, checked, and what fstat told of it.
        FileNotFoundError if it is gone."""

    def fstat(self, fd: int) -> os.stat_result:
        """What fstat tells of an open file now, as it is to be sent."""

    def xattrs(self, gfid: Gfid, fd: int, st: os.stat_result) -> list[tuple[bytes, bytes]]:
        """The xattrs of an open file that is sent with the attributes st."""

    def changed(self, fd: int, st: os.stat_result) -> bool:
        """Whether what was read of an open file since st may be of different times."""


Report = Callable[[Sequence[Result]], None]


class Engine(Protocol):
    """Moves data; one per syncer thread, used by that thread alone.

    `direct`: takes 'D' requests. Every request of a box is reported exactly once, by `move` or at the latest by
    `flush`. Raised instead, for all not reported yet: Transient when the link broke, SlaveError when the slave refused
    or as a whole cannot take data.
    """

    direct: bool

    def move(self, box: Sequence[FileRequest], report: Report) -> None:
        """Move a box."""

    def flush(self, report: Report) -> None:
        """Report everything that is still out."""

    def abort(self) -> None:
        """Break off, from another thread: a running `move` or `flush` raises soon."""

    def close(self) -> None:
        """End what the engine runs at the slave."""


class Flow:
    """All that the threads of a syncer send: counted, and held to a rate by a token bucket.

    `pay` returns when that many bytes may go. The debt is unlimited, so a piece may be larger than the bucket: what
    follows waits the longer. rate: bytes a second, or by the time of the week; None = no limit. It is shared by `jobs`
    threads. While `paused` says so nothing goes.
    """

    def __init__(self, rate: float | Timetable | None = None, jobs: int = 1,
                 clock: Callable[[], float] = time.monotonic, wait: Callable[[float], object] | None = None,
                 paused: Callable[[], bool] = lambda: False,
                 local: Callable[[], time.struct_time] = time.localtime) -> None:
        self.limited = rate.limits if isinstance(rate, Timetable) else rate is not None
        self.paused = paused
        self.bytes = 0
        self._rate = rate
        self._jobs = jobs
        self._clock, self._local = clock, local
        self._stopped = threading.Event()
        self._wait = wait or self._stopped.wait
        self._lock = threading.Lock()
        self._gone = 0.0    # bytes that may have gone by now
        self._looked = clock()

    @property
    def rate(self) -> float | None:
        """What holds now."""
        return self._rate.rate(self._local()) if isinstance(self._rate, Timetable) else self._rate

    @property
    def share(self) -> float | None:
        """What each thread may send a second, now."""
        rate = self.rate
        return None if rate is None else rate / self._jobs

    def pay(self, size: int) -> None:
        """Wait for the turn of `size` bytes; Stopped if the syncer is being closed."""
        with self._lock:
            turn = self.bytes
            self.bytes += size
        if self.limited:
            while (pause := self._until(turn)) > 0 and not self._stopped.is_set():
                self._wait(min(pause, _LOOK_AGAIN))
        self.hold()

    def hold(self) -> None:
        """Wait while it is paused; Stopped if the syncer is being closed."""
        while self.paused() and not self._stopped.wait(0.1):
            pass
        if self._stopped.is_set():
            raise Stopped

    def _until(self, turn: int) -> float:
        """Seconds until all bytes up to `turn` have gone, at the rate of now."""
        rate = self.rate
        with self._lock:
            now = self._clock()
            if rate is None:
                self._gone = max(self._gone, float(self.bytes))
            else:  # an idle line may catch up on a moment, no more
                self._gone = min(self._gone + rate * (now - self._looked), max(self._gone, turn + rate * _BURST))
            self._looked = now
            return 0.0 if rate is None or self._gone > turn - 1 else (turn - self._gone) / rate

    def stop(self) -> None:
        """Let everyone who waits or comes go with Stopped."""
        self._stopped.set()
