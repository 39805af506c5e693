"""Delivery of one data set: each ready unit is pulled, verified, locked, and moved into place by one rename.

Promise: a unit is delivered once, whole and verified, or put aside with the reason; a failure of the source, the disk
or this process at any moment loses nothing and counts as nothing: the unit is taken up again from what is on the disk.
Late files come in one exchange of the whole unit, verified before. A unit counts as backed up only once the vault says
that all of it is durable and what was put is what was listed.
Not here: when to look (daemon), what is remembered (deliverdb), the steps on the disk (handover), the source (source).
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import BinaryIO, TypeVar, cast

from gsync.durable import make_dirs, replace_file
from gsync.log import get_logger
from gsync.model import NS, shown
from gsync.transfer import checksums, handover, units
from gsync.transfer.alert import Alarm
from gsync.transfer.checksums import Verdict, verify, walk
from gsync.transfer.dataset import DataSet, Settings
from gsync.transfer.deliverdb import AT_WORK, THERE, Deliveries, Delivery, KilledByOrder, Stage, State
from gsync.transfer.gate import Gate, Stopped
from gsync.transfer.registry import Stores
from gsync.transfer.requests import State as QueueState
from gsync.transfer.retry import RetryPolicy
from gsync.transfer.source import Listing, Source, differs
from gsync.transfer.store import Category, Item, Store, StoreError, category_of

_log = get_logger(__name__)

_T = TypeVar("_T")
# What is wrong with a disk rather than with one unit.
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ENODEV,
                errno.EMFILE, errno.ENFILE, errno.ENOMEM}
_NAMES_KEPT = 1000  # of each kind, in the database and on the page
DESTINATION, QUARANTINE = "destination", "quarantine"


class Down(Exception):
    """The source, a disk of ours or the vault cannot be used: nothing more is tried of this data set for now."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(reason)
        self.what, self.reason = what, reason


@dataclass
class Summary:
    """What a cycle did."""

    delivered: int = 0
    quarantined: int = 0
    caught_up: int = 0
    backed_up: int = 0
    down: str = ""
    waiting: str = ""

    def __str__(self) -> str:
        counts = (f"{self.delivered} delivered, {self.quarantined} quarantined, {self.caught_up} with late files, "
                  f"{self.backed_up} backed up")
        return "; ".join(part for part in (counts, self.waiting, self.down) if part)


