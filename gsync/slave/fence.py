"""At most one connection works in a slave tree at a time, and the younger epoch wins (invariant 9).

Several workers may each bring their part of one master (streams, protocol.stream_of). They take turns: epochs and
passes belong to a stream, and a hello waits for the agent of another stream instead of killing it. So one worker's
questions to the master, and the changes that follow from the answers, are never overtaken by another worker's.

A hello makes a *pass*, the file .gsync/passes/<epoch>-<ticket>. The agent, its receivers and its rsync servers work
while that file exists. A younger hello makes its own pass and durably removes all others: from then on, one look tells
every process of an older connection that it is displaced. Processes that cannot look (frozen, in the middle of a write,
rsync) are killed; they are found as the holders of the two locks. A process that starts takes its lock first and then
looks at its pass; the younger hello does the reverse, so no process slips through.

    lock            held exclusively by the agent; names its holder
    receivers.lock  shared by receivers and rsync servers; a hello's agent holds it exclusively for a moment

Standard library only, Python 3.9.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from gsync.base.errors import SlaveError, Transient
from gsync.link.protocol import Busy, Fenced, stream_of

AGENT_LOCK, RECEIVERS_LOCK = b"lock", b"receivers.lock"
_OPEN_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

class Patience(NamedTuple):
    """Time limits in seconds. own: for processes that are to exit by themselves. others: for the agent of another
    session, whose connection may just have ended. dying: for a killed process in the middle of a write to a slow disk.
    pause: between two looks."""

    own: float = 5.0
    others: float = 2.0
    dying: float = 30.0
    pause: float = 0.01


PATIENCE = Patience()


class Pass:
    """One connection's right to work in the tree."""

    def __init__(self, passes_fd: int, name: str, epoch: int, displaced: Collection[str] = ()) -> None:
        self.epoch = epoch
        self._displaced = displaced
        self._passes_fd = passes_fd
        self._name = name

    @property
    def valid(self) -> bool:
        try:
            os.stat(self._name, dir_fd=self._passes_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def displaced(self, name: str) -> bool:
        """Whether `name` is that of a pass that had to give way to this one."""
        return name in self._displaced

    def check(self) -> None:
        """Raise Fenced once a younger connection has said hello."""
        if not self.valid:
            raise fenced(self.epoch, _names(self._passes_fd, stream_of(self._name.partition("-")[2])))

    def close(self) -> None:
        os.close(self._passes_fd)


def fenced(epoch: int, passes: dict[str, int]) -> Fenced:
    younger = max(passes.values(), default=None)
    who = f"a worker with epoch {younger}" if younger is not None else "another worker"
    return Fenced(f"{who} has taken over the slave; this one has epoch {epoch}")


def _names(passes_fd: int, stream: str) -> dict[str, int]:
    """The existing passes of a stream, with their epochs."""
    found = {}
    for name in os.listdir(passes_fd):
        epoch, _, ticket = name.partition("-")
        with suppress(ValueError):
            if epoch.isdigit() and stream_of(ticket) == stream:
                found[name] = int(epoch)
    return found


def _name(epoch: int, ticket: str) -> str:
    try:
        stream_of(ticket)
    except ValueError as exc:
        raise SlaveError(str(exc)) from None
    if not 0 <= epoch < 1 << 63:
        raise SlaveError(f"not an epoch: {epoch}")
    return f"{epoch:020d}-{ticket}"


def announce(state_fd: int, epoch: int, ticket: str) -> Pass:
    """Make the pass of a new connection and revoke all others; Fenced if a younger one exists.

    Of two connections that announce at once, each sees the other's pass, and the older one gives up. If the epochs are
    equal (one worker that connects again), the later one stays.
    """
    name = _name(epoch, ticket)
    passes_fd = os.open(b"passes", _OPEN_DIR, dir_fd=state_fd)
    try:
        stream = stream_of(ticket)
        passes = _names(passes_fd, stream)
        if any(other > epoch for other in passes.values()):
            raise fenced(epoch, passes)
        os.close(os.open(name, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600,
                         dir_fd=passes_fd))
        passes = _names(passes_fd, stream)
        if any(other > epoch for other in passes.values()):
            os.unlink(name, dir_fd=passes_fd)
            raise fenced(epoch, passes)
        os.fsync(passes_fd)  # ours before the others go: the highest epoch is never forgotten
        for other in passes:
            if other != name:
                with suppress(FileNotFoundError):
                    os.unlink(other, dir_fd=passes_fd)
        os.fsync(passes_fd)
        return Pass(passes_fd, name, epoch, frozenset(passes) - {name})
    except BaseException:
        os.close(passes_fd)
        raise


def show(state_fd: int, epoch: int, ticket: str) -> Pass:
    """The pass of the connection that a receiver or rsync server belongs to; Fenced if it is no longer valid, or never
    was."""
    name = _name(epoch, ticket)
    shown = Pass(os.open(b"passes", _OPEN_DIR, dir_fd=state_fd), name, epoch)
    try:
        shown.check()
    except BaseException:
        shown.close()
        raise
    return shown


# the agent's lock

def open_lock(state_fd: int, name: bytes) -> int:
    return os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=state_fd)


