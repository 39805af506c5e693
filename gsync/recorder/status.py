"""A recorder's published status, and how others talk to it: recorder.status and the FIFO recorder.ctl.

The status file is JSON, replaced in one step about once a second, not fsynced. Its facts held when it was written: a
reader that needs newer ones waits until complete_up_to has passed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.durable import replace_file
from gsync.base.errors import Transient
from gsync.base.process import Lock
from gsync.state.home import Brick

SCANNING, RECORDING, FAULTY, STOPPED = "Scanning", "Recording", "Faulty", "Stopped"
_LOOK_AGAIN = 0.01


@dataclass(frozen=True)
class RecorderStatus:
    """recorder.status. Times in ns since the epoch, last_changelog in s.

    state: Scanning (the tree is compared with the index), Recording, Faulty (with `reason`) or Stopped. watching_since:
    every change from then on is in the changelogs, or will be; None until the first scan has come that far.
    complete_up_to: every change up to then is in the changelogs. gaps: how often the recording was interrupted.
    unbroken_since: every change since then was seen as it happened (None: the recording is interrupted now). entries,
    bytes: the tree as of the last scan; scanned: names that a running scan has looked at.
    """

    state: str = SCANNING
    reason: str = ""
    pid: int = 0
    detector: str = ""
    gaps: int = 0
    unbroken_since: int | None = None
    watching_since: int | None = None
    complete_up_to: int | None = None
    last_changelog: int | None = None
    entries: int = 0
    bytes: int = 0
    scanned: int = 0
    updated: int = 0

    @property
    def is_faulty(self) -> bool:
        return self.state == FAULTY


def write_status(path: str, status: RecorderStatus) -> None:
    """Replace the status file in one step."""
    replace_file(path, json.dumps(dataclasses.asdict(status)).encode("ascii"), durable=False)


def read_status(path: str) -> RecorderStatus | None:
    """The status in the file; None if there is no readable one."""
    try:
        with open(path, encoding="ascii") as file:
            values: dict[str, Any] = json.load(file)
        return RecorderStatus(**values)
    except (OSError, ValueError, TypeError):
        return None


class RecorderPort:
    """A brick's recorder, in whichever process, as a worker or a command sees it. `meanwhile` is called again and again
    while waiting."""

    def __init__(self, brick: Brick, stop: threading.Event | None = None, timeout: float = 60.0,
                 clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self.meanwhile: Callable[[], None] = lambda: None
        self._brick = brick
        self._stop = stop or threading.Event()
        self._timeout = timeout

    def holder(self) -> int | None:
        """The pid of the running recorder, None if none runs."""
        return Lock(self._brick.lock, "recorder").holder()

    def status(self) -> RecorderStatus | None:
        return read_status(self._brick.status)

    def poke(self) -> bool:
        """Request a cut now; False if no recorder listens."""
        try:
            fd = os.open(self._brick.ctl, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # no FIFO yet, or nobody has it open
            return False
        try:
            os.write(fd, b"\n")
        except BlockingIOError:
            pass  # there is enough to read already
        finally:
            os.close(fd)
        return True

    def wait_complete(self, until_ns: int) -> None:
        """Return once complete_up_to has passed `until_ns`. Transient if that does not come in time, or on stop."""
        end = self._clock.monotonic() + self._timeout
        poked = False
        while True:
            status = self.status()
            if status is not None and status.complete_up_to is not None and status.complete_up_to >= until_ns:
                return
            poked = poked or self.poke()
            self.meanwhile()
            if self._stop.wait(_LOOK_AGAIN):
                raise Transient("the recorder was not waited for: asked to stop")
            if self._clock.monotonic() > end:
                state = "none runs" if self.holder() is None else status.reason or status.state if status else "silent"
                raise Transient(f"the recorder has not recorded up to now within {self._timeout:.0f} s ({state})")


class Control:
    """The recorder's end of recorder.ctl."""

    def __init__(self, path: str) -> None:
        try:
            os.mkfifo(path, 0o600)
        except FileExistsError:
            if not stat.S_ISFIFO(os.lstat(path).st_mode):
                os.unlink(path)
                os.mkfifo(path, 0o600)
        # Opened for writing as well: otherwise it reads end of file whenever no writer has it open.
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)

    def asked(self) -> bool:
        """Whether a cut was requested since the last call."""
        try:
            return bool(os.read(self.fd, 1 << 16))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self.fd)
