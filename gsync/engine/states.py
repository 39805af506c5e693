"""The states of a worker, and which may follow which: the one place that knows.

Initializing: connecting to the slave. Active: it replicates. Passive: another node's worker does. Paused: the admin
wants it to rest; the connection stands. Faulty: it cannot go on, `reason` says why. Stopped: it has ended.
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
    """What a worker is told to do."""

    RUN = "run"
    PAUSE = "pause"
    STOP = "stop"


_S = WorkerState
_NEXT = {
    _S.INITIALIZING: {_S.ACTIVE, _S.PASSIVE, _S.PAUSED, _S.FAULTY, _S.STOPPED},
    _S.ACTIVE: {_S.INITIALIZING, _S.PASSIVE, _S.PAUSED, _S.FAULTY, _S.STOPPED},
    _S.PASSIVE: {_S.INITIALIZING, _S.PAUSED, _S.FAULTY, _S.STOPPED},
    _S.PAUSED: {_S.INITIALIZING, _S.ACTIVE, _S.PASSIVE, _S.FAULTY, _S.STOPPED},
    _S.FAULTY: {_S.INITIALIZING, _S.ACTIVE, _S.PASSIVE, _S.PAUSED, _S.STOPPED},
    _S.STOPPED: set(),  # a new process begins anew
}


class Machine:
    """The state of one worker. Every change is logged and told to `changed`."""

    def __init__(self, changed: Callable[[], None] = lambda: None) -> None:
        self.state = WorkerState.INITIALIZING
        self.reason = ""
        self._changed = changed

    def to(self, state: WorkerState, reason: str = "") -> None:
        if (state, reason) == (self.state, self.reason):
            return
        if state is not self.state:
            if state not in _NEXT[self.state]:
                raise AssertionError(f"a worker cannot become {state} when it is {self.state}")
            _log.info("state", was=self.state, now=state, **({"reason": reason} if reason else {}))
        self.state, self.reason = state, reason
        self._changed()
