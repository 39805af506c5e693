"""Reads directories page by page: those to be enumerated on both sides, and those that are new at the slave.

A directory that is new at the slave is built in limbo, and its files go straight into it. It is complete once it was
read to the end and all its files have landed; then its own name can be filled. Directories below it likewise enter
their parents when they are complete. In a known directory, the slave's names are looked at as well (rule 8). Not here:
filling names (fill), sending files (flight).
"""

from __future__ import annotations

import os
import time
from collections.abc import Container, Iterable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from gsync.base.clock import Clock
from gsync.base.model import Gfid, Name
from gsync.base.namespace import IndexEntry
from gsync.engine.progress import Failures
from gsync.engine.worklist import PAGE, ChangelogDB, DataNeed, EnumDir
from gsync.master.tree import DirReader, Reader, Resolved, Verdict

VOLUME_LISTED = 500       # names of a directory per call to a slave volume, which takes much longer for each
READERS = 8               # directories open at once
SLOW_READ = 0.05          # seconds; a longer wait for one page makes gsync read directories in parallel
SWEEP_SET = 200_000       # names of one directory that are remembered; beyond that, every slave name is looked at

Item = Resolved | IndexEntry   # an entry as looked at, or as the index knows it


class _Slave(Protocol):
    def list(self, directory: Gfid, after: bytes | None) -> tuple[list[tuple[bytes, Gfid | None]], bytes | None]: ...


class _Master(Protocol):
    def read_indexed(self, gfid: Gfid) -> Reader | None: ...
    def read_dir(self, gfid: Gfid) -> Reader | Resolved: ...
    def resolve(self, names: Sequence[Name]) -> list[Resolved]: ...
    def is_away(self, err: int) -> bool: ...


class OpenDir(NamedTuple):
    """A directory that is being read. seen: its names so far; None: the slave has no names there to be checked."""

    directory: EnumDir
    reader: Reader
    seen: set[bytes] | None


@dataclass(slots=True)
class Listed:
    """A page of entries. unasked: new files that go straight into the slave's directories without a question to the
    slave. to_ask: entries to fill. ended: directories that were read to the end."""

    unasked: list[Item] = field(default_factory=list)
    to_ask: list[Resolved] = field(default_factory=list)
    ended: list[OpenDir] = field(default_factory=list)


@dataclass(slots=True)
class _Building:
    """A new directory in limbo whose files are on their way."""

    pending: int = 0
    listed: bool = False

    @property
    def complete(self) -> bool:
        return self.listed and self.pending == 0


