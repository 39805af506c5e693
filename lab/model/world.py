"""A small world for histories: a master tree, the real recorder, worker, planner and agent code, and their deaths.

Everything runs in this process and in the order that a history asks for: it polls and cuts the recorder by hand, cycles
the worker by hand, and calls the agent without a process in between. Time is the real clock plus an offset. Each cut
moves that on by some seconds, so that a changelog can be written whenever a history wants one, and so that changes
before and after a cut are further apart than any margin. The kernel's ctimes are shown by the same clock.

At every commit the world checks invariant 1: at each name, and as the content of each inode, the slave has something
that the master had there at some moment since the committed stime.
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from bisect import bisect_right
from collections.abc import Callable
from pathlib import Path

from gsync.base.clock import Clock
from gsync.base.errors import Stopped, Transient
from gsync.base.fsid import Inodes
from gsync.base.model import NS, ROOT_GFID, Gfid, Name
from gsync.changelog.reader import History
from gsync.engine.connection import Connection
from gsync.engine.doubt import Doubt
from gsync.engine.lease import LocalLease
from gsync.engine.ledger import Ledger
from gsync.engine.parts import Instructions, Limits, MasterSide, SlaveSide, Work
from gsync.engine.states import Order
from gsync.engine.worker import Worker
from gsync.engine.worklist import ChangelogDB
from gsync.master.posix import PosixTree
from gsync.master.tree import Filter, Resolved
from gsync.recorder.recorder import Recorder
from gsync.recorder.recording import Recording
from gsync.recorder.status import RecorderStatus, read_status
from gsync.state.home import Home
from lab.model.inline import InlineClient, InlineSyncer

_COARSE = 5  # CLOCK_REALTIME_COARSE, which stamps inodes


class Killed(BaseException):
    """A process dies here: no except or finally of it has a lasting effect."""


class ModelClock:
    """The real clock, some seconds ahead; further with each step."""

    STEP = 5 * NS  # more than SUSPECT_MARGIN

    def __init__(self) -> None:
        self._since, self._ahead = [0], [0]  # by the kernel's clock

    def __call__(self) -> int:
        return time.time_ns() + self._ahead[-1]

    def monotonic(self) -> float:
        return time.monotonic() + self._ahead[-1] / NS

    def step(self, ns: int = STEP) -> None:
        """Let time pass, but not before the kernel's clock has ticked, so that a ctime belongs to one side."""
        now = time.time_ns()
        while (tick := time.clock_gettime_ns(_COARSE)) < now:
            time.sleep(0.0005)
        self._since.append(tick)
        self._ahead.append(self._ahead[-1] + ns)

    def of_kernel(self, ctime: int) -> int:
        """The time that this clock showed when the kernel stamped an inode."""
        return ctime + self._ahead[bisect_right(self._since, ctime) - 1]


class ModelTree(PosixTree):
    """The master, with its ctimes by the model's clock."""

    def __init__(self, world: World) -> None:
        super().__init__(world.volume.open_root(), world.volume.tag, world.brick.namespace,
                         Filter(world.patterns) if world.patterns else None, clock=world.clock)
        self._of_kernel = world.clock.of_kernel

    def look(self, dirfd: int, dirpath: bytes, name: Name) -> Resolved:
        found = super().look(dirfd, dirpath, name)
        return found._replace(ctime=self._of_kernel(found.ctime)) if found.ctime else found