def _try(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def take_alone(lock_fd: int) -> None:
    """Keep receivers and rsync servers out; BlockingIOError while any are running."""
    fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def unlock(lock_fd: int) -> None:
    fcntl.flock(lock_fd, fcntl.LOCK_UN)


def is_locked(lock_fd: int) -> bool:
    """Whether any process holds the lock. Does not take it."""
    inode = os.fstat(lock_fd).st_ino
    with open("/proc/locks", encoding="ascii") as file:
        return any("FLOCK" in line and line.split()[5].rpartition(":")[2] == str(inode)
                   for line in file if "->" not in line)


def take_shared(lock_fd: int) -> None:
    """Take a receiver's or rsync server's lock until it exits; BlockingIOError while a hello keeps them out."""
    fcntl.flock(lock_fd, fcntl.LOCK_SH | fcntl.LOCK_NB)


def holder(lock_fd: int) -> dict[str, Any]:
    """What the holder wrote into the agent's lock: pid, uid, host, session; {} if nobody has written."""
    try:
        known = json.loads(os.pread(lock_fd, 4096, 0))
        return known if isinstance(known, dict) else {}
    except ValueError:
        return {}


def at_work(folder_fd: int) -> str:
    """The session whose agent holds the lock in this folder now, "" if none does. Takes no lock."""
    with suppress(OSError):
        lock_fd = os.open(AGENT_LOCK, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder_fd)
        try:
            if is_locked(lock_fd):
                return str(holder(lock_fd).get("session", "?"))
        finally:
            os.close(lock_fd)
    return ""


def wait_for_others(lock_fd: int, session: str, stream: str, patience: Patience = PATIENCE) -> None:
    """Raise SlaveError while the agent of another session works there, Busy while the agent of another stream of our
    session does: neither is ours to end."""
    until = time.monotonic() + patience.others
    while True:
        known = holder(lock_fd)
        other = str(known.get("session", session))
        if (other == session and known.get("stream", "") == stream) or _try(lock_fd):
            fcntl.flock(lock_fd, fcntl.LOCK_UN)
            return
        if time.monotonic() > until:
            if other == session:
                raise Busy("the worker of another brick is using the slave")
            raise SlaveError(f"session {other} is using this slave ({_described(holder(lock_fd))}): a slave belongs to "
                             f"one session; stop that one or choose another directory")
        time.sleep(patience.pause)


def lock_agent(lock_fd: int, own: Pass, session: str, stream: str, patience: Patience = PATIENCE) -> None:
    """Take the agent's lock, ending an older connection's agent for it. SlaveError if that fails; Busy if an agent of
    another stream was faster."""
    def attempt() -> bool:
        if _try(lock_fd):
            return True
        if holder(lock_fd).get("stream", "") != stream:
            raise Busy("the worker of another brick is using the slave")
        return False

    _displace(attempt, lock_fd, own, lambda left: SlaveError(
        f"another gsync agent is running there ({_described(holder(lock_fd))}) and {left}: stop it"), patience)
    own.check()  # the lock may be free because a younger connection ended its holder
    os.ftruncate(lock_fd, 0)
    os.pwrite(lock_fd, json.dumps({"pid": os.getpid(), "uid": os.geteuid(), "host": socket.gethostname(),
                                   "session": session, "stream": stream}).encode(), 0)


def receivers_gone(lock: Callable[[], None], lock_fd: int, own: Pass, patience: Patience = PATIENCE) -> None:
    """End the receivers and rsync servers of older connections; `lock` keeps new ones out."""
    def attempt() -> bool:
        try:
            lock()
        except BlockingIOError:
            return False
        return True

    _displace(attempt, lock_fd, own, lambda left: Transient(
        f"receivers of an earlier connection are still running there, and {left}"), patience)


def _described(known: dict[str, Any]) -> str:
    return f"pid {known.get('pid', '?')} of uid {known.get('uid', '?')} on {known.get('host', '?')}"


def _displace(attempt: Callable[[], bool], lock_fd: int, own: Pass, refusal: Callable[[str], Exception],
              patience: Patience) -> None:
    """Take a lock, killing the processes that hold it."""
    until = time.monotonic() + patience.own
    left = "cannot be stopped from here (it runs on another host, in a container or as another user)"
    while not attempt():
        own.check()
        for pid in holders(lock_fd):
            try:
                _kill(pid, lock_fd, patience)
            except PermissionError:
                left = f"cannot be stopped: process {pid} belongs to another user"
            except TimeoutError:
                raise refusal(f"does not exit though it was killed: process {pid}") from None
        if time.monotonic() > until:
            raise refusal(left)
        time.sleep(patience.pause)


# processes

def holders(lock_fd: int) -> Iterator[int]:
    """The other processes that hold this lock, as far as /proc shows."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid() and _holds(int(entry), lock_fd):
            yield int(entry)


def _holds(pid: int, lock_fd: int) -> bool:
    """Whether a process has this very file open and locked: a backup that is only reading it has no lock."""
    mine = os.fstat(lock_fd)
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            path = f"/proc/{pid}/fd/{fd}"
            # Compare names first: stat on an unrelated file may hang with its server.
            if os.readlink(path).endswith("lock") and os.path.samestat(os.stat(path), mine):
                with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii") as file:
                    if "FLOCK" in file.read():
                        return True
    except OSError:
        pass  # it has ended, or belongs to another account
    return False


def _kill(pid: int, lock_fd: int, patience: Patience) -> None:
    """Send SIGKILL and wait until the process and its writes have ended. Raises TimeoutError, PermissionError."""
    try:
        handle = os.pidfd_open(pid)
    except AttributeError:  # a Python built without it
        os.kill(pid, signal.SIGKILL)
        until = time.monotonic() + patience.dying
        while _holds(pid, lock_fd):
            if time.monotonic() > until:
                raise TimeoutError from None
            time.sleep(patience.pause)
        return
    except ProcessLookupError:
        return
    try:
        if not _holds(pid, lock_fd):  # the pid may have been reused by now
            return
        signal.pidfd_send_signal(handle, signal.SIGKILL)
        if not select.select([handle], [], [], patience.dying)[0]:
            raise TimeoutError
    except ProcessLookupError:
        pass
    finally:
        os.close(handle)
