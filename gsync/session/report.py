"""What `gsync status` tells of a session, put together from the files that its processes keep.

Nobody is asked: a file outlives its writer, so what it says counts while the process that it names runs, or, if that
is on another node, while the file is not old.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

from gsync.base.errors import UsageError
from gsync.base.model import NS
from gsync.base.process import Lock
from gsync.engine.states import WorkerState
from gsync.master.gluster.info import GlusterInfo
from gsync.recorder.port import BrickPort, port_of
from gsync.recorder.status import STOPPED, RecorderPort
from gsync.session.checkpoint import Checkpoint
from gsync.session.control import Wanted, read_wanted
from gsync.session.metavolume import node_name
from gsync.session.session import Part, Session, SessionHome, auto_volume_name
from gsync.session.status import WorkerStatus, rfc3339
from gsync.state.home import Home, Volume

UNHEARD = 10.0  # seconds without a word after which a worker of another node counts as gone


def master_text(volume: Volume) -> str:
    """The master as its user named it: the path of a volume made on the fly, else the volume's name."""
    return volume.path if volume.name == auto_volume_name(volume.path) else volume.name


def monitor_pid(home: Home) -> int | None:
    """The monitor of this node, None if none runs."""
    return Lock(os.path.join(home.path, "monitor.lock"), "monitor").holder()


def missing(session: Session) -> str:
    """What to say when the meta volume does not hold the session that is said to lie there."""
    return f"{session.shared} is not there: mount the meta volume"


def session_report(session: Session, home: Home) -> dict[str, Any]:
    """The session's part of `gsync status --json`."""
    status = WorkerStatus.read(session.worker_status)
    run, monitor = Lock(session.run_lock, session.name).holder(), monitor_pid(home)
    problem = ""
    try:
        wanted = read_wanted(session)
    except (UsageError, OSError) as exc:
        wanted, problem = Wanted.CREATED, str(exc)
    if not os.path.isdir(session.shared):
        wanted, problem = Wanted.STARTED, missing(session)  # as far as is known
    elif run is not None:
        wanted = Wanted.STARTED
    elif wanted is Wanted.CREATED and status is not None:
        wanted = Wanted.STOPPED  # after a `gsync run`
    volume: Volume | None = None
    try:
        volume = home.get(session.volume)
        master = master_text(volume)
    except UsageError as exc:  # removed, or damaged: the other sessions are shown all the same
        master, problem = session.volume, str(exc)
    others = _of_other_nodes(session)
    bricks = []
    supervised = (monitor if run is None else run) is not None
    if volume is not None and volume.gluster is not None:
        bricks += _of_gluster(session, volume, volume.gluster, wanted, dict(others), supervised=supervised,
                              problem=problem)
    else:
        if volume is not None or not others:
            bricks.append(_here(session, volume, wanted, supervised=supervised, problem=problem))
        bricks += [_elsewhere(session, node, other) for node, other in others]
    for number in {brick["subvolume"] for brick in bricks}:
        _settle([brick for brick in bricks if brick["subvolume"] == number])
    return {"name": session.name, "master": master, "slave": session.slave, "state": wanted.value, "monitor": monitor,
            "bricks": bricks}


def _of_gluster(session: Session, volume: Volume, info: GlusterInfo, wanted: Wanted, others: dict[str, WorkerStatus], *,
                supervised: bool, problem: str) -> list[dict[str, Any]]:
    """A row for each brick, in the volume's order; of other nodes as far as they have said something."""
    here = {part.part.brick: part for part in session.parts(volume) if part.part is not None}
    said = {int(name.rpartition(":")[2]): (name.rpartition(":")[0], status) for name, status in others.items()
            if name.rpartition(":")[2].isdigit()}
    rows = []
    for brick in info.bricks:
        if brick.number in here:
            row = _here(here[brick.number], volume, wanted, supervised=supervised, problem=problem)
        elif brick.number in said:
            row = _elsewhere(replace(session, part=Part(brick.number, brick.subvolume, several=True)),
                             *said[brick.number])
        else:
            row = _brick(session, brick.host, brick.path, WorkerStatus(), False, WorkerState.STOPPED,
                         f"nothing was heard of a worker on node {brick.host}", recorder_report(None, None, None))
        rows.append({**row, "path": brick.path, "subvolume": brick.subvolume})
    return rows


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


def _is_heard(status: WorkerStatus) -> bool:
    return status.pid is not None and time.time_ns() - status.updated < UNHEARD * NS


def seen_working(session: Session) -> str | None:
    """Another node whose worker of this session has not ended, as far as is seen from here."""
    return next((node for node, status in _of_other_nodes(session)
                 if _is_heard(status) and status.state != WorkerState.STOPPED), None)


def _settle(bricks: list[dict[str, Any]]) -> None:
    """Of several that say that they are the active one, it is the one with the youngest epoch; the others are dead,
    frozen, or about to notice."""
    active = [brick for brick in bricks if brick["state"] == WorkerState.ACTIVE]
    youngest = max(active, key=lambda brick: brick["epoch"], default=None)
    for brick in active:
        if brick is not youngest and youngest is not None:
            brick.update(state=str(WorkerState.PASSIVE), crawl="N/A", lag_seconds=None, eta_seconds=None,
                         reason=f"node {youngest['node']} has taken over")


