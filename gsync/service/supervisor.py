"""What `gsync run` does: keeps a recorder and a worker running until it is told to stop, or the work is done. Of a
GlusterFS volume there is a worker for each subvolume, and no recorder: its bricks record.

Promise: all end when the supervisor does, however it ends; a child that dies is started again, with growing pauses;
a recorder that ran before is used and left running. Nothing here is needed for convergence: a child may be
killed at any moment.
Not here: what the children do, and how progress is shown (the Observer's).
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

from gsync.base.log import get_logger
from gsync.session.status import WorkerStatus

log = get_logger(__name__)

TICK = 0.25           # how often the observer looks at the status
GRACE = 10.0          # from SIGTERM to SIGKILL
PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
LASTED = 60.0         # a child that ran this long had no trouble starting
TRIES = 4             # with --once: starts in a row that fail before it is given up
LOCKED_TRIES = 20     # tries, TICK apart, while a worker of the run before is still ending

DONE, DONE_WITH_FAILURES, USAGE, LOCKED, SLAVE, INTERNAL = range(6)  # exit codes


@dataclass(frozen=True, slots=True)
class Ending:
    """How a child ended: its exit code (negative: by that signal) and its last line of complaint."""

    code: int
    line: str


class Observer(Protocol):
    """What watches a run."""

    def heard(self, child: str, line: str) -> None:
        """A line that the child wrote."""

    def ended(self, child: str, ending: Ending, pause: float | None) -> None:
        """The child is gone; it is started again in `pause` seconds, None: not again."""

    def tick(self, statuses: Sequence[WorkerStatus]) -> None:
        """Called a few times per second with what each worker says of itself now."""


class Child:
    """One process in a session of its own (a terminal's Ctrl-C does not reach it), its output read line by line."""

    def __init__(self, name: str, argv: Sequence[str], heard: Callable[[str, str], None]) -> None:
        self.name = name
        self._heard = heard
        self._rest = b""
        self._complaint = ""
        self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                         stderr=subprocess.STDOUT, bufsize=0, start_new_session=True)
        assert self._process.stdout is not None
        self.output = self._process.stdout
        os.set_blocking(self.output.fileno(), False)

    @property
    def pid(self) -> int:
        return self._process.pid

    def listen(self) -> bool:
        """Takes in what the child has written; False at the end of its output."""
        while True:
            try:
                data = os.read(self.output.fileno(), 65536)
            except BlockingIOError:
                return True
            if not data:
                return False
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._line(line)

    def _line(self, line: bytes) -> None:
        text = line.decode("utf-8", "backslashreplace").rstrip()
        if text.startswith("gsync: "):
            self._complaint = text.removeprefix("gsync: ")
        if text:
            self._heard(self.name, text)

    def poll(self) -> Ending | None:
        """How it ended, None while it runs. What it may have left running in its group is ended too."""
        code = self._process.poll()
        if code is None:
            return None
        self.listen()
        self._line(self._rest)
        self._rest = b""
        self.output.close()
        with suppress(ProcessLookupError):  # the usual case: it left nobody
            os.killpg(self.pid, signal.SIGKILL)
        if code < 0:
            return Ending(code, f"{self.name} was killed by {signal.Signals(-code).name}")
        return Ending(code, self._complaint or f"{self.name} ended with exit code {code}")

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def end(self) -> None:
        """SIGTERM, time to end in order, SIGKILL."""
        self.send(signal.SIGTERM)
        try:
            self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self._process.wait()
        self.poll()


class Retry:
    """When a process is started (again): the more often it fails, the later."""

    def __init__(self, pauses: Sequence[float] = PAUSES) -> None:
        self.due = 0.0
        self.started = 0.0
        self.failed = 0       # starts in a row that ended before LASTED
        self._pauses = pauses

    def again(self, pause: float | None = None) -> float:
        """Plans the next start; returns the pause before it."""
        if time.monotonic() - self.started > LASTED:
            self.failed = 0
        if pause is None:
            pause = self._pauses[min(self.failed, len(self._pauses) - 1)]
            self.failed += 1
        self.due = time.monotonic() + pause
        return pause


@dataclass(frozen=True, slots=True)
class WorkerAt:
    """A worker: what to call it, the command, and where it writes its status."""

    name: str
    argv: list[str]
    status: str


@dataclass(frozen=True, slots=True)
class RecorderAt:
    """A recorder: the command, and what gives the pid of a running one of the brick."""

    argv: list[str]
    holder: Callable[[], int | None]


class _Kept(Retry):
    """A child that is to run, and what starts it."""

    def __init__(self, name: str, argv: list[str], pauses: Sequence[float]) -> None:
        super().__init__(pauses)
        self.name = name
        self.argv = argv
        self.child: Child | None = None

    def start(self, heard: Callable[[str, str], None]) -> Child:
        self.child = Child(self.name, self.argv, heard)
        self.started = time.monotonic()
        return self.child


class _Worker(_Kept):
    """While it does not run, its status is written by the supervisor. done: how it ended, once its work is done."""

    def __init__(self, at: WorkerAt, pauses: Sequence[float]) -> None:
        super().__init__(at.name, at.argv, pauses)
        self.status_path = at.status
        self.done: Ending | None = None
        self.was_active = False
        self.locked = 0

    def look(self) -> WorkerStatus:
        """What the worker says, or what was noted for it."""
        status = WorkerStatus.read(self.status_path) or WorkerStatus()
        if self.child is not None and status.pid == self.child.pid and status.state == "Active":
            self.was_active = True
        return status

    def note(self, state: str, reason: str = "") -> None:
        WorkerStatus.note(self.status_path, state, reason)


