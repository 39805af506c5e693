"""The queue's worker: acquires due transfers, carries them out in jobs, and records the results.

One thread (`run`) decides and writes: it acquires transfers (submitter), abandons jobs that make no progress (monitor),
and writes results (reporter) by the retry policy. The threads of its jobs move the bytes. Promise: whatever happens to
this process, nothing is lost or done twice. Another worker examines a dead worker's transfers before they are NEW
again; a worker's result counts only while it holds the transfer. Any number of workers share a database. Not here:
threads (crew), the work of each kind (handlers), states (transfers), leases (leases).
"""

from __future__ import annotations

import os
import secrets
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.errors import GsyncError
from gsync.base.log import get_logger
from gsync.base.model import NS, shown
from gsync.base.process import is_alive, start_time
from gsync.transfer.queue.crew import Crew, JobResult, QueueJob
from gsync.transfer.queue.handlers import OWN, Handler, is_finished
from gsync.transfer.queue.intake import Intake
from gsync.transfer.queue.leases import Leases
from gsync.transfer.queue.orders import Orders
from gsync.transfer.queue.registry import Stores
from gsync.transfer.queue.requests import TAKEN, Transfer, TransferState, replicas_text
from gsync.transfer.queue.retry import RetryPolicy
from gsync.transfer.queue.transfers import Transfers
from gsync.transfer.stores.store import Category, Content, StoreError

_log = get_logger(__name__)
_TICK = 0.1            # s between two turns when nothing happens
_SELDOM = 600.0        # s between two prunings of the history


@dataclass(frozen=True, slots=True)
class QueueSettings:
    """jobs: at a time; files and size (bytes): limits of one job; lease, job_timeout (without any progress), history:
    seconds."""

    jobs: int = 4
    files: int = 200
    size: int = 1 << 30
    lease: float = 60.0
    job_timeout: float = 600.0
    history: float = 30 * 86400.0
    policy: RetryPolicy = field(default_factory=RetryPolicy)


