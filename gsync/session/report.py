"""The report of a session for `gsync status`, put together from the files that its processes keep.

A report is a frozen value with the fields of `gsync status --json`, in its order; times are RFC 3339 texts, as printed.
No process is asked. A file outlives its writer, so it counts while the process that it names runs, or, for a process on
another node, while it is recent.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.errors import UsageError
from gsync.base.model import NS
from gsync.base.process import Lock
from gsync.base.times import rfc3339
from gsync.engine.states import WorkerState
from gsync.recorder.port import BrickPort, port_of
from gsync.recorder.status import STOPPED, RecorderPort
from gsync.session.checkpoint import Checkpoint
from gsync.session.control import Wanted, read_wanted
from gsync.session.metavolume import node_name
from gsync.session.session import Part, Session, SessionHome, auto_volume_name
from gsync.session.status import RecorderReport, WorkerStatus
from gsync.state.gluster import GlusterInfo
from gsync.state.home import Home, Volume

UNHEARD = 10.0  # seconds without a word after which a worker of another node counts as gone


@dataclass(frozen=True)
class CheckpointReport:
    time: str | None
    reached: bool
    reached_at: str | None


@dataclass(frozen=True)
class BrickReport:
    """A worker of a session: its own status, and what is known without it. stale: it died without a word."""

    node: str
    path: str | None
    subvolume: int
    state: str
    reason: str
    crawl: str
    stime: str | None
    entry_stime: str | None
    last_synced: str | None
    lag_seconds: float | None
    pending: Mapping[str, int]
    failures: int
    held: int
    left_out: Mapping[str, int]
    checkpoint: CheckpointReport | None
    rate: Mapping[str, float]
    eta_seconds: float | None
    recorder: RecorderReport
    epoch: int
    pid: int | None
    updated: str | None
    stale: bool


@dataclass(frozen=True)
class SessionReport:
    """state: the wanted state, "?" if the session cannot be read. monitor: the pid of this node's monitor."""

    name: str
    master: str
    slave: str
    state: str
    monitor: int | None
    bricks: tuple[BrickReport, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


NOTHING_RECORDED = RecorderReport(STOPPED, "", None, None)


def master_text(volume: Volume) -> str:
    """The master as its user named it: a path for a volume made on the fly, else the volume's name."""
    return volume.path if volume.name == auto_volume_name(volume.path) else volume.name


def monitor_pid(home: Home) -> int | None:
    """The monitor of this node, None if none runs."""
    return Lock(os.path.join(home.path, "monitor.lock"), "monitor").holder()


def missing(session: Session) -> str:
    """The message if the meta volume lacks a session that should be there."""
    return f"{session.shared} does not exist; mount the meta volume"


class Reports:
    """The reports of the sessions of a state directory."""

    def __init__(self, home: Home, clock: Clock = SYSTEM_CLOCK) -> None:
        self._home = home
        self._now = clock.now

    def all(self, name: str | None = None) -> list[SessionReport]:
        """Of all sessions, or of one. A session whose settings or files are damaged does not hide the others."""
        sessions = SessionHome(self._home)
        if name is not None:
            return [self.of(sessions.get(name))]
        found = []
        for each in sessions.names():
            try:
                session = sessions.find(each)
                if session is not None:
                    found.append(self.of(session))
            except UsageError as exc:
                found.append(self._broken(each, str(exc)))
        return found

    def of(self, session: Session) -> SessionReport:
        run, monitor = Lock(session.run_lock, session.name).holder(), monitor_pid(self._home)
        wanted, problem = _wanted(session, run)
        volume: Volume | None = None
        try:
            volume = self._home.get(session.volume)
            master = master_text(volume)
        except UsageError as exc:  # removed, or damaged: the other sessions are shown all the same
            master, problem = session.volume, str(exc)
        rows = _Rows(session, volume, wanted, supervised=(monitor if run is None else run) is not None,
                     problem=problem, now=self._now())
        return SessionReport(session.name, master, session.slave, wanted.value, monitor, tuple(_settled(rows.all())))

    def seen_working(self, session: Session) -> str | None:
        """Another node whose worker of this session has not stopped, as far as this node can see."""
        return next((node for node, status in _of_other_nodes(session)
                     if _is_heard(status, self._now()) and status.state != WorkerState.STOPPED), None)

    def _broken(self, name: str, why: str) -> SessionReport:
        """Of a session that cannot be read."""
        brick = _brick(node_name(), None, WorkerStatus(), False, WorkerState.FAULTY, why, NOTHING_RECORDED, None)
        return SessionReport(name, "?", "?", "?", monitor_pid(self._home), (brick,))


def _wanted(session: Session, run: int | None) -> tuple[Wanted, str]:
    """The wanted state of the session, and why it may be wrong. run: the pid of its `gsync run`."""
    problem = ""
    try:
        wanted = read_wanted(session)
    except (UsageError, OSError) as exc:
        wanted, problem = Wanted.CREATED, str(exc)
    if not os.path.isdir(session.shared):
        return Wanted.STARTED, missing(session)  # as far as is known
    if run is not None:
        return Wanted.STARTED, problem
    if wanted is Wanted.CREATED and WorkerStatus.read(session.worker_status) is not None:
        return Wanted.STOPPED, problem  # after a `gsync run`
    return wanted, problem


class _Rows:
    """The workers of one session, as far as this node knows them. supervised: something on this node starts them.
    problem: what is wrong with the whole session."""

    def __init__(self, session: Session, volume: Volume | None, wanted: Wanted, *, supervised: bool, problem: str,
                 now: int) -> None:
        self._session, self._volume, self._wanted = session, volume, wanted
        self._supervised, self._problem, self._now = supervised, problem, now

    def all(self) -> list[BrickReport]:
        others = _of_other_nodes(self._session)
        if self._volume is not None and self._volume.gluster is not None:
            return self._of_gluster(self._volume, self._volume.gluster, dict(others))
        rows = [self._here(self._session)] if self._volume is not None or not others else []
        return rows + [self._elsewhere(self._session, node, other) for node, other in others]

    def _of_gluster(self, volume: Volume, info: GlusterInfo, others: dict[str, WorkerStatus]) -> list[BrickReport]:
        """A row for each brick, in the volume's order; those of other nodes as far as they have reported."""
        here = {part.part.brick: part for part in self._session.parts(volume) if part.part is not None}
        said = {int(name.rpartition(":")[2]): (name.rpartition(":")[0], status) for name, status in others.items()
                if name.rpartition(":")[2].isdigit()}
        rows = []
        for brick in info.bricks:
            if brick.number in here:
                row = self._here(here[brick.number])
            elif brick.number in said:
                part = Part(brick.number, brick.subvolume, several=True)
                row = self._elsewhere(replace(self._session, part=part), *said[brick.number])
            else:
                row = _brick(brick.host, None, WorkerStatus(), False, WorkerState.STOPPED,
                             f"no word from a worker on node {brick.host}", NOTHING_RECORDED,
                             checkpoint_report(self._session, None))
            rows.append(replace(row, path=brick.path, subvolume=brick.subvolume))
        return rows

    def _here(self, session: Session) -> BrickReport:
        known = WorkerStatus.read(session.worker_status)
        status = known or WorkerStatus()
        live = status.alive
        state, reason = status.state, status.reason
        if not live:
            # A note of whoever starts the workers is true while they do; of a worker that died they will know in a
            # moment.
            if not self._supervised or known is None or status.pid is not None:
                starting = self._supervised and self._wanted is Wanted.STARTED
                state = WorkerState.INITIALIZING if starting else WorkerState.STOPPED
                reason = status.reason if status.pid is None else ""
            if self._wanted in (Wanted.STARTED, Wanted.PAUSED) and not self._supervised:
                state, reason = WorkerState.STOPPED, ("no monitor is running on this node: start it with gsync "
                                                      "monitor, or systemctl start gsync-monitor")
        volume = self._volume
        port = port_of(volume, session.part.brick if session.part else 0) if volume else None
        recorder = recorder_report(port, status.stime, session.options.changelog_retention, lambda: self._now)
        return _brick(node_name(), volume.path if volume else None, status, live, state, self._problem or reason,
                      recorder, checkpoint_report(session, status.stime))

    def _elsewhere(self, session: Session, node: str, status: WorkerStatus) -> BrickReport:
        live = _is_heard(status, self._now)
        state, reason = status.state, status.reason
        if not live and status.pid is not None and state != WorkerState.STOPPED:
            state = WorkerState.STOPPED
            reason = f"no word from node {node} for {(self._now - status.updated) // NS} s"
        recorder = status.recorder if live and status.recorder else NOTHING_RECORDED
        return _brick(node, status.path or None, status, live, state, reason, recorder,
                      checkpoint_report(session, status.stime))


def _of_other_nodes(session: Session) -> list[tuple[str, WorkerStatus]]:
    if not session.on_meta_volume:
        return []
    try:
        nodes = sorted(node for node in os.listdir(session.statuses)
                       if "." not in node[-8:] and node.partition(":")[0] != node_name())
    except OSError:
        return []
    found = ((node, WorkerStatus.read(os.path.join(session.statuses, node))) for node in nodes)
    return [(node, status) for node, status in found if status is not None]


def _is_heard(status: WorkerStatus, now: int) -> bool:
    return status.pid is not None and now - status.updated < UNHEARD * NS


def _settled(bricks: list[BrickReport]) -> list[BrickReport]:
    """If several workers of a subvolume claim to be active, the one with the highest epoch is; the others are dead,
    frozen, or about to notice."""
    youngest: dict[int, BrickReport] = {}
    for brick in bricks:
        if brick.state == WorkerState.ACTIVE:
            known = youngest.get(brick.subvolume)
            if known is None or brick.epoch > known.epoch:
                youngest[brick.subvolume] = brick
    return [brick if brick.state != WorkerState.ACTIVE or brick is youngest[brick.subvolume] else replace(
        brick, state=str(WorkerState.PASSIVE), crawl="N/A", lag_seconds=None, eta_seconds=None,
        reason=f"node {youngest[brick.subvolume].node} has taken over") for brick in bricks]


def _brick(node: str, path: str | None, status: WorkerStatus, live: bool, state: str, reason: str,
           recorder: RecorderReport, checkpoint: CheckpointReport | None) -> BrickReport:
    """The state of a worker that is gone is not shown as current."""
    return BrickReport(
        node=node, path=path, subvolume=0, state=str(state), reason=reason,
        crawl=status.crawl if live else "N/A",
        stime=rfc3339(status.stime), entry_stime=rfc3339(status.entry_stime), last_synced=rfc3339(status.last_synced),
        lag_seconds=status.lag_seconds if live else None, pending=status.pending, failures=status.failures,
        held=status.held, left_out=status.left_out, checkpoint=checkpoint,
        rate=status.rate if live else {"files": 0.0, "bytes": 0.0}, eta_seconds=status.eta_seconds if live else None,
        recorder=recorder, epoch=status.epoch, pid=status.pid if live else None,
        updated=rfc3339(status.updated or None), stale=not live and status.pid is not None)


def checkpoint_report(session: Session, stime: int | None) -> CheckpointReport | None:
    """None if none is set."""
    try:
        progress = Checkpoint(session.checkpoint, session.checkpoint_reached).progress(stime)
    except (UsageError, OSError):
        return None
    if progress is None:
        return None
    return CheckpointReport(rfc3339(progress.time), progress.reached, rfc3339(progress.reached_at))


def recorder_report(port: RecorderPort | BrickPort | None, stime: int | None, keep: float | None,
                    now: Callable[[], int] = time.time_ns) -> RecorderReport:
    """The recorder of a brick. runway_seconds: how long the changelogs since stime stay within its retention of `keep`
    seconds; those that a session still needs are kept longer, but take space. GlusterFS keeps its own for ever."""
    status = port.status() if port else None
    running = port is not None and port.holder() is not None
    last = status.last_changelog if status else None
    runway = None if stime is None or keep is None or isinstance(port, BrickPort) else \
        max(0.0, keep - (now() - stime) / NS)
    return RecorderReport(status.state if running and status else STOPPED,
                          status.reason if running and status else "",
                          rfc3339(None if last is None else last * NS), runway)