class Supervisor:
    """Runs the children."""

    def __init__(self, workers: Sequence[WorkerAt], recorder: RecorderAt | None, observer: Observer, *, once: bool,
                 pauses: Sequence[float] = PAUSES) -> None:
        self._workers = [_Worker(at, pauses) for at in workers]
        self._recorder = _Kept("recorder", recorder.argv, pauses) if recorder else None
        self._holder = recorder.holder if recorder else lambda: None
        self._observer = observer
        self._once = once
        self._selector = selectors.DefaultSelector()
        self.signal: signal.Signals | None = None

    def run(self) -> Ending:
        """Until the work is done, cannot be done, or a signal (kept in `signal`) says stop."""
        ending = Ending(INTERNAL, "")
        for worker in self._workers:
            worker.note("Initializing")
        with self._signals():
            try:
                ending = self._keep_running()
            finally:
                self._end_children()
                self._selector.close()
                reason = ending.line if ending.code > DONE_WITH_FAILURES else ""
                for worker in self._workers:
                    worker.note("Stopped", reason)
        return ending

    def look(self) -> list[WorkerStatus]:
        """What each worker says."""
        return [worker.look() for worker in self._workers]

    def _keep_running(self) -> Ending:
        while self.signal is None:
            final = self._step()
            if final is not None:
                return final
            self._observer.tick(self.look())
            self._wait(TICK)
        return Ending(DONE, "")

    @property
    def _all(self) -> list[_Kept]:
        """In the order of starting and ending: a worker has the longer way to its first file."""
        return [*self._workers, *([self._recorder] if self._recorder else [])]

    def _step(self) -> Ending | None:
        """Looks after the children once; how the run ends, None while it goes on."""
        for kept in self._all:
            if kept.child is not None:
                ended = kept.child.poll()
                if ended is not None:
                    if isinstance(kept, _Worker):
                        self._observer.tick(self.look())  # its last words
                    self._forget(kept)
                    final = self._worker_ended(kept, ended) if isinstance(kept, _Worker) else \
                        self._recorder_ended(kept, ended)
                    if final is not None:
                        return final
            elif time.monotonic() >= kept.due and self._is_needed(kept):
                self._selector.register(kept.start(self._observer.heard).output, selectors.EVENT_READ, kept.child)
        return None

    def _is_needed(self, kept: _Kept) -> bool:
        if isinstance(kept, _Worker):
            return kept.done is None
        if self._holder() is None:
            return True
        kept.due = time.monotonic() + TICK  # it may end while this run goes on
        return False

    def _recorder_ended(self, recorder: _Kept, ending: Ending) -> Ending | None:
        if ending.code == LOCKED:  # another one was a moment faster: it will do
            recorder.again(TICK)
            return None
        if ending.code == USAGE:
            return ending
        return self._restart(recorder, ending)

    def _worker_ended(self, worker: _Worker, ending: Ending) -> Ending | None:
        if ending.code in (DONE, DONE_WITH_FAILURES) and self._once:
            worker.done = ending
            ends = [each.done for each in self._workers]
            return None if None in ends else max(filter(None, ends), key=lambda end: end.code)
        if ending.code == LOCKED and worker.locked < LOCKED_TRIES:
            worker.locked += 1
            worker.again(TICK)
            return None
        if ending.code in (USAGE, LOCKED) or (ending.code == SLAVE and (self._once or not worker.was_active)):
            return ending
        worker.locked = 0
        return self._restart(worker, ending)

    def _restart(self, kept: _Kept, ending: Ending) -> Ending | None:
        pause = kept.again()
        if self._once and ending.code > 0 and kept.failed >= TRIES:
            return ending
        if isinstance(kept, _Worker):
            kept.note("Faulty", ending.line)
        self._observer.ended(kept.name, ending, pause)
        return None

    def _wait(self, seconds: float) -> None:
        """Until a child has written something, a signal has come, or the time is over."""
        for key, _ in self._selector.select(seconds):
            if isinstance(key.data, Child):
                if not key.data.listen():
                    self._selector.unregister(key.fileobj)
            else:
                os.read(key.fd, 4096)

    def _forget(self, kept: _Kept) -> None:
        assert kept.child is not None
        for key in list(self._selector.get_map().values()):
            if key.data is kept.child:
                self._selector.unregister(key.fileobj)
        kept.child = None

    def _end_children(self) -> None:
        """SIGTERM, time to end in order, SIGKILL. A second SIGINT or SIGTERM shortens the time."""
        asked, self.signal = self.signal, None
        number, end = signal.SIGTERM, time.monotonic() + GRACE
        left = [kept for kept in self._all if kept.child is not None]
        for kept in left:
            assert kept.child is not None
            kept.child.send(number)
        while left:
            if number != signal.SIGKILL and (self.signal is not None or time.monotonic() > end):
                number = signal.SIGKILL
                for kept in left:
                    assert kept.child is not None
                    log.warning("child does not end, killed", child=kept.name, pid=kept.child.pid)
                    kept.child.send(number)
            self._wait(0.1)
            for kept in list(left):
                assert kept.child is not None
                if kept.child.poll() is not None:
                    self._forget(kept)
                    left.remove(kept)
        self.signal = asked

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT, SIGTERM and SIGHUP set `signal`; they and a child's end wake `_wait`. Main thread only."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(reader, selectors.EVENT_READ, None)
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self._asked_to_stop) for number in numbers}
        before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda number, frame: None)
        wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
            os.close(reader)
            os.close(writer)

    def _asked_to_stop(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
