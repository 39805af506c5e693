"""A model master and worker for the agent's tests: the content that the slave should have, a planner that fills it,
checks.

`World` is the master: names and inodes in memory, with the operations of a file system. `Slave` opens a slave tree in a
folder, with a hook that can kill it after any step. `Planner` does a batch's work (made directories are enumerated,
files sent, blocked names tried again), as simply as possible. `check_index` compares index and disk.
"""

from __future__ import annotations

import os
import random
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from gsync.base.model import NS, ROOT_GFID, STATE_DIR, Gfid, Name
from gsync.base.namespace import IndexEntry
from gsync.link import protocol
from gsync.link.protocol import FillRow, MetaRow, RemoveRow
from gsync.slave.directory.folders import OPEN_DIR
from gsync.slave.directory.identity import Taken, probe, take
from gsync.slave.directory.operations import DirectoryOperations
from gsync.slave.directory.recover import recover
from gsync.slave.directory.tree import SlaveTree
from gsync.slave.limbo import LIMBO_NEW, LIMBO_OLD
from gsync.slave.target import Operations

DIR, REG, LNK, FIFO = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o600


def open_new(tree: SlaveTree, gfid: Gfid) -> int:
    """Make a new empty file limbo/new/<gfid>, as rsync does; a file left there by an earlier try is replaced."""
    name = gfid.hex().encode()
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=tree.new_fd)
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=tree.new_fd)


class Killed(BaseException):
    """The agent's process dies here."""


@dataclass
class Node:
    """An inode of the master."""

    gfid: Gfid
    mode: int
    data: bytes = b""  # content of a file, target of a symlink
    mtime: int = 1_600_000_000 * NS + 123_456_789


class World:
    """The master. Every change adds the names that it mentions to `dirty` (as a recorder would)."""

    def __init__(self) -> None:
        self.nodes: dict[Gfid, Node] = {}
        self.names: dict[Name, Gfid] = {}
        self.dirty: set[Name] = set()
        self.written: set[Gfid] = set()  # files that changed in place
        self._last = 0

    def _at(self, name: Name) -> Gfid:
        return self.names[name]

    def _set(self, name: Name, gfid: Gfid | None) -> None:
        self.dirty.add(name)
        if gfid is None:
            del self.names[name]
        else:
            self.names[name] = gfid

    def make(self, pargfid: Gfid, bname: bytes, mode: int = DIR, data: bytes = b"") -> Gfid:
        self._last += 1
        gfid = b"test" + self._last.to_bytes(12, "big")
        self.nodes[gfid] = Node(gfid, mode, data)
        self._set((pargfid, bname), gfid)
        return gfid

    def mkdir(self, pargfid: Gfid, bname: bytes) -> Gfid:
        return self.make(pargfid, bname)

    def create(self, pargfid: Gfid, bname: bytes, data: bytes = b"content") -> Gfid:
        return self.make(pargfid, bname, REG, data)

    def symlink(self, pargfid: Gfid, bname: bytes, target: bytes = b"nowhere") -> Gfid:
        return self.make(pargfid, bname, LNK, target)

    def link(self, gfid: Gfid, pargfid: Gfid, bname: bytes) -> None:
        self._set((pargfid, bname), gfid)

    def rename(self, old: Name, new: Name) -> None:
        """rename(2): the inode at `new` goes away, with everything below it."""
        gfid = self.names[old]
        if self.names.get(new) == gfid:
            return
        if new in self.names:
            self.remove(new)
        self._set(old, None)
        self._set(new, gfid)

    def remove(self, name: Name) -> None:
        """rm -r."""
        gfid = self.names[name]
        if stat.S_ISDIR(self.nodes[gfid].mode):
            for child in [n for n in self.names if n[0] == gfid]:
                self.remove(child)
        self._set(name, None)

    def names_of(self, gfid: Gfid) -> list[Name]:
        return [n for n, g in self.names.items() if g == gfid]

    def chain(self, gfid: Gfid) -> Iterator[Name]:
        """The names of a directory and of its ancestors."""
        while gfid != ROOT_GFID:
            names = self.names_of(gfid)
            if not names:
                return
            yield names[0]
            gfid = names[0][0]

    def is_below(self, gfid: Gfid, above: Gfid) -> bool:
        return gfid == above or any(self.names[n] == above for n in self.chain(gfid)) or above == ROOT_GFID

    def paths(self) -> dict[bytes, tuple[int, bytes, int, Gfid]]:
        """The content that must be on disk: path -> mode, data, mtime, gfid."""
        found = {}
        below: dict[Gfid, list[tuple[bytes, Gfid]]] = {}
        for (pargfid, bname), gfid in self.names.items():
            below.setdefault(pargfid, []).append((bname, gfid))
        todo = [(ROOT_GFID, b"")]
        while todo:
            pargfid, path = todo.pop()
            for bname, gfid in below.get(pargfid, ()):
                node = self.nodes[gfid]
                found[path + bname] = (node.mode, node.data, node.mtime, gfid)
                if stat.S_ISDIR(node.mode):
                    todo.append((gfid, path + bname + b"/"))
        return found


