"""Delivery of one data set: each ready unit is pulled, verified, locked, and moved into place by one rename.

Promise: a unit is delivered once, whole and verified, or put aside with the reason; a failure of the source, the disk
or this process at any moment loses nothing and counts as nothing: the unit is taken up again from what is on the disk.
Not here: when to look (rounds), what all work on a data set shares (deliverysite), late files, backups, what is
remembered (deliverdb), the steps on the disk (handover), the source (source).
"""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime

from gsync.base.durable import make_dirs
from gsync.base.log import get_logger
from gsync.base.model import shown
from gsync.transfer.delivery import handover, units
from gsync.transfer.delivery.alert import Alarm
from gsync.transfer.delivery.audit import Audits
from gsync.transfer.delivery.backup import Backups
from gsync.transfer.delivery.checksums import Verdict
from gsync.transfer.delivery.dataset import DataSet, Settings
from gsync.transfer.delivery.gate import Gate, Stopped
from gsync.transfer.delivery.latefiles import LateFiles
from gsync.transfer.delivery.rows import AT_WORK, THERE, Deliveries, Delivery, KilledByOrder, Stage, State
from gsync.transfer.delivery.site import DESTINATION, QUARANTINE, Down, Site, Summary, named, problems
from gsync.transfer.delivery.source import Listing, differs
from gsync.transfer.queue.registry import Stores
from gsync.transfer.queue.retry import RetryPolicy
from gsync.transfer.stores.store import Category, StoreError

_log = get_logger(__name__)


