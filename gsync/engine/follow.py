"""Following: brings the changes in changelogs to the slave, batch after batch. Not here: the commit that ends a
batch."""

from __future__ import annotations

import os

from gsync.base.clock import Clock
from gsync.base.log import get_logger
from gsync.base.model import Gfid
from gsync.changelog.layout import Changelog, HistoryGap
from gsync.changelog.reader import History
from gsync.changelog.records import Fop, ProblemKind, read_changes
from gsync.engine.batching import Batching, Coverage
from gsync.engine.connection import Connection
from gsync.engine.feed import Feed, Portion
from gsync.engine.parts import Limits, Work
from gsync.engine.position import Standing
from gsync.engine.worklist import DataNeed, EnumDir
from gsync.master.tree import Tree

_log = get_logger(__name__)

CREATED = 100_000  # files created during a batch that are remembered as such, at most


class Follower:
    """Puts the changelogs of one brick into batches."""

    def __init__(self, batching: Batching, history: History, work: Work, limits: Limits, clock: Clock) -> None:
        self._batching, self._history, self._work = batching, history, work
        self._feed = Feed(history, limits.batch_size)
        self._interval, self._clock = limits.change_interval, clock
        self._next = 0.0  # when the next batch of live changes may begin, monotonic

    def take(self, standing: Standing, complete_up_to: int | None) -> Portion:
        """The next changelogs, perhaps none. HistoryGap if some are missing. complete_up_to: the recorder's value from
        before this call."""
        self._history.check(standing.stime or 0)
        return self._feed.take(standing.position, complete_up_to)

    def gathers(self, piece: Portion) -> bool:
        """Whether live changes should gather until the change interval has passed."""
        return bool(piece.changelogs) and piece.last and self._clock.monotonic() < self._next

    def apply(self, piece: Portion, connection: Connection, standing: Standing, *, again: bool) -> int:
        """Bring the changes in these changelogs to the slave. Return when a name was last resolved (ns). again: also
        look at everything in doubt."""
        self._next = self._clock.monotonic() + self._interval
        db = self._work.db
        db.reset()
        created: set[Gfid] = set()
        with self._batching.tree(connection) as tree:
            for changelog in piece.changelogs:
                self._read(changelog, tree, created)
            if standing.leftovers:
                self._batching.take_leftovers(tree, connection.client, recursive=False)
            if again:
                db.add_doubt()
            self._batching.take_due()
            batch = self._batching.make(tree, connection, Coverage(standing.stime, created=created))
            batch.apply()
            tree.check_whole()
        return batch.last_resolve

    def _read(self, changelog: Changelog, tree: Tree, created: set[Gfid]) -> None:
        """Put a changelog's names and inodes into the tables. HistoryGap if it is incomplete."""
        db, path = self._work.db, changelog.path
        try:
            file = open(path, "rb")  # noqa: SIM115 closed below; only opening it may find it purged
        except FileNotFoundError as exc:
            raise HistoryGap(f"{os.fsdecode(path)}: purged before it was read", changelog.ts) from exc
        with file:
            for part in read_changes(file):
                db.add_names(name for _, _, names in part.entries for name in names)
                db.add_dirs(EnumDir(gfid, None, False, False) for fop, gfid, _ in part.entries if fop == Fop.MKDIR)
                if len(created) < CREATED:
                    created.update(gfid for fop, gfid, _ in part.entries if fop == Fop.CREATE)
                db.add_gfids(tree.wholes(part.data), DataNeed.SEND)
                db.add_gfids(part.meta, DataNeed.NONE)
                for problem in part.problems:
                    if problem.kind is not ProblemKind.UNKNOWN_FOP:
                        raise HistoryGap(f"{os.fsdecode(path)}: {problem}", changelog.ts)
                    _log.error("changelog", file=os.fsdecode(path), problem=problem)
