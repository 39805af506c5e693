"""A posix brick's recorder: one per brick, from start to stop, through faults.

Promise: it reports whatever interrupts the recording (the root is gone, the disk is full, a crash), and resumes with a
gap scan as soon as it can. It never takes an empty mount point for a tree with everything deleted. Not here: the
recording itself (recording).
"""

from __future__ import annotations

import dataclasses
import os
import select
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.durable import make_dirs
from gsync.base.errors import Faulty, Stopped, UsageError
from gsync.base.log import get_logger
from gsync.base.model import NS, shown
from gsync.base.notify import Notifier
from gsync.base.process import Lock
from gsync.base.retry import Schedule, Tries
from gsync.changelog import retention
from gsync.changelog.archive import ChangelogArchive
from gsync.recorder import detectors
from gsync.recorder.bounds import BOUNDS, Bounds, Keep
from gsync.recorder.detector import DetectorFactory, Unavailable
from gsync.recorder.recording import Recording
from gsync.recorder.status import FAULTY, STOPPED, Control, RecorderStatus, write_status
from gsync.state.home import Home, NotThere, Volume

_log = get_logger(__name__)

GATHER = 0.02             # s: events may merge for this long before they are read again
RETRIES = Schedule(first=1.0, longest=60.0, lasted=60.0)  # s, from a fault to the next try, which scans the tree
PURGE_EVERY = 600.0       # s


