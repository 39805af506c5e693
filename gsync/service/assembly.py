"""Builds one worker with its real parts and runs it."""

from __future__ import annotations

import gc
import json
import os
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from functools import partial

from gsync.base import log
from gsync.base.durable import make_dirs, replace_file
from gsync.base.errors import LockedError, Transient
from gsync.base.log import get_logger
from gsync.base.model import Gfid
from gsync.base.process import Lock
from gsync.changelog.reader import History
from gsync.engine.connection import Connection
from gsync.engine.doubt import Doubt
from gsync.engine.enumeration import VOLUME_LISTED
from gsync.engine.feed import Waker
from gsync.engine.parts import Instructions, Limits, Listeners, MasterSide, SlaveSide, Work
from gsync.engine.states import Order
from gsync.engine.worker import Worker
from gsync.engine.worklist import PAGE, ChangelogDB
from gsync.link.client import SlaveClient
from gsync.link.link import Link
from gsync.master.gluster import stime as gstime
from gsync.master.gluster.info import WRITERS_APART
from gsync.master.gluster.mount import VolumeMount
from gsync.master.gluster.ownbrick import OwnBrick
from gsync.master.gluster.record import BrickHistory
from gsync.master.gluster.tree import GlusterTree
from gsync.master.posix import PosixTree
from gsync.master.tree import Filter, Tree
from gsync.recorder.port import BrickPort, port_of
from gsync.service.failover import Alone, failover
from gsync.service.spare import Spare, link_to
from gsync.service.sshoptions import left_alone, rsync_settings
from gsync.service.status_writer import StatusWriter
from gsync.session.checkpoint import Checkpoint
from gsync.session.control import SessionOrders
from gsync.session.session import Session
from gsync.state.home import Home, Volume
from gsync.sync.auto import engine_maker
from gsync.sync.engine import Flow
from gsync.sync.syncer import SHARE, VOLUME_SHARE, Syncer
from gsync.sync.timetable import Timetable

_log = get_logger(__name__)

class CurrentTree:
    """The master's tree as the syncer threads see it: the tree of the current batch."""

    def __init__(self) -> None:
        self.tree: Tree | None = None

    def open(self, gfid: Gfid) -> tuple[int, os.stat_result]:
        assert self.tree is not None
        return self.tree.open(gfid)

    def fstat(self, fd: int) -> os.stat_result:
        assert self.tree is not None
        return self.tree.fstat(fd)

    def xattrs(self, gfid: Gfid, fd: int, st: os.stat_result) -> list[tuple[bytes, bytes]]:
        assert self.tree is not None
        return self.tree.xattrs(gfid, fd, st)

    def changed(self, fd: int, st: os.stat_result) -> bool:
        assert self.tree is not None
        return self.tree.changed(fd, st)


class Parts:
    """The parts of a session's worker, and its access to both ends."""

    def __init__(self, session: Session, volume: Volume, home: Home, stop: threading.Event,
                 orders: Callable[[], Order], others: Alone | None = None, spare: Spare | None = None) -> None:
        self.session, self.volume, self.home = session, volume, home
        self._others = others  # a worker passes this; other users of these parts do not
        self.options = session.options
        number = session.part.brick if session.part else 0
        self.brick = volume.brick(number)
        self.recorder = port_of(volume, number, stop)
        self._mount: VolumeMount | None = None
        self._bulk: VolumeMount | None = None
        self._own_brick: OwnBrick | None = None
        self._gsyncd = session.gsyncd_slave()
        self._slave_volume = self._gsyncd or ""  # the id of a slave that is a volume; a passive worker may not know it
        if volume.gluster is not None:
            self._mount = VolumeMount(volume.gluster, os.path.join(session.own, "mount"))
            self._bulk = VolumeMount(volume.gluster, os.path.join(session.own, "mount-bulk"),
                                  contents=not volume.gluster.sharded)
            self._own_brick = OwnBrick(os.fsencode(self.brick.root), volume.gluster, number)
        self.filters = Filter(self.options.exclude) if self.options.exclude else None
        self.source = CurrentTree()
        self._orders = orders
        self.link = partial(link_to, session)
        self._spare = spare or Spare(self.link)
        self._stood_by = False
        self.first = False  # whether the slave was never reached before: then its folder may be missing

    @property
    def others(self) -> Alone:
        assert self._others is not None
        return self._others

    @property
    def history(self) -> History:
        folder = os.fsencode(self.brick.changelogs)
        return BrickHistory(folder, self.recorder.record) if isinstance(self.recorder, BrickPort) else History(folder)

    def begin_at(self) -> int | None:
        """The time up to which GlusterFS's own geo-replication replicated this brick's changes to the slave; None if it
        never did."""
        if self._gsyncd is None:
            return None
        found = gstime.standing(self.brick.root, self.volume.uuid, self._gsyncd)
        return found.stime if found else None

    def open_tree(self) -> Tree:
        self.source.tree = tree = self._open_tree()
        return tree

    def _open_tree(self) -> Tree:
        if self._mount and self._bulk and self._own_brick and self.volume.gluster:
            try:
                return GlusterTree(self._mount.open(), self.volume.gluster, self._own_brick, self._bulk, self.filters,
                                   xattrs=self.options.sync_xattrs, acls=self.options.sync_acls)
            except OSError as exc:  # it is just exiting
                raise Transient(f"master: the volume is unreachable through its mount: {exc.strerror}") from exc
        return PosixTree(self.volume.open_root(), self.volume.tag, self.brick.namespace, self.filters,
                         [self.home.path], xattrs=self.options.sync_xattrs, acls=self.options.sync_acls)

    def stand_by(self) -> None:
        """Have the spare link ready for a takeover."""
        self.others.rest()
        self._stood_by = True
        self._spare.prepare()

    def close(self) -> None:
        self._spare.close()
        if self._mount is not None:
            self._mount.close()

    def connect(self, epoch: int) -> Connection:
        options = self.options
        link = self._spare.take(wait=not self._stood_by) or self.link()
        try:
            client = self.client(link, self.others.silence)
            syncer: Syncer | None = None
            try:
                flow = Flow(Timetable.parse(options.bandwidth_limit), options.sync_jobs, paused=self.paused)
                make_engine = engine_maker(options.sync_method, link, client, self.source, epoch,
                                           rsync_settings(options))
                syncer = Syncer(options.sync_jobs, make_engine, flow,  # the receivers start while the agent does
                                VOLUME_SHARE if link.slave.is_volume else SHARE)
                hello = client.hello(self.volume.uuid, self.volume.name, self.session.name, epoch,
                                     adopt=options.adopt, delete_retention=options.delete_retention,
                                     make=self.first and not self.others.was_connected(), leave=left_alone(options))
                self._slave_volume = hello.volume_id
                self.others.begin(epoch)
                return Connection(client, hello, syncer, link,
                                  direct=options.sync_method != "rsync" and hello.caps.case_sensitive,
                                  listed=VOLUME_LISTED if link.slave.is_volume else PAGE)
            except BaseException:
                if syncer is not None:
                    syncer.close()
                client.close()
                raise
        except BaseException:
            link.close()
            raise

    def client(self, link: Link, silence: float | None = None) -> SlaveClient:
        return SlaveClient(link, self.options.slave_timeout, silence=silence,
                           master=self.volume.path if self.volume.gluster is None else None, stream=self.stream)

    @property
    def stream(self) -> str:
        """The name by which the slave knows this worker's subvolume, if there are or were several."""
        part, info = self.session.part, self.volume.gluster
        if part is None or info is None or not (part.several or info.revision):
            return ""
        return f"{part.subvolume}of{info.subvolumes}" + (f"x{info.revision}" if info.revision else "")

    def paused(self) -> bool:
        return self._orders() is Order.PAUSE

    def keep_stime(self, stime: int) -> None:
        """Tell the recorder which changelogs this session still needs. Only a hint, so it is not fsynced."""
        self.others.committed(stime)
        if self.volume.gluster is not None:  # GlusterFS keeps its changelogs itself
            if self._slave_volume:
                with suppress(OSError):  # gsync itself does not need it
                    gstime.note(self.brick.root, self.volume.uuid, self._slave_volume, stime)
            return
        path = os.path.join(self.volume.needed, self.session.name)
        try:
            replace_file(path, b"%d\n" % self.others.needed(stime), durable=False)
        except FileNotFoundError:
            make_dirs(self.volume.needed)
            self.keep_stime(stime)


