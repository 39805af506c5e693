"""Plans what a run would do now, by comparing the master's tree with the slave's index. Nothing is changed.

The plan has sends, renames and deletes. No file's content is read, so a file whose inode changed since the stime counts
as updated.
"""

from __future__ import annotations

import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.errors import Faulty, LockedError, Transient
from gsync.base.model import NS, ROOT_GFID, Attrs, Gfid
from gsync.engine.states import Order
from gsync.master.tree import DirReader, Resolved, Tree, Verdict
from gsync.recorder.status import FAULTY, RecorderPort
from gsync.service.assembly import Parts
from gsync.service.failover import lease_of
from gsync.service.kept import Attached
from gsync.session.session import Session
from gsync.session.status import WorkerStatus
from gsync.state.home import Home, Volume

Names = list[tuple[bytes, Gfid | None]]

_PAGE = 2000


class SlaveNames(Protocol):
    """The facts about the slave that a plan needs."""

    def known(self, gfids: Sequence[Gfid]) -> list[bool]: ...
    def list(self, directory: Gfid, after: bytes | None = None) -> tuple[Names, bytes | None]: ...


class EmptySlave:
    """A slave that has nothing of the volume yet."""

    def known(self, gfids: Sequence[Gfid]) -> list[bool]:
        return [False] * len(gfids)

    def list(self, directory: Gfid, after: bytes | None = None) -> tuple[Names, bytes | None]:
        return [], None


@dataclass(frozen=True)
class Planned:
    """One line of a plan. action: send, update, make (no data to send), rename, delete, unreadable.

    old: the former path of a rename; None otherwise, or if the directory that held it is deleted.
    """

    action: str
    path: bytes
    size: int = 0
    old: bytes | None = None


class _Moves:
    """Names that inodes of the slave get and lose: a rename is one of each. Memory grows with the number of moves, not
    with the tree."""

    def __init__(self) -> None:
        self._new: dict[Gfid, list[bytes]] = {}
        self._old: dict[Gfid, list[bytes]] = {}
        self._linked: set[Gfid] = set()

    def gets(self, gfid: Gfid, path: bytes, linked: bool) -> None:
        self._new.setdefault(gfid, []).append(path)
        if linked:
            self._linked.add(gfid)

    def loses(self, gfid: Gfid, path: bytes) -> None:
        self._old.setdefault(gfid, []).append(path)

    def lines(self) -> Iterator[Planned]:
        for gfid, paths in self._new.items():
            old = self._old.get(gfid, [])
            for path in paths:
                if old:
                    yield Planned("rename", path, old=old.pop())
                else:
                    yield Planned("make" if gfid in self._linked else "rename", path)
        for paths in self._old.values():
            for path in paths:
                yield Planned("delete", path)


def plan(tree: Tree, slave: SlaveNames, stime: int | None) -> Iterator[Planned]:
    """The plan, directory by directory; renames come last."""
    floor = (stime or 0) - 2 * NS
    moves = _Moves()
    todo: list[tuple[Gfid, bytes]] = [(ROOT_GFID, b"")]
    while todo:
        gfid, path = todo.pop()
        reader = tree.read_dir(gfid)
        if not isinstance(reader, DirReader):
            if reader.verdict is Verdict.ERROR:
                yield Planned("unreadable", path)
            continue
        there = dict(_slave_names(slave, gfid))
        try:
            while (page := reader.page(_PAGE)):
                yield from _page(page, path, tree, there, slave, floor, todo, moves)
                if len(page) < _PAGE:
                    break
        finally:
            reader.close()
        for bname, lost in there.items():
            if lost is not None and tree.names_of(lost):
                moves.loses(lost, path + bname)
            else:
                yield Planned("delete", path + bname)
    yield from moves.lines()


