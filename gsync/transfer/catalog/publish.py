"""The publisher: registers arrived files that are marked for publication in their catalogs, in blocks.

A publication has states of its own beside its transfer's: NEW (it will be published once its transfer is DONE),
ACQUIRED (a publisher holds it, until a time), DONE, RETRY (not before a time), FAILED, NOT_REQUIRED (its transfer
failed or was killed). Promise: an entry reaches the catalog once, even if the process is killed at any point: the
catalog recognizes it by its id. An entry that a catalog refuses does not hold up the others of its block. Any number of
publishers.
Not here: the kinds of catalog (catalog), when transfers are done (worker), what an error means (retry).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from gsync.base.errors import GsyncError, UsageError
from gsync.base.log import get_logger
from gsync.base.model import NS
from gsync.transfer.catalog.catalog import Catalog, CatalogError, Registration
from gsync.transfer.queue.registry import Stores
from gsync.transfer.queue.requests import ENDED
from gsync.transfer.queue.retry import RetryPolicy
from gsync.transfer.queue.transfers import Transfers
from gsync.transfer.stores.store import Category

_log = get_logger(__name__)

LEASE = 600.0   # seconds for which a publisher holds a block; longer than any catalog takes


class Publication(Enum):
    """The states that AsyncStageOut's publisher has."""

    NEW = "NEW"
    ACQUIRED = "ACQUIRED"
    FAILED = "FAILED"
    DONE = "DONE"
    RETRY = "RETRY"
    NOT_REQUIRED = "NOT_REQUIRED"


@dataclass(frozen=True, slots=True)
class Thresholds:
    """When to publish files of a request: once min_files have arrived, or the oldest has waited for max_age (s), or the
    request has ended. block: the number of entries given to a catalog at a time."""

    min_files: int = 100
    max_age: float = 18_800.0
    block: int = 1000


_TABLE = """
CREATE TABLE IF NOT EXISTS publications (transfer INTEGER PRIMARY KEY, tries INTEGER NOT NULL DEFAULT 0,
  not_before INTEGER NOT NULL DEFAULT 0, lease INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '')
"""
_ENDED = ", ".join(f"'{state.value}'" for state in ENDED)
_WAITING = "t.state='DONE' AND t.publication IN ('NEW', 'RETRY') AND coalesce(p.not_before, 0)<=:now"
_JOINED = "transfers t JOIN requests r ON r.id=t.request LEFT JOIN publications p ON p.transfer=t.id"


