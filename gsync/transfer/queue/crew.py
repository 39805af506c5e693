"""The jobs of a queue's worker: the threads that move the bytes.

A job holds transfers of one owner, link and kind, which become durable together. Promise: each started job reports the
results of its transfers exactly once, unless it is abandoned. Not here: which transfers are taken, and what their
results mean (worker).
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

from gsync.base.clock import Clock
from gsync.base.errors import GsyncError
from gsync.base.log import get_logger
from gsync.transfer.queue.handlers import Context, Handler
from gsync.transfer.queue.registry import Stores
from gsync.transfer.queue.requests import Transfer
from gsync.transfer.queue.transfers import Transfers
from gsync.transfer.stores.store import Category, Content, StoreError

_log = get_logger(__name__)


class _GivenUp(Exception):
    """The job must not continue with this transfer."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """A job's result for one of its transfers."""

    transfer: Transfer
    error: GsyncError | None = None
    content: Content | None = None
    given_up: bool = False


class _Tools:
    """The database and stores of one job thread; one job after the other uses them."""

    def __init__(self, home: str, clock: Clock) -> None:
        self.transfers = Transfers(home, clock=clock)
        self.stores = Stores(self.transfers)

    def close(self) -> None:
        with suppress(Exception):
            self.stores.close()
        with suppress(Exception):
            self.transfers.close()


class QueueJob:
    """Transfers of one owner, link and kind, carried out one after the other in a thread of its own."""

    def __init__(self, transfers: Sequence[Transfer], arguments: dict[int, dict[str, object]], handler: Handler,
                 tools: _Tools, report: Callable[[QueueJob, list[JobResult]], None], stop: threading.Event,
                 clock: Clock) -> None:
        self.transfers = transfers
        self._handler, self._clock = handler, clock
        self.killed: set[int] = set()
        self.abandoned = False
        self.moved = 0
        self.seen = clock.monotonic()  # when it last made progress
        self.tools = tools
        self._arguments, self._report, self._stop = arguments, report, stop
        # A daemon thread: if it hangs in a dead file system, the process can still exit.
        self.thread = threading.Thread(target=self._run, name="job", daemon=True)

    def _run(self) -> None:
        results: list[JobResult] = []
        try:
            results = self._work()
        except GsyncError as exc:  # the batch as a whole failed: none of it counts
            results = [JobResult(t, exc) for t in self.transfers]
        except Exception as exc:  # noqa: BLE001 whatever it is, it must come to the reporter
            _log.error("a job failed with an internal error", error=repr(exc))
            results = [JobResult(t, StoreError(f"internal error: {exc!r}", Category.TRANSIENT)) for t in self.transfers]
        finally:
            self._report(self, results)

    def _work(self) -> list[JobResult]:
        results: list[JobResult] = []
        with ExitStack() as together:
            if self.transfers[0].kind in ("copy", "mkdir", "meta"):
                together.enter_context(self.tools.stores.get(self.transfers[0].store).batch())
            for t in self.transfers:
                def progress(size: int, ident: int = t.id) -> None:
                    self.seen = self._clock.monotonic()
                    self.moved += size
                    if ident in self.killed or self.abandoned or self._stop.is_set():
                        raise _GivenUp

                try:
                    progress(0)
                    content = self._handler(Context(self.tools.transfers, self.tools.stores,
                                                    self._arguments[t.operation], progress), t)
                    results.append(JobResult(t, None, content))
                except _GivenUp:
                    results.append(JobResult(t, given_up=True))
                except GsyncError as exc:
                    results.append(JobResult(t, exc))
                    if getattr(exc, "category", None) is Category.STORE_DOWN:  # the others would fail alike
                        results += [JobResult(other, exc) for other in self.transfers[len(results):]]
                        break
        return results


class Crew:
    """The running jobs. handlers: one for each kind; stop: also ends the jobs."""

    def __init__(self, home: str, handlers: Mapping[str, Handler], stop: threading.Event, clock: Clock) -> None:
        self._home, self._handlers, self._stop, self._clock = home, handlers, stop, clock
        self._tools: list[_Tools] = []  # of jobs that have ended
        self._results: queue.Queue[tuple[QueueJob, list[JobResult]]] = queue.Queue()
        self.jobs: list[QueueJob] = []

    @property
    def kinds(self) -> list[str]:
        return list(self._handlers)

    def job(self, transfers: Sequence[Transfer], arguments: dict[int, dict[str, object]]) -> QueueJob:
        """Make a job; `begin` starts it. arguments: by operation."""
        tools = self._tools.pop() if self._tools else _Tools(self._home, self._clock)
        return QueueJob(transfers, arguments, self._handlers[transfers[0].kind], tools,
                        lambda job, results: self._results.put((job, results)), self._stop, self._clock)

    def begin(self, jobs: Sequence[QueueJob]) -> None:
        self.jobs += jobs
        for job in jobs:
            job.thread.start()

    def ended(self, wait: float) -> Iterator[tuple[QueueJob, list[JobResult]]]:
        """Yield the jobs that have ended, and their results. wait: seconds to wait for the first of them."""
        with suppress(queue.Empty):
            while True:
                job, results = self._results.get(timeout=wait) if wait else self._results.get_nowait()
                wait = 0.0
                if job.abandoned:
                    continue
                self.jobs.remove(job)
                self._tools.append(job.tools)
                yield job, results

    def silent(self, seconds: float) -> list[QueueJob]:
        """Jobs without progress for this long."""
        return [job for job in self.jobs if self._clock.monotonic() - job.seen > seconds]

    def abandon(self, job: QueueJob) -> None:
        """Continue without the job's thread. Closes the job's database and stores, so that the thread ends if it
        can."""
        job.abandoned = True
        self.jobs.remove(job)
        job.tools.close()

    def close(self) -> None:
        for tools in self._tools:
            tools.close()
