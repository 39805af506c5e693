"""The parts of a worker, as plain values: an empty master, a slave that says as it is told, a clock moved by hand.

For tests of a worker's life. The World tests the changes that it replicates, and their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from gsync.base.clock import Clock
from gsync.base.errors import Stopped
from gsync.base.model import NS
from gsync.changelog.layout import Changelog
from gsync.engine.connection import Connection
from gsync.engine.doubt import Doubt
from gsync.engine.ledger import Ledger
from gsync.engine.parts import Instructions, Limits, Listeners, MasterSide, SlaveSide, Work
from gsync.engine.position import Mark
from gsync.engine.snapshot import Snapshot
from gsync.engine.states import Order
from gsync.engine.worker import Worker
from gsync.engine.worklist import ChangelogDB
from gsync.link.protocol import Caps, CommitAnswer, Hello
from gsync.recorder.status import RECORDING, RecorderStatus

START = 1_000_000 * NS
HELLO = Hello(protocol=1, version="", pid=1, boot_id="", stime=START, entry_stime=START, epoch=1, unclean=False,
              empty=False, free=0, caps=Caps(), python="", uid=0, mark=None)


class HandClock:
    """A clock that stands still except in `wait`, which a worker calls when it has nothing to do."""

    def __init__(self) -> None:
        self.ns = START
        self.waits: list[float] = []
        self.waiting: Callable[[], None] = lambda: None

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.ns, lambda: self.ns / NS, lambda: self.ns / NS)

    def wait(self, seconds: float) -> None:
        self.ns += int(seconds * NS)
        self.waits.append(seconds)
        if len(self.waits) > 10_000:
            raise AssertionError("the worker waits for nothing")
        self.waiting()


class PlainLease:
    """`others`: how often another worker is seen to hold it; `lost`: whether another worker has taken it from this
    one."""

    def __init__(self) -> None:
        self.others, self.lost, self.releases, self.epoch = 0, False, 0, 0
        self.stime_beside: int | None = None

    def take(self) -> int | None:
        if self.others:
            self.others -= 1
            return None
        self.epoch += 1
        return self.epoch

    def held(self) -> bool:
        return not self.lost

    def release(self) -> None:
        self.releases += 1

    def beside(self) -> int | None:
        return self.stime_beside

    def committed(self, stime: int) -> None:
        """Nobody asks."""


class PlainRecorder:
    """A recorder that has recorded everything up to now."""

    def __init__(self, time: HandClock) -> None:
        self._time = time
        self.said: RecorderStatus | None = RecorderStatus(RECORDING, gaps=1, unbroken_since=0, watching_since=0)

    def status(self) -> RecorderStatus | None:
        return replace(self.said, complete_up_to=self._time.ns, updated=self._time.ns) if self.said else None

    def poke(self) -> None:
        """It need not be asked."""

    def wait_complete(self, until_ns: int) -> None:
        """It is complete already."""


class PlainHistory:
    """A history that reaches back for ever, and is empty."""

    def reaches_back_to(self, time: int) -> bool:
        return True

    def check(self, stime: int) -> None:
        """Nothing is missing."""

    def since(self, start: int, end: int | None = None) -> Iterator[Changelog]:
        return iter(())


class PlainClient:
    """An agent with nothing left over. `calls`: its requests, if the caller keeps the list."""

    def __init__(self, calls: list[str]) -> None:
        self._calls = calls
        self.check: Callable[[], None] = lambda: None
        self.stime = 0

    def _nothing(self) -> Iterator[list[Any]]:
        return iter(())

    leftover_names = leftover_dirs = leftover_gfids = _nothing

    def commit(self, stime: int | None, entry_stime: int | None, epoch: int, clear: bool, mark: str | None = None,
               walked: bool = False) -> CommitAnswer:
        self._calls.append("commit")
        self.stime = stime or 0
        return CommitAnswer(stime, 0, 0)

    def meta(self, rows: list[Any]) -> list[int]:
        return [0] * len(rows)

    def close(self) -> None:
        self._calls.append("bye")


class PlainTree:
    """An empty master."""

    def __init__(self) -> None:
        self.hints: dict[bytes, object] = {}
        self.sends = self.handle_of = lambda *args: None

    def will_read(self, files: int) -> None:
        """Nothing is read."""

    def check_whole(self) -> None:
        """It is whole."""

    def is_away(self, err: int) -> bool:
        return False

    def close(self) -> None:
        """Nothing is open."""


class PlainSyncer:
    """A syncer that never has anything to send."""

    def __init__(self) -> None:
        self.flow = SimpleNamespace(bytes=0)

    def send(self, *requests: object) -> None:
        assert not requests

    def results(self, wait: bool) -> list[object]:
        return []

    def close(self) -> None:
        """There are no threads."""


@dataclass
class Plain:
    """A worker and all of its parts. `connecting` is called before each connection is made; it may raise."""

    folder: Path
    limits: Limits = field(default_factory=Limits)
    once: int | None = None
    shares: bool = False
    stands_down: bool = False
    hello: Hello = HELLO
    order: Order = Order.RUN

    def __post_init__(self) -> None:
        self.time, self.lease = HandClock(), PlainLease()
        self.recorder = PlainRecorder(self.time)
        self.calls: list[str] = []
        self.client = PlainClient(self.calls)
        self.connecting: Callable[[], None] = lambda: None
        self.shown: list[Snapshot] = []
        self.kept: list[int] = []
        self.db = ChangelogDB(str(self.folder / "changelog.db"))
        self.ledger = Ledger(str(self.folder / "ledger.db"), self.time.clock.now)
        doubt = Doubt(self.db, token=lambda: "me")
        self.hello = self.hello._replace(mark=str(Mark.of("me", "", "")))
        self.worker = Worker(
            SlaveSide(self._connect, stand_by=lambda: self.calls.append("stand by"), shares=self.shares),
            MasterSide(PlainTree, PlainHistory(), self.recorder, self.time,  # type: ignore[arg-type]
                       stands_down=self.stands_down),
            Work(self.db, doubt, self.ledger), self.lease, limits=self.limits,
            instructions=Instructions(lambda: self.order, self.once),
            listeners=Listeners(self.shown.append, self.kept.append), clock=self.time.clock)

    def _connect(self, epoch: int) -> Connection:
        self.calls.append("connect")
        self.connecting()
        return Connection(self.client, self.hello, PlainSyncer(), SimpleNamespace(close=lambda: None))  # type: ignore[arg-type]

    @property
    def states(self) -> list[str]:
        """The states shown, without repetitions."""
        shown = [snapshot.state.value for snapshot in self.shown]
        return [state for i, state in enumerate(shown) if i == 0 or state != shown[i - 1]]

    def stop(self) -> None:
        """Stop the worker as an order would, whatever it is doing."""
        raise Stopped

    def close(self) -> None:
        self.db.close()
        self.ledger.close()
