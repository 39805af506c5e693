"""One process that a monitor keeps running, or not: found by its lock, started, watched, ended.

Promise: it never runs twice, since what counts is who holds the lock file; it does not depend on the process that
started it; a pid is only trusted together with its start time. Not here: which ones are to run (monitor).
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from gsync.base.durable import make_dirs, replace_file
from gsync.base.log import get_logger
from gsync.base.process import Lock, start_time
from gsync.recorder import status as recording
from gsync.service.supervisor import DONE, DONE_WITH_FAILURES, GRACE, LOCKED, PAUSES, Retry
from gsync.session.control import Print, file_print
from gsync.session.metavolume import Mirror, node_name
from gsync.session.session import Session
from gsync.session.status import WorkerStatus
from gsync.state.home import Brick

_log = get_logger(__name__)

SHORT = 2.0             # s: who ends in order, but sooner, is not started again at once
_TAIL = 4096            # bytes of what a process has said that are looked at


def popen(argv: Sequence[str], said: str) -> subprocess.Popen[bytes]:
    """A process that does not depend on this one: own session, no pipe between; its stderr goes to a file."""
    with open(said, "wb") as stderr:
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr, start_new_session=True,
                                cwd="/")


def complaint(path: str) -> str:
    """The last line of complaint in what a process has said; "" if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            lines = [line.strip() for line in file.read().decode("utf-8", "backslashreplace").splitlines()]
    except OSError:
        return ""
    ours = [line.removeprefix("gsync: ") for line in lines if line.startswith("gsync: ")]
    return (ours or [line for line in lines if line] or [""])[-1]


class Running:
    """A process that is watched: a child of this one, or one that was found by its lock. `code`: how it ended, as
    Popen has it; None as long as that is not known."""

    def __init__(self, pid: int, started: int, child: subprocess.Popen[bytes] | None = None) -> None:
        self.pid = pid
        self.code: int | None = None
        self._started = started
        self._child = child
        self.fd = -1            # readable once the process has ended; -1 where the kernel cannot do that
        with suppress(OSError, AttributeError):
            self.fd = os.pidfd_open(pid)

    @classmethod
    def holder(cls, lock: Lock) -> Running | None:
        pid = lock.holder()
        started = start_time(pid) if pid is not None else None
        if pid is None or started is None:
            return None
        found = cls(pid, started)
        if lock.holder() != pid:  # it ended before the descriptor was there
            found.close()
            return None
        return found

    def ended(self) -> bool:
        if self._child is not None:
            self.code = self._child.poll()
            return self.code is not None
        return start_time(self.pid) != self._started

    def send(self, number: signal.Signals) -> None:
        """To this process, never to another one that has its pid by now."""
        with suppress(ProcessLookupError):
            if self._child is not None:
                self._child.send_signal(number)
            elif self.fd >= 0:
                signal.pidfd_send_signal(self.fd, number)
            elif not self.ended():
                os.kill(self.pid, number)

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


class Duty(ABC):
    """What is to be kept running, as the files have it now.

    name: for people; said: the file that its stderr goes to; status: the file that it writes as long as it is well;
    timeout: seconds of silence; end: the signals that it gets so many seconds after it is no longer wanted.
    """

    end: tuple[tuple[float, signal.Signals], ...]

    def __init__(self, name: str, lock: str, said: str, status: str, timeout: float, argv: list[str]) -> None:
        self.name, self.lock = name, Lock(lock, name)
        self.said, self.status, self.timeout, self.argv = said, status, timeout, argv

    def ours(self, running: Running) -> bool:
        """Whether a process that holds the lock is for a monitor to end."""
        return "--managed" in running.argv()

    def suits(self, argv: Sequence[str]) -> bool:
        """Whether one that was started with this command may go on."""
        return True

    @abstractmethod
    def stopped(self, pid: int) -> bool:
        """Whether the process said in its status that it ends in order."""

    @abstractmethod
    def note(self, faulty: str) -> None:
        """Say in its status, since it does not run, why that is so; "": because that is wanted."""


class WorkerDuty(Duty):
    """The worker of a session. It sees by itself when it is not wanted, and when its settings change."""

    end = ((GRACE, signal.SIGTERM), (2 * GRACE, signal.SIGKILL))

    def __init__(self, session: Session, argv: list[str]) -> None:
        super().__init__(f"worker of session {session.title}", session.worker_lock,
                         os.path.join(session.own, "worker.stderr"), session.worker_status,
                         session.options.worker_timeout, argv)
        self._session = session

    def stopped(self, pid: int) -> bool:
        status = WorkerStatus.read(self.status)
        return status is not None and (status.state, status.pid) == ("Stopped", pid)

    def note(self, faulty: str) -> None:
        if not os.path.exists(self._session.folder if self._session.on_meta_volume
                              else os.path.join(self._session.folder, "session.json")):
            return  # it is deleted
        WorkerStatus.note(self.status, "Faulty" if faulty else "Stopped", faulty)
        if self._session.on_meta_volume:
            with open(self.status, "rb") as file:
                mirror = Mirror(self._tell)
                mirror.show(file.read())
            mirror.close(patience=0)

    def _tell(self, status: bytes) -> None:
        """The other nodes."""
        replace_file(self._session.status_of(node_name()), status, durable=False)


