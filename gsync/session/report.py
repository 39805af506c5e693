"""What `gsync status` tells of a session, put together from the files that its processes keep (design/cli.md)."""

from __future__ import annotations

import socket
import time
from typing import Any

from gsync.errors import UsageError
from gsync.model import NS
from gsync.process import Lock
from gsync.recorder.recorder import KEEP_SECONDS
from gsync.recorder.status import STOPPED, RecorderPort
from gsync.session.session import Session, auto_volume_name
from gsync.session.status import WorkerStatus, rfc3339
from gsync.volume.home import Home, Volume


def master_text(volume: Volume) -> str:
    """The master as its user named it: the path of a volume made on the fly, else the volume's name."""
    return volume.path if volume.name == auto_volume_name(volume.path) else volume.name


def session_report(session: Session, home: Home) -> dict[str, Any]:
    """The session's part of `gsync status --json`."""
    status = WorkerStatus.read(session.worker_status)
    running = Lock(session.run_lock, session.name).holder() is not None
    state = "Started" if running else "Stopped" if status is not None else "Created"
    try:
        volume = home.get(session.volume)
        master, brick = master_text(volume), _brick(volume, status or WorkerStatus(), running)
    except UsageError as exc:  # removed, or damaged: the other sessions are shown all the same
        master, brick = session.volume, {**_brick(None, status or WorkerStatus(), running), "reason": str(exc)}
    return {"name": session.name, "master": master, "slave": session.slave, "state": state, "bricks": [brick]}


def _brick(volume: Volume | None, status: WorkerStatus, running: bool) -> dict[str, Any]:
    # What was true of a worker that is gone (unless the supervisor noted it since) is not true any more.
    live = running and status.alive
    noted = running and status.pid is None
    return {
        "node": socket.gethostname(),
        "path": volume and volume.path,
        "state": status.state if live or noted else "Initializing" if running else "Stopped",
        "reason": status.reason if live or noted or not running else "",
        "crawl": status.crawl if live else "N/A",
        "stime": rfc3339(status.stime),
        "entry_stime": rfc3339(status.entry_stime),
        "last_synced": rfc3339(status.last_synced),
        "lag_seconds": status.lag_seconds if live else None,
        "pending": status.pending,
        "failures": status.failures,
        "held": status.held,
        "left_out": status.left_out,
        "checkpoint": None,
        "rate": status.rate if live else {"files": 0.0, "bytes": 0.0},
        "eta_seconds": status.eta_seconds if live else None,
        "recorder": recorder_report(volume, status.stime),
        "epoch": status.epoch,
        "pid": status.pid if live else None,
    }


def recorder_report(volume: Volume | None, stime: int | None) -> dict[str, Any]:
    """The recorder of a brick. runway_seconds: how long the changelogs since stime stay within its retention."""
    port = RecorderPort(volume.brick()) if volume else None
    status = port.status() if port else None
    running = port is not None and port.holder() is not None
    last = status.last_changelog if status else None
    return {
        "state": status.state if running and status else STOPPED,
        "reason": status.reason if running and status else "",
        "last_changelog": rfc3339(None if last is None else last * NS),
        "runway_seconds": None if stime is None else max(0.0, KEEP_SECONDS - (time.time_ns() - stime) / NS),
    }
