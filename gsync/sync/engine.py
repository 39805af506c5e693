"""What an engine is: it moves the data of a box of requests to a slave and says of each what became of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from gsync.model import Attrs, Gfid
from gsync.sync.postbox import Request, Result


class Source(Protocol):
    """Where the data comes from; used by several threads at once."""

    def open(self, gfid: Gfid) -> int:
        """A descriptor of the regular file with this identity, checked. FileNotFoundError if it is gone."""

    def attrs(self, fd: int) -> tuple[Attrs, list[tuple[bytes, bytes]]]:
        """Attributes and xattrs of an open file."""


Report = Callable[[Sequence[Result]], None]


class Engine(Protocol):
    """Moves data; one per syncer thread, used by that thread alone.

    `direct`: takes 'D' requests. Every request of a box is reported exactly once, by `move` or at the latest by
    `flush`. Raised instead, for all not reported yet: Transient when the link broke, SlaveError when the slave refused
    or as a whole cannot take data.
    """

    direct: bool

    def move(self, box: Sequence[Request], report: Report) -> None:
        """Move a box."""

    def flush(self, report: Report) -> None:
        """Report everything that is still out."""

    def abort(self) -> None:
        """Break off, from another thread: a running `move` or `flush` raises soon."""

    def close(self) -> None:
        """End what the engine runs at the slave."""


class Stopped(Exception):
    """The syncer is being closed."""


class Flow:
    """All that the threads of a syncer send: counted, and held to a rate by a token bucket.

    `pay` returns when that many bytes may go. The debt is unlimited, so a piece may be larger than the bucket: what
    follows waits the longer. rate: bytes a second, None = no limit; share: what each of `jobs` threads gets of it.
    """

    def __init__(self, rate: float | None = None, jobs: int = 1, clock: Callable[[], float] = time.monotonic,
                 wait: Callable[[float], object] | None = None, paused: Callable[[], bool] = lambda: False) -> None:
        self.rate = rate
        self.paused = paused
        self.share = None if rate is None else rate / jobs
        self.bytes = 0
        self._clock = clock
        self._stopped = threading.Event()
        self._wait = wait or self._stopped.wait
        self._lock = threading.Lock()
        self._free_at = clock()  # when all that was paid for will have gone
        self._burst = 0.1  # seconds that an idle line may catch up

    def pay(self, size: int) -> None:
        """Wait for the turn of `size` bytes; Stopped if the syncer is being closed."""
        with self._lock:
            self.bytes += size
            if self.rate is not None:
                now = self._clock()
                start = max(self._free_at, now - self._burst)
                self._free_at = start + size / self.rate
        if self.rate is not None and start > now:
            self._wait(start - now)
        while self.paused() and not self._stopped.wait(0.1):
            pass
        if self._stopped.is_set():
            raise Stopped

    def stop(self) -> None:
        """Let everyone who waits or comes go with Stopped."""
        self._stopped.set()
