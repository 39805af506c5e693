"""One batch: resolve the dirty names, fill them at the slave, send data, remove, set attributes.

Promise: when `apply` returns, everything in the ChangelogDB's tables is at the slave (not yet durable: that is
agent.commit) or in the ledger. Applying it again changes nothing. This module has the order of the steps; fill,
enumeration, flight, removals and contents have the steps and the state that they need. Not here: which changes go into
a batch, commit and stime (worker).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gsync.base.clock import Clock
from gsync.base.model import Gfid, Name
from gsync.engine.contents import Contents
from gsync.engine.enumeration import Enumeration
from gsync.engine.fill import Fill, Group
from gsync.engine.flight import Flight
from gsync.engine.progress import Progress
from gsync.engine.removals import Removals
from gsync.engine.worklist import PAGE, ChangelogDB, DataNeed, Dirty, NameState
from gsync.master.tree import Resolved


class _Master(Protocol):
    handle_of: Callable[[Gfid], bytes | None]
    hints: dict[Gfid, tuple[bytes, Name]]

    def resolve(self, names: Sequence[Name]) -> list[Resolved]: ...
    def names_of(self, gfid: Gfid) -> list[Name]: ...


@dataclass
class Batch:
    """Built from its parts. `check_stop` is called again and again; `checkpoint` now and then while directories are
    read, for interim commits. `last_resolve`: when the master was last asked for names (ns), for rule 20."""

    tree: _Master
    db: ChangelogDB
    fill: Fill
    group: Group
    enumeration: Enumeration
    flight: Flight
    removals: Removals
    contents: Contents
    progress: Progress
    check_stop: Callable[[], None]
    checkpoint: Callable[[], None]
    clock: Clock
    last_resolve: int = 0

    def apply(self) -> None:
        """Do everything in the tables. On Transient, SlaveError or Faulty the batch must be applied again."""
        self.tree.handle_of = self.db.handle_of
        try:
            self._names()
            self.fill.let_suspects_be_found(self.last_resolve)
            self.progress.phase = "syncing"
            self.db.parents_to_meta()  # rule 9
            self._data()
            while self._look_for(self.flight.take_lost()):  # rule 18
                self._names()
                self.db.parents_to_meta()
                if self.contents.owes:
                    self._data()
            self.contents.set_attributes()
        finally:
            self.enumeration.close()
            self.tree.hints.clear()
        self.db.flush()

    # names

    def _names(self) -> None:
        """Do the first step that has anything to do, again and again, until none has."""
        self.progress.phase = "crawling"
        db = self.db
        db.cover()
        while True:
            self.check_stop()
            self._take(wait=False)
            if self.group.due():
                self._name_group()
            elif (page := db.names(NameState.DIRTY, PAGE)):
                self._resolve(page)
            elif self._enumerate():
                self.checkpoint()
            elif self.flight.out:
                self._take(wait=True)
            elif self.group.ready:
                self._name_group()
            elif db.count(NameState.UNKNOWN):
                self.fill.catch_up()
            elif db.count(NameState.BLOCKED):
                self.fill.unblock()
            elif not self._remove():
                return

    def _resolve(self, page: Sequence[Dirty]) -> None:
        """Ask the master for these names' present state, and fill them."""
        page = self.fill.settling(page)
        resolved = self.tree.resolve([row.name for row in page])
        dirs = {i for i, r in enumerate(resolved) if r.attrs is not None and r.attrs.is_dir}
        rest = [i for i in range(len(page)) if i not in dirs]
        if dirs:  # first: if a directory turns out to be new, its enumeration brings its names
            self._fill_names([resolved[i] for i in dirs], [page[i].rowid for i in dirs])
            covered = {p for p in {r.name[0] for r in resolved} if self.db.to_be_listed(p)}
            self.db.set_names((NameState.DONE, page[i].rowid) for i in rest if resolved[i].name[0] in covered)
            rest = [i for i in rest if resolved[i].name[0] not in covered]
        self._fill_names([resolved[i] for i in rest], [page[i].rowid for i in rest])
        self._look_for(row.gfid for row, r in zip(page, resolved, strict=True) if row.gfid and r.gfid != row.gfid)

    def _fill_names(self, resolved: Sequence[Resolved], rowids: Sequence[int] | None) -> None:
        """Fill a page of names and take the steps that follow from it. Without rowids, the names come from an
        enumeration."""
        self.last_resolve = self.clock.now()
        filled = self.fill.page(resolved, rowids, self.flight.flying, self.enumeration.unattached)
        self.removals.release(item.name for item in filled.asked)
        self.enumeration.add(filled.dirs)
        self.contents.suspect(filled.suspects)
        self.db.add_names(filled.vacated)  # rule 16
        self._look_for(filled.displaced)
        self.progress.names += len(filled.asked)
        self.enumeration.expect(filled.direct)
        self.flight.send(filled.new, filled.direct)  # last: a full box blocks here

    def _look_for(self, gfids: Iterable[Gfid]) -> bool:
        """Find the present names of inodes that a fill or removal pushed to limbo, of new inodes whose name is no
        longer theirs (rule 16), and of those whose content is gone at the master (rule 18). Whether there are any."""
        found = False
        for gfid in gfids:
            names = self.tree.names_of(gfid)
            found = found or bool(names)
            self.db.add_names(names)
        return found

    def _name_group(self) -> None:
        """Give complete inodes their names, after asking again what is at each name now (rule 11)."""
        began = self.clock.monotonic()
        self.group.ready = 0
        while (page := self.db.names(NameState.READY, PAGE)):
            self.check_stop()
            self._resolve(page)
        self.group.took(self.clock.monotonic() - began)

    def _enumerate(self) -> bool:
        """Fill or send a page of entries of the directories to enumerate; False if there are none."""
        while True:
            complete, unknown = self.enumeration.open(self.fill.waited)
            self.group.arrived(complete, NameState.BUILDING)
            if not unknown:
                break
            self.fill.catch_up(directory.gfid for directory in unknown)
            self.db.add_dirs(unknown)
        listed = self.enumeration.page(self.flight.flying)
        if listed is None:
            return False
        if listed.unasked:
            self.last_resolve = self.clock.now()
            self.progress.names += len(listed.unasked)
            self.flight.send((), listed.unasked)
        if listed.to_ask:
            self._fill_names(listed.to_ask, None)
        self.group.arrived(self.enumeration.end(listed.ended), NameState.BUILDING)
        return True

    def _remove(self) -> bool:
        """Nothing is left to fill: remove absent names (rule 17); False if there are none."""
        if not self.removals.begin():
            return False
        while (displaced := self.removals.page()) is not None:
            self._look_for(displaced)
            self.check_stop()
        return True

    # files

    def _take(self, wait: bool) -> None:
        """Take back files that have landed, and continue with the names and directories that waited for them."""
        landed = self.flight.take(wait)
        for request in landed.gone:  # ask the master again (rule 14)
            self.db.add_names([(request.dirgfid, request.bname)])
            self.db.set_names((NameState.DIRTY, row.rowid) for row in self.db.names_waiting_for(request.gfid))
        for request in landed.failed:
            self.db.set_names((NameState.FAILED, row.rowid) for row in self.db.names_waiting_for(request.gfid))
        self.db.sent_whole(landed.whole)
        self.group.arrived(landed.named, NameState.DATA)
        for dirgfid, files in landed.into.items():
            self.group.arrived(self.enumeration.landed(dirgfid, files), NameState.BUILDING)

    def _data(self) -> None:
        """Send content for files that the slave has, unless they were sent new (rule 18)."""
        self.contents.owes = False
        self.db.add_gfids(self.flight.take_changed(), DataNeed.SEND)  # changed while read: send once more
        for gfids in self.contents.stale():
            self.flight.send_in_place(gfids)
            while self.flight.out:
                self._take(wait=True)
        self.flight.take_changed()  # a change after the batch's records has a record of its own
