"""The contract of engines: an engine moves the files of a box of requests to a slave and reports a result for each."""

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

_BURST = 0.1       # seconds of unused rate that an idle line may use later
_LOOK_AGAIN = 2.0  # seconds between two checks of the rate while waiting


class Source(Protocol):
    """Where the data comes from; used by several threads at once."""

    def open(self, gfid: Gfid) -> tuple[int, os.stat_result]:
        """Open the regular file with this identity, checked: its descriptor and attributes. FileNotFoundError if it is
        gone."""

    def fstat(self, fd: int) -> os.stat_result:
        """The present attributes of an open file, as they are to be sent."""

    def xattrs(self, gfid: Gfid, fd: int, st: os.stat_result) -> list[tuple[bytes, bytes]]:
        """The xattrs of an open file that is sent with the attributes st."""

    def changed(self, fd: int, st: os.stat_result) -> bool:
        """Whether an open file may have changed while it was read, since st."""


Report = Callable[[Sequence[Result]], None]


class Engine(Protocol):
    """Moves data; one per syncer thread, used by that thread alone.

    `direct`: takes 'D' requests. Every request of a box is reported exactly once, by `move` or at the latest by
    `flush`. Instead of reporting the rest, it raises Transient when the link broke, or SlaveError when the slave
    refuses or can take no data at all.
    """

    direct: bool

    def move(self, box: Sequence[FileRequest], report: Report) -> None:
        """Move a box."""

    def flush(self, report: Report) -> None:
        """Report every outstanding request."""

    def abort(self) -> None:
        """Abort from another thread: a running `move` or `flush` raises soon."""

    def close(self) -> None:
        """Stop what the engine runs at the slave."""


class Flow:
    """Counts what the threads of a syncer send, and limits it to a rate with a token bucket.

    `pay` returns once that many bytes may go. The debt is unlimited, so a piece may be larger than the bucket: the next
    one then waits longer. rate: bytes per second, or a timetable; None: no limit. `jobs` threads share it. Nothing is
    sent while `paused` is true.
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
        self._gone = 0.0    # bytes that may have been sent by now
        self._looked = clock()

    @property
    def rate(self) -> float | None:
        """The rate that is in force now."""
        return self._rate.rate(self._local()) if isinstance(self._rate, Timetable) else self._rate

    @property
    def share(self) -> float | None:
        """Bytes per second that each thread may send now."""
        rate = self.rate
        return None if rate is None else rate / self._jobs

    def pay(self, size: int) -> None:
        """Wait until `size` bytes may go. Stopped if the syncer is being closed."""
        with self._lock:
            turn = self.bytes
            self.bytes += size
        if self.limited:
            while (pause := self._until(turn)) > 0 and not self._stopped.is_set():
                self._wait(min(pause, _LOOK_AGAIN))
        self.hold()

    def hold(self) -> None:
        """Wait while sending is paused. Stopped if the syncer is being closed."""
        while self.paused() and not self._stopped.wait(0.1):
            pass
        if self._stopped.is_set():
            raise Stopped

    def _until(self, turn: int) -> float:
        """Seconds until all bytes up to `turn` are sent at the present rate."""
        rate = self.rate
        with self._lock:
            now = self._clock()
            if rate is None:
                self._gone = max(self._gone, float(self.bytes))
            else:  # an idle line may catch up a little, no more
                self._gone = min(self._gone + rate * (now - self._looked), max(self._gone, turn + rate * _BURST))
            self._looked = now
            return 0.0 if rate is None or self._gone > turn - 1 else (turn - self._gone) / rate

    def stop(self) -> None:
        """Raise Stopped in every waiting and every later call."""
        self._stopped.set()
