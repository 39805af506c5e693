"""The processes of one `gsync run`: which workers and which recorder it starts, and with which commands.

Not here: keeping them running (supervisor), and showing them (cli).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from gsync.base.durable import make_dirs
from gsync.base.errors import UsageError
from gsync.master.gluster.info import read_info
from gsync.recorder.port import port_of
from gsync.recorder.status import FAULTY
from gsync.service.child import child_argv, recorder_args
from gsync.service.kept import DONE, DONE_WITH_FAILURES, Ending, ProcessSpec, WorkerStatusFile, recorder_spec
from gsync.session.session import Session
from gsync.session.status import WorkerStatus
from gsync.state.home import Home, Volume


def worker_specs(session: Session, volume: Volume, home: Home, settings: Mapping[str, Any], until: int | None
                 ) -> list[ProcessSpec]:
    """A GlusterFS volume has one worker for each subvolume. settings: of this run, by field. until: exit once all
    changes up to this time (ns) are at the slave. UsageError if a subvolume has no brick here."""
    args = ["--settings", json.dumps(settings), *(["--once-until", str(until)] if until is not None else [])]
    return [_worker(part, home, args) for part in _parts(session, volume)]


def _worker(session: Session, home: Home, args: Sequence[str]) -> ProcessSpec:
    make_dirs(session.own)
    brick = ["--brick", str(session.part.brick)] if session.part else []
    name = f"worker of brick {session.part.brick}" if session.part else "worker"
    argv = child_argv("gsync.service.run_worker", [session.name, "--home", home.path, *brick, *args])
    return ProcessSpec(name, argv, WorkerStatusFile(session.worker_status), session.worker_lock)


def recorder_argv(session: Session, volume: Volume, home: Home) -> list[str]:
    """The command of a recorder that exits with this process."""
    return child_argv("gsync.recorder", recorder_args(volume.name, home.path, session.options))


def run_recorder(session: Session, volume: Volume, home: Home) -> ProcessSpec | None:
    """None for a GlusterFS volume, which records by itself."""
    if volume.gluster is not None:
        return None
    return recorder_spec("recorder", volume.brick(), session.options.worker_timeout,
                         recorder_argv(session, volume, home))


def _parts(session: Session, volume: Volume) -> list[Session]:
    """The session as each worker of the run has it: for each subvolume through a brick on this node, preferably one
    that records."""
    if volume.gluster is None:
        return [session]
    info = read_info(volume.gluster.name, volume.gluster.host)
    if info.lacks():
        raise UsageError(f"volume {volume.name}: its changes are not recorded; run " + "; ".join(
            f"gluster volume set {info.name} {name} {value}" for name, value in info.lacks().items()))
    chosen: dict[int, Session] = {}
    for part in session.parts(volume):
        assert part.part is not None
        status = port_of(volume, part.part.brick).status()
        if part.part.subvolume not in chosen or (status is not None and status.state != FAULTY):
            chosen[part.part.subvolume] = part
    for brick in info.bricks:
        if brick.subvolume not in chosen:
            raise UsageError(f"volume {volume.name}: no brick on this node has the data of brick {brick}; use gsync "
                             "create and gsync start, which work on all nodes")
    return list(chosen.values())


def exit_code(ending: Ending, statuses: Sequence[WorkerStatus]) -> int:
    """The run's exit code: a stopped run counts as done, with failures if there are any."""
    assert ending.code is not None  # a child of this process
    failed = any(status.failures or status.held for status in statuses)
    return DONE_WITH_FAILURES if ending.code == DONE and failed else ending.code
