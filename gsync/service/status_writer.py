"""Writes worker.status from the worker's state and counters, with rate, lag and time left."""

from __future__ import annotations

import os
from collections import deque

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.log import get_logger
from gsync.base.model import NS
from gsync.base.process import start_time
from gsync.engine.snapshot import Crawl, Snapshot
from gsync.engine.worklist import ChangelogDB
from gsync.recorder.port import BrickPort
from gsync.recorder.status import RecorderPort
from gsync.service.failover import Alone
from gsync.session.checkpoint import Checkpoint
from gsync.session.report import recorder_report
from gsync.session.session import Session
from gsync.session.status import WorkerStatus
from gsync.state.home import Volume

_log = get_logger(__name__)

RATE_OVER = 5.0  # seconds over which the rate in status is averaged
_SAMPLES = 50


class Rate:
    """Files and bytes per second, averaged over the last RATE_OVER seconds."""

    def __init__(self) -> None:
        self._past: deque[tuple[float, int, int]] = deque(maxlen=_SAMPLES)

    def take(self, now: float, files: int, size: int) -> dict[str, float]:
        """The rate with these counters, at this time in seconds."""
        while self._past and now - self._past[0][0] > RATE_OVER:
            self._past.popleft()
        self._past.append((now, files, size))
        then, files_then, size_then = self._past[0]
        seconds = max(now - then, 0.001)
        return {"files": (files - files_then) / seconds, "bytes": (size - size_then) / seconds}


class StatusWriter:
    """Called with each snapshot of the worker."""

    def __init__(self, session: Session, volume: Volume, recorder: RecorderPort | BrickPort, db: ChangelogDB,
                 others: Alone, clock: Clock = SYSTEM_CLOCK) -> None:
        self._path = session.worker_status
        self._brick = volume.brick(session.part.brick).root if session.part else volume.path
        self._keep = session.options.changelog_retention
        self._checkpoint = Checkpoint(session.checkpoint, session.checkpoint_reached, clock.now)
        self._recorder, self._db, self._ledger, self._others = recorder, db, others.ledger, others
        self._clock = clock
        self._started = start_time(os.getpid())
        self._rate = Rate()

    def __call__(self, shown: Snapshot) -> None:
        if self._checkpoint.passed(shown.stime):
            _log.info("checkpoint reached", stime=shown.stime)
        status = self._status(shown)
        status.write(self._path)
        self._others.show(status)

    def _status(self, shown: Snapshot) -> WorkerStatus:
        pace, progress, loss = shown.pace, shown.progress, shown.loss
        rate = self._rate.take(self._clock.monotonic(), progress.files, shown.sent)
        entries, size = self._totals(shown)
        return WorkerStatus(
            pid=os.getpid(), started=self._started, state=shown.state, reason=shown.reason, crawl=pace.crawl,
            stime=shown.stime, entry_stime=shown.stime, last_synced=shown.last_synced, lag_seconds=self._lag(shown),
            pending=self._db.pending(), failures=self._ledger.count(), held=self._ledger.count_held(),
            left_out=dict(loss.counts) if loss else {}, lacks=[*loss.attributes, *loss.names] if loss else [],
            files_done=progress.files, bytes_done=shown.sent, files_total=entries, bytes_total=size, rate=rate,
            eta_seconds=_eta(None if entries is None else entries - progress.names, rate["files"]),
            phase=progress.phase, epoch=shown.epoch, in_step=pace.in_step, path=self._brick,
            recorder=recorder_report(self._recorder, shown.stime, self._keep, self._clock.now),
            updated=self._clock.now())

    def _totals(self, shown: Snapshot) -> tuple[int | None, int | None]:
        """Entries and bytes of the whole tree while it is crawled, if known."""
        recorder = self._recorder.status()
        if recorder is None or shown.pace.crawl is not Crawl.HYBRID or not recorder.entries:
            return None, None
        return recorder.entries, recorder.bytes

    def _lag(self, shown: Snapshot) -> float | None:
        if shown.pace.in_step or shown.stime is None:
            return shown.pace.lag_seconds
        return (self._clock.now() - shown.stime) / NS


def _eta(left: int | None, rate: float) -> float | None:
    """Seconds until this many entries are done."""
    return left / rate if left is not None and left > 0 and rate > 1 else None
