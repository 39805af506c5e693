"""One brick's worker: connects to the slave, chooses the crawl, runs batch after batch, commits the stime.

Promise: stime moves only in `_commit`, after everything up to it is applied and durable, or in the ledger. Whatever
ends the worker, the next one starts from the slave's stime and the tables that were durable before the commit.
Not here: what a batch does (batch), restarting after a crash (supervisor, monitor).
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Protocol

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.errors import Faulty, GsyncError, SlaveError, Stopped, Transient
from gsync.base.log import get_logger
from gsync.base.model import NS, ROOT_GFID, Gfid
from gsync.changelog.layout import Changelog, HistoryGap
from gsync.changelog.reader import History
from gsync.changelog.records import Fop, ProblemKind, read_changes
from gsync.engine.batch import DATA_RETRIES, PAGE, Batch, Progress
from gsync.engine.feed import Feed, Portion, RecorderView, restart_position
from gsync.engine.hybrid import SUSPECT_MARGIN, Hybrid
from gsync.engine.lease import Lease
from gsync.engine.ledger import Ledger
from gsync.engine.loss import Loss
from gsync.engine.states import Machine, Order, WorkerState
from gsync.engine.worklist import ChangelogDB, DataNeed, EnumDir
from gsync.link.client import SlaveClient
from gsync.link.link import Link
from gsync.link.protocol import Busy, Hello
from gsync.master.tree import Tree
from gsync.recorder.status import RecorderStatus
from gsync.sync.syncer import Syncer

_log = get_logger(__name__)

IDLE_COMMIT = 10.0       # seconds after which the stime follows the clock on a quiet tree
INTERIM_COMMIT = 60.0    # seconds between the commits of a hybrid crawl: what an interruption may cost
FIRST_PAUSE = 1.0        # seconds before the slave is tried again; doubled each time
LONGEST_PAUSE = 60.0
STATUS_EVERY = 0.5
LOOK_AT_ORDERS = 0.5     # seconds that an idle worker may take to see what is wanted of it
LOOK_AT_LEASE = 0.25     # seconds between two looks of a passive worker
CREATED = 100_000        # files that were created in the time of a batch and are kept in mind
CLOCKS_APART = 10 * NS   # ns by which the clocks of two nodes that take over from each other may differ


class LeaseLost(Exception):
    """Another worker holds the lease of this one's subvolume now."""


@dataclass
class Connection:
    """The slave while it is reachable: control channel, what it said of itself, syncers."""

    client: SlaveClient
    hello: Hello
    syncer: Syncer
    link: Link
    direct: bool = True    # whether the engine can put files straight into new directories
    listed: int = PAGE     # names of a directory per call to the agent

    def close(self) -> None:
        self.syncer.close()
        self.client.close()
        self.link.close()


@dataclass(frozen=True)
class Mark:
    """What the slave keeps with the stime: whose changelog.db knows what was in doubt then, a digest of the patterns
    under which the stime holds, and the snapshot that the master had been set back to."""

    by: str
    patterns: str
    restored: str = ""

    @classmethod
    def of(cls, db: ChangelogDB, patterns: str, restored: str) -> Mark:
        known = db.fact("name")
        if known is None:
            known = secrets.token_hex(8)
            db.set_fact("name", known)
        return cls(str(known), blake2b(patterns.encode(), digest_size=8).hexdigest(), restored)

    @classmethod
    def parse(cls, text: str | None) -> Mark | None:
        by, _, rest = (text or "").partition(" ")
        patterns, _, restored = rest.partition(" ")
        return cls(by, patterns, restored) if patterns else None

    def __str__(self) -> str:
        return f"{self.by} {self.patterns} {self.restored}".rstrip()


class Waiter(Protocol):
    def wait(self, seconds: float) -> None: ...


@dataclass
class State:
    """What status shows of the worker."""

    crawl: str = "N/A"
    stime: int | None = None
    last_synced: int | None = None
    lag_seconds: float | None = None
    in_step: bool = False
    epoch: int = 0


