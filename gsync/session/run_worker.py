"""`python -m gsync.session.run_worker SESSION --home DIR`: builds one worker with its real parts and runs it."""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gsync import log
from gsync.changelog.reader import History
from gsync.changelogdb import ChangelogDB
from gsync.crawl.feed import Waker
from gsync.durable import make_dirs, replace_file
from gsync.errors import GsyncError
from gsync.ledger import Ledger
from gsync.model import NS, Attrs, Gfid
from gsync.process import Lock, start_time
from gsync.recorder.status import RecorderPort
from gsync.session.session import Session, SessionHome
from gsync.session.status import WorkerStatus
from gsync.session.worker import Connection, Worker
from gsync.slave.client import SlaveClient
from gsync.sync.auto import engine_maker
from gsync.sync.engine import Flow
from gsync.sync.syncer import Syncer
from gsync.transport.link import Link, parse_slave
from gsync.transport.local import LocalLink
from gsync.transport.ssh import SshLink, SshOptions
from gsync.volume.home import Home, Volume
from gsync.volume.posix import Filter, PosixTree

_RATE_OVER = 5.0  # seconds that the rate in status is an average of


class CurrentTree:
    """The source of the syncer threads: the tree that the batch at hand works on."""

    def __init__(self) -> None:
        self.tree: PosixTree | None = None

    def open(self, gfid: Gfid) -> int:
        assert self.tree is not None
        return self.tree.open(gfid)

    def attrs(self, fd: int) -> tuple[Attrs, list[tuple[bytes, bytes]]]:
        assert self.tree is not None
        return self.tree.attrs(fd)


class Parts:
    """What a session's worker is made of."""

    def __init__(self, session: Session, volume: Volume, home: Home, stop: threading.Event) -> None:
        self.session, self.volume, self.home = session, volume, home
        self.options = session.options
        self.brick = volume.brick()
        self.recorder = RecorderPort(self.brick, stop)
        self.filters = Filter(self.options.exclude) if self.options.exclude else None
        self.source = CurrentTree()
        self.first = False  # whether the slave was never reached before: then its folder may be missing

    def open_tree(self) -> PosixTree:
        tree = PosixTree(self.volume.open_root(), self.volume.tag, self.brick.namespace, self.filters,
                         [self.home.path])
        self.source.tree = tree
        return tree

    def next_epoch(self) -> int:
        """Larger than any worker of this session ever had, durably."""
        path = os.path.join(self.session.folder, "epoch")
        try:
            with open(path, encoding="ascii") as file:
                epoch = int(file.read()) + 1
        except FileNotFoundError:
            epoch = 1
        replace_file(os.fsencode(path), b"%d\n" % epoch)
        return epoch

    def link(self) -> Link:
        slave = parse_slave(self.session.slave)
        if slave.host is None:
            return LocalLink(slave)
        ssh = SshOptions(self.options.ssh_config or None, compression=self.options.compression)
        return SshLink(replace(slave, port=self.options.ssh_port or slave.port), ssh,
                       Path(self.session.folder, "ssh.json"))

    def connect(self) -> Connection:
        options = self.options
        link = self.link()
        try:
            client = SlaveClient(link, options.slave_timeout)
            syncer: Syncer | None = None
            try:
                epoch = self.next_epoch()
                flow = Flow(options.bandwidth_limit or None, options.sync_jobs)
                make_engine = engine_maker(options.sync_method, link, client, self.source, epoch)
                syncer = Syncer(options.sync_jobs, make_engine, flow)  # the receivers start beside the agent
                hello = client.hello(self.volume.uuid, self.volume.name, self.session.name, epoch,
                                     adopt=options.adopt, delete_retention=options.delete_retention,
                                     make=self.first)
                return Connection(client, hello, syncer, link, direct=options.sync_method != "rsync")
            except BaseException:
                if syncer is not None:
                    syncer.close()
                client.close()
                raise
        except BaseException:
            link.close()
            raise

    def keep_stime(self, stime: int) -> None:
        """Tell the recorder which changelogs this session still needs; a hint, so not fsynced."""
        path = os.path.join(self.volume.needed, self.session.name)
        try:
            with open(path + ".new", "w", encoding="ascii") as file:
                file.write(f"{stime}\n")
        except FileNotFoundError:
            make_dirs(os.fsencode(self.volume.needed))
            self.keep_stime(stime)
            return
        os.replace(path + ".new", path)


