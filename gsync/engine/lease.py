"""Decides which worker of a subvolume may work: the holder of its lease. Each claim gets a larger epoch than any
before.

On one node the worker's lock file keeps others out, and LocalLease only counts epochs. Between nodes (MetaLease) the
lease is a folder on the meta volume. Promise: no epoch is given twice. A holder that dies, hangs or loses the meta
volume blocks others for little more than the interval. No clocks of two nodes are compared. The lease decides who
should work; the agent makes sure that an older holder changes nothing any more, by refusing older epochs.
"""

from __future__ import annotations

import json
import os
import queue
import re
import secrets
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.durable import replace_file
from gsync.base.errors import Faulty
from gsync.base.log import get_logger

_log = get_logger(__name__)


class LeaseLost(Exception):
    """Another worker now holds the lease of this worker's subvolume."""


class Lease(Protocol):
    """One worker's claim. Its methods raise Faulty if the claim can be neither made nor checked."""

    def take(self) -> int | None:
        """The epoch of a new claim, larger than any before, durably; None while another worker holds the lease."""

    def held(self) -> bool:
        """Whether the last claim still stands. The worker asks before every commit."""

    def release(self) -> None:
        """Give the lease up, so that another worker need not wait."""

    def beside(self) -> int | None:
        """The stime (ns) of the worker that holds the lease instead of this one; None if unknown."""

    def committed(self, stime: int) -> None:
        """Tell waiting workers this holder's stime (ns)."""


class LocalLease:
    """For a session of one node."""

    def __init__(self, path: str) -> None:
        self._path = path

    def take(self) -> int | None:
        try:
            with open(self._path, encoding="ascii") as file:
                epoch = int(file.read()) + 1
        except FileNotFoundError:
            epoch = 1
        replace_file(self._path, b"%d\n" % epoch)
        return epoch

    def held(self) -> bool:
        return True

    def release(self) -> None:
        """Does nothing: no other worker waits."""

    def beside(self) -> int | None:
        return None

    def committed(self, stime: int) -> None:
        """Does nothing: no other worker asks."""


# between nodes

_RECORD = 512           # bytes; one write, so that a reader sees the old content or the new
_FILE = re.compile(r"epoch\.([1-9][0-9]*)")
ANSWER = 2.0            # seconds that the meta volume has to answer
_TRIES = 10             # attempts at reading a file that disappears meanwhile: each time a younger one has appeared


