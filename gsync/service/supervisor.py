"""`gsync run`: keeps a recorder and a worker running until it is told to stop, or the work is done. A GlusterFS volume
has a worker for each subvolume, and no recorder, since its bricks record.

Promise: all children exit when the supervisor does, for whatever reason; a child that dies is restarted with growing
pauses; a recorder that ran before is used and left running. Convergence needs none of this: a child may be killed at
any moment. Not here: the work of the children, and showing progress (the Observer).
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gsync.base.log import get_logger
from gsync.base.process import Lock
from gsync.base.retry import Schedule
from gsync.service.kept import (
    DONE,
    DONE_WITH_FAILURES,
    GRACE,
    INTERNAL,
    LOCKED,
    RESTARTS,
    SLAVE,
    USAGE,
    Attached,
    Ending,
    KeptProcess,
    Process,
    ProcessSpec,
    Wakeups,
)
from gsync.session.status import WorkerStatus

log = get_logger(__name__)


class Observer(Protocol):
    """Watches a run."""

    def heard(self, child: str, line: str) -> None:
        """A line that the child wrote."""

    def ended(self, child: str, ending: Ending, pause: float | None) -> None:
        """The child exited; it is restarted in `pause` seconds; None: it is not restarted."""

    def tick(self, statuses: Sequence[WorkerStatus]) -> None:
        """Called a few times per second with the status of each worker."""


@dataclass(frozen=True)
class Attempts:
    """How long a run tries. look: seconds between two looks at the status. tries: with --once, failed starts in a row
    before the run gives up. locked_tries: starts, `look` apart, while an earlier run's worker is still stopping."""

    look: float = 0.25
    tries: int = 4
    locked_tries: int = 20


class _Worker(KeptProcess):
    """The supervisor writes its status while it is not running. done: how it exited, once its work is done."""

    done: Ending | None = None
    was_active = False
    locked = 0

    def look(self) -> WorkerStatus:
        """The status of each worker."""
        status = WorkerStatus.read(self.spec.status.path) or WorkerStatus()
        if self.running is not None and status.pid == self.running.pid and status.state == "Active":
            self.was_active = True
        return status


class Supervisor:
    """Runs the children."""

    def __init__(self, workers: Sequence[ProcessSpec], recorder: ProcessSpec | None, observer: Observer, *, once: bool,
                 schedule: Schedule = RESTARTS, patience: Attempts | None = None,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._workers = [_Worker(spec, self._launch, schedule, clock) for spec in workers]
        self._recorder = KeptProcess(recorder, self._launch, schedule, clock) if recorder else None
        self._observer = observer
        self._once = once
        self._patience = patience or Attempts()
        self._clock = clock
        self._wakeups = Wakeups()

    @property
    def signal(self) -> signal.Signals | None:
        """The signal that ended the run, if one did."""
        return self._wakeups.asked

    def run(self) -> Ending:
        """Run until the work is done or impossible, or a signal (kept in `signal`) says stop."""
        ending = Ending(INTERNAL, "")
        for worker in self._workers:
            worker.spec.status.note("Initializing")
        with self._wakeups:
            try:
                ending = self._keep_running()
            finally:
                self._end_children()
                reason = ending.line if ending.code not in (DONE, DONE_WITH_FAILURES) else ""
                for worker in self._workers:
                    worker.spec.status.note("Stopped", reason)
        return ending

    def look(self) -> list[WorkerStatus]:
        """The status of each worker."""
        return [worker.look() for worker in self._workers]

    def _launch(self, spec: ProcessSpec) -> Process:
        return Attached(spec.argv, lambda line: self._observer.heard(spec.name, line))

    def _keep_running(self) -> Ending:
        while self.signal is None:
            final = self._step()
            if final is not None:
                return final
            self._observer.tick(self.look())
            self._wakeups.wait(self._patience.look, self._all)
        return Ending(DONE, "")

    @property
    def _all(self) -> list[KeptProcess]:
        """In the order of starting and ending them: a worker takes longer to reach its first file."""
        return [*self._workers, *([self._recorder] if self._recorder else [])]

    def _step(self) -> Ending | None:
        """Look after the children once; return how the run ends, None while it continues."""
        for kept in self._all:
            if kept.running is not None:
                if isinstance(kept, _Worker) and kept.running.ended():
                    self._observer.tick(self.look())  # its last words
                ended = kept.reap()
                final = self._ended(kept, ended) if ended is not None else None
                if final is not None:
                    return final
            elif kept.tries.is_due() and self._is_needed(kept):
                kept.start()
        return None

    def _is_needed(self, kept: KeptProcess) -> bool:
        if isinstance(kept, _Worker):
            return kept.done is None
        if Lock(kept.spec.lock, kept.spec.name).holder() is None:
            return True
        kept.again(self._patience.look)  # it may exit while this run continues
        return False

    def _ended(self, kept: KeptProcess, ending: Ending) -> Ending | None:
        return self._worker_ended(kept, ending) if isinstance(kept, _Worker) else self._recorder_ended(kept, ending)

    def _recorder_ended(self, recorder: KeptProcess, ending: Ending) -> Ending | None:
        if ending.code == LOCKED:  # another recorder was a moment faster, and will do
            recorder.again(self._patience.look)
            return None
        if ending.code == USAGE:
            return ending
        return self._restart(recorder, ending)

    def _worker_ended(self, worker: _Worker, ending: Ending) -> Ending | None:
        if ending.code in (DONE, DONE_WITH_FAILURES) and self._once:
            worker.done = ending
            ends = [each.done for each in self._workers]
            return None if None in ends else max(filter(None, ends), key=lambda end: end.code or DONE)
        if ending.code == LOCKED and worker.locked < self._patience.locked_tries:
            worker.locked += 1
            worker.again(self._patience.look)
            return None
        if ending.code in (USAGE, LOCKED) or (ending.code == SLAVE and (self._once or not worker.was_active)):
            return ending
        worker.locked = 0
        return self._restart(worker, ending)

    def _restart(self, kept: KeptProcess, ending: Ending) -> Ending | None:
        pause = kept.again()
        if self._once and (ending.code or 0) > 0 and kept.tries.failed >= self._patience.tries:
            return ending
        if isinstance(kept, _Worker):
            kept.spec.status.note("Faulty", ending.line)
        self._observer.ended(kept.spec.name, ending, pause)
        return None

    def _end_children(self) -> None:
        """Send SIGTERM, allow time for an orderly exit, then send SIGKILL. A second SIGINT or SIGTERM shortens the
        time."""
        asked, self._wakeups.asked = self._wakeups.asked, None
        number, end = signal.SIGTERM, self._clock() + GRACE
        left = [(kept, kept.running) for kept in self._all if kept.running is not None]
        for _, process in left:
            process.send(number)
        while left:
            if number != signal.SIGKILL and (self._wakeups.asked is not None or self._clock() > end):
                number = signal.SIGKILL
                for kept, process in left:
                    log.warning("killing a child that does not exit", child=kept.spec.name, pid=process.pid)
                    process.send(number)
            self._wakeups.wait(0.1, [kept for kept, _ in left])
            left = [(kept, process) for kept, process in left if kept.reap() is None]
        self._wakeups.asked = asked