class Worker:
    """Built with everything it works on, so that tests can give it the real parts or others.

    `connect` makes a Connection for an epoch; `stand_by` is called again and again while another worker is the active
    one; `open_tree` opens the master, checking that it is the tree that the volume means; `orders` tells, at any moment
    and on any thread, what to do; `publish` is called often and shows the state; `stime_kept` hears of every commit
    (for the retention of changelogs). `begin_at`: the stime (ns) of a slave that knows of none itself. `shares`: the
    workers of other subvolumes bring their parts of the master to the same slave, one at a time: so the connection is
    given up whenever there is nothing to do. `stands_down`: while its recorder is Faulty the lease is left to others.
    `writers_apart`: ns by which the clocks that ctimes come from may be behind the one that stimes come from.
    `once`: end when all that existed at this time (ns) is durable at the slave.
    """

    def __init__(self, *, connect: Callable[[int], Connection], open_tree: Callable[[], Tree], history: History,
                 recorder: RecorderView, waiter: Waiter, db: ChangelogDB, ledger: Ledger, lease: Lease,
                 begin_at: Callable[[], int | None] = lambda: None, shares: bool = False, stands_down: bool = False,
                 patterns: str = "", restored: str = "", writers_apart: int = 0, batch_size: int = 727040,
                 max_delete: int = 0, once: int | None = None, ignore_deletes: bool = False,
                 data_retries: int = DATA_RETRIES, change_interval: float = 0.0,
                 orders: Callable[[], Order] = lambda: Order.RUN,
                 publish: Callable[[Worker], None] = lambda worker: None,
                 stime_kept: Callable[[int], None] = lambda stime: None,
                 stand_by: Callable[[], None] = lambda: None,
                 checkpoint: Callable[[], int | None] = lambda: None, clock: Clock = SYSTEM_CLOCK) -> None:
        self._clock = clock
        self._connect, self._open_tree = connect, open_tree
        self._history, self._recorder, self._waiter = history, recorder, waiter
        self._feed = Feed(history, batch_size)
        self.db, self.ledger, self._lease = db, ledger, lease
        self._mark = Mark.of(db, patterns, restored)
        self._writers_apart = writers_apart
        self._max_delete, self._once = max_delete, once
        self._ignore_deletes, self._data_retries = ignore_deletes, data_retries
        self._change_interval = change_interval
        self._begin_at = begin_at
        self._shares, self._stands_down = shares, stands_down
        self._next_live = 0.0         # when the next batch of live changes may begin, monotonic
        self._orders, self._publish, self._stime_kept = orders, publish, stime_kept
        self._stand_by, self._checkpoint = stand_by, checkpoint
        self._began = self._clock.now()
        self.machine = Machine(lambda: self._publish(self))
        self.state = State()
        self.progress = Progress()
        self.connection: Connection | None = None
        self._sent_before = 0         # bytes, by earlier connections
        self.loss: Loss | None = None
        self._was_active = False
        self._claimed = False         # the lease was taken and not given back
        self._published = 0.0
        self._position = 0            # end of the last slice that was applied, ns
        self._applied_upto = 0        # all changes up to then are committed at the slave, ns
        self._leftovers = False       # the agent may know of things to look at again
        self._crawl_whole = False     # no history: walk
        self._walk_past = 0           # s: from then on the history is to be good
        self._set_back = False        # what is old at the master may be other than it was: compare everything
        self._taken_over = False      # another worker set the stime, and what it was in doubt of is not known here
        self._clocks = 0              # ns by which the stime, for the same reason, may be off
        self._limbo = 0               # detached inodes that wait at the slave
        self._last_commit = 0.0
        self._created = set[Gfid]()   # files that the changelogs of a batch say were created then
        self._settled = False         # a batch got through since the last interruption

    # the life of a worker

    def run(self) -> int:
        """Work until stopped, or until in step with `once`; the exit code. GsyncError: a person has to act."""
        pause, rest = FIRST_PAUSE, 0.0
        while True:
            self._settled = False
            try:
                self._rest(rest)
                rest = 0.0
                self._session(self._claim())
                if self._problem():
                    continue  # stood down
                self.machine.to(WorkerState.STOPPED)
                return 1 if self.ledger.count() or self.ledger.count_held() else 0
            except Stopped:
                self.machine.to(WorkerState.STOPPED)
                return 0
            except LeaseLost:
                _log.warning("another worker has taken over", epoch=self.state.epoch)
            except GsyncError as exc:
                if self._claimed and not self._lease.held():
                    _log.warning("another worker has taken over", epoch=self.state.epoch, error=exc)
                elif self._may_pass(exc, pause):
                    if self._settled:
                        pause = FIRST_PAUSE
                    _log.warning("will connect again", error=exc, pause=pause)
                    self.machine.to(WorkerState.FAULTY, str(exc))
                    rest, pause = pause, min(pause * 2, LONGEST_PAUSE)
                else:
                    self.machine.to(WorkerState.FAULTY, str(exc))
                    raise
            finally:
                self._claimed = False
                self._lease.release()  # first: whoever waits for it need not wait for our goodbyes
                self._disconnect()

    def _may_pass(self, exc: GsyncError, pause: float) -> bool:
        """Whether to connect again: the slave was there before, and may be again."""
        if not self._was_active or not isinstance(exc, Transient | SlaveError):
            return False
        return self._once is None or (pause <= 8 and isinstance(exc, Transient))

    def _rest(self, seconds: float) -> None:
        until = self._clock.monotonic() + seconds
        while self._clock.monotonic() < until:
            self._check_stop()
            self._waiter.wait(min(LOOK_AT_ORDERS, until - self._clock.monotonic()))

    def _claim(self) -> int:
        """The epoch to work in, once no other worker has it. While one has, this one is Passive: it keeps its own
        stime current, so that its recorder need not keep what is at the slave already."""
        while (problem := self._problem()) or (epoch := self._lease.take()) is None:
            if problem:
                self.state.crawl, self.state.in_step = "N/A", False
                self.machine.to(WorkerState.FAULTY, problem)
                self._check_stop()
                self._waiter.wait(LOOK_AT_LEASE)
                continue
            self.state.crawl, self.state.in_step = "N/A", False
            self.progress.phase = "waiting"
            self.machine.to(WorkerState.PASSIVE)
            stime = self._lease.beside()
            if stime is not None and stime > (self.state.stime or 0):
                self.state.stime = self.state.last_synced = stime
                self._stime_kept(stime)
            self._stand_by()
            self._check_stop()
            self._waiter.wait(LOOK_AT_LEASE)
        self._claimed = True
        return epoch

    def _problem(self) -> str:
        """Why this worker leaves the lease to others."""
        status = self._recorder.status() if self._stands_down else None
        return status.reason if status is not None and status.state == "Faulty" else ""

    def _session(self, epoch: int) -> None:
        self.start(epoch)
        while True:
            self._check_stop()
            self._still_ours()
            if self._problem():
                return
            if self.connection is None:
                if not self._has_work():
                    self._waiter.wait(LOOK_AT_ORDERS)
                    continue
                self.start(epoch)
            if self.cycle():
                continue
            if self._done():
                return
            if self._shares and self.state.in_step:
                self._disconnect()
            if self._once is not None:
                self._recorder.poke()
            self._waiter.wait(LOOK_AT_ORDERS)

    def _has_work(self) -> bool:
        """Whether the slave has to be asked for its turn."""
        status = self._recorder.status()
        if status is None or self.state.stime is None:
            return True
        due = self.ledger.next_due()
        if self.ledger.any_approved() or (due is not None and due <= self._clock.now()):
            return True
        try:
            piece = self._feed.take(self._position, status.complete_up_to)
        except HistoryGap:
            return True
        if piece.changelogs:
            return True
        checkpoint = self._checkpoint()
        return piece.upto is not None and piece.upto > self.state.stime and bool(
            self._limbo or self._clock.monotonic() - self._last_commit > IDLE_COMMIT
            or (self._once is not None and piece.upto >= self._once)
            or (checkpoint is not None and self._applied_upto < checkpoint <= piece.upto))

    def start(self, epoch: int) -> None:
        """Connect and find out where the slave stands."""
        if not self._shares or self.machine.state is not WorkerState.ACTIVE:
            self.machine.to(WorkerState.INITIALIZING)
        self.progress.phase = "connecting"
        self.state.epoch = epoch
        self.connection = self._my_turn(epoch)
        hello = self.connection.hello
        self.db.set_fact("connected", 1)
        self.loss = Loss(hello)
        if self.loss.attributes:
            _log.warning("the slave cannot hold these attributes, they are left out and counted in status",
                         kinds=", ".join(self.loss.attributes))
        if self.loss.names:
            _log.warning("the slave cannot hold these, they will be failures", kinds=", ".join(self.loss.names))
        self._leftovers = hello.unclean or not self._shares or self._last_commit == 0
        self._limbo = 1
        stime = hello.stime if hello.stime is not None else self._begin_at()
        self.state.stime = stime
        self._applied_upto = stime or 0
        marked = Mark.parse(hello.mark)
        self._taken_over = stime is not None and marked is not None and marked.by != self._mark.by
        self._clocks = CLOCKS_APART if self._taken_over else 0
        if stime is not None:
            self._position = restart_position(stime - self._clocks)
        self._set_back = marked is not None and marked.restored != self._mark.restored
        self._crawl_whole = (stime is None or self._set_back or Hybrid.load(self.db) is not None
                             or not self._history.reaches_back_to(stime - self._clocks)
                             or (marked is not None and marked.patterns != self._mark.patterns))
        self._was_active = True
        self.machine.to(WorkerState.ACTIVE)
        _log.info("connected", stime=stime, epoch=epoch, crawl="Hybrid" if self._crawl_whole else "History")

    def _my_turn(self, epoch: int) -> Connection:
        """A connection, once the workers of the other subvolumes leave the slave to this one."""
        while True:
            self._check_stop()
            try:
                return self._connect(epoch)
            except Busy:
                if not self._shares:
                    raise
                if self.machine.state is not WorkerState.ACTIVE:
                    self.machine.to(WorkerState.ACTIVE)
                self.progress.phase = "waiting for another brick"
                self._still_ours()

    def _disconnect(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self._sent_before += self.connection.syncer.flow.bytes
            self.connection = None

    @property
    def sent(self) -> int:
        """Bytes of file data that went to the slave, by this connection and those before."""
        return self._sent_before + (self.connection.syncer.flow.bytes if self.connection else 0)

    def _check_stop(self) -> None:
        """Show the state, follow orders; raise what has ended the connection, in use or not, or LeaseLost.
        Paused it stays here, with nothing under way but what was asked for before."""
        order = self._orders()
        if order is Order.PAUSE and self.machine.state is not WorkerState.STOPPED:
            before, reason = self.machine.state, self.machine.reason
            self.machine.to(WorkerState.PAUSED)
            while (order := self._orders()) is Order.PAUSE:
                self._show()
                self._check_connection()
                self._waiter.wait(0.2)
            if order is Order.RUN:
                self.machine.to(before, reason)
        self._show()
        if order is Order.STOP:
            raise Stopped
        self._check_connection()

    def tend(self) -> None:
        """What is to be done now and then by whoever waits for long."""
        self._check_stop()

    def _check_connection(self) -> None:
        if self.connection is not None:
            self._still_ours()
            self.connection.client.check()

    def _show(self) -> None:
        if self._clock.monotonic() - self._published > STATUS_EVERY:
            self._published = self._clock.monotonic()
            self._publish(self)

    # one step

    def cycle(self) -> bool:
        """The next batch, crawl or commit; False if there is nothing to do now."""
        status = self._recorder.status()
        if status is None or status.watching_since is None:
            self.progress.phase = "waiting"
            return False
        if status.state == "Faulty":
            if self._once is not None and status.updated > self._began:  # not what an earlier recorder left behind
                raise Faulty(status.reason)
            self.machine.to(WorkerState.FAULTY, status.reason)
            return False
        if self.machine.state is WorkerState.FAULTY:
            self.machine.to(WorkerState.ACTIVE)
        if self._taken_over:
            self._take_over(status)
        try:
            if self._crawl_whole:
                cut = max(status.watching_since, status.complete_up_to or 0, self._walk_past * NS)
                if cut > self._clock.now():
                    return False
                self._hybrid(status.gaps, cut)
                return True
            doubt = self._doubt(status.gaps, status.complete_up_to or 0)
            if doubt and self.db.fact("doubt_whole"):
                _log.warning("the recorder has a gap since the crawl, walking the tree again")
                self._crawl_whole = True
                return True
            self._history.check(self.state.stime or 0)
            piece = self._feed.take(self._position, status.complete_up_to)  # the status that settled the doubt
            due = self.ledger.next_due()
            others = (self._leftovers or doubt or self.ledger.any_approved()
                      or (due is not None and due <= self._clock.now()))
            if (piece.changelogs and piece.last and not others and self._once is None
                    and self._clock.monotonic() < self._next_live):
                self.state.in_step = False
                return False  # they gather
            if piece.changelogs or others:
                self._next_live = self._clock.monotonic() + self._change_interval
                self._changelogs(piece, status.gaps, doubt)
                return True
        except HistoryGap as exc:
            _log.warning("history is missing, walking the tree", error=exc)
            self._crawl_whole = True
            if exc.ts * NS < self._clock.now() + SUSPECT_MARGIN:  # a clock may have been set back since
                self._walk_past = exc.ts + 1  # else what is read from then on begins with that changelog again
            return True
        return self._idle(piece)

    def _take_over(self, status: RecorderStatus) -> None:
        """What the other worker has seen of the time after its stime is in doubt [20], and not known here. If all of
        that time is recorded here, it is looked at again anyway; it must be so until now, else the tree is walked."""
        assert self.state.stime is not None
        self._taken_over = False
        since = status.unbroken_since
        if since is None or since > self.state.stime - self._clocks:
            _log.info("another worker was active, and not all since its stime is recorded here: walking the tree")
            self._crawl_whole = True
        else:
            self._keep_doubt(self._clock.now(), status.gaps, renewed=True, whole=True)

    def _doubt(self, gaps: int, complete_up_to: int) -> bool:
        """Whether names of earlier batches must be looked at again; drops the doubt that is settled [20]."""
        since, then = self.db.fact("doubt_time"), self.db.fact("doubt_gaps")
        if since is None:
            return False
        if then != gaps:
            return True
        if complete_up_to >= int(since):
            self.db.drop_doubt()
            for key in ("doubt_time", "doubt_gaps", "doubt_whole"):
                self.db.set_fact(key, None)
            self.db.flush()
        return False

    @contextmanager
    def _tree(self) -> Iterator[Tree]:
        """The master, for one batch."""
        tree = self._open_tree()
        try:
            if self.loss is not None:
                tree.sends = self.loss
            yield tree
        except OSError as exc:
            if tree.is_away(exc.errno or 0):
                raise Transient(f"master: {exc.strerror}") from exc
            raise
        finally:
            tree.close()

    def _batch(self, tree: Tree, **more: object) -> Batch:
        assert self.connection is not None
        return Batch(tree, self.connection.client, self.db, self.connection.syncer, self.ledger, self._recorder,
                     self.progress, self._check_stop, direct=self.connection.direct,
                     max_delete=self._max_delete, ignore_deletes=self._ignore_deletes, data_retries=self._data_retries,
                     stime=self.state.stime,
                     listed=self.connection.listed, clock=self._clock, **more)  # type: ignore[arg-type]

    def _changelogs(self, piece: Portion, gaps: int, doubt: bool) -> None:
        started, before = self._clock.monotonic(), replace(self.progress)
        self.state.crawl = "Changelog" if piece.last else "History"
        self.state.in_step = False
        self.db.reset()
        self._created.clear()
        with self._tree() as tree:
            for changelog in piece.changelogs:
                self._read(changelog, tree)
            if self._leftovers:
                self._take_leftovers(tree, recursive=False)
            if doubt:
                self.db.add_doubt()
            self._take_due()
            batch = self._batch(tree, created=self._created)
            batch.apply()
            tree.check_whole()
        self._keep_doubt(batch.last_resolve, gaps, renewed=doubt)
        self._commit(piece.upto)
        self._settle()
        if piece.changelogs:
            self._position = piece.changelogs[-1].ts * NS
        now = self._clock.now()
        first = piece.changelogs[0].ts * NS if piece.changelogs else now
        self.state.lag_seconds = (now - first) / NS
        _log.info("batch synced", changelogs=len(piece.changelogs), **self.progress.since(before), stime=piece.upto,
                  took=self._clock.monotonic() - started)

    def _read(self, changelog: Changelog, tree: Tree) -> None:
        """Put what a changelog says to look at into the tables. HistoryGap if it does not say all."""
        path = changelog.path
        try:
            file = open(path, "rb")  # noqa: SIM115 closed below; only opening it may find it purged
        except FileNotFoundError as exc:
            raise HistoryGap(f"{os.fsdecode(path)}: purged before it was read", changelog.ts) from exc
        with file:
            for part in read_changes(file):
                self.db.add_names(name for _, _, names in part.entries for name in names)
                self.db.add_dirs(EnumDir(gfid, None, False, False)
                                 for fop, gfid, _ in part.entries if fop == Fop.MKDIR)
                if len(self._created) < CREATED:
                    self._created.update(gfid for fop, gfid, _ in part.entries if fop == Fop.CREATE)
                self.db.add_gfids(tree.wholes(part.data), DataNeed.SEND)
                self.db.add_gfids(part.meta, DataNeed.NONE)
                for problem in part.problems:
                    if problem.kind is not ProblemKind.UNKNOWN_FOP:
                        raise HistoryGap(f"{os.fsdecode(path)}: {problem}", changelog.ts)
                    _log.error("changelog", file=os.fsdecode(path), problem=problem)

    def _take_leftovers(self, tree: Tree, recursive: bool) -> None:
        """What the agent knows of batches that were not committed [7]."""
        assert self.connection is not None
        client = self.connection.client
        for names in client.leftover_names():
            self.db.add_names(names)
        for dirs in client.leftover_dirs():
            self.db.add_dirs(EnumDir(gfid, None, recursive, False) for gfid in dirs)
        for gfids in client.leftover_gfids():
            for gfid in gfids:
                self.db.add_names(tree.names_of(gfid))

    def _take_due(self) -> None:
        """Failures whose time has come, and deletes that were approved, go with this batch."""
        self.db.add_names(self.ledger.take_approved())
        for failure in self.ledger.take_due(self._clock.now()):
            if failure.name is not None:
                self.db.add_names([failure.name])
            elif failure.gfid is not None and failure.what == "dir":
                self.db.add_dirs([EnumDir(failure.gfid, None, False, False)])
            elif failure.gfid is not None:
                self.db.add_gfids([failure.gfid], DataNeed.SEND if failure.what == "data" else DataNeed.NONE)

    def _idle(self, piece: Portion) -> bool:
        """In step: let the stime follow, so that limbo empties and a checkpoint is reached on a quiet tree [26]."""
        self.progress.phase = "waiting"
        self.state.crawl = "Changelog"
        self.state.in_step = True
        if piece.upto is None or piece.upto <= (self.state.stime or 0):
            return False
        if self.state.lag_seconds is None:
            self.state.lag_seconds = (self._clock.now() - piece.upto) / NS
        checkpoint = self._checkpoint()
        wanted = (self._limbo or (self._once is not None and self._applied_upto < self._once)
                  or (checkpoint is not None and self._applied_upto < checkpoint <= piece.upto))
        if wanted or self._clock.monotonic() - self._last_commit > IDLE_COMMIT:
            self._commit(piece.upto)
            return bool(self._limbo) and self._once is None
        return False

    def _done(self) -> bool:
        # With others it may wait for their stimes, and these may have ended.
        return (self._once is not None and self.state.in_step and self._applied_upto >= self._once
                and (self._shares or not self._limbo) and self.db.fact("doubt_time") is None)

    def _keep_doubt(self, resolved: int, gaps: int, renewed: bool, whole: bool = False) -> None:
        """Before the commit, durably: the names of this batch are in doubt [20], or the whole tree. renewed: so are
        only they, since the batch has looked at all that was."""
        earlier = None if renewed else self.db.fact("doubt_gaps")
        if whole:
            self.db.set_fact("doubt_whole", 1)
        else:
            self.db.keep_doubt()
        # A batch that had to resolve nothing must not make older doubt look settled.
        self.db.set_fact("doubt_time", max(resolved, int(self.db.fact("doubt_time") or 0)))
        self.db.set_fact("doubt_gaps", gaps if earlier is None else min(int(earlier), gaps))
        self.db.flush()

    def _commit(self, upto: int | None, walked: bool = False) -> None:
        """Durable at the slave, then the stime [25]. walked: all of the master was looked at, not only what this
        worker's brick has recorded."""
        assert self.connection is not None
        self._still_ours()
        self.progress.phase = "committing"
        stime = max(upto or 0, self.state.stime or 0) or None
        answer = self.connection.client.commit(stime, stime, self.state.epoch, clear=True, mark=str(self._mark),
                                               walked=walked)
        self._limbo = answer.left
        self._last_commit = self._clock.monotonic()
        self.state.stime = stime
        if stime is not None:
            self._clocks = 0
            self._applied_upto = stime
            self.state.last_synced = stime
            self._stime_kept(stime)
        self.progress.phase = "waiting"

    def _still_ours(self) -> None:
        """Before every commit. The agent makes certain: it refuses an older epoch."""
        if not self._lease.held():
            raise LeaseLost

    def _settle(self) -> None:
        """The batch is committed: only now may what it knew be forgotten [28]."""
        self.ledger.settle()
        self.db.reset()
        self._leftovers = False
        self._settled = True

    # the whole tree

    def _hybrid(self, gaps: int, cut: int) -> None:
        """Walk the tree; resumes an interrupted walk if everything since its cut is recorded."""
        assert self.connection is not None
        crawl = Hybrid.load(self.db)
        if (crawl is not None and crawl.gaps == gaps and (crawl.floor == 0 or not self._set_back)
                and self._history.reaches_back_to(crawl.cut)):
            self.db.resume()
            _log.info("hybrid crawl goes on", cut=crawl.cut)
        else:
            floor = self.state.stime if crawl is None else min(crawl.cut, self.state.stime or crawl.cut)
            if self._set_back:
                floor = 0
            elif floor is not None:
                floor -= SUSPECT_MARGIN + self._clocks + self._writers_apart
            elif not self.connection.hello.fresh:
                floor = 0
            crawl = Hybrid(cut, floor, gaps)
            self.db.reset()
            self.db.add_dirs([EnumDir(ROOT_GFID, None, True, False)])
            crawl.save(self.db)
            _log.info("hybrid crawl", cut=cut, floor=floor)
        self.state.crawl = "Hybrid"
        self.state.in_step = False
        started, before = self._clock.monotonic(), replace(self.progress)
        self._last_commit = started
        with self._tree() as tree:
            if self._leftovers:
                self._take_leftovers(tree, recursive=True)
            self._take_due()
            batch = self._batch(tree, recursive=True, floor=crawl.floor, checkpoint=lambda: self._interim(tree))
            batch.apply()
            if crawl.floor is not None:
                self._unmet(tree, batch)
            tree.check_whole()
        self._keep_doubt(batch.last_resolve, crawl.gaps, renewed=True, whole=True)
        self._commit(crawl.cut, walked=True)
        Hybrid.forget(self.db)
        self._settle()
        self._position = restart_position(crawl.cut)
        self._crawl_whole = self._set_back = False
        _log.info("hybrid crawl done", **self.progress.since(before), stime=crawl.cut,
                  took=self._clock.monotonic() - started)

    def _unmet(self, tree: Tree, batch: Batch) -> None:
        """Directories that moved from an unread to a read one while the walk ran are walked too [29]."""
        self._recorder.wait_complete(batch.last_resolve)
        while True:
            unmet = False
            for gfids in tree.all_dirs():
                missing = [g for g in gfids if not self.db.has_dir(g)]
                self.db.add_dirs(EnumDir(g, None, True, False) for g in missing)
                unmet = unmet or bool(missing)
            if not unmet:
                return
            batch.apply()

    def _interim(self, tree: Tree) -> None:
        """In a long walk: what is done is made durable and need not be walked again."""
        if self._clock.monotonic() - self._last_commit < INTERIM_COMMIT:
            return
        tree.check_whole()
        assert self.connection is not None
        self._still_ours()
        self.db.flush()
        self.connection.client.commit(None, None, self.state.epoch, clear=False)
        self.db.forget_done()
        self._last_commit = self._clock.monotonic()