@dataclass(frozen=True)
class Claim:
    """The content of an epoch's file. `token` is the process's; `beats` grows while it lives; stime: see beside."""

    epoch: int
    node: str
    pid: int
    started: int    # ns since the epoch
    token: str
    beats: int = 0
    stime: int | None = None
    released: bool = False

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode("ascii").ljust(_RECORD - 1) + b"\n"

    @classmethod
    def parse(cls, data: bytes) -> Claim | None:
        """The claim; None if the data is not (yet) a whole claim."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError):
            return None


class Claims:
    """The files `epoch.<n>` in a folder that several nodes see. The youngest counts and is never removed. So, however
    old the listing that a worker acts on, an epoch is valid only if it is still the youngest after it was made."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._identity: tuple[int, int] | None = None

    @contextmanager
    def open(self, make: bool = False) -> Iterator[int]:
        """A descriptor of the folder; OSError if it is not the one of the last call with `make`."""
        if make:
            with suppress(FileExistsError):  # only this folder: its parent exists, unless nothing is mounted
                os.mkdir(self._folder, 0o700)
        fd = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            st = os.fstat(fd)
            if make:
                self._identity = (st.st_dev, st.st_ino)
            elif self._identity != (st.st_dev, st.st_ino):
                raise OSError(f"{self._folder} is another folder than before")
            yield fd
        finally:
            os.close(fd)

    def epochs(self, fd: int) -> list[int]:
        return sorted(int(match[1]) for name in os.listdir(fd) if (match := _FILE.fullmatch(name)))

    def youngest(self, fd: int) -> tuple[int, bytes]:
        """The youngest epoch and its file's content; (0, b"") if there is none."""
        for _ in range(_TRIES):
            epochs = self.epochs(fd)
            if not epochs:
                return 0, b""
            with suppress(FileNotFoundError):
                return epochs[-1], self._read(fd, epochs[-1])
        raise OSError(f"{self._folder}: what is listed cannot be opened")

    def _read(self, fd: int, epoch: int) -> bytes:
        file = os.open(f"epoch.{epoch}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=fd)
        try:
            return os.pread(file, _RECORD, 0)
        finally:
            os.close(file)

    def make(self, fd: int, claim: Claim) -> bool:
        """Make the claim's file, durably. False if the epoch is taken, or in vain because there is a younger one."""
        name = f"epoch.{claim.epoch}"
        try:
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=fd)
        except FileExistsError:
            return False
        try:
            os.write(file, claim.to_bytes())
            os.fsync(file)
        finally:
            os.close(file)
        os.fsync(fd)
        youngest, data = self.youngest(fd)
        if youngest == claim.epoch and data == claim.to_bytes():
            return True
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=fd)
        return False

    def rewrite(self, fd: int, claim: Claim) -> None:
        """Rewrite the claim, not durably: it is for those who look now. FileNotFoundError if the file is gone."""
        file = os.open(f"epoch.{claim.epoch}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=fd)
        try:
            os.pwrite(file, claim.to_bytes(), 0)
        finally:
            os.close(file)

    def remove_older(self, fd: int, epoch: int) -> None:
        for older in self.epochs(fd):
            if older < epoch:
                with suppress(FileNotFoundError):
                    os.unlink(f"epoch.{older}", dir_fd=fd)


class MetaLease:
    """One worker's claim, beside those of other nodes, in a folder of the meta volume.

    A worker takes the lease by making the file of the next epoch (O_EXCL), and holds it by rewriting that file a few
    times per `interval` (seconds). There is no lock that a frozen process could keep. A worker that wants the lease
    watches the youngest file: once that is given up, or has not changed for a little more than the interval by the
    watcher's own clock, it takes the next epoch. A holder whose last beat is older than the interval has lost the
    lease, before anybody else takes it. `check` raises Faulty if the meta volume is not there; `cached`: how many
    seconds old the visible state of the meta volume may be; `answer`: seconds that it has to answer.

    One thread of this object does everything that touches the meta volume, so nobody else is stuck if it hangs.
    """

    def __init__(self, folder: str, interval: float, node: str, check: Callable[[], None] = lambda: None,
                 cached: float = 0.0, clock: Clock = SYSTEM_CLOCK, answer: float = ANSWER,
                 token: Callable[[], str] = lambda: secrets.token_hex(8)) -> None:
        self._claims = Claims(folder)
        self._interval, self._patience = interval, interval * 1.25 + cached
        self._check, self._clock = check, clock.boottime  # a suspended holder must notice that time has passed
        self._answer = answer
        self._me = Claim(0, node, os.getpid(), clock.now(), token())
        # owned by the thread
        self._seen: tuple[int, bytes] = (-1, b"")
        self._seen_at = 0.0
        self._given_up_at = float("-inf")
        self._next = 0.0        # when the next beat is due
        self._failed = False
        # written by the thread, read by all
        self._mine: Claim | None = None
        self._beat_at = 0.0
        self._other_stime: int | None = None
        self._stime: int | None = None
        self._jobs: queue.Queue[tuple[Callable[[], Any], Future[Any]] | None] = queue.Queue()
        self._asked: Future[int | None] | None = None
        # A daemon: a thread stuck in a dead mount must not keep the worker from exiting.
        threading.Thread(target=self._serve, name="lease", daemon=True).start()

    # called by the worker

    def take(self) -> int | None:
        if self._asked is None:
            self._asked = self._do(self._try)
        try:
            epoch = self._asked.result(max(self._answer, self._interval))
        except TimeoutError:
            raise Faulty("the meta volume does not answer; nothing is replicated here until it does, since another "
                         "node may be at it") from None
        except OSError as exc:
            self._asked = None
            raise Faulty(f"the meta volume cannot be used: {exc.strerror or exc}") from exc
        except BaseException:
            self._asked = None
            raise
        self._asked = None
        return epoch

    def held(self) -> bool:
        return self._mine is not None and self._clock() - self._beat_at < self._interval

    def release(self) -> None:
        """If the meta volume hangs, others find out by themselves."""
        if self._mine is not None:
            with suppress(TimeoutError):
                self._do(self._give_up).result(self._answer)

    def beside(self) -> int | None:
        return self._other_stime

    def committed(self, stime: int) -> None:
        self._stime = stime

    def beat(self) -> None:
        """Renew the claim now; the thread also does so by itself, in time."""
        if self._mine is not None:
            with suppress(TimeoutError):
                self._do(self._renew).result(self._answer)

    def close(self) -> None:
        """End the thread, if it can end."""
        self._jobs.put(None)

    # the thread

    def _do(self, job: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self._jobs.put((job, future))
        return future

    def _serve(self) -> None:
        pause: float | None = None
        while True:
            try:
                asked = self._jobs.get(timeout=pause)
            except queue.Empty:
                self._renew()
            else:
                if asked is None:
                    return
                job, future = asked
                try:
                    future.set_result(job())
                except BaseException as exc:  # noqa: BLE001 the caller that asked gets it
                    future.set_exception(exc)
            pause = None if self._mine is None else max(0.0, self._next - self._clock())

    def _try(self) -> int | None:
        """Look, and take the lease if it is free; return the epoch."""
        if self._mine is not None and self.held():
            return self._mine.epoch  # taken for a caller that did not wait for it
        self._mine = None
        self._check()
        with self._claims.open(make=True) as fd:
            youngest, data = self._claims.youngest(fd)
            claim = Claim.parse(data)
            if claim is not None:
                self._other_stime = claim.stime
            if not self._is_free(youngest, data, claim):
                return None
            return self._take(fd, youngest)

    def _is_free(self, epoch: int, data: bytes, claim: Claim | None) -> bool:
        now = self._clock()
        if epoch == 0:
            return True
        if claim is not None and claim.token == self._me.token:
            # Given up because something here did not work: other nodes come first.
            return not claim.released or now - self._given_up_at > self._interval
        if claim is not None and claim.released:
            return True
        if (epoch, data) != self._seen:
            self._seen, self._seen_at = (epoch, data), now
        return now - self._seen_at > self._patience

    def _take(self, fd: int, youngest: int) -> int | None:
        epoch = youngest + 1
        claim = replace(self._me, epoch=epoch, stime=self._other_stime)
        if not self._claims.make(fd, claim):
            return None
        self._stime = None
        self._beat_at = self._clock()
        self._next = self._beat_at + self._interval / 4
        self._mine = self._rewritten(fd, claim, released=False)  # making it durable may have taken long
        return epoch

    def _rewritten(self, fd: int, claim: Claim, released: bool) -> Claim:
        stime = claim.stime if self._stime is None else self._stime
        claim = replace(claim, beats=claim.beats + 1, stime=stime, released=released)
        self._claims.rewrite(fd, claim)
        return claim

    def _renew(self) -> None:
        if self._mine is None:
            return
        begun = self._clock()
        self._next = begun + self._interval / 4
        if begun - self._beat_at >= self._interval:
            self._lose("it could not be renewed in time")
            return
        try:
            with self._claims.open() as fd:
                if self._claims.epochs(fd)[-1:] != [self._mine.epoch]:
                    self._lose("another worker has taken it")
                    return
                self._mine = self._rewritten(fd, self._mine, released=False)
                self._claims.remove_older(fd, self._mine.epoch)
        except OSError as exc:
            if not self._failed:
                _log.warning("the meta volume cannot be written to", error=exc)
            self._failed = True
            return
        self._failed = False
        if self._clock() - self._beat_at >= self._interval:
            self._lose("it could not be renewed in time")
        else:
            self._beat_at = begun

    def _lose(self, why: str) -> None:
        assert self._mine is not None
        _log.warning("the lease is lost", epoch=self._mine.epoch, reason=why)
        self._mine = None

    def _give_up(self) -> None:
        if self._mine is None:
            return
        self._given_up_at = self._clock()
        with suppress(OSError), self._claims.open() as fd:
            if self._claims.epochs(fd)[-1:] == [self._mine.epoch]:
                self._rewritten(fd, self._mine, released=True)
        self._mine = None
