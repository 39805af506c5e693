"""Walking: compare the whole tree with the slave, names on both sides (rule 29).

The stime after a walk is its cut, taken before it began: the changelogs from the cut on contain whatever the walk read
too early. Promise: an interrupted walk resumes from its last interim commit, never from later. Not here: whether to
walk, and with which floor (position); the commit that ends the walk.
"""

from __future__ import annotations

from gsync.base.clock import Clock
from gsync.base.log import get_logger
from gsync.base.model import ROOT_GFID
from gsync.engine.batch import Batch
from gsync.engine.batching import Batching, Coverage
from gsync.engine.commit import Committer
from gsync.engine.connection import Connection
from gsync.engine.feed import RecorderView
from gsync.engine.parts import Limits, Work
from gsync.engine.position import Standing, Walk
from gsync.engine.unfinished import UnfinishedWalk
from gsync.engine.worklist import EnumDir
from gsync.master.tree import Tree

_log = get_logger(__name__)


class Walker:
    """Walks one brick's tree."""

    def __init__(self, batching: Batching, recorder: RecorderView, work: Work, limits: Limits, committer: Committer,
                 clock: Clock) -> None:
        self._batching, self._recorder, self._db = batching, recorder, work.db
        self._committer, self._clock = committer, clock
        self._every = limits.interim_commit
        self._committed_at = 0.0

    def walk(self, plan: Walk, gaps: int, connection: Connection, epoch: int, standing: Standing) -> int:
        """Make the slave match the master. Return when a name was last resolved (ns)."""
        self._begin(plan, gaps, standing)
        self._committed_at = self._clock.monotonic()
        with self._batching.tree(connection) as tree:
            if standing.leftovers:
                self._batching.take_leftovers(tree, connection.client, recursive=True)
            self._batching.take_due()
            batch = self._batching.make(tree, connection, Coverage(standing.stime, recursive=True, floor=plan.floor),
                                        checkpoint=lambda: self._interim(tree, connection, epoch))
            batch.apply()
            if plan.floor is not None:  # comparing asks the index for what the slave may have under another name
                self._recorder.wait_complete(batch.last_resolve)
            self._unmet(tree, batch)
            tree.check_whole()
        return batch.last_resolve

    def _begin(self, plan: Walk, gaps: int, standing: Standing) -> None:
        if plan.resumes:
            self._db.resume()
            _log.info("hybrid crawl goes on", cut=plan.cut)
            return
        self._db.reset()
        self._db.add_dirs([EnumDir(ROOT_GFID, None, True, False)])
        UnfinishedWalk(plan.cut, plan.floor, gaps, str(standing.mine)).save(self._db)
        _log.info("hybrid crawl", cut=plan.cut, floor=plan.floor, why=plan.why.value)

    def _unmet(self, tree: Tree, batch: Batch) -> None:
        """Also walk directories that moved from an unread to a read directory meanwhile (rule 29)."""
        while True:
            unmet = False
            for gfids in tree.all_dirs():
                missing = [g for g in gfids if not self._db.has_dir(g)]
                self._db.add_dirs(EnumDir(g, None, True, False) for g in missing)
                unmet = unmet or bool(missing)
            if not unmet:
                return
            batch.apply()

    def _interim(self, tree: Tree, connection: Connection, epoch: int) -> None:
        """Commit finished work, if the last commit is some time ago."""
        if self._clock.monotonic() - self._committed_at < self._every:
            return
        tree.check_whole()
        self._committer.interim(connection, epoch)
        self._committed_at = self._clock.monotonic()