class QueueWorker:
    """One worker on the database in the state directory `home`.

    handlers: one for each kind; other kinds are left alone. reread: returns the current settings, called a few times a
    minute; while it raises a GsyncError the last ones stay in effect. request: work only on that one. once: end when
    nothing more can be done now. told: called with each result (transfer, state, reason).
    """

    def __init__(self, home: str, settings: QueueSettings | None = None, *,
                 handlers: Mapping[str, Handler] = OWN, reread: Callable[[], QueueSettings] | None = None,
                 stop: threading.Event | None = None,
                 request: str | None = None, once: bool = False,
                 clock: Clock = SYSTEM_CLOCK,
                 told: Callable[[Transfer, TransferState, str], None] = lambda transfer, state, reason: None) -> None:
        self.id = worker_id()
        self._settings, self._reread = settings or QueueSettings(), reread
        self._stop = stop or threading.Event()
        self._request, self._once, self._told = request, once, told
        self._clock = clock
        self._db = Transfers(home, clock=clock)
        self._intake, self._orders, self._leases = Intake(self._db), Orders(self._db), Leases(self._db, self.id)
        self._stores = Stores(self._db)
        self._crew = Crew(home, handlers, self._stop, clock)
        self._unwritten: list[tuple[QueueJob, list[JobResult]]] = []
        self._doubt = False  # a write failed: transfers may be in a wrong state
        self._renewed = self._pruned = 0.0
        self._dead: set[str] = set()

    def run(self) -> None:
        """Run until `stop` is set; with `once` or a request, until nothing is left."""
        try:
            while not self._stop.is_set():
                try:
                    busy = self._turn()
                except sqlite3.OperationalError as exc:  # full, or locked for long: the results are examined later
                    _log.warning("the database cannot be used for now", error=exc)
                    self._doubt = True
                    self._stop.wait(1.0)
                    continue
                if not busy and (self._once or self._is_ended()):
                    break
        finally:
            self._end()

    def _is_ended(self) -> bool:
        request = self._db.request(self._request) if self._request else None
        return request is not None and request.state in (TransferState.DONE, TransferState.FAILED, TransferState.KILLED)

    def _turn(self) -> bool:
        """Do one round of everything; return whether more can be done at once."""
        self._renew()
        self._intake.sweep()
        self._db.wake()
        self._recover()
        self._monitor()
        begun = self._submit()
        reported = self._report(0.0 if begun else _TICK if self._crew.jobs else 0.0)
        if not self._crew.jobs and not begun and not reported:
            if not self._once:
                self._stop.wait(_TICK)
            return False
        return True

    def _end(self) -> None:
        """Abandon the running jobs; their transfers are NEW again at once."""
        self._stop.set()
        try:
            self._drain(self._settings.lease)
            for job in list(self._crew.jobs):
                self._abandon(job, [])
        finally:
            self._stores.close()
            self._crew.close()
            self._db.close()

    def _drain(self, patience: float) -> None:
        end = self._clock.monotonic() + min(patience, 5.0)
        while self._crew.jobs and self._clock.monotonic() < end:
            self._report(_TICK)

    # leases

    def _renew(self) -> None:
        now = self._clock.monotonic()
        if now - self._renewed > self._settings.lease / 4:
            self._take_settings()
            self._leases.renew(self._settings.lease)
            self._renewed = now
        if now - self._pruned > _SELDOM or not self._pruned:
            self._orders.prune(self._settings.history)
            self._pruned = now

    def _take_settings(self) -> None:
        try:
            settings = self._reread() if self._reread is not None else self._settings
        except GsyncError as exc:
            _log.warning("the settings cannot be read, the previous ones stay in effect", error=exc)
            return
        if settings != self._settings:
            self._settings = settings
            _log.info("settings changed", jobs=settings.jobs, max_retries=settings.policy.max_retries,
                      job_timeout=settings.job_timeout)

    def _recover(self) -> None:
        """Examine the transfers of dead workers: each is done, or NEW again."""
        for worker in self._leases.workers() - {self.id} - self._dead:
            if is_dead(worker):
                self._dead.add(worker)
                self._leases.expire(worker)
        if self._doubt:
            mine = {t.id for job in self._crew.jobs for t in job.transfers}
            mine |= {t.id for job, _ in self._unwritten for t in job.transfers}
            for t in self._leases.held():
                if t.id not in mine:
                    self._examine(t)
            self._doubt = False
        for t in self._leases.expired():
            if self._request in (None, t.request) and self._leases.adopt(t, self._settings.lease):
                self._examine(t)

    def _examine(self, t: Transfer) -> None:
        if t.state is TransferState.ACQUIRED:
            self._db.advance([t.id], TransferState.ACQUIRED, TransferState.NEW, by=self.id)
            return
        try:
            done = is_finished(self._stores, t)
        except GsyncError as exc:
            self._judge(t, exc, self._which_are_down(t.link))
            return
        if done:
            self._finish(t, t.state, None)
        elif t.state is TransferState.KILL:
            self._kill(t)
        else:
            self._judge(t, StoreError("its worker died", Category.TRANSIENT), [])

    # submitter

    def _submit(self) -> bool:
        """Begin jobs while there is room; return whether any began."""
        begun = False
        while len(self._crew.jobs) < self._settings.jobs:
            with self._db.atomic():  # each acquired transfer has a job, or nothing is acquired
                taken = self._leases.acquire(self._settings.files, self._settings.lease, self._settings.size,
                                             self._request, self._crew.kinds)
                ids = [t.id for t in taken]
                self._db.advance(ids, TransferState.ACQUIRED, TransferState.SUBMITTED, by=self.id)
                jobs = [self._job(transfers) for transfers in _jobs_of(taken)]
            if not jobs:
                break
            self._crew.begin(jobs)
            begun = True
        return begun

    def _job(self, transfers: Sequence[Transfer]) -> QueueJob:
        return self._crew.job(transfers, {ident: self._db.operation(ident).arguments
                                          for ident in {t.operation for t in transfers}})

    # monitor

    def _monitor(self) -> None:
        killed = self._leases.killed() if self._crew.jobs else set()
        for job in self._crew.jobs:
            job.killed |= killed
        for job in self._crew.silent(self._settings.job_timeout):
            silence = f"no progress for {self._settings.job_timeout:.0f} s"
            self._abandon(job, [JobResult(t, StoreError(silence, Category.TRANSIENT)) for t in job.transfers])

    def _abandon(self, job: QueueJob, results: list[JobResult]) -> None:
        self._crew.abandon(job)
        self._write(job, results or [JobResult(t, given_up=True) for t in job.transfers])

    # reporter

    def _report(self, wait: float) -> bool:
        """Record the results of ended jobs; return whether there were any."""
        self._unwritten += self._crew.ended(wait)
        came = bool(self._unwritten)
        while self._unwritten:
            self._write(*self._unwritten[0])
            del self._unwritten[0]
        return came

    def _write(self, job: QueueJob, results: Sequence[JobResult]) -> None:
        down: list[str] = []
        if any(isinstance(r.error, StoreError) and r.error.category is Category.STORE_DOWN for r in results):
            down = self._which_are_down(job.transfers[0].link)
        owner = job.transfers[0].owner
        with self._db.atomic():
            good = [r for r in results if r.error is None and not r.given_up]
            arrived = set(self._db.advance([r.transfer.id for r in good], TransferState.SUBMITTED,
                                           TransferState.VERIFYING, by=self.id))
            for result in good:
                was = TransferState.VERIFYING if result.transfer.id in arrived else TransferState.KILL
                self._finish(result.transfer, was, result.content)
            for result in results:
                if result.given_up:
                    self._let_go(result.transfer)
                elif result.error is not None:
                    self._judge(result.transfer, result.error, down)
            if not any(other.transfers[0].owner == owner for other in self._crew.jobs):
                self._leases.release(owner)

    def _finish(self, t: Transfer, was: TransferState, content: Content | None) -> None:
        columns = {} if content is None else {"size": content.size, "checksum": content.sha256}
        if self._db.advance([t.id], was, TransferState.DONE, by=self.id, reason="", category=None, **columns):
            self._told(t, TransferState.DONE, "")

    def _let_go(self, t: Transfer) -> None:
        """Return a transfer that was broken off by a kill, or because this worker ends."""
        if not self._db.advance([t.id], TAKEN, TransferState.NEW, by=self.id, worker=None, lease=0):
            self._kill(t)

    def _kill(self, t: Transfer) -> None:
        if self._db.advance([t.id], TransferState.KILL, TransferState.KILLED, by=self.id, reason="killed"):
            self._told(t, TransferState.KILLED, "killed")

    def _judge(self, t: Transfer, error: GsyncError, down: Sequence[str]) -> None:
        """Decide a transfer's state after an error; down: the stores that are down."""
        category = getattr(error, "category", Category.PERMANENT)
        if category is Category.STORE_DOWN and not down:  # it is up again, or another store was down
            category = Category.TRANSIENT
        decision = self._settings.policy.judge(category, t.tries + 1, self._clock.now())
        if decision.ban:
            for store in down:
                self._stores.ban(store, str(error), decision.ban / NS, by_queue=True)
        tries = t.tries + decision.charged
        columns: dict[str, object] = {"tries": tries, "category": category.value, "reason": str(error)}
        state = TransferState.FAILED if decision.again is None else TransferState.RETRY
        if state is TransferState.RETRY:
            columns |= {"not_before": decision.again, "worker": None, "lease": 0}
            if category is Category.CORRUPT and t.replicas:  # try the next replica; this one goes last
                (store, path), *others = t.replicas
                columns |= {"source": store, "source_path": path,
                            "replicas": replicas_text([*others, (t.source, t.source_path)])}
        if self._db.advance([t.id], TAKEN, state, by=self.id, **columns):
            self._told(t, state, str(error))
            _log.info("transfer failed" if state is TransferState.FAILED else "transfer will be retried",
                      transfer=t.id,
                      path=shown(t.path), tries=tries, error=error)
        else:
            self._kill(t)

    def _which_are_down(self, link: tuple[str, str]) -> list[str]:
        down = []
        for name in set(link):
            try:
                self._stores.forget(name)
                self._stores.get(name).probe()
            except StoreError:
                down.append(name)
            except GsyncError:
                pass
        return down


def _jobs_of(transfers: Iterable[Transfer]) -> list[list[Transfer]]:
    """Group by kind and link, keeping their order."""
    found: dict[tuple[str, str, str], list[Transfer]] = {}
    for t in transfers:
        found.setdefault((t.kind, *t.link), []).append(t)
    return list(found.values())


def worker_id() -> str:
    """A worker's id: host, pid, start time of the process, and a part unique in it."""
    pid = os.getpid()
    return f"{socket.gethostname()}/{pid}/{start_time(pid) or 0}/{secrets.token_hex(3)}"


def is_dead(worker: str) -> bool:
    """Whether a worker is known to be dead: its process was on this host, and is gone."""
    try:
        host, pid, started, _ = worker.rsplit("/", 3)
        return host == socket.gethostname() and not is_alive(int(pid), int(started))
    except ValueError:
        return False
