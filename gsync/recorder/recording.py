"""One stretch of recording, from a gap to the next crash or stop: hints in, changelogs out, the index kept in step.

Promise (convergence rules 1 to 5): every hinted name gets an E record; an inode that came from where nobody watched
gets D and M, a directory all below it; the index is never durable before the records that its change made;
`complete_up_to` is published last. Ended between any two of the durable steps (see close_slice), the next stretch
begins with a gap scan that finds what is missing.
Not here: what a detector is, how a tree is compared with the index (scan), the files of the changelogs.
"""

from __future__ import annotations

import itertools
import os
import stat
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Protocol

from gsync.base.durable import make_dirs, replace_file
from gsync.base.fsid import is_mount_handle
from gsync.base.log import get_logger
from gsync.base.model import NS, ROOT_GFID, Gfid, Name
from gsync.base.namespace import UNKNOWN_CTIME, Entry, Namespace
from gsync.changelog import layout
from gsync.changelog.layout import HistoryGap
from gsync.changelog.reader import History
from gsync.changelog.records import Problem, read_records
from gsync.changelog.writer import ChangelogWriter
from gsync.recorder.backlog import Backlog
from gsync.recorder.detector import (
    ChangeHint,
    DetectorFactory,
    Hint,
    LostWatch,
    NameHint,
    Overflow,
    RenameHint,
    RootGone,
)
from gsync.recorder.scan import GRANULARITY, FirstScan, FreshScan, GapScan, entry_at, stamp
from gsync.recorder.slice import Slice
from gsync.recorder.status import RECORDING, SCANNING
from gsync.recorder.tree import OUTSIDE, Elsewhere, Gone, Tree
from gsync.state.home import Volume

_log = get_logger(__name__)

PROCESS_AT = 2000         # hints that are not left until the end of the slice
MOST_IN_MEMORY = 10_000   # hints; those that come after them wait on disk
MOST_HINTS = 5_000_000    # hints on disk; beyond, it is an overflow
ROUNDS = 8                # reads for a rename that explains why a name is empty
PATIENCE = 50             # looks, 10 ms apart, for a directory whose rename must be hinted
PROGRESS_EVERY = 0.5      # s
MOST_RACY = 100_000       # inodes whose ctime is looked at again
MOST_FORMER = 10_000      # former names that are remembered

NOBODY = bytes(16)        # in the record of a name at which the index never had anybody
_APPEARED, _IS_DIR = 1, 2
_DATA, _META = 1, 2


class Stopped(Exception):
    """A scan was asked to end."""


class Report(Protocol):
    def __call__(self, **changes: object) -> None:
        """Publish these fields of the status."""


