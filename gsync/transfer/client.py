"""The public Python client of gsync's transfers; imported as `gsync.transfer`.

    from gsync.transfer import Client

    with Client() as gsync:
        sent = gsync.send("result.dat", to=["tape:2024"], failover=["scratch"], register="default")
        print(sent.at, sent.pending, sent.failed)

It works on the state directory's database. `send` needs no daemon; `gsync queue run` does the pending work.
"""

from __future__ import annotations

import os
import pwd
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.errors import UsageError
from gsync.base.log import get_logger
from gsync.base.model import NS, shown
from gsync.state.home import default_path
from gsync.transfer.catalog.catalog import open_catalog, parse_catalog
from gsync.transfer.queue.database import PATIENCE
from gsync.transfer.queue.intake import Intake
from gsync.transfer.queue.leases import Leases
from gsync.transfer.queue.orders import Orders
from gsync.transfer.queue.registry import StorePath, Stores
from gsync.transfer.queue.requests import (
    ENDED,
    NewOperation,
    NewRequest,
    NewTransfer,
    Request,
    Transfer,
    TransferState,
    new_id,
)
from gsync.transfer.queue.retry import RetryPolicy
from gsync.transfer.queue.transfers import Transfers
from gsync.transfer.queue.worker import worker_id
from gsync.transfer.send import FAILOVER_FOLDER, Attempt, NoPlace, Plan, Sending, measure, request_of, sending
from gsync.transfer.stores.store import Category, StoreError

_log = get_logger(__name__)

LEASE = 60.0    # seconds without a sign of life, after which the queue takes over a send


@dataclass(frozen=True, slots=True)
class Sent:
    """The outcome of a send, at the time it returned.

    request: its id, as `gsync queue show` takes it. at: where the file is, whole and durable; None: only the source is
    known. is_temporary: the file is at a failover store and moves on from there. pending: the remaining work, in words;
    the queue does it. failed: the places that did not take the file.
    """

    request: str
    file: str
    at: StorePath | None
    is_temporary: bool
    pending: tuple[str, ...]
    failed: tuple[Attempt, ...]
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Status:
    """The present state of a request. pending: the remaining work; reasons: why transfers failed or wait."""

    request: Request
    counts: dict[TransferState, int]
    reasons: tuple[str, ...]

    @property
    def ended(self) -> bool:
        return self.request.state in ENDED


