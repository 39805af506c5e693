"""The parts that a worker is built from: small groups of values and functions, each about one subject."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gsync.changelog.reader import History
from gsync.engine.connection import Connection
from gsync.engine.doubt import Doubt
from gsync.engine.feed import RecorderView
from gsync.engine.flight import DATA_RETRIES
from gsync.engine.ledger import Ledger
from gsync.engine.snapshot import Snapshot
from gsync.engine.states import Order
from gsync.engine.worklist import ChangelogDB
from gsync.master.tree import Tree

INTERIM_COMMIT = 60.0    # seconds between the commits of a walk: the most work that an interruption loses


class Waiter(Protocol):
    """Sleeps until the recorder has written something, or for this many seconds."""

    def wait(self, seconds: float) -> None: ...


@dataclass(frozen=True)
class SlaveSide:
    """connect: makes a connection for an epoch. begin_at: the stime (ns) of a slave that has none of its own. stand_by:
    called again and again while another worker is active. shares: the workers of other subvolumes bring their parts of
    the master to the same slave, one at a time; so a worker gives the connection up whenever it has nothing to do."""

    connect: Callable[[int], Connection]
    begin_at: Callable[[], int | None] = lambda: None
    stand_by: Callable[[], None] = lambda: None
    shares: bool = False


@dataclass(frozen=True)
class MasterSide:
    """open_tree: opens the master, checking that it is the tree that the volume means. patterns: the exclusions, as
    text. restored: the snapshot that the master was set back to. writers_apart: ns by which the clocks that make
    ctimes may be behind the one that makes stimes. stands_down: while the recorder is Faulty, leave the lease to
    other nodes."""

    open_tree: Callable[[], Tree]
    history: History
    recorder: RecorderView
    waiter: Waiter
    patterns: str = ""
    restored: str = ""
    writers_apart: int = 0
    stands_down: bool = False


@dataclass(frozen=True)
class Work:
    """The worker's own tables: pending work, doubt, failures."""

    db: ChangelogDB
    doubt: Doubt
    ledger: Ledger


@dataclass(frozen=True)
class Limits:
    """batch_size: bytes of changelogs. max_delete: most entries that a batch may remove, 0: any number. ignore_deletes:
    the last name of an inode is never removed. data_retries: within one batch. change_interval, interim_commit:
    seconds."""

    batch_size: int = 727040
    max_delete: int = 0
    ignore_deletes: bool = False
    data_retries: int = DATA_RETRIES
    change_interval: float = 0.0
    interim_commit: float = INTERIM_COMMIT


@dataclass(frozen=True)
class Instructions:
    """order: the present order, asked at any moment. once: end when everything that existed at this time (ns) is
    durable at the slave. checkpoint: a time (ns) that somebody waits for."""

    order: Callable[[], Order] = lambda: Order.RUN
    once: int | None = None
    checkpoint: Callable[[], int | None] = lambda: None


@dataclass(frozen=True)
class Listeners:
    """publish: called often with the snapshot for status. stime_kept: told every stime (for the retention of
    changelogs)."""

    publish: Callable[[Snapshot], None] = lambda snapshot: None
    stime_kept: Callable[[int], None] = lambda stime: None
