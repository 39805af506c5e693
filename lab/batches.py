"""The surroundings of a batch's parts, as plain values: a master, a slave and syncers that do as they are told."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from gsync.base.clock import Clock
from gsync.base.model import NS, ROOT_GFID, Attrs, Gfid, Name
from gsync.engine.ledger import Ledger
from gsync.engine.progress import Failures, Progress
from gsync.engine.worklist import ChangelogDB, NameState
from gsync.link.protocol import FillAnswer, FillCode, FillRow, MetaRow, RemoveAnswer, RemoveRow, RowProblem
from gsync.master.tree import Reader, Resolved, Verdict
from gsync.sync.postbox import FileRequest, Result

NOW = 1_000 * NS


def gfid_of(number: int) -> Gfid:
    return b"test" + number.to_bytes(12, "big")


def attrs_of(mode: int, *, nlink: int = 1, size: int = 1) -> Attrs:
    return Attrs(mode=mode, uid=0, gid=0, size=size, mtime=0, atime=0, nlink=nlink, rdev=0)


def file_at(name: Name, gfid: Gfid, *, nlink: int = 1, ctime: int = 0) -> Resolved:
    return Resolved(name, Verdict.PRESENT, NOW, gfid, b"handle", attrs_of(stat.S_IFREG | 0o644, nlink=nlink), ctime)


def folder_at(name: Name, gfid: Gfid) -> Resolved:
    return Resolved(name, Verdict.PRESENT, NOW, gfid, b"handle", attrs_of(stat.S_IFDIR | 0o755))


def nothing_at(name: Name, verdict: Verdict = Verdict.ABSENT, err: int = 0) -> Resolved:
    return Resolved(name, verdict, NOW, errno=err)


class ManualClock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.clock = Clock(lambda: NOW + int(self.seconds * NS), lambda: self.seconds)


class Entries:
    """A reader of these entries. fails: the errno with which it ends."""

    def __init__(self, gfid: Gfid, entries: Sequence[Resolved], fails: int = 0) -> None:
        self.gfid, self._left, self._fails = gfid, list(entries), fails
        self.failed = 0
        self.closed = False

    def page(self, limit: int) -> Sequence[Resolved]:
        page, self._left = self._left[:limit], self._left[limit:]
        if len(page) < limit:
            self.failed = self._fails
        return page

    def close(self) -> None:
        self.closed = True


class FakeMaster:
    """at: the state of each name; a name without one is absent. names: of inodes. dirs: the results of opening
    directories. stats: the results of stat; an int is an errno to fail with. digests: of contents. away: errnos that
    mean that the tree is unreachable."""

    def __init__(self) -> None:
        self.at: dict[Name, Resolved] = {}
        self.resolved: list[Name] = []
        self.handle_of: Callable[[Gfid], bytes | None] = lambda gfid: None
        self.names: dict[Gfid, list[Name]] = {}
        self.dirs: dict[Gfid, Reader | Resolved] = {}
        self.chain: list[Name] = []
        self.stats: dict[Gfid, os.stat_result | int] = {}
        self.digests: dict[Gfid, tuple[int, str]] = {}
        self.away: set[int] = set()
        self.hints: dict[Gfid, tuple[bytes, Name]] = {}

    def names_of(self, gfid: Gfid) -> list[Name]:
        return self.names.get(gfid, [])

    def path_text(self, name: Name) -> bytes:
        return b"path of " + name[1]

    def parent_chain(self, gfid: Gfid) -> list[Name]:
        return self.chain

    def is_away(self, err: int) -> bool:
        return err in self.away

    def read_indexed(self, gfid: Gfid) -> Reader | None:
        return None

    def read_dir(self, gfid: Gfid) -> Reader | Resolved:
        return self.dirs[gfid]

    def resolve(self, names: Sequence[Name]) -> list[Resolved]:
        self.resolved += names
        return [self.at.get(name) or nothing_at(name) for name in names]

    def hint(self, gfid: Gfid) -> None:
        self.hints[gfid] = (b"", (b"", b""))

    def will_read(self, files: int) -> None:
        pass

    def stat(self, gfid: Gfid) -> os.stat_result | None:
        found = self.stats.get(gfid)
        if isinstance(found, int):
            raise OSError(found, os.strerror(found))
        return found

    def digest(self, gfid: Gfid) -> tuple[int, str]:
        return self.digests[gfid]

    def attrs_of(self, gfid: Gfid) -> tuple[Attrs, list[tuple[bytes, bytes]]] | None:
        st = self.stat(gfid)
        return None if st is None else (Attrs.of(st), [])


class FakeSlave:
    """codes: the answers to fills, by gfid (OK by default); first: to the first fill of each. All requests are kept, in
    order."""

    def __init__(self) -> None:
        self.codes: dict[Gfid, FillCode] = {}
        self.first: dict[Gfid, FillCode] = {}
        self.calls: list[str] = []
        self.vacated: list[Name] = []
        self.displaced: list[Gfid] = []
        self.refused: dict[bytes, int] = {}       # errnos, by base name
        self.names: dict[Gfid, list[bytes]] = {}
        self.weights: dict[bytes, int] = {}
        self.knows: set[Gfid] = set()
        self.digests: dict[Gfid, tuple[int, str]] = {}
        self.meta_errors: dict[Gfid, int] = {}
        self.filled: list[FillRow] = []
        self.removed: list[RemoveRow] = []
        self.keep_last = False
        self.compared: list[list[Gfid]] = []
        self.attributes: list[Gfid] = []

    def fill(self, rows: Sequence[FillRow]) -> FillAnswer:
        self.filled += rows
        self.calls.append("fill")
        codes = [self.first.pop(row.gfid, self.codes.get(row.gfid, FillCode.OK)) for row in rows]
        vacated, self.vacated = self.vacated, []
        displaced, self.displaced = self.displaced, []
        return FillAnswer(codes, vacated, displaced,
                          [RowProblem(i, err, os.strerror(err)) for i, row in enumerate(rows)
                           if (err := self.refused.get(row.bname))])

    def remove(self, rows: Sequence[RemoveRow], keep_last: bool) -> RemoveAnswer:
        self.removed += rows
        self.calls.append("remove")
        self.keep_last = keep_last
        displaced, self.displaced = self.displaced, []
        return RemoveAnswer(displaced, [RowProblem(i, err, os.strerror(err)) for i, row in enumerate(rows)
                                        if (err := self.refused.get(row.bname))])

    def weigh(self, names: Sequence[Name], limit: int) -> int:
        return min(limit + 1, sum(self.weights.get(bname, 1) for _, bname in names))

    def known(self, gfids: Sequence[Gfid]) -> list[bool]:
        return [gfid in self.knows for gfid in gfids]

    def digest(self, gfids: Sequence[Gfid]) -> list[tuple[int, str] | None]:
        self.compared.append(list(gfids))
        return [self.digests.get(gfid) for gfid in gfids]

    def meta(self, rows: Sequence[MetaRow]) -> list[int]:
        if rows:
            self.calls.append("meta")
        self.attributes += [row.gfid for row in rows]
        return [self.meta_errors.get(row.gfid, 0) for row in rows]

    def list(self, directory: Gfid, after: bytes | None) -> tuple[list[tuple[bytes, Gfid | None]], bytes | None]:
        return [(name, None) for name in self.names.get(directory, [])], None


class FakeSyncer:
    """errors: the results of a file's tries, in order; a file without any arrives. changes: files that change while
    they are read. on_send: called once, when something is on its way. slow: how often there are no results yet, and the
    time that passes meanwhile."""

    def __init__(self) -> None:
        self.on_send: Callable[[], None] | None = None
        self.slow = 0
        self.while_waiting: Callable[[], None] = lambda: None
        self.errors: dict[Gfid, list[int]] = {}
        self.changes: set[Gfid] = set()
        self.sent: list[FileRequest] = []
        self._out: list[FileRequest] = []

    def send(self, *requests: FileRequest) -> None:
        self.sent += requests
        self._out += requests
        on_send, self.on_send = self.on_send, None
        if on_send is not None:
            on_send()

    def results(self, wait: bool) -> list[Result]:
        if self._out and self.slow:
            self.slow -= 1
            self.while_waiting()
            return []
        out, self._out = self._out, []
        return [self._result(request) for request in out]

    def _result(self, request: FileRequest) -> Result:
        errors = self.errors.get(request.gfid)
        err = errors.pop(0) if errors else 0
        return Result(request, err, os.strerror(err) if err else "", 0 if err else request.size,
                      request.gfid in self.changes)


class Between:
    """A master, a slave, syncers, and real tables and a real ledger."""

    def __init__(self, folder: Path) -> None:
        self.master, self.slave, self.syncer, self.time = FakeMaster(), FakeSlave(), FakeSyncer(), ManualClock()
        self.db = ChangelogDB(str(folder / "changelog.db"))
        self.ledger = Ledger(str(folder / "ledger.db"), lambda: NOW)
        self.progress = Progress()
        self.failures = Failures(self.master, self.ledger, self.progress)
        self.recorded: list[int] = []   # the times up to which the recorder was waited for
        self.on_wait: Callable[[], None] = lambda: None

    @property
    def clock(self) -> Clock:
        return self.time.clock

    def wait_complete(self, until_ns: int) -> None:
        self.recorded.append(until_ns)
        self.on_wait()

    def dirty(self, *bnames: bytes, parent: Gfid = ROOT_GFID) -> list[int]:
        """Add dirty names; return their rows."""
        self.db.add_names((parent, bname) for bname in bnames)
        return [row.rowid for row in self.db.names(NameState.DIRTY, 1000)]

    def named(self, state: NameState) -> list[bytes]:
        """The base names in this state."""
        return [row.name[1] for row in self.db.names(state, 1000)]

    def failed(self) -> list[tuple[str, bytes, int]]:
        """The ledger's rows: what, path, errno."""
        return [(row.what, row.path, row.errno) for row in self.ledger.all()]

    def close(self) -> None:
        self.db.close()
        self.ledger.close()


def stat_of(*, size: int = 1, mtime: int = 0, mode: int = stat.S_IFREG | 0o644) -> os.stat_result:
    return os.stat_result((mode, 1, 1, 1, 0, 0, size, 0, mtime // NS, 0),
                          {"st_atime_ns": 0, "st_mtime_ns": mtime, "st_ctime_ns": 0, "st_rdev": 0})
