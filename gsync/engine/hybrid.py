"""The hybrid crawl's memory: which moment it stands for, and whether it can go on after an interruption.

The crawl itself is a batch that enumerates every directory, on both sides (rule 29): names that only
the slave has are removed, what it lacks is sent. *cut* is taken before the walk: the changelogs from there on hold
whatever the walk saw too early.
"""

from __future__ import annotations

from dataclasses import dataclass

from gsync.engine.worklist import ChangelogDB

SUSPECT_MARGIN = 2_000_000_000  # ns: two clocks' granularity and a slow stat
_KEYS = ("cut", "floor", "gaps", "mark")


@dataclass(frozen=True)
class Hybrid:
    """cut: stime after the crawl. floor: known files changed since then are suspect (None: there are none yet). gaps:
    of the recorder when it began. mark: what the stime after it is marked with."""

    cut: int
    floor: int | None
    gaps: int
    mark: str = ""

    @classmethod
    def load(cls, db: ChangelogDB) -> Hybrid | None:
        """The crawl that was interrupted, None if there was none."""
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
