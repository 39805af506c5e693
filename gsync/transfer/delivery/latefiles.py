"""Late files: units that were delivered, or quarantined, are compared with the source once more.

Promise: they come in one exchange of the whole unit, verified before; late files that are wrong change nothing.
Not here: when that is due (deliver, dataset).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import suppress

from gsync.base.durable import make_dirs
from gsync.base.log import get_logger
from gsync.base.model import shown
from gsync.transfer.delivery import handover
from gsync.transfer.delivery.checksums import Verdict, walk
from gsync.transfer.delivery.gate import Stopped
from gsync.transfer.delivery.rows import Delivery, KilledByOrder, Stage, State
from gsync.transfer.delivery.site import Down, Site, Summary, problems
from gsync.transfer.delivery.source import Listing, differs
from gsync.transfer.queue.requests import State as QueueState
from gsync.transfer.stores.store import Category, StoreError

_log = get_logger(__name__)


class LateFiles:
    """Of one data set."""

    def __init__(self, site: Site) -> None:
        self._site, self._dataset, self._db, self._gate = site, site.dataset, site.db, site.gate

    def due(self) -> list[Delivery]:
        """Units of which it is due, or ordered."""
        latest = self._site.latest(self._dataset.catchup)
        return [row for row in self._db.to_catch_up(self._dataset.name, self._dataset.catchup_days, latest)
                if Stage.CATCHUP in row.ordered or row.caught < self._site.times_due(row)]

    def fetch(self, done: Summary, rows: Sequence[Delivery] | None = None) -> None:
        """Look for late files of units for which that is due (or of these)."""
        for row in self.due() if rows is None else rows:
            self._gate.check()
            over = True
            try:
                done.caught_up += self._caught_up(row)
            except StoreError as exc:
                if exc.category is Category.STORE_DOWN:
                    self._site.close()
                    self._site.set_back(row)
                    raise Down("source", str(exc)) from exc
                over = self._not_caught_up(row, exc)
            except OSError as exc:
                over = self._not_caught_up(row, self._site.of_the_unit(row, exc))
            except Stopped:
                self._site.set_back(row)
                raise
            if over:
                self._db.carried_out(row, Stage.CATCHUP)

    def _not_caught_up(self, row: Delivery, error: StoreError) -> bool:
        """Whether that was it until it is due again; else it is tried with the next round."""
        self._site.set_back(row)
        self._late_failed(self._site.fresh(row), str(error), over=error.category is Category.PERMANENT)
        return error.category is Category.PERMANENT

    def _caught_up(self, row: Delivery) -> bool:
        """Whether there was something."""
        listing = self._site.listing(row)
        if row.state is State.QUARANTINED:
            return self._quarantine_caught_up(row, listing)
        if listing is None:  # the source keeps it no longer
            self._no_more_late(row)
            return False
        place = os.path.join(self._site.destination, row.path)
        late = [file for file in listing.files.values() if differs(file, place)]
        if listing.odd:
            raise StoreError(f"source {self._dataset.source}: {row}: neither file nor directory: "
                             + ", ".join(shown(name) for name in listing.odd[:10]), Category.PERMANENT)
        if not late:
            if row.state is State.FOUND:
                row = self._looked_into(row, place)
            self._no_more_late(row)
            return False
        _log.info("late files", set=self._dataset.name, unit=row, files=len(late))
        made = handover.incoming(self._site.destination, row.path)
        row = self._db.change(row, state=State.CATCHING_UP)
        self._make_new(made, place, listing, {file.path for file in late})
        verdict = self._site.verify(row, made)
        if not verdict.good and self._dataset.on_error != "deliver":
            handover.remove(made)
            handover.tidy(self._site.destination)
            row = self._db.change(row, state=State.DELIVERED)
            self._late_failed(row, f"late files are not taken: {verdict.reason()}", verdict)
            return False
        handover.lock(made)
        handover.lock(place)
        row = self._db.change(row, backed_up=0)
        self._db.backup_shown(row, QueueState.NEW)
        handover.exchange(made, place)
        handover.remove(made)
        handover.tidy(self._site.destination)
        row = self._db.change(row, state=State.DELIVERED, files=len(listing.files), bytes=listing.size,
                              reason=verdict.reason(), problems=problems(verdict))
        if self._dataset.checksum_file:
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
            self._site.source().fetch(listing.files[name], os.path.join(made, name))

    def _looked_into(self, row: Delivery, place: bytes) -> Delivery:
        """A unit that somebody else had brought, verified now."""
        verdict = self._site.verify(row, place)
        self._db.stage(row, Stage.PULL, True)
        if self._dataset.checksum_file:
            self._db.stage(row, Stage.CHECKSUM, verdict.good)
        row = self._db.change(row, state=State.DELIVERED, reason=verdict.reason(), problems=problems(verdict),
                              files=len(verdict.digests))
        if not verdict.good:
            self._site.tell(row, "found at the destination, and it fails", verdict.reason())
        return self._site.fresh(row)

    def _no_more_late(self, row: Delivery) -> None:
        if not row.stages.get(Stage.CATCHUP, (True, 0))[0] and row.stages.get(Stage.CHECKSUM, (True, 0))[0]:
            row = self._db.change(row, reason="", problems={})  # that of an earlier look for late files
        self._db.stage(row, Stage.CATCHUP, True)
        self._caught(row)

    def _caught(self, row: Delivery) -> None:
        self._db.change(row, caught=max(row.caught, self._site.times_due(row)))

    def _late_failed(self, row: Delivery, reason: str, verdict: Verdict | None = None, over: bool = True) -> None:
        """over: until it is due again; else it is tried with the next round."""
        self._db.stage(row, Stage.CATCHUP, False)
        if row.reason != reason:
            row = self._db.change(row, reason=reason, problems=problems(verdict) if verdict else row.problems)
        if over:
            self._caught(row)
        self._site.tell(self._site.fresh(row), "late files failed", reason)

    def _quarantine_caught_up(self, row: Delivery, listing: Listing | None) -> bool:
        """It begins anew if the source has changed since it was put aside."""
        if listing is not None:
            aside = os.path.join(self._site.quarantine, row.path)
            there = {name for name, mode in walk(aside) if not stat.S_ISDIR(mode)} if handover.mark_of(aside) else set()
            if there != listing.files.keys() or any(differs(file, aside) for file in listing.files.values()):
                self._caught(row)
                with suppress(KilledByOrder):
                    self._site.unquarantine(self._site.fresh(row), "the source has changed since it was quarantined")
                    return True
                return False
        self._caught(row)
        return False