class Recorder:
    """`run` does everything. A test calls start, then poll and close_slice of its result, and close.

    `ignored`: folders in the tree that are not part of it. `step` is called before each durable step.
    """

    def __init__(self, volume: Volume, *, ignored: Sequence[str] = (), detector: DetectorFactory = detectors.auto,
                 rollover: float = 1.0, quiet: float = 0.05, stop: threading.Event | None = None,
                 clock: Clock = SYSTEM_CLOCK, step: Callable[[str], None] = lambda name: None,
                 notifier: Notifier | None = None, bounds: Bounds = BOUNDS) -> None:
        self._volume = volume
        self._brick = volume.brick()
        self._ignored = ignored
        self._new_detector = detector
        self._rollover, self._quiet = rollover, quiet
        self._stop = stop or threading.Event()
        self._clock, self._step = clock, step
        self._lock = Lock(self._brick.lock, f"the recorder of volume {volume.name}")
        self._notifier = notifier or Notifier({})
        self._bounds = bounds
        self._recording: Recording | None = None
        self.status = RecorderStatus(pid=os.getpid())

    # the whole life

    def run(self) -> None:
        """Record until `stop` is set. LockedError if another process records; every other obstacle is waited out."""
        make_dirs(self._brick.folder)
        with self._lock:
            control = Control(self._brick.ctl)
            tries = Tries(RETRIES, self._clock.monotonic)
            self._notifier.ready()
            try:
                while not self._stop.is_set():
                    try:
                        recording = self.start()
                        tries.start()
                        self._follow(recording, control)
                    except NotThere as exc:
                        self._fail(str(exc), self._bounds.pace.root)
                    except (Faulty, Unavailable, OSError, sqlite3.Error) as exc:
                        self._fail(self._reason(exc), tries.fail())
            except Stopped:
                pass
            finally:
                self._notifier.stopping()
                self.close()
                control.close()
                self._publish(state=STOPPED)

    def start(self) -> Recording:
        """Open everything and scan the tree."""
        self._recording = Recording(self._volume, self._ignored, self._new_detector, self._publish,
                                    self._stop.is_set, self._clock, self._step, self._bounds)
        self._recording.scan()
        return self._recording

    def close(self) -> None:
        """Release everything as it is, as a crash would."""
        if self._recording is not None:
            self._recording.close()
            self._recording = None

    def _fail(self, reason: str, pause: float) -> None:
        self.close()
        if self.status.reason != reason:
            _log.error("recording is interrupted", reason=reason)
        self._publish(state=FAULTY, reason=reason)
        self._stop.wait(pause)

    def _reason(self, exc: Exception) -> str:
        if isinstance(exc, sqlite3.Error):
            return (f"index {self._brick.namespace}: {exc}; if it stays so, stop the recorder and remove the file: the "
                    "tree is then read anew")
        if isinstance(exc, OSError) and exc.filename is not None:
            return f"{shown(os.fsencode(exc.filename))}: {exc.strerror}"
        return str(exc)

    def _follow(self, recording: Recording, control: Control) -> None:
        """Read hints and close slices until told to stop."""
        began: float | None = self._clock.monotonic()  # when the current slice got its first hint
        deaf = 0.0
        hinted = heard = float("-inf")
        purged = self._clock.monotonic()
        while not self._stop.is_set():
            now = self._clock.monotonic()
            pause = heard + self._bounds.pace.heartbeat - now
            if began is not None:
                pause = max(min(began + self._rollover, hinted + self._quiet) - now, recording.until_next_ts())
            listening = now >= deaf
            pause = max(0.0, pause if listening else min(pause, deaf - now))
            events, asked = self._wait(recording, control, pause, listening)
            if events:
                deaf = self._clock.monotonic() + GATHER
                if recording.poll():
                    hinted = self._clock.monotonic()
                    began = began or hinted
            cut = asked and control.asked()
            now = self._clock.monotonic()
            due = began is not None and now >= min(began + self._rollover, hinted + self._quiet)
            if cut or due or now >= heard + self._bounds.pace.heartbeat:
                closed = recording.close_slice()
                began = None if closed and not recording.hinted else began or now
                heard = self._clock.monotonic()
            if now >= purged + PURGE_EVERY:
                purged = now
                self.purge()
        while not recording.close_slice():
            time.sleep(recording.until_next_ts())

    @staticmethod
    def _wait(recording: Recording, control: Control, seconds: float, listening: bool) -> tuple[bool, bool]:
        """Sleep until there are events (if listening) or a cut is requested; return which of them."""
        poller = select.poll()
        poller.register(control.fd, select.POLLIN)
        if listening:
            poller.register(recording.fileno(), select.POLLIN)
        fds = {fd for fd, _ in poller.poll(seconds * 1000 + 1)}
        return recording.fileno() in fds, control.fd in fds

    def _publish(self, **changes: Any) -> None:
        """Called during all work: by the loop every second, by a scan as it proceeds."""
        self._notifier.alive()
        self.status = dataclasses.replace(self.status, updated=self._clock.now(), **changes)
        try:
            write_status(self._brick.status, self.status)
        except OSError as exc:
            _log.warning("status cannot be written", path=self._brick.status, error=exc.strerror)

    def purge(self) -> None:
        """Delete or archive changelogs that the limits release and no session needs. Call it between start and
        close."""
        assert self._recording is not None
        keep = self._bounds.keep
        archive = ChangelogArchive(os.fsencode(self._brick.archive), keep.archive)
        purged = retention.purge(os.fsencode(self._brick.changelogs), self._clock.now() // NS, keep.seconds, keep.size,
                                 self._volume.needed_from(), archive, self._recording.forget)
        if purged.deleted:
            _log.info("old changelogs are deleted", changelogs=purged.deleted, bytes=purged.deleted_bytes)
        if purged.needed:
            _log.warning("changelogs are kept beyond the limits, a session needs them", changelogs=purged.needed)


def run_recorder(name: str, home: Home, *, detector: str = "auto", rollover: float = 1.0, quiet: float = 0.05,
                 stop: threading.Event | None = None, keep: Keep = BOUNDS.keep,
                 notifier: Notifier | None = None) -> None:
    """Record the volume `name` until `stop` is set. UsageError, LockedError."""
    volume = home.get(name)
    if volume.kind != "posix":
        raise UsageError(f"volume {name}: its bricks record their changelogs themselves")
    Recorder(volume, ignored=[home.path], detector=detectors.by_name(detector), rollover=rollover, quiet=quiet,
             stop=stop, bounds=Bounds(keep=keep), notifier=notifier).run()
