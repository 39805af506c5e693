"""The archives and backups and their progress: tables in $GSYNC_HOME/transfers.db, which are the truth.

An archive is identified by its directory, a backup by its source and destination. Its id is made from these; the folder
`archives/<id>` holds its lock and manifest. The state files in the tree only show the database's state. A job is a
request of kind "archive" or "backup" with a single transfer for the whole; `gsync queue` shows and kills it. Not here:
moving any bytes (archiver, backup).
"""

from __future__ import annotations

import hashlib
import os
import pwd
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from gsync.base.durable import fsync_dir, make_dirs
from gsync.base.errors import UsageError
from gsync.base.model import shown
from gsync.base.process import Lock
from gsync.transfer.archive.manifest import Manifest
from gsync.transfer.queue.intake import Intake
from gsync.transfer.queue.orders import Orders
from gsync.transfer.queue.registry import LOCAL
from gsync.transfer.queue.requests import HELD, NewOperation, NewRequest, NewTransfer, Transfer, TransferState
from gsync.transfer.queue.transfers import Transfers

_TABLES = """
CREATE TABLE IF NOT EXISTS archives (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, root BLOB NOT NULL, store TEXT NOT NULL, place BLOB NOT NULL,
    operation TEXT NOT NULL, done INTEGER NOT NULL, frozen INTEGER NOT NULL DEFAULT 0,
    checked INTEGER NOT NULL DEFAULT 0, entries INTEGER NOT NULL DEFAULT 0, size INTEGER NOT NULL DEFAULT 0,
    stage TEXT NOT NULL DEFAULT '', entries_done INTEGER NOT NULL DEFAULT 0, entries_all INTEGER NOT NULL DEFAULT 0,
    size_done INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '', request TEXT NOT NULL DEFAULT '',
    transfer INTEGER NOT NULL DEFAULT 0, created INTEGER NOT NULL, changed INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS archive_failures (
    archive TEXT NOT NULL, path BLOB NOT NULL, why TEXT NOT NULL, PRIMARY KEY (archive, path)) WITHOUT ROWID"""
_NEVER = 1 << 62  # a job's lease does not expire: its lock shows better whether the process lives
_WORKER = "command "  # prefix of a worker's name: a command, not a worker of the queue


@dataclass(frozen=True, slots=True)
class Archive:
    """One archive (kind "archive") or backup ("backup").

    root: the directory; store, place: where it is stored. operation: the last one begun (create, put, get, purge,
    delete, rebuild; backup); done: whether it finished. frozen: the tree is immutable. checked: when every member of
    the vault was last read back and found good (0: never). entries, size: of the whole. stage, entries_done of
    entries_all, size_done: the operation's progress. request, transfer: the operation's, in the queue. Times in ns.
    """

    id: str
    kind: str
    root: bytes
    store: str
    place: bytes
    operation: str
    done: bool
    frozen: bool
    checked: int
    entries: int
    size: int
    stage: str
    entries_done: int
    entries_all: int
    size_done: int
    reason: str
    request: str
    transfer: int
    created: int
    changed: int

    @property
    def state(self) -> str:
        """The state as users read it: "created", "put done", "get failed"."""
        if self.operation == "create" and self.done:
            return "created"
        return f"{self.operation} {'done' if self.done else 'failed'}"

    @property
    def on_disk(self) -> bool:
        """Whether the tree is known to be whole on the disk."""
        return self.operation in ("create", "put") or (self.operation == "get" and self.done)


_COLUMNS = [field.name for field in fields(Archive)]


def _archive(row: Sequence[Any]) -> Archive:
    values = list(row)
    for name in ("done", "frozen"):
        at = _COLUMNS.index(name)
        values[at] = bool(values[at])
    return Archive(*values)


def _id_of(*names: bytes) -> str:
    return hashlib.sha256(b"\0".join(names)).hexdigest()


