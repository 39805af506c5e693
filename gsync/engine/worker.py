"""One brick's worker, from claiming the lease to its end: each state of its life is a function that returns the next.

Promise: the stime moves only in `_commit`, after everything up to it is applied and durable, or in the ledger. Whatever
ends the worker, the next one starts from the slave's stime and the tables that were durable before the commit.
Not here: how to go on (position), what a batch does (batch), restarting after a crash (supervisor, monitor).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.errors import Faulty, GsyncError, SlaveError, Stopped, Transient
from gsync.base.log import get_logger
from gsync.base.model import NS
from gsync.base.retry import Schedule, Tries
from gsync.changelog.layout import HistoryGap
from gsync.engine.batching import Batching
from gsync.engine.commit import Committer
from gsync.engine.connection import Connection
from gsync.engine.display import Display
from gsync.engine.feed import Portion, restart_position
from gsync.engine.follow import Follower
from gsync.engine.lease import Lease, LeaseLost
from gsync.engine.loss import Loss
from gsync.engine.parts import Instructions, Limits, Listeners, MasterSide, SlaveSide, Work
from gsync.engine.position import Mark, Recorded, Standing, Walk, Why, choose
from gsync.engine.snapshot import Crawl, Snapshot
from gsync.engine.states import Life, Machine, Order
from gsync.engine.turn import Turn
from gsync.engine.unfinished import SUSPECT_MARGIN, UnfinishedWalk
from gsync.engine.walk import Walker
from gsync.link.protocol import Busy

_log = get_logger(__name__)

IDLE_COMMIT = 10.0       # seconds after which the stime follows the clock on a quiet tree
RETRIES = Schedule(first=1.0, longest=60.0)  # seconds before the next try to reach the slave
TRIES_ONCE = 4           # failures in a row after which a worker that is to end gives up
LOOK_AT_ORDERS = 0.5     # seconds that an idle worker may take to notice an order
LOOK_AT_LEASE = 0.25     # seconds between a passive worker's looks at the lease
LOOK_PAUSED = 0.2

_HOLDS_LEASE = {Life.CONNECT, Life.WORK, Life.HINDERED, Life.APART, Life.REJOIN}


class Worker:
    """One worker, built from parts. `run` is its whole life; the model calls `connect` and `cycle` instead."""

    def __init__(self, slave: SlaveSide, master: MasterSide, work: Work, lease: Lease, *, limits: Limits | None = None,
                 instructions: Instructions | None = None, listeners: Listeners | None = None,
                 clock: Clock = SYSTEM_CLOCK) -> None:
        limits = limits or Limits()
        self._master, self._work, self._lease = master, work, lease
        self._orders = instructions or Instructions()
        self._clock = clock
        self._began = clock.now()
        self._display = Display(self.snapshot, listeners or Listeners(), clock)
        self._machine = Machine(self._display.publish)
        self._turn = Turn(slave)
        self._standing = Standing(Mark.of(work.doubt.owner, master.patterns, master.restored))
        self._committed_at: float | None = None    # monotonic
        self._tries = Tries(RETRIES, clock.monotonic)
        self._reason = ""                          # why the next state is Faulty
        self._settled = False                      # a batch has succeeded since the last interruption
        self._code = 0
        self._committer = Committer(lease, work.db)
        batching = self._batching = Batching(master, work, limits, clock, self._display.progress, self.tend)
        self._follower = Follower(batching, master.history, work, limits, clock)
        self._walker = Walker(batching, master.recorder, work, limits, self._committer, clock)

    # its life

    def run(self) -> int:
        """Work until told to stop, or with `once` until in sync. Return the exit code. GsyncError: a person has to
        act."""
        life = Life.CLAIM
        try:
            while life is not Life.END:
                self._machine.enter(life, self._reason)
                life = self._next(life)
                if life not in _HOLDS_LEASE:
                    self._let_go()
        finally:
            self._let_go()
        return self._code

    def _step(self, life: Life) -> Callable[[], Life]:
        return {
            Life.CLAIM: self._claim, Life.WAIT: self._wait, Life.STAND_DOWN: self._stand_down,
            Life.CONNECT: self._connect, Life.REJOIN: self._connect, Life.WORK: self._work_on,
            Life.HINDERED: self._work_on, Life.APART: self._stay_apart, Life.REST: self._rest,
        }[life]

    def _next(self, life: Life) -> Life:
        try:
            return self._step(life)()
        except Stopped:
            return self._end(0)
        except LeaseLost:
            _log.warning("another worker has taken over", epoch=self._turn.epoch)
            return Life.CLAIM
        except GsyncError as exc:
            if life in _HOLDS_LEASE and not self._lease.held():
                _log.warning("another worker has taken over", epoch=self._turn.epoch, error=exc)
                return Life.CLAIM
            self._reason = str(exc)
            if not self._may_pass(exc):
                self._machine.enter(Life.REST, self._reason)
                raise
            if self._settled:
                self._tries.succeed()
            _log.warning("will connect again", error=exc, pause=self._tries.fail())
            return Life.REST

    def _may_pass(self, exc: GsyncError) -> bool:
        """Whether to connect again: the slave was reachable before, and the error may pass."""
        if self._turn.loss is None or not isinstance(exc, Transient | SlaveError):
            return False
        return self._orders.once is None or (self._tries.failed < TRIES_ONCE and isinstance(exc, Transient))

    def _let_go(self) -> None:
        """Release the lease first: a waiting worker need not wait until the connection is closed."""
        self._settled = False
        self._lease.release()
        self._turn.end()

    def _end(self, code: int) -> Life:
        self._code = code
        self._machine.enter(Life.END)
        return Life.END

    # the states

    def _claim(self) -> Life:
        """Take the lease, unless another worker holds it."""
        self._reason = self._problem()
        if not self._reason:
            epoch = self._lease.take()
            if epoch is not None:
                self._turn.epoch = epoch
                return Life.CONNECT
        self._display.goes(crawl=Crawl.NONE, in_step=False)
        return Life.STAND_DOWN if self._reason else Life.WAIT

    def _problem(self) -> str:
        """Why this worker leaves the lease to others."""
        status = self._master.recorder.status() if self._master.stands_down else None
        return status.reason if status is not None and status.is_faulty else ""

    def _wait(self) -> Life:
        """Another worker holds the lease. Keep this worker's stime current, so that its recorder need not keep
        changelogs whose changes are at the slave already."""
        self._display.progress.phase = "waiting"
        stime = self._lease.beside()
        if stime is not None and stime > (self._standing.stime or 0):
            self._standing = replace(self._standing, stime=stime)
            self._display.synced(stime)
        self._turn.slave.stand_by()
        return self._stand_down()

    def _stand_down(self) -> Life:
        self.tend()
        self._master.waiter.wait(LOOK_AT_LEASE)
        return Life.CLAIM

    def _connect(self) -> Life:
        self.connect(self._turn.epoch)
        return Life.WORK

    def _work_on(self) -> Life:
        self.tend()
        self._committer.check()
        if self._problem():
            return Life.CLAIM
        if self.cycle():
            return Life.HINDERED if self._reason else Life.WORK
        if self._is_done():
            return self._end(1 if self._work.ledger.count() or self._work.ledger.count_held() else 0)
        apart = self._turn.slave.shares and self._display.pace.in_step and not self._reason
        if apart:
            self._turn.end()
        if self._orders.once is not None:
            self._master.recorder.poke()
        self._master.waiter.wait(LOOK_AT_ORDERS)
        return Life.APART if apart else Life.HINDERED if self._reason else Life.WORK

    def _stay_apart(self) -> Life:
        """In sync and not connected, so that the workers of other subvolumes can use the slave."""
        self.tend()
        self._committer.check()
        if self._problem():
            return Life.CLAIM
        if self._has_work():
            return Life.REJOIN
        self._master.waiter.wait(LOOK_AT_ORDERS)
        return Life.APART

    def _rest(self) -> Life:
        while (left := self._tries.due - self._clock.monotonic()) > 0:
            self.tend()
            self._master.waiter.wait(min(LOOK_AT_ORDERS, left))
        self._reason = ""
        return Life.CLAIM

    # the connection

    def connect(self, epoch: int) -> None:
        """Connect and find out where the slave stands."""
        self._display.progress.phase = "connecting"
        self._turn.epoch = epoch
        connection = self._my_turn()
        hello = connection.hello
        self._work.db.set_fact("connected", 1)
        _tell(connection.loss)
        stime = hello.stime if hello.stime is not None else self._turn.slave.begin_at()
        self._standing = Standing(
            self._standing.mine, stime, Mark.parse(hello.mark), fresh=hello.fresh, limbo=1, past=self._standing.past,
            leftovers=hello.unclean or not self._turn.slave.shares or self._committed_at is None)
        _log.info("connected", stime=stime, epoch=epoch)

    def _my_turn(self) -> Connection:
        """Connect as soon as the workers of the other subvolumes leave the slave to this one."""
        while True:
            self.tend()
            try:
                return self._turn.begin()
            except Busy:
                if not self._turn.slave.shares:
                    raise
                self._machine.enter(Life.REJOIN)
                self._display.progress.phase = "waiting for another brick"
                self._committer.check()

    def tend(self) -> None:
        """Publish the state and obey orders. Every long operation or wait calls this again and again. It raises
        Stopped, LeaseLost, or the error that ended the connection. While paused it does not return, and nothing new
        begins."""
        order = self._orders.order()
        if order is Order.PAUSE:
            self._machine.pause()
            while (order := self._orders.order()) is Order.PAUSE:
                self._display.show()
                self._check_connection()
                self._master.waiter.wait(LOOK_PAUSED)
            if order is Order.RUN:
                self._machine.resume()
        self._display.show()
        if order is Order.STOP:
            raise Stopped
        self._check_connection()

    def _check_connection(self) -> None:
        if self._turn.lasts:
            self._committer.check()
            self._turn.check()

    # publishing

    def snapshot(self) -> Snapshot:
        display, turn = self._display, self._turn
        return Snapshot(self._machine.shown, self._machine.reason, display.pace, self._standing.stime,
                        display.last_synced, turn.epoch, replace(display.progress), turn.sent, turn.loss)

    @property
    def at_rest(self) -> bool:
        """Whether the slave is in sync and nothing is left to do until the master changes."""
        return self._display.pace.in_step and not self._standing.limbo and not self._work.doubt.any

    # one step

    def cycle(self) -> bool:
        """Do the next batch, walk or commit; False if there is nothing to do now."""
        self._reason = ""
        status = self._master.recorder.status()
        if status is None or status.watching_since is None:
            self._display.progress.phase = "waiting"
            return False
        if status.is_faulty:
            if self._orders.once is not None and status.updated > self._began:  # not left by an earlier recorder
                raise Faulty(status.reason)
            self._reason = status.reason
            self._machine.enter(Life.HINDERED, self._reason)
            return False
        self._machine.enter(Life.WORK)
        recorded = Recorded(status.gaps, status.watching_since, status.unbroken_since, status.complete_up_to)
        try:
            if not self._standing.following and (walk := self._choose(recorded)) is not None:
                if walk.cut > self._clock.now():
                    return False
                self._walk(walk, recorded)
                return True
            return self._follow(recorded)
        except HistoryGap as exc:
            _log.warning("history is missing, walking the tree", error=exc)
            # After the walk, reading must not begin with that changelog again, unless a clock was set back since.
            may_pass = exc.ts * NS < self._clock.now() + SUSPECT_MARGIN
            self._standing = self._standing.has_broken(Why.HISTORY, exc.ts + 1 if may_pass else 0)
            return True

    def _choose(self, recorded: Recorded) -> Walk | None:
        """Decide how to go on. Return the walk that is needed; None: from now on follow the changelogs."""
        course = choose(self._standing, recorded, self._master.history, UnfinishedWalk.load(self._work.db),
                        self._master.writers_apart)
        if isinstance(course, Walk):
            return course
        _log.info("going on", crawl=Crawl.HISTORY, stime=self._standing.stime)
        if course.doubts_all:
            self._work.doubt.keep(self._clock.now(), recorded.gaps, renewed=True, whole=True)
        self._standing = self._standing.follows(course.position)
        return None

    def _walk(self, walk: Walk, recorded: Recorded) -> None:
        self._display.goes(crawl=Crawl.HYBRID, in_step=False)
        _log.info("going on", crawl=Crawl.HYBRID, why=walk.why.value)
        started, before = self._clock.monotonic(), replace(self._display.progress)
        resolved = self._walker.walk(walk, recorded.gaps, self._turn.connection, self._turn.epoch, self._standing)
        self._work.doubt.keep(resolved, recorded.gaps, renewed=True, whole=True)
        self._commit(walk.cut, walked=True)
        UnfinishedWalk.forget(self._work.db)
        self._settle()
        self._standing = self._standing.follows(restart_position(walk.cut))
        _log.info("hybrid crawl done", **self._display.progress.since(before), stime=walk.cut,
                  took=self._clock.monotonic() - started)

    def _follow(self, recorded: Recorded) -> bool:
        again = not self._work.doubt.settled(recorded.gaps, recorded.complete_up_to or 0)
        if again and self._work.doubt.whole:
            self._standing = self._standing.has_broken(Why.DOUBT)
            return True
        # Up to the recorder's value when it settled the doubt, and no later.
        piece = self._follower.take(self._standing, recorded.complete_up_to)
        others = self._standing.leftovers or again or self._batching.is_due()
        if self._follower.gathers(piece) and not others and self._orders.once is None:
            self._display.goes(in_step=False)
            return False
        if piece.changelogs or others:
            self._apply(piece, recorded.gaps, again=again)
            return True
        return self._idle(piece)

    def _apply(self, piece: Portion, gaps: int, *, again: bool) -> None:
        started, before = self._clock.monotonic(), replace(self._display.progress)
        self._display.goes(crawl=Crawl.CHANGELOG if piece.last else Crawl.HISTORY, in_step=False)
        resolved = self._follower.apply(piece, self._turn.connection, self._standing, again=again)
        self._work.doubt.keep(resolved, gaps, renewed=again)
        self._commit(piece.upto)
        self._settle()
        now = self._clock.now()
        first = now
        if piece.changelogs:
            self._standing = replace(self._standing, position=piece.changelogs[-1].ts * NS)
            first = piece.changelogs[0].ts * NS
        self._display.goes(lag_seconds=(now - first) / NS)
        _log.info("batch synced", changelogs=len(piece.changelogs), **self._display.progress.since(before),
                  stime=piece.upto, took=self._clock.monotonic() - started)

    def _idle(self, piece: Portion) -> bool:
        """In sync: let the stime follow the clock, so that limbo empties and checkpoints are reached (rule 26)."""
        self._display.progress.phase = "waiting"
        self._display.goes(crawl=Crawl.CHANGELOG, in_step=True)
        if piece.upto is None or piece.upto <= (self._standing.stime or 0):
            return False
        if self._display.pace.lag_seconds is None:
            self._display.goes(lag_seconds=(self._clock.now() - piece.upto) / NS)
        once = self._orders.once
        if not (self._is_waited_for(piece.upto) or (once is not None and (self._standing.stime or 0) < once)):
            return False
        self._commit(piece.upto)
        return bool(self._standing.limbo) and once is None

    def _is_waited_for(self, upto: int) -> bool:
        """Whether somebody waits for a commit of this stime, though there is nothing to apply."""
        checkpoint = self._orders.checkpoint()
        idle = self._committed_at is None or self._clock.monotonic() - self._committed_at > IDLE_COMMIT
        return bool(self._standing.limbo or idle
                    or (checkpoint is not None and (self._standing.stime or 0) < checkpoint <= upto))

    def _has_work(self) -> bool:
        """Whether this worker needs a turn at the slave."""
        status = self._master.recorder.status()
        if status is None or self._standing.stime is None or self._batching.is_due():
            return True
        try:
            piece = self._follower.take(self._standing, status.complete_up_to)
        except HistoryGap:
            return True
        if piece.changelogs:
            return True
        if piece.upto is None or piece.upto <= self._standing.stime:
            return False
        return self._is_waited_for(piece.upto) or (self._orders.once is not None and piece.upto >= self._orders.once)

    def _is_done(self) -> bool:
        # Where the slave is shared, limbo may wait for the stimes of workers that have ended.
        return (self._orders.once is not None and self._display.pace.in_step
                and (self._standing.stime or 0) >= self._orders.once
                and (self._turn.slave.shares or not self._standing.limbo) and not self._work.doubt.any)

    def _commit(self, upto: int | None, *, walked: bool = False) -> None:
        """Commit. Doubt and failures are already durable; the worker forgets the batch only afterwards."""
        self._display.progress.phase = "committing"
        self._standing = self._committer.commit(self._turn.connection, self._turn.epoch, self._standing, upto,
                                                walked=walked)
        self._committed_at = self._clock.monotonic()
        if self._standing.stime is not None:
            self._display.synced(self._standing.stime)
        self._display.progress.phase = "waiting"

    def _settle(self) -> None:
        """After the commit: forget the batch (rule 28)."""
        self._work.ledger.settle()
        self._work.db.reset()
        self._standing = replace(self._standing, leftovers=False)
        self._settled = True


def _tell(loss: Loss) -> None:
    if loss.attributes:
        _log.warning("the slave cannot hold these attributes, they are left out and counted in status",
                     kinds=", ".join(loss.attributes))
    if loss.names:
        _log.warning("the slave cannot hold these, they will be failures", kinds=", ".join(loss.names))