class Recording:
    """Opens everything; then `scan` once, `poll` and `close_slice` again and again, `close`.

    `step` is called before each durable step, `stopped` says during a scan whether to end.
    """

    def __init__(self, volume: Volume, ignored: Sequence[str], new_detector: DetectorFactory, report: Report,
                 stopped: Callable[[], bool], clock: Callable[[], int], step: Callable[[str], None]) -> None:
        self._volume, self._brick = volume, volume.brick()
        self._report, self._stopped, self._clock, self._step = report, stopped, clock, step
        self._folder = os.fsencode(self._brick.changelogs)
        self._rolled = self._told_progress = 0.0
        self._names_scanned = 0
        self._names: dict[Name, int] = {}                  # to look at
        self._renamed_from: dict[Name, Name] = {}          # new name -> old name
        self._changes: dict[Gfid, int] = {}
        self._story: list[NameHint | RenameHint | ChangeHint] = []  # in order, from a detector that does not see all
        self._told: set[Hint] = set()
        self._backlog = Backlog(os.fsencode(self._brick.folder))    # what came after all these
        self._stuck: dict[Name, int] = {}                  # names in directories that are not where the index says
        self._empty: dict[Name, Entry] = {}                # index entries at whose name nothing was found
        self._displaced: dict[Gfid, Entry] = {}            # inodes that lost a name in the index just now
        self._was_at: dict[Name, Gfid] = {}                # whom an event that is still to come may mean; and,
        self._former: dict[Name, Gfid] = {}                # for long, who may be open under it and has other names
        self._lost: set[Gfid] = set()
        self._racy: set[Gfid] = set()                      # inodes whose ctime was too young to be kept,
        self._settling: set[Gfid] = set()                  # and those for which that is some time ago
        self._said: set[Name] = set()                      # old names that a RENAME record told
        self._gap = ""                                     # why the tree must be compared with the index
        self._unbroken = False                             # whether the last gap is over
        self._urgent = False                               # a new directory waits for its watch, a link to be known
        self._clean_before = 0                             # ctimes older than that can be kept

        with ExitStack() as opened:
            root_fd = volume.open_root()
            opened.callback(os.close, root_fd)
            report(state=SCANNING, reason="", complete_up_to=None, scanned=0)
            make_dirs(self._folder)
            # What a crash left in the live file belongs to an index that was never committed: it is found again.
            with suppress(FileNotFoundError):
                os.unlink(layout.live_path(self._folder))
            opened.callback(self._backlog.close)
            self._index = Namespace(self._brick.namespace)
            opened.callback(self._index.close)
            self._tree = Tree(root_fd, volume.tag, self._index, ignored)
            self._writer = ChangelogWriter(self._folder, clock() // NS)
            opened.callback(self._writer.close)
            self._slice = Slice(self._writer)
            self._first_scan = self._index.fact("complete") != 1
            self._count_gap("start")
            self._drained_at = clock()
            self._detector = new_detector(root_fd, self._tree.inodes, self._knows)
            opened.callback(self._detector.close)
            self._opened = opened.pop_all()
        # Before the first scan nothing was seen.
        self._tracking = self._detector.sees_all and not self._first_scan
        self._last_changelog = History(self._folder).last_ts
        self._report(detector=self._detector.name, last_changelog=self._last_changelog)

    @property
    def hinted(self) -> bool:
        """Whether there are hints that were not looked at yet."""
        return self._hints_kept() > 0

    def fileno(self) -> int:
        """Readable when there are events."""
        return self._detector.fileno()

    def close(self) -> None:
        """Let go of everything as it is, as a crash would: nothing is committed."""
        self._opened.close()

    def scan(self) -> None:
        """Compare the tree with the index. The first close_slice after it ends the gap."""
        if self._first_scan:
            self._scan_first()
            return
        since = self._index.fact("watching_since")
        assert isinstance(since, int)
        self._report(watching_since=since)
        self._begin()
        self._repeat_unindexed()
        self._scan_gap()

    def _scan_first(self) -> None:
        """Fill the index. Every change is recorded from the moment that a detector which sees all is there, else
        from the end of the scan."""
        scan = FirstScan(self._tree, self._index, self._detector, self._tick, self._clock, self._note_racy)
        scan.clear()
        since = self._clock()
        layout.set_covered_from(self._folder, since)
        if self._detector.sees_all:
            self._report(watching_since=since)
        scan.run()
        if not self._detector.sees_all or self._gap:
            since = self._clock()
            layout.set_covered_from(self._folder, since)
        self._begin()
        self._index.set_fact("complete", 1)
        self._index.set_fact("watching_since", since)
        self._index.set_fact("last_ts", self._writer.last_ts)
        self._index.set_fact("root_ctime", UNKNOWN_CTIME)
        self._note_racy(ROOT_GFID)
        self._commit()
        self._first_scan = False
        self._report(watching_since=since)
        self._measure()

    def _scan_gap(self) -> None:
        """Say what differs from the index."""
        self._gap = ""
        self._names_scanned = 0
        GapScan(self._tree, self._index, self._slice, self._detector, self._tick, self._clock, self._note_racy).run()
        self._measure()

    def _measure(self) -> None:
        entries, total = self._index.count()
        _log.info("tree is scanned", entries=entries, bytes=total, records=self._slice.records)
        self._report(entries=entries, bytes=total)

    def _count_gap(self, why: str) -> None:
        """Note, durably, that what was believed of the time before may be wrong."""
        self._step("gap")
        try:
            with open(self._brick.gaps, "rb") as file:
                gaps = int(file.read())
        except (FileNotFoundError, ValueError):
            gaps = 0
        replace_file(os.fsencode(self._brick.gaps), b"%d\n" % (gaps + 1))
        _log.info("comparing the tree with the index", reason=why, gaps=gaps + 1)
        self._unbroken = False
        self._report(gaps=gaps + 1, unbroken_since=None)

    def _repeat_unindexed(self) -> None:
        """Say again what is in changelogs newer than the index: after a power failure the tree may be older than
        they are, and the index knows nothing of what they said."""
        last = self._index.fact("last_ts")
        assert isinstance(last, int)
        try:
            for changelog in History(self._folder).since(last * NS):
                with open(changelog.path, "rb") as file:
                    for record in read_records(file):
                        if not isinstance(record, Problem):
                            self._slice.add(record)
        except HistoryGap as exc:
            _log.warning("changelogs are missing, their readers will walk the tree", error=exc)

    def _tick(self, names: int) -> None:
        """Between two pages of a scan."""
        self._step("scan")
        if self._stopped():
            raise Stopped
        self._drain()
        self._names_scanned += names
        if time.monotonic() >= self._told_progress + PROGRESS_EVERY:
            self._told_progress = time.monotonic()
            self._report(scanned=self._names_scanned)

    # hints

    def poll(self) -> bool:
        """Take in what the detector has; look at it unless that can wait. Whether there was anything."""
        if not self._drain():
            return False
        if self._gap or self._urgent or self._hints_kept() >= PROCESS_AT:
            self._process()
        return True

    def _drain(self) -> bool:
        """Take in what the detector has, as far as memory allows. Whether there is anything new to look at."""
        drained_at, new = self._clock(), False
        for hint in self._detector.read():
            new = True
            if isinstance(hint, Overflow | LostWatch | RootGone) or (
                    not self._backlog and self._in_memory() < MOST_IN_MEMORY):
                self._take(hint)
            else:
                self._backlog.put(hint)
        while self._backlog and self._in_memory() < MOST_IN_MEMORY:
            new = True
            for hint in self._backlog.take():
                self._take(hint)
        if not self._backlog:
            self._drained_at = drained_at  # else changes that still wait may be older
        elif len(self._backlog) > MOST_HINTS:
            self._backlog.clear()
            self._names.clear()
            self._renamed_from.clear()
            self._changes.clear()
            self._story.clear()
            self._told.clear()
            self._gap = "too many changes at once"
        return new

    def _take(self, hint: Hint) -> None:
        if isinstance(hint, Overflow):
            self._gap = "the kernel dropped events"
        elif isinstance(hint, LostWatch):
            self._lost.add(hint.gfid)
        elif isinstance(hint, RootGone):
            self._gap = "the root was moved or unmounted"
        elif self._detector.sees_all:
            self._note(hint)
        elif not isinstance(hint, ChangeHint):
            self._story.append(hint)
            self._told.clear()
            self._urgent = self._urgent or (isinstance(hint, NameHint) and hint.appeared)
        elif hint not in self._told:  # once until something is renamed
            self._story.append(hint)
            self._told.add(hint)

    def _note(self, hint: NameHint | RenameHint | ChangeHint) -> None:
        if isinstance(hint, ChangeHint):
            if hint.gfid is not None:
                self._changes[hint.gfid] = self._changes.get(hint.gfid, 0) | (_DATA if hint.data else _META)
        elif isinstance(hint, RenameHint):
            self._names.setdefault(hint.new, 0)
            self._names.setdefault(hint.old, _IS_DIR if hint.is_dir else 0)
            self._renamed_from[hint.new] = hint.old
        else:
            flags = (_APPEARED if hint.appeared else 0) | (_IS_DIR if hint.is_dir else 0)
            self._names[hint.name] = self._names.get(hint.name, 0) | flags

    def _in_memory(self) -> int:
        return len(self._names) + len(self._changes) + len(self._story)

    def _hints_kept(self) -> int:
        return self._in_memory() + len(self._backlog)

    def _knows(self, gfid: Gfid) -> bool | None:
        """Whether the inode belongs to the tree, as far as was seen. During the first scan any may."""
        if gfid == ROOT_GFID or gfid in self._displaced:
            return True
        return None if self._first_scan else self._index.entry_of(gfid) is not None

    def _tracked(self, gfid: Gfid) -> Entry | None:
        """The place that the index has, or just had, for an inode, if all that happened to it was seen."""
        if not self._tracking:
            return None
        return self._index.entry_of(gfid) or self._displaced.get(gfid)

    # looking

    def _process(self) -> None:
        """Look at every hint in memory; say what is true; update the index."""
        self._urgent = False
        self._clean_before = self._drained_at - GRANULARITY
        if not (self._in_memory() or self._stuck or self._gap or self._lost):
            self._tracking = self._tracking or (self._detector.sees_all and not self._backlog)
            return
        self._begin()
        self._said.clear()
        if self._gap:
            self._check_root()
            self._count_gap(self._gap)
            self._report(state=SCANNING)
            self._scan_gap()
        before = self._was_at
        self._was_at = {}
        for _ in range(ROUNDS):
            self._clean_before = self._drained_at - GRANULARITY
            self._replay(before)
            names, self._names = {**self._names, **self._stuck}, {}
            renamed_from, self._renamed_from = self._renamed_from, {}
            self._stuck = {}
            changes, self._changes = self._changes, {}
            self._slice.changed_lately.clear()
            self._look(names, renamed_from)
            for gfid, what in changes.items():
                if gfid not in self._slice.changed_lately:  # else: looked at since, and all is said
                    self._changes[gfid] = self._changes.get(gfid, 0) | what
            # Where a name is empty, its inode may have been renamed since: that must be known before it is dropped.
            if not self._empty or not self._drain():
                break
        for name, entry in self._empty.items():
            found = self._index.get(*name)
            if found is not None and found.gfid == entry.gfid:
                self._drop(entry)
        self._empty.clear()
        self._note_changes()
        self._drop_displaced()
        self._check_lost()
        self._tracking = self._tracking or (self._detector.sees_all and not self._backlog)

    def _replay(self, before: dict[Name, Gfid]) -> None:
        """Follow renames in the index, in the order of the events: what moved within the tree is known at its new
        name, what left is known no more, even if it is back."""
        story, self._story = self._story, []
        self._told.clear()
        for hint in story:
            if isinstance(hint, ChangeHint) and hint.name is not None:
                entry = self._index.get(*hint.name)
                gfids = {entry.gfid if entry else None, before.get(hint.name), self._was_at.get(hint.name),
                         self._former.get(hint.name)}
                for gfid in gfids - {None}:
                    self._note(hint._replace(gfid=gfid))
                if entry is None:
                    self._note(NameHint(hint.name, True))
                continue
            self._note(hint)
            if isinstance(hint, NameHint):
                if not hint.appeared and (entry := self._index.get(*hint.name)):
                    self._drop(entry)
            elif isinstance(hint, RenameHint):
                self._move(hint)

    def _move(self, hint: RenameHint) -> None:
        moved, victim = self._index.get(*hint.old), self._index.get(*hint.new)
        unproven = self._names[hint.old] & _APPEARED
        if moved is None:
            unproven = _APPEARED
        else:
            if victim is not None and victim.gfid != moved.gfid:
                self._drop(victim)
            self._index.remove(*hint.old)
            self._was_at[hint.old] = moved.gfid
            self._index.put([moved._replace(pargfid=hint.new[0], bname=hint.new[1])])
        self._names[hint.new] |= unproven

    def _look(self, names: dict[Name, int], renamed_from: dict[Name, Name]) -> None:
        """Where something was renamed to first, then where from; then what lies in directories met on the way."""
        targets = {name: flags for name, flags in names.items() if name in renamed_from}
        unknown = self._look_at_all(targets, renamed_from)
        unknown |= self._look_at_all({n: f for n, f in names.items() if n not in targets}, renamed_from)
        self._look_at_all(unknown, renamed_from)  # what is unknown now is not of the tree

    def _look_at_all(self, names: dict[Name, int], renamed_from: dict[Name, Name]) -> dict[Name, int]:
        """Look at the names; gives those whose directory is not known."""
        unknown: dict[Name, int] = {}
        for pargfid, group in itertools.groupby(sorted(names), key=lambda name: name[0]):
            if not self._knows(pargfid):
                unknown.update((name, names[name]) for name in group)
                continue
            fd = -1
            try:
                with suppress(Gone):
                    displaced = self._displaced.get(pargfid)
                    fd = self._tree.open_dir(pargfid, displaced.handle if displaced else None)
                for n, name in enumerate(group):
                    if n % 500 == 499:
                        self._drain()
                    self._look_at(fd, name, names[name], renamed_from.get(name))
                if fd >= 0:
                    self._keep_attributes(pargfid, os.fstat(fd))
            except Elsewhere:
                self._stuck.update((name, names[name]) for name in group)
            except PermissionError as exc:
                _log.warning("directory cannot be looked into", gfid=pargfid.hex(), error=exc.strerror)
            finally:
                if fd >= 0:
                    os.close(fd)
        return unknown

    def _look_at(self, fd: int, name: Name, flags: int, old: Name | None) -> None:
        seen = self._tree.look(fd, *name) if fd >= 0 else None
        if seen is OUTSIDE:
            self._slice.meta(name[0])  # only the directory's times are anybody's business
            return
        known = self._index.get(*name)
        if seen is None:
            if known is not None:
                self._empty[name] = known
            if name not in self._said:
                is_dir = stat.S_ISDIR(known.kind) if known else bool(flags & _IS_DIR)
                gfid = known.gfid if known else self._was_at.get(name, NOBODY)
                self._slice.gone(gfid, name, is_dir)
            return
        is_dir = stat.S_ISDIR(seen.st.st_mode)
        agrees = known is not None and known.gfid == seen.gfid
        place = self._tracked(seen.gfid)
        if place is None and agrees and (is_dir or not flags & _APPEARED):
            place = known  # a directory that the index has here was scanned after it came
        if known is not None and not agrees:
            self._drop(known)
        if is_dir:
            for entry in self._index.entries_of(seen.gfid):
                if entry.name != name:
                    self._index.remove(*entry.name)
        self._put(entry_at(*name, seen, self._clean_before))
        if place is not None and (old is not None or (is_dir and place.name != name)):
            old = old or place.name
            self._slice.renamed(seen.gfid, old, name)
            self._said.add(old)
        else:
            self._slice.appeared(name, seen, linked=seen.st.st_nlink > 1)
        if place is None:
            self._slice.changed(seen)
            if is_dir and not is_mount_handle(seen.handle):
                FreshScan(self._tree, self._index, self._slice, self._detector, self._tick, self._clock,
                          self._note_racy, self._tracked, self._displace).run(seen.gfid, seen.handle)

    # the index

    def _begin(self) -> None:
        if not self._index.db.in_transaction:
            self._index.db.execute("BEGIN IMMEDIATE")

    def _commit(self) -> None:
        if self._index.db.in_transaction:
            self._index.db.execute("COMMIT")

    def _put(self, entry: Entry) -> None:
        self._index.put([entry])
        if entry.ctime == UNKNOWN_CTIME:
            self._note_racy(entry.gfid)

    def _drop(self, entry: Entry) -> None:
        """The entry's name is not its inode's any more; what lies below a directory stays for now."""
        self._index.remove(*entry.name)
        self._was_at[entry.name] = entry.gfid
        self._displace(entry)

    def _displace(self, entry: Entry) -> None:
        self._displaced[entry.gfid] = entry

    def _drop_displaced(self) -> None:
        """What lost its name and was found at no other has left the tree, with all below it."""
        displaced, self._displaced = self._displaced, {}
        for gfid, entry in displaced.items():
            if not stat.S_ISDIR(entry.kind):
                self._remember(entry)
            elif self._index.entry_of(gfid) is None:
                for below in self._index.remove_below(gfid):
                    self._detector.unwatch(below.gfid)
                self._detector.unwatch(gfid)

    def _remember(self, entry: Entry) -> None:
        """Events of a program that has a file open tell the name that it opened, be it gone or another's."""
        if not self._detector.sees_all and self._index.entry_of(entry.gfid) is not None:
            self._former[entry.name] = entry.gfid
            if len(self._former) > MOST_FORMER:
                del self._former[next(iter(self._former))]

    def _note_changes(self) -> None:
        """D and M for what changed, as far as it belongs to the tree."""
        changes, self._changes = self._changes, {}
        for gfid, what in changes.items():
            if gfid == ROOT_GFID:
                self._slice.meta(ROOT_GFID)
                self._keep_attributes(ROOT_GFID, os.fstat(self._tree.root_fd))
                continue
            entry = self._index.entry_of(gfid)
            if entry is None:
                continue
            if what & _DATA and stat.S_ISREG(entry.kind):
                self._slice.data(gfid)
            if what & _META:
                self._slice.meta(gfid)
            self._keep_attributes(gfid, self._tree.stat(entry))

    def _keep_attributes(self, gfid: Gfid, st: os.stat_result | None) -> None:
        """Note an inode's ctime, if all that happened up to it is recorded in this slice or before."""
        ctime = stamp(st, self._clean_before) if st else UNKNOWN_CTIME
        if gfid == ROOT_GFID:
            self._index.set_fact("root_ctime", ctime)
        else:
            self._index.set_ctime(gfid, ctime, st.st_size if st else 0)
        if ctime == UNKNOWN_CTIME:
            self._note_racy(gfid)

    def _note_racy(self, gfid: Gfid) -> None:
        if len(self._racy) < MOST_RACY:
            self._racy.add(gfid)

    def _settle(self) -> None:
        """Note the ctime of inodes for which it was too young a while ago: else each would be sent after a stop."""
        settling, self._settling = self._settling, self._racy if len(self._racy) < MOST_RACY else set()
        self._racy = set()
        for gfid in settling:
            self._begin()
            if gfid == ROOT_GFID:
                self._keep_attributes(gfid, os.fstat(self._tree.root_fd))
            elif (entry := self._index.entry_of(gfid)) is not None and (st := self._tree.stat(entry)) is not None:
                self._keep_attributes(gfid, st)

    def _check_lost(self) -> None:
        lost, self._lost = self._lost, set()
        for gfid in lost:
            entry = self._index.entry_of(gfid)
            if entry is not None and self._tree.stat(entry) is not None:
                self._gap = "a watch was lost"

    # closing

    def close_slice(self) -> bool:
        """Record everything that happened up to now, durably. False if it must be tried again in a moment (one
        changelog per second; a directory that is not yet where it should be)."""
        up_to = self._clock()
        self._step("drain")
        self._drain()
        last = self._backlog.taken + len(self._backlog)  # of the hints that waited then
        for _ in range(PATIENCE):
            self._process_up_to(last)
            if not self._stuck and not self._gap:
                break
            if self._stuck:
                time.sleep(0.01)
                self._drain()
        else:
            self._stuck.clear()
            self._gap = self._gap or "a directory is not where its last rename led"
            return False
        self._settle()
        self._check_root()
        if self._slice.records:
            if self.until_next_ts() > 0:
                return False
            ts = self._writer.next_ts(up_to // NS)
            self._step("append")
            self._slice.flush()
            self._step("roll")
            self._writer.roll(ts)
            self._last_changelog = ts
            self._rolled = time.monotonic()
            self._slice = Slice(self._writer)
            self._step("commit")
            self._index.set_fact("last_ts", ts)
        self._commit()
        self._step("publish")
        if not self._unbroken:
            self._unbroken = True
            self._report(unbroken_since=up_to)
        self._report(state=RECORDING, complete_up_to=up_to, last_changelog=self._last_changelog)
        return True

    def _process_up_to(self, last: int) -> None:
        """Look at what is in memory, and then at what waits on disk up to its hint of this number."""
        while True:
            taken = self._backlog.taken
            self._process()
            if taken >= last or self._gap:
                return
            self._report()
            self._drain()

    def until_next_ts(self) -> float:
        """Seconds until a changelog may be written: one per second, whatever the clock does."""
        now, last = self._clock(), self._writer.last_ts
        if now // NS > last:
            return 0.0
        if now // NS == last:
            return (NS - now % NS) / NS
        return max(0.0, self._rolled + 1.0 - time.monotonic())  # the clock was set back

    def _check_root(self) -> None:
        """Faulty if the path of the volume does not lead to the tree that is being recorded."""
        if not self._tree.is_at(self._volume.path):
            os.close(self._volume.open_root())
