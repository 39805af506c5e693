"""What every batch needs, in a walk or from changelogs: the master opened for it, and besides its own work what the
agent left over and what is due. Not here: what a batch does, and its commit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager

from gsync.base.clock import Clock
from gsync.base.errors import Transient
from gsync.base.model import Gfid
from gsync.engine.batch import Batch
from gsync.engine.connection import Connection
from gsync.engine.parts import Limits, MasterSide, Work
from gsync.engine.progress import Progress
from gsync.engine.worklist import DataNeed, EnumDir
from gsync.link.client import SlaveClient
from gsync.master.tree import Tree


class Batching:
    """Makes the batches of one worker. A batch calls `tend` again and again while it is applied."""

    def __init__(self, master: MasterSide, work: Work, limits: Limits, clock: Clock, progress: Progress,
                 tend: Callable[[], None]) -> None:
        self._master, self._work, self._limits = master, work, limits
        self._clock, self._progress, self._tend = clock, progress, tend

    @contextmanager
    def tree(self, connection: Connection) -> Iterator[Tree]:
        """The master, for one batch."""
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

    def make(self, tree: Tree, connection: Connection, stime: int | None, *, recursive: bool = False,
             floor: int | None = None, checkpoint: Callable[[], None] = lambda: None,
             created: Set[Gfid] = frozenset()) -> Batch:
        limits, work = self._limits, self._work
        return Batch(tree, connection.client, work.db, connection.syncer, work.ledger, self._master.recorder,
                     self._progress, self._tend, direct=connection.direct, listed=connection.listed, stime=stime,
                     max_delete=limits.max_delete, ignore_deletes=limits.ignore_deletes,
                     data_retries=limits.data_retries, recursive=recursive, floor=floor, checkpoint=checkpoint,
                     created=created, clock=self._clock)

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
        """Whether a delete was approved, or a failure is to be retried now."""
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
