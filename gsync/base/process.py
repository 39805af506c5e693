"""Processes: which one a pid and its start time mean, a lock file that keeps others out, the priority of this one.

A pid alone may belong to another process by now; a pid and its start time do not.
"""

from __future__ import annotations

import fcntl
import os
from types import TracebackType

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.errors import LockedError, UsageError

_SYS_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "riscv64": 30, "ppc64le": 273, "s390x": 282, "i686": 289}
_IOPRIO_WHO_PROCESS = 1
_IOPRIO_CLASSES = {"none": 0, "best-effort": 2, "idle": 3}


def start_time(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None if there is no such process (or only its corpse)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, *fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if state in (b"Z", b"X") else int(fields[18])


def is_stopped(pid: int) -> bool:
    """Whether the process is stopped (SIGSTOP, a debugger)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] in (b"T", b"t")
    except (OSError, IndexError):
        return False


def started_at(pid: int, clock: Clock = SYSTEM_CLOCK) -> int | None:
    """When the process started, in ns since the epoch, to about 10 ms, by the clock as it is set now."""
    ticks = start_time(pid)
    if ticks is None:
        return None
    boot = clock.now() - int(clock.boottime() * 1e9)
    return boot + ticks * 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def is_alive(pid: int | None, started: int | None) -> bool:
    """Whether the process with this pid and start time still runs."""
    return pid is not None and started is not None and start_time(pid) == started


class Lock:
    """A lock file that names its holder, held from `take` to `release` or the end of the process. named=False keeps
    others out without posing as the process that the lock belongs to."""

    def __init__(self, path: str, what: str, named: bool = True) -> None:
        self.path = path
        self._what = what
        self._named = named
        self._fd = -1

    def take(self) -> None:
        """LockedError naming the holder's pid if another process holds it."""
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            pid = self.holder()
            raise LockedError(f"{self._what} is running already" + (f", pid {pid}" if pid else "")) from None
        except OSError:
            os.close(fd)
            raise
        os.ftruncate(fd, 0)
        if self._named:
            os.pwrite(fd, b"%d %d\n" % (os.getpid(), start_time(os.getpid()) or 0), 0)
        self._fd = fd

    def release(self) -> None:
        if self._fd >= 0:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1

    def stands(self) -> bool:
        """Whether the held file is still the one at the path: not if its folder was removed or replaced."""
        try:
            return self._fd >= 0 and os.path.samestat(os.fstat(self._fd), os.stat(self.path))
        except FileNotFoundError:
            return False

    def holder(self) -> int | None:
        """The pid of the holder, or None. Takes no lock itself."""
        try:
            with open(self.path, "rb") as file:
                pid, started = (int(word) for word in file.read().split())
        except (OSError, ValueError):
            return None
        return pid if is_alive(pid, started) else None

    def __enter__(self) -> Lock:
        self.take()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.release()


def lower_priority(nice: int, ionice: str) -> None:
    """Lower the priority of this thread and of all it starts, so call it first. UsageError if the system refuses.

    nice: added to the current value; ionice: as the option, "" changes nothing.
    """
    if nice:
        os.nice(nice)
    if ionice:
        name, _, level = ionice.partition(":")
        number = _SYS_IOPRIO_SET.get(os.uname().machine)
        if number is None:
            raise UsageError(f"ionice: not supported on {os.uname().machine}")
        value = _IOPRIO_CLASSES[name] << 13 | int(level or ("4" if name == "best-effort" else "0"))
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syscall(number, _IOPRIO_WHO_PROCESS, 0, value) != 0:
            raise UsageError(f"ionice: {ionice}: {os.strerror(ctypes.get_errno())}")
