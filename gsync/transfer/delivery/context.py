"""The common base of all work on one data set: its folders, its source, the rows of its units, and alerts.

A unit that a killed process was working on is finished here, or set back to a state from which it resumes. Not here:
the work (deliver, latefiles, backup, audit), the steps on disk (placement).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import TypeVar

from gsync.base.durable import make_dirs, replace_file
from gsync.base.fate import DISK, Fate
from gsync.base.log import get_logger
from gsync.base.model import NS, shown
from gsync.transfer.delivery import placement, units
from gsync.transfer.delivery.alert import Alarm
from gsync.transfer.delivery.checksums import Comparison, verify
from gsync.transfer.delivery.dataset import DataSet, DeliverySettings
from gsync.transfer.delivery.rows import AT_WORK, Deliveries, Delivery, KilledByOrder, UnitState
from gsync.transfer.delivery.source import Listing, ReadyFolder
from gsync.transfer.delivery.stopsignal import StopSignal
from gsync.transfer.queue.registry import Stores
from gsync.transfer.stores.store import StoreError, category_of

_log = get_logger(__name__)

_T = TypeVar("_T")
_NAMES_KEPT = 1000  # of each kind, in the database and on the page
DESTINATION, QUARANTINE = "destination", "quarantine"


class Down(Exception):
    """The source, a local disk or the vault cannot be used: work on this data set stops for now."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(reason)
        self.what, self.reason = what, reason


@dataclass
class Summary:
    """The results of one cycle."""

    delivered: int = 0
    quarantined: int = 0
    caught_up: int = 0
    backed_up: int = 0
    audited: int = 0
    down: str = ""
    waiting: str = ""

    def __str__(self) -> str:
        counts = (f"{self.delivered} delivered, {self.quarantined} quarantined, {self.caught_up} with late files, "
                  f"{self.backed_up} backed up" + (f", {self.audited} audited" if self.audited else ""))
        return "; ".join(part for part in (counts, self.waiting, self.down) if part)


