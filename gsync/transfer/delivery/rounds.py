"""The rounds of `gsync deliver`: every data set of a file, once or repeatedly; one process per data set.

Promise: a second process for the same data set is refused. A signal or the kill file stops the work within a second or
two, and it resumes the next time. Trouble with one data set does not affect the others.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime

from gsync.base.durable import make_dirs
from gsync.base.errors import Stopped, UsageError
from gsync.base.log import get_logger
from gsync.base.notify import Notifier
from gsync.base.process import Lock
from gsync.transfer.delivery import desistatus, statuspage
from gsync.transfer.delivery.alert import Alarm
from gsync.transfer.delivery.context import Down, Summary
from gsync.transfer.delivery.dataset import DataSet, DeliverySettings
from gsync.transfer.delivery.deliver import DataSetDelivery
from gsync.transfer.delivery.rows import Deliveries, Stage
from gsync.transfer.delivery.stopsignal import StopSignal
from gsync.transfer.queue.registry import Stores
from gsync.transfer.queue.transfers import Transfers

_log = get_logger(__name__)

LOCK = ".gsync-deliver.lock"


def lock_of(dataset: DataSet) -> Lock:
    """The lock of the process that works on a data set: in its staging folder, whatever state directory it uses."""
    return Lock(os.path.join(dataset.staging, LOCK), f"gsync deliver of {dataset.name} ({dataset.staging})")


class Rounds:
    """Works on the data sets of a file (or those named). Use it in a `with`: that holds their locks."""

    def __init__(self, settings: DeliverySettings, home: str, *, stop: threading.Event | None = None,
                 kill_file: str | None = None, backups: bool = True, looking: bool = False,
                 clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.settings = settings
        common = settings.common
        self.stop_signal = StopSignal(stop or threading.Event(), common.kill_file if kill_file is None else kill_file,
                                      common.timeout)
        self._clock = clock
        self._desi_written: dict[str, dict[int, int]] = {}
        self._stack = ExitStack()
        self._looking = looking
        self._transfers = Transfers(home, looking)
        self._stack.callback(self._transfers.close)
        self._deliveries = Deliveries(self._transfers)
        stores = Stores(self._transfers)
        self._stack.callback(stores.close)
        self.sets = [DataSetDelivery(dataset, settings, self._deliveries, stores, Alarm(settings.alerts),
                                     self.stop_signal, backups=backups, clock=clock) for dataset in settings.sets]

    def __enter__(self) -> Rounds:
        try:
            for each in self.sets:
                self._stack.callback(each.close)
                if self._looking:
                    continue
                try:
                    make_dirs(each.dataset.staging, 0o750)
                    self._stack.enter_context(lock_of(each.dataset))
                except OSError as exc:
                    raise UsageError(f"{self.settings.path}: [{each.dataset.name}] staging: {each.dataset.staging}: "
                                     f"{exc.strerror}") from None
                self._deliveries.enter(each.dataset)
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def once(self, only: str = "") -> list[Summary]:
        """Do one round. only: see DataSetDelivery.cycle. Raises Stopped if told to end."""
        found = []
        try:
            for each in self.sets:
                found.append(self._cycle(each, only))
        finally:
            self.publish()
        return found

    def _cycle(self, each: DataSetDelivery, only: str) -> Summary:
        try:
            return each.cycle(only=only)
        except (Stopped, UsageError):
            raise
        except Exception as exc:  # noqa: BLE001 one data set's trouble, whatever it is, is not the others'
            _log.error("internal error", set=each.dataset.name, error=repr(exc),
                       where=traceback.format_exc().splitlines()[-3:-1])
            each.close()
            return Summary(down=f"internal error: {exc!r}")

    def run(self, notifier: Notifier | None = None) -> str:
        """Do rounds until told to end; return the reason."""
        notifier = notifier or Notifier()
        _log.info("started", file=self.settings.path, sets=",".join(each.dataset.name for each in self.sets))
        notifier.ready()
        try:
            while True:
                summaries = self.once()
                notifier.alive()
                notifier.says("; ".join(f"{each.dataset.name}: {_said(summary)}"
                                        for each, summary in zip(self.sets, summaries, strict=True)))
                self.stop_signal.wait(self.settings.common.interval)
        except Stopped as why:
            _log.info("ended", why=why)
            return str(why)
        finally:
            notifier.stopping()

    def publish(self) -> None:
        """Write the page and the status files. A failure is logged and holds up nothing."""
        try:
            if self.settings.common.page:
                statuspage.write(self.settings, self._deliveries, self._clock())
            for each in self.settings.sets:
                if each.desi_status:
                    desistatus.write(each, self._deliveries, self._desi_written.setdefault(each.name, {}))
        except (OSError, sqlite3.Error) as exc:
            _log.error("cannot write the status", error=exc)

    def to_look_at(self) -> list[int]:
        """The number of units of each data set that need a person's attention, or are being retried."""
        return [len(self._deliveries.to_look_at(each.dataset.name)) for each in self.sets]

    def plan(self, only: str = "", groups: Sequence[bytes] = ()) -> list[tuple[str, str, str, str]]:
        """Plan a round: data set, action, unit, details. Changes nothing. only: this kind of work, whether due or not,
        on the units of these groups (none given: all)."""
        found = []
        for each in self.sets:
            try:
                found += [(each.dataset.name, *line) for line in (
                    each.plan_ordered(only, groups) if only else each.plan())]
            except Down as down:
                found.append((each.dataset.name, "down", "", down.reason))
        return found


def order(settings: DeliverySettings, home: str, what: Stage, nights: Sequence[bytes]) -> int:
    """Order a look for late files, a backup or an audit of these nights (none given: all) in the next round."""
    transfers = Transfers(home)
    try:
        deliveries = Deliveries(transfers)
        count = 0
        for dataset in settings.sets:
            deliveries.enter(dataset)
            count += deliveries.order(dataset.name, what, nights)
        return count
    finally:
        transfers.close()


def holder(settings: DeliverySettings) -> int | None:
    """The pid of the process that works on one of the data sets."""
    return next((pid for dataset in settings.sets if (pid := lock_of(dataset).holder()) is not None), None)


def _said(summary: Summary) -> str:
    return summary.down or summary.waiting or f"{summary.delivered} delivered, {summary.quarantined} quarantined"