def _here(session: Session, volume: Volume | None, wanted: Wanted, *, supervised: bool, problem: str
          ) -> dict[str, Any]:
    known = WorkerStatus.read(session.worker_status)
    status = known or WorkerStatus()
    live = status.alive
    state, reason = status.state, status.reason
    if not live:
        # A note of whoever starts the workers is true while they do; of a worker that died they will know in a moment.
        if not supervised or known is None or status.pid is not None:
            state = WorkerState.INITIALIZING if supervised and wanted is Wanted.STARTED else WorkerState.STOPPED
            reason = status.reason if status.pid is None else ""
        if wanted in (Wanted.STARTED, Wanted.PAUSED) and not supervised:
            state, reason = WorkerState.STOPPED, ("no monitor runs on this node: start it with gsync monitor, or "
                                                  "systemctl start gsync-monitor")
    port = port_of(volume, session.part.brick if session.part else 0) if volume else None
    recorder = recorder_report(port, status.stime, session.options.changelog_retention)
    return _brick(session, node_name(), volume.path if volume else None, status, live, state, problem or reason,
                  recorder)


def _elsewhere(session: Session, node: str, status: WorkerStatus) -> dict[str, Any]:
    live = _is_heard(status)
    state, reason = status.state, status.reason
    if not live and status.pid is not None and state != WorkerState.STOPPED:
        state = WorkerState.STOPPED
        reason = f"nothing was heard of node {node} for {(time.time_ns() - status.updated) // NS} s"
    recorder = status.recorder if live and status.recorder else recorder_report(None, None, None)
    return _brick(session, node, status.path or None, status, live, state, reason, recorder)


def _brick(session: Session | None, node: str, path: str | None, status: WorkerStatus, live: bool, state: str,
           reason: str, recorder: dict[str, Any]) -> dict[str, Any]:
    """What was true of a worker that is gone is not shown as true."""
    return {
        "node": node,
        "path": path,
        "subvolume": 0,
        "state": str(state),
        "reason": reason,
        "crawl": status.crawl if live else "N/A",
        "stime": rfc3339(status.stime),
        "entry_stime": rfc3339(status.entry_stime),
        "last_synced": rfc3339(status.last_synced),
        "lag_seconds": status.lag_seconds if live else None,
        "pending": status.pending,
        "failures": status.failures,
        "held": status.held,
        "left_out": status.left_out,
        "checkpoint": checkpoint_report(session, status.stime) if session else None,
        "rate": status.rate if live else {"files": 0.0, "bytes": 0.0},
        "eta_seconds": status.eta_seconds if live else None,
        "recorder": recorder,
        "epoch": status.epoch,
        "pid": status.pid if live else None,
        "updated": rfc3339(status.updated or None),
        "stale": not live and status.pid is not None,
    }


def checkpoint_report(session: Session, stime: int | None) -> dict[str, Any] | None:
    """None if none is set."""
    try:
        standing = Checkpoint(session.checkpoint, session.checkpoint_reached).standing(stime)
    except (UsageError, OSError):
        return None
    if standing is None:
        return None
    return {"time": rfc3339(standing.time), "reached": standing.reached, "reached_at": rfc3339(standing.reached_at)}


def recorder_report(port: RecorderPort | BrickPort | None, stime: int | None, keep: float | None) -> dict[str, Any]:
    """The recorder of a brick. runway_seconds: how long the changelogs since stime stay within its retention of `keep`
    seconds; what a session still needs is kept longer, but takes room. GlusterFS keeps its own for ever."""
    status = port.status() if port else None
    running = port is not None and port.holder() is not None
    last = status.last_changelog if status else None
    runway = None if stime is None or keep is None or isinstance(port, BrickPort) else \
        max(0.0, keep - (time.time_ns() - stime) / NS)
    return {
        "state": status.state if running and status else STOPPED,
        "reason": status.reason if running and status else "",
        "last_changelog": rfc3339(None if last is None else last * NS),
        "runway_seconds": runway,
    }


def reports(home: Home, name: str | None = None) -> list[dict[str, Any]]:
    """Of all sessions, or of one. A session whose settings or files are damaged does not hide the others."""
    sessions = SessionHome(home)
    if name is not None:
        return [session_report(sessions.get(name), home)]
    found = []
    for each in sessions.names():
        try:
            session = sessions.find(each)
            if session is not None:
                found.append(session_report(session, home))
        except UsageError as exc:
            found.append(broken_report(each, str(exc), home))
    return found


def broken_report(name: str, why: str, home: Home) -> dict[str, Any]:
    """Of a session that cannot be read."""
    brick = _brick(None, node_name(), None, WorkerStatus(), False, WorkerState.FAULTY, why,
                   recorder_report(None, None, None))
    return {"name": name, "master": "?", "slave": "?", "state": "?", "monitor": monitor_pid(home), "bricks": [brick]}
