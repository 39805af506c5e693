"""Backup of delivered units to a vault, a night at a time.

Promise: a unit counts as backed up only once the vault holds all of it durably and the bytes put there match the unit's
list. Not here: how a vault keeps its members (stores/vault).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import BinaryIO, cast

from gsync.base.log import get_logger
from gsync.base.model import shown
from gsync.transfer.delivery import checksums, placement
from gsync.transfer.delivery.checksums import walk
from gsync.transfer.delivery.context import DataSetContext, Down, Summary, named
from gsync.transfer.delivery.latefiles import LateFiles
from gsync.transfer.delivery.rows import THERE, Delivery, Stage
from gsync.transfer.queue.requests import TransferState
from gsync.transfer.stores.store import Category, Item, Store, StoreError

_log = get_logger(__name__)


class Backups:
    """The backups of one data set."""

    def __init__(self, context: DataSetContext, late: LateFiles) -> None:
        self._context, self._dataset, self._db = context, context.dataset, context.db
        self._stop_signal = context.stop_signal
        self._late = late
        self._monotonic = context.db.transfers.clock.monotonic
        self._not_before = 0.0

    def due(self) -> list[Delivery]:
        """Units that the vault lacks and that are due or ordered."""
        return self._db.to_back_up(self._dataset.name, self._context.latest(self._dataset.backup))

    def put(self, done: Summary) -> None:
        """Put the due units into the vault, with their late files."""
        rows = self.due()
        ordered = any(Stage.BACKUP in row.ordered for row in rows)
        if not rows or (self._monotonic() < self._not_before and not ordered):
            return
        with suppress(Down):  # do not wait for an unreachable source: a unit with late files is backed up again
            lock = self._dataset.checksum_lock
            if not lock or not self._context.asked(lambda: self._context.source().locked(lock)):
                self._late.fetch(done, [row for row in rows if row.caught < max(1, self._context.times_due(row))])
        groups: dict[bytes, list[Delivery]] = {}
        for row in rows:
            groups.setdefault(row.grp, []).append(self._context.fresh(row))
        for group, members in groups.items():
            self._stop_signal.check()
            try:
                done.backed_up += self._put_group([row for row in members if row.state in THERE])
            except (StoreError, OSError) as exc:
                reason = str(exc) if isinstance(exc, StoreError) else f"{named(exc)}: {exc.strerror or exc}"
                _log.error("backup failed", set=self._dataset.name, group=shown(group), error=reason)
                self._context.stores.close()
                for row in members:
                    self._failed(row, reason, tell=False)
                self._tell(members[0], group, reason)
                self._not_before = self._monotonic() + self._context.settings.common.retry_pause
                if isinstance(exc, StoreError) and exc.category is Category.STORE_DOWN:
                    return

    def _tell(self, row: Delivery, group: bytes, reason: str) -> None:
        row = self._context.fresh(row)
        if row.told != f"backup: {reason}":
            self._context.alarm.tell("backup failed", f"{self._dataset.name} {shown(group)}", reason)
            self._db.change(row, told=f"backup: {reason}")

    def _put_group(self, rows: Sequence[Delivery]) -> int:
        """Put units into the vault together; return how many it now holds durably."""
        vault = self._context.stores.writable(self._dataset.vault)
        put: dict[bytes, list[tuple[bytes, str]]] = {}
        damaged: dict[bytes, list[bytes]] = {}
        for row in rows:
            self._db.backup_shown(row, TransferState.SUBMITTED)
        with vault.batch():
            for row in rows:
                put[row.path], damaged[row.path] = self._put(vault, row)
        count = 0
        for row in rows:
            lost = [path for path, digest in put[row.path]
                    if not vault.durable(path) or _digest_in(vault, path) != digest]
            if damaged[row.path]:
                self._failed(row, "damaged after delivery: "
                             + ", ".join(shown(name) for name in damaged[row.path][:10]))
            elif lost:
                self._failed(row, "missing or damaged in the vault: "
                             + ", ".join(shown(path) for path in lost[:10]))
            else:
                placement.seal(os.path.join(self._context.destination, row.path))
                self._db.stage(row, Stage.BACKUP, True, anew=True)
                reason = "" if row.reason.startswith("backup: ") else row.reason
                self._db.change(row, backed_up=1, reason=reason)
                self._db.carried_out(row, Stage.BACKUP)
                self._db.backup_shown(row, TransferState.DONE)
                count += 1
        _log.info("backed up", set=self._dataset.name, group=shown(rows[0].grp) if rows else "", units=count)
        return count

    def _put(self, vault: Store, row: Delivery) -> tuple[list[tuple[bytes, str]], list[bytes]]:
        """Put one unit. Returns path in the vault and digest of each file, and the files that do not match their
        list."""
        place = os.path.join(self._context.destination, row.path)
        root = os.fsencode(self._dataset.vault_path) + b"/" + row.path
        listed = self._listed(row, place)
        put, damaged = [], []
        vault.mkdir(root, _item(place, root))
        for name, mode in walk(place):
            path, target = os.path.join(place, name), root + b"/" + name
            if stat.S_ISDIR(mode):
                vault.mkdir(target, _item(path, target))
                continue
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with open(fd, "rb", buffering=0) as file:
                content = vault.put(target, cast(BinaryIO, _Reader(file, self._stop_signal.check)), _item(path, target),
                                    True)
            put.append((target, content.sha256))
            if listed.get(name, content.sha256) != content.sha256 and Stage.CHECKSUM in row.stages \
                    and row.stages[Stage.CHECKSUM][0]:
                damaged.append(name)
        return put, damaged

    def _listed(self, row: Delivery, place: bytes) -> dict[bytes, str]:
        if self._dataset.checksum_file:
            with suppress(FileNotFoundError), open(os.path.join(place, self._context.list_name(row)), "rb") as file:
                return dict(checksums.ChecksumList.parse(file.read()).digests)
        return {}

    def _failed(self, row: Delivery, reason: str, tell: bool = True) -> None:
        row = self._context.fresh(row)
        self._db.stage(row, Stage.BACKUP, False)
        self._db.backup_shown(row, TransferState.RETRY, reason)
        row = self._db.change(row, reason=f"backup: {reason}")
        if tell:
            self._context.tell(row, "backup failed", reason)
            self._not_before = self._monotonic() + self._context.settings.common.retry_pause


def _digest_in(vault: Store, path: bytes) -> str:
    content = vault.content(path)
    return content.sha256 if content is not None else vault.checksum(path)


def _item(path: bytes, target: bytes) -> Item:
    st = os.lstat(path)
    mode = placement.SEALED_DIR_MODE if stat.S_ISDIR(st.st_mode) else stat.S_IMODE(st.st_mode)
    return Item(target, stat.S_IFMT(st.st_mode), st.st_size, st.st_mtime_ns, st.st_ctime_ns, mode, st.st_uid, st.st_gid)


class _Reader:
    """A file that reports each piece read."""

    def __init__(self, file: object, tell: Callable[[int], None]) -> None:
        self._file, self._tell = file, tell

    def read(self, size: int = -1) -> bytes:
        piece: bytes = self._file.read(size)  # type: ignore[attr-defined]
        self._tell(len(piece))
        return piece