class World:
    """Paths are relative to the base folder: "m/..." is the master, "o/..." is outside, "s/..." is the slave."""

    def __init__(self, base: Path, detector: Callable[..., object]) -> None:
        self.base = base
        base.mkdir()
        self.master, self.slave, self.outside = base / "m", base / "s", base / "o"
        for folder in (self.master, self.slave, self.outside):
            folder.mkdir()
        self.clock = ModelClock()
        self._detector = detector
        self.home = Home(str(base / "home"))
        self.volume = self.home.add("v", str(self.master))
        self.brick = self.volume.brick()
        self.recorder: Recording | None = None
        self.worker: Worker | None = None
        self.connection: Connection | None = None
        self.history: list[tuple[int, dict[Name, Gfid], dict[Gfid, bytes]]] = []
        self.step: Callable[[str], None] = lambda name: None      # called at every durable step, of all processes
        self.between: Callable[[str], None] = lambda method: None  # called before every call of the agent
        self.limits = Limits()
        self.tree_class: type[ModelTree] = ModelTree
        self.adopt = False
        self.patterns: list[str] = []
        self.node = 0           # whose changelog.db is in use: several nodes take over from each other
        self.order = Order.RUN
        self.damaged = b"damaged by somebody"
        self.sent: list[Gfid] = []
        self.recorder_up()
        self.note()

    # the master's user

    def path(self, path: str) -> Path:
        return self.base / path

    def mk(self, path: str, text: str = "new") -> None:
        self.path(path).write_text(text)
        self.note()

    write = mk

    def mkdir(self, path: str) -> None:
        self.path(path).mkdir(parents=True)
        self.note()

    def mv(self, old: str, new: str) -> None:
        os.rename(self.path(old), self.path(new))
        self.note()

    def ln(self, old: str, new: str) -> None:
        os.link(self.path(old), self.path(new))
        self.note()

    def symlink(self, target: str, new: str) -> None:
        os.symlink(target, self.path(new))
        self.note()

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self.path(path), mode)
        self.note()

    def rm(self, path: str) -> None:
        if self.path(path).is_dir() and not self.path(path).is_symlink():
            shutil.rmtree(self.path(path))
        else:
            self.path(path).unlink()
        self.note()

    def note(self) -> None:
        """Remember the master's present content."""
        names, contents = self._look(self.master)
        self.history.append((self.clock(), names, contents))

    def _look(self, root: Path) -> tuple[dict[Name, Gfid], dict[Gfid, bytes]]:
        names: dict[Name, Gfid] = {}
        contents: dict[Gfid, bytes] = {}
        fd = os.open(root, os.O_RDONLY)
        inodes = Inodes(fd, self.volume.tag)
        os.close(fd)
        todo = [(ROOT_GFID, os.fsencode(root))]
        while todo:
            pargfid, path = todo.pop()
            dirfd = os.open(path, os.O_RDONLY)
            for entry in os.listdir(path):
                if (pargfid, entry) == (ROOT_GFID, b".gsync"):
                    continue  # never replicated
                seen = inodes.look(dirfd, pargfid, entry)
                assert seen is not None
                names[pargfid, entry] = seen.gfid
                if stat.S_ISDIR(seen.st.st_mode):
                    todo.append((seen.gfid, path + b"/" + entry))
                elif stat.S_ISREG(seen.st.st_mode):
                    contents[seen.gfid] = Path(os.fsdecode(path + b"/" + entry)).read_bytes()
            os.close(dirfd)
        return names, contents

    # the recorder

    def recorder_up(self) -> None:
        os.makedirs(self.brick.folder, exist_ok=True)
        time.sleep(0.008)  # the fake clock is ahead of the kernel's: rule 5's racy ctime cannot be seen here
        recorder = Recorder(self.volume, detector=self._detector,  # type: ignore[arg-type]
                            clock=Clock(self.clock, self.clock.monotonic),
                            step=lambda name: self.step("recorder " + name))
        try:
            self.recorder = recorder.start()
        except BaseException:
            recorder.close()
            raise

    def recorder_dies(self) -> None:
        """SIGKILL: anything not durable is lost, and so are the events that the kernel had queued."""
        if self.recorder is not None:
            self.recorder.close()
            self.recorder = None
        time.sleep(0.008)

    def poll(self) -> None:
        if self.recorder is not None:
            self.recorder.poll()

    def cut(self) -> None:
        if self.recorder is not None:
            self.clock.step()
            assert self.recorder.close_slice()

    # the worker

    def _worker(self) -> Worker:
        if self.worker is None:
            self.db = ChangelogDB(str(self.base / f"changelog.{self.node}.db"))
            self.ledger = Ledger(str(self.base / "ledger.db"), self.clock)
            self.worker = Worker(
                SlaveSide(self._connected),
                MasterSide(self._open_tree, History(os.fsencode(self.brick.changelogs)), _Port(self), _NoWait(),
                           "\n".join(self.patterns)),
                Work(self.db, Doubt(self.db), self.ledger), LocalLease(str(self.base / "epoch")), limits=self.limits,
                instructions=Instructions(lambda: self.order), clock=Clock(self.clock, self.clock.monotonic))
            try:
                self.worker.connect(1)
            except BaseException:
                self.worker_dies()
                raise
        return self.worker

    def _connected(self, epoch: int) -> Connection:
        self.connection = self._connect(epoch)
        return self.connection

    def _connect(self, epoch: int) -> Connection:
        client = InlineClient(self.slave, self)
        try:
            hello = client.hello(self.volume.uuid, "v", "session", epoch, adopt=self.adopt)
        except BaseException:
            client.die()
            raise
        syncer = InlineSyncer(client, self)
        return Connection(client, hello, syncer, client)  # type: ignore[arg-type]

    def _open_tree(self) -> PosixTree:
        self.tree = self.tree_class(self)
        return self.tree

    def cycle(self) -> bool:
        """One step of the worker; False if it found nothing to do. Whatever ends its connection ends the worker."""
        try:
            return self._worker().cycle()
        except (Transient, Stopped):
            self.worker_stops()
            return True
        except Killed:
            self.worker_dies()
            raise

    def worker_stops(self) -> None:
        """As after an order, or when its connection broke: its notes stay."""
        self.order = Order.RUN
        if self.worker is not None:
            self.db.flush()
        self.worker_dies()

    def worker_dies(self) -> None:
        """SIGKILL of worker and agent."""
        if self.worker is not None:
            self.worker = None
            if self.connection is not None:
                self.connection.client.die()  # type: ignore[attr-defined]
                self.connection = None
            self.db.abandon()
            self.ledger.close()

    def takes_over(self, node: int) -> None:
        """Another node's worker takes over, with a changelog.db of its own and the same recorder."""
        self.worker_dies()
        self.node = node

    def lose_history(self) -> None:
        """Delete the changelogs so far; the worker finds out when it needs them."""
        for path in Path(self.brick.changelogs).rglob("CHANGELOG.*"):
            path.unlink()

    def damage(self) -> None:
        """Somebody writes to all files of the slave, as nobody should; the worker has ended."""
        self.worker_dies()
        for folder, _, names in os.walk(self.slave):
            for file in (Path(folder) / name for name in names if ".gsync" not in folder):
                if file.is_file() and not file.is_symlink():
                    with open(file, "r+b") as opened:
                        opened.write(self.damaged)

    def forget_stime(self) -> None:
        """Do the same as `gsync delete --reset-sync-time`; the worker has ended."""
        self.worker_dies()
        client = InlineClient(self.slave, self)
        client.hello(self.volume.uuid, "v", "session", 1)
        client.forget_stime()
        client.close()

    # endings

    def quiet(self) -> None:
        """Let everything come to rest."""
        if self.recorder is None:
            self.recorder_up()
        for _ in range(60):
            self.poll()
            self.cut()
            busy = False
            while self.cycle():
                busy = True
            worker = self._worker()
            if not busy and worker.at_rest:
                return
        raise AssertionError("the worker does not come to rest")

    def check_equal(self) -> None:
        """Check that the trees are the same, and that nothing is left behind at the slave."""
        from lab.trees import compare

        assert compare(os.fsencode(self.master), os.fsencode(self.slave)) == []
        limbo = self.slave / ".gsync" / "limbo"
        assert [str(p) for folder in ("new", "old", "link") for p in (limbo / folder).iterdir()] == []
        self._worker()
        assert self.ledger.all() == []

    def check_commit(self, stime: int | None, walked: bool) -> None:
        """Check invariant 1, from the slave's index, confirmed by the disk."""
        if stime is None or self.limits.max_delete:
            return
        since = [i for i, (then, _, _) in enumerate(self.history) if then <= stime]
        past = self.history[since[-1] if since else 0:]
        assert self.connection is not None
        names, contents = self.connection.client.held()  # type: ignore[attr-defined]
        counted = {failure.name for failure in self.ledger.all()}
        for name in (set(names) | {n for _, there, _ in past for n in there}) - counted:
            allowed = {there.get(name) for _, there, _ in past}
            if name[0] != ROOT_GFID and not all(self._exists(name[0], there) for _, there, _ in past):
                allowed.add(None)  # its directory appeared or went away meanwhile
            assert names.get(name) in allowed, (
                f"stime lies: {name} is {names.get(name)!r}, the master had {allowed!r} since then")
        for gfid, content in contents.items():
            if walked and gfid not in past[-1][2]:
                continue  # changed and then removed while the walk read: the removal's record brings it
            had = {held[gfid] for _, _, held in past if gfid in held}
            if content == self.damaged and any(held.get(gfid) not in had or len(had) > 1 for _, _, held in past):
                continue  # it changed since, so its record will bring it
            assert not had or content in had, f"stime lies: content of {gfid.hex()} is {content!r}, not in {had!r}"

    @staticmethod
    def _exists(gfid: Gfid, names: dict[Name, Gfid]) -> bool:
        return gfid in names.values()

    def close(self) -> None:
        self.step = self.between = lambda name: None
        self.worker_dies()
        self.recorder_dies()


class _Port:
    """The recorder as the worker sees it, polled while the worker waits for it."""

    def __init__(self, world: World) -> None:
        self._world = world

    def status(self) -> RecorderStatus | None:
        return read_status(self._world.brick.status)

    def poke(self) -> None:
        pass

    def wait_complete(self, until_ns: int) -> None:
        if self._world.recorder is None:
            raise Transient("the recorder is down")
        self._world.poll()
        self._world.cut()


class _NoWait:
    def wait(self, seconds: float) -> None:
        pass