class Archives:
    """The archives of the state directory `home`, in its database. One object per thread. under: the transfer that jobs
    run as, if a worker of the queue begins them."""

    def __init__(self, transfers: Transfers, home: str, under: Transfer | None = None) -> None:
        self._under = under
        self.folder = os.path.join(home, "archives")
        self.transfers = transfers
        transfers.make_tables(_TABLES)

    # lookups

    def all(self, kind: str = "archive") -> list[Archive]:
        """All of a kind, sorted by directory."""
        return self._rows("WHERE kind = ? ORDER BY root", kind)

    def get(self, id: str) -> Archive | None:
        """Find by id, by an unambiguous prefix of it, or by the id of the last request."""
        exact = self._rows("WHERE id = ? OR request = ?", id, id)
        found = exact or self._rows("WHERE substr(id, 1, ?) = ?", len(id), id)
        if len(found) > 1:
            raise UsageError(f"{id}: ambiguous: {', '.join(a.id[:12] for a in found)}")
        return found[0] if found else None

    def at(self, root: bytes) -> Archive | None:
        """The archive of a directory."""
        return self._one(_id_of(root))

    def backup(self, root: bytes, store: str, place: bytes) -> Archive | None:
        """The backup of a directory to a place."""
        return self._one(_id_of(root, store.encode(), place))

    def the(self, root: bytes) -> Archive:
        """The archive of a directory; UsageError if it is none."""
        archive = self.at(root)
        if archive is None:
            raise UsageError(f"{shown(root)}: not an archive; gsync archive list lists archives, create makes one, "
                             "rebuild adopts one from its vault")
        return archive

    def around(self, root: bytes) -> Archive | None:
        """An archive that lies above or below a directory."""
        inside = [a for a in self.all()
                  if a.root != root and (root + b"/").startswith(a.root.rstrip(b"/") + b"/")]
        return next(iter(inside), None) or next(
            (a for a in self.all() if a.root != root and a.root.startswith(root.rstrip(b"/") + b"/")), None)

    def place_of(self, root: bytes) -> bytes:
        """Where in a vault the archive of a directory lies; depends on the directory's path alone."""
        return b"archives/" + _id_of(root).encode("ascii")

    def _one(self, id: str) -> Archive | None:
        return next(iter(self._rows("WHERE id = ?", id)), None)

    def _rows(self, where: str, *values: object) -> list[Archive]:
        rows = self.transfers.read(f"SELECT {', '.join(_COLUMNS)} FROM archives {where}", values)
        return [_archive(row) for row in rows]

    # changes

    def add(self, kind: str, root: bytes, store: str, place: bytes, operation: str) -> Archive:
        """Record a new archive or backup, with its operation begun."""
        id = _id_of(root) if kind == "archive" else _id_of(root, store.encode(), place)
        now = self.transfers.clock.now()
        with self.transfers.atomic() as db:
            db.execute("INSERT INTO archives (id, kind, root, store, place, operation, done, created, changed) "
                       "VALUES (?, ?, ?, ?, ?, ?, 0, ?, ?)", (id, kind, root, store, place, operation, now, now))
        make_dirs(os.path.join(self.folder, id))
        archive = self._one(id)
        assert archive is not None
        return archive

    def change(self, archive: Archive, **values: object) -> Archive:
        """Set columns; return the archive as it is then."""
        names = ", ".join(f"{name} = ?" for name in values)
        with self.transfers.atomic() as db:
            db.execute(f"UPDATE archives SET {names}, changed = ? WHERE id = ?",
                       (*values.values(), self.transfers.clock.now(), archive.id))
            now = self._one(archive.id)
        if now is None:
            raise UsageError(f"{shown(archive.root)}: the archive was removed in the meantime")
        return now

    def fail(self, archive: Archive, failures: Iterator[tuple[bytes, str]]) -> None:
        """Record entries that the operation could not do; the first reason is kept."""
        with self.transfers.atomic() as db:
            db.executemany("INSERT OR IGNORE INTO archive_failures VALUES (?, ?, ?)",
                           ((archive.id, path, why) for path, why in failures))

    def failures(self, archive: Archive, limit: int = -1) -> list[tuple[bytes, str]]:
        """Path and reason of the entries that the last operation could not do; limit -1: all."""
        return self.transfers.read("SELECT path, why FROM archive_failures WHERE archive = ? ORDER BY path LIMIT ?",
                                   (archive.id, limit))

    def count_failures(self, archive: Archive) -> int:
        return int(self.transfers.read("SELECT count(*) FROM archive_failures WHERE archive = ?",
                                       (archive.id,))[0][0])

    def remove(self, archive: Archive) -> None:
        """Delete its record and its manifest."""
        with self.transfers.atomic() as db:
            db.execute("DELETE FROM archives WHERE id = ?", (archive.id,))
            db.execute("DELETE FROM archive_failures WHERE archive = ?", (archive.id,))
        folder = os.path.join(self.folder, archive.id)
        if os.path.isdir(folder):
            shutil.rmtree(folder)
            fsync_dir(self.folder)

    # jobs

    def begin(self, archive: Archive, operation: str, **arguments: object) -> Archive:
        """Begin a job, as a request that this process holds; the caller holds the lock. arguments: what a resumed job
        needs to know."""
        archive = self.settle(archive, alone=True)
        with self.transfers.atomic() as db:
            request, transfer = (self._under.request, self._under.id) if self._under else \
                self._submitted(archive, operation, arguments)
            db.execute("DELETE FROM archive_failures WHERE archive = ?", (archive.id,))
            return self.change(archive, operation=operation, done=0, reason="", stage="", entries_done=0,
                               entries_all=0, size_done=0, request=request, transfer=transfer)

    def _submitted(self, archive: Archive, operation: str, arguments: Mapping[str, object]) -> tuple[str, int]:
        label = f"{operation} {shown(archive.root)}"
        whole = NewTransfer(LOCAL, archive.root[1:], archive.store, archive.place, archive.size)
        request = Intake(self.transfers).submit(NewRequest(archive.kind, _user(), [NewOperation(
            archive.kind, [whole], {"operation": operation, "archive": archive.id, **arguments})], label))
        transfer, = self.transfers.page(request=request)
        self.transfers.advance([transfer.id], TransferState.NEW, TransferState.SUBMITTED, worker=_worker(),
                               lease=_NEVER)
        return request, transfer.id

    def end(self, archive: Archive, state: TransferState, reason: str = "", **values: object) -> Archive:
        """End the job: DONE, FAILED or KILLED. A queue worker ends its transfer itself."""
        with self.transfers.atomic():
            if self._under is None:
                self.transfers.advance([archive.transfer], HELD, state, reason=reason, worker=None, lease=0)
            return self.change(archive, done=int(state is TransferState.DONE), reason=reason, stage="", **values)

    def is_killed(self, archive: Archive) -> bool:
        """Whether a user has killed the job on it."""
        transfer = self.transfers.transfer(archive.transfer)
        return transfer is not None and transfer.state in (TransferState.KILL, TransferState.KILLED)

    def kill(self, archive: Archive) -> None:
        """Ask the process that works on it to stop; that process polls for this."""
        archive = self._one(archive.id) or archive
        Orders(self.transfers).kill(request=archive.request)
        if self.holder(archive) is None:
            self.settle(archive)

    def settle(self, archive: Archive, alone: bool = False) -> Archive:
        """Record the end of a job whose process died without recording it. alone: the caller holds the lock."""
        transfer = self.transfers.transfer(archive.transfer)
        if transfer is None or transfer.state not in HELD or not (transfer.worker or "").startswith(_WORKER) or (
                not alone and self.holder(archive) is not None):
            return archive
        killed = transfer.state is TransferState.KILL
        return self.end(archive, TransferState.KILLED if killed else TransferState.FAILED,
                        "killed" if killed else "its process died")

    # files

    def lock(self, archive: Archive, operation: str) -> Lock:
        """The lock that lets one process at a time work on an archive."""
        make_dirs(os.path.join(self.folder, archive.id))
        return Lock(os.path.join(self.folder, archive.id, "lock"), f"archive {operation} {shown(archive.root)}: a job")

    def holder(self, archive: Archive) -> int | None:
        """The pid of the process that works on it."""
        return Lock(os.path.join(self.folder, archive.id, "lock"), "").holder()

    def manifest_path(self, archive: Archive) -> bytes:
        return os.fsencode(os.path.join(self.folder, archive.id, "manifest"))

    def manifest(self, archive: Archive) -> Manifest:
        """The whole manifest; UsageError if it is lost."""
        try:
            manifest = Manifest(self.manifest_path(archive))
        except FileNotFoundError:
            raise UsageError(f"{shown(archive.root)}: the manifest is lost; gsync archive rebuild restores it from "
                             "the vault") from None
        manifest.check()
        return manifest


def _worker() -> str:
    return f"{_WORKER}{os.getpid()}"


def _user() -> str:
    """The user that the jobs of this process belong to."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
