"""How programs on a slave host are reached: which slave is meant, and programs started there with pipes to them.

A Link starts programs beside the slave tree (LocalLink: as children; SshLink: over ssh). It knows nothing about those
programs or the data in the pipes. Argument lists are bytes and reach the program unchanged.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from gsync.base.errors import GsyncError, Transient, UsageError
from gsync.base.model import shown

_PIPE_SIZE = 1 << 20
_SAID_KEPT = 4096


@dataclass(frozen=True)
class Slave:
    """Where the copy is: a directory on this host (host is None) or on another one, reached with ssh; or a GlusterFS
    volume that such a host serves, whose path is `::VOLUME`."""

    path: bytes
    host: str | None = None
    user: str | None = None
    port: int | None = None

    @property
    def target(self) -> str:
        """The host as ssh takes it, without the port."""
        return f"{self.user}@{self.host}" if self.user else str(self.host)

    @property
    def is_volume(self) -> bool:
        """Whether the slave is a GlusterFS volume."""
        return self.path.startswith(b"::")

    def __str__(self) -> str:
        path = shown(self.path)
        if self.host is None:
            return path
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{self.user}@" if self.user else ""
        if self.is_volume:
            return f"{user}{host}{path}" if self.port is None else f"ssh://{user}{host}:{self.port}{path}"
        return f"{user}{host}:{path}" if self.port is None else f"ssh://{user}{host}:{self.port}{path}"


_URL = re.compile(r"ssh://(?:(?P<user>[^@/]+)@)?(?:\[(?P<host6>[0-9A-Fa-f:.%]+)\]|(?P<host>[^:/\[\]]+))"
                  r"(?::(?P<port>[0-9]+))?(?P<path>/.*|::.*)", re.S)
_HOST_PATH = re.compile(r"(?:(?P<user>[^@/:]+)@)?(?:\[(?P<host6>[0-9A-Fa-f:.%]+)\]|(?P<host>[^:/\[\]]+)):(?P<path>.*)",
                        re.S)


def parse_slave(text: str) -> Slave:
    """The slave that a command line names: /path, [user@]host:/path or ssh://[user@]host[:port]/path. `::VOLUME` in
    place of the path names a GlusterFS volume; `localhost::VOLUME` is one that this host serves."""
    if text.startswith("ssh://"):
        found = _URL.fullmatch(text)
        if not found:
            raise UsageError(f"slave {text!r}: not of the form ssh://[user@]host[:port]/path, or with ::VOLUME in "
                             f"place of /path")
    elif text.startswith("/"):
        return Slave(os.fsencode(os.path.normpath(text)))
    elif text.startswith("::"):
        return Slave(_volume(text, text[2:]))
    else:
        found = _HOST_PATH.fullmatch(text)
        if not found:
            raise UsageError(f"slave {text!r}: neither /path nor [user@]host:/path nor [user@]host::VOLUME nor "
                             f"ssh://[user@]host[:port]/path")
    host = found["host6"] or found["host"]
    path = found["path"]
    is_volume = path.startswith(":")
    if is_volume:
        path = "::" + os.fsdecode(_volume(text, path.lstrip(":")))[2:]
        if host == "localhost" and not found["user"] and not found.groupdict().get("port"):
            return Slave(os.fsencode(path))
    elif not path.startswith("/"):
        raise UsageError(f"slave {text!r}: the path must begin with /")
    if host.startswith("-") or (found["user"] or "").startswith("-"):
        raise UsageError(f"slave {text!r}: a host or user cannot begin with -")
    port = found.groupdict().get("port")
    if port is not None and not 0 < int(port) < 65536:
        raise UsageError(f"slave {text!r}: {port} is not a port")
    place = os.fsencode(path if is_volume else os.path.normpath(path))
    return Slave(place, host, found["user"], int(port) if port else None)


_VOLUME = re.compile(r"[A-Za-z0-9_-]+")


def _volume(text: str, name: str) -> bytes:
    """The text that stands in place of a path for this volume."""
    if not _VOLUME.fullmatch(name):
        raise UsageError(f"slave {text!r}: {name!r} is not the name of a GlusterFS volume")
    return f"::{name}".encode()


class Channel:
    """A program at the other end of two pipes; its stderr is drained, and the last lines are kept.

    stdin is a plain descriptor (for sendfile), stdout a buffered file.
    """

    def __init__(self, argv: Sequence[bytes], env: dict[str, str] | None = None) -> None:
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                         bufsize=0, env=env, start_new_session=True)
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self.stdin = self._process.stdin.fileno()
        self.stdout: BinaryIO = os.fdopen(self._process.stdout.fileno(), "rb", 1 << 16, closefd=False)
        with contextlib.suppress(OSError):  # beyond the user's limit on pipe pages; the default size works too
            fcntl.fcntl(self.stdin, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
        self._said = b""
        # A daemon: a child that nobody has ended must not keep this process from exiting.
        self._reader = threading.Thread(target=self._drain, args=(self._process.stderr,), name="stderr of a child",
                                        daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _drain(self, stderr: BinaryIO) -> None:
        while more := stderr.read(1 << 16):
            self._said = (self._said + more)[-_SAID_KEPT:]

    def write(self, data: bytes | memoryview) -> None:
        """Write all of the data; BrokenPipeError if the program has gone."""
        done = os.write(self.stdin, data)
        while done < len(data):
            data = memoryview(data)[done:]
            done = os.write(self.stdin, data)

    def end_input(self) -> None:
        """Close the program's stdin, which tells it to exit."""
        assert self._process.stdin
        self.stdin = -1
        self._process.stdin.close()

    def kill(self) -> None:
        self._process.kill()

    def said(self) -> list[str]:
        """The last lines of its stderr; final once `end` has returned."""
        text = self._said.decode("utf-8", "replace")
        return [line.strip() for line in text.splitlines() if line.strip()]

    def end(self, patience: float = 5) -> int:
        """Wait for the program to exit, killing it after `patience` seconds; return its exit status. The descriptors
        stay open, so that no other thread uses a number that has become another file."""
        try:
            status = self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._reader.join()
        return status

    def ended(self, within: float) -> bool:
        """Whether the program has exited, or does so within this time (seconds)."""
        try:
            self._process.wait(within)
        except subprocess.TimeoutExpired:
            return False
        self._reader.join()
        return True

    def close(self) -> None:
        """End the program and close the pipes; no other thread may be using them."""
        with contextlib.suppress(OSError):
            self.end_input()
        self.end()
        self.stdout.close()
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe
            pipe.close()


