"""The status files that a session's processes write about themselves, for `gsync status`.

They are JSON, replaced in one step, not fsynced: a snapshot for people, which nothing acts upon. A file outlives its
writer, so it is believed only while the process that it names runs (pid and start time).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.durable import replace_file
from gsync.base.process import is_alive


def write_status(path: str, values: Mapping[str, Any]) -> None:
    """Replace the status file in one step."""
    replace_file(path, json.dumps(values).encode("ascii"), durable=False)


def read_status(path: str) -> dict[str, Any] | None:
    """The contents of the file, None if there is none or it cannot be read."""
    try:
        with open(path, encoding="ascii") as file:
            values = json.load(file)
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _no_pending() -> dict[str, int]:
    return {"entry": 0, "data": 0, "meta": 0}


def _no_rate() -> dict[str, float]:
    return {"files": 0.0, "bytes": 0.0}


@dataclass(frozen=True, slots=True)
class RecorderReport:
    """The state of a brick's recorder; last_changelog as RFC 3339. runway_seconds: see report.recorder_report."""

    state: str
    reason: str
    last_changelog: str | None
    runway_seconds: float | None


# Of several workers' states the first of these is that of all.
_WORST_FIRST = ("Faulty", "Initializing", "Paused", "Active", "Passive", "Stopped")


@dataclass(frozen=True, slots=True)
class WorkerStatus:
    """worker.status: what the worker of one brick does. Times in ns since the epoch, `started` as process.start_time.

    state: Initializing, Active, Passive, Faulty (with `reason`) or Stopped. crawl: Hybrid, History, Changelog or N/A.
    phase: connecting, crawling, syncing, committing or waiting. `pending` and the totals are of the whole backlog.
    """

    pid: int | None = None
    started: int | None = None
    state: str = "Initializing"
    reason: str = ""
    crawl: str = "N/A"
    stime: int | None = None
    entry_stime: int | None = None
    last_synced: int | None = None
    lag_seconds: float | None = None
    pending: dict[str, int] = field(default_factory=_no_pending)
    failures: int = 0
    held: int = 0
    left_out: dict[str, int] = field(default_factory=dict)  # attributes that the slave could not hold, by kind
    lacks: list[str] = field(default_factory=list)          # what the slave cannot hold, attributes and names
    files_done: int = 0
    bytes_done: int = 0
    files_total: int | None = None
    bytes_total: int | None = None
    rate: dict[str, float] = field(default_factory=_no_rate)
    eta_seconds: float | None = None
    phase: str = "connecting"
    epoch: int = 0
    in_step: bool = False
    path: str = ""                                          # of the brick
    recorder: RecorderReport | None = None
    updated: int = 0

    @classmethod
    def read(cls, path: str) -> WorkerStatus | None:
        values = read_status(path)
        if values is None:
            return None
        known = {f.name for f in fields(cls)}
        recorder = values.pop("recorder", None)
        return cls(**{key: value for key, value in values.items() if key in known},
                   recorder=RecorderReport(**recorder) if recorder else None)

    def write(self, path: str) -> None:
        write_status(path, asdict(self))

    @classmethod
    def note(cls, path: str, state: str, reason: str = "", clock: Clock = SYSTEM_CLOCK) -> None:
        """Write the status of a worker that is not running; what remains true of it is kept."""
        last = cls.read(path) or cls()
        cls(state=state, reason=reason, stime=last.stime, entry_stime=last.entry_stime, last_synced=last.last_synced,
            pending=last.pending, failures=last.failures, held=last.held, left_out=last.left_out, lacks=last.lacks,
            path=last.path, recorder=last.recorder,
            files_done=last.files_done, bytes_done=last.bytes_done, epoch=last.epoch,
            updated=clock.now()).write(path)

    @classmethod
    def of_all(cls, statuses: Sequence[WorkerStatus]) -> WorkerStatus:
        """The workers of a session, each with a part of the master, as one."""
        if len(statuses) == 1:
            return statuses[0]
        state = min((s.state for s in statuses), key=_WORST_FIRST.index)
        of_it = [s for s in statuses if s.state == state]
        first = next((s for s in of_it if not s.in_step), of_it[0])
        stimes = [s.stime for s in statuses if s.stime is not None]
        return cls(
            state=state, reason=next((s.reason for s in of_it if s.reason), ""), crawl=first.crawl, phase=first.phase,
            stime=min(stimes) if len(stimes) == len(statuses) else None,
            lag_seconds=max((s.lag_seconds for s in statuses if s.lag_seconds is not None), default=None),
            pending={kind: sum(s.pending[kind] for s in statuses) for kind in _no_pending()},
            failures=sum(s.failures for s in statuses), held=sum(s.held for s in statuses),
            lacks=sorted({kind for s in statuses for kind in s.lacks}),
            files_done=sum(s.files_done for s in statuses), bytes_done=sum(s.bytes_done for s in statuses),
            rate={kind: sum(s.rate[kind] for s in statuses) for kind in _no_rate()},
            in_step=all(s.in_step for s in statuses))

    @property
    def alive(self) -> bool:
        """Whether the worker that wrote this is still running."""
        return is_alive(self.pid, self.started)