def _page(page: list[Resolved], path: bytes, tree: Tree, there: dict[bytes, Gfid | None], slave: SlaveNames, floor: int,
          todo: list[tuple[Gfid, bytes]], moves: _Moves) -> Iterator[Planned]:
    present = [e for e in page if e.verdict is Verdict.PRESENT]
    for other in page:
        if other.verdict is not Verdict.PRESENT:
            there.pop(other.name[1], None)
            if other.verdict is Verdict.ERROR:
                yield Planned("unreadable", path + other.name[1])
    known = slave.known([e.gfid for e in present])
    for entry, is_known in zip(present, known, strict=True):
        attrs = entry.attrs
        assert attrs is not None
        bname = entry.name[1]
        before = there.pop(bname, None)
        if before is not None and before != entry.gfid and tree.names_of(before):
            moves.loses(before, path + bname)  # the inode that was there has another name now
        if attrs.is_dir:
            todo.append((entry.gfid, path + bname + b"/"))
        if is_known and before != entry.gfid:
            moves.gets(entry.gfid, path + bname, not attrs.is_dir and attrs.nlink > 1)
        else:
            yield from _one(path + bname, attrs, entry.ctime >= floor, before == entry.gfid)


def _one(path: bytes, attrs: Attrs, changed: bool, here: bool) -> Iterator[Planned]:
    size = attrs.size if stat.S_ISREG(attrs.mode) else 0
    if here:
        if changed and size:
            yield Planned("update", path, size)
    elif stat.S_ISREG(attrs.mode):
        yield Planned("send", path, size)
    else:
        yield Planned("make", path)


def _slave_names(slave: SlaveNames, gfid: Gfid) -> Iterator[tuple[bytes, Gfid | None]]:
    after: bytes | None = None
    while True:
        rows, after = slave.list(gfid, after)
        yield from rows
        if after is None:
            return


def dry_run(session: Session, volume: Volume, home: Home, recorder_argv: list[str],
            clock: Clock = SYSTEM_CLOCK) -> Iterator[Planned]:
    """The plan of a session that is not running. A recorder runs meanwhile, to index the tree.

    A slave that is not ours yet stays so. A slave that would be adopted is not inspected: everything would be compared.
    A GlusterFS volume is planned through the worker of one brick.
    """
    session = session.parts(volume)[0]
    parts = Parts(session, volume, home, threading.Event(), lambda: Order.RUN)
    status = WorkerStatus.read(session.worker_status)
    first = status is None or status.stime is None
    with _recorded(volume, recorder_argv, clock), closing(parts), closing(parts.open_tree()) as tree, \
            closing(parts.link()) as link, closing(parts.client(link)) as client:
        if client.look(volume.uuid, session.options.adopt, first):
            epoch = lease_of(session, home).take()
            if epoch is None:
                raise LockedError(f"session {session.name} is active on another node")
            hello = client.hello(volume.uuid, volume.name, session.name, epoch)
            yield from plan(tree, client, hello.stime)
        else:
            for line in plan(tree, EmptySlave(), None):
                yield replace(line, action="compare") if session.options.adopt else line


@contextmanager
def _recorded(volume: Volume, recorder_argv: list[str], clock: Clock) -> Iterator[None]:
    """With an up-to-date index. A recorder that was not running before is stopped afterwards. A GlusterFS volume needs
    none."""
    if volume.gluster is not None:
        yield
        return
    port = RecorderPort(volume.brick(), timeout=1.0)
    now = clock.now()
    child = None if port.holder() else Attached(recorder_argv, lambda line: None)
    try:
        while not _is_recorded(port, now):
            ended = child is not None and child.ended()
            status = port.status()
            if child is not None and ended:
                child.listen()
                raise Faulty(child.last_words() or f"recorder exited with code {child.code}")
            if status is not None and status.state == FAULTY:
                raise Faulty(status.reason)
        yield
    finally:
        if child is not None:
            child.end()


def _is_recorded(port: RecorderPort, upto: int) -> bool:
    try:
        port.wait_complete(upto)
    except Transient:
        return False
    return True