class Enumeration:
    """`direct`: files can go straight into unattached directories. `empty`: the slave has only what this batch sends.
    `created`: files that are not older than the changelogs of the batch, as far as they were remembered. `listed`:
    names of directories per page; with fewer, the first files leave sooner."""

    def __init__(self, tree: _Master, slave: _Slave, db: ChangelogDB, failures: Failures, clock: Clock,
                 direct: bool = True, empty: bool = False, created: Set[Gfid] = frozenset(),
                 listed: int = PAGE) -> None:
        self._tree, self._slave, self._db, self._failures, self._clock = tree, slave, db, failures, clock
        self._direct, self._empty, self._created, self._listed = direct, direct and empty, created, listed
        self._readers: list[OpenDir] = []
        self._pool: ThreadPoolExecutor | None = None
        self._building: dict[Gfid, _Building] = {}

    def close(self) -> None:
        for _, reader, _ in self._readers:
            reader.close()
        self._readers.clear()
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None

    def add(self, dirs: Sequence[EnumDir]) -> None:
        """Enumerate these, too."""
        if dirs:
            self._db.add_gfids((d.gfid for d in dirs), DataNeed.NONE, is_dir=True)
            self._db.add_dirs(dirs)

    # opening

    def open(self, waited: Container[Gfid]) -> tuple[list[Gfid], list[EnumDir]]:
        """Open as many directories as may be open at once. Return the new ones that turn out to be complete, and those
        that the recorder must catch up with first; it has caught up with the directories in `waited`."""
        complete: list[Gfid] = []
        unknown: list[EnumDir] = []
        while len(self._readers) < READERS and (taken := self._db.take_dirs(READERS - len(self._readers))):
            for directory in taken:  # even if none of these can be opened, others may
                by_index = self._tree.read_indexed(directory.gfid) if directory.new and self._empty else None
                opened = by_index or self._tree.read_dir(directory.gfid)
                if not isinstance(opened, Resolved):
                    self._readers.append(OpenDir(directory, opened, None if directory.new else set()))
                    if directory.new:
                        self._building.setdefault(directory.gfid, _Building())
                    continue
                self._db.uncover(directory.gfid)
                if opened.verdict is Verdict.UNKNOWN and directory.gfid not in waited:
                    unknown.append(directory)
                elif opened.verdict is Verdict.EXCLUDED:
                    self._db.dirs_done([directory.gfid])
                else:
                    if opened.verdict is Verdict.ERROR:
                        self._unreadable(directory, opened.errno)
                    complete += self._end(directory, None)
        return complete, unknown

    def _unreadable(self, directory: EnumDir, err: int) -> None:
        if self._tree.is_away(err):
            raise OSError(err, os.strerror(err))
        self._failures.of_inode("dir", directory.gfid, err, "directory cannot be read: " + os.strerror(err))

    # reading

    def page(self, flying: Container[Gfid]) -> Listed | None:
        """The next entries of the open directories; None if none is open. flying: files on their way."""
        if not self._readers:
            return None
        want = self._listed // len(self._readers)
        listed = Listed()
        left = []
        for open_dir, entries in zip(self._readers, self._pages(want), strict=True):
            _, reader, seen = open_dir
            self._sort(entries, flying, listed)
            if seen is not None and len(seen) < SWEEP_SET:
                seen.update(e.name[1] for e in entries)
            if len(entries) < want:
                listed.ended.append(open_dir)
                reader.close()
            else:
                left.append(open_dir)
        self._readers = left
        return listed

    def _pages(self, want: int) -> list[Sequence[Item]]:
        """The next entries of every open directory. gsync reads in parallel once the file system made it wait (a
        network, a cold disk); otherwise threads only get in each other's way. Only this thread reads the index."""
        readers = [reader for _, reader, _ in self._readers]
        from_disk = all(isinstance(reader, DirReader) for reader in readers)
        if from_disk and self._pool is not None:
            return list(self._pool.map(lambda reader: reader.page(want), readers))
        began, worked = self._clock.monotonic(), time.thread_time()
        pages: list[Sequence[Item]] = [reader.page(want) for reader in readers]
        took = self._clock.monotonic() - began
        waited = took - (time.thread_time() - worked)
        if from_disk and self._pool is None and waited > SLOW_READ and waited > 0.5 * took:
            self._pool = ThreadPoolExecutor(READERS, "reader")
        return pages

    def _sort(self, entries: Iterable[Item], flying: Container[Gfid], listed: Listed) -> None:
        """New directories of the slave get their files without a question to the slave first, if the slave was empty or
        the files were created during this batch. The receiver notices a file that already came under another name,
        because it was moved in the meantime; the sender notices one that has several names."""
        if not self._empty and not (self._direct and self._created):
            listed.to_ask += [item for item in entries if isinstance(item, Resolved)]  # no other kind is read then
            return
        for item in entries:
            building = self._building.get(item.pargfid if isinstance(item, IndexEntry) else item.name[0])
            plain = isinstance(item, IndexEntry) or (
                item.attrs is not None and item.attrs.is_file and item.attrs.nlink == 1)
            new = self._empty or item.gfid in self._created
            if not plain or not new or building is None or item.gfid in flying:
                listed.to_ask += self._tree.resolve([item.name]) if isinstance(item, IndexEntry) else [item]
            else:
                building.pending += 1
                listed.unasked.append(item)

    def end(self, ended: Iterable[OpenDir]) -> list[Gfid]:
        """All entries of these directories are filled or on their way; return the new ones that are complete."""
        complete: list[Gfid] = []
        for directory, reader, seen in ended:
            if reader.failed:
                self._unreadable(directory, reader.failed)
            complete += self._end(directory, None if reader.failed else seen)
        return complete

    def _end(self, directory: EnumDir, seen: set[bytes] | None) -> list[Gfid]:
        gfid = directory.gfid
        if directory.new:
            self._building.setdefault(gfid, _Building()).listed = True
            return self._completed(gfid)
        self._db.dirs_done([gfid])
        self._db.add_gfids([gfid], DataNeed.NONE, is_dir=True)
        after: bytes | None = None
        while seen is not None:  # rule 8: the slave's names here count as well
            names, after = self._slave.list(gfid, after)
            self._db.add_names((gfid, name) for name, _ in names if name not in seen)
            if after is None:
                break
        return []

    # new directories, in limbo

    @property
    def unattached(self) -> Container[Gfid]:
        """New directories that take files directly."""
        return self._building if self._direct else ()

    def expect(self, items: Iterable[Resolved]) -> None:
        """These files are on their way straight into their unattached directories."""
        for item in items:
            self._building[item.name[0]].pending += 1

    def landed(self, directory: Gfid, files: int) -> list[Gfid]:
        """This many files of a new directory are no longer missing; return the directory if it is complete now."""
        building = self._building.get(directory)
        if building is None:
            return []
        building.pending -= files
        return self._completed(directory)

    def _completed(self, gfid: Gfid) -> list[Gfid]:
        """If nothing is missing in the new directory any more, its name can be filled."""
        if not self._building[gfid].complete:
            return []
        del self._building[gfid]
        self._db.dirs_done([gfid])
        return [gfid]