class Publisher:
    """Writes worker.status: what the worker's state and counters amount to."""

    def __init__(self, session: Session, recorder: RecorderPort, db: ChangelogDB, ledger: Ledger) -> None:
        self._path = session.worker_status
        self._recorder, self._db, self._ledger = recorder, db, ledger
        self._started = start_time(os.getpid())
        self._past: list[tuple[float, int, int]] = []

    def __call__(self, worker: Worker) -> None:
        state, progress = worker.state, worker.progress
        connection = worker.connection
        sent = connection.syncer.flow.bytes if connection else 0
        now = time.monotonic()
        self._past = [p for p in self._past if now - p[0] <= _RATE_OVER and p[2] <= sent][-50:]
        self._past.append((now, progress.files, sent))
        then = self._past[0]
        seconds = max(now - then[0], 0.001)
        rate = {"files": (progress.files - then[1]) / seconds, "bytes": (sent - then[2]) / seconds}
        recorder = self._recorder.status()
        totals = (recorder.entries, recorder.bytes) if recorder and state.crawl == "Hybrid" and recorder.entries \
            else (None, None)
        left = totals[0] - progress.names if totals[0] is not None else None
        eta = left / rate["files"] if left is not None and left > 0 and rate["files"] > 1 else None
        lag = state.lag_seconds
        if not state.in_step and state.stime is not None:
            lag = (time.time_ns() - state.stime) / NS
        WorkerStatus(
            pid=os.getpid(), started=self._started, state=state.state, reason=state.reason, crawl=state.crawl,
            stime=state.stime, entry_stime=state.stime, last_synced=state.last_synced, lag_seconds=lag,
            pending=self._db.pending(), failures=self._ledger.count(), held=self._ledger.count_held(),
            left_out=dict(worker.loss.counts) if worker.loss else {},
            lacks=[*worker.loss.attributes, *worker.loss.names] if worker.loss else [],
            files_done=progress.files, bytes_done=sent,
            files_total=totals[0], bytes_total=totals[1], rate=rate, eta_seconds=eta, phase=progress.phase,
            epoch=state.epoch, in_step=state.in_step, updated=time.time_ns()).write(self._path)


def run(session: Session, volume: Volume, home: Home, once: int | None) -> int:
    """Run the session's worker until SIGTERM or SIGINT, or until in step; the exit code."""
    gc.freeze()
    gc.set_threshold(100_000)  # requests and results come and go by the ten thousand, none of them part of a cycle
    stop = threading.Event()
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    parts = Parts(session, volume, home, stop)
    with Lock(session.worker_lock, f"a worker of session {session.name}"):
        db, ledger = ChangelogDB(session.changelog_db), Ledger(session.ledger_db)
        parts.first = db.fact("connected") is None
        waker = Waker(parts.brick.folder, parts.brick.changelogs, wake_read)
        worker = Worker(
            connect=parts.connect, open_tree=parts.open_tree, history=History(os.fsencode(parts.brick.changelogs)),
            recorder=parts.recorder, waiter=waker, db=db, ledger=ledger,
            patterns=json.dumps(parts.options.exclude), batch_size=parts.options.changelog_batch_size,
            max_delete=parts.options.max_delete, once=once,
            stopped=stop.is_set, publish=Publisher(session, parts.recorder, db, ledger),
            stime_kept=parts.keep_stime)
        try:
            return worker.run()
        finally:
            waker.close()
            db.close()
            ledger.close()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gsync worker")
    parser.add_argument("session")
    parser.add_argument("--home", required=True)
    parser.add_argument("--once-until", type=int, help="end once all that existed at this time (ns) is at the slave")
    args = parser.parse_args(argv)
    try:
        home = Home(args.home)
        session = SessionHome(home).get(args.session)
        log.setup(session.options.log_level)
        return run(session, home.get(session.volume), home, args.once_until)
    except GsyncError as exc:
        print(f"gsync: {exc}", file=sys.stderr)
        return exc.exit_code
    except Exception as exc:  # noqa: BLE001 the top: exit code 1 would mean that the work is done
        traceback.print_exc()
        print(f"gsync: internal error: {exc!r}; the lines above belong into a bug report", file=sys.stderr)
        return GsyncError.exit_code


if __name__ == "__main__":
    sys.exit(main())