class DataSetContext:
    """A data set with its folders, its source and its rows. One object at a time works on it; the caller holds the
    lock."""

    def __init__(self, dataset: DataSet, settings: DeliverySettings, deliveries: Deliveries, stores: Stores,
                 alarm: Alarm, stop_signal: StopSignal, clock: Callable[[], datetime]) -> None:
        self.dataset = dataset
        self.settings = settings
        self.db = deliveries
        self.stores = stores
        self.alarm = alarm
        self.stop_signal = stop_signal
        self.clock = clock
        self.pattern = units.Pattern(dataset.unit)
        self.staging, self.destination, self.quarantine = (
            os.fsencode(each) for each in (dataset.staging, dataset.destination, dataset.quarantine))
        self._opened: ReadyFolder | None = None

    def close(self) -> None:
        """Close the source; it is opened again when needed."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    # the source

    def source(self) -> ReadyFolder:
        """The open source; Down if it cannot be reached."""
        if self._opened is None:
            common = self.settings.common
            rsync = common.rsync_command if self.dataset.method == "rsync" else ""
            self._opened = self.asked(lambda: ReadyFolder(
                self.dataset.source, self.pattern, self.stores, self.stop_signal, ssh_config=common.ssh_config,
                rsync=rsync))
        return self._opened

    def asked(self, call: Callable[[], _T]) -> _T:
        """Run a call that concerns the source as a whole: any error means that the source is Down."""
        try:
            with self.stop_signal.watch(self.close):
                return call()
        except StoreError as exc:
            self.close()
            raise Down("source", str(exc)) from exc

    def listing(self, row: Delivery) -> Listing | None:
        """The unit's present content at the source; None: the source has no such unit."""
        with self.stop_signal.watch(self.close):
            return self.source().listing(row.path)

    def verify(self, row: Delivery, folder: bytes) -> Comparison:
        """Compare a folder with the unit's checksum list."""
        if not self.dataset.checksum_file:
            return Comparison()
        return verify(folder, self.list_name(row), self.stop_signal.check)

    def list_name(self, row: Delivery) -> bytes:
        """The path of the checksum list in the unit."""
        unit = self.pattern.match(row.path)
        assert unit is not None
        return os.fsencode(units.fill(self.dataset.checksum_file, unit.fields))

    def down(self, down: Down) -> None:
        """Record since when something is down, and alert once it has lasted."""
        row = self.db.set_row(self.dataset.name)
        since = row.down_since if row is not None and row.down_since else self.db.transfers.clock.now()
        _log.warning("unavailable", set=self.dataset.name, what=down.what, why=down.reason)
        told = row is not None and row.down_told
        if not told and self.db.transfers.clock.now() - since >= self.settings.alerts.down_after * NS:
            self.alarm.tell("down", f"{self.dataset.name}: {down.what}", down.reason)
            told = True
        self.db.change_set(self.dataset.name, down_since=since, down_what=down.reason, down_told=told, note="")

    def up(self, what: str, note: str) -> None:
        """Record that it is usable again. note: what the data set still waits for."""
        row = self.db.set_row(self.dataset.name)
        if row is not None and row.down_since:
            _log.info("available again", set=self.dataset.name, what=what)
            if row.down_told:
                self.alarm.tell("recovered", f"{self.dataset.name}: {what}", f"it was down: {row.down_what}")
        self.db.change_set(self.dataset.name, down_since=0, down_what="", down_told=False, note=note,
                           looked=self.db.transfers.clock.now())

    # units

    def fresh(self, row: Delivery) -> Delivery:
        """The row as it is now."""
        found = self.db.get(row.dataset, row.path)
        assert found is not None
        return found

    def times_due(self, row: Delivery) -> int:
        """How often a look for the unit's late files has fallen due by now."""
        hour = self.dataset.catchup
        return 0 if hour is None else units.times_due(row.day, hour, self.clock(), self.dataset.catchup_days)

    def latest(self, hour: int | None) -> date:
        """The last day whose work is due by now; that work falls due at this hour of the next day. Without an hour,
        none is."""
        now = self.clock()
        if hour is None:
            return date.min
        return now.date() - timedelta(days=1 if now.hour >= hour else 2)

    def settle(self) -> None:
        """Finish the work that an earlier process had begun, or set it back to a state from which it can be
        repeated."""
        for row in self.db.in_state(self.dataset.name, AT_WORK):
            with suppress(KilledByOrder):
                self._settle(row)

    def _settle(self, row: Delivery) -> None:
        made = placement.incoming(self.destination, row.path)
        place = os.path.join(self.destination, row.path)
        if row.state is UnitState.CATCHING_UP:
            placement.mend(made, place)
            placement.remove(made)
            placement.tidy(self.destination)
            self.db.change(row, state=UnitState.DELIVERED)
            return
        root = self.destination if row.target == DESTINATION else self.quarantine
        arrived = row.state is UnitState.MOVING and row.mark == placement.mark_of(os.path.join(root, row.path))
        placement.remove(placement.incoming(root, row.path))
        placement.tidy(root)
        if not arrived:
            self.db.change(row, state=UnitState.WAITING, mark="", target="")
        elif row.target == DESTINATION:
            self.delivered(row)
        else:
            self.put_aside(row)

    def set_back(self, row: Delivery) -> None:
        """Set the unit back to waiting; no try is charged."""
        row = self.fresh(row)
        if row.state in AT_WORK:
            with suppress(KilledByOrder, OSError):
                self._settle(row)

    def of_the_unit(self, row: Delivery, exc: OSError) -> StoreError:
        """Turn an error of a local disk into one of the unit; Down if it concerns more."""
        reason = f"{named(exc)}: {exc.strerror or exc}"
        if DISK.fate(exc.errno) in (Fate.AWAY, Fate.FULL, Fate.PASSING):
            self.set_back(row)
            raise Down("disk", reason) from exc
        return StoreError(reason, category_of(exc.errno), exc.errno)

    def delivered(self, row: Delivery) -> None:
        """Finish after the rename to the destination."""
        staged = os.path.join(self.staging, row.path)
        placement.remove(staged)
        placement.prune(self.staging, row.path)
        self.remove_reason(row)
        row = self.db.change(row, state=UnitState.DELIVERED, mark="", target="", tries=0, not_before=0)
        _log.info("delivered", set=self.dataset.name, unit=row, files=row.files, bytes=row.bytes)

    def put_aside(self, row: Delivery) -> None:
        """Finish after the rename to quarantine; writes the reason beside the unit."""
        path = self._reason_path(row)
        make_dirs(os.path.dirname(path))
        text = {"unit": str(row), "reason": row.reason, "at": self.clock().isoformat(timespec="seconds"),
                **row.problems}
        replace_file(path, json.dumps(text, indent=2).encode("ascii") + b"\n", 0o644)
        placement.remove(os.path.join(self.staging, row.path))
        placement.prune(self.staging, row.path)
        row = self.db.change(row, state=UnitState.QUARANTINED, mark="", target="", not_before=0, caught=max(
            row.caught, self.times_due(row)))
        _log.error("quarantined", set=self.dataset.name, unit=row, reason=row.reason)
        self.tell(row, "quarantined", row.reason)

    def unquarantine(self, row: Delivery, why: str) -> None:
        """Start the unit over with its present files."""
        aside, staged = os.path.join(self.quarantine, row.path), os.path.join(self.staging, row.path)
        if placement.mark_of(aside) and not placement.exists(staged):
            make_dirs(os.path.dirname(staged), 0o750)
            os.chmod(aside, 0o700)
            placement.move(aside, self.staging, row.path, lambda mark: None)
        self.db.change(row, state=UnitState.WAITING, reason=why, tries=0, not_before=0, mark="", target="")
        self.remove_reason(row)

    def _reason_path(self, row: Delivery) -> bytes:
        return os.path.join(self.quarantine, row.path + b".reason.json")

    def remove_reason(self, row: Delivery) -> None:
        """Remove the reason: the unit is no longer in quarantine."""
        with suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self._reason_path(row))
            placement.prune(self.quarantine, row.path)

    def tell(self, row: Delivery, event: str, reason: str) -> None:
        """Send an alert, once for the same event and reason of a unit."""
        if row.told != f"{event}: {reason}":
            self.alarm.tell(event, f"{self.dataset.name} {shown(row.path)}", reason, {
                "set": self.dataset.name, "unit": str(row), "request": row.request, **row.problems})
            self.db.change(row, told=f"{event}: {reason}")


def problems(comparison: Comparison) -> dict[str, list[str]]:
    """The problems as rows keep them: some of the names, by the kind of problem."""
    return {what: names[:_NAMES_KEPT] for what, names in comparison.lists().items() if names}


def named(exc: OSError) -> str:
    """The path that an error of a disk concerns."""
    return shown(os.fsencode(exc.filename)) if exc.filename is not None else "a disk of this host"
