"""Requests, their operations, and the transfers of these, in one SQLite database: what is to be done, by whom, how far.

A request has operations in an order, an operation has transfers. State is kept on transfers and derived upward, in the
same transaction; an operation begins when the one before it is DONE. Promise: every change of a transfer's state is
compare-and-set, so of two that want the same one wins, and what is killed stays killed; what `submit` has returned for
is kept, in the spool if the database cannot be written. Any number of processes; one object per thread.
Not here: doing the work (worker), what an error means (retry), what a store is (store).
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from typing import Any

from gsync.base.database import Database
from gsync.base.durable import make_dirs
from gsync.base.errors import LockedError, UsageError
from gsync.base.log import get_logger
from gsync.base.model import NS
from gsync.base.process import is_stopped
from gsync.transfer.queue.requests import (
    AGAIN,
    COLUMNS,
    ENDED,
    HELD,
    TAKEN,
    NewRequest,
    Operation,
    Request,
    Transfer,
    TransferState,
    operation_of,
    replicas_text,
    request_of,
    transfer_of,
)
from gsync.transfer.queue.spool import Spool, read

_log = get_logger(__name__)

SCHEMA_VERSION = 1
FILE = "transfers.db"
PAGE = 1000
_PATIENCE = 30.0  # seconds that a writer waits for another one
_WRITE_LOCK = 120
_LOOK = 1.0       # seconds after which it looks who that is


_SCHEMA = """
CREATE TABLE IF NOT EXISTS requests (
  id TEXT PRIMARY KEY, kind TEXT NOT NULL, owner TEXT NOT NULL, priority INTEGER NOT NULL, label TEXT NOT NULL,
  created INTEGER NOT NULL, changed INTEGER NOT NULL, state TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS requests_created ON requests (created, id);
CREATE TABLE IF NOT EXISTS operations (
  id INTEGER PRIMARY KEY, request TEXT NOT NULL, position INTEGER NOT NULL, kind TEXT NOT NULL,
  arguments TEXT NOT NULL, state TEXT NOT NULL, UNIQUE (request, position));
CREATE TABLE IF NOT EXISTS transfers (
  id INTEGER PRIMARY KEY, request TEXT NOT NULL, operation INTEGER NOT NULL, kind TEXT NOT NULL, owner TEXT NOT NULL,
  priority INTEGER NOT NULL, source TEXT NOT NULL, source_path BLOB NOT NULL, store TEXT NOT NULL, path BLOB NOT NULL,
  size INTEGER, checksum TEXT, state TEXT NOT NULL, tries INTEGER NOT NULL DEFAULT 0,
  not_before INTEGER NOT NULL DEFAULT 0, worker TEXT, lease INTEGER NOT NULL DEFAULT 0, category TEXT,
  reason TEXT NOT NULL DEFAULT '', created INTEGER NOT NULL, changed INTEGER NOT NULL,
  publication TEXT NOT NULL DEFAULT 'NOT_REQUIRED', catalog TEXT, replicas TEXT NOT NULL DEFAULT '');
CREATE INDEX IF NOT EXISTS transfers_operation ON transfers (operation, state);
CREATE INDEX IF NOT EXISTS transfers_request ON transfers (request, id);
CREATE INDEX IF NOT EXISTS transfers_state ON transfers (state, owner, priority DESC, id);
CREATE INDEX IF NOT EXISTS transfers_owner ON transfers (owner, state, id);
CREATE INDEX IF NOT EXISTS transfers_due ON transfers (not_before) WHERE state='RETRY';
CREATE INDEX IF NOT EXISTS transfers_publication ON transfers (publication, id) WHERE publication<>'NOT_REQUIRED';
CREATE TABLE IF NOT EXISTS owners (
  owner TEXT PRIMARY KEY, worker TEXT, lease INTEGER NOT NULL DEFAULT 0, served REAL NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS stores (
  name TEXT PRIMARY KEY, url TEXT NOT NULL, options TEXT NOT NULL DEFAULT '{}', read_only INTEGER NOT NULL DEFAULT 0)
  WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS bans (
  store TEXT PRIMARY KEY, until INTEGER, reason TEXT NOT NULL, by_queue INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
"""


_MUTABLE = {"size", "checksum", "tries", "not_before", "worker", "lease", "category", "reason", "publication",
            "catalog", "source", "source_path", "replicas"}


class DatabaseHeld(LockedError, sqlite3.OperationalError):
    """Another process writes to the database, and does not end."""

    def __init__(self, path: str, pid: int | None) -> None:
        if pid is None:
            text = "another process writes to it and does not end"
        elif is_stopped(pid):
            text = (f"process {pid} is stopped in the middle of writing to it; kill -CONT {pid} lets it go on, "
                    f"kill -9 {pid} ends it, and nothing is lost")
        else:
            text = f"process {pid} has been writing to it for {_PATIENCE:.0f} s; gsync goes on when that is done"
        super().__init__(f"{path}: {text}")


class _Shared(Database):
    """The file, in which several processes write."""

    def begin(self) -> None:
        """Wait for whoever writes; DatabaseHeld if that takes too long, or would: a process that is stopped."""
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                super().begin()
                return
            except sqlite3.OperationalError as exc:
                if exc.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                    raise
                pid = _writer(self.path)
                if time.monotonic() > end or (pid is not None and is_stopped(pid)):
                    raise DatabaseHeld(self.path, pid) from exc


class Transfers:
    """The database in the state folder `home`, made if it is missing. looking: by who only looks: then a missing one is
    an empty one, and nothing is made."""

    def __init__(self, home: str, looking: bool = False) -> None:
        self.home = home
        self.spool = Spool(os.path.join(home, "spool"))
        self._path = os.path.join(home, FILE)
        self._looking = looking
        try:
            if looking and not os.path.exists(self._path):
                self._db = _connect(":memory:")
                return
            make_dirs(home)
            self._db = _connect(self._path)
            os.chmod(self._path, 0o600)
        except (OSError, sqlite3.Error) as exc:
            raise UsageError(f"{self._path}: {getattr(exc, 'strerror', None) or exc}") from exc

    def close(self) -> None:
        self._db.close()

    def atomic(self) -> AbstractContextManager[Database]:
        """One transaction that nobody else's write comes between; nested ones are part of the outer one."""
        return self._db.atomic()

    def make_tables(self, schema: str) -> None:
        """Make what is missing of the tables and indexes of another module; if none is, nobody is waited for. Who only
        looks has empty tables of its own in place of missing ones."""
        there = {row[0] for row in self.read("SELECT name FROM sqlite_master")}
        missing = set(re.findall(r"IF NOT EXISTS (\w+)", schema)) - there
        if not missing:
            return
        if self._looking:
            for statement in schema.split(";"):
                found = re.match(r"\s*CREATE TABLE IF NOT EXISTS (\w+)", statement)
                if found and found[1] in missing:
                    self._db.execute(statement.replace("CREATE TABLE", "CREATE TEMP TABLE", 1))
            return
        with self.atomic() as db:
            for statement in schema.split(";"):
                db.execute(statement)

    def read(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[Any]:
        """Rows, without waiting for who writes."""
        return self._db.execute(sql, values).fetchall()

    def each(self, sql: str, values: Sequence[Any] = ()) -> Iterator[Any]:
        """The same, one row after the other."""
        return iter(self._db.execute(sql, values))

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """What is read meanwhile is of one moment."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._db.execute("COMMIT")

    # putting in

    def submit(self, request: NewRequest) -> str:
        """Its id. Durable when this returns: in the database, else in the spool, from where `sweep` takes it."""
        try:
            with self.atomic():
                self.insert(request)
        except sqlite3.OperationalError as exc:
            _log.warning("the database cannot be written, the request goes to the spool", request=request.id, error=exc)
            self.spool.write(request)
        return request.id

    def begin(self, request: NewRequest, worker: str, lease: float) -> None:
        """Submit, with the first operation taken by this worker for `lease` seconds; sqlite3.OperationalError if the
        database cannot be written, and then nothing is."""
        with self.atomic() as db:
            self.insert(request)
            first = db.execute("SELECT id FROM operations WHERE request=? AND position=0", (request.id,)).fetchone()[0]
            rows = db.execute("SELECT id FROM transfers WHERE operation=?", (first,)).fetchall()
            self.advance([row[0] for row in rows], TransferState.NEW, TransferState.ACQUIRED, worker=worker,
                         lease=time.time_ns() + int(lease * NS))

    def submit_kept(self, request: NewRequest) -> None:
        """Submit what was kept in the spool so far."""
        self.submit(request)
        self.spool.forget(request.id)

    def sweep(self) -> int:
        """Take in what lies in the spool; how many requests. What cannot be read is put aside as *.bad, and holds up
        nothing else."""
        taken = 0
        for path in self.spool.waiting():
            try:
                request = read(path)
                with self.atomic() as db:
                    if not db.execute("SELECT 1 FROM requests WHERE id=?", (request.id,)).fetchone():
                        self.insert(request)
            except FileNotFoundError:
                continue  # another worker was faster
            except sqlite3.OperationalError as exc:
                _log.warning("the spool has to wait", error=exc)
                return taken
            except (ValueError, KeyError, TypeError, sqlite3.Error) as exc:
                _log.error("a spooled request cannot be read, it is put aside", file=path, error=repr(exc))
                with suppress(FileNotFoundError):
                    os.rename(path, path + ".bad")
                continue
            with suppress(FileNotFoundError):
                os.unlink(path)
            taken += 1
        return taken

    def insert(self, request: NewRequest) -> None:
        """The request, within the caller's transaction."""
        if not request.operations or any(not operation.transfers for operation in request.operations):
            raise ValueError("a request has operations, and an operation transfers")
        now, db = time.time_ns(), self._db
        owner, label = _clean(request.owner), _clean(request.label)
        # Who comes anew, or back, begins where the others are: nobody saves up.
        waits = "EXISTS (SELECT 1 FROM transfers WHERE state='NEW' AND owner=owners.owner)"
        floor = db.execute(f"SELECT coalesce(min(served), 0) FROM owners WHERE {waits}").fetchone()[0]
        db.execute("INSERT INTO owners (owner, served) VALUES (?,?) ON CONFLICT (owner) DO UPDATE SET "
                   f"served=max(served, excluded.served) WHERE NOT {waits}", (owner, floor))
        db.execute("INSERT INTO requests VALUES (?,?,?,?,?,?,?,?)", (
            request.id, request.kind, owner, request.priority, label, now, now, TransferState.NEW.value))
        for position, operation in enumerate(request.operations):
            state = (TransferState.QUEUED if position else TransferState.NEW).value
            ident = db.execute(
                "INSERT INTO operations (request, position, kind, arguments, state) VALUES (?,?,?,?,?)",
                (request.id, position, operation.kind, json.dumps(dict(operation.arguments)), state)).lastrowid
            db.executemany(
                "INSERT INTO transfers (request, operation, kind, owner, priority, source, source_path, store, path, "
                "size, checksum, state, created, changed, publication, catalog, replicas) "
                "VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)",
                ((request.id, ident, operation.kind, owner, request.priority, t.source, t.source_path, t.store,
                  t.path, t.size, t.checksum, state, now, now, "NEW" if t.catalog else "NOT_REQUIRED", t.catalog,
                  replicas_text(t.replicas)) for t in operation.transfers))

    def set_arguments(self, operation: int, arguments: Mapping[str, Any]) -> None:
        """What is known of an operation that is at work; durable when this returns."""
        with self.atomic() as db:
            db.execute("UPDATE operations SET arguments=? WHERE id=?", (json.dumps(dict(arguments)), operation))

    # changing state

    def advance(self, ids: Iterable[int], was: TransferState | Sequence[TransferState], now: TransferState,
                by: str | None = None,
                **columns: Any) -> list[int]:
        """Compare-and-set: those that were in one of the states `was` (and `by` names their worker, if it is said) are
        in `now` from here on; which ones that are. columns: others of the row to set."""
        if unknown := columns.keys() - _MUTABLE:
            raise ValueError(f"not to be set: {', '.join(unknown)}")
        states = (was,) if isinstance(was, TransferState) else tuple(was)
        sets = "".join(f", {name}=:{name}" for name in columns)
        where = f"state IN ({', '.join(repr(s.value) for s in states)})" + (" AND worker=:by" if by else "")
        moved, operations = [], set()
        with self.atomic() as db:
            for ident in ids:
                row = db.execute(
                    f"UPDATE transfers SET state=:now, changed=:time{sets} WHERE id=:id AND {where} "
                    "RETURNING operation", {"now": now.value, "time": time.time_ns(), "id": ident, "by": by,
                                            **columns}).fetchone()
                if row is not None:
                    moved.append(ident)
                    operations.add(row[0])
            self._derive(operations, now)
        return moved

    def _derive(self, operations: Iterable[int], now: TransferState) -> None:
        """Operations whose transfers changed, and their requests, follow; the next operation begins."""
        db = self._db
        for ident in operations:
            if now in TAKEN:  # the common case needs no look at the others
                db.execute("UPDATE operations SET state='SUBMITTED' WHERE id=? AND state<>'SUBMITTED'", (ident,))
                db.execute("UPDATE requests SET state='SUBMITTED', changed=? WHERE state<>'SUBMITTED' AND "
                           "id=(SELECT request FROM operations WHERE id=?)", (time.time_ns(), ident))
                continue
            state = self._state_of(ident)
            request, position = db.execute("UPDATE operations SET state=? WHERE id=? RETURNING request, position",
                                           (state.value, ident)).fetchone()
            whole = state
            following = db.execute("SELECT id FROM operations WHERE request=? AND position=?",
                                   (request, position + 1)).fetchone()
            if following is not None:
                if state is TransferState.DONE:
                    whole = TransferState.NEW
                    self._all_of(following[0], TransferState.QUEUED, TransferState.NEW)
                elif state in (TransferState.FAILED, TransferState.KILLED):  # what comes after it would be wrong
                    for (later,) in db.execute("SELECT id FROM operations WHERE request=? AND position>?",
                                               (request, position)).fetchall():
                        self._all_of(later, TransferState.QUEUED, TransferState.KILLED,
                                     f"an earlier operation is {state.value}")
            db.execute("UPDATE requests SET state=?, changed=? WHERE id=?", (whole.value, time.time_ns(), request))

    def _state_of(self, operation: int) -> TransferState:
        """The one that says most about what is still to happen."""
        present = {TransferState(row[0]) for row in
                   self._db.execute("SELECT DISTINCT state FROM transfers WHERE operation=?", (operation,))}
        for state in HELD:
            if state in present:
                return TransferState.SUBMITTED
        return next(state for state in (TransferState.NEW, TransferState.RETRY, TransferState.QUEUED,
                                        TransferState.FAILED, TransferState.KILLED, TransferState.DONE)
                    if state in present)

    def _all_of(self, operation: int, was: TransferState, now: TransferState, reason: str = "") -> None:
        self._db.execute("UPDATE transfers SET state=?, reason=?, changed=? WHERE operation=? AND state=?",
                         (now.value, reason, time.time_ns(), operation, was.value))
        self._db.execute("UPDATE operations SET state=? WHERE id=?", (now.value, operation))

    # work

    def acquire(self, worker: str, limit: int, lease: float, max_bytes: int | None = None, request: str | None = None,
                kinds: Sequence[str] | None = None) -> list[Transfer]:
        """Take up to `limit` transfers of one owner, and for `lease` seconds the owner too: no other worker is given
        anything of it meanwhile. The owner who was served least comes first, where a share doubles with each step of
        priority; within an owner priority counts, then age. Not those of banned stores. request: of that one alone;
        kinds: of operations of these kinds alone."""
        now = time.time_ns()
        until = now + int(lease * NS)
        with self.atomic() as db:
            banned = {row[0] for row in db.execute("SELECT store FROM bans WHERE until IS NULL OR until>?", (now,))}
            owners = self._owners(worker, now, request)
            for owner, served in owners:
                rows = self._takeable(owner, limit, max_bytes, request, kinds, banned)
                if not rows:
                    continue
                ids = [row.id for row in rows]
                db.executemany("UPDATE transfers SET state='ACQUIRED', worker=?, lease=?, changed=? WHERE id=?",
                               ((worker, until, now, ident) for ident in ids))
                cost = sum(2.0 ** -row.priority for row in rows)
                db.execute("UPDATE owners SET worker=?, lease=?, served=? WHERE owner=?",
                           (worker, until, served + cost, owner))
                self._derive({row.operation for row in rows}, TransferState.ACQUIRED)
                return [replace(row, state=TransferState.ACQUIRED, worker=worker, lease=until) for row in rows]
        return []

    def _owners(self, worker: str, now: int, request: str | None) -> list[tuple[str, float]]:
        """Those with something NEW that no other worker has, the least served first."""
        where, values = ("WHERE r.id=?", [request]) if request else ("", [])
        if request:
            names = [row[0] for row in self._db.execute(f"SELECT owner FROM requests r {where}", values)]
        else:  # one step of the index per owner, however many transfers each has
            names, last = [], ""
            while (row := self._db.execute("SELECT owner FROM transfers WHERE state='NEW' AND owner>? "
                                           "ORDER BY owner LIMIT 1", (last,)).fetchone()):
                names.append(last := row[0])
        known = {row[0]: row[1:] for row in self._db.execute("SELECT owner, worker, lease, served FROM owners")}
        free = [(name, known[name][2]) for name in names
                if known[name][0] in (None, worker) or known[name][1] <= now]
        return sorted(free, key=lambda item: (item[1], item[0]))

    def _takeable(self, owner: str, limit: int, max_bytes: int | None, request: str | None,
                  kinds: Sequence[str] | None, banned: set[str]) -> list[Transfer]:
        wheres, values = ["state='NEW'", "owner=?"], [owner]
        for column, chosen in (("request", [request] if request else None), ("kind", kinds)):
            if chosen is not None:
                wheres.append(f"{column} IN ({_marks(chosen)})")
                values += chosen
        for column in ("source", "store"):
            if banned:
                wheres.append(f"{column} NOT IN ({_marks(banned)})")
                values += banned
        rows: list[Transfer] = []
        size = 0
        for raw in self._db.execute(f"SELECT {COLUMNS} FROM transfers WHERE {' AND '.join(wheres)} "
                                    "ORDER BY priority DESC, id LIMIT ?", (*values, limit)):
            row = transfer_of(raw)
            size += row.size or 0
            if rows and max_bytes is not None and size > max_bytes:
                break
            rows.append(row)
        return rows

    def renew(self, worker: str, lease: float) -> None:
        """The worker lives: its leases run from now."""
        until = time.time_ns() + int(lease * NS)
        with self.atomic() as db:
            db.execute("UPDATE owners SET lease=? WHERE worker=?", (until, worker))
            db.execute(f"UPDATE transfers SET lease=? WHERE worker=? AND state IN {states_sql(HELD)}",
                       (until, worker))

    def release(self, worker: str, owner: str) -> None:
        """Others may serve the owner."""
        with self.atomic() as db:
            db.execute("UPDATE owners SET worker=NULL, lease=0 WHERE owner=? AND worker=?", (owner, worker))

    def run_out(self, limit: int = PAGE) -> list[Transfer]:
        """Transfers whose worker has not renewed its lease: what became of them has to be looked at."""
        return self._rows(f"WHERE state IN {states_sql(HELD)} AND lease<? AND worker IS NOT NULL "
                          "LIMIT ?", (time.time_ns(), limit))

    def held(self, worker: str) -> list[Transfer]:
        """All that a worker has."""
        return self._rows(f"WHERE worker=? AND state IN {states_sql(HELD)}", (worker,))

    def workers(self) -> set[str]:
        """Those that have owners or transfers now."""
        return {row[0] for row in self._db.execute(
            f"SELECT DISTINCT worker FROM owners WHERE worker IS NOT NULL UNION SELECT DISTINCT worker FROM transfers "
            f"WHERE state IN {states_sql(HELD)} AND worker IS NOT NULL")}

    def give_up(self, worker: str) -> None:
        """A worker is known to be dead: its leases end now."""
        with self.atomic() as db:
            db.execute("UPDATE owners SET lease=0 WHERE worker=?", (worker,))
            db.execute(f"UPDATE transfers SET lease=0 WHERE worker=? AND state IN {states_sql(HELD)}",
                       (worker,))

    def version(self) -> int:
        """Another number once somebody else has changed something: cheap to ask."""
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def adopt(self, transfer: Transfer, worker: str, lease: float) -> bool:
        """Take over one whose lease has run out; False if somebody else did, or it is renewed."""
        with self.atomic() as db:
            return db.execute("UPDATE transfers SET worker=?, lease=? WHERE id=? AND worker=? AND lease=?", (
                worker, time.time_ns() + int(lease * NS), transfer.id, transfer.worker, transfer.lease)).rowcount == 1

    def wake(self) -> int:
        """RETRY whose time has come is NEW; how many."""
        ids = [row[0] for row in self._db.execute(
            "SELECT id FROM transfers WHERE state='RETRY' AND not_before<=? LIMIT ?", (time.time_ns(), PAGE))]
        return len(self.advance(ids, TransferState.RETRY, TransferState.NEW, lease=0))

    def next_due(self) -> int | None:
        """When the next RETRY is due, ns; None if there is none."""
        row = self._db.execute("SELECT min(not_before) FROM transfers WHERE state='RETRY'").fetchone()
        return None if row is None else row[0]

    def killed(self, worker: str) -> set[int]:
        """What the worker has and is to let go of."""
        rows = self._db.execute("SELECT id FROM transfers WHERE state='KILL' AND worker=?", (worker,))
        return {row[0] for row in rows}

    # orders

    def kill(self, *, request: str | None = None, owner: str | None = None, link: tuple[str, str] | None = None,
             ids: Sequence[int] = (), reason: str = "killed") -> int:
        """What waits is KILLED at once, what a worker has is KILL until that lets go; what has ended stays as it is.
        How many that were."""
        wheres, values = selection(request, owner, link, ids)
        if not wheres:
            raise ValueError("what is to be killed?")
        where = " AND ".join(wheres)
        with self.atomic() as db:
            waits = (TransferState.QUEUED, TransferState.NEW, TransferState.RETRY)
            waiting = [row[0] for row in db.execute(
                f"SELECT id FROM transfers WHERE {where} AND state IN {states_sql(waits)}", values)]
            taken = [row[0] for row in db.execute(
                f"SELECT id FROM transfers WHERE {where} AND state IN {states_sql(TAKEN)}", values)]
            self.advance(waiting, waits, TransferState.KILLED, reason=reason)
            self.advance(taken, TAKEN, TransferState.KILL, reason=reason)
            return len(waiting) + len(taken)

    def retry(self, *, request: str | None = None, owner: str | None = None, link: tuple[str, str] | None = None,
              ids: Sequence[int] = ()) -> int:
        """FAILED and KILLED begin anew with no tries counted, RETRY does not wait any longer; how many."""
        wheres, values = selection(request, owner, link, ids)
        if not wheres:
            raise ValueError("what is to be tried again?")
        with self.atomic() as db:
            found = db.execute(f"SELECT id, operation FROM transfers WHERE {' AND '.join(wheres)} AND state IN "
                               f"{states_sql(AGAIN)} ORDER BY id", values).fetchall()
            for ident, operation in found:
                request_id, position = db.execute("SELECT request, position FROM operations WHERE id=?",
                                                  (operation,)).fetchone()
                before = db.execute("SELECT 1 FROM operations WHERE request=? AND position<? AND state<>'DONE'",
                                    (request_id, position)).fetchone()
                self.advance([ident], AGAIN, TransferState.QUEUED if before else TransferState.NEW,
                             tries=0, not_before=0, worker=None, lease=0, reason="", category=None)
            return len(found)

    def prune(self, older_than: float) -> int:
        """Forget requests that are DONE or KILLED for so many seconds; how many. What failed, is still to be published,
        or is all that is known of a replica (a killed send) stays until somebody has looked at it."""
        before = time.time_ns() - int(older_than * NS)
        with self.atomic() as db:
            old = [row[0] for row in db.execute(
                "SELECT id FROM requests r WHERE changed<? AND state IN ('DONE', 'KILLED') AND NOT EXISTS ("
                "SELECT 1 FROM transfers t WHERE t.request=r.id AND (t.state NOT IN ('DONE', 'KILLED') "
                "OR (t.state='DONE' AND (t.publication IN ('NEW', 'ACQUIRED', 'RETRY') "
                "OR (r.kind='send' AND r.state='KILLED')))))", (before,))]
            for ident in old:
                for table, column in (("transfers", "request"), ("operations", "request"), ("requests", "id")):
                    db.execute(f"DELETE FROM {table} WHERE {column}=?", (ident,))
            db.execute("DELETE FROM owners WHERE lease<? AND owner NOT IN (SELECT owner FROM transfers)", (before,))
        return len(old)

    # looking

    def request(self, ident: str) -> Request | None:
        """By its id, or what that begins with if only one does."""
        rows = list(self.requests(where="id>=? AND id<?", values=(ident, ident + "g"), limit=2))
        exact = [row for row in rows if row.id == ident]
        return exact[0] if exact else rows[0] if len(rows) == 1 else None

    def requests(self, *, where: str = "1", values: Sequence[Any] = (), limit: int = -1) -> Iterator[Request]:
        for row in self._db.execute("SELECT id, kind, owner, priority, label, created, changed, state FROM requests "
                                    f"WHERE {where} ORDER BY created, id LIMIT ?", (*values, limit)):
            yield request_of(row)

    def operations(self, request: str) -> list[Operation]:
        return [operation_of(row) for row in self._db.execute(
            "SELECT id, request, position, kind, arguments, state FROM operations WHERE request=? ORDER BY position",
            (request,))]

    def operation(self, ident: int) -> Operation:
        row = self._db.execute("SELECT id, request, position, kind, arguments, state FROM operations WHERE id=?",
                               (ident,)).fetchone()
        return operation_of(row)

    def transfer(self, ident: int) -> Transfer | None:
        rows = self._rows("WHERE id=?", (ident,))
        return rows[0] if rows else None

    def page(self, *, request: str | None = None, owner: str | None = None, link: tuple[str, str] | None = None,
             operation: int | None = None, state: TransferState | None = None, after: int = 0, limit: int = PAGE
             ) -> list[Transfer]:
        """A page by id; the next one begins after the last id of this one."""
        wheres, values = selection(request, owner, link)
        if operation is not None:
            wheres.append("operation=?")
            values.append(operation)
        if state is not None:
            wheres.append("state=?")
            values.append(state.value)
        return self._rows(f"WHERE {' AND '.join([*wheres, 'id>?'])} ORDER BY id LIMIT ?", [*values, after, limit])

    def count_killable(self, **of: Any) -> int:
        """How many `kill` would be about."""
        return self._count(f"state NOT IN {states_sql(ENDED)}", **of)

    def count_retryable(self, **of: Any) -> int:
        """How many `retry` would be about."""
        return self._count(f"state IN {states_sql(AGAIN)}", **of)

    def _count(self, where: str, *, request: str | None = None, owner: str | None = None,
               link: tuple[str, str] | None = None, ids: Sequence[int] = ()) -> int:
        wheres, values = selection(request, owner, link, ids)
        row = self._db.execute(f"SELECT count(*) FROM transfers WHERE {' AND '.join([*wheres, where])}",
                               values).fetchone()
        return int(row[0])

    def counts(self, request: str | None = None) -> dict[TransferState, int]:
        where, values = ("WHERE request=?", (request,)) if request else ("", ())
        return {TransferState(row[0]): row[1] for row in
                self._db.execute(f"SELECT state, count(*) FROM transfers {where} GROUP BY state", values)}

    def _rows(self, where: str, values: Sequence[Any]) -> list[Transfer]:
        return [transfer_of(row) for row in self._db.execute(f"SELECT {COLUMNS} FROM transfers {where}", values)]


def selection(request: str | None = None, owner: str | None = None, link: tuple[str, str] | None = None,
              ids: Sequence[int] = ()) -> tuple[list[str], list[Any]]:
    """Conditions for transfers, and their values."""
    wheres: list[str] = []
    values: list[Any] = []
    if request is not None:
        wheres.append("request=?")
        values.append(request)
    if owner is not None:
        wheres.append("owner=?")
        values.append(owner)
    if link is not None:  # an empty end is any
        for column, store in zip(("source", "store"), link, strict=True):
            if store:
                wheres.append(f"{column}=?")
                values.append(store)
    if ids:
        wheres.append(f"id IN ({','.join(str(int(i)) for i in ids)})")
    return wheres, values


def _clean(text: str) -> str:
    """As a column can hold it: what is not UTF-8 in it is escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def _marks(values: Collection[Any]) -> str:
    return ",".join("?" * len(values))


def states_sql(states: Iterable[TransferState]) -> str:
    return "(" + ", ".join(f"'{state.value}'" for state in states) + ")"


def _connect(path: str) -> _Shared:
    return _Shared.open(path, _SCHEMA, SCHEMA_VERSION, synchronous="FULL", timeout=_LOOK, threads=True)


def _writer(path: str) -> int | None:
    """The pid of the process that writes to the database, if it is on this host: who has the lock on the byte of the
    wal-index that SQLite calls WAL_WRITE_LOCK."""
    try:
        st = os.stat(path + "-shm")
        with open("/proc/locks", encoding="ascii") as file:
            lines = [line.split() for line in file]
    except OSError:
        return None
    inode = f"{os.major(st.st_dev):02x}:{os.minor(st.st_dev):02x}:{st.st_ino}"
    return next((int(line[4]) for line in lines if len(line) == 8 and line[3] == "WRITE" and line[5] == inode
                 and int(line[6]) <= _WRITE_LOCK and (line[7] == "EOF" or int(line[7]) >= _WRITE_LOCK)), None)
