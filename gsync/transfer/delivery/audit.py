"""Audits: delivered units and their backups are read back and compared with their checksum lists.

They run only when ordered (`gsync deliver audit`), since they read everything. A unit that differs turns red and raises
an alert; the destination is not touched. The next backup replaces what the vault has lost.
"""

from __future__ import annotations

import os
import stat

from gsync.base.log import get_logger
from gsync.base.model import shown
from gsync.transfer.delivery import placement
from gsync.transfer.delivery.checksums import Comparison, digest_of, walk
from gsync.transfer.delivery.context import DataSetContext, Summary, named, problems
from gsync.transfer.delivery.rows import Delivery, Stage
from gsync.transfer.queue.requests import TransferState
from gsync.transfer.stores.store import Category, StoreError

_log = get_logger(__name__)
_AUDIT = "audit: "


class Audits:
    """The audits of one data set."""

    def __init__(self, context: DataSetContext) -> None:
        self._context, self._dataset, self._db = context, context.dataset, context.db

    def read(self, done: Summary) -> None:
        """Audit all ordered units. If the vault is unreachable, the order stays."""
        for row in self._db.to_audit(self._dataset.name):
            self._context.stop_signal.check()
            try:
                comparison = self._at_destination(row)
                good = comparison.good and self._in_vault(row, comparison)
            except StoreError as exc:
                self._context.stores.close()
                done.down = str(exc)
                _log.error("audit stopped", set=self._dataset.name, unit=row, error=exc)
                return
            self._db.carried_out(row, Stage.CHECKSUM)
            done.audited += 1
            if good and (row.reason.startswith(_AUDIT) or not row.stages.get(Stage.CHECKSUM, (True, 0))[0]):
                self._db.change(row, reason="", problems={})

    def _at_destination(self, row: Delivery) -> Comparison:
        place, comparison = os.path.join(self._context.destination, row.path), Comparison()
        try:
            if not placement.exists(place):
                comparison.wrong.append(f"no such directory: {shown(place)}")
            elif self._dataset.checksum_file:
                comparison = self._context.verify(row, place)
            else:
                comparison.digests = {name: digest_of(os.path.join(place, name), self._context.stop_signal.check)
                                      for name, mode in walk(place) if stat.S_ISREG(mode)}
        except OSError as exc:
            comparison.wrong.append(f"{named(exc)}: {exc.strerror or exc}")
        if self._dataset.checksum_file or not comparison.good:
            self._db.stage(row, Stage.CHECKSUM, comparison.good, anew=True)
        if not comparison.good:
            self._tell(self._db.change(row, reason=_AUDIT + comparison.reason(), problems=problems(comparison)))
        return comparison

    def _in_vault(self, row: Delivery, comparison: Comparison) -> bool:
        """Whether the vault holds the unit as it is at the destination."""
        if not row.backed_up:
            return True
        vault, lost = self._context.stores.get(self._dataset.vault), []
        for name, digest in comparison.digests.items():
            self._context.stop_signal.check()
            path = os.path.join(os.fsencode(self._dataset.vault_path), row.path, name)
            try:
                if vault.checksum(path) != digest:
                    lost.append(name)
            except StoreError as exc:
                if exc.category is Category.STORE_DOWN:
                    raise
                lost.append(name)
        if lost:
            reason = f"missing or damaged in the vault: {', '.join(map(shown, lost[:10]))}"
            self._db.stage(row, Stage.BACKUP, False)
            self._db.backup_shown(row, TransferState.RETRY, reason)
            self._tell(self._db.change(row, backed_up=0, reason=f"backup: {reason}"))  # until the next backup succeeds
        return not lost

    def _tell(self, row: Delivery) -> None:
        self._context.tell(row, "audit failed", row.reason.partition(": ")[2])