class Slave:
    """A slave directory, served in this process. on_step is told every step, with the number of steps before it, and
    may raise Killed."""

    def __init__(self, root: Path | bytes, on_step: Callable[[int, str], None] = lambda n, name: None,
                 adopt: bool = False, delete_retention: int = 0) -> None:
        self.root = os.fsencode(root)
        self.steps: list[str] = []
        self.on_step = on_step
        self.taken: Taken = take(self.root, "volume", "volume", adopt)
        try:
            self.tree = SlaveTree(self.root)
        except BaseException:
            self.taken.close()
            raise
        self.tree.caps = probe(self.tree.state_fd, self.tree.handles.lasting)
        try:
            self.apply = DirectoryOperations(self.tree, adopt, delete_retention, self._step)
            recover(self.tree, self.apply.limbo, self._step)
        except BaseException:
            self.close()
            raise

    def _step(self, name: str) -> None:
        self.steps.append(name)
        self.on_step(len(self.steps) - 1, name)

    def close(self) -> None:
        self.tree.close()
        self.taken.close()

    def __enter__(self) -> Slave:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


@dataclass
class Planner:
    """Brings a slave to the world's present state, starting from `dirty` names, as one batch."""

    world: World
    apply: Operations
    rng: random.Random
    sent: list[Gfid] = field(default_factory=list)
    adopted: set[Gfid] = field(default_factory=set)
    since: int = 0

    def batch(self, dirty: Iterable[Name], stime: int, leftovers: bool = True) -> None:
        """Fill, remove, attributes, commit."""
        self.since = stime + 1
        todo = set(dirty)
        meta: set[Gfid] = set()
        if leftovers:
            todo |= self._leftovers()
        self._names(todo, meta)
        self._data()
        self._meta(meta)
        self.apply.commit(stime, stime, 0, clear=True)
        self._sweep()

    def quiet(self, stime: int) -> None:
        """The empty batch of a quiet tree, later: entries that wait in limbo go (rule 26)."""
        self.apply.commit(stime, stime, 0, clear=True)
        self._sweep()

    def _leftovers(self) -> set[Name]:
        found = set(self.apply.leftover_names(None, 10**6))
        for gfid in self.apply.leftover_dirs(b"", 10**6):
            found |= self._enumerate(gfid)
        for gfid in self.apply.leftover_gfids(b"", 10**6):
            found |= set(self.world.names_of(gfid))
        return found

    def _enumerate(self, gfid: Gfid) -> set[Name]:
        """Every name that either side has in the directory."""
        mine = {n for n in self.world.names if n[0] == gfid}
        return mine | {(gfid, bname) for bname, _ in self.apply.names_in(gfid, None, 10**6)[0]}

    def _row(self, name: Name) -> FillRow:
        node = self.world.nodes[self.world.names[name]]
        nlink = 2 if stat.S_ISDIR(node.mode) else len(self.world.names_of(node.gfid))
        target = node.data if stat.S_ISLNK(node.mode) else None
        return FillRow(*name, node.gfid, node.mode, self.since, nlink, os.geteuid(), os.getegid(), node.mtime,
                       node.mtime, 0, target, [])

    def _names(self, todo: set[Name], meta: set[Gfid]) -> None:
        """Rounds of fills, then removals; each name once, unless something makes it dirty again."""
        handled: set[Name] = set()
        absent: set[Name] = set()
        waiting: set[Name] = set()
        for _ in range(60):
            while todo:
                handled |= todo
                absent |= {n for n in todo if n not in self.world.names}
                todo -= absent
                page = sorted(todo)
                self.rng.shuffle(page)
                page = page[:self.rng.randint(1, 8)]
                todo -= set(page)
                rows = [self._row(n) for n in page]
                answer = self.apply.fill(rows)
                assert not answer.errors, answer.errors
                for row, code in zip(rows, answer.answers, strict=True):
                    todo |= self._answered(row, code, waiting, meta) - handled
                todo |= {*answer.vacated, *(n for g in answer.displaced for n in self.world.names_of(g))}
            if waiting:
                todo |= waiting
                if self.rng.random() < 0.5:
                    todo |= {n for p, _ in waiting for n in self.world.chain(p)}
                waiting.clear()
                continue
            while absent:
                page = self.rng.sample(sorted(absent), self.rng.randint(1, len(absent)))
                absent -= set(page)
                removed = self.apply.remove([RemoveRow(*n, self.since) for n in page])
                assert not removed.errors, removed.errors
                todo |= {n for g in removed.displaced for n in self.world.names_of(g)}
            if not todo:
                break
        else:
            raise AssertionError(f"does not settle: {waiting}")
        meta |= {p for p, _ in handled if p == ROOT_GFID or self.world.names_of(p)}

    def _answered(self, row: FillRow, code: str, waiting: set[Name], meta: set[Gfid]) -> set[Name]:
        name = (row.pargfid, row.bname)
        meta.add(row.gfid)
        if code == protocol.OK:
            return set()
        if code == protocol.MADE:
            waiting.add(name)
            return self._enumerate(row.gfid)
        if code == protocol.NEW:
            self._receive_new(row)
            waiting.add(name)
        elif code == protocol.DIRECT:
            if not self._receive_direct(row):
                waiting.add(name)
        elif code == protocol.ADOPTED:
            self.adopted.add(row.gfid)
            return self._enumerate(row.gfid) if stat.S_ISDIR(row.mode) else set()
        else:
            assert code in (protocol.PARENT, protocol.CYCLE), code
            waiting.add(name)
        return set()

    # bringing bytes to the slave

    @property
    def _tree(self) -> SlaveTree:
        assert isinstance(self.apply, DirectoryOperations)
        return self.apply.tree

    def _sweep(self) -> None:
        self._tree.sweep()

    def _receive_new(self, row: FillRow) -> None:
        self._receive(open_new(self._tree, row.gfid), row)

    def _receive_direct(self, row: FillRow) -> bool:
        """Receive a file straight into its directory; False if the directory has been attached meanwhile."""
        tree = self._tree
        try:
            dirfd = tree.open_limbo_dir(row.pargfid)
        except FileNotFoundError:
            return False
        fd = os.open(row.bname, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=dirfd)
        os.close(dirfd)
        handle = tree.handles.of_fd(fd)
        self._receive(fd, row)
        with tree.index.transaction():
            tree.index.put([IndexEntry(row.pargfid, row.bname, row.gfid, stat.S_IFREG, handle)])
        return True

    def _receive(self, fd: int, row: FillRow) -> None:
        self.sent.append(row.gfid)
        os.write(fd, self.world.nodes[row.gfid].data)
        self._tree.set_attrs(fd, row.meta)
        os.close(fd)

    def _read(self, gfid: Gfid) -> bytes:
        with open(self._tree.open_file(gfid, os.O_RDONLY), "rb") as file:
            return file.read()

    def _write(self, gfid: Gfid, data: bytes) -> None:
        fd = self._tree.open_file(gfid)
        os.pwrite(fd, data, 0)
        os.ftruncate(fd, len(data))
        os.close(fd)

    def _data(self) -> None:
        """Write the bytes of files that differ and that the slave has, in place; only of files that a worker would look
        at."""
        for gfid, node in self.world.nodes.items():
            if stat.S_ISREG(node.mode) and self.world.names_of(gfid) and self.apply.known([gfid])[0]:
                old = self._read(gfid)
                if old != node.data:
                    assert gfid in self.adopted | self.world.written, f"{gfid.hex()} has another file's bytes: {old!r}"
                    self._write(gfid, node.data)

    def _meta(self, gfids: set[Gfid]) -> None:
        nodes = [self.world.nodes[g] for g in gfids if g != ROOT_GFID and self.world.names_of(g)]
        nodes.sort(key=lambda n: stat.S_ISDIR(n.mode))
        rows = [MetaRow(n.gfid, n.mode, os.geteuid(), os.getegid(), n.mtime, n.mtime, []) for n in nodes]
        answers = self.apply.meta(rows)
        assert all(a == 0 or (a == protocol.ABSENT and not self.apply.known([r.gfid])[0])
                   for a, r in zip(answers, rows, strict=True)), answers


