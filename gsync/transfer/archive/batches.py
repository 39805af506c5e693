"""Works through the entries of a tree in batches, on a few threads.

Counts the finished entries, records the count every `tell_every` seconds, and checks then whether the job was killed.
Memory is bounded by a few batches. Not here: the work on an entry.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace

from gsync.base.errors import GsyncError
from gsync.base.log import get_logger
from gsync.transfer.archive.manifest import ManifestEntry
from gsync.transfer.archive.rows import Archive, Archives
from gsync.transfer.queue.retry import RetryPolicy
from gsync.transfer.stores.store import Category, StoreError

log = get_logger("gsync.archive")

_BATCH_BYTES = 1 << 30

Failures = list[tuple[bytes, str]]


class Killed(GsyncError):
    """The user killed the job."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class JobOptions:
    """batch: entries made durable together; jobs: batches at a time; policy: how often a transient error is retried,
    and after which pauses; tell_every: seconds between two records of the progress and checks for a kill."""

    batch: int = 1000
    jobs: int = 2
    policy: RetryPolicy = field(default_factory=lambda: RetryPolicy(5, first_pause=1.0, longest_pause=60.0))
    tell_every: float = 0.5


class Batches:
    """The batches of one job on an archive. Call `run` and `stage` only from the thread that made it, `pause_point`
    from any."""

    def __init__(self, archives: Archives, archive: Archive, options: JobOptions,
                 told: Callable[[Archive], None]) -> None:
        self._archives, self.archive, self._options, self._told = archives, archive, options, told
        self._stop = threading.Event()
        self._why = ""
        self._next = 0.0
        self._entries = self._size = 0
        self._pool = ThreadPoolExecutor(options.jobs)

    def close(self) -> None:
        """Wait for the running batches. Call it after the last run."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def stage(self, name: str, entries: int = 0) -> None:
        """Begin a stage of so many entries (0: unknown)."""
        self._entries = self._size = 0
        self._note(stage=name, entries_all=entries, entries_done=0, size_done=0)

    def count(self, entries: int, size: int) -> None:
        """Set how much of the stage is done."""
        self._entries, self._size = entries, size
        now = self._archives.transfers.clock.monotonic()
        if now < self._next:
            return
        self._next = now + self._options.tell_every
        self._note(entries_done=entries, size_done=size)
        if self._archives.is_killed(self.archive):
            self._stop.set()
            raise Killed("killed; resume with --retry")

    def _note(self, **how_far: object) -> None:
        """Record the progress. A database that cannot be written now does not hold the job up."""
        try:
            self.archive = self._archives.change(self.archive, **how_far)
        except sqlite3.OperationalError as exc:
            log.warning("the progress cannot be recorded", error=exc)
            self.archive = replace(self.archive, **how_far)  # type: ignore[arg-type]
        self._told(self.archive)

    def pause_point(self) -> None:
        """Raise Killed if the job is to end. Call it between two entries."""
        if self._stop.is_set():
            raise Killed("killed; resume with --retry")

    def pause_for(self, error: GsyncError, tries: int) -> bool:
        """After an error: wait, then return True if it should be retried. tries: how often it was retried already."""
        if not isinstance(error, StoreError) or error.category not in (Category.TRANSIENT, Category.STORE_DOWN):
            return False
        if tries >= self._options.policy.max_retries:
            return False
        self._stop.wait(self._options.policy.pause(tries + 1))
        self.pause_point()
        return True

    def run(self, entries: Iterable[ManifestEntry], work: Callable[[list[ManifestEntry]], Failures]) -> int:
        """Give every entry to `work`, in batches. Records the failures it returns, and returns their number. The first
        error it raises ends the run, once the running batches have reached their next pause point."""
        bad = 0
        pending: deque[tuple[Future[Failures], int, int]] = deque()
        try:
            for batch in self._cut(entries):
                size = sum(e.size for e in batch if e.has_content)
                pending.append((self._pool.submit(work, batch), len(batch), size))
                while len(pending) > self._options.jobs:
                    bad += self._take(pending)
            while pending:
                bad += self._take(pending)
        except BaseException:
            self._stop.set()
            raise
        return bad

    def _take(self, pending: deque[tuple[Future[Failures], int, int]]) -> int:
        future, entries, size = pending[0]
        while not wait([future], self._options.tell_every).done:
            self.count(self._entries, self._size)
        failures = future.result()
        pending.popleft()
        if failures:
            self._archives.fail(self.archive, iter(failures))
        self.count(self._entries + entries, self._size + size)
        return len(failures)

    def _cut(self, entries: Iterable[ManifestEntry]) -> Iterator[list[ManifestEntry]]:
        batch: list[ManifestEntry] = []
        size = 0
        for entry in entries:
            if batch and (len(batch) >= self._options.batch or size + entry.size > _BATCH_BYTES):
                yield batch
                batch, size = [], 0
            batch.append(entry)
            size += entry.size if entry.has_content else 0
        if batch:
            yield batch
