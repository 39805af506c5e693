"""Where a worker stands towards its slave, and how it goes on from there.

`choose` alone decides whether to follow the changelogs or walk the tree, from which moment on, and which files a walk
compares. Values and functions of values: nothing here reads a file or a clock.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from hashlib import blake2b
from typing import Protocol

from gsync.base.model import NS
from gsync.engine.feed import restart_position
from gsync.engine.unfinished import SUSPECT_MARGIN, UnfinishedWalk

CLOCKS_APART = 10 * NS   # the largest difference, in ns, between the clocks of two nodes that take over from each other


@dataclass(frozen=True)
class Mark:
    """The mark that the slave keeps with the stime: whose changelog.db knows the doubt of that moment, a digest of the
    patterns under which the stime holds, and the snapshot that the master had been set back to."""

    by: str
    patterns: str
    restored: str = ""

    @classmethod
    def of(cls, by: str, patterns: str, restored: str) -> Mark:
        return cls(by, blake2b(patterns.encode(), digest_size=8).hexdigest(), restored)

    @classmethod
    def parse(cls, text: str | None) -> Mark | None:
        by, _, rest = (text or "").partition(" ")
        patterns, _, restored = rest.partition(" ")
        return cls(by, patterns, restored) if patterns else None

    def __str__(self) -> str:
        return f"{self.by} {self.patterns} {self.restored}".rstrip()


class Why(Enum):
    """Why the tree is walked; the text goes to the log."""

    FIRST = "the slave has no stime"
    SET_BACK = "the master was set back to a snapshot"
    INTERRUPTED = "the last walk did not finish"
    FILTERS = "the patterns have changed"
    HISTORY = "history is missing"
    TAKEN_OVER = "another worker was active, and not all since its stime is recorded here"
    DOUBT = "the recorder has a gap since the last walk"


@dataclass(frozen=True)
class Standing:
    """A worker's knowledge of its slave. Times in ns.

    stime: the slave holds all changes up to then; None: nothing is known to be there. position: end of the last slice
    that was applied. mine, mark: the mark that this worker leaves with a stime, and the one left with this stime.
    fresh: the slave holds nothing at all. leftovers: the agent may know of names to look at again (rule 7). limbo: how
    many detached inodes wait at the slave. following: the changelogs since `position` are all there is to apply;
    otherwise `choose` must decide how to go on. broken: why following ended; past: the end (s) of a changelog that must
    not be read again.
    """

    mine: Mark
    stime: int | None = None
    mark: Mark | None = None
    position: int = 0
    fresh: bool = False
    leftovers: bool = False
    limbo: int = 0
    following: bool = False
    broken: Why | None = None
    past: int = 0

    @property
    def taken_over(self) -> bool:
        """Whether another worker set the stime, so that its doubt (rule 20) is not known here."""
        return self.stime is not None and self.mark is not None and self.mark.by != self.mine.by

    @property
    def set_back(self) -> bool:
        """Whether the master was set back to a snapshot since the stime, so that even old files may differ."""
        return self.mark is not None and self.mark.restored != self.mine.restored

    @property
    def filtered_otherwise(self) -> bool:
        return self.mark is not None and self.mark.patterns != self.mine.patterns

    @property
    def apart(self) -> int:
        """ns by which the stime may be off because another node's clock made it."""
        return CLOCKS_APART if self.taken_over else 0

    def has_broken(self, why: Why, past: int = 0) -> Standing:
        """The changelogs no longer tell everything."""
        return replace(self, following=False, broken=why, past=max(past, self.past))

    def follows(self, position: int) -> Standing:
        return replace(self, following=True, broken=None, position=position)

    def committed(self, stime: int | None, limbo: int) -> Standing:
        """After a commit the slave keeps this worker's mark with the stime."""
        if stime is None:
            return replace(self, limbo=limbo)
        return replace(self, stime=stime, mark=self.mine, limbo=limbo)


