"""A worker's published state: kept here, and published now and then and at every change of state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gsync.base.clock import Clock
from gsync.engine.parts import Listeners
from gsync.engine.progress import Progress
from gsync.engine.snapshot import Pace, Snapshot

STATUS_EVERY = 0.5  # seconds


class Display:
    """snapshot: makes the published value. last_synced: the stime (ns) that was seen to be reached."""

    def __init__(self, snapshot: Callable[[], Snapshot], listeners: Listeners, clock: Clock) -> None:
        self._snapshot, self._listeners, self._clock = snapshot, listeners, clock
        self._published_at = float("-inf")
        self.progress = Progress()
        self.pace = Pace()
        self.last_synced: int | None = None

    def goes(self, **changes: Any) -> None:
        """Change these fields of the pace."""
        self.pace = replace(self.pace, **changes)

    def synced(self, stime: int) -> None:
        self.last_synced = stime
        self._listeners.stime_kept(stime)

    def show(self) -> None:
        """Publish, unless that was just done. Every long operation calls this again and again."""
        if self._clock.monotonic() - self._published_at > STATUS_EVERY:
            self._published_at = self._clock.monotonic()
            self.publish()

    def publish(self) -> None:
        self._listeners.publish(self._snapshot())
