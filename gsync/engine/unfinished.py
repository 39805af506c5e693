"""The record of a walk until its commit, so that an interrupted walk can be resumed (rule 29). Status and log call a
walk Hybrid, as GlusterFS does, and so do the keys of the record.

Not here: the walk itself (walk), and whether an interrupted one may be resumed (position).
"""

from __future__ import annotations

from dataclasses import dataclass

from gsync.engine.worklist import ChangelogDB

SUSPECT_MARGIN = 2_000_000_000  # ns: two clocks' granularity and a slow stat
_KEYS = ("cut", "floor", "gaps", "mark")


@dataclass(frozen=True)
class UnfinishedWalk:
    """cut: the stime after the walk, taken before it. floor: known files changed since then are suspect (None: there
    are none yet). gaps: the recorder's number when it began. mark: the mark of the stime after it."""

    cut: int
    floor: int | None
    gaps: int
    mark: str = ""

    @classmethod
    def load(cls, db: ChangelogDB) -> UnfinishedWalk | None:
        """The interrupted walk; None if there was none."""
        cut, floor, gaps, mark = (db.fact(f"hybrid_{key}") for key in _KEYS)
        if cut is None:
            return None
        return cls(int(cut), None if floor is None else int(floor), int(gaps or 0), str(mark or ""))

    def save(self, db: ChangelogDB) -> None:
        db.set_fact("hybrid_cut", self.cut)
        db.set_fact("hybrid_floor", self.floor)
        db.set_fact("hybrid_gaps", self.gaps)
        db.set_fact("hybrid_mark", self.mark)

    @staticmethod
    def forget(db: ChangelogDB) -> None:
        for key in _KEYS:
            db.set_fact(f"hybrid_{key}", None)