class Reach(Protocol):
    """The questions that `choose` asks of the history."""

    def reaches_back_to(self, time: int) -> bool: ...


@dataclass(frozen=True)
class Recorded:
    """The recorder's last report."""

    gaps: int
    watching_since: int
    unbroken_since: int | None = None
    complete_up_to: int | None = None


@dataclass(frozen=True)
class Follow:
    """Follow the changelogs after `position`. doubts_all: the whole tree is in doubt until the recorder has overtaken
    this moment."""

    position: int
    doubts_all: bool = False


@dataclass(frozen=True)
class Walk:
    """Walk the tree. cut: the stime after it; if it is still to come, the worker waits for it. floor: known files
    changed since then are compared (None: everything that the slave has was sent since the cut, 0: compare all).
    resumes: parts that an interrupted walk has committed are not walked again."""

    cut: int
    floor: int | None
    why: Why
    resumes: bool = False


def choose(standing: Standing, recorded: Recorded, history: Reach, interrupted: UnfinishedWalk | None,
           writers_apart: int = 0) -> Follow | Walk:
    """Decide how to go on. writers_apart: ns by which the clocks that stamp ctimes may be behind the one that stamps
    stimes."""
    why = _why(standing, recorded, history, interrupted)
    if why is None:
        assert standing.stime is not None
        return Follow(restart_position(standing.stime - standing.apart), standing.taken_over)
    margin = SUSPECT_MARGIN + standing.apart + writers_apart
    if interrupted is not None and _resumable(interrupted, standing, recorded, history, margin):
        return Walk(interrupted.cut, interrupted.floor, why, resumes=True)
    cut = max(recorded.watching_since, recorded.complete_up_to or 0, standing.past * NS)
    return Walk(cut, _floor(standing, interrupted, margin), why)


def _why(standing: Standing, recorded: Recorded, history: Reach, interrupted: UnfinishedWalk | None) -> Why | None:
    if standing.stime is None:
        return Why.FIRST
    if standing.set_back:
        return Why.SET_BACK
    if standing.broken is not None:
        return standing.broken
    if interrupted is not None:
        return Why.INTERRUPTED
    if standing.filtered_otherwise:
        return Why.FILTERS
    since = standing.stime - standing.apart
    if standing.taken_over and (recorded.unbroken_since is None or recorded.unbroken_since > since):
        return Why.TAKEN_OVER
    return None if history.reaches_back_to(since) else Why.HISTORY


def _resumable(interrupted: UnfinishedWalk, standing: Standing, recorded: Recorded, history: Reach, margin: int
               ) -> bool:
    """Whether the interrupted walk's work still counts: same tree, same patterns, the slave has kept it, all changes
    since its cut are recorded, and it compared no less than is needed now."""
    return (interrupted.gaps == recorded.gaps and interrupted.mark == str(standing.mine) and not standing.fresh
            and _compares_enough(interrupted, _floor(standing, None, margin), standing)
            and history.reaches_back_to(interrupted.cut))


def _compares_enough(interrupted: UnfinishedWalk, floor: int | None, standing: Standing) -> bool:
    if interrupted.floor is None:
        return standing.stime is None  # it sent everything that the slave has
    return floor is None or interrupted.floor <= floor


def _floor(standing: Standing, interrupted: UnfinishedWalk | None, margin: int) -> int | None:
    """The ctime from which on files are compared. Files that an interrupted walk had to compare must still be compared:
    it may not have reached them."""
    if standing.set_back:
        return 0
    if standing.stime is None and standing.fresh:
        return None
    bounds: list[int] = []
    first = False
    if interrupted is not None:
        first = interrupted.floor is None
        bounds.append(interrupted.cut - margin if interrupted.floor is None else interrupted.floor)
    if standing.stime is not None:
        bounds.append(standing.stime - margin)
    elif not first:
        bounds.append(0)
    return min(bounds)
