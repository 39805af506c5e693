"""A worker's state for others: one value, made whenever it is to be published."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from gsync.engine.loss import Loss
from gsync.engine.progress import Progress
from gsync.engine.states import WorkerState


class Crawl(StrEnum):
    """How changes are found, in GlusterFS's terms."""

    NONE = "N/A"
    HYBRID = "Hybrid"          # walking the tree
    HISTORY = "History"        # catching up from changelogs
    CHANGELOG = "Changelog"    # following


@dataclass(frozen=True)
class Pace:
    """How far behind the slave is, as of the last batch."""

    crawl: Crawl = Crawl.NONE
    in_step: bool = False
    lag_seconds: float | None = None


@dataclass(frozen=True)
class Snapshot:
    """Times in ns. last_synced: the stime that was seen to be reached. sent: bytes of file data, over all
    connections."""

    state: WorkerState
    reason: str
    pace: Pace
    stime: int | None
    last_synced: int | None
    epoch: int
    progress: Progress
    sent: int
    loss: Loss | None
