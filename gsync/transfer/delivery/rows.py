"""The rows of units in the database of transfers, and how `gsync queue` sees them.

A unit is one request with one transfer, and a second one for the backup if there is a vault. Both sides change in one
transaction, so no order of `gsync queue kill` or `retry` is lost. Queue workers do not touch these kinds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, date, datetime
from enum import StrEnum
from typing import Any

from gsync.base.errors import UsageError
from gsync.base.model import NS
from gsync.transfer.delivery.dataset import DataSet
from gsync.transfer.delivery.units import Unit
from gsync.transfer.queue.orders import Orders
from gsync.transfer.queue.requests import ENDED, TAKEN, NewOperation, NewRequest, NewTransfer, TransferState
from gsync.transfer.queue.transfers import Transfers
from gsync.transfer.stores.store import Category

KIND, DELIVER, BACKUP = "deliver", "deliver", "backup"
_FOREVER = (1 << 63) - 1  # the lease of a daemon: no worker takes its transfers over


class UnitState(StrEnum):
    """The state of a unit."""

    WAITING = "waiting"          # to be pulled, now or (after an error) later
    PULLING = "pulling"
    VERIFYING = "verifying"
    MOVING = "moving"            # about to be renamed to `target`; `mark` identifies the directory
    DELIVERED = "delivered"
    CATCHING_UP = "catching up"  # delivered; being exchanged for a version with its late files
    QUARANTINED = "quarantined"
    FOUND = "found"              # it was at the destination before gsync came
    KILLED = "killed"


AT_WORK = (UnitState.PULLING, UnitState.VERIFYING, UnitState.MOVING, UnitState.CATCHING_UP)
THERE = (UnitState.DELIVERED, UnitState.CATCHING_UP, UnitState.FOUND)


class Stage(StrEnum):
    """A step of the work on a unit, recorded with its outcome and time."""

    PULL = "pull"
    CHECKSUM = "checksum"
    CATCHUP = "catchup"
    BACKUP = "backup"


_SCHEMA = """
CREATE TABLE IF NOT EXISTS deliver_sets (
  name TEXT PRIMARY KEY, staging TEXT NOT NULL, destination TEXT NOT NULL, looked INTEGER NOT NULL DEFAULT 0,
  note TEXT NOT NULL DEFAULT '', down_since INTEGER NOT NULL DEFAULT 0, down_what TEXT NOT NULL DEFAULT '',
  down_told INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS deliver_units (
  id INTEGER PRIMARY KEY, dataset TEXT NOT NULL, path BLOB NOT NULL, grp BLOB NOT NULL, day TEXT NOT NULL,
  state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', tries INTEGER NOT NULL DEFAULT 0,
  not_before INTEGER NOT NULL DEFAULT 0, request TEXT NOT NULL, step INTEGER NOT NULL, backup_step INTEGER,
  target TEXT NOT NULL DEFAULT '', mark TEXT NOT NULL DEFAULT '', files INTEGER NOT NULL DEFAULT 0,
  bytes INTEGER NOT NULL DEFAULT 0, caught INTEGER NOT NULL DEFAULT 0, backed_up INTEGER NOT NULL DEFAULT 0,
  seen INTEGER NOT NULL, changed INTEGER NOT NULL,
  told TEXT NOT NULL DEFAULT '', problems TEXT NOT NULL DEFAULT '{}', UNIQUE (dataset, path));
CREATE INDEX IF NOT EXISTS deliver_units_state ON deliver_units (dataset, state);
CREATE INDEX IF NOT EXISTS deliver_units_group ON deliver_units (dataset, grp, path);
CREATE TABLE IF NOT EXISTS deliver_stages (
  unit INTEGER NOT NULL, stage TEXT NOT NULL, ok INTEGER NOT NULL, at INTEGER NOT NULL,
  PRIMARY KEY (unit, stage)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS deliver_orders (
  unit INTEGER NOT NULL, what TEXT NOT NULL, at INTEGER NOT NULL, PRIMARY KEY (unit, what)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS deliver_groups (
  dataset TEXT NOT NULL, grp BLOB NOT NULL, day TEXT NOT NULL, changed INTEGER NOT NULL DEFAULT 1,
  rendered TEXT NOT NULL DEFAULT '', PRIMARY KEY (dataset, grp)) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Delivery:
    """A row: one unit. day: of its night, or when it was first seen (UTC). Times in ns since the epoch.

    caught: on how many days late files were looked for. ordered: work that a person ordered (CATCHUP, BACKUP; CHECKSUM:
    an audit), and when. told: the last alert sent. problems: names by the kind of problem (checksums.Comparison.lists).
    """

    id: int
    dataset: str
    path: bytes
    grp: bytes
    day: date
    state: UnitState
    reason: str
    tries: int
    not_before: int
    request: str
    step: int
    backup_step: int | None
    target: str
    mark: str
    files: int
    bytes: int
    caught: int
    backed_up: bool
    seen: int
    changed: int
    told: str
    problems: dict[str, list[str]]
    stages: dict[Stage, tuple[bool, int]] = field(default_factory=dict)
    ordered: dict[Stage, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return os.fsdecode(self.path)


_COLUMNS = [each.name for each in fields(Delivery) if each.name not in ("stages", "ordered")]
_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM deliver_units "
_ORDERED = "id IN (SELECT unit FROM deliver_orders WHERE what=?)"


@dataclass(frozen=True)
class SetRow:
    """A data set's row. looked: when its source last answered; note: what it is doing, or waits for."""

    name: str
    staging: str
    destination: str
    looked: int
    note: str
    down_since: int
    down_what: str
    down_told: bool


class KilledByOrder(Exception):
    """`gsync queue kill` has killed the unit."""


class Deliveries:
    """The units of all data sets. One object per thread."""

    def __init__(self, transfers: Transfers) -> None:
        self.transfers = transfers
        transfers.make_tables(_SCHEMA)

    # data sets

    def enter(self, dataset: DataSet) -> None:
        """Record a data set; UsageError if another one has its name."""
        with self.transfers.atomic() as db:
            row = db.execute("SELECT staging, destination FROM deliver_sets WHERE name=?", (dataset.name,)).fetchone()
            if row is not None and row[1] != dataset.destination and db.execute(
                    "SELECT 1 FROM deliver_units WHERE dataset=?", (dataset.name,)).fetchone():
                raise UsageError(f"data set {dataset.name}: a data set of this name delivers to {row[1]}, not to "
                                 f"{dataset.destination}; use another name or another state directory (--state)")
            db.execute("INSERT INTO deliver_sets (name, staging, destination) VALUES (?,?,?) ON CONFLICT (name) DO "
                       "UPDATE SET staging=excluded.staging, destination=excluded.destination",
                       (dataset.name, dataset.staging, dataset.destination))

    def set_row(self, name: str) -> SetRow | None:
        rows = self.transfers.read("SELECT name, staging, destination, looked, note, down_since, down_what, down_told "
                                   "FROM deliver_sets WHERE name=?", (name,))
        if not rows:
            return None
        values: list[Any] = list(rows[0])
        values[7] = bool(values[7])
        return SetRow(*values)

    def change_set(self, name: str, **columns: object) -> None:
        with self.transfers.atomic() as db:
            db.execute(f"UPDATE deliver_sets SET {', '.join(f'{key}=?' for key in columns)} WHERE name=?",
                       (*columns.values(), name))

    # units

    def add(self, dataset: DataSet, unit: Unit, state: UnitState = UnitState.WAITING) -> Delivery:
        """Record a new unit, with its request."""
        now = self.transfers.clock.now()
        day = unit.day or datetime.fromtimestamp(now // NS, UTC).date()
        steps = [NewOperation(DELIVER, [NewTransfer(dataset.source, unit.path, dataset.destination, unit.path)])]
        if dataset.vault:
            steps.append(NewOperation(BACKUP, [NewTransfer(
                dataset.destination, unit.path, dataset.vault, os.fsencode(dataset.vault_path) + b"/" + unit.path)]))
        request = NewRequest(KIND, dataset.name, steps, f"{dataset.name} {unit}".encode(
            "utf-8", "backslashreplace").decode())
        with self.transfers.atomic() as db:
            self.transfers.insert(request)
            ids = [row.id for row in self.transfers.page(request=request.id)]
            db.execute("INSERT INTO deliver_units (dataset, path, grp, day, state, request, step, backup_step, seen, "
                       "changed) VALUES (?,?,?,?,?,?,?,?,?,?)",
                       (dataset.name, unit.path, unit.group, day.isoformat(), UnitState.WAITING.value, request.id,
                        ids[0],
                        ids[1] if dataset.vault else None, now, now))
            row = self.get(dataset.name, unit.path)
            assert row is not None
            self._touch(row)
            if state is not UnitState.WAITING:
                row = self.change(row, state=state)
        return row

    def get(self, dataset: str, path: bytes) -> Delivery | None:
        return next(iter(self._rows("WHERE dataset=? AND path=?", (dataset, path))), None)

    def known(self, dataset: str) -> set[bytes]:
        return {row[0] for row in self.transfers.read("SELECT path FROM deliver_units WHERE dataset=?", (dataset,))}

    def in_state(self, dataset: str, states: Sequence[UnitState]) -> list[Delivery]:
        marks = ",".join("?" * len(states))
        return self._rows(f"WHERE dataset=? AND state IN ({marks}) ORDER BY path", (dataset, *states))

    def to_look_at(self, dataset: str) -> list[Delivery]:
        """Units that are quarantined, being retried, or of which a stage failed."""
        marks = ",".join("?" * len(THERE))
        return self._rows(
            f"WHERE dataset=? AND (state=? OR (state=? AND tries>0) OR (state IN ({marks}) AND EXISTS "
            "(SELECT 1 FROM deliver_stages s WHERE s.unit=deliver_units.id AND NOT s.ok))) ORDER BY path",
            (dataset, UnitState.QUARANTINED, UnitState.WAITING, *THERE))

    def to_catch_up(self, dataset: str, times: int, latest: date) -> list[Delivery]:
        """Units up to a night whose late files were looked for less than so many times, or are ordered."""
        states = (*THERE, UnitState.QUARANTINED)
        marks = ",".join("?" * len(states))
        return self._rows(
            f"WHERE dataset=? AND state IN ({marks}) AND ({_ORDERED} OR caught<? AND day<=?) ORDER BY path",
            (dataset, *states, Stage.CATCHUP, times, latest.isoformat()))

    def to_audit(self, dataset: str) -> list[Delivery]:
        """Units at the destination whose audit is ordered."""
        return self._rows(f"WHERE dataset=? AND state IN (?,?) AND {_ORDERED} ORDER BY path",
                          (dataset, UnitState.FOUND, UnitState.DELIVERED, Stage.CHECKSUM))

    def to_back_up(self, dataset: str, latest: date) -> list[Delivery]:
        """Units up to a night (or ordered ones) that the vault does not hold in their present form."""
        marks = ",".join("?" * len(THERE))
        return self._rows(
            f"WHERE dataset=? AND state IN ({marks}) AND NOT backed_up AND ({_ORDERED} OR day<=?) "
            "ORDER BY grp, path", (dataset, *THERE, Stage.BACKUP, latest.isoformat()))

    def of_group(self, dataset: str, grp: bytes) -> list[Delivery]:
        return self._rows("WHERE dataset=? AND grp=? ORDER BY path", (dataset, grp))

    def order(self, dataset: str, what: Stage, groups: Sequence[bytes]) -> int:
        """Order a look for late files, a backup or an audit as soon as possible; return the number of units. No groups:
        all."""
        states = (*THERE, UnitState.QUARANTINED) if what is Stage.CATCHUP else THERE
        where = f"dataset=? AND state IN ({','.join('?' * len(states))})"
        values: list[object] = [dataset, *states]
        if groups:
            where += f" AND grp IN ({','.join('?' * len(groups))})"
            values += groups
        if what is Stage.BACKUP:
            where += " AND NOT backed_up"
        with self.transfers.atomic() as db:
            db.execute(f"UPDATE deliver_units SET not_before=0 WHERE {where}", values)
            return db.execute(f"INSERT OR REPLACE INTO deliver_orders SELECT id, ?, ? FROM deliver_units WHERE {where}",
                              (what, self.transfers.clock.now(), *values)).rowcount

    def carried_out(self, row: Delivery, what: Stage) -> None:
        """Delete an order that was carried out; one given after `row` was read stays."""
        with self.transfers.atomic() as db:
            db.execute("DELETE FROM deliver_orders WHERE unit=? AND what=? AND at=?",
                       (row.id, what, row.ordered.get(what)))

    def _rows(self, where: str, values: Sequence[object]) -> list[Delivery]:
        deliveries = []
        read = self.transfers.read
        for row in read(_SELECT + where, values):
            found: list[Any] = list(row)
            stages = {Stage(stage): (bool(ok), at) for stage, ok, at in read(
                "SELECT stage, ok, at FROM deliver_stages WHERE unit=?", (found[0],))}
            ordered = {Stage(what): at for what, at in read(
                "SELECT what, at FROM deliver_orders WHERE unit=?", (found[0],))}
            found[4] = date.fromisoformat(found[4])
            found[5] = UnitState(found[5])
            found[17] = bool(found[17])
            found[21] = json.loads(found[21])
            deliveries.append(Delivery(*found, stages, ordered))  # type: ignore[call-arg]
        return deliveries

    # changes

    def change(self, row: Delivery, *, category: Category | None = None, **columns: Any) -> Delivery:
        """Change a unit's columns, and update its transfer in the queue. Raises KilledByOrder if it was killed
        meanwhile; then its state is KILLED."""
        state = UnitState(columns.get("state", row.state))
        killed = False
        with self.transfers.atomic() as db:
            if state is not row.state or "reason" in columns or "not_before" in columns:
                killed = not self._show(row, state, columns, category)
            if killed:
                columns = {"state": UnitState.KILLED, "reason": "killed by gsync queue kill"}
            if "problems" in columns:
                columns["problems"] = json.dumps(columns["problems"])
            columns["changed"] = self.transfers.clock.now()
            db.execute(f"UPDATE deliver_units SET {', '.join(f'{key}=?' for key in columns)} WHERE id=?",
                       (*columns.values(), row.id))
            self._touch(row)
            (found,) = self._rows("WHERE id=?", (row.id,))
        if killed:
            raise KilledByOrder(str(row))
        return found

    def _show(self, row: Delivery, state: UnitState, columns: dict[str, Any], category: Category | None) -> bool:
        """Update the transfer in the queue to follow the unit; False: it was killed."""
        reason = columns.get("reason", row.reason)
        tries, not_before = columns.get("tries", row.tries), columns.get("not_before", row.not_before)
        ready = (TransferState.QUEUED, TransferState.NEW, TransferState.RETRY, *TAKEN)
        if state is UnitState.KILLED:
            self.transfers.advance([row.step], (*ready, TransferState.KILL), TransferState.KILLED, worker=None,
                                   reason=reason)
            return True
        if state in (UnitState.DELIVERED, UnitState.FOUND, UnitState.CATCHING_UP):
            # A finished unit is DONE, even if it was killed meanwhile.
            self.transfers.advance([row.step], (*ready, TransferState.KILL), TransferState.DONE, worker=None,
                                   reason=reason,
                                   size=columns.get("bytes", row.bytes))
            return True
        if state is UnitState.WAITING:
            goal = TransferState.RETRY if not_before else TransferState.NEW
        elif state is UnitState.QUARANTINED:
            goal = TransferState.FAILED
        else:
            goal = TransferState.SUBMITTED if state is UnitState.PULLING else TransferState.VERIFYING
        held = goal in TAKEN
        done = self.transfers.advance(
            [row.step], ready, goal, tries=tries, not_before=not_before, reason=reason,
            worker=f"deliver {os.getpid()}" if held else None, lease=_FOREVER if held else 0,
            category=category.value if category else None)
        if not done:
            found = self.transfers.transfer(row.step)
            if found is not None and found.state in (TransferState.KILL, TransferState.KILLED):
                self.transfers.advance([row.step], TransferState.KILL, TransferState.KILLED, worker=None)
                return False
            if found is not None and found.state is TransferState.FAILED and goal is not TransferState.FAILED:
                Orders(self.transfers).retry(request=row.request)
        return True

    def stage(self, row: Delivery, stage: Stage, ok: bool, anew: bool = False) -> None:
        """Record the outcome of a stage. An unchanged outcome keeps its time, unless the stage was repeated."""
        with self.transfers.atomic() as db:
            db.execute("INSERT INTO deliver_stages VALUES (?,?,?,?) ON CONFLICT (unit, stage) DO UPDATE SET "
                       "ok=excluded.ok, at=excluded.at WHERE ok<>excluded.ok OR ?",
                       (row.id, stage, ok, self.transfers.clock.now(), anew))
            self._touch(row)

    def backup_shown(self, row: Delivery, state: TransferState, reason: str = "") -> None:
        """Set the state of the backup in the queue."""
        if row.backup_step is not None:
            self.transfers.advance([row.backup_step], tuple(each for each in TransferState if each is not state), state,
                                   reason=reason, worker=None, size=row.bytes)

    def _touch(self, row: Delivery) -> None:
        with self.transfers.atomic() as db:
            db.execute("INSERT INTO deliver_groups (dataset, grp, day) VALUES (?,?,?) ON CONFLICT (dataset, grp) DO "
                       "UPDATE SET changed=changed+1", (row.dataset, row.grp, row.day.isoformat()))

    # orders given through the queue

    def orders(self, dataset: str) -> tuple[list[Delivery], list[Delivery]]:
        """Units that were killed in the queue, and those to be retried at once."""
        killed, again = [], []
        for row in self.in_state(dataset, (UnitState.WAITING, UnitState.QUARANTINED, UnitState.KILLED)):
            found = self.transfers.transfer(row.step)
            if found is None:
                continue
            if found.state in (TransferState.KILL, TransferState.KILLED) and row.state is not UnitState.KILLED:
                killed.append(row)
            elif found.state not in ENDED and (row.state is not UnitState.WAITING
                                               or row.not_before > self.transfers.clock.now()) \
                    and found.not_before == 0:
                again.append(row)
        return killed, again

    # for the status page

    def groups(self, dataset: str) -> list[tuple[bytes, date, int, str]]:
        """Each group, its day, the number of its changes, and its cached counts (status.nights); the newest first."""
        return [(row[0], date.fromisoformat(row[1]), row[2], row[3]) for row in self.transfers.read(
            "SELECT grp, day, changed, rendered FROM deliver_groups WHERE dataset=? ORDER BY day DESC, grp DESC",
            (dataset,))]

    def rendered(self, dataset: str, grp: bytes, what: str) -> None:
        with self.transfers.atomic() as db:
            db.execute("UPDATE deliver_groups SET rendered=? WHERE dataset=? AND grp=?", (what, dataset, grp))

    def counts(self, dataset: str) -> dict[UnitState, int]:
        return {UnitState(row[0]): row[1] for row in self.transfers.read(
            "SELECT state, count(*) FROM deliver_units WHERE dataset=? GROUP BY state", (dataset,))}