class Client:
    """gsync's transfers in the state directory `home` (default: $GSYNC_HOME, /var/lib/gsync, or the user's own).

    stores: the registry of named stores (add, all, check, ban, allow). Use a client in one thread. Every method raises
    `gsync.base.errors.GsyncError`: UsageError for wrong arguments, StoreError for a store. looking: do not create a
    missing folder, for a client that only plans and asks.
    """

    def __init__(self, home: str | None = None, policy: RetryPolicy | None = None, *, looking: bool = False,
                 clock: Clock = SYSTEM_CLOCK, sleep: Callable[[float], None] = time.sleep, lease: float = LEASE,
                 patience: float = PATIENCE) -> None:
        self.home = os.path.abspath(home or default_path(os.environ))
        self.transfers = Transfers(self.home, looking, clock=clock, patience=patience)
        self._clock, self._sleep, self._lease = clock, sleep, lease
        self.stores = Stores(self.transfers)
        self._intake, self._orders = Intake(self.transfers), Orders(self.transfers)
        self._policy = policy or RetryPolicy()
        self._worker = worker_id()

    def close(self) -> None:
        self.stores.close()
        self.transfers.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # send

    def plan(self, file: str | bytes, to: Sequence[str], failover: Sequence[str] = (), register: str | None = None,
             name: str | None = None, owner: str | None = None) -> Plan:
        """Plan a send. Reads the file once; writes nothing."""
        if not to:
            raise UsageError("send: give a store with --to")
        given = os.fsencode(file)
        bname = os.fsencode(name) if name is not None else os.path.basename(given)
        if not bname or b"/" in bname or bname in (b".", b".."):
            raise UsageError(f"send {shown(given)}: not a file name: {shown(bname)!r}")
        source = os.path.realpath(given)
        content = measure(given)
        request = new_id()
        wanted = [_below(self.stores.folder(text), bname) for text in to]
        spare = [_below(_below(self.stores.folder(text), FAILOVER_FOLDER), request.encode(), bname)
                 for text in failover]
        stores = [place.store for place in (*wanted, *spare)]
        if len(set(stores)) < len(stores):
            raise UsageError(f"send {shown(given)}: name each store only once")
        return Plan(request, owner or user(), source[1:], wanted[0].path, tuple(wanted), tuple(spare), content,
                    parse_catalog(register) if register is not None else None, self._clock.now())

    def send(self, file: str | bytes, to: Sequence[str], failover: Sequence[str] = (), register: str | None = None,
             name: str | None = None, owner: str | None = None, label: str = "", priority: int = 0) -> Sent:
        """Bring a file to the first store of `to` that takes it, else to the first of `failover`.

        to, failover: NAME[:FOLDER] of a registered store, or a store's URL. register: a catalog (as for `gsync send
        --register`). name: the file's name there; default: its own name. send does not wait for stores or catalogs that
        are down: their work becomes pending, and `gsync queue run` does it. Raises only if nothing was begun or moved:
        UsageError, or OSError if neither the database nor the spool can be written.
        """
        return self.carry_out(self.plan(file, to, failover, register, name, owner), label, priority)

    def carry_out(self, plan: Plan, label: str = "", priority: int = 0) -> Sent:
        """Carry out a plan."""
        request = request_of(plan, label, priority)
        try:
            self._intake.begin(request, self._worker, self._lease)
        except sqlite3.OperationalError as exc:
            _log.warning("the database cannot be written, a send is recorded in the spool", request=request.id,
                         error=exc)
            return self._send_by_spool(plan, label, priority)
        with _renewing(self.home, self._worker, self._lease, self._clock):
            return self._send_by_database(plan)

    def _send_by_database(self, plan: Plan) -> Sent:
        transfers = self.transfers
        work = sending(transfers, self.stores, plan.request)
        failed: list[Attempt] = []
        try:
            self._do_operations(work, failed)
            pending = self._pending(work.plan)
        except sqlite3.OperationalError as exc:
            # The attempt is recorded, so the queue finds out how it ended.
            _log.warning("the database cannot be written, the queue resumes later", request=plan.request, error=exc)
            pending = _words(work.plan, [op.kind for op in request_of(plan).operations])
        return self._sent(work.plan, pending, failed)

    def _do_operations(self, work: Sending, failed: list[Attempt]) -> None:
        transfers, plan = self.transfers, work.plan
        for operation in transfers.operations(plan.request):
            (transfer,) = transfers.page(request=plan.request, operation=operation.id)
            until = self._clock.now() + int(self._lease * NS)
            if operation.position and not transfers.advance([transfer.id], TransferState.NEW, TransferState.ACQUIRED,
                                                            worker=self._worker, lease=until):
                break  # killed, or the queue already has it
            if operation.kind == "replicate" and work.plan.is_temporary:
                transfers.advance([transfer.id], TransferState.ACQUIRED, TransferState.NEW, worker=None, lease=0)
                break  # the wanted stores were just tried
            if not transfers.advance([transfer.id], TransferState.ACQUIRED, TransferState.SUBMITTED, by=self._worker):
                transfers.advance([transfer.id], TransferState.KILL, TransferState.KILLED, by=self._worker)
                break
            error = None
            try:
                work.do(operation.kind)
            except StoreError as exc:
                error = exc
            failed += work.failed
            self._leave_alone(work.failed)
            if error is not None:
                self._settle(transfer, error, work.plan)
                if not isinstance(error, NoPlace):
                    failed.append(Attempt(StorePath(transfer.store, transfer.path), str(error), error.category))
                break
            transfers.advance([transfer.id], (TransferState.SUBMITTED, TransferState.KILL), TransferState.DONE,
                              by=self._worker)

    def _settle(self, transfer: Transfer, error: StoreError, plan: Plan) -> None:
        """Set the state as the queue would. But a file that no store began to take fails at once: a late send would
        surprise."""
        decision = self._policy.judge(error.category, transfer.tries + 1, self._clock.now())
        state = TransferState.RETRY
        if decision.again is None or (transfer.kind == "place" and not plan.begun):
            state = TransferState.FAILED
        moved = self.transfers.advance([transfer.id], TransferState.SUBMITTED, state, by=self._worker,
                                       reason=str(error), category=error.category.value,
                                       tries=transfer.tries + decision.charged,
                                       not_before=decision.again or 0, worker=None, lease=0)
        if not moved:
            self.transfers.advance([transfer.id], TransferState.KILL, TransferState.KILLED, by=self._worker)

    def _leave_alone(self, failed: Sequence[Attempt]) -> None:
        """Ban stores that are down for a while, so that no process tries them."""
        for attempt in failed:
            if attempt.category is Category.STORE_DOWN and not self.stores.banned(attempt.place.store):
                self.stores.ban(attempt.place.store, attempt.error, self._policy.ban, by_queue=True)

    def _send_by_spool(self, plan: Plan, label: str, priority: int) -> Sent:
        """Send without the database: the spool records the progress, and the queue repeats every step later."""
        def note(plan: Plan) -> None:
            self._intake.spool.keep(request_of(plan, label, priority))

        note(plan)
        work = Sending(plan, self.stores, lambda text: open_catalog(text, self.home), note)
        failed: list[Attempt] = []
        for operation in request_of(plan).operations:
            if operation.kind == "replicate" and work.plan.is_temporary:
                break
            try:
                work.do(operation.kind)
            except StoreError as exc:
                failed += work.failed or [Attempt(plan.wanted[0], str(exc), exc.category)]
                break
            failed += work.failed
        if work.plan.at is None and not work.plan.begun:
            self._intake.spool.forget(plan.request)
            return self._sent(work.plan, [], failed)
        self._intake.submit_kept(request_of(work.plan, label, priority))
        return self._sent(work.plan, _words(work.plan, [op.kind for op in request_of(plan).operations]), failed)

    def _sent(self, plan: Plan, pending: Sequence[str], failed: Sequence[Attempt]) -> Sent:
        return Sent(plan.request, "/" + os.fsdecode(plan.source), plan.at, plan.is_temporary, tuple(pending),
                    tuple(failed), plan.content.size, plan.content.sha256)

    def _pending(self, plan: Plan) -> list[str]:
        over = (TransferState.DONE, TransferState.KILLED, TransferState.FAILED)
        return _words(plan, [op.kind for op in self.transfers.operations(plan.request) if op.state not in over])

    # the queue

    def submit(self, source: str, destination: str, register: str | None = None, owner: str | None = None,
               label: str = "", priority: int = 0) -> str:
        """Leave the copy of one file to the queue; return the request's id.

        source, destination: NAME:PATH of a registered store, /PATH of this host, or HOST:/PATH. register: publish it in
        this catalog when it has arrived.
        """
        here, there = self.stores.place(source), self.stores.place(destination)
        catalog = parse_catalog(register) if register is not None else None
        transfer = NewTransfer(here.store, here.path, there.store, there.path, catalog=catalog)
        return self._intake.submit(NewRequest("queue", owner or user(), [NewOperation("copy", [transfer])],
                                              label, priority))

    def status(self, request: str) -> Status:
        """The progress of a request, given by its id or a prefix of it."""
        found = self.transfers.request(request)
        if found is None:
            raise UsageError(f"no such request: {request}; list them with gsync queue list")
        rows = self.transfers.read("SELECT DISTINCT reason FROM transfers WHERE request=? AND reason<>'' LIMIT 10",
                                   (found.id,))
        return Status(found, self.transfers.counts(found.id), tuple(row[0] for row in rows))

    def requests(self, owner: str | None = None, limit: int = 1000) -> list[Request]:
        """The requests of one owner, or all, oldest first."""
        where, values = ("owner=?", [owner]) if owner is not None else ("1", [])
        return list(self.transfers.requests(where=where, values=values, limit=limit))

    def wait(self, request: str, timeout: float | None = None, interval: float = 0.2) -> Status:
        """Wait until the request has ended (DONE, FAILED or KILLED), or for `timeout` seconds; return its status. It
        does none of the work: `gsync queue run` must be running."""
        until = None if timeout is None else self._clock.monotonic() + timeout
        while not (status := self.status(request)).ended and (until is None or self._clock.monotonic() < until):
            self._sleep(interval)
        return status

    def kill(self, request: str) -> int:
        """Kill the unfinished transfers; return their number."""
        return self._orders.kill(request=self.status(request).request.id)

    def retry(self, request: str) -> int:
        """Retry transfers that failed, were killed, or wait for their next try; return their number."""
        return self._orders.retry(request=self.status(request).request.id)


