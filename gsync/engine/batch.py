"""One batch: resolve the dirty names, fill them at the slave, send data, remove, set attributes.

Promise: when `apply` returns, everything in the ChangelogDB's tables is at the slave (not yet durable: that is
agent.commit) or in the ledger. Applying it again changes nothing. The rules are those of convergence.md; numbers in
brackets cite them. Not here: what goes into a batch (crawl), commit and stime (worker), moving bytes (sync).

A directory that is new at the slave is built in limbo: its files go straight into it, and it is renamed into place
once they have all landed; the directories below it likewise, each into its parent.
"""

from __future__ import annotations

import errno
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.errors import Transient
from gsync.base.fate import SENDING
from gsync.base.log import get_logger
from gsync.base.model import Gfid, Name, shown
from gsync.base.namespace import Entry
from gsync.engine.ledger import Failure, Ledger
from gsync.engine.worklist import ChangelogDB, DataNeed, Dirty, EnumDir, NameState
from gsync.link.client import SlaveClient
from gsync.link.protocol import FillCode, FillRow, MetaRow, RemoveRow
from gsync.master.tree import DirReader, Reader, Resolved, Tree, Verdict
from gsync.sync.postbox import FileRequest, Result
from gsync.sync.syncer import Syncer

_log = get_logger(__name__)

PAGE = 2000               # names per call to the agent
VOLUME_LISTED = 500       # names of a directory per call where the slave is a volume, which takes much longer for each
READERS = 8               # directories open at once for enumeration
SLOW_READ = 0.05          # seconds of waiting for one page, from which on directories are read in parallel
GROUP = 4000              # complete inodes that one syncfs and one page of renames take in
GROUP_AGE = 5.0           # seconds a complete inode waits for company while more is coming,
GROUP_SHARE = 0.1         # or longer: of the time at most this part goes into making groups durable and visible
SWEEP_SET = 200_000       # names of one directory that the sweep remembers; above, every slave name is looked at
MAX_TRIES = 60            # times a name may become dirty again in one batch
MAX_STUCK = 8             # rounds without progress before blocked names are given up
DATA_RETRIES = 2
COMPARED = 64 << 20       # bytes that one call to the agent compares, if not a single file has more
SHOWN_FAILURES = 20       # of a worker's life that go to the log; the ledger has all

_ASK_AGAIN = (errno.EEXIST, errno.EMLINK)  # the slave has the inode, or it has other names: not to be sent unasked


class Recorder(Protocol):
    """What a batch needs to know of the recorder."""

    def wait_complete(self, until_ns: int) -> None:
        """Return once the recorder has recorded everything up to then."""


@dataclass
class Building:
    """A new directory in limbo whose files are on their way."""

    pending: int = 0
    listed: bool = False


@dataclass
class Progress:
    """Counters for status; the worker publishes them."""

    names: int = 0
    files: int = 0
    bytes: int = 0
    removed: int = 0
    failed: int = 0
    phase: str = "waiting"

    def since(self, before: Progress) -> dict[str, int]:
        """What was counted since then, for a line of the log."""
        return {name: getattr(self, name) - getattr(before, name)
                for name in ("names", "files", "bytes", "removed", "failed")}


