"""One batch: resolve the dirty names, fill them at the slave, send data, remove, set attributes.

Promise: when `apply` returns, everything in the ChangelogDB's tables is at the slave (not yet durable: that is
agent.commit) or in the ledger. Applying it again changes nothing. Here is the order in which things happen; what is
done in each step, and the state it needs, is in fill, enumeration, flight, removals and contents.
Not here: what goes into a batch, commit and stime (worker).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.model import Gfid
from gsync.engine.contents import Contents
from gsync.engine.enumeration import Enumeration
from gsync.engine.fill import Fill, Group, WaitsForRecorder
from gsync.engine.flight import DATA_RETRIES, Flight
from gsync.engine.ledger import Ledger
from gsync.engine.progress import Failures, Progress
from gsync.engine.removals import Removals
from gsync.engine.worklist import PAGE, ChangelogDB, DataNeed, Dirty, NameState
from gsync.link.client import SlaveClient
from gsync.master.tree import Resolved, Tree
from gsync.sync.syncer import Syncer


class Batch:
    """`recursive`: enumerate known directories below an enumerated one too (hybrid crawl); there, known files whose
    ctime is not older than `floor` (ns) are suspect: their data is compared and their attributes set.
    `check_stop` is called again and again; `checkpoint` now and then while directories are read, for interim commits.
    `last_resolve`: when the master was last asked for names (ns), for rule 20. The other parameters are those of the
    parts: `direct`, `created` and `listed` of enumeration, `max_delete` and `ignore_deletes` of removals,
    `data_retries` of flight, `stime` of contents.
    """

    def __init__(self, tree: Tree, slave: SlaveClient, db: ChangelogDB, syncer: Syncer, ledger: Ledger,
                 recorder: WaitsForRecorder, progress: Progress, check_stop: Callable[[], None], *,
                 direct: bool = True, recursive: bool = False, floor: int | None = None,
                 checkpoint: Callable[[], None] = lambda: None, stime: int | None = None, max_delete: int = 0,
                 ignore_deletes: bool = False, data_retries: int = DATA_RETRIES, listed: int = PAGE,
                 created: Set[Gfid] = frozenset(), clock: Clock = SYSTEM_CLOCK) -> None:
        self._tree, self._db, self._progress, self._clock = tree, db, progress, clock
        self._check_stop, self._checkpoint = check_stop, checkpoint
        self._recorder, self._compares = recorder, recursive and floor is not None
        failures = Failures(tree, ledger, progress)
        self._fill = Fill(tree, slave, db, failures, recorder, clock, recursive, floor)
        self._group = Group(db, clock)
        self._enumeration = Enumeration(tree, slave, db, failures, clock, direct=direct,
                                        empty=recursive and floor is None, created=created, listed=listed)
        self._flight = Flight(tree, syncer, failures, progress, data_retries)
        self._removals = Removals(tree, slave, db, ledger, failures, progress, clock, max_delete, ignore_deletes)
        self._contents = Contents(tree, slave, db, failures, check_stop, stime)
        self.last_resolve = 0

    def apply(self) -> None:
        """Do everything that the tables hold. Transient, SlaveError, Faulty: the batch is to be applied again."""
        self._tree.handle_of = self._db.handle_of
        try:
            self._names()
            if self._compares:
                # What is compared is found by the recorder's index; what that has not yet would count as gone.
                self._db.flush()
                self._recorder.wait_complete(self.last_resolve)
            self._progress.phase = "syncing"
            self._db.parents_to_meta()  # rule 9
            self._data()
            self._contents.set_attributes()
        finally:
            self._enumeration.close()
            self._tree.hints.clear()
        self._db.flush()

    # names

    def _names(self) -> None:
        """One step after the other, each time the first one that has something to do, until none has."""
        self._progress.phase = "crawling"
        db = self._db
        db.cover()
        while True:
            self._check_stop()
            self._take(wait=False)
            if self._group.due():
                self._name_group()
            elif (page := db.names(NameState.DIRTY, PAGE)):
                self._resolve(page)
            elif self._enumerate():
                self._checkpoint()
            elif self._flight.out:
                self._take(wait=True)
            elif self._group.ready:
                self._name_group()
            elif db.count(NameState.UNKNOWN):
                self._fill.catch_up()
            elif db.count(NameState.BLOCKED):
                self._fill.unblock()
            elif not self._remove():
                return

    def _resolve(self, page: Sequence[Dirty]) -> None:
        """Ask the master what these names are now, and fill them."""
        page = self._fill.settling(page)
        resolved = self._tree.resolve([row.name for row in page])
        dirs = {i for i, r in enumerate(resolved) if r.attrs is not None and r.attrs.is_dir}
        rest = [i for i in range(len(page)) if i not in dirs]
        if dirs:  # first: the names in a directory that turns out to be new come with its enumeration
            self._fill_names([resolved[i] for i in dirs], [page[i].rowid for i in dirs])
            covered = {p for p in {r.name[0] for r in resolved} if self._db.to_be_listed(p)}
            self._db.set_names((NameState.DONE, page[i].rowid) for i in rest if resolved[i].name[0] in covered)
            rest = [i for i in rest if resolved[i].name[0] not in covered]
        self._fill_names([resolved[i] for i in rest], [page[i].rowid for i in rest])
        self._look_for(row.gfid for row, r in zip(page, resolved, strict=True) if row.gfid and r.gfid != row.gfid)

    def _fill_names(self, resolved: Sequence[Resolved], rowids: Sequence[int] | None) -> None:
        """Fill a page of names, and have done what follows from it. Without rowids they come from an enumeration."""
        self.last_resolve = self._clock.now()
        filled = self._fill.page(resolved, rowids, self._flight.flying, self._enumeration.unattached)
        self._removals.release(item.name for item in filled.asked)
        self._enumeration.add(filled.dirs)
        self._contents.suspect(filled.suspects)
        self._db.add_names(filled.vacated)  # rule 16
        self._look_for(filled.displaced)
        self._progress.names += len(filled.asked)
        self._enumeration.expect(filled.direct)
        self._flight.send(filled.new, filled.direct)  # last: a full box makes this wait

    def _look_for(self, gfids: Iterable[Gfid]) -> None:
        """Inodes that a fill or removal pushed to limbo, or new ones whose name is not theirs any more: where are they
        now? (rule 16)"""
        for gfid in gfids:
            self._db.add_names(self._tree.names_of(gfid))

    def _name_group(self) -> None:
        """Complete inodes go to their names; what is there now is asked again (rule 11)."""
        began = self._clock.monotonic()
        self._group.ready = 0
        while (page := self._db.names(NameState.READY, PAGE)):
            self._check_stop()
            self._resolve(page)
        self._group.took(self._clock.monotonic() - began)

    def _enumerate(self) -> bool:
        """Fill or send a page of entries of the directories to enumerate; False if there are none."""
        while True:
            complete, unknown = self._enumeration.open(self._fill.waited)
            self._group.arrived(complete, NameState.BUILDING)
            if not unknown:
                break
            self._fill.catch_up(directory.gfid for directory in unknown)
            self._db.add_dirs(unknown)
        listed = self._enumeration.page(self._flight.flying)
        if listed is None:
            return False
        if listed.unasked:
            self.last_resolve = self._clock.now()
            self._progress.names += len(listed.unasked)
            self._flight.send((), listed.unasked)
        if listed.to_ask:
            self._fill_names(listed.to_ask, None)
        self._group.arrived(self._enumeration.end(listed.ended), NameState.BUILDING)
        return True

    def _remove(self) -> bool:
        """Nothing is left to fill: the names that are gone (rule 17); False if there are none."""
        if not self._removals.begin():
            return False
        while (displaced := self._removals.page()) is not None:
            self._look_for(displaced)
            self._check_stop()
        return True

    # files

    def _take(self, wait: bool) -> None:
        """Take back what has landed, and go on with the names and directories that waited for it."""
        landed = self._flight.take(wait)
        for request in landed.gone:  # ask what is there (rule 14)
            self._db.add_names([(request.dirgfid, request.bname)])
            self._db.set_names((NameState.DIRTY, row.rowid) for row in self._db.names_waiting_for(request.gfid))
        for request in landed.failed:
            self._db.set_names((NameState.FAILED, row.rowid) for row in self._db.names_waiting_for(request.gfid))
        self._db.sent_whole(landed.whole)
        self._group.arrived(landed.named, NameState.DATA)
        for dirgfid, files in landed.into.items():
            self._group.arrived(self._enumeration.landed(dirgfid, files), NameState.BUILDING)

    def _data(self) -> None:
        """Content in place of what the slave has and what was not sent new (rule 18)."""
        self._db.add_gfids(self._flight.take_changed(), DataNeed.SEND)  # changed while it was read: once more
        for gfids in self._contents.stale():
            self._flight.send_in_place(gfids)
            while self._flight.out:
                self._take(wait=True)
        self._flight.take_changed()  # a change after the batch's records has a record of its own