class DataSetDelivery:
    """Works on one data set; one object at a time does (the caller holds the lock)."""

    def __init__(self, dataset: DataSet, settings: Settings, deliveries: Deliveries, stores: Stores, alarm: Alarm,
                 gate: Gate, *, backups: bool = True, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
                 ) -> None:
        self.dataset = dataset
        self._site = Site(dataset, settings, deliveries, stores, alarm, gate, clock)
        self._db, self._gate = deliveries, gate
        self._late = LateFiles(self._site)
        self._backups = Backups(self._site, self._late) if backups and dataset.vault else None
        self._retry = RetryPolicy(settings.common.max_tries - 1, settings.common.retry_pause,
                                  ban=settings.common.retry_pause)

    def close(self) -> None:
        self._site.close()

    # one look

    def cycle(self, *, only: str = "") -> Summary:
        """Do all that is due. only: CATCHUP, BACKUP or CHECKSUM (an audit), nothing but that. Stopped: it is to end."""
        done = Summary()
        try:
            self._gate.check()
            self._site.settle()
            self._take_orders()
            if only in ("", Stage.CATCHUP):
                self._with_source(done, new=not only)
            if self._backups is not None and only not in (Stage.CATCHUP, Stage.CHECKSUM):
                self._backups.put(done)
            if only in ("", Stage.CHECKSUM):
                Audits(self._site).read(done)
        except Stopped:
            self._site.close()
            raise
        except sqlite3.Error as exc:
            done.down = f"the database: {exc}"
            _log.error("cannot go on", set=self.dataset.name, error=exc)
        return done

    def _with_source(self, done: Summary, new: bool) -> None:
        """What needs the source. That it, or a disk, cannot be used is noted, and told when it lasts."""
        note = ""
        try:
            with _ours("staging", self._site.staging):
                make_dirs(self._site.staging, 0o750)
                make_dirs(self._site.destination, 0o755)
            source = self._site.source()
            if self.dataset.checksum_lock and self._site.asked(lambda: source.locked(self.dataset.checksum_lock)):
                note = f"the source's checksum lock {self.dataset.checksum_lock} is there"
                done.waiting = note
                _log.info("checksums are being written", set=self.dataset.name, lock=self.dataset.checksum_lock)
            else:
                if new:
                    self._find_new()
                    for row in self._db.in_state(self.dataset.name, (State.WAITING,)):
                        if row.not_before <= time.time_ns():
                            self._bring(row, done)
                self._late.fetch(done)
            self._site.up("source", note)
        except Down as down:
            done.down = down.reason
            self._site.down(down)

    def _take_orders(self) -> None:
        """`gsync queue kill` and `retry`."""
        killed, again = self._db.orders(self.dataset.name)
        for row in killed:
            if row.state is State.WAITING:
                handover.remove(os.path.join(self._site.staging, row.path))
                handover.prune(self._site.staging, row.path)
            self._db.change(row, state=State.KILLED, reason="killed by gsync queue kill")
        for row in again:
            with suppress(KilledByOrder):
                self._site.unquarantine(row, "tried again by gsync queue retry")

    # new units

    def _find_new(self) -> None:
        known = self._db.known(self.dataset.name)
        for unit in self._site.asked(self._site.source().ready):
            if unit.path in known or self._is_too_old(unit):
                continue
            with _ours("destination", self._site.destination):
                there = handover.exists(os.path.join(self._site.destination, unit.path))
            if there:
                _log.warning("at the destination already, not looked into", set=self.dataset.name, unit=unit)
            self._db.add(self.dataset, unit, State.FOUND if there else State.WAITING)

    def _is_too_old(self, unit: units.Unit) -> bool:
        first = self.dataset.first_night
        return first is not None and unit.day is not None and unit.day < first

    def _bring(self, row: Delivery, done: Summary) -> None:
        """One unit, as far as it goes."""
        self._gate.check()
        try:
            listing = self._pulled(row)
            if listing is None:
                return
            row = self._site.fresh(row)
            row, verdict = self._verified(row, listing)
            if verdict.good or self.dataset.on_error == "deliver":
                self._deliver(row, verdict)
                done.delivered += 1
            else:
                self._to_quarantine(row, verdict.reason(), verdict)
                done.quarantined += 1
        except KilledByOrder:
            _log.info("killed", set=self.dataset.name, unit=row)
            handover.remove(os.path.join(self._site.staging, row.path))
            handover.prune(self._site.staging, row.path)
        except Stopped:
            self._site.set_back(row)
            raise
        except StoreError as exc:
            self._failed(self._site.fresh(row), exc, done)
        except OSError as exc:
            self._failed(self._site.fresh(row), self._site.of_the_unit(row, exc), done)
        except (Down, sqlite3.Error):
            raise
        except Exception as exc:  # noqa: BLE001 one unit's trouble, whatever it is, is not the others'
            _log.error("internal error", set=self.dataset.name, unit=row, error=repr(exc))
            self._failed(self._site.fresh(row), StoreError(f"internal error: {exc!r}", Category.TRANSIENT), done)

    def _pulled(self, row: Delivery) -> Listing | None:
        """Staging holds what the source has of the unit; None: there is nothing to do."""
        if handover.exists(os.path.join(self._site.destination, row.path)):
            _log.warning("at the destination already, not looked into", set=self.dataset.name, unit=row)
            handover.remove(os.path.join(self._site.staging, row.path))
            handover.prune(self._site.staging, row.path)
            self._db.change(row, state=State.FOUND, reason="was at the destination already", not_before=0)
            return None
        row = self._db.change(row, state=State.PULLING)
        listing = self._site.listing(row)
        if listing is None:
            raise StoreError(f"source {self.dataset.source}: the link {row} is gone", Category.TRANSIENT, errno.ENOENT)
        if listing.odd:
            raise StoreError(f"source {self.dataset.source}: {row}: neither file nor directory: "
                             + ", ".join(shown(name) for name in listing.odd[:10]), Category.PERMANENT)
        staged = os.path.join(self._site.staging, row.path)
        self._check_room(row, listing)
        came = self._mirror(listing, staged)
        self._db.change(row, files=len(listing.files), bytes=listing.size)
        self._db.stage(row, Stage.PULL, True)
        _log.info("pulled", set=self.dataset.name, unit=row, files=len(listing.files), bytes=came)
        return listing

    def _check_room(self, row: Delivery, listing: Listing) -> None:
        """Down if the unit would leave less free than is to be kept."""
        staged = os.path.join(self._site.staging, row.path)
        to_come = sum(file.size for file in listing.files.values() if differs(file, staged))
        with _ours("staging", self._site.staging):
            one_disk = os.stat(self._site.staging).st_dev == os.stat(self._site.destination).st_dev
        for what, folder, size in (("staging", self._site.staging, to_come),
                                   ("destination", self._site.destination, 0 if one_disk else listing.size)):
            with _ours(what, folder):
                found = os.statvfs(folder)
            free = found.f_bavail * found.f_frsize
            if size and free - size < self.dataset.min_free:
                self._site.set_back(row)
                raise Down("disk", f"{what} {shown(folder)}: {free:,} bytes are free, {row} takes {size:,}, "
                                   f"and min-free is {self.dataset.min_free:,}")

    def _mirror(self, listing: Listing, staged: bytes, wrong: Sequence[bytes] = ()) -> int:
        return self._site.source().mirror(listing, staged, frozenset(wrong))

    def _verified(self, row: Delivery, listing: Listing) -> tuple[Delivery, Verdict]:
        """The verdict on what is in staging. What is wrong is looked at twice: the source may have changed under us,
        and what arrived may have been damaged on the way."""
        staged = os.path.join(self._site.staging, row.path)
        row = self._db.change(row, state=State.VERIFYING)
        verdict = self._site.verify(row, staged)
        if not verdict.good:
            again = self._site.listing(row)
            if again is None or again != listing:
                raise StoreError(f"source {self.dataset.source}: {row} changed while it was fetched",
                                 Category.TRANSIENT)
            if verdict.mismatching:
                self._mirror(listing, staged, verdict.mismatching)
                verdict = self._site.verify(row, staged)
        elif not self.dataset.checksum_file and self._site.listing(row) != listing:
            raise StoreError(f"source {self.dataset.source}: {row} changed while it was fetched", Category.TRANSIENT)
        self._db.stage(row, Stage.CHECKSUM, verdict.good)
        return row, verdict

    def _deliver(self, row: Delivery, verdict: Verdict) -> None:
        staged = os.path.join(self._site.staging, row.path)
        handover.lock(staged)
        reason = verdict.reason()
        row = self._db.change(row, reason=reason, problems=problems(verdict))

        def about_to(mark: str) -> None:
            nonlocal row
            row = self._db.change(row, state=State.MOVING, target=DESTINATION, mark=mark)

        try:
            handover.move(staged, self._site.destination, row.path, about_to, verdict.digests)
        except FileExistsError:
            raise StoreError(f"destination {self.dataset.destination}: {row} is there already, put there by somebody "
                             "else meanwhile", Category.PERMANENT, errno.EEXIST) from None
        except OSError as exc:
            if exc.errno != errno.EBADMSG:
                raise
            raise StoreError(f"destination {self.dataset.destination}: {row}: {exc.strerror}",
                             Category.TRANSIENT) from exc
        handover.prune(self._site.staging, row.path)
        self._site.delivered(row)
        if not verdict.good:
            self._site.tell(self._site.fresh(row), "delivered though it failed", reason)

    # what did not go well

    def _failed(self, row: Delivery, exc: StoreError, done: Summary) -> None:
        if exc.category is Category.STORE_DOWN:
            self._site.close()
            self._site.set_back(row)
            raise Down("source", str(exc)) from exc
        if row.state in AT_WORK:
            self._site.set_back(row)
            row = self._site.fresh(row)
        tries = row.tries + 1
        verdict = self._retry.judge(exc.category, tries, time.time_ns())
        _log.warning("a unit fails", set=self.dataset.name, unit=row, tries=tries, error=exc)
        with suppress(KilledByOrder):
            if verdict.again is not None:
                self._db.stage(row, Stage.PULL, False)
                self._db.change(row, state=State.WAITING, reason=str(exc), tries=tries, not_before=verdict.again,
                                category=exc.category)
                return
            self._db.stage(row, Stage.PULL, False)
            reason = str(exc) + (f" (tried {tries} times)" if tries > 1 else "")
            staged = os.path.join(self._site.staging, row.path)
            if self.dataset.on_error == "deliver" and handover.mark_of(staged) and exc.errno != errno.EEXIST:
                checked = self._site.verify(row, staged)
                checked.wrong.insert(0, reason)
                self._db.stage(row, Stage.CHECKSUM, False)
                self._deliver(row, checked)
                done.delivered += 1
                return
            self._to_quarantine(row, reason, None)
            done.quarantined += 1

    def _to_quarantine(self, row: Delivery, reason: str, verdict: Verdict | None) -> None:
        """Put aside what there is of the unit, with the reason beside it."""
        staged, aside = os.path.join(self._site.staging, row.path), os.path.join(self._site.quarantine, row.path)
        row = self._db.change(row, reason=reason, problems=problems(verdict) if verdict else {})
        try:
            if handover.mark_of(staged):
                handover.remove(aside)

                def about_to(mark: str) -> None:
                    nonlocal row
                    row = self._db.change(row, state=State.MOVING, target=QUARANTINE, mark=mark)

                handover.move(staged, self._site.quarantine, row.path, about_to)
                handover.prune(self._site.staging, row.path)
            self._site.put_aside(row)
        except OSError as exc:  # not even that can be written
            self._site.set_back(row)
            raise Down("disk", f"{named(exc)}: {exc.strerror or exc}") from exc

    # without doing anything

    def plan(self) -> list[tuple[str, str, str]]:
        """What would be done: what, unit, details. Looks at the source, changes nothing. Down: it cannot be asked."""
        source = self._site.source()
        if self.dataset.checksum_lock and self._site.asked(lambda: source.locked(self.dataset.checksum_lock)):
            return [("wait", "", f"the source's checksum lock {self.dataset.checksum_lock} is there")]
        rows = {row.path: row for row in self._db.in_state(self.dataset.name, tuple(State))}
        found = []
        for unit in self._site.asked(source.ready):
            row = rows.get(unit.path)
            if self._is_too_old(unit) or (row is not None and row.state not in (State.WAITING, *AT_WORK)):
                continue
            if handover.exists(os.path.join(self._site.destination, unit.path)):
                found.append(("leave", str(unit), "it is at the destination already"))
                continue
            try:
                with self._gate.watch(self._site.close):
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
        """What `catch up`, `back up` or `audit` would be done to, if it were ordered."""
        states = (*THERE, State.QUARANTINED) if what == "catch up" else THERE
        return [(what, str(row), row.state.value) for row in self._db.in_state(self.dataset.name, states)
                if (not groups or row.grp in groups) and not (what == "back up" and row.backed_up)]


class _ours:
    """Around calls on this host's disks."""

    def __init__(self, what: str, path: bytes) -> None:
        self._what, self._path = what, path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, tb: object) -> None:
        if isinstance(exc, OSError):
            raise Down("disk", f"{self._what} {shown(self._path)}: {exc.strerror or exc}") from exc
