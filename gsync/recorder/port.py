"""A brick that GlusterFS records, as a worker or a command sees it: the counterpart of status.RecorderPort."""

from __future__ import annotations

import threading
from collections.abc import Callable

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.errors import Transient
from gsync.changelog.layout import HistoryGap, covered_from
from gsync.master.gluster.record import BrickRecord
from gsync.recorder.status import FAULTY, RECORDING, RecorderPort, RecorderStatus
from gsync.state.gluster import BrickAt, GlusterInfo
from gsync.state.home import Brick, Volume

_LOOK_AGAIN = 0.1
_PATIENCE = 60.0  # s, and two rollovers


def port_of(volume: Volume, number: int = 0, stop: threading.Event | None = None) -> RecorderPort | BrickPort:
    """The recorder of one brick, for a volume of either kind."""
    brick = volume.brick(number)
    if volume.gluster is None:
        return RecorderPort(brick, stop)
    return BrickPort(volume.gluster, volume.gluster.bricks[number], brick, stop)


class BrickPort:
    """`meanwhile` is called again and again while waiting."""

    def __init__(self, info: GlusterInfo, at: BrickAt, brick: Brick, stop: threading.Event | None = None,
                 clock: Clock = SYSTEM_CLOCK) -> None:
        self.meanwhile: Callable[[], None] = lambda: None
        self._clock = clock
        self.record = BrickRecord(info, at, brick.changelogs, clock)
        self._changelogs = brick.changelogs.encode("utf-8", "surrogateescape")
        self._stop = stop or threading.Event()
        self._patience = _PATIENCE + 2 * info.rollover

    def holder(self) -> int | None:
        """The pid of the brick's process, None if none runs."""
        return self.record.pid()

    def status(self) -> RecorderStatus | None:
        try:
            complete, unbroken = self.record.look()
            watching = covered_from(self._changelogs)
            problem = self.record.problem(complete)
        except (HistoryGap, OSError) as exc:
            return RecorderStatus(FAULTY, f"changelogs cannot be read: {exc}", updated=self._clock.now(),
                                  watching_since=0)
        return RecorderStatus(
            FAULTY if problem else RECORDING, problem, pid=self.holder() or 0, detector="GlusterFS",
            gaps=self.record.gaps, unbroken_since=unbroken, watching_since=max(watching or 0, unbroken or 0),
            complete_up_to=complete, last_changelog=None if complete is None else self.record.last_ts,
            updated=self._clock.now())

    def poke(self) -> bool:
        """Does nothing: a brick closes its changelogs in its own time."""
        return False

    def wait_complete(self, until_ns: int) -> None:
        """Return once all changes up to then are listed. Transient if that does not come in time, or on stop."""
        end = self._clock.monotonic() + self._patience
        while (self.record.look()[0] or 0) < until_ns:
            self.meanwhile()
            if self._stop.wait(_LOOK_AGAIN):
                raise Transient("the brick was not waited for: asked to stop")
            if self._clock.monotonic() > end:
                raise Transient(f"the brick has not recorded up to now within {self._patience:.0f} s")
