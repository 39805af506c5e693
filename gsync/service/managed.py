"""A kept process under a monitor: found by its lock or started, watched, stopped when it is no longer wanted.

Promise: it never runs twice, since the lock file decides; it is independent of the monitor that started it. Not here:
which processes are wanted (monitor), and their work.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from gsync.base.log import get_logger
from gsync.base.process import Lock
from gsync.base.retry import Schedule
from gsync.service.kept import DONE, DONE_WITH_FAILURES, LOCKED, RESTARTS, Ending, KeptProcess, Process, ProcessSpec
from gsync.session.control import Print, file_print

_log = get_logger(__name__)

SHORT = 2.0     # s: a process that exits in order, but sooner than this, is not restarted at once


def is_ours(running: Process) -> bool:
    """Whether a monitor may stop this process that holds the lock."""
    return "--managed" in running.argv()


class Managed(KeptProcess):
    """One process that should or should not run. ours: whether the monitor may stop a process that it found."""

    def __init__(self, spec: ProcessSpec, schedule: Schedule = RESTARTS, clock: Callable[[], float] = time.monotonic,
                 launch: Callable[[ProcessSpec], Process] = Process.start,
                 ours: Callable[[Process], bool] = is_ours) -> None:
        super().__init__(spec, launch, schedule, clock)
        self.wanted = False
        self._ours = ours
        self._lock = Lock(spec.lock, spec.name)
        self._hindered = ""         # why it must not be started now
        self._unwanted = 0.0        # since when
        self._signals = 0           # how many signals it has got since then
        self._killed = ""           # why it was killed
        self._heard: tuple[Print, float] = None, 0.0
        self._log = _log.bind(name=spec.name)

    def want(self, wanted: bool, anew: bool = False) -> None:
        """Say whether it should run. anew: an earlier reason to pause before the next start may be gone."""
        if wanted != self.wanted:
            self.wanted = wanted
            self._unwanted, self._signals = self._clock(), 0
            anew = True
            if not wanted and self.running is None:
                self._find()
                if self.running is None:
                    self._note("")
        if anew:
            self.tries.succeed()
            self.tries.wait(0.0)

    def hinder(self, reason: str) -> None:
        """Do not start it while there is a reason; "": there is none."""
        if reason != self._hindered:
            self._hindered = reason
            if reason and self.wanted and self.running is None:
                self._note(reason)

    def renew(self, spec: ProcessSpec) -> None:
        """Take its changed spec. A process that was started with other settings is restarted."""
        self.spec = spec
        running = self.running
        if running is not None and self._ours(running) and not spec.suits(running.argv()):
            self._log.info("restarting, its settings have changed", pid=running.pid)
            running.send(signal.SIGTERM)

    def step(self) -> None:
        """Do everything that is due now."""
        if self.running is None:
            self._find()
        pid = self.running.pid if self.running is not None else 0
        ending = self.reap()
        if ending is not None:
            self._ended(pid, ending)
        if self.running is None:
            if self.wanted and not self._hindered and self.tries.is_due():
                self._start()
        elif not self.wanted:
            self._ask_to_end(self.running)
        else:
            self._listen(self.running)

    def begin(self, running: Process) -> Process:
        self._killed = ""
        self._signals = 0
        self._heard = file_print(self.spec.status.path), self._clock()
        return super().begin(running)

    def _find(self) -> None:
        found = Process.holder(self._lock, self.spec.said)
        if found is not None:
            self._log.info("found running", pid=found.pid)
            self.begin(found)
            self.renew(self.spec)

    def _start(self) -> None:
        try:
            child = self.start()
        except OSError as exc:
            self._fail(f"{self.spec.name} cannot be started: {exc.strerror}")
            return
        self._log.info("started", pid=child.pid)

    def _ended(self, pid: int, ending: Ending) -> None:
        code = ending.code
        if code == DONE or (code in (None, DONE_WITH_FAILURES)     # 1 is the exit code of a crash too
                            and self.spec.status.says_stopped(pid)):
            self._log.info("exited", pid=pid)
            self.again(0.0 if self.age > SHORT else None)
            if self.wanted and self._hindered:
                self._note(self._hindered)
        elif code == LOCKED and self._lock.holder() is not None:
            self.again(0.0)  # another starter was faster; the next step finds its process
        elif not self.wanted:
            self._log.info("exited", pid=pid, code="unknown" if code is None else code)
            self._note("")
        else:
            self._fail(self._killed or ending.line)

    def _fail(self, reason: str) -> None:
        pause = self.again()
        self._log.warning("not running", reason=reason, next_start_in=pause)
        self._note(self._hindered or reason)

    def _note(self, faulty: str) -> None:
        """Write into its status why it is not running; "": because it should not."""
        try:
            self.spec.status.note("Faulty" if faulty else "Stopped", faulty)
        except OSError as exc:
            self._log.warning("cannot write the status", error=exc)

    def _ask_to_end(self, running: Process) -> None:
        if not self._ours(running):
            return
        left = self.spec.end[self._signals:]
        if left and self._clock() - self._unwanted >= left[0][0]:
            self._signals += 1
            self._log.info("stopping", pid=running.pid, signal=left[0][1].name)
            running.send(left[0][1])

    def _listen(self, running: Process) -> None:
        now, silence = self._clock(), self.spec.silence
        seen = file_print(self.spec.status.path)
        if seen != self._heard[0]:
            self._heard = seen, now
        elif now - self._heard[1] > silence and not self._killed and self._ours(running):
            self._killed = f"{self.spec.name} was silent for {silence:.0f} s and was killed"
            self._log.error(f"killed after {silence:.0f} s of silence", pid=running.pid)
            running.send(signal.SIGKILL)
