"""Delivery of one data set: each ready unit is pulled, verified, locked, and moved into place by one rename.

Promise: a unit is delivered once, whole and verified, or quarantined with the reason. If the source, the disk or this
process fails at any moment, nothing is lost and no try is charged: the unit resumes from what is on disk. Not here:
when to check (rounds), the common base of all work (context), late files (latefiles), backups (backup), the rows of
units (rows), the steps on disk (placement), the source (source).
"""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from gsync.base.durable import make_dirs
from gsync.base.errors import Stopped
from gsync.base.log import get_logger
from gsync.base.model import shown
from gsync.transfer.delivery import placement, units
from gsync.transfer.delivery.alert import Alarm
from gsync.transfer.delivery.audit import Audits
from gsync.transfer.delivery.backup import Backups
from gsync.transfer.delivery.checksums import Comparison
from gsync.transfer.delivery.context import DESTINATION, QUARANTINE, DataSetContext, Down, Summary, named, problems
from gsync.transfer.delivery.dataset import DataSet, DeliverySettings
from gsync.transfer.delivery.latefiles import LateFiles
from gsync.transfer.delivery.rows import AT_WORK, THERE, Deliveries, Delivery, KilledByOrder, Stage, UnitState
from gsync.transfer.delivery.source import Listing, differs
from gsync.transfer.delivery.stopsignal import StopSignal
from gsync.transfer.queue.registry import Stores
from gsync.transfer.queue.retry import RetryPolicy
from gsync.transfer.stores.store import Category, StoreError

_log = get_logger(__name__)