def user() -> str:
    """The default owner of this process's requests."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _below(folder: StorePath, *names: bytes) -> StorePath:
    return StorePath(folder.store, b"/".join(filter(None, (folder.path, *names))))


def _words(plan: Plan, operations: Sequence[str]) -> list[str]:
    """The remaining work, in words for people."""
    spare = [place for place in plan.begun if place != plan.at]
    words = {"place": f"send it to {' or '.join(map(str, plan.places))}",
             "replicate": f"replicate it to {' or '.join(map(str, plan.wanted))}",
             "register": f"register it in {plan.catalog}",
             "tidy": "remove the replica at " + ", ".join(map(str, [plan.at] if plan.is_temporary else spare))}
    if plan.at is not None and not plan.is_temporary:
        operations = [op for op in operations if op not in ("place", "replicate") and (op != "tidy" or spare)]
    return [words[operation] for operation in operations if operation != "place" or plan.at is None]


@contextmanager
def _renewing(home: str, worker: str, lease: float, clock: Clock) -> Iterator[None]:
    """Renew the worker's leases for the duration of the block."""
    stop = threading.Event()

    def renew() -> None:
        transfers = Transfers(home, clock=clock)
        leases = Leases(transfers, worker)
        try:
            while not stop.wait(lease / 3):
                with suppress(sqlite3.OperationalError):
                    leases.renew(lease)
        finally:
            transfers.close()

    thread = threading.Thread(target=renew, name="renew")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