def walk(root_fd: int) -> Iterator[tuple[bytes, bytes, int, bytes, os.stat_result]]:
    """(path, path of the folder, fd of the folder, name, lstat) of everything below, without the state folder at the
    top."""
    todo = [(os.dup(root_fd), b"")]
    while todo:
        fd, path = todo.pop()
        for name in sorted(map(os.fsencode, os.listdir(fd))):
            if not path and name == STATE_DIR:
                continue
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
            yield path + name, path, fd, name, st
            if stat.S_ISDIR(st.st_mode):
                todo.append((os.open(name, OPEN_DIR, dir_fd=fd), path + name + b"/"))
        os.close(fd)


def check_tree(root: bytes | Path, world: World) -> list[str]:
    """Every difference between the disk and the world."""
    wrong = []
    there: dict[bytes, tuple[int, bytes, int, tuple[int, int]]] = {}
    fd = os.open(root, OPEN_DIR)
    for path, _, dirfd, name, st in walk(fd):
        data = b""
        if stat.S_ISREG(st.st_mode):
            with open(os.open(name, os.O_RDONLY, dir_fd=dirfd), "rb") as file:
                data = file.read()
        elif stat.S_ISLNK(st.st_mode):
            data = os.readlink(name, dir_fd=dirfd)
        there[path] = (st.st_mode, data, st.st_mtime_ns, (st.st_dev, st.st_ino))
    os.close(fd)
    wanted = world.paths()
    inodes: dict[tuple[int, int], Gfid] = {}
    for path in sorted(there.keys() | wanted.keys()):
        if path not in there:
            wrong.append(f"{path!r} is missing")
        elif path not in wanted:
            wrong.append(f"{path!r} is too much")
        else:
            if there[path][:3] != wanted[path][:3]:
                wrong.append(f"{path!r}: {there[path][:3]} instead of {wanted[path][:3]}")
            if inodes.setdefault(there[path][3], wanted[path][3]) != wanted[path][3]:
                wrong.append(f"{path!r}: linked to another file")
    if len(inodes) != len({g for _, _, _, g in wanted.values()}):
        wrong.append("hard links are not those of the master")
    return wrong


