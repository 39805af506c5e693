"""A kept process: one that should run, is watched, and is restarted when it exits. For `gsync run` and the monitor.

ProcessSpec says what should run, Process is one that runs, KeptProcess keeps it running, Wakeups lets its keeper sleep.
Promise: a pid is only trusted together with its start time. Not here: which processes should run, and when their keeper
gives up (supervisor, managed).
"""

from __future__ import annotations

import math
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import FrameType, TracebackType
from typing import Protocol

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.durable import make_dirs, replace_file
from gsync.base.process import Lock, start_time
from gsync.base.retry import Schedule, Tries
from gsync.recorder import status as recording
from gsync.session.metavolume import Mirror, node_name
from gsync.session.session import Session
from gsync.session.status import WorkerStatus
from gsync.state.home import Brick

DONE, DONE_WITH_FAILURES, USAGE, LOCKED, SLAVE, INTERNAL = range(6)  # exit codes

GRACE = 10.0                            # s from SIGTERM to SIGKILL
RESTARTS = Schedule(0.5, 60.0, lasted=60.0)
_TAIL = 4096                            # bytes of a process's output that are examined
_PREFIX = "gsync: "                     # prefix of a line that is meant for people


# the process to run

class StatusFile(Protocol):
    """The status file of a process. Its keeper writes it while the process is not running."""

    @property
    def path(self) -> str: ...

    def says_stopped(self, pid: int) -> bool:
        """Whether the process of this pid wrote that it stopped in order."""

    def note(self, state: str, reason: str = "") -> None:
        """Write the state of a process that is not running."""


@dataclass(frozen=True)
class ProcessSpec:
    """A process that should run.

    name: for people. said: the file that gets its stderr, unless its keeper reads that. silence: seconds without a
    change of its status file after which it counts as hung. end: the signals it gets this many seconds after it is no
    longer wanted. by_command: its settings are in its command line, so it is replaced when that changes.
    """

    name: str
    argv: list[str]
    status: StatusFile
    lock: str
    said: str = ""
    silence: float = math.inf
    end: tuple[tuple[float, signal.Signals], ...] = ((0.0, signal.SIGTERM), (GRACE, signal.SIGKILL))
    by_command: bool = False

    def suits(self, argv: Sequence[str]) -> bool:
        """Whether a process started with this command may stay."""
        return not self.by_command or _arguments(argv) == _arguments(self.argv)


def _arguments(argv: Sequence[str]) -> Sequence[str]:
    """Without the interpreter, whose path may have changed."""
    return argv[argv.index("-m"):] if "-m" in argv else argv


@dataclass(frozen=True)
class WorkerStatusFile:
    path: str
    clock: Clock = field(default=SYSTEM_CLOCK, kw_only=True)

    def says_stopped(self, pid: int) -> bool:
        status = WorkerStatus.read(self.path)
        return status is not None and (status.state, status.pid) == ("Stopped", pid)

    def note(self, state: str, reason: str = "") -> None:
        WorkerStatus.note(self.path, state, reason, self.clock)


@dataclass(frozen=True)
class SessionStatusFile(WorkerStatusFile):
    """The status file of a worker whose session may be deleted, and whose status other nodes may read."""

    session: Session

    def note(self, state: str, reason: str = "") -> None:
        session = self.session
        if not os.path.exists(session.folder if session.on_meta_volume
                              else os.path.join(session.folder, "session.json")):
            return  # the session was deleted
        super().note(state, reason)
        if session.on_meta_volume:
            with open(self.path, "rb") as file:
                mirror = Mirror(self._tell)
                mirror.show(file.read())
            mirror.close(patience=0)

    def _tell(self, status: bytes) -> None:
        """Show the status to the other nodes."""
        replace_file(self.session.status_of(node_name()), status, durable=False)


@dataclass(frozen=True)
class RecorderStatusFile:
    path: str
    clock: Clock = SYSTEM_CLOCK

    def says_stopped(self, pid: int) -> bool:
        status = recording.read_status(self.path)
        return status is not None and (status.state, status.pid) == (recording.STOPPED, pid)

    def note(self, state: str, reason: str = "") -> None:
        last = recording.read_status(self.path)
        if last is not None:
            recording.write_status(self.path, replace(last, state=state, reason=reason,
                                                      updated=self.clock.now()))


