"""Removes names that the master no longer has, once nothing is left to fill (rule 17), unless they are too many.

Promise: if a batch would remove more entries than the session allows, only approved names are removed; the others stay
at the slave, and become rows of the ledger. Not here: the fate of removed inodes (agent).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Protocol

from gsync.base.clock import Clock
from gsync.base.log import get_logger
from gsync.base.model import Gfid, Name, shown
from gsync.engine.ledger import Ledger
from gsync.engine.progress import Failures, Progress
from gsync.engine.worklist import PAGE, ChangelogDB, NameState
from gsync.link.protocol import RemoveAnswer, RemoveRow

_log = get_logger(__name__)

_Row = tuple[int, Name, int]  # rowid, name, since


class _Slave(Protocol):
    def remove(self, rows: Sequence[RemoveRow], keep_last: bool) -> RemoveAnswer: ...
    def weigh(self, names: Sequence[Name], limit: int) -> int: ...


class _Master(Protocol):
    def path_text(self, name: Name) -> bytes: ...


class Removals:
    """`max_delete`: most entries that a batch may remove, 0: any number. `ignore_deletes`: an inode's last name is
    never removed."""

    def __init__(self, tree: _Master, slave: _Slave, db: ChangelogDB, ledger: Ledger, failures: Failures,
                 progress: Progress, clock: Clock, max_delete: int = 0, ignore_deletes: bool = False) -> None:
        self._tree, self._slave, self._db, self._ledger = tree, slave, db, ledger
        self._failures, self._progress, self._clock = failures, progress, clock
        self._max_delete, self._ignore_deletes = max_delete, ignore_deletes
        self._held = ledger.count_held() > 0
        self._hold = False
        self._weight = 0

    def release(self, names: Iterable[Name]) -> None:
        """The master has these names: release any that are held."""
        if self._held:
            self._ledger.release(names)

    def begin(self) -> bool:
        """Weigh the pending removals; False if there are none."""
        if not self._db.absent(1):
            return False
        self._hold = self._hold or (not self._ignore_deletes and self._too_many())
        return True

    def page(self) -> list[Gfid] | None:
        """Remove, or hold, a page of names; return the inodes that went to limbo, None when no name is left."""
        page = self._db.absent(PAGE)
        if not page:
            return None
        if self._hold:
            page = self._hold_back(page)
        return self._remove(page) if page else []

    def _too_many(self) -> bool:
        """Whether the batch would remove more than the session allows, not counting approved names."""
        if not self._max_delete:
            return False
        after = 0
        while (page := self._db.absent(PAGE, after)):
            after = page[-1][0]
            names = [name for _, name, _ in page if not self._ledger.is_approved(name)]
            self._weight += self._slave.weigh(names, self._max_delete - self._weight)
            if self._weight > self._max_delete:
                _log.error("deletes are held", limit=self._max_delete)
                return True
        return False

    def _hold_back(self, page: Sequence[_Row]) -> list[_Row]:
        """Leave these names in place at the slave; return those that may go anyway."""
        approved = [row for row in page if self._ledger.is_approved(row[1])]
        held = [row for row in page if row not in approved]
        there = [row for row in held if self._slave.weigh([row[1]], 1)]
        self._ledger.hold(((name, self._tree.path_text(name)) for _, name, _ in there), self._clock.now())
        self._held = self._held or bool(there)
        self._db.set_names((NameState.DONE, row[0]) for row in held)
        return approved

    def _remove(self, page: Sequence[_Row]) -> list[Gfid]:
        answer = self._slave.remove([RemoveRow(name[0], name[1], since) for _, name, since in page],
                                    keep_last=self._ignore_deletes)
        failed = {problem.row for problem in answer.errors}
        for i, err, message in answer.errors:
            self._failures.of_name(page[i][1], err, message)
        self._db.set_names((NameState.FAILED if i in failed else NameState.DONE, row[0])
                           for i, row in enumerate(page))
        self._progress.removed += len(page)
        if _log.debugs:
            for i, (_, name, _) in enumerate(page):
                if i not in failed:
                    _log.debug("removed", path=shown(self._tree.path_text(name)))
        return answer.displaced