def check_index(tree: SlaveTree, foreign: bool = False) -> list[str]:
    """Every difference between the index and the disk; foreign: names on disk without a row are allowed."""
    wrong = []
    index = tree.index
    tree.turn()
    rows = [IndexEntry._make(r) for r in index.db.execute(
        "SELECT pargfid, bname, gfid, kind, handle, ctime, size FROM entries")]
    by_name = {e.name: e for e in rows}
    seen: set[Name] = set()

    def check(dirfd: int, gfid: Gfid) -> None:
        todo = [(os.dup(dirfd), gfid)]
        while todo:
            fd, pargfid = todo.pop()
            for name in map(os.fsencode, os.listdir(fd)):
                if pargfid == ROOT_GFID and name == STATE_DIR:
                    continue
                entry = by_name.get((pargfid, name))
                st = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if entry is None:
                    if not foreign and not (pargfid == LIMBO_OLD and name.startswith(b"x.")) and not (
                            pargfid == LIMBO_NEW and not stat.S_ISDIR(st.st_mode)):
                        wrong.append(f"no row for {name!r} in {pargfid.hex()}")
                    continue
                seen.add(entry.name)
                if entry.handle != tree.handles.at(fd, name):
                    wrong.append(f"row of {name!r} in {pargfid.hex()}: another inode")
                if entry.kind != stat.S_IFMT(st.st_mode):
                    wrong.append(f"row of {name!r} in {pargfid.hex()}: another kind")
                if stat.S_ISDIR(st.st_mode):
                    todo.append((os.open(name, OPEN_DIR, dir_fd=fd), entry.gfid))
            os.close(fd)

    check(tree.root_fd, ROOT_GFID)
    check(tree.new_fd, LIMBO_NEW)
    check(tree.old_fd, LIMBO_OLD)
    wrong += [f"row {name!r} leads nowhere" for name in by_name.keys() - seen]
    waiting = {w.bname for w in index.waiting(b"", 10**6)}
    wrong += [f"limbo: {name!r}" for name in waiting.symmetric_difference(map(os.fsencode, os.listdir(tree.old_fd)))]
    for table in ("doomed", "opened_up"):
        if index.db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]:
            wrong.append(f"{table} is not empty")
    return wrong


def check_limbo_empty(tree: SlaveTree) -> list[str]:
    """The entries left in limbo."""
    return [f"left in limbo: {name}" for fd in (tree.new_fd, tree.old_fd, tree.link_fd, tree.del_fd)
            for name in os.listdir(fd)]

