"""Late files: delivered and quarantined units are compared with the source once more.

Promise: late files arrive by one exchange of the whole unit, which is verified first; wrong late files change nothing.
Not here: the data set's other work (deliver).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import suppress

from gsync.base.durable import make_dirs
from gsync.base.errors import Stopped
from gsync.base.log import get_logger
from gsync.base.model import shown
from gsync.transfer.delivery import placement
from gsync.transfer.delivery.checksums import Comparison, walk
from gsync.transfer.delivery.context import DataSetContext, Down, Summary, problems
from gsync.transfer.delivery.rows import Delivery, KilledByOrder, Stage, UnitState
from gsync.transfer.delivery.source import Listing, differs
from gsync.transfer.queue.requests import TransferState
from gsync.transfer.stores.store import Category, StoreError

_log = get_logger(__name__)


class LateFiles:
    """The late files of one data set."""

    def __init__(self, context: DataSetContext) -> None:
        self._context, self._dataset, self._db = context, context.dataset, context.db
        self._stop_signal = context.stop_signal

    def due(self) -> list[Delivery]:
        """Units whose late files are due or ordered."""
        latest = self._context.latest(self._dataset.catchup)
        return [row for row in self._db.to_catch_up(self._dataset.name, self._dataset.catchup_days, latest)
                if Stage.CATCHUP in row.ordered or row.caught < self._context.times_due(row)]

    def fetch(self, done: Summary, rows: Sequence[Delivery] | None = None) -> None:
        """Fetch the late files of due units (or of these)."""
        for row in self.due() if rows is None else rows:
            self._stop_signal.check()
            over = True
            try:
                done.caught_up += self._caught_up(row)
            except StoreError as exc:
                if exc.category is Category.STORE_DOWN:
                    self._context.close()
                    self._context.set_back(row)
                    raise Down("source", str(exc)) from exc
                over = self._not_caught_up(row, exc)
            except OSError as exc:
                over = self._not_caught_up(row, self._context.of_the_unit(row, exc))
            except Stopped:
                self._context.set_back(row)
                raise
            if over:
                self._db.carried_out(row, Stage.CATCHUP)

    def _not_caught_up(self, row: Delivery, error: StoreError) -> bool:
        """Record the error; return whether the unit is finished until its next due time. Otherwise the next round
        retries it."""
        self._context.set_back(row)
        self._late_failed(self._context.fresh(row), str(error), over=error.category is Category.PERMANENT)
        return error.category is Category.PERMANENT

    def _caught_up(self, row: Delivery) -> bool:
        """Fetch a unit's late files; return whether there were any."""
        listing = self._context.listing(row)
        if row.state is UnitState.QUARANTINED:
            return self._quarantine_caught_up(row, listing)
        if listing is None:  # the source no longer keeps it
            self._no_more_late(row)
            return False
        place = os.path.join(self._context.destination, row.path)
        late = [file for file in listing.files.values() if differs(file, place)]
        if listing.odd:
            raise StoreError(f"source {self._dataset.source}: {row}: not a file or directory: "
                             + ", ".join(shown(name) for name in listing.odd[:10]), Category.PERMANENT)
        if not late:
            if row.state is UnitState.FOUND:
                row = self._looked_into(row, place)
            self._no_more_late(row)
            return False
        _log.info("late files", set=self._dataset.name, unit=row, files=len(late))
        made = placement.incoming(self._context.destination, row.path)
        row = self._db.change(row, state=UnitState.CATCHING_UP)
        self._make_new(made, place, listing, {file.path for file in late})
        comparison = self._context.verify(row, made)
        if not comparison.good and self._dataset.on_error != "deliver":
            placement.remove(made)
            placement.tidy(self._context.destination)
            row = self._db.change(row, state=UnitState.DELIVERED)
            self._late_failed(row, f"late files rejected: {comparison.reason()}", comparison)
            return False
        placement.lock(made)
        placement.lock(place)
        row = self._db.change(row, backed_up=0)
        self._db.backup_shown(row, TransferState.NEW)
        placement.exchange(made, place)
        placement.remove(made)
        placement.tidy(self._context.destination)
        row = self._db.change(row, state=UnitState.DELIVERED, files=len(listing.files), bytes=listing.size,
                              reason=comparison.reason(), problems=problems(comparison))
        if self._dataset.checksum_file:
            self._db.stage(row, Stage.CHECKSUM, comparison.good)
        self._no_more_late(row)
        return True

    def _make_new(self, made: bytes, place: bytes, listing: Listing, late: set[bytes]) -> None:
        """Make the new unit beside the destination: present files by hard links, late ones from the source."""
        placement.remove(made)
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
                    placement.copy_file(old, new)
        for name in listing.dirs:
            with suppress(FileExistsError):
                os.mkdir(os.path.join(made, name), 0o700)
        for name in sorted(late):
            self._context.source().fetch(listing.files[name], os.path.join(made, name))

    def _looked_into(self, row: Delivery, place: bytes) -> Delivery:
        """Verify a unit that another process had put at the destination."""
        comparison = self._context.verify(row, place)
        self._db.stage(row, Stage.PULL, True)
        if self._dataset.checksum_file:
            self._db.stage(row, Stage.CHECKSUM, comparison.good)
        row = self._db.change(row, state=UnitState.DELIVERED, reason=comparison.reason(), problems=problems(comparison),
                              files=len(comparison.digests))
        if not comparison.good:
            self._context.tell(row, "found at the destination, with errors", comparison.reason())
        return self._context.fresh(row)

    def _no_more_late(self, row: Delivery) -> None:
        if not row.stages.get(Stage.CATCHUP, (True, 0))[0] and row.stages.get(Stage.CHECKSUM, (True, 0))[0]:
            row = self._db.change(row, reason="", problems={})  # an earlier look's reason
        self._db.stage(row, Stage.CATCHUP, True)
        self._caught(row)

    def _caught(self, row: Delivery) -> None:
        self._db.change(row, caught=max(row.caught, self._context.times_due(row)))

    def _late_failed(self, row: Delivery, reason: str, comparison: Comparison | None = None, over: bool = True) -> None:
        """Record a failed look. over: finished until the next due time; otherwise the next round retries it."""
        self._db.stage(row, Stage.CATCHUP, False)
        if row.reason != reason:
            row = self._db.change(row, reason=reason, problems=problems(comparison) if comparison else row.problems)
        if over:
            self._caught(row)
        self._context.tell(self._context.fresh(row), "late files failed", reason)

    def _quarantine_caught_up(self, row: Delivery, listing: Listing | None) -> bool:
        """Start a quarantined unit over if the source has changed since."""
        if listing is not None:
            aside = os.path.join(self._context.quarantine, row.path)
            there = {name for name,
                     mode in walk(aside) if not stat.S_ISDIR(mode)} if placement.mark_of(aside) else set()
            if there != listing.files.keys() or any(differs(file, aside) for file in listing.files.values()):
                self._caught(row)
                with suppress(KilledByOrder):
                    self._context.unquarantine(self._context.fresh(row),
                                               "the source changed after it was quarantined")
                    return True
                return False
        self._caught(row)
        return False