class Publisher:
    """Publishes due entries from the database `transfers`."""

    def __init__(self, transfers: Transfers, stores: Stores, open_catalog: Callable[[str], Catalog],
                 thresholds: Thresholds | None = None, policy: RetryPolicy | None = None, lease: float = LEASE
                 ) -> None:
        self._transfers = transfers
        self._stores = stores
        self._open_catalog = open_catalog
        self._thresholds = thresholds or Thresholds()
        self._policy = policy or RetryPolicy()
        self._lease = lease
        transfers.make_tables(_TABLE)

    def run(self, stop: threading.Event, every: float = 10.0) -> None:
        """Publish every so many seconds, until stopped."""
        while not stop.is_set():
            self.once(stop=stop)
            stop.wait(every)

    def once(self, force: bool = False, stop: threading.Event | None = None) -> dict[Publication, int]:
        """Publish the due entries, with `force` all that have arrived; return the number that came to DONE, RETRY and
        FAILED."""
        self._look_after()
        done: dict[Publication, int] = {}
        down: set[str] = set()
        while stop is None or not stop.is_set():
            catalog, rows = self._take(down, force)
            if not rows:
                return done
            for state, count in self._publish(catalog, rows, down).items():
                done[state] = done.get(state, 0) + count
        return done

    def _look_after(self) -> None:
        """Free the blocks of killed publishers, and cancel publications that can never be due."""
        with self._transfers.atomic() as db:
            db.execute("UPDATE transfers SET publication='RETRY' WHERE publication='ACQUIRED' AND "
                       "coalesce((SELECT lease FROM publications WHERE transfer=transfers.id), 0)<?",
                       (self._transfers.clock.now(),))
            db.execute("UPDATE transfers SET publication='NOT_REQUIRED' WHERE publication='NEW' AND state IN "
                       "('FAILED', 'KILLED')")

    def _take(self, without: set[str], force: bool) -> tuple[str, list[Any]]:
        """The next block: its catalog, and (transfer, known before) of each entry."""
        now, limit = self._transfers.clock.now(), self._thresholds.block
        with self._transfers.atomic() as db:
            due = {catalog: requests for catalog, requests in self._due(now, force).items() if catalog not in without}
            if not due:
                return "", []
            catalog, requests = next(iter(due.items()))
            rows: list[Any] = []
            for request in requests:
                rows += db.execute(
                    "SELECT t.id, t.request, t.owner, t.store, t.path, t.size, t.checksum, t.changed, p.transfer, "
                    f"coalesce(p.tries, 0) FROM {_JOINED} WHERE {_WAITING} AND t.catalog=:catalog AND "
                    "t.request=:request ORDER BY t.id LIMIT :limit",
                    {"now": now, "catalog": catalog, "request": request, "limit": limit - len(rows)}).fetchall()
                if len(rows) >= limit:
                    break
            db.executemany("UPDATE transfers SET publication='ACQUIRED' WHERE id=?", ((row[0],) for row in rows))
            db.executemany("INSERT INTO publications (transfer, lease) VALUES (?,?) ON CONFLICT (transfer) DO UPDATE "
                           "SET lease=excluded.lease", ((row[0], now + int(self._lease * NS)) for row in rows))
            return catalog, rows

    def _due(self, now: int, force: bool) -> dict[str, dict[str, int]]:
        """The number of due publications, by catalog and request."""
        limits = self._thresholds
        due: dict[str, dict[str, int]] = {}
        for catalog, request, count, oldest, again, ended in self._transfers.read(
                f"SELECT t.catalog, t.request, count(*), min(t.changed), max(t.publication='RETRY'), r.state IN "
                f"({_ENDED}) FROM {_JOINED} WHERE {_WAITING} GROUP BY t.catalog, t.request", {"now": now}):
            if force or again or ended or count >= limits.min_files or now - oldest >= limits.max_age * NS:
                due.setdefault(catalog, {})[request] = count
        return due

    def look(self, force: bool = False) -> dict[str, int]:
        """The number of entries that `once` would give to each catalog."""
        return {catalog: sum(requests.values()) for catalog,
                requests in self._due(self._transfers.clock.now(), force).items()}

    def _publish(self, text: str, rows: Sequence[Any], down: set[str]) -> dict[Publication, int]:
        again = any(row[8] is not None for row in rows)
        entries = {f"{row[1]}-{row[0]}": row for row in rows}
        try:
            errors = publish_block(self._open_catalog(text), [self._entry(key, row) for key, row in entries.items()],
                                   again)
        except UsageError as exc:
            errors = dict.fromkeys(entries, CatalogError(text, exc, Category.PERMANENT))
        if any(error.category is Category.STORE_DOWN for error in errors.values()):
            down.add(text)  # skip the rest of its blocks for now
        count: dict[Publication, int] = {}
        now = self._transfers.clock.now()
        with self._transfers.atomic() as db:
            for key, row in entries.items():
                error = errors.get(key)
                state, tries, not_before = Publication.DONE, row[9], 0
                if error is not None:
                    decision = self._policy.judge(error.category, tries + 1, now)
                    tries += decision.charged
                    state = Publication.FAILED if decision.again is None else Publication.RETRY
                    not_before = decision.again or 0
                changed = db.execute("UPDATE transfers SET publication=? WHERE id=? AND publication='ACQUIRED'",
                                     (state.value, row[0])).rowcount
                if changed:
                    db.execute("UPDATE publications SET tries=?, not_before=?, lease=0, reason=? WHERE transfer=?",
                               (tries, not_before, str(error or ""), row[0]))
                    count[state] = count.get(state, 0) + 1
        _log.info("block published", catalog=text, **{state.value.lower(): n for state, n in count.items()})
        return count

    def _entry(self, key: str, row: Sequence[Any]) -> Registration:
        _, request, owner, store, path, size, checksum, changed, *_ = row
        try:
            url = self._stores.known(store).url if "/" not in store else store
        except GsyncError:
            url = store  # the store was removed since
        return Registration(key, path, store, url, path, size or 0, f"sha256:{checksum}" if checksum else "", owner,
                            request, changed)

    def retry(self, requests: Sequence[str] = ()) -> int:
        """Retry FAILED and waiting publications at once, of these requests or of all; return their number."""
        with self._transfers.atomic() as db:
            where = f" AND request IN ({','.join('?' * len(requests))})" if requests else ""
            ids = [row[0] for row in db.execute(
                f"UPDATE transfers SET publication='RETRY' WHERE publication IN ('FAILED', 'RETRY'){where} "
                "RETURNING id", tuple(requests))]
            db.executemany("UPDATE publications SET tries=0, not_before=0 WHERE transfer=?", ((i,) for i in ids))
            return len(ids)

    def status(self) -> list[dict[str, Any]]:
        """The number of publications of each catalog in each state, and the reasons of those that failed."""
        rows = self._transfers.read(
            "SELECT t.catalog, t.publication, t.state='DONE', count(*), max(coalesce(p.reason, '')) FROM transfers t "
            "LEFT JOIN publications p ON p.transfer=t.id WHERE t.catalog IS NOT NULL GROUP BY 1, 2, 3 ORDER BY 1")
        found: dict[str, dict[str, Any]] = {}
        for catalog, publication, arrived, count, reason in rows:
            entry = found.setdefault(catalog, {"catalog": catalog, "coming": 0,
                                               **{state.value: 0 for state in Publication}, "reason": ""})
            if publication == "NEW" and not arrived:
                entry["coming"] += count  # its transfer is not done yet
            else:
                entry[publication] += count
            if publication in ("FAILED", "RETRY") and reason:
                entry["reason"] = reason
        return list(found.values())


def publish_block(catalog: Catalog, entries: Sequence[Registration], again: bool) -> dict[str, CatalogError]:
    """Give the entries to the catalog; return the errors of those it did not take, by id.

    A block that it refuses permanently is halved until the refused entries stand alone; the rest gets in.
    """
    try:
        catalog.apply(entries, again)
    except CatalogError as exc:
        if exc.category is not Category.PERMANENT or len(entries) == 1:
            return {entry.id: exc for entry in entries}
        half = len(entries) // 2
        return publish_block(catalog, entries[:half], True) | publish_block(catalog, entries[half:], True)
    return {}