def run(session: Session, volume: Volume, home: Home, once: int | None, by_files: SessionOrders | None,
        spare: Spare) -> int:
    """Run the session's worker until it is told to stop, or until the slave is in sync; return the exit code.

    by_files: a monitor started it, so it obeys the session's files and owns its log. spare: a link that may already be
    in the making; the session's own directory exists.
    """
    gc.freeze()
    gc.set_threshold(100_000)  # requests and results come and go by the ten thousand, and none is part of a cycle
    stop, wake_fd = _stop_by_signal()

    def orders() -> Order:
        if stop.is_set():
            return Order.STOP
        return Order.RUN if by_files is None else by_files()

    if not session.on_meta_volume:
        make_dirs(session.together)
    if volume.gluster is None:
        make_dirs(volume.brick().folder)
    with Lock(session.worker_lock, f"a worker of session {session.title}"), ExitStack() as open_parts:
        if by_files is not None:
            running = Lock(session.run_lock, "").holder()
            if running is not None:
                raise LockedError(f"session {session.name} is run by `gsync run`, pid {running}")
            log.setup(session.options.log_level, session.log, owner=True)
        others = open_parts.enter_context(closing(failover(session, home)))
        db = open_parts.enter_context(closing(ChangelogDB(session.changelog_db)))
        parts = Parts(session, volume, home, stop, orders, others, spare)
        parts.first = db.fact("connected") is None
        waker = open_parts.enter_context(closing(Waker(
            parts.brick.changelogs if volume.gluster else parts.brick.folder, parts.brick.changelogs, wake_fd)))
        open_parts.enter_context(closing(parts))
        worker = _worker(parts, db, waker, orders, once)
        parts.recorder.meanwhile = worker.tend
        return worker.run()


def _stop_by_signal() -> tuple[threading.Event, int]:
    """An event that SIGTERM and SIGINT set, and a descriptor that becomes readable then."""
    stop = threading.Event()
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    return stop, wake_read


def _worker(parts: Parts, db: ChangelogDB, waker: Waker, orders: Callable[[], Order], once: int | None) -> Worker:
    session, volume, options, others = parts.session, parts.volume, parts.options, parts.others
    return Worker(
        SlaveSide(parts.connect, parts.begin_at, parts.stand_by, shares=bool(parts.stream)),
        MasterSide(parts.open_tree, parts.history, parts.recorder, waker, json.dumps(options.exclude),
                   volume.gluster.restored if volume.gluster else "", WRITERS_APART if volume.gluster else 0,
                   stands_down=session.part is not None),
        Work(db, Doubt(db), others.ledger), others.lease,
        limits=Limits(options.changelog_batch_size, options.max_delete, options.ignore_deletes,
                      options.max_sync_retries, options.change_interval),
        instructions=Instructions(orders, once, Checkpoint(session.checkpoint, session.checkpoint_reached).wanted),
        listeners=Listeners(StatusWriter(session, volume, parts.recorder, db, others), parts.keep_stime))
