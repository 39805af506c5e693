"""Builds batches, for a walk or from changelogs: opens the master, and adds to a batch's own work the agent's leftovers
and the due retries and deletes. Not here: the steps of a batch, and its commit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass

from gsync.base.clock import Clock
from gsync.base.errors import Transient
from gsync.base.model import Gfid
from gsync.engine.batch import Batch
from gsync.engine.connection import Connection
from gsync.engine.contents import Contents
from gsync.engine.enumeration import Enumeration
from gsync.engine.fill import Fill, Group
from gsync.engine.flight import Flight
from gsync.engine.parts import Limits, MasterSide, Work
from gsync.engine.progress import Failures, Progress
from gsync.engine.removals import Removals
from gsync.engine.worklist import DataNeed, EnumDir
from gsync.link.client import SlaveClient
from gsync.master.tree import Tree


@dataclass(frozen=True)
class Coverage:
    """How far a batch looks. stime: of the slave (ns). recursive: known directories below an enumerated one are
    enumerated, too (a walk). Then known files whose ctime is not older than `floor` (ns) are suspect: their content is
    compared and their attributes are set. created: files that are not older than the changelogs of the batch, as far as
    they were remembered."""

    stime: int | None
    recursive: bool = False
    floor: int | None = None
    created: Set[Gfid] = frozenset()

    @property
    def everything(self) -> bool:
        """Whether the slave has only what this batch sends."""
        return self.recursive and self.floor is None


class Batching:
    """Makes the batches of one worker. While applied, a batch calls `tend` again and again."""

    def __init__(self, master: MasterSide, work: Work, limits: Limits, clock: Clock, progress: Progress,
                 tend: Callable[[], None]) -> None:
        self._master, self._work, self._limits = master, work, limits
        self._clock, self._progress, self._tend = clock, progress, tend

    @contextmanager
    def tree(self, connection: Connection) -> Iterator[Tree]:
        """The master, opened for one batch."""
        tree = self._master.open_tree()
        try:
            tree.sends = connection.loss
            yield tree
        except OSError as exc:
            if tree.is_away(exc.errno or 0):
                raise Transient(f"master: {exc.strerror}") from exc
            raise
        finally:
            tree.close()

    def make(self, tree: Tree, connection: Connection, coverage: Coverage,
             checkpoint: Callable[[], None] = lambda: None) -> Batch:
        """A batch for the tables' content. checkpoint: called now and then while directories are read."""
        db, ledger, limits, slave = self._work.db, self._work.ledger, self._limits, connection.client
        clock, progress = self._clock, self._progress
        failures = Failures(tree, ledger, progress)
        return Batch(
            tree, db,
            Fill(tree, slave, db, failures, self._master.recorder, clock, coverage.recursive, coverage.floor),
            Group(db, clock),
            Enumeration(tree, slave, db, failures, clock, connection.direct, coverage.everything, coverage.created,
                        connection.listed),
            Flight(tree, connection.syncer, failures, progress, limits.data_retries),
            Removals(tree, slave, db, ledger, failures, progress, clock, limits.max_delete, limits.ignore_deletes),
            Contents(tree, slave, db, failures, self._tend, coverage.stime),
            progress, self._tend, checkpoint, clock)

    def take_leftovers(self, tree: Tree, client: SlaveClient, *, recursive: bool) -> None:
        """Look again at what the agent noted in batches that were not committed (rule 7)."""
        db = self._work.db
        for names in client.leftover_names():
            db.add_names(names)
        for dirs in client.leftover_dirs():
            db.add_dirs(EnumDir(gfid, None, recursive, False) for gfid in dirs)
        for gfids in client.leftover_gfids():
            for gfid in gfids:
                db.add_names(tree.names_of(gfid))

    def is_due(self) -> bool:
        """Whether a delete was approved, or a failure is due for a retry."""
        due = self._work.ledger.next_due()
        return self._work.ledger.any_approved() or (due is not None and due <= self._clock.now())

    def take_due(self) -> None:
        """Put approved deletes and due retries into this batch."""
        db, ledger = self._work.db, self._work.ledger
        db.add_names(ledger.take_approved())
        for failure in ledger.take_due(self._clock.now()):
            if failure.name is not None:
                db.add_names([failure.name])
            elif failure.gfid is not None and failure.what == "dir":
                db.add_dirs([EnumDir(failure.gfid, None, False, False)])
            elif failure.gfid is not None:
                db.add_gfids([failure.gfid], DataNeed.SEND if failure.what == "data" else DataNeed.NONE)
