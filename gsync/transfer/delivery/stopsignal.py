"""When to stop: the order to end, the kill file, and silence, seen also in the middle of a transfer."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.errors import Stopped
from gsync.transfer.stores.store import Category, StoreError

_LOOK = 0.5  # seconds between two looks


class StopSignal:
    """stop: set from outside, by a signal. kill_file: "" for none. timeout: seconds of silence that are too many."""

    def __init__(self, stop: threading.Event, kill_file: str = "", timeout: float = 300,
                 clock: Clock = SYSTEM_CLOCK) -> None:
        self._monotonic = clock.monotonic
        self._stop, self.kill_file, self.timeout = stop, kill_file, timeout
        self.signal: int | None = None  # the one that gave the order
        self._looked = float("-inf")
        self._moved = self._monotonic()

    def end(self, number: int, _frame: object = None) -> None:
        """The handler of signals that end it."""
        self.signal = number
        self._stop.set()

    def why(self) -> str:
        """Why it is to end, "" while it is not."""
        if self._stop.is_set():
            return "stopped by a signal"
        if self.kill_file and os.path.lexists(self.kill_file):
            return f"the kill file {self.kill_file} exists"
        return ""

    def check(self, count: int = 0) -> None:
        """Raise Stopped if it is to end. Called for every piece: it says too that something moves."""
        now = self._moved = self._monotonic()
        if now - self._looked >= _LOOK or self._stop.is_set():
            self._looked = now
            if why := self.why():
                raise Stopped(why)

    def wait(self, seconds: float) -> None:
        """Pause so long; Stopped as soon as it is to end."""
        until = self._monotonic() + seconds
        while True:
            if why := self.why():
                raise Stopped(why)
            left = until - self._monotonic()
            if left <= 0:
                return
            self._stop.wait(min(left, _LOOK))

    @contextmanager
    def watch(self, break_off: Callable[[], None]) -> Iterator[None]:
        """Around something that may hang: when it is to end, or nothing moves for `timeout`, break_off is called from
        another thread; what is raised then says why instead of what the broken call said."""
        over = threading.Event()
        found: list[BaseException] = []
        self._moved = self._monotonic()

        def look() -> None:
            while not over.wait(_LOOK):
                why = self.why()
                if why:
                    found.append(Stopped(why))
                elif self._monotonic() - self._moved > self.timeout:
                    found.append(StoreError(f"no data for {self.timeout:g} s", Category.STORE_DOWN))
                if found:
                    break_off()
                    return

        watcher = threading.Thread(target=look, name="watch")
        watcher.start()
        try:
            yield
        except Exception as exc:
            over.set()
            watcher.join()
            if found:
                raise found[0] from exc
            raise
        finally:
            over.set()
            watcher.join()
        if found:
            raise found[0]
