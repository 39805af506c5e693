"""One stretch of recording, from a gap to the next crash or stop: hints in, changelogs out, the index kept up to date.

Promise (convergence rules 1 to 5): every hinted name gets an E record; an inode from an unwatched place gets D and M,
and a directory gets records for everything below it; the index is never durable before the records of the same change;
`complete_up_to` is published last. If it ends between any two of the durable steps (see close_slice), the next stretch
begins with a gap scan that finds the missing changes. Not here: waiting hints (hints), the records of a look (look),
comparing a tree with the index (scan).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Protocol

from gsync.base.clock import Clock
from gsync.base.durable import make_dirs, replace_file
from gsync.base.errors import Stopped
from gsync.base.log import get_logger
from gsync.base.model import NS, ROOT_GFID, Gfid
from gsync.base.namespace import UNKNOWN_CTIME, Namespace
from gsync.changelog import layout
from gsync.changelog.layout import HistoryGap
from gsync.changelog.reader import History
from gsync.changelog.records import Problem, read_records
from gsync.changelog.writer import ChangelogWriter
from gsync.recorder.bounds import Bounds
from gsync.recorder.detector import DetectorFactory
from gsync.recorder.hints import Hints
from gsync.recorder.live import GRANULARITY, LiveIndex
from gsync.recorder.look import Look
from gsync.recorder.scan import FirstScan, FreshScan, GapScan, Reading
from gsync.recorder.slice import Slice
from gsync.recorder.status import RECORDING, SCANNING
from gsync.recorder.tree import RecordedTree
from gsync.state.home import Volume

_log = get_logger(__name__)

PATIENCE = 50             # looks, 10 ms apart, at a directory whose rename must be hinted
PROGRESS_EVERY = 0.5      # s


class Report(Protocol):
    def __call__(self, **changes: object) -> None:
        """Publish these fields of the status."""


class Gaps:
    """The number of interruptions, kept durably in a file: beliefs about the time before a gap may be wrong (rule
    5)."""

    def __init__(self, path: str, report: Report, step: Callable[[str], None]) -> None:
        self._path, self._report, self._step = path, report, step
        self._open = False

    def begin(self, why: str) -> None:
        self._step("gap")
        try:
            with open(self._path, "rb") as file:
                gaps = int(file.read())
        except (FileNotFoundError, ValueError):
            gaps = 0
        replace_file(self._path, b"%d\n" % (gaps + 1))
        _log.info("comparing the tree with the index", reason=why, gaps=gaps + 1)
        self._open = True
        self._report(gaps=gaps + 1, unbroken_since=None)

    def end(self, at: int) -> None:
        """Everything up to `at` (ns) is recorded."""
        if self._open:
            self._open = False
            self._report(unbroken_since=at)


class ScanProgress:
    """Runs between two pages of a scan: takes hints, reports progress, notices the end."""

    def __init__(self, hints: Hints, report: Report, stopped: Callable[[], bool], clock: Clock,
                 step: Callable[[str], None]) -> None:
        self._hints, self._report, self._stopped, self._clock, self._step = hints, report, stopped, clock, step
        self._told = 0.0
        self.names = 0

    def page(self, names: int) -> None:
        """This many more names were looked at. Raises Stopped if the scan is to end."""
        self._step("scan")
        if self._stopped():
            raise Stopped
        self._hints.drain()
        self.names += names
        if self._clock.monotonic() >= self._told + PROGRESS_EVERY:
            self._told = self._clock.monotonic()
            self._report(scanned=self.names)


class Recording:
    """Opens everything; then call `scan` once, `poll` and `close_slice` again and again, `close`.

    `step` is called before each durable step; `stopped` tells a scan whether to end.
    """

    def __init__(self, volume: Volume, ignored: Sequence[str], new_detector: DetectorFactory, report: Report,
                 stopped: Callable[[], bool], clock: Clock, step: Callable[[str], None],
                 bounds: Bounds) -> None:
        self._volume = volume
        self._report, self._clock, self._step = report, clock, step
        brick = volume.brick()
        self._folder = os.fsencode(brick.changelogs)
        self._gaps = Gaps(brick.gaps, report, step)
        self._rolled = 0.0

        with ExitStack() as opened:
            root_fd = volume.open_root()
            opened.callback(os.close, root_fd)
            report(state=SCANNING, reason="", complete_up_to=None, scanned=0)
            make_dirs(self._folder)
            # Records that a crash left in the live file belong to an index that was never committed: they are found
            # again.
            with suppress(FileNotFoundError):
                os.unlink(layout.live_path(self._folder))
            self._index = Namespace(brick.namespace)
            opened.callback(self._index.close)
            self._tree = RecordedTree(root_fd, volume.tag, self._index, ignored)
            self._live = LiveIndex(self._index, self._tree)
            self._writer = ChangelogWriter(self._folder, clock.now() // NS)
            opened.callback(self._writer.close)
            self._slice = Slice(self._writer)
            self._gaps.begin("start")
            drained_at = clock.now()
            self._detector = new_detector(root_fd, self._tree.inodes, self._live.knows)
            opened.callback(self._detector.close)
            self._hints = Hints(self._detector, os.fsencode(brick.folder), clock.now, drained_at, bounds.hints)
            opened.callback(self._hints.close)
            self._opened = opened.pop_all()
        self._progress = ScanProgress(self._hints, report, stopped, clock, step)
        self._reading = Reading(self._tree, self._live, self._detector, self._progress.page, clock.now, bounds.scan)
        self._look = Look(self._tree, self._live, self._hints, self._slice, self._scan_below)
        self._note_tracking()
        self._last_changelog = History(self._folder).last_ts
        self._report(detector=self._detector.name, last_changelog=self._last_changelog)

    @property
    def hinted(self) -> bool:
        """Whether there are hints that nobody has looked at yet."""
        return len(self._hints) > 0

    def forget(self, upto: int) -> None:
        """The changelogs of slices that ended up to then (s) have been deleted."""
        self._writer.slices.forget(upto)

    def fileno(self) -> int:
        """Readable when there are events."""
        return self._detector.fileno()

    def close(self) -> None:
        """Release everything as it is, as a crash would, committing nothing."""
        self._opened.close()

    # scanning

    def scan(self) -> None:
        """Compare the tree with the index. The first close_slice after it ends the gap."""
        if not self._live.complete:
            self._scan_first()
            return
        since = self._index.fact("watching_since")
        assert isinstance(since, int)
        self._report(watching_since=since)
        self._live.begin()
        self._repeat_unindexed()
        self._scan_gap()

    def _scan_first(self) -> None:
        """Fill the index. A detector that sees all records every change from its start, any other from the end of the
        scan."""
        scan = FirstScan(self._reading)
        scan.clear()
        since = self._clock.now()
        layout.set_covered_from(self._folder, since)
        if self._detector.sees_all:
            self._report(watching_since=since)
        scan.run()
        if not self._detector.sees_all or self._hints.gap:
            since = self._clock.now()
            layout.set_covered_from(self._folder, since)
        self._live.begin()
        self._writer.slices.begin_anew()  # changes applied from the former history no longer count
        self._index.set_fact("complete", 1)
        self._index.set_fact("watching_since", since)
        self._index.set_fact("last_ts", self._writer.last_ts)
        self._index.set_fact("root_ctime", UNKNOWN_CTIME)
        self._live.note_racy(ROOT_GFID)
        self._live.commit()
        self._live.complete = True
        self._report(watching_since=since)
        self._measure()

    def _scan_gap(self) -> None:
        """Record all differences from the index."""
        self._hints.gap = ""
        self._progress.names = 0
        GapScan(self._reading, self._slice).run()
        self._measure()

    def _scan_below(self, gfid: Gfid, handle: bytes) -> None:
        FreshScan(self._reading, self._slice).run(gfid, handle)

    def _measure(self) -> None:
        entries, total = self._index.count()
        _log.info("tree is scanned", entries=entries, bytes=total, records=self._slice.records)
        self._report(entries=entries, bytes=total)

    def _repeat_unindexed(self) -> None:
        """Record again the contents of changelogs newer than the index: after a power failure the tree may be older
        than they are, and the index does not know their records."""
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

    # following

    def poll(self) -> bool:
        """Take hints from the detector, and look at them unless that can wait. Return whether there were any."""
        if not self._hints.drain():
            return False
        if self._hints.gap or self._hints.urgent or self._hints.many:
            self._process()
        return True

    def _process(self) -> None:
        """Look at every hint in memory, record what is true, and update the index."""
        self._hints.urgent = False
        self._live.clean_before = self._hints.drained_at - GRANULARITY
        if self._hints.in_memory or self._look.stuck or self._hints.gap or self._hints.lost:
            self._live.begin()
            if self._hints.gap:
                self._check_root()
                self._gaps.begin(self._hints.gap)
                self._report(state=SCANNING)
                self._scan_gap()
            self._look.run()
            self._live.drop_displaced(self._detector)
            self._check_lost()
        self._note_tracking()

    def _note_tracking(self) -> None:
        """Start tracking once the first scan is done and no hint waits on disk: until then, events are missing."""
        if self._detector.sees_all and self._live.complete and not self._hints.any_on_disk:
            self._live.tracking = True

    def _check_lost(self) -> None:
        for gfid in self._hints.take_lost():
            entry = self._index.entry_of(gfid)
            if entry is not None and self._tree.stat(entry) is not None:
                self._hints.gap = "a watch was lost"

    # closing

    def close_slice(self) -> bool:
        """Record everything that happened up to now, durably. False if it must be tried again in a moment (at most one
        changelog per second; a directory that is not yet where it should be)."""
        up_to = self._clock.now()
        self._step("drain")
        self._hints.drain()
        if not self._process_up_to_now():
            return False
        self._live.settle()
        self._check_root()
        if self._slice.records:
            if self.until_next_ts() > 0:
                return False
            self._close_changelog(self._writer.next_ts(up_to // NS))
        self._live.commit()
        self._step("publish")
        self._gaps.end(up_to)
        self._report(state=RECORDING, complete_up_to=up_to, last_changelog=self._last_changelog)
        return True

    def _close_changelog(self, ts: int) -> None:
        """Make durable in this order: the changelog, HTIME, the index (rule 4)."""
        self._step("append")
        self._slice.flush()
        self._step("roll")
        self._writer.roll(ts)
        self._last_changelog = ts
        self._rolled = self._clock.monotonic()
        self._slice.begin_next()
        self._step("commit")
        self._index.set_fact("last_ts", ts)

    def _process_up_to_now(self) -> bool:
        """Look at everything hinted before; False if a directory is not where its last rename led."""
        last = self._hints.last
        for _ in range(PATIENCE):
            self._process_up_to(last)
            if not self._look.stuck and not self._hints.gap:
                return True
            if self._look.stuck:
                time.sleep(0.01)
                self._hints.drain()
        self._look.stuck.clear()
        self._hints.gap = self._hints.gap or "a directory is not where its last rename led"
        return False

    def _process_up_to(self, last: int) -> None:
        """Look at the hints in memory, then at those on disk up to this number."""
        while True:
            taken = self._hints.taken
            self._process()
            if taken >= last or self._hints.gap:
                return
            self._report()
            self._hints.drain()

    def until_next_ts(self) -> float:
        """Seconds until a changelog may be written: one per second, whatever the clock does."""
        now, last = self._clock.now(), self._writer.last_ts
        if now // NS > last:
            return 0.0
        if now // NS == last:
            return (NS - now % NS) / NS
        return max(0.0, self._rolled + 1.0 - self._clock.monotonic())  # the clock was set back

    def _check_root(self) -> None:
        """Raise Faulty if the volume's path does not lead to the tree that is being recorded."""
        if not self._tree.is_at(self._volume.path):
            os.close(self._volume.open_root())