class DataSetDelivery:
    """Works on one data set; one object at a time does (the caller holds the lock)."""

    def __init__(self, dataset: DataSet, settings: Settings, deliveries: Deliveries, stores: Stores, alarm: Alarm,
                 gate: Gate, *, backups: bool = True, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
                 ) -> None:
        self.dataset = dataset
        self._settings = settings
        self._db = deliveries
        self._stores = stores
        self._alarm = alarm
        self._gate = gate
        self._backups = backups
        self._clock = clock
        self._pattern = units.Pattern(dataset.unit)
        self._staging, self._destination, self._quarantine = (
            os.fsencode(each) for each in (dataset.staging, dataset.destination, dataset.quarantine))
        self._retry = RetryPolicy(settings.common.max_tries - 1, settings.common.retry_pause,
                                  ban=settings.common.retry_pause)
        self._opened: Source | None = None
        self._backup_not_before = 0.0

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    # one look

    def cycle(self, *, only: str = "") -> Summary:
        """Do all that is due. only: "catchup" or "backup", nothing but that. Stopped: it is to end."""
        done = Summary()
        try:
            self._gate.check()
            self.settle()
            self._take_orders()
            if only != "backup":
                self._with_source(done, new=not only)
            if self._backups and only != "catchup" and self.dataset.vault:
                self._back_up(done)
        except Stopped:
            self.close()
            raise
        except sqlite3.Error as exc:
            done.down = f"the database: {exc}"
            _log.error("cannot go on", set=self.dataset.name, error=exc)
        return done

    def _with_source(self, done: Summary, new: bool) -> None:
        """What needs the source. That it, or a disk, cannot be used is noted, and told when it lasts."""
        note = ""
        try:
            with _ours("staging", self._staging):
                make_dirs(self._staging, 0o750)
                make_dirs(self._destination, 0o755)
            source = self._source()
            if self.dataset.checksum_lock and self._asked(lambda: source.locked(self.dataset.checksum_lock)):
                note = f"the source's checksum lock {self.dataset.checksum_lock} is there"
                done.waiting = note
                _log.info("checksums are being written", set=self.dataset.name, lock=self.dataset.checksum_lock)
            else:
                if new:
                    self._find_new()
                    for row in self._db.in_state(self.dataset.name, (State.WAITING,)):
                        if row.not_before <= time.time_ns():
                            self._bring(row, done)
                self._catch_up(done)
            self._up("source", note)
        except Down as down:
            done.down = down.reason
            self._down(down)

    def _source(self) -> Source:
        if self._opened is None:
            common = self._settings.common
            rsync = common.rsync_command if self.dataset.method == "rsync" else ""
            self._opened = self._asked(lambda: Source(
                self.dataset.source, self._pattern, self._stores, self._gate, ssh_config=common.ssh_config,
                rsync=rsync))
        return self._opened

    def _asked(self, call: Callable[[], _T]) -> _T:
        """What the source says of itself as a whole; any error is the source's: Down."""
        try:
            with self._gate.watch(self.close):
                return call()
        except StoreError as exc:
            self.close()
            raise Down("source", str(exc)) from exc

    def _down(self, down: Down) -> None:
        """Something is down: noted with the time since when, and told once it has lasted."""
        row = self._db.set_row(self.dataset.name)
        since = row.down_since if row is not None and row.down_since else time.time_ns()
        _log.warning("cannot go on for now", set=self.dataset.name, what=down.what, why=down.reason)
        told = row is not None and row.down_told
        if not told and time.time_ns() - since >= self._settings.alerts.down_after * NS:
            self._alarm.tell("down", f"{self.dataset.name}: {down.what}", down.reason)
            told = True
        self._db.change_set(self.dataset.name, down_since=since, down_what=down.reason, down_told=told, note="")

    def _up(self, what: str, note: str) -> None:
        row = self._db.set_row(self.dataset.name)
        if row is not None and row.down_since:
            _log.info("can go on again", set=self.dataset.name, what=what)
            if row.down_told:
                self._alarm.tell("recovered", f"{self.dataset.name}: {what}", f"it was down: {row.down_what}")
        self._db.change_set(self.dataset.name, down_since=0, down_what="", down_told=False, note=note,
                            looked=time.time_ns())

    # before anything else

    def settle(self) -> None:
        """Whatever a process before this one had begun is finished, or set back to where it can be done again."""
        for row in self._db.in_state(self.dataset.name, AT_WORK):
            with suppress(KilledByOrder):
                self._settle(row)

    def _settle(self, row: Delivery) -> None:
        made = handover.incoming(self._destination, row.path)
        place = os.path.join(self._destination, row.path)
        if row.state is State.CATCHING_UP:
            handover.mend(made, place)
            handover.remove(made)
            handover.tidy(self._destination)
            self._db.change(row, state=State.DELIVERED)
            return
        root = self._destination if row.target == DESTINATION else self._quarantine
        arrived = row.state is State.MOVING and row.mark == handover.mark_of(os.path.join(root, row.path))
        handover.remove(handover.incoming(root, row.path))
        handover.tidy(root)
        if not arrived:
            self._db.change(row, state=State.WAITING, mark="", target="")
        elif row.target == DESTINATION:
            self._delivered(row)
        else:
            self._put_aside(row)

    def _take_orders(self) -> None:
        """`gsync queue kill` and `retry`."""
        killed, again = self._db.orders(self.dataset.name)
        for row in killed:
            if row.state is State.WAITING:
                handover.remove(os.path.join(self._staging, row.path))
                handover.prune(self._staging, row.path)
            self._db.change(row, state=State.KILLED, reason="killed by gsync queue kill")
        for row in again:
            with suppress(KilledByOrder):
                self._unquarantine(row, "tried again by gsync queue retry")

    # new units

    def _find_new(self) -> None:
        known = self._db.known(self.dataset.name)
        for unit in self._asked(self._source().ready):
            if unit.path in known or self._is_too_old(unit):
                continue
            with _ours("destination", self._destination):
                there = handover.exists(os.path.join(self._destination, unit.path))
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
            row = self._fresh(row)
            row, verdict = self._verified(row, listing)
            if verdict.good or self.dataset.on_error == "deliver":
                self._deliver(row, verdict)
                done.delivered += 1
            else:
                self._to_quarantine(row, verdict.reason(), verdict)
                done.quarantined += 1
        except KilledByOrder:
            _log.info("killed", set=self.dataset.name, unit=row)
            handover.remove(os.path.join(self._staging, row.path))
            handover.prune(self._staging, row.path)
        except Stopped:
            self._set_back(row)
            raise
        except StoreError as exc:
            self._failed(self._fresh(row), exc, done)
        except OSError as exc:
            self._failed(self._fresh(row), self._of_the_unit(row, exc), done)
        except (Down, sqlite3.Error):
            raise
        except Exception as exc:  # noqa: BLE001 one unit's trouble, whatever it is, is not the others'
            _log.error("internal error", set=self.dataset.name, unit=row, error=repr(exc))
            self._failed(self._fresh(row), StoreError(f"internal error: {exc!r}", Category.TRANSIENT), done)

    def _of_the_unit(self, row: Delivery, exc: OSError) -> StoreError:
        """An error of this host's disks as one of the unit; Down if it is about more."""
        reason = f"{_named(exc)}: {exc.strerror or exc}"
        if exc.errno in _OF_THE_DISK:
            self._set_back(row)
            raise Down("disk", reason) from exc
        return StoreError(reason, category_of(exc.errno), exc.errno)

    def _fresh(self, row: Delivery) -> Delivery:
        found = self._db.get(row.dataset, row.path)
        assert found is not None
        return found

    def _set_back(self, row: Delivery) -> None:
        """It waits again, and no try is charged."""
        row = self._fresh(row)
        if row.state in AT_WORK:
            with suppress(KilledByOrder, OSError):
                self._settle(row)

    def _pulled(self, row: Delivery) -> Listing | None:
        """Staging holds what the source has of the unit; None: there is nothing to do."""
        if handover.exists(os.path.join(self._destination, row.path)):
            _log.warning("at the destination already, not looked into", set=self.dataset.name, unit=row)
            handover.remove(os.path.join(self._staging, row.path))
            handover.prune(self._staging, row.path)
            self._db.change(row, state=State.FOUND, reason="was at the destination already", not_before=0)
            return None
        row = self._db.change(row, state=State.PULLING)
        listing = self._listing(row)
        if listing is None:
            raise StoreError(f"source {self.dataset.source}: the link {row} is gone", Category.TRANSIENT, errno.ENOENT)
        if listing.odd:
            raise StoreError(f"source {self.dataset.source}: {row}: neither file nor directory: "
                             + ", ".join(shown(name) for name in listing.odd[:10]), Category.PERMANENT)
        staged = os.path.join(self._staging, row.path)
        came = self._mirror(listing, staged)
        self._db.change(row, files=len(listing.files), bytes=listing.size)
        self._db.stage(row, Stage.PULL, True)
        _log.info("pulled", set=self.dataset.name, unit=row, files=len(listing.files), bytes=came)
        return listing

    def _listing(self, row: Delivery) -> Listing | None:
        with self._gate.watch(self.close):
            return self._source().listing(row.path)

    def _mirror(self, listing: Listing, staged: bytes, wrong: Sequence[bytes] = ()) -> int:
        return self._source().mirror(listing, staged, frozenset(wrong))

    def _verified(self, row: Delivery, listing: Listing) -> tuple[Delivery, Verdict]:
        """The verdict on what is in staging. What is wrong is looked at twice: the source may have changed under us,
        and what arrived may have been damaged on the way."""
        staged = os.path.join(self._staging, row.path)
        row = self._db.change(row, state=State.VERIFYING)
        verdict = self._verify(row, staged)
        if not verdict.good:
            again = self._listing(row)
            if again is None or again != listing:
                raise StoreError(f"source {self.dataset.source}: {row} changed while it was fetched",
                                 Category.TRANSIENT)
            if verdict.mismatching:
                self._mirror(listing, staged, verdict.mismatching)
                verdict = self._verify(row, staged)
        elif not self.dataset.checksum_file and self._listing(row) != listing:
            raise StoreError(f"source {self.dataset.source}: {row} changed while it was fetched", Category.TRANSIENT)
        self._db.stage(row, Stage.CHECKSUM, verdict.good)
        return row, verdict

    def _verify(self, row: Delivery, folder: bytes) -> Verdict:
        if not self.dataset.checksum_file:
            return Verdict()
        return verify(folder, self._list_name(row), self._gate.check)

    def _list_name(self, row: Delivery) -> bytes:
        unit = self._pattern.match(row.path)
        assert unit is not None
        return os.fsencode(units.fill(self.dataset.checksum_file, unit.fields))

    def _deliver(self, row: Delivery, verdict: Verdict) -> None:
        staged = os.path.join(self._staging, row.path)
        handover.lock(staged)
        reason = verdict.reason()
        row = self._db.change(row, reason=reason, problems=_problems(verdict))

        def about_to(mark: str) -> None:
            nonlocal row
            row = self._db.change(row, state=State.MOVING, target=DESTINATION, mark=mark)

        try:
            handover.move(staged, self._destination, row.path, about_to, verdict.digests)
        except FileExistsError:
            raise StoreError(f"destination {self.dataset.destination}: {row} is there already, put there by somebody "
                             "else meanwhile", Category.PERMANENT, errno.EEXIST) from None
        except OSError as exc:
            if exc.errno != errno.EBADMSG:
                raise
            raise StoreError(f"destination {self.dataset.destination}: {row}: {exc.strerror}",
                             Category.TRANSIENT) from exc
        handover.prune(self._staging, row.path)
        self._delivered(row)
        if not verdict.good:
            self._tell(self._fresh(row), "delivered though it failed", reason)

    def _delivered(self, row: Delivery) -> None:
        staged = os.path.join(self._staging, row.path)
        handover.remove(staged)
        handover.prune(self._staging, row.path)
        self._remove_reason(row)
        row = self._db.change(row, state=State.DELIVERED, mark="", target="", tries=0, not_before=0)
        self._log_delivered(row)

    def _log_delivered(self, row: Delivery) -> None:
        _log.info("delivered", set=self.dataset.name, unit=row, files=row.files, bytes=row.bytes)

    # what did not go well

    def _failed(self, row: Delivery, exc: StoreError, done: Summary) -> None:
        if exc.category is Category.STORE_DOWN:
            self.close()
            self._set_back(row)
            raise Down("source", str(exc)) from exc
        if row.state in AT_WORK:
            self._set_back(row)
            row = self._fresh(row)
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
            staged = os.path.join(self._staging, row.path)
            if self.dataset.on_error == "deliver" and handover.mark_of(staged) and exc.errno != errno.EEXIST:
                checked = self._verify(row, staged)
                checked.wrong.insert(0, reason)
                self._db.stage(row, Stage.CHECKSUM, False)
                self._deliver(row, checked)
                done.delivered += 1
                return
            self._to_quarantine(row, reason, None)
            done.quarantined += 1

    def _to_quarantine(self, row: Delivery, reason: str, verdict: Verdict | None) -> None:
        """Put aside what there is of the unit, with the reason beside it."""
        staged, aside = os.path.join(self._staging, row.path), os.path.join(self._quarantine, row.path)
        row = self._db.change(row, reason=reason, problems=_problems(verdict) if verdict else {})
        try:
            if handover.mark_of(staged):
                handover.remove(aside)

                def about_to(mark: str) -> None:
                    nonlocal row
                    row = self._db.change(row, state=State.MOVING, target=QUARANTINE, mark=mark)

                handover.move(staged, self._quarantine, row.path, about_to)
                handover.prune(self._staging, row.path)
            self._put_aside(row)
        except OSError as exc:  # not even that can be written
            self._set_back(row)
            raise Down("disk", f"{_named(exc)}: {exc.strerror or exc}") from exc

    def _put_aside(self, row: Delivery) -> None:
        path = self._reason_path(row)
        make_dirs(os.path.dirname(path))
        text = {"unit": str(row), "reason": row.reason, "at": datetime.now(UTC).isoformat(timespec="seconds"),
                **row.problems}
        replace_file(path, json.dumps(text, indent=2).encode("ascii") + b"\n", 0o644)
        handover.remove(os.path.join(self._staging, row.path))
        handover.prune(self._staging, row.path)
        row = self._db.change(row, state=State.QUARANTINED, mark="", target="", not_before=0, caught=max(
            row.caught, self._times_due(row)))
        _log.error("quarantined", set=self.dataset.name, unit=row, reason=row.reason)
        self._tell(row, "quarantined", row.reason)

    def _reason_path(self, row: Delivery) -> bytes:
        return os.path.join(self._quarantine, row.path + b".reason.json")

    def _remove_reason(self, row: Delivery) -> None:
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self._reason_path(row))
            handover.prune(self._quarantine, row.path)

    def _tell(self, row: Delivery, event: str, reason: str) -> None:
        """The same of the same unit is told once."""
        if row.told != f"{event}: {reason}":
            self._alarm.tell(event, f"{self.dataset.name} {shown(row.path)}", reason, {
                "set": self.dataset.name, "unit": str(row), "request": row.request, **row.problems})
            self._db.change(row, told=f"{event}: {reason}")

    def _unquarantine(self, row: Delivery, why: str) -> None:
        """It begins anew with what there is of it."""
        aside, staged = os.path.join(self._quarantine, row.path), os.path.join(self._staging, row.path)
        if handover.mark_of(aside) and not handover.exists(staged):
            make_dirs(os.path.dirname(staged), 0o750)
            os.chmod(aside, 0o700)
            handover.move(aside, self._staging, row.path, lambda mark: None)
        self._db.change(row, state=State.WAITING, reason=why, tries=0, not_before=0, mark="", target="")
        self._remove_reason(row)

    # late files

    def _times_due(self, row: Delivery) -> int:
        hour = self.dataset.catchup
        return 0 if hour is None else units.times_due(row.day, hour, self._clock(), self.dataset.catchup_days)

    def _catch_up(self, done: Summary, rows: Sequence[Delivery] | None = None) -> None:
        """Look for late files of units for which that is due (or of these)."""
        if rows is None:
            latest = self._latest(self.dataset.catchup)
            rows = [row for row in self._db.to_catch_up(self.dataset.name, self.dataset.catchup_days, latest)
                    if Stage.CATCHUP in row.ordered or row.caught < self._times_due(row)]
        for row in rows:
            self._gate.check()
            over = True
            try:
                done.caught_up += self._caught_up(row)
            except StoreError as exc:
                if exc.category is Category.STORE_DOWN:
                    self.close()
                    self._set_back(row)
                    raise Down("source", str(exc)) from exc
                over = self._not_caught_up(row, exc)
            except OSError as exc:
                over = self._not_caught_up(row, self._of_the_unit(row, exc))
            except Stopped:
                self._set_back(row)
                raise
            if over:
                self._db.carried_out(row, Stage.CATCHUP)

    def _not_caught_up(self, row: Delivery, error: StoreError) -> bool:
        """Whether that was it until it is due again; else it is tried with the next round."""
        self._set_back(row)
        self._late_failed(self._fresh(row), str(error), over=error.category is Category.PERMANENT)
        return error.category is Category.PERMANENT

    def _latest(self, hour: int | None) -> date:
        """The last day of which the work at this hour of the day after is due; without an hour none is."""
        now = self._clock()
        if hour is None:
            return date.min
        return now.date() - timedelta(days=1 if now.hour >= hour else 2)

    def _caught_up(self, row: Delivery) -> bool:
        """Whether there was something."""
        listing = self._listing(row)
        if row.state is State.QUARANTINED:
            return self._quarantine_caught_up(row, listing)
        if listing is None:  # the source keeps it no longer
            self._no_more_late(row)
            return False
        place = os.path.join(self._destination, row.path)
        late = [file for file in listing.files.values() if differs(file, place)]
        if listing.odd:
            raise StoreError(f"source {self.dataset.source}: {row}: neither file nor directory: "
                             + ", ".join(shown(name) for name in listing.odd[:10]), Category.PERMANENT)
        if not late:
            if row.state is State.FOUND:
                row = self._looked_into(row, place)
            self._no_more_late(row)
            return False
        _log.info("late files", set=self.dataset.name, unit=row, files=len(late))
        made = handover.incoming(self._destination, row.path)
        row = self._db.change(row, state=State.CATCHING_UP)
        self._make_new(made, place, listing, {file.path for file in late})
        verdict = self._verify(row, made)
        if not verdict.good and self.dataset.on_error != "deliver":
            handover.remove(made)
            handover.tidy(self._destination)
            row = self._db.change(row, state=State.DELIVERED)
            self._late_failed(row, f"late files are not taken: {verdict.reason()}", verdict)
            return False
        handover.lock(made)
        handover.lock(place)
        row = self._db.change(row, backed_up=0)
        self._db.backup_shown(row, QueueState.NEW)
        handover.exchange(made, place)
        handover.remove(made)
        handover.tidy(self._destination)
        row = self._db.change(row, state=State.DELIVERED, files=len(listing.files), bytes=listing.size,
                              reason=verdict.reason(), problems=_problems(verdict))
        if self.dataset.checksum_file:
            self._db.stage(row, Stage.CHECKSUM, verdict.good)
        self._no_more_late(row)
        return True

    def _make_new(self, made: bytes, place: bytes, listing: Listing, late: set[bytes]) -> None:
        """The unit as it will be, beside the destination: what is there by hard links, what is late from the source."""
        handover.remove(made)
        make_dirs(made)
        for name, mode in walk(place):
            old, new = os.path.join(place, name), os.path.join(made, name)
            if stat.S_ISDIR(mode):
                os.mkdir(new, 0o700)
            elif name not in late:
                try:
                    os.link(old, new, follow_symlinks=False)
                except OSError as exc:
                    if exc.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK):
                        raise
                    handover.copy_file(old, new)
        for name in listing.dirs:
            with suppress(FileExistsError):
                os.mkdir(os.path.join(made, name), 0o700)
        for name in sorted(late):
            self._source().fetch(listing.files[name], os.path.join(made, name))

    def _looked_into(self, row: Delivery, place: bytes) -> Delivery:
        """A unit that somebody else had brought, verified now."""
        verdict = self._verify(row, place)
        self._db.stage(row, Stage.PULL, True)
        if self.dataset.checksum_file:
            self._db.stage(row, Stage.CHECKSUM, verdict.good)
        row = self._db.change(row, state=State.DELIVERED, reason=verdict.reason(), problems=_problems(verdict),
                              files=len(verdict.digests))
        if not verdict.good:
            self._tell(row, "found at the destination, and it fails", verdict.reason())
        return self._fresh(row)

    def _no_more_late(self, row: Delivery) -> None:
        if not row.stages.get(Stage.CATCHUP, (True, 0))[0] and row.stages.get(Stage.CHECKSUM, (True, 0))[0]:
            row = self._db.change(row, reason="", problems={})  # that of an earlier look for late files
        self._db.stage(row, Stage.CATCHUP, True)
        self._caught(row)

    def _caught(self, row: Delivery) -> None:
        self._db.change(row, caught=max(row.caught, self._times_due(row)))

    def _late_failed(self, row: Delivery, reason: str, verdict: Verdict | None = None, over: bool = True) -> None:
        """over: until it is due again; else it is tried with the next round."""
        self._db.stage(row, Stage.CATCHUP, False)
        if row.reason != reason:
            row = self._db.change(row, reason=reason, problems=_problems(verdict) if verdict else row.problems)
        if over:
            self._caught(row)
        self._tell(self._fresh(row), "late files failed", reason)

    def _quarantine_caught_up(self, row: Delivery, listing: Listing | None) -> bool:
        """It begins anew if the source has changed since it was put aside."""
        if listing is not None:
            aside = os.path.join(self._quarantine, row.path)
            there = {name for name, mode in walk(aside) if not stat.S_ISDIR(mode)} if handover.mark_of(aside) else set()
            if there != listing.files.keys() or any(differs(file, aside) for file in listing.files.values()):
                self._caught(row)
                with suppress(KilledByOrder):
                    self._unquarantine(self._fresh(row), "the source has changed since it was quarantined")
                    return True
                return False
        self._caught(row)
        return False

    # the vault

    def _back_up(self, done: Summary) -> None:
        rows = self._db.to_back_up(self.dataset.name, self._latest(self.dataset.backup))
        ordered = any(Stage.BACKUP in row.ordered for row in rows)
        if not rows or (time.monotonic() < self._backup_not_before and not ordered):
            return
        with suppress(Down):  # what the source cannot say now is not waited for: late files are backed up again
            lock = self.dataset.checksum_lock
            if not lock or not self._asked(lambda: self._source().locked(lock)):
                self._catch_up(done, [row for row in rows if row.caught < max(1, self._times_due(row))])
        groups: dict[bytes, list[Delivery]] = {}
        for row in rows:
            groups.setdefault(row.grp, []).append(self._fresh(row))
        for group, members in groups.items():
            self._gate.check()
            try:
                done.backed_up += self._back_up_group([row for row in members if row.state in THERE])
            except (StoreError, OSError) as exc:
                reason = str(exc) if isinstance(exc, StoreError) else f"{_named(exc)}: {exc.strerror or exc}"
                _log.error("backup fails", set=self.dataset.name, group=shown(group), error=reason)
                self._stores.close()
                for row in members:
                    self._backup_failed(row, reason, tell=False)
                self._alarm_backup(members[0], group, reason)
                self._backup_not_before = time.monotonic() + self._settings.common.retry_pause
                if isinstance(exc, StoreError) and exc.category is Category.STORE_DOWN:
                    return

    def _alarm_backup(self, row: Delivery, group: bytes, reason: str) -> None:
        row = self._fresh(row)
        if row.told != f"backup: {reason}":
            self._alarm.tell("backup failed", f"{self.dataset.name} {shown(group)}", reason)
            self._db.change(row, told=f"backup: {reason}")

    def _back_up_group(self, rows: Sequence[Delivery]) -> int:
        """Put units into the vault together; how many it now has, durably."""
        vault = self._stores.writable(self.dataset.vault)
        put: dict[bytes, list[tuple[bytes, str]]] = {}
        damaged: dict[bytes, list[bytes]] = {}
        for row in rows:
            self._db.backup_shown(row, QueueState.SUBMITTED)
        with vault.batch():
            for row in rows:
                put[row.path], damaged[row.path] = self._put(vault, row)
        count = 0
        for row in rows:
            lost = [path for path, digest in put[row.path]
                    if not vault.durable(path) or _digest_in(vault, path) != digest]
            if damaged[row.path]:
                self._backup_failed(row, "damaged since it was delivered: "
                                    + ", ".join(shown(name) for name in damaged[row.path][:10]))
            elif lost:
                self._backup_failed(row, "the vault does not have what was put: "
                                    + ", ".join(shown(path) for path in lost[:10]))
            else:
                handover.seal(os.path.join(self._destination, row.path))
                self._db.stage(row, Stage.BACKUP, True, anew=True)
                reason = "" if row.reason.startswith("backup: ") else row.reason
                self._db.change(row, backed_up=1, reason=reason)
                self._db.carried_out(row, Stage.BACKUP)
                self._db.backup_shown(row, QueueState.DONE)
                count += 1
        _log.info("backed up", set=self.dataset.name, group=shown(rows[0].grp) if rows else "", units=count)
        return count

    def _put(self, vault: Store, row: Delivery) -> tuple[list[tuple[bytes, str]], list[bytes]]:
        """Path in the vault and digest of each file that was put; and the files that are not as their list says."""
        place = os.path.join(self._destination, row.path)
        root = os.fsencode(self.dataset.vault_path) + b"/" + row.path
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
                content = vault.put(target, cast(BinaryIO, _Reader(file, self._gate.check)), _item(path, target), True)
            put.append((target, content.sha256))
            if listed.get(name, content.sha256) != content.sha256 and Stage.CHECKSUM in row.stages \
                    and row.stages[Stage.CHECKSUM][0]:
                damaged.append(name)
        return put, damaged

    def _listed(self, row: Delivery, place: bytes) -> dict[bytes, str]:
        if self.dataset.checksum_file:
            with suppress(FileNotFoundError), open(os.path.join(place, self._list_name(row)), "rb") as file:
                return dict(checksums.ChecksumList.parse(file.read()).digests)
        return {}

    def _backup_failed(self, row: Delivery, reason: str, tell: bool = True) -> None:
        row = self._fresh(row)
        self._db.stage(row, Stage.BACKUP, False)
        self._db.backup_shown(row, QueueState.RETRY, reason)
        row = self._db.change(row, reason=f"backup: {reason}")
        if tell:
            self._tell(row, "backup failed", reason)
            self._backup_not_before = time.monotonic() + self._settings.common.retry_pause

    # without doing anything

    def plan(self) -> list[tuple[str, str, str]]:
        """What would be done: what, unit, details. Looks at the source, changes nothing. Down: it cannot be asked."""
        source = self._source()
        if self.dataset.checksum_lock and self._asked(lambda: source.locked(self.dataset.checksum_lock)):
            return [("wait", "", f"the source's checksum lock {self.dataset.checksum_lock} is there")]
        rows = {row.path: row for row in self._db.in_state(self.dataset.name, tuple(State))}
        found = []
        for unit in self._asked(source.ready):
            row = rows.get(unit.path)
            if self._is_too_old(unit) or (row is not None and row.state not in (State.WAITING, *AT_WORK)):
                continue
            if handover.exists(os.path.join(self._destination, unit.path)):
                found.append(("leave", str(unit), "it is at the destination already"))
                continue
            try:
                with self._gate.watch(self.close):
                    listing = source.listing(unit.path)
            except StoreError as exc:
                if exc.category is Category.STORE_DOWN:
                    raise Down("source", str(exc)) from exc
                found.append(("try", str(unit), str(exc)))
                continue
            if listing is not None:
                found.append(("deliver", str(unit), f"{len(listing.files)} files, {listing.size} bytes"))
        latest = self._latest(self.dataset.catchup)
        found += [("catch up", str(row), row.state.value)
                  for row in self._db.to_catch_up(self.dataset.name, self.dataset.catchup_days, latest)
                  if Stage.CATCHUP in row.ordered or row.caught < self._times_due(row)]
        if self.dataset.vault and self._backups:
            found += [("back up", str(row), self.dataset.vault)
                      for row in self._db.to_back_up(self.dataset.name, self._latest(self.dataset.backup))]
        return found


    def plan_ordered(self, what: str, groups: Sequence[bytes]) -> list[tuple[str, str, str]]:
        """What `catch up` or `back up` would be done to, if it were ordered."""
        states = (*THERE, State.QUARANTINED) if what == "catch up" else THERE
        return [(what, str(row), row.state.value) for row in self._db.in_state(self.dataset.name, states)
                if (not groups or row.grp in groups) and not (what == "back up" and row.backed_up)]