class RecorderDuty(Duty):
    """The recorder of a volume."""

    end = ((0.0, signal.SIGTERM), (GRACE, signal.SIGKILL))

    def __init__(self, volume: str, brick: Brick, timeout: float, argv: list[str]) -> None:
        super().__init__(f"recorder of volume {volume}", brick.lock, brick.stderr, brick.status, timeout, argv)

    def suits(self, argv: Sequence[str]) -> bool:
        return _arguments(argv) == _arguments(self.argv)

    def stopped(self, pid: int) -> bool:
        status = recording.read_status(self.status)
        return status is not None and (status.state, status.pid) == (recording.STOPPED, pid)

    def note(self, faulty: str) -> None:
        last = recording.read_status(self.status)
        if last is not None:
            recording.write_status(self.status, replace(
                last, state=recording.FAULTY if faulty else recording.STOPPED, reason=faulty, updated=time.time_ns()))


def _arguments(argv: Sequence[str]) -> Sequence[str]:
    """Without the interpreter, which may lie elsewhere by now."""
    return argv[argv.index("-m"):] if "-m" in argv else argv


class Kept(Retry):
    """One process that is to run, or not: found, started, watched, ended."""

    def __init__(self, duty: Duty, pauses: Sequence[float] = PAUSES) -> None:
        super().__init__(pauses)
        self.duty = duty
        self.wanted = False
        self.running: Running | None = None
        self._hindered = ""         # why it is not to be started now
        self._unwanted = 0.0        # since when
        self._signals = 0           # how many it has got since then
        self._killed = ""           # why it was killed
        self._heard: tuple[Print, float] = None, 0.0
        self._log = _log.bind(name=duty.name)

    def want(self, wanted: bool, anew: bool = False) -> None:
        """Whether it is to run; anew: the reasons for a pause before the next start may have gone."""
        if wanted != self.wanted:
            self.wanted = wanted
            self._unwanted, self._signals = time.monotonic(), 0
            anew = True
            if not wanted and self.running is None:
                self._find()
                if self.running is None:
                    self._note("")
        if anew:
            self.due = 0.0
            self.failed = 0

    def hinder(self, reason: str) -> None:
        """Not to be started as long as there is a reason why not."""
        if reason != self._hindered:
            self._hindered = reason
            if reason and self.wanted and self.running is None:
                self._note(reason)

    def step(self) -> None:
        """What is to be done now."""
        if self.running is None:
            self._find()
        if self.running is not None and self.running.ended():
            self._end()
        now = time.monotonic()
        if self.running is None:
            if self.wanted and not self._hindered and now >= self.due:
                self._start()
        elif not self.wanted:
            self._ask_to_end(self.running, now - self._unwanted)
        else:
            self._listen(self.running, now)

    def _find(self) -> None:
        found = Running.holder(self.duty.lock)
        if found is not None:
            self._log.info("found running", pid=found.pid)
            self._begin(found)
            self.replace()

    def _begin(self, running: Running) -> None:
        self.running = running
        self.started = time.monotonic()
        self._killed = ""
        self._signals = 0
        self._heard = file_print(self.duty.status), self.started

    def _start(self) -> None:
        try:
            make_dirs(os.path.dirname(self.duty.said))
            child = popen(self.duty.argv, self.duty.said)
        except OSError as exc:
            self._fail(f"{self.duty.name} cannot be started: {exc.strerror}")
            return
        self._log.info("started", pid=child.pid)
        self._begin(Running(child.pid, start_time(child.pid) or 0, child))

    def _end(self) -> None:
        assert self.running is not None
        pid, code = self.running.pid, self.running.code
        self.running.close()
        self.running = None
        said = complaint(self.duty.said)
        if code == DONE or (code in (None, DONE_WITH_FAILURES) and self.duty.stopped(pid)):  # 1 is a crash's code too
            self._log.info("ended", pid=pid)
            self.again(0.0 if time.monotonic() - self.started > SHORT else None)
            if self.wanted and self._hindered:
                self._note(self._hindered)
        elif code == LOCKED and self.duty.lock.holder() is not None:
            self.again(0.0)  # somebody was faster; found in the next step
        elif not self.wanted:
            self._log.info("ended", pid=pid, code="unknown" if code is None else code)
            self._note("")
        elif self._killed:
            self._fail(self._killed)
        elif code is not None and code < 0:
            self._fail(f"{self.duty.name} was killed by {signal.Signals(-code).name}")
        else:
            how = "was killed, or crashed" if code is None else f"ended with exit code {code}"
            self._fail(said or f"{self.duty.name} {how}")

    def _fail(self, reason: str) -> None:
        pause = self.again()
        self._log.warning("does not run", reason=reason, next_start_in=pause)
        self._note(self._hindered or reason)

    def _note(self, faulty: str) -> None:
        try:
            self.duty.note(faulty)
        except OSError as exc:
            self._log.warning("status cannot be written", error=exc)

    def _ask_to_end(self, running: Running, since: float) -> None:
        if not self.duty.ours(running):
            return
        left = self.duty.end[self._signals:]
        if left and since >= left[0][0]:
            self._signals += 1
            self._log.info("is ended", pid=running.pid, signal=left[0][1].name)
            running.send(left[0][1])

    def _listen(self, running: Running, now: float) -> None:
        seen = file_print(self.duty.status)
        if seen != self._heard[0]:
            self._heard = seen, now
        elif now - self._heard[1] > self.duty.timeout and not self._killed and self.duty.ours(running):
            self._killed = f"{self.duty.name} was silent for {self.duty.timeout:.0f} s and was killed"
            self._log.error("is silent, killed", pid=running.pid, seconds=self.duty.timeout)
            running.send(signal.SIGKILL)

    def replace(self) -> None:
        """Have it end and start again if it was started with other settings than it is to have."""
        running = self.running
        if running is not None and self.duty.ours(running) and not self.duty.suits(running.argv()):
            self._log.info("its settings have changed", pid=running.pid)
            running.send(signal.SIGTERM)
