"""A directory as the slave: takes it, with its lock, index and limbo, and puts it in order (see slave/target).

Standard library only, Python 3.9.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.link.protocol import stream_of
from gsync.link.survey import Survey
from gsync.slave.directory.identity import Taken, keep_apart, look, probe, take
from gsync.slave.directory.operations import DirectoryOperations
from gsync.slave.directory.recover import recover
from gsync.slave.directory.survey import survey
from gsync.slave.directory.tree import SlaveTree
from gsync.slave.fence import receivers_gone
from gsync.slave.outcome import Step
from gsync.slave.target import Asked, Opened, Whereabouts


class DirectoryTarget:
    """A Target. step: told of every point at which a crash may follow."""

    def __init__(self, root: bytes, step: Step = lambda name: None, clock: Clock = SYSTEM_CLOCK) -> None:
        self._root = root
        self._step = step
        self._clock = clock
        self._taken: Taken | None = None
        self._tree: SlaveTree | None = None
        self.operations: DirectoryOperations | None = None

    @property
    def taken(self) -> bool:
        return self._taken is not None

    @property
    def valid(self) -> bool:
        return self._taken is not None and self._taken.own.valid

    def look(self, volume: str, adopt: bool, make: bool, master: Whereabouts) -> bool:
        keep_apart(self._root, *master)
        return look(self._root, volume, adopt, make)

    def survey(self, volume: str, adopt: bool, master: Whereabouts) -> Survey:
        keep_apart(self._root, *master)
        return survey(self._root, volume, adopt, self._clock)

    def open(self, asked: Asked) -> Opened:
        keep_apart(self._root, *asked.master)
        self._taken = take(self._root, asked.volume, asked.volume_name, asked.adopt, asked.make,
                           session=asked.session, epoch=asked.epoch, ticket=asked.ticket, clock=self._clock)
        tree = self._tree = SlaveTree(self._root)
        index = tree.index
        index.stream = stream_of(asked.ticket or "0" * 8)
        index.check_epoch(asked.epoch)
        receivers_gone(lambda: tree.lock_receivers(alone=True), tree.receivers_fd, self._taken.own)
        unclean = index.fact("clean") == 0
        caps = tree.caps = probe(tree.state_fd, tree.handles.lasting)
        if "xattrs" in asked.leave:  # the slave's own ones are none of the worker's business
            tree.caps = tree.caps._replace(xattr=False, trusted=False)
        if "acls" in asked.leave:
            tree.caps = tree.caps._replace(acl=False)
        operations = DirectoryOperations(tree, asked.adopt, asked.delete_retention, self._step, self._clock)
        unclean = unclean or operations.in_doubt
        recover(tree, operations.limbo, operations.step)
        with index.transaction():
            for key, value in (("caps", json.dumps(tree.caps._asdict())), ("clean", 0), ("boot_id", asked.boot_id),
                               ("session", asked.session), (index.key("epoch"), asked.epoch)):
                index.set_fact(key, value)
        tree.unlock_receivers()
        self.operations = operations
        free = os.statvfs(tree.root_fd)
        return Opened(*index.standing(), unclean, self._taken.empty, free.f_bavail * free.f_frsize, caps)

    def check(self) -> None:
        if self._taken is not None:
            self._taken.own.check()

    def sweep(self, goes_on: Callable[[], bool]) -> bool:
        return self._tree is None or self._tree.sweep(goes_on)

    def forget_stime(self) -> None:
        assert self.operations is not None
        index = self.operations.index
        index.db.execute("PRAGMA synchronous=FULL")
        with index.transaction():
            index.forget_stimes()

    def goodbye(self) -> None:
        assert self.operations is not None
        with self.operations.index.transaction():
            self.operations.index.set_fact("clean", 1)

    def close(self) -> None:
        if self._tree is not None:
            self._tree.close()
        if self._taken is not None:
            self._taken.close()
