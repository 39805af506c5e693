"""When to stop: a signal, the kill file, or silence, noticed also in the middle of a transfer."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.errors import Stopped
from gsync.transfer.stores.store import Category, StoreError

_LOOK = 0.5  # seconds between two checks


class StopSignal:
    """stop: set by a signal. kill_file: "" for none. timeout: seconds of silence before a call is broken off."""

    def __init__(self, stop: threading.Event, kill_file: str = "", timeout: float = 300,
                 clock: Clock = SYSTEM_CLOCK) -> None:
        self._monotonic = clock.monotonic
        self._stop, self.kill_file, self.timeout = stop, kill_file, timeout
        self.signal: int | None = None  # the signal received
        self._looked = float("-inf")
        self._moved = self._monotonic()

    def end(self, number: int, _frame: object = None) -> None:
        """The handler of signals that end the work."""
        self.signal = number
        self._stop.set()

    def why(self) -> str:
        """The reason to end, "" if there is none."""
        if self._stop.is_set():
            return "stopped by a signal"
        if self.kill_file and os.path.lexists(self.kill_file):
            return f"the kill file {self.kill_file} exists"
        return ""

    def check(self, count: int = 0) -> None:
        """Raise Stopped if the work is to end. Call it for every piece: it also shows that bytes are moving."""
        now = self._moved = self._monotonic()
        if now - self._looked >= _LOOK or self._stop.is_set():
            self._looked = now
            if why := self.why():
                raise Stopped(why)

    def wait(self, seconds: float) -> None:
        """Pause for so long; raises Stopped as soon as the work is to end."""
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
        """Guard a call that may hang. When the work is to end, or nothing moves for `timeout`, another thread calls
        break_off; the error raised then gives that reason instead of the broken call's error."""
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
