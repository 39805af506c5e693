"""The parts that let a worker take over from another node's worker, and let another node take over from it.

A session of one node needs none of this: its lease is a counter, its ledger one file, and nobody else reads its status.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict

from gsync.base.durable import replace_file
from gsync.base.model import NS
from gsync.engine.lease import Lease, LocalLease, MetaLease
from gsync.engine.ledger import Ledger, SharedLedger
from gsync.engine.position import CLOCKS_APART
from gsync.session.metavolume import MetaVolume, Mirror, node_name
from gsync.session.session import Session
from gsync.session.status import WorkerStatus
from gsync.state.home import Home

_LONGER = 0.7  # seconds of silence beyond the interval after which a slave counts as lost


class Alone:
    """For a session of one node."""

    def __init__(self, session: Session) -> None:
        self.lease: Lease = lease_of(session, None)
        self.ledger = Ledger(session.ledger_db)
        self.silence = float(session.options.slave_timeout)

    def begin(self, epoch: int) -> None:
        """The slave has accepted the epoch: former workers are fenced."""

    def rest(self) -> None:
        """Another worker has the lease."""

    def was_connected(self) -> bool:
        """Whether another node is known to have replicated to the slave."""
        return False

    def needed(self, stime: int) -> int:
        """The time from which on changelogs are needed if the slave holds everything up to stime."""
        return stime

    def committed(self, stime: int) -> None:
        """The slave holds everything up to stime."""

    def show(self, status: WorkerStatus) -> None:
        """The status of this node was written; show it to the others."""

    def close(self) -> None:
        self.ledger.close()


class OnMetaVolume(Alone):
    """For a session on the meta volume. Faulty if that is not mounted."""

    def __init__(self, session: Session, home: Home) -> None:
        volume = meta_volume(session, home)
        volume.check()
        if session.part is not None:
            with suppress(FileExistsError):
                os.mkdir(session.together, 0o700)
        interval = session.options.replica_failover_interval
        self.lease = _lease(session, volume)
        self.ledger = self._ledger = SharedLedger(session.together)
        self.silence = interval + _LONGER
        self._status = session.status_of(node_name())
        self._mirror = Mirror(self._write)

    def begin(self, epoch: int) -> None:
        self._ledger.begin(epoch)

    def rest(self) -> None:
        self._ledger.rest()

    def was_connected(self) -> bool:
        return self.lease.beside() is not None

    def needed(self, stime: int) -> int:
        return stime - CLOCKS_APART - NS

    def committed(self, stime: int) -> None:
        self.lease.committed(stime)

    def show(self, status: WorkerStatus) -> None:
        self._mirror.show(json.dumps(asdict(status)).encode("ascii"))

    def _write(self, status: bytes) -> None:
        with suppress(FileExistsError):  # only this folder: its parent exists, unless nothing is mounted
            os.mkdir(os.path.dirname(self._status), 0o700)
        replace_file(self._status, status, durable=False)

    def close(self) -> None:
        self._mirror.close()
        self.ledger.close()


def meta_volume(session: Session, home: Home) -> MetaVolume:
    """The meta volume that a session is stored on."""
    return MetaVolume(session.meta_volume_mnt, os.path.join(home.path, "meta-volume"))


def _lease(session: Session, volume: MetaVolume) -> MetaLease:
    return MetaLease(session.lease, session.options.replica_failover_interval, node_name(), volume.check, volume.cached)


def lease_of(session: Session, home: Home | None) -> Lease:
    """The lease alone, for a process that talks to the slave without being a worker. home: None for a session of one
    node."""
    if session.on_meta_volume and home is not None:
        return _lease(session, meta_volume(session, home))
    if session.part is not None:  # all copies of a brick may be on this node
        return MetaLease(session.lease, session.options.replica_failover_interval, node_name())
    return LocalLease(session.epoch)


def failover(session: Session, home: Home) -> Alone:
    """The parts for this session's worker."""
    return OnMetaVolume(session, home) if session.on_meta_volume else Alone(session)
