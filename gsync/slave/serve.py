"""Serves one worker over stdin and stdout (`agent ROOT`): frames (gsync/base/rpc.py) in, frames and signs of life out.

It answers requests one at a time. It exits at end of file on stdin, and after `timeout` seconds of silence. While it is
idle, it deletes what commits have let go and looks at its pass. Standard library only, Python 3.9.
"""

from __future__ import annotations

import itertools
import os
import select
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from gsync.base import rpc
from gsync.base.errors import Transient
from gsync.link.protocol import Fenced
from gsync.slave.agent import FIRST_TIMEOUT, Agent
from gsync.slave.directory.target import DirectoryTarget
from gsync.slave.outcome import Step
from gsync.slave.target import Target, is_volume, volume_of

_SWEEP_CHECK = 64          # deletions between two looks at stdin
_LOOK_EVERY = 1.0          # seconds between an idle agent's looks at its pass


class Silence(Exception):
    """The worker was silent for too long: the connection is dead."""


class Requests:
    """stdin with a limit on silence; read() is as rpc.read_frame needs it. idle: called now and then while waiting."""

    def __init__(self, fd: int, idle: Callable[[], None]) -> None:
        self._fd = fd
        self._idle = idle
        self._data = b""
        self.timeout = FIRST_TIMEOUT

    def waiting(self, seconds: float = 0) -> bool:
        """Whether there is something to read (end of file counts)."""
        return bool(self._data) or bool(select.select([self._fd], [], [], seconds)[0])

    def read(self, size: int) -> bytes:
        if not self._data:
            until = time.monotonic() + self.timeout
            while not self.waiting(max(0.0, min(_LOOK_EVERY, until - time.monotonic()))):
                if time.monotonic() >= until:
                    raise Silence
                self._idle()
            self._data = os.read(self._fd, max(size, 1 << 16))
        data, self._data = self._data[:size], self._data[size:]
        return data


class Answers:
    """stdout with a limit for a peer that does not read; any thread may write."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()
        self._said = time.monotonic()
        self._beating: threading.Thread | None = None
        self._over = threading.Event()
        os.set_blocking(fd, False)

    def write(self, data: bytes, timeout: float) -> None:
        with self._lock:
            self._write(data, timeout)

    def _write(self, data: bytes, timeout: float) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view):]
            except BlockingIOError:
                if not select.select([], [self._fd], [], timeout)[1]:
                    raise Silence from None
        self._said = time.monotonic()

    def beat(self, seconds: float) -> None:
        """From now on, write something at least this often, whatever else is going on."""
        self._beating = threading.Thread(target=self._beat, args=(seconds,), name="heartbeat", daemon=True)
        self._beating.start()

    def _beat(self, seconds: float) -> None:
        pause = seconds
        while not self._over.wait(pause):
            pause = self._said + seconds - time.monotonic()
            if pause <= 0:
                pause = seconds
                if self._lock.acquire(blocking=False):  # otherwise an answer is being written now
                    try:
                        self._write(rpc.encode(rpc.BEAT), seconds)
                    except (OSError, Silence):
                        return  # the answering thread finds out for itself
                    finally:
                        self._lock.release()

    def end(self) -> None:
        """Stop the beat."""
        self._over.set()
        if self._beating is not None:
            self._beating.join()


def target_of(root: bytes, step: Step) -> Target:
    """The target that a ROOT names."""
    if is_volume(root):
        from gsync.slave.gluster.target import VolumeTarget  # few hosts have a volume

        return VolumeTarget(volume_of(root), step)
    return DirectoryTarget(root, step)


def serve(target: Target, stdin: int, stdout: int) -> None:
    """Answer requests about the target until the stream or the agent ends. Raises Silence, or Fenced if it was
    displaced while idle."""
    sink = Answers(stdout)
    agent = Agent(target, sink.beat)
    source = Requests(stdin, agent.check)
    try:
        _serve(agent, source, sink)
    finally:
        sink.end()
        agent.close()


def _serve(agent: Agent, source: Requests, sink: Answers) -> None:
    def still_ours() -> bool:
        agent.check()
        return True

    while True:
        more = not source.waiting()
        while more:
            more = agent.tidy(_now_and_then(lambda: still_ours() and not source.waiting())) and not source.waiting()
        source.timeout = agent.timeout
        request = rpc.read_frame(source)  # type: ignore[arg-type]
        if request is None:
            return
        answer = agent.answer(request)
        sink.write(rpc.encode(answer), agent.timeout)
        if agent.ends:
            break
    if "error" not in answer:
        with suppress(Fenced):
            agent.tidy(_now_and_then(still_ours))


def _now_and_then(look: Callable[[], bool]) -> Callable[[], bool]:
    """A function that calls `look` only every so many times, and returns True the other times."""
    calls = itertools.count(1)
    return lambda: next(calls) % _SWEEP_CHECK != 0 or look()


def run(root: bytes, step: Step = lambda name: None) -> int:
    """Serve one worker over stdin and stdout; return the exit status. step: told of every point at which a crash may
    follow."""
    stdout = os.dup(1)
    os.dup2(2, 1)  # only frames may reach the worker, whoever prints
    try:
        serve(target_of(root, step), 0, stdout)
    except Fenced as exc:
        print(exc, file=sys.stderr)
        return Fenced.exit_code
    except Silence:
        print("nothing heard from the worker; exiting", file=sys.stderr)
        return Transient.exit_code
    except Transient as exc:
        print(exc, file=sys.stderr)
        return Transient.exit_code
    except BrokenPipeError:
        return Transient.exit_code
    return 0
