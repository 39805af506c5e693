"""The states of a worker: its activity (Life), and how status shows it (WorkerState).

Initializing: it connects to the slave. Active: it replicates. Passive: another node's worker replicates. Paused: the
admin has paused it; the connection stays open. Faulty: it cannot continue; `reason` says why. Stopped: it has ended.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, StrEnum

from gsync.base.log import get_logger

_log = get_logger(__name__)


class WorkerState(StrEnum):
    INITIALIZING = "Initializing"
    ACTIVE = "Active"
    PASSIVE = "Passive"
    PAUSED = "Paused"
    FAULTY = "Faulty"
    STOPPED = "Stopped"


class Order(Enum):
    """An order to a worker."""

    RUN = "run"
    PAUSE = "pause"
    STOP = "stop"


class Life(Enum):
    """A worker's activity."""

    CLAIM = "claiming the lease"
    WAIT = "another worker holds the lease"
    STAND_DOWN = "leaves the lease to others"      # its own recorder is Faulty
    CONNECT = "connecting"
    WORK = "replicating"
    HINDERED = "its recorder is Faulty"            # connected
    APART = "leaves the slave to others"           # nothing to do; several workers bring their parts to the slave
    REJOIN = "connecting for its turn"
    REST = "waits before it connects again"
    END = "ended"


# How each is shown. Claiming is short, so the state before it stays visible.
_SHOWN = {
    Life.WAIT: WorkerState.PASSIVE, Life.STAND_DOWN: WorkerState.FAULTY, Life.CONNECT: WorkerState.INITIALIZING,
    Life.WORK: WorkerState.ACTIVE, Life.HINDERED: WorkerState.FAULTY, Life.APART: WorkerState.ACTIVE,
    Life.REJOIN: WorkerState.ACTIVE, Life.REST: WorkerState.FAULTY, Life.END: WorkerState.STOPPED,
}


class Machine:
    """Shows a worker's activity: logs every change and calls `changed`."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self.shown = WorkerState.INITIALIZING
        self.reason = ""
        self._life, self._paused = Life.CLAIM, False
        self._unpaused = self.shown, self.reason
        self._changed = changed

    def enter(self, life: Life, reason: str = "") -> None:
        """`reason`: for a state that is shown as Faulty."""
        assert self._life is not Life.END, "a worker that has ended does not go on"
        self._life = life
        if life in _SHOWN:
            self._unpaused = _SHOWN[life], reason
            self._show()

    def pause(self) -> None:
        self._paused = True
        self._show()

    def resume(self) -> None:
        self._paused = False
        self._show()

    def _show(self) -> None:
        shown, reason = self._unpaused
        if self._paused and self._life is not Life.END:
            shown, reason = WorkerState.PAUSED, ""
        if (shown, reason) == (self.shown, self.reason):
            return
        if shown is not self.shown:
            _log.info("state", was=self.shown, now=shown, **({"reason": reason} if reason else {}))
        self.shown, self.reason = shown, reason
        self._changed()