@dataclass
class Batch:
    """The parts a batch works with, and its state while `apply` runs.

    `recursive`: enumerate known directories below an enumerated one too (hybrid crawl); there, known files whose
    ctime is not older than `floor` (ns) are suspect: their data is compared and their attributes set.
    `checkpoint` is called now and then while a hybrid crawl runs, for interim commits. `max_delete`: most entries that
    a batch may remove, 0: any number. `ignore_deletes`: the last name of an inode is never removed.
    `data_retries`: how often a file that could not be sent is tried again within the batch. `listed`: names of
    an enumerated directory per call to the agent; with fewer the first files are on their way sooner. `created`: files
    that are not older than the changelogs of the batch, as far as it was kept in mind.
    """

    tree: Tree
    slave: SlaveClient
    db: ChangelogDB
    syncer: Syncer
    ledger: Ledger
    recorder: Recorder
    progress: Progress
    check_stop: Callable[[], None]
    direct: bool = True
    recursive: bool = False
    floor: int | None = None
    checkpoint: Callable[[], None] = lambda: None
    stime: int | None = None
    max_delete: int = 0
    ignore_deletes: bool = False
    data_retries: int = DATA_RETRIES
    listed: int = PAGE
    created: frozenset[Gfid] | set[Gfid] = frozenset()
    clock: Clock = SYSTEM_CLOCK
    last_resolve: int = 0

    _readers: list[tuple[EnumDir, Reader, set[bytes] | None]] = field(default_factory=list)
    _pool: ThreadPoolExecutor | None = None
    _building: dict[Gfid, Building] = field(default_factory=dict)
    _complete: list[Gfid] = field(default_factory=list)
    _flying: dict[Gfid, FileRequest] = field(default_factory=dict)
    _tries: dict[Gfid, int] = field(default_factory=dict)
    _changed: list[Gfid] = field(default_factory=list)
    _in_flight: int = 0
    _ready: int = 0
    _ready_since: float = 0.0
    _patience: float = GROUP_AGE
    _stuck: int = 0
    _any_held: bool = False
    _hold: bool = False
    _weight: int = 0
    _waited: set[Gfid] = field(default_factory=set)

    # the whole batch

    def apply(self) -> None:
        """Do everything that the tables hold. Transient, SlaveError, Faulty: the batch is to be applied again."""
        self.tree.handle_of = self.db.handle_of
        self._any_held = self.ledger.count_held() > 0
        try:
            self._names()
            self.progress.phase = "syncing"
            self.db.parents_to_meta()
            self._data()
            self._meta(dirs=False)
            self._meta(dirs=True)
        finally:
            for _, reader, _ in self._readers:
                reader.close()
            self._readers.clear()
            if self._pool is not None:
                self._pool.shutdown()
                self._pool = None
            self.tree.hints.clear()
        self.db.flush()

    def _names(self) -> None:
        self.progress.phase = "crawling"
        db = self.db
        db.cover()
        while True:
            self.check_stop()
            self._take_results(wait=False)
            if self._ready >= GROUP or (self._ready and self.clock.monotonic() - self._ready_since > self._patience):
                self._fill_ready()
            elif (page := db.names(NameState.DIRTY, PAGE)):
                self._resolve(page)
            elif self._enumerate():
                self.checkpoint()
            elif self._in_flight:
                self._take_results(wait=True)
            elif self._ready:
                self._fill_ready()
            elif db.count(NameState.UNKNOWN):
                self._catch_up()
            elif db.count(NameState.BLOCKED):
                self._unblock()
            elif not self._remove_all():
                return

    # resolve and fill

    def _resolve(self, page: Sequence[Dirty]) -> None:
        keep: list[Dirty] = []
        for row in page:
            if row.tries > MAX_TRIES:
                self._give_up(row.rowid, Failure("name", None, row.name, self.tree.path_text(row.name), errno.ELOOP,
                                                 "the name does not settle"))
            else:
                keep.append(row)
        resolved = self.tree.resolve([row.name for row in keep])
        dirs = {i for i, r in enumerate(resolved) if r.attrs is not None and r.attrs.is_dir}
        if dirs:  # first: the names in a directory that turns out to be new come with its enumeration
            self._fill([resolved[i] for i in dirs], [keep[i][0] for i in dirs])
            covered = {p for p in {r.name[0] for r in resolved} if self.db.to_be_listed(p)}
            self.db.set_names((NameState.DONE, keep[i][0]) for i, r in enumerate(resolved)
                              if r.name[0] in covered and i not in dirs)
            rest = [i for i, r in enumerate(resolved) if i not in dirs and r.name[0] not in covered]
        else:
            rest = list(range(len(keep)))
        self._fill([resolved[i] for i in rest], [keep[i][0] for i in rest])
        self._displaced(row.gfid for row, r in zip(keep, resolved, strict=True) if row.gfid and r.gfid != row.gfid)

    def _fill_ready(self) -> None:
        """Complete inodes go to their names; what is there now is asked again [11]."""
        began = self.clock.monotonic()
        self._ready = 0
        while (page := self.db.names(NameState.READY, PAGE)):
            self.check_stop()
            self._resolve(page)
        self._patience = max(GROUP_AGE, (self.clock.monotonic() - began) / GROUP_SHARE)

    def _fill(self, resolved: Sequence[Resolved], rowids: Sequence[int] | None) -> None:
        """Bring names to what they are on the master. Without rowids they come from an enumeration."""
        self.last_resolve = self.clock.now()
        states: list[tuple[int, int]] = []
        absent: list[tuple[int, int]] = []
        waiting: list[tuple[bytes, bytes, int, bytes]] = []
        rows: list[Resolved] = []
        row_ids: list[int | None] = []

        def settle(item: Resolved, state: NameState, rowid: int | None) -> None:
            if state in (NameState.DATA, NameState.BUILDING) or (
                    rowid is None and state not in (NameState.DONE, NameState.FAILED)):
                waiting.append((*item.name, state, item.gfid))
            elif rowid is not None:
                states.append((state, rowid))

        for i, item in enumerate(resolved):
            rowid = rowids[i] if rowids is not None else None
            verdict = item.verdict
            if verdict is Verdict.PRESENT:
                assert item.attrs is not None
                if item.attrs.is_dir and self.db.building(item.gfid):
                    settle(item, NameState.BUILDING, rowid)
                elif item.gfid in self._flying:
                    settle(item, NameState.DATA, rowid)
                else:
                    rows.append(item)
                    row_ids.append(rowid)
            elif verdict is Verdict.ABSENT:
                if rowid is not None:  # an enumerated name that is gone again was never told to the slave
                    absent.append((item.since, rowid))
            elif verdict is Verdict.UNKNOWN:
                if rowid is not None and item.errno == errno.ENOENT and item.name[0] in self._waited:
                    absent.append((item.since, rowid))  # the recorder has caught up and knows no such parent
                else:
                    settle(item, NameState.UNKNOWN, rowid)
            elif verdict is Verdict.EXCLUDED:
                settle(item, NameState.DONE, rowid)
            else:
                self._fail(item.name, None, "name", item.errno, os.strerror(item.errno))
                settle(item, NameState.FAILED, rowid)

        requests: list[FileRequest] = []
        if rows and self._any_held:
            self.ledger.release(r.name for r in rows)
        if rows:
            answers = self.slave.fill([_fill_row(r) for r in rows])
            new_dirs: list[EnumDir] = []
            suspects: list[Resolved] = []
            for item, rowid, code in zip(rows, row_ids, answers.answers, strict=True):
                assert item.attrs is not None
                if code is FillCode.OK:
                    settle(item, NameState.DONE, rowid)
                    self._known(item, new_dirs, suspects)
                elif code is FillCode.MADE:
                    new_dirs.append(EnumDir(item.gfid, item.handle, self.recursive, True))
                    settle(item, NameState.BUILDING, rowid)
                elif code is FillCode.NEW:
                    if item.gfid not in self._flying:
                        requests.append(self._request(item, "N"))
                    settle(item, NameState.DATA, rowid)
                elif code is FillCode.DIRECT:
                    building = self._building.get(item.name[0])
                    if building is None or not self.direct:  # complete, not yet opened, or rsync: by way of limbo/new
                        requests.append(self._request(item, "N"))
                        settle(item, NameState.DATA, rowid)
                        continue
                    building.pending += 1
                    requests.append(self._request(item, "D"))
                    settle(item, NameState.DONE, rowid)
                elif code is FillCode.ADOPTED:
                    settle(item, NameState.DONE, rowid)
                    if item.attrs.is_dir:
                        new_dirs.append(EnumDir(item.gfid, item.handle, True, False))
                    else:
                        suspects.append(item)
                elif code in (FillCode.PARENT, FillCode.CYCLE):
                    settle(item, NameState.BLOCKED, rowid)
                else:
                    settle(item, NameState.FAILED, rowid)
            for i, err, message in answers.errors:
                self._fail(rows[i].name, rows[i].gfid, "name", err, message)
            self.db.add_gfids((d.gfid for d in new_dirs), DataNeed.NONE, is_dir=True)
            for item in suspects:
                assert item.attrs is not None
                self.db.add_gfids([item.gfid], DataNeed.COMPARE if item.attrs.is_file else DataNeed.NONE)
            self.db.add_dirs(new_dirs)
        self.db.set_names(states)
        self.db.set_absent(absent)
        self.db.add_waiting(waiting)
        if rows:
            if answers.vacated:
                self.db.add_names(answers.vacated)  # [16]
            self._displaced(answers.displaced)
            self.progress.names += len(rows)
            if _log.debugs:
                for item, code in zip(rows, answers.answers, strict=True):
                    _log.debug("name", path=shown(self.tree.path_text(item.name)), answer=code.value)
            if any(code not in (FillCode.PARENT, FillCode.CYCLE, FillCode.ERROR) for code in answers.answers):
                self._stuck = 0
        self._send(requests)  # last: a full box makes this wait

    def _known(self, item: Resolved, dirs: list[EnumDir], suspects: list[Resolved]) -> None:
        """In a hybrid crawl: a name that the slave has already."""
        if not self.recursive:
            return
        assert item.attrs is not None
        if item.attrs.is_dir:
            if not self.db.has_dir(item.gfid):
                dirs.append(EnumDir(item.gfid, item.handle, True, False))
        elif self.floor is not None and item.ctime >= self.floor:
            suspects.append(item)

    def _request(self, item: Resolved | Entry, place: str) -> FileRequest:
        gfid, name = item.gfid, item.name
        self.tree.hints[gfid] = (item.handle, name)
        size = item.size if isinstance(item, Entry) else item.attrs.size if item.attrs else 0
        request = self._flying[gfid] = FileRequest(gfid, place, name[0], name[1], size)
        self._in_flight += 1
        return request

    def _send(self, requests: Sequence[FileRequest]) -> None:
        """All at once: woken for each one, the syncers would carry boxes of one."""
        self.tree.will_read(len(requests))
        self.syncer.send(*requests)

    def _displaced(self, gfids: Iterable[Gfid]) -> None:
        """Inodes that a fill or removal pushed to limbo, or new ones whose name is not theirs any more: where are they
        now? [16]"""
        for gfid in gfids:
            self.db.add_names(self.tree.names_of(gfid))

    # enumeration

    def _enumerate(self) -> bool:
        """Read a page of entries from the directories to enumerate; False if there are none."""
        while len(self._readers) < READERS and self._open_dirs():
            pass  # perhaps all of those could not be opened, and others can
        if not self._readers:
            return False
        want = self.listed // len(self._readers)
        page: list[Resolved | Entry] = []
        done, left = [], []
        for open_dir, entries in zip(self._readers, self._pages(want), strict=True):
            _, reader, seen = open_dir
            page += entries
            if seen is not None and len(seen) < SWEEP_SET:
                seen.update(e.name[1] for e in entries)
            if len(entries) < want:
                done.append(open_dir)
                reader.close()
            else:
                left.append(open_dir)
        self._readers = left
        to_ask = self._send_unasked(page)
        if to_ask:
            self._fill(to_ask, None)
        for directory, reader, seen in done:
            if reader.failed:
                self._unreadable(directory, reader.failed)
            self._listed(directory, None if reader.failed else seen)
        return True

    def _pages(self, want: int) -> list[Sequence[Resolved | Entry]]:
        """The next entries of every open directory. In parallel once the file system was seen to make us wait (a
        network, a cold disk); where it does not, threads only get in each other's way. The index is for this thread."""
        readers = [reader for _, reader, _ in self._readers]
        from_disk = all(isinstance(reader, DirReader) for reader in readers)
        if from_disk and self._pool is not None:
            return list(self._pool.map(lambda reader: reader.page(want), readers))
        began, worked = self.clock.monotonic(), time.thread_time()
        pages: list[Sequence[Resolved | Entry]] = [reader.page(want) for reader in readers]
        waited = self.clock.monotonic() - began - (time.thread_time() - worked)
        if from_disk and self._pool is None and waited > SLOW_READ and waited > 0.5 * (self.clock.monotonic() - began):
            self._pool = ThreadPoolExecutor(READERS, "reader")
        return pages

    @property
    def _slave_was_empty(self) -> bool:
        """Whether the slave has nothing but what this crawl sends."""
        return self.direct and self.recursive and self.floor is None

    def _send_unasked(self, page: Iterable[Resolved | Entry]) -> list[Resolved]:
        """The slave gets the files of its new directories without being asked first, if it was empty, or if they were
        created in the time of this batch. The receiver sees it if one came by another name already, since it was moved
        meanwhile; the sender, if it has several names. The items to ask for are returned."""
        if not self._slave_was_empty and not (self.direct and self.created):
            return [item for item in page if isinstance(item, Resolved)]
        self.last_resolve = self.clock.now()
        others: list[Resolved] = []
        requests: list[FileRequest] = []
        for item in page:
            building = self._building.get(item.pargfid if isinstance(item, Entry) else item.name[0])
            plain = isinstance(item, Entry) or (item.attrs is not None and item.attrs.is_file and item.attrs.nlink == 1)
            new = self._slave_was_empty or item.gfid in self.created
            if not plain or not new or building is None or item.gfid in self._flying:
                others += self.tree.resolve([item.name]) if isinstance(item, Entry) else [item]
                continue
            building.pending += 1
            requests.append(self._request(item, "D"))
        self.progress.names += len(requests)
        self._send(requests)
        return others

    def _open_dirs(self) -> bool:
        """Open as many as may be open at once; False if no directory waits for it."""
        directories = self.db.take_dirs(READERS - len(self._readers))
        for directory in directories:
            by_index = self.tree.read_indexed(directory.gfid) if directory.new and self._slave_was_empty else None
            opened = by_index or self.tree.read_dir(directory.gfid)
            if not isinstance(opened, Resolved):
                self._readers.append((directory, opened, None if directory.new else set()))
                if directory.new:
                    self._building.setdefault(directory.gfid, Building())
                continue
            self.db.uncover(directory.gfid)
            if opened.verdict is Verdict.UNKNOWN and directory.gfid not in self._waited:
                self._waited.add(directory.gfid)
                self._catch_up()
                self.db.add_dirs([directory])
                continue
            if opened.verdict is Verdict.EXCLUDED:
                self.db.dirs_done([directory.gfid])
                continue
            if opened.verdict is Verdict.ERROR:
                self._unreadable(directory, opened.errno)
            self._listed(directory, None)
        return bool(directories)

    def _unreadable(self, directory: EnumDir, err: int) -> None:
        if self.tree.is_away(err):
            raise OSError(err, os.strerror(err))
        names = self.tree.names_of(directory.gfid)
        path = self.tree.path_text(names[0]) if names else b"."
        self.progress.failed += 1
        self.ledger.record(Failure("dir", directory.gfid, None, path, err,
                                   "directory cannot be read: " + os.strerror(err)))

    def _listed(self, directory: EnumDir, seen: set[bytes] | None) -> None:
        gfid = directory.gfid
        if directory.new:
            building = self._building.setdefault(gfid, Building())
            building.listed = True
            self._completed(gfid, building)
            return
        self.db.dirs_done([gfid])
        self.db.add_gfids([gfid], DataNeed.NONE, is_dir=True)
        if seen is None:
            return
        after: bytes | None = None
        while True:  # [8]: the names that the slave has here count as well
            names, after = self.slave.list(gfid, after)
            self.db.add_names((gfid, name) for name, _ in names if name not in seen)
            if after is None:
                return

    def _completed(self, gfid: Gfid, building: Building) -> None:
        """If nothing is missing in the new directory any more, its name can be filled."""
        if building.listed and building.pending == 0:
            del self._building[gfid]
            self.db.dirs_done([gfid])
            self._arrived([gfid], NameState.BUILDING)

    def _arrived(self, gfids: list[Gfid], waiting: NameState) -> None:
        if not self._ready:
            self._ready_since = self.clock.monotonic()
        self._ready += len(gfids)
        self.db.arrived(gfids, waiting)

    # results of the syncers

    def _take_results(self, wait: bool) -> None:
        whole: list[Gfid] = []
        landed: list[Gfid] = []
        into: Counter[Gfid] = Counter()
        debugs = _log.debugs
        results = self.syncer.results(wait)
        self._in_flight -= len(results)
        for result in results:
            request, err, _, size, changed = result
            gfid, place, dirgfid, bname, _ = request
            self._flying.pop(gfid, None)
            if err:
                self._not_sent(result)
                continue
            self.progress.files += 1
            self.progress.bytes += size
            if debugs:
                path = self._path((dirgfid, bname) if bname else None, gfid)
                _log.debug("file sent", path=shown(path), gfid=gfid.hex(), bytes=size)
            if self._tries:
                self._tries.pop(gfid, None)
            if changed:
                self._changed.append(gfid)
            else:
                self.tree.hints.pop(gfid, None)
            if place == "D":
                into[dirgfid] += 1
            elif place == "N":
                landed.append(gfid)
            if place != "P":
                whole.append(gfid)
        self.db.sent_whole(whole)
        if landed:
            self._arrived(landed, NameState.DATA)
        for dirgfid, files in into.items():
            self._less(dirgfid, files)

    def _less(self, dirgfid: Gfid, files: int) -> None:
        """So many files of a new directory are not missing any more."""
        building = self._building.get(dirgfid)
        if building:
            building.pending -= files
            self._completed(dirgfid, building)

    def _not_sent(self, result: Result) -> None:
        request = result.request
        gfid, name = request.gfid, (request.dirgfid, request.bname)
        if self.tree.is_away(result.errno):
            raise Transient(f"master: {result.message}")
        tries = self._tries[gfid] = self._tries.get(gfid, 0) + 1
        vanished = result.errno in SENDING.gone or (request.place == "D" and result.errno in _ASK_AGAIN)
        if not vanished and tries <= self.data_retries and result.errno not in SENDING.denied:
            self._flying[gfid] = request
            self._in_flight += 1
            self.syncer.send(request)
            return
        self._tries.pop(gfid, None)
        self.tree.hints.pop(gfid, None)
        if request.place == "P":
            if not vanished:
                self._fail(None, gfid, "data", result.errno, result.message)
            return
        if vanished:  # the source, or the unattached directory, or it is not that simple: ask what is there [14]
            self.db.add_names([name])
            rows = self.db.names_waiting_for(gfid)
            self.db.set_names((NameState.DIRTY, row.rowid) for row in rows)
        else:
            self._fail(name, gfid, "name", result.errno, result.message)
            rows = self.db.names_waiting_for(gfid)
            self.db.set_names((NameState.FAILED, row.rowid) for row in rows)
        if request.place == "D":
            self._less(request.dirgfid, 1)

    # names that cannot be filled at once

    def _catch_up(self) -> None:
        """Wait until the recorder knows all that happened so far; then ask again."""
        now = self.clock.now()
        self.db.flush()
        self.recorder.wait_complete(now)
        self._waited.update(self.db.parents(NameState.UNKNOWN))
        self.db.move(NameState.UNKNOWN, NameState.DIRTY)

    def _unblock(self) -> None:
        """A round without progress: the parents of what is blocked are pulled in [15]."""
        self._stuck += 1
        rows = self.db.names(NameState.BLOCKED, PAGE)
        if self._stuck > MAX_STUCK:
            for row in rows:
                self._give_up(row.rowid, Failure("name", None, row.name, self.tree.path_text(row.name), errno.ENOENT,
                                                 "its parent directory does not come to be at the slave"))
            return
        if self._stuck > 1:  # what the recorder does not know yet may be missing in a chain
            self.db.flush()
            self.recorder.wait_complete(self.clock.now())
        for pargfid in {row.name[0] for row in rows}:
            self.db.add_names(self.tree.parent_chain(pargfid))
        self.db.move(NameState.BLOCKED, NameState.DIRTY)

    def _remove_all(self) -> bool:
        """Nothing is left to fill: the names that are gone [17]; False if there are none. Too many are held."""
        page = self.db.absent(PAGE)
        if not page:
            return False
        self._hold = self._hold or (not self.ignore_deletes and self._too_many())
        while page:
            self.check_stop()
            if self._hold:
                page = self._hold_back(page)
            if page:
                self._remove(page)
            page = self.db.absent(PAGE)
        return True

    def _too_many(self) -> bool:
        """Whether the batch would remove more than the session allows, approved names aside."""
        if not self.max_delete:
            return False
        after = 0
        while (page := self.db.absent(PAGE, after)):
            after = page[-1][0]
            names = [name for _, name, _ in page if not self.ledger.is_approved(name)]
            self._weight += self.slave.weigh(names, self.max_delete - self._weight)
            if self._weight > self.max_delete:
                _log.error("deletes are held", limit=self.max_delete)
                return True
        return False

    def _hold_back(self, page: Sequence[tuple[int, Name, int]]) -> list[tuple[int, Name, int]]:
        """Leave these names in place at the slave; those that may go all the same are returned."""
        approved = [row for row in page if self.ledger.is_approved(row[1])]
        held = [row for row in page if row not in approved]
        there = [row for row in held if self.slave.weigh([row[1]], 1)]
        self.ledger.hold(((name, self.tree.path_text(name)) for _, name, _ in there), self.clock.now())
        self.db.set_names((NameState.DONE, row[0]) for row in held)
        return approved

    def _remove(self, page: Sequence[tuple[int, Name, int]]) -> None:
        answer = self.slave.remove([RemoveRow(name[0], name[1], since) for _, name, since in page],
                                   keep_last=self.ignore_deletes)
        failed = set()
        for i, err, message in answer.errors:
            failed.add(i)
            self._fail(page[i][1], None, "name", err, message)
        self.db.set_names((NameState.FAILED if i in failed else NameState.DONE, row[0]) for i, row in enumerate(page))
        self._displaced(answer.displaced)
        self.progress.removed += len(page)
        if _log.debugs:
            for i, (_, name, _) in enumerate(page):
                if i not in failed:
                    _log.debug("removed", path=shown(self.tree.path_text(name)))

    # data and attributes of what the slave has

    def _data(self) -> None:
        self.db.add_gfids(self._changed, DataNeed.SEND)  # changed while it was read: once more, now in place
        self._changed.clear()
        after = b""
        while (page := self.db.data(after, PAGE)):
            self.check_stop()
            after = page[-1][0]
            known = [row for row, there in zip(page, self.slave.known([g for g, _ in page]), strict=True) if there]
            differing = self._differing(known)
            for gfid in differing:
                self._in_flight += 1
                self.tree.hint(gfid)
            self._send([FileRequest(gfid, "P", b"", b"", 0) for gfid in differing])
            while self._in_flight:
                self._take_results(wait=True)
        self._changed.clear()  # a change after the batch's records has a record of its own

    def _differing(self, rows: Sequence[tuple[Gfid, DataNeed]]) -> list[Gfid]:
        """Those to be sent; what is only suspect is compared by size and hash first."""
        same: set[Gfid] = set()
        for suspects in self._suspects(rows):
            self.tree.will_read(len(suspects))
            for gfid, digest in zip(suspects, self.slave.digest(suspects), strict=True):
                self.check_stop()
                try:
                    if digest is not None and self.tree.digest(gfid) == digest:
                        same.add(gfid)
                except OSError:
                    pass  # sending it says why
        return [gfid for gfid, _ in rows if gfid not in same]

    def _suspects(self, rows: Sequence[tuple[Gfid, DataNeed]]) -> Iterator[list[Gfid]]:
        """Those to be compared, in portions that do not keep the agent busy for long."""
        suspects: list[Gfid] = []
        size = 0
        for gfid, data in rows:
            try:
                st = self.tree.stat(gfid)
            except OSError as exc:
                if self.tree.is_away(exc.errno or 0):
                    raise
                continue  # sending it says why
            if st is None or (data is DataNeed.SEND and (self.stime is None or st.st_mtime_ns >= self.stime)):
                continue
            if suspects and size + st.st_size > COMPARED:
                yield suspects
                suspects, size = [], 0
            suspects.append(gfid)
            size += st.st_size
        if suspects:
            yield suspects

    def _meta(self, dirs: bool) -> None:
        after = b""
        while (page := self.db.meta(after, PAGE, dirs)):
            self.check_stop()
            after = page[-1]
            rows: list[MetaRow] = []
            for gfid in page:
                try:
                    found = self.tree.attrs_of(gfid)
                except OSError as exc:
                    if self.tree.is_away(exc.errno or 0):
                        raise
                    self._fail(None, gfid, "meta", exc.errno or errno.EIO, exc.strerror or str(exc))
                    continue
                if found:
                    attrs, xattrs = found
                    rows.append(MetaRow(gfid, attrs.mode, attrs.uid, attrs.gid, attrs.mtime, attrs.atime, xattrs))
            for row, err in zip(rows, self.slave.meta(rows), strict=True):
                if err > 0:
                    self._fail(None, row.gfid, "meta", err, "attributes: " + os.strerror(err))
                elif _log.debugs:
                    _log.debug("attributes set", path=shown(self._path(None, row.gfid)), gfid=row.gfid.hex())

    # failures

    def _fail(self, name: Name | None, gfid: Gfid | None, what: str, err: int, message: str) -> None:
        path = self._path(name, gfid)
        self.progress.failed += 1
        self.ledger.record(Failure(what, gfid, name, path, err, message))
        log = _log.warning if self.progress.failed <= SHOWN_FAILURES else _log.debug
        log("failed", what=what, path=shown(path), errno=err, error=message)

    def _path(self, name: Name | None, gfid: Gfid | None) -> bytes:
        """For people: of the name, else of one of the names that the inode has."""
        if name is None and gfid is not None:
            name = next(iter(self.tree.names_of(gfid)), None)
        return self.tree.path_text(name) if name else b"?"

    def _give_up(self, rowid: int, failure: Failure) -> None:
        self.progress.failed += 1
        self.ledger.record(failure)
        self.db.set_names([(NameState.FAILED, rowid)])


def _fill_row(r: Resolved) -> FillRow:
    a = r.attrs
    assert a is not None
    return FillRow(r.name[0], r.name[1], r.gfid, a.mode, r.since, a.nlink, a.uid, a.gid, a.mtime, a.atime, a.rdev,
                   r.target, r.xattrs)