def _problems(verdict: Verdict) -> dict[str, list[str]]:
    return {what: names[:_NAMES_KEPT] for what, names in verdict.lists().items() if names}


def _digest_in(vault: Store, path: bytes) -> str:
    content = vault.content(path)
    return content.sha256 if content is not None else vault.checksum(path)


def _item(path: bytes, target: bytes) -> Item:
    st = os.lstat(path)
    mode = handover.SEALED_DIR_MODE if stat.S_ISDIR(st.st_mode) else stat.S_IMODE(st.st_mode)
    return Item(target, stat.S_IFMT(st.st_mode), st.st_size, st.st_mtime_ns, st.st_ctime_ns, mode, st.st_uid, st.st_gid)


def _named(exc: OSError) -> str:
    return shown(os.fsencode(exc.filename)) if exc.filename is not None else "a disk of this host"


class _ours:
    """Around calls on this host's disks."""

    def __init__(self, what: str, path: bytes) -> None:
        self._what, self._path = what, path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, exc: BaseException | None, tb: object) -> None:
        if isinstance(exc, OSError):
            raise Down("disk", f"{self._what} {shown(self._path)}: {exc.strerror or exc}") from exc


class _Reader:
    """A file that tells of each piece that is read."""

    def __init__(self, file: object, tell: Callable[[int], None]) -> None:
        self._file, self._tell = file, tell

    def read(self, size: int = -1) -> bytes:
        piece: bytes = self._file.read(size)  # type: ignore[attr-defined]
        self._tell(len(piece))
        return piece