class DataSetDelivery:
    """Works on one data set. One object at a time does so: the caller holds the lock."""

    def __init__(self, dataset: DataSet, settings: DeliverySettings, deliveries: Deliveries, stores: Stores,
                 alarm: Alarm, stop_signal: StopSignal, *, backups: bool = True,
                 clock: Callable[[], datetime] = lambda: datetime.now(UTC)
                 ) -> None:
        self.dataset = dataset
        self._context = DataSetContext(dataset, settings, deliveries, stores, alarm, stop_signal, clock)
        self._db, self._stop_signal = deliveries, stop_signal
        self._late = LateFiles(self._context)
        self._backups = Backups(self._context, self._late) if backups and dataset.vault else None
        self._retry = RetryPolicy(settings.common.max_tries - 1, settings.common.retry_pause,
                                  ban=settings.common.retry_pause)

    def close(self) -> None:
        self._context.close()

    # one cycle

    def cycle(self, *, only: str = "") -> Summary:
        """Do everything that is due; only: just CATCHUP, BACKUP or CHECKSUM (an audit). Raises Stopped if told to
        end."""
        done = Summary()
        try:
            self._stop_signal.check()
            self._context.settle()
            self._take_orders()
            if only in ("", Stage.CATCHUP):
                self._with_source(done, new=not only)
            if self._backups is not None and only not in (Stage.CATCHUP, Stage.CHECKSUM):
                self._backups.put(done)
            if only in ("", Stage.CHECKSUM):
                Audits(self._context).read(done)
        except Stopped:
            self._context.close()
            raise
        except sqlite3.Error as exc:
            done.down = f"the database: {exc}"
            _log.error("data set stopped", set=self.dataset.name, error=exc)
        return done

    def _with_source(self, done: Summary, new: bool) -> None:
        """Do the work that needs the source. If it or a disk is unusable, record that, and alert once it has lasted."""
        note = ""
        try:
            with _ours("staging", self._context.staging):
                make_dirs(self._context.staging, 0o750)
                make_dirs(self._context.destination, 0o755)
            source = self._context.source()
            if self.dataset.checksum_lock and self._context.asked(lambda: source.locked(self.dataset.checksum_lock)):
                note = f"the source's checksum lock {self.dataset.checksum_lock} exists"
                done.waiting = note
                _log.info("waiting for the checksum lock", set=self.dataset.name, lock=self.dataset.checksum_lock)
            else:
                if new:
                    self._find_new()
                    for row in self._db.in_state(self.dataset.name, (UnitState.WAITING,)):
                        if row.not_before <= self._db.transfers.clock.now():
                            self._bring(row, done)
                self._late.fetch(done)
            self._context.up("source", note)
        except Down as down:
            done.down = down.reason
            self._context.down(down)

    def _take_orders(self) -> None:
        """Apply `gsync queue kill` and `retry`."""
        killed, again = self._db.orders(self.dataset.name)
        for row in killed:
            if row.state is UnitState.WAITING:
                placement.remove(os.path.join(self._context.staging, row.path))
                placement.prune(self._context.staging, row.path)
            self._db.change(row, state=UnitState.KILLED, reason="killed by gsync queue kill")
        for row in again:
            with suppress(KilledByOrder):
                self._context.unquarantine(row, "retried by gsync queue retry")

    # new units

    def _find_new(self) -> None:
        known = self._db.known(self.dataset.name)
        for unit in self._context.asked(self._context.source().ready):
            if unit.path in known or self._is_too_old(unit):
                continue
            with _ours("destination", self._context.destination):
                there = placement.exists(os.path.join(self._context.destination, unit.path))
            if there:
                _log.warning("already at the destination, not verified", set=self.dataset.name, unit=unit)
            self._db.add(self.dataset, unit, UnitState.FOUND if there else UnitState.WAITING)

    def _is_too_old(self, unit: units.Unit) -> bool:
        first = self.dataset.first_night
        return first is not None and unit.day is not None and unit.day < first

    def _bring(self, row: Delivery, done: Summary) -> None:
        """Bring one unit as far as possible."""
        self._stop_signal.check()
        try:
            listing = self._pulled(row)
            if listing is None:
                return
            row = self._context.fresh(row)
            row, comparison = self._verified(row, listing)
            if comparison.good or self.dataset.on_error == "deliver":
                self._deliver(row, comparison)
                done.delivered += 1
            else:
                self._to_quarantine(row, comparison.reason(), comparison)
                done.quarantined += 1
        except KilledByOrder:
            _log.info("killed", set=self.dataset.name, unit=row)
            placement.remove(os.path.join(self._context.staging, row.path))
            placement.prune(self._context.staging, row.path)
        except Stopped:
            self._context.set_back(row)
            raise
        except StoreError as exc:
            self._failed(self._context.fresh(row), exc, done)
        except OSError as exc:
            self._failed(self._context.fresh(row), self._context.of_the_unit(row, exc), done)
        except (Down, sqlite3.Error):
            raise
        except Exception as exc:  # noqa: BLE001 one unit's trouble, whatever it is, is not the others'
            _log.error("internal error", set=self.dataset.name, unit=row, error=repr(exc))
            self._failed(self._context.fresh(row), StoreError(f"internal error: {exc!r}", Category.TRANSIENT), done)

    def _pulled(self, row: Delivery) -> Listing | None:
        """Pull the unit into staging; None: there is nothing to do."""
        if placement.exists(os.path.join(self._context.destination, row.path)):
            _log.warning("already at the destination, not verified", set=self.dataset.name, unit=row)
            placement.remove(os.path.join(self._context.staging, row.path))
            placement.prune(self._context.staging, row.path)
            self._db.change(row, state=UnitState.FOUND, reason="was already at the destination", not_before=0)
            return None
        row = self._db.change(row, state=UnitState.PULLING)
        listing = self._context.listing(row)
        if listing is None:
            raise StoreError(f"source {self.dataset.source}: the link {row} is missing", Category.TRANSIENT,
                             errno.ENOENT)
        if listing.odd:
            raise StoreError(f"source {self.dataset.source}: {row}: not a file or directory: "
                             + ", ".join(shown(name) for name in listing.odd[:10]), Category.PERMANENT)
        staged = os.path.join(self._context.staging, row.path)
        self._check_room(row, listing)
        came = self._mirror(listing, staged)
        self._db.change(row, files=len(listing.files), bytes=listing.size)
        self._db.stage(row, Stage.PULL, True)
        _log.info("pulled", set=self.dataset.name, unit=row, files=len(listing.files), bytes=came)
        return listing

    def _check_room(self, row: Delivery, listing: Listing) -> None:
        """Down if the unit would leave less space than min-free."""
        staged = os.path.join(self._context.staging, row.path)
        to_come = sum(file.size for file in listing.files.values() if differs(file, staged))
        with _ours("staging", self._context.staging):
            one_disk = os.stat(self._context.staging).st_dev == os.stat(self._context.destination).st_dev
        for what, folder, size in (("staging", self._context.staging, to_come),
                                   ("destination", self._context.destination, 0 if one_disk else listing.size)):
            with _ours(what, folder):
                found = os.statvfs(folder)
            free = found.f_bavail * found.f_frsize
            if size and free - size < self.dataset.min_free:
                self._context.set_back(row)
                raise Down("disk", f"{what} {shown(folder)}: {free:,} bytes free, {row} needs {size:,}, "
                                   f"and min-free is {self.dataset.min_free:,}")

    def _mirror(self, listing: Listing, staged: bytes, wrong: Sequence[bytes] = ()) -> int:
        return self._context.source().mirror(listing, staged, frozenset(wrong))

    def _verified(self, row: Delivery, listing: Listing) -> tuple[Delivery, Comparison]:
        """Compare staging with the checksum list. A mismatch is checked twice: the source may have changed, and the
        data may have been damaged on the way."""
        staged = os.path.join(self._context.staging, row.path)
        row = self._db.change(row, state=UnitState.VERIFYING)
        comparison = self._context.verify(row, staged)
        if not comparison.good:
            again = self._context.listing(row)
            if again is None or again != listing:
                raise StoreError(f"source {self.dataset.source}: {row} changed while it was fetched",
                                 Category.TRANSIENT)
            if comparison.mismatching:
                self._mirror(listing, staged, comparison.mismatching)
                comparison = self._context.verify(row, staged)
        elif not self.dataset.checksum_file and self._context.listing(row) != listing:
            raise StoreError(f"source {self.dataset.source}: {row} changed while it was fetched", Category.TRANSIENT)
        self._db.stage(row, Stage.CHECKSUM, comparison.good)
        return row, comparison

    def _deliver(self, row: Delivery, comparison: Comparison) -> None:
        staged = os.path.join(self._context.staging, row.path)
        placement.lock(staged)
        reason = comparison.reason()
        row = self._db.change(row, reason=reason, problems=problems(comparison))

        def about_to(mark: str) -> None:
            nonlocal row
            row = self._db.change(row, state=UnitState.MOVING, target=DESTINATION, mark=mark)

        try:
            placement.move(staged, self._context.destination, row.path, about_to, comparison.digests)
        except FileExistsError:
            raise StoreError(f"destination {self.dataset.destination}: {row} already exists; another process put it "
                             "there", Category.PERMANENT, errno.EEXIST) from None
        except OSError as exc:
            if exc.errno != errno.EBADMSG:
                raise
            raise StoreError(f"destination {self.dataset.destination}: {row}: {exc.strerror}",
                             Category.TRANSIENT) from exc
        placement.prune(self._context.staging, row.path)
        self._context.delivered(row)
        if not comparison.good:
            self._context.tell(self._context.fresh(row), "delivered despite errors", reason)

    # failures

    def _failed(self, row: Delivery, exc: StoreError, done: Summary) -> None:
        if exc.category is Category.STORE_DOWN:
            self._context.close()
            self._context.set_back(row)
            raise Down("source", str(exc)) from exc
        if row.state in AT_WORK:
            self._context.set_back(row)
            row = self._context.fresh(row)
        tries = row.tries + 1
        decision = self._retry.judge(exc.category, tries, self._db.transfers.clock.now())
        _log.warning("a unit failed", set=self.dataset.name, unit=row, tries=tries, error=exc)
        with suppress(KilledByOrder):
            if decision.again is not None:
                self._db.stage(row, Stage.PULL, False)
                self._db.change(row, state=UnitState.WAITING, reason=str(exc), tries=tries, not_before=decision.again,
                                category=exc.category)
                return
            self._db.stage(row, Stage.PULL, False)
            reason = str(exc) + (f" (tried {tries} times)" if tries > 1 else "")
            staged = os.path.join(self._context.staging, row.path)
            if self.dataset.on_error == "deliver" and placement.mark_of(staged) and exc.errno != errno.EEXIST:
                checked = self._context.verify(row, staged)
                checked.wrong.insert(0, reason)
                self._db.stage(row, Stage.CHECKSUM, False)
                self._deliver(row, checked)
                done.delivered += 1
                return
            self._to_quarantine(row, reason, None)
            done.quarantined += 1

    def _to_quarantine(self, row: Delivery, reason: str, comparison: Comparison | None) -> None:
        """Quarantine the unit's present files, with the reason beside them."""
        staged, aside = os.path.join(self._context.staging, row.path), os.path.join(self._context.quarantine, row.path)
        row = self._db.change(row, reason=reason, problems=problems(comparison) if comparison else {})
        try:
            if placement.mark_of(staged):
                placement.remove(aside)

                def about_to(mark: str) -> None:
                    nonlocal row
                    row = self._db.change(row, state=UnitState.MOVING, target=QUARANTINE, mark=mark)

                placement.move(staged, self._context.quarantine, row.path, about_to)
                placement.prune(self._context.staging, row.path)
            self._context.put_aside(row)
        except OSError as exc:  # quarantine cannot be written either
            self._context.set_back(row)
            raise Down("disk", f"{named(exc)}: {exc.strerror or exc}") from exc

    # dry runs

    def plan(self) -> list[tuple[str, str, str]]:
        """Plan a cycle: action, unit, details. Reads the source, changes nothing. Down if the source is unreachable."""
        source = self._context.source()
        if self.dataset.checksum_lock and self._context.asked(lambda: source.locked(self.dataset.checksum_lock)):
            return [("wait", "", f"the source's checksum lock {self.dataset.checksum_lock} exists")]
        rows = {row.path: row for row in self._db.in_state(self.dataset.name, tuple(UnitState))}
        found = []
        for unit in self._context.asked(source.ready):
            row = rows.get(unit.path)
            if self._is_too_old(unit) or (row is not None and row.state not in (UnitState.WAITING, *AT_WORK)):
                continue
            if placement.exists(os.path.join(self._context.destination, unit.path)):
                found.append(("leave", str(unit), "already at the destination"))
                continue
            try:
                with self._stop_signal.watch(self._context.close):
                    listing = source.listing(unit.path)
            except StoreError as exc:
                if exc.category is Category.STORE_DOWN:
                    raise Down("source", str(exc)) from exc
                found.append(("try", str(unit), str(exc)))
                continue
            if listing is not None:
                found.append(("deliver", str(unit), f"{len(listing.files)} files, {listing.size} bytes"))
        found += [("catch up", str(row), row.state.value) for row in self._late.due()]
        if self._backups is not None:
            found += [("back up", str(row), self.dataset.vault) for row in self._backups.due()]
        return found

    def plan_ordered(self, what: str, groups: Sequence[bytes]) -> list[tuple[str, str, str]]:
        """The units that `catch up`, `back up` or `audit` would work on, if ordered."""
        states = (*THERE, UnitState.QUARANTINED) if what == "catch up" else THERE
        return [(what, str(row), row.state.value) for row in self._db.in_state(self.dataset.name, states)
                if (not groups or row.grp in groups) and not (what == "back up" and row.backed_up)]


class _ours:
    """Turns an OSError of a local disk into Down."""

    def __init__(self, what: str, path: bytes) -> None:
        self._what, self._path = what, path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, tb: object) -> None:
        if isinstance(exc, OSError):
            raise Down("disk", f"{self._what} {shown(self._path)}: {exc.strerror or exc}") from exc