class Link(Protocol):
    """Starts programs on the slave's host."""

    slave: Slave

    def spawn(self, argv: Sequence[bytes]) -> Channel:
        """Start a program there."""

    def agent(self, argv: Sequence[bytes]) -> Channel:
        """Start gsync's agent there with these arguments, installing it first if necessary."""

    def error(self, channel: Channel) -> GsyncError:
        """The error to raise once the program's pipes have broken: waits for its exit and reads its last words."""

    def has_rsync(self) -> bool:
        """Whether that host has rsync."""

    def rsync(self, epoch: int, ticket: str) -> list[bytes]:
        """The arguments with which an rsync here reaches its server side there, for the destination `slave:.` and on
        behalf of the connection with this epoch and ticket."""

    def alive(self) -> bool:
        """Whether the connection still stands, as far as is known without asking."""

    def break_off(self) -> None:
        """The connection is dead: end everything on it at once, without waiting for the other end. Any thread may
        call."""

    def close(self) -> None:
        """End the connection."""


def lost(slave: Slave, channel: Channel) -> GsyncError:
    """The error for a program that exited unasked."""
    status = channel.end()
    said = "; ".join(channel.said()[-3:])
    how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
    return Transient(f"slave {slave}: the agent {how}" + (f": {said}" if said else ""))
