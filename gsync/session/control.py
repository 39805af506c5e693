"""The wanted state of a session: the file `wanted`, which commands write, and which monitors and workers read.

No process is asked anything: each one sees the file change and acts by itself, on every node.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.durable import replace_file
from gsync.base.errors import UsageError
from gsync.engine.states import Order
from gsync.session.session import Session


class Wanted(StrEnum):
    CREATED = "Created"
    STARTED = "Started"
    PAUSED = "Paused"
    STOPPED = "Stopped"


def read_wanted(session: Session) -> Wanted:
    """Created if nothing was written yet. UsageError if the file is damaged; OSError if it cannot be read."""
    _check_there(session)
    try:
        with open(session.wanted, encoding="ascii") as file:
            return Wanted(json.load(file)["state"])
    except FileNotFoundError:
        return Wanted.CREATED
    except (ValueError, KeyError, TypeError) as exc:
        raise UsageError(f"{session.wanted}: damaged: {exc!r}; start or stop the session to rewrite it") from exc


def _check_there(session: Session) -> None:
    """OSError if the directory of all sessions is missing: then a missing file means nothing."""
    os.stat(os.path.dirname(session.shared))


def write_wanted(session: Session, wanted: Wanted, clock: Clock = SYSTEM_CLOCK) -> None:
    """Durably and in one step."""
    data = json.dumps({"state": wanted.value, "since": clock.now()}).encode("ascii") + b"\n"
    replace_file(session.wanted, data)


Print = tuple[int, int, int] | None


def file_print(path: str) -> Print:
    """Tells one version of a file from another; None if there is no file."""
    try:
        st = os.stat(path)
    except FileNotFoundError:
        return None
    return st.st_ino, st.st_mtime_ns, st.st_size


@dataclass
class _Seen:
    at: float = -1.0
    wanted: Print = None
    order: Order = Order.RUN


class SessionOrders:
    """The orders for one worker, from the session's files. Cheap enough to be called all the time, from any thread.

    The worker stops when the session is stopped or gone, and when one of `settings` (files) has changed: the monitor
    then restarts it. While a meta volume does not answer, the last order stays valid.
    """

    def __init__(self, session: Session, settings: Sequence[str], clock: Callable[[], float] = time.monotonic,
                 every: float = 0.2) -> None:
        self._session = session
        self._settings = {path: file_print(path) for path in settings}
        self._clock = clock
        self._every = every
        self._seen = _Seen()

    def __call__(self) -> Order:
        now = self._clock()
        if now - self._seen.at >= self._every:
            try:
                self._seen = self._look(now)
            except (OSError, UsageError):
                self._seen = _Seen(now, self._seen.wanted, self._seen.order)
        return self._seen.order

    def _look(self, now: float) -> _Seen:
        _check_there(self._session)
        if any(file_print(path) != before for path, before in self._settings.items()):
            return _Seen(now, None, Order.STOP)
        found = file_print(self._session.wanted)
        if found is not None and found == self._seen.wanted:
            return _Seen(now, found, self._seen.order)
        wanted = read_wanted(self._session)
        order = {Wanted.STARTED: Order.RUN, Wanted.PAUSED: Order.PAUSE}.get(wanted, Order.STOP)
        return _Seen(now, found, order)