def worker_spec(session: Session, argv: list[str]) -> ProcessSpec:
    """The worker of a session under a monitor. It exits by itself when it is not wanted, or when its settings change;
    it gets signals only if it does not."""
    return ProcessSpec(f"worker of session {session.title}", argv, SessionStatusFile(session.worker_status, session),
                       session.worker_lock, os.path.join(session.own, "worker.stderr"), session.options.worker_timeout,
                       end=((GRACE, signal.SIGTERM), (2 * GRACE, signal.SIGKILL)))


def recorder_spec(name: str, brick: Brick, silence: float, argv: list[str]) -> ProcessSpec:
    """The recorder of a brick."""
    return ProcessSpec(name, argv, RecorderStatusFile(brick.status), brick.lock, brick.stderr, silence,
                       by_command=True)


# running processes

@dataclass(frozen=True, slots=True)
class Ending:
    """How a process exited: its exit code (negative: that signal; None: unknown, since it was not a child of this
    process) and its last error line."""

    code: int | None
    line: str


class Process:
    """A watched process. fd: readable once it has exited; -1 if the kernel has no pidfd. code: its exit code in Popen's
    form; None while unknown."""

    def __init__(self, pid: int, said: str, child: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self.started = start_time(pid) or 0
        self.code: int | None = None
        self.fd = -1
        self._said = said
        self._child = child
        with suppress(OSError, AttributeError):
            self.fd = os.pidfd_open(pid)

    @classmethod
    def start(cls, spec: ProcessSpec) -> Process:
        """Start a process that is independent of this one: own session, no pipe, stderr in a file."""
        make_dirs(os.path.dirname(spec.said))
        child = popen_detached(spec.argv, spec.said)
        return cls(child.pid, spec.said, child)

    @classmethod
    def holder(cls, lock: Lock, said: str = "") -> Process | None:
        """The process that holds the lock."""
        pid = lock.holder()
        if pid is None:
            return None
        found = cls(pid, said)
        if not found.started or lock.holder() != pid:  # it exited before the descriptor was open
            found.close()
            return None
        return found

    def fds(self) -> list[int]:
        """Descriptors that are readable when the process needs attention."""
        return [self.fd] if self.fd >= 0 else []

    def listen(self) -> None:
        """Read the process's output, if this process receives it."""

    def last_words(self) -> str:
        """Its last error line, "" if there is none."""
        return complaint(self._said)

    def ended(self) -> bool:
        if self._child is not None:
            self.code = self._child.poll()
            return self.code is not None
        return start_time(self.pid) != self.started

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this process, never to another one that has its pid by now."""
        with suppress(ProcessLookupError):
            if self._child is not None:
                self._child.send_signal(number)
            elif self.fd >= 0:
                signal.pidfd_send_signal(self.fd, number)
            elif not self.ended():
                os.kill(self.pid, number)

    def end(self, patience: float = GRACE) -> None:
        """Send SIGTERM, allow time for an orderly exit, then send SIGKILL. For a child."""
        assert self._child is not None
        self.send(signal.SIGTERM)
        try:
            self._child.wait(patience)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self._child.wait()
        self.ended()
        self.close()

    def argv(self) -> list[str]:
        try:
            with open(f"/proc/{self.pid}/cmdline", "rb") as file:
                return os.fsdecode(file.read()).split("\0")[:-1]
        except OSError:
            return []

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Attached(Process):
    """A child in a session of its own, which a terminal's Ctrl-C does not reach. Its output is read line by line. When
    it exits, processes left in its group are killed."""

    def __init__(self, argv: Sequence[str], heard: Callable[[str], None]) -> None:
        self._heard = heard
        self._rest = b""
        self._complaint = ""
        child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                 bufsize=0, start_new_session=True)
        assert child.stdout is not None
        self._output = child.stdout
        os.set_blocking(self._output.fileno(), False)
        super().__init__(child.pid, "", child)

    def fds(self) -> list[int]:
        return super().fds() + ([] if self._output.closed else [self._output.fileno()])

    def listen(self) -> None:
        while not self._output.closed:
            try:
                data = os.read(self._output.fileno(), 65536)
            except BlockingIOError:
                return
            if not data:
                self._output.close()
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._line(line)

    def _line(self, line: bytes) -> None:
        text = line.decode("utf-8", "backslashreplace").rstrip()
        if text.startswith(_PREFIX):
            self._complaint = text.removeprefix(_PREFIX)
        if text:
            self._heard(text)

    def last_words(self) -> str:
        return self._complaint

    def close(self) -> None:
        self.listen()
        self._line(self._rest)
        self._rest = b""
        self._output.close()
        with suppress(ProcessLookupError):  # the usual case: it left no process behind
            os.killpg(self.pid, signal.SIGKILL)
        super().close()


def popen_detached(argv: Sequence[str], said: str) -> subprocess.Popen[bytes]:
    """Start a process that is independent of this one; the file `said` gets its stderr."""
    with open(said, "wb") as stderr:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, start_new_session=True,
                                cwd="/")


def complaint(path: str) -> str:
    """The last error line in the output of a process; "" if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            lines = [line.strip() for line in file.read().decode("utf-8", "backslashreplace").splitlines()]
    except OSError:
        return ""
    ours = [line.removeprefix(_PREFIX) for line in lines if line.startswith(_PREFIX)]
    return (ours or [line for line in lines if line] or [""])[-1]


# keeping it running

class KeptProcess:
    """One process that should run. Its keeper starts it when it is due, and decides what its exit means."""

    def __init__(self, spec: ProcessSpec, launch: Callable[[ProcessSpec], Process], schedule: Schedule = RESTARTS,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self.spec = spec
        self.running: Process | None = None
        self.tries = Tries(schedule, clock)
        self._launch = launch
        self._lasted = schedule.lasted
        self._clock = clock
        self._began = 0.0

    @property
    def age(self) -> float:
        """Seconds since it started, or was found running."""
        return self._clock() - self._began

    def start(self) -> Process:
        """Start the process. OSError if that fails."""
        self.tries.start()
        return self.begin(self._launch(self.spec))

    def begin(self, running: Process) -> Process:
        self.running = running
        self._began = self._clock()
        self.tries.start()
        return running

    def reap(self) -> Ending | None:
        """How the process exited, reported once; None while it runs, and while there is none."""
        running = self.running
        if running is None or not running.ended():
            return None
        self.running = None
        running.close()
        name, code = self.spec.name, running.code
        if code is not None and code < 0:
            return Ending(code, f"{name} was killed by {signal.Signals(-code).name}")
        how = "was killed, or crashed" if code is None else f"exited with code {code}"
        return Ending(code, running.last_words() or f"{name} {how}")

    def again(self, pause: float | None = None) -> float:
        """Plan the next start; return the pause before it. pause: use this one, and do not count a failure."""
        if pause is None:
            return self.tries.fail()
        if self.age > self._lasted:
            self.tries.succeed()
        return self.tries.wait(pause)


class Wakeups:
    """A sleep that ends early: when a signal asks this process to exit, a child exits, or a descriptor becomes
    readable. SIGINT, SIGTERM and SIGHUP (unless ignored, for nohup) set `asked`. Main thread only."""

    def __init__(self) -> None:
        self.asked: signal.Signals | None = None

    def __enter__(self) -> Wakeups:
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)
        self._before = {number: signal.signal(number, self._ask) for number in numbers}
        self._before[signal.SIGCHLD] = signal.signal(signal.SIGCHLD, lambda number, frame: None)
        self._wakeup = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._reader)
        os.close(self._writer)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = signal.Signals(number)

    def wait(self, seconds: float, kept: Iterable[KeptProcess] = ()) -> None:
        """Wait until a signal arrives, a process exits or writes, or the time is over. Reads the processes' output."""
        running = [each.running for each in kept if each.running is not None]
        poller = select.poll()
        for fd in (self._reader, *(fd for process in running for fd in process.fds())):
            poller.register(fd, select.POLLIN)
        if any(fd == self._reader for fd, _ in poller.poll(seconds * 1000)):
            os.read(self._reader, 4096)
        for process in running:
            process.listen()
