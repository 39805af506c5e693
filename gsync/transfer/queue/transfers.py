"""Requests, their operations, and the transfers of these: the rows of the database, and how their states change.

A request has ordered operations, an operation has transfers. State is kept on transfers; the states of operations and
requests follow in the same transaction, and an operation begins when the one before it is DONE. Promise: every change
of a transfer's state is compare-and-set, so one of two competing processes wins, and a killed transfer stays killed.
Any number of processes; one object per thread. Not here: how requests come in (intake), who works on them (leases,
worker), orders of users (orders), what an error means (retry).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.transfer.queue.database import PATIENCE, QueueDatabase
from gsync.transfer.queue.requests import (
    COLUMNS,
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

SCHEMA_VERSION = 1
PAGE = 1000


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


class Transfers(QueueDatabase):
    """The database in the state directory `home`; looking, clock, patience: as for QueueDatabase."""

    def __init__(self, home: str, looking: bool = False, *, clock: Clock = SYSTEM_CLOCK, patience: float = PATIENCE
                 ) -> None:
        super().__init__(home, _SCHEMA, SCHEMA_VERSION, looking=looking, clock=clock, patience=patience)

    # inserting

    def insert(self, request: NewRequest) -> None:
        """Insert the request, within the caller's transaction."""
        if not request.operations or any(not operation.transfers for operation in request.operations):
            raise ValueError("a request has operations, and an operation transfers")
        now, db = self.clock.now(), self._db
        owner, label = _clean(request.owner), _clean(request.label)
        # A new or returning owner starts level with the others: nobody saves up a share.
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
        """Record the progress of a running operation; durable when this returns."""
        with self.atomic() as db:
            db.execute("UPDATE operations SET arguments=? WHERE id=?", (json.dumps(dict(arguments)), operation))

    # changing state

    def advance(self, ids: Iterable[int], was: TransferState | Sequence[TransferState], now: TransferState,
                by: str | None = None,
                **columns: Any) -> list[int]:
        """Compare-and-set: move transfers from one of the states `was` to `now`; return the ids that moved. by: only if
        this is their worker. columns: other columns to set."""
        if unknown := columns.keys() - _MUTABLE:
            raise ValueError(f"columns that cannot be set: {', '.join(unknown)}")
        states = (was,) if isinstance(was, TransferState) else tuple(was)
        sets = "".join(f", {name}=:{name}" for name in columns)
        where = f"state IN ({', '.join(repr(s.value) for s in states)})" + (" AND worker=:by" if by else "")
        moved, operations = [], set()
        with self.atomic() as db:
            for ident in ids:
                row = db.execute(
                    f"UPDATE transfers SET state=:now, changed=:time{sets} WHERE id=:id AND {where} "
                    "RETURNING operation", {"now": now.value, "time": self.clock.now(), "id": ident, "by": by,
                                            **columns}).fetchone()
                if row is not None:
                    moved.append(ident)
                    operations.add(row[0])
            self.derive(operations, now)
        return moved

    def derive(self, operations: Iterable[int], now: TransferState) -> None:
        """Update operations whose transfers moved to `now`, and their requests; start the next operation."""
        db = self._db
        for ident in operations:
            if now in TAKEN:  # the common case need not look at the other transfers
                db.execute("UPDATE operations SET state='SUBMITTED' WHERE id=? AND state<>'SUBMITTED'", (ident,))
                db.execute("UPDATE requests SET state='SUBMITTED', changed=? WHERE state<>'SUBMITTED' AND "
                           "id=(SELECT request FROM operations WHERE id=?)", (self.clock.now(), ident))
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
                elif state in (TransferState.FAILED, TransferState.KILLED):  # later operations depend on this one
                    for (later,) in db.execute("SELECT id FROM operations WHERE request=? AND position>?",
                                               (request, position)).fetchall():
                        self._all_of(later, TransferState.QUEUED, TransferState.KILLED,
                                     f"an earlier operation is {state.value}")
            db.execute("UPDATE requests SET state=?, changed=? WHERE id=?", (whole.value, self.clock.now(), request))

    def _state_of(self, operation: int) -> TransferState:
        """The operation's state: that of its least finished transfers."""
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
                         (now.value, reason, self.clock.now(), operation, was.value))
        self._db.execute("UPDATE operations SET state=? WHERE id=?", (now.value, operation))

    def wake(self) -> int:
        """Make due RETRY transfers NEW; return their number."""
        ids = [row[0] for row in self._db.execute(
            "SELECT id FROM transfers WHERE state='RETRY' AND not_before<=? LIMIT ?", (self.clock.now(), PAGE))]
        return len(self.advance(ids, TransferState.RETRY, TransferState.NEW, lease=0))

    def next_due(self) -> int | None:
        """When the next RETRY is due, ns; None: there is none."""
        row = self._db.execute("SELECT min(not_before) FROM transfers WHERE state='RETRY'").fetchone()
        return None if row is None else row[0]

    # reading

    def request(self, ident: str) -> Request | None:
        """Find a request by its id, or by a prefix that no other id has."""
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
        rows = self.rows("WHERE id=?", (ident,))
        return rows[0] if rows else None

    def page(self, *, request: str | None = None, owner: str | None = None, link: tuple[str, str] | None = None,
             operation: int | None = None, state: TransferState | None = None, after: int = 0, limit: int = PAGE
             ) -> list[Transfer]:
        """A page of transfers in the order of ids; `after`: the last id of the page before."""
        wheres, values = selection(request, owner, link)
        if operation is not None:
            wheres.append("operation=?")
            values.append(operation)
        if state is not None:
            wheres.append("state=?")
            values.append(state.value)
        return self.rows(f"WHERE {' AND '.join([*wheres, 'id>?'])} ORDER BY id LIMIT ?", [*values, after, limit])

    def counts(self, request: str | None = None) -> dict[TransferState, int]:
        where, values = ("WHERE request=?", (request,)) if request else ("", ())
        return {TransferState(row[0]): row[1] for row in
                self._db.execute(f"SELECT state, count(*) FROM transfers {where} GROUP BY state", values)}

    def rows(self, where: str, values: Sequence[Any]) -> list[Transfer]:
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
    if link is not None:  # an empty end matches any store
        for column, store in zip(("source", "store"), link, strict=True):
            if store:
                wheres.append(f"{column}=?")
                values.append(store)
    if ids:
        wheres.append(f"id IN ({','.join(str(int(i)) for i in ids)})")
    return wheres, values


def _clean(text: str) -> str:
    """The text as a column can hold it: bytes that are not UTF-8 are escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def states_sql(states: Iterable[TransferState]) -> str:
    return "(" + ", ".join(f"'{state.value}'" for state in states) + ")"
