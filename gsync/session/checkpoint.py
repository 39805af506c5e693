"""A session's checkpoint: a time that is reached once every brick's stime has passed it.

Two files: the command writes `checkpoint`; the worker writes `checkpoint.reached` once its stime has passed that time.
The second file is ignored once a new checkpoint is set.
"""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gsync.base.durable import replace_file
from gsync.base.errors import UsageError

_TRIES = 5  # of reading a file that another node replaces at the same time


@dataclass(frozen=True)
class CheckpointProgress:
    """Times in ns since the epoch. reached_at: when a worker recorded it, None if none has yet."""

    time: int
    reached: bool
    reached_at: int | None


class Checkpoint:
    """The files: `path`, and `reached`, by default next to it."""

    def __init__(self, path: str, reached: str | None = None, now: Callable[[], int] = time.time_ns) -> None:
        self._path, self._reached = path, reached or f"{path}.reached"
        self._now = now
        self._noted: int | None = None

    def time(self) -> int | None:
        """ns since the epoch, None if none is set. UsageError if the file is damaged."""
        try:
            values = _read(self._path)
            return None if values is None else int(values["time"])
        except (ValueError, KeyError, TypeError) as exc:
            raise UsageError(f"{self._path}: damaged: {exc!r}; set the checkpoint again") from exc

    def wanted(self) -> int | None:
        """The same for a worker, which ignores a damaged file."""
        with suppress(UsageError, OSError):
            return self.time()
        return None

    def set(self, moment: int, stime: int | None = None) -> None:
        """Durably. stime: the slave already holds everything up to this time."""
        _write(self._path, {"time": moment, "set": self._now()})
        if stime is not None and stime >= moment:
            self._note(moment)

    def passed(self, stime: int | None) -> bool:
        """Record, durably, that the stime has passed the checkpoint; whether this was the first time."""
        moment = self.wanted()
        if stime is None or moment is None or moment == self._noted or stime < moment:
            return False
        with suppress(OSError):  # tried again with the next look
            first = self._reached_at(moment) is None
            if first:
                self._note(moment)
            self._noted = moment
            return first
        return False

    def progress(self, stime: int | None) -> CheckpointProgress | None:
        """How far it is with this stime; None if no checkpoint is set. UsageError if the file is damaged."""
        moment = self.time()
        if moment is None:
            return None
        at = self._reached_at(moment)
        return CheckpointProgress(moment, at is not None or (stime is not None and stime >= moment), at)

    def _note(self, moment: int) -> None:
        _write(self._reached, {"time": moment, "at": self._now()})

    def _reached_at(self, moment: int) -> int | None:
        with suppress(ValueError, KeyError, TypeError):
            values = _read(self._reached)
            if values is not None and values["time"] == moment:
                return int(values["at"])
        return None


def _read(path: str) -> dict[str, Any] | None:
    for tries in range(_TRIES):
        try:
            with open(path, encoding="ascii") as file:
                values: dict[str, Any] = json.load(file)
                return values
        except FileNotFoundError:
            return None
        except OSError as exc:
            if exc.errno != errno.ESTALE or tries == _TRIES - 1:
                raise
    return None


def _write(path: str, values: dict[str, int]) -> None:
    replace_file(path, json.dumps(values).encode("ascii") + b"\n")
