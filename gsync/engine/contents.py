"""Content and attributes of inodes that the slave has: chooses the content to send again, and sets all attributes.

In place, by gfid, whatever the inodes' names are now (rule 18). Content that is only suspect is compared by size and
hash. Not here: new files, which are sent whole with their attributes (fill, flight).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from gsync.base.log import get_logger
from gsync.base.model import Attrs, Gfid, shown
from gsync.engine.progress import Failures
from gsync.engine.worklist import PAGE, ChangelogDB, DataNeed
from gsync.link.protocol import MetaRow
from gsync.master.tree import Resolved, Xattrs

_log = get_logger(__name__)

COMPARED = 64 << 20  # bytes that one call to the agent compares, unless a single file is larger


class _Slave(Protocol):
    def known(self, gfids: Sequence[Gfid]) -> list[bool]: ...
    def digest(self, gfids: Sequence[Gfid]) -> list[tuple[int, str] | None]: ...
    def meta(self, rows: Sequence[MetaRow]) -> list[int]: ...


class _Master(Protocol):
    def will_read(self, files: int) -> None: ...
    def stat(self, gfid: Gfid) -> os.stat_result | None: ...
    def digest(self, gfid: Gfid) -> tuple[int, str]: ...
    def attrs_of(self, gfid: Gfid) -> tuple[Attrs, Xattrs] | None: ...
    def is_away(self, err: int) -> bool: ...


class Contents:
    """`stime`: files written after it (ns) are sent without a comparison. `check_stop`: called again and again. `owes`:
    files became suspect since the caller last looked."""

    def __init__(self, tree: _Master, slave: _Slave, db: ChangelogDB, failures: Failures,
                 check_stop: Callable[[], None], stime: int | None = None) -> None:
        self._tree, self._slave, self._db, self._failures = tree, slave, db, failures
        self._check_stop, self._stime = check_stop, stime
        self.owes = False

    def suspect(self, items: Iterable[Resolved]) -> None:
        """The slave's copies of these may be stale: compare the files, set the attributes."""
        for item in items:
            assert item.attrs is not None
            self.owes = True
            self._db.add_gfids([item.gfid], DataNeed.COMPARE if item.attrs.is_file else DataNeed.NONE)

    # data

    def stale(self) -> Iterator[list[Gfid]]:
        """Pages of the files whose content must be sent."""
        after = b""
        while (page := self._db.data(after, PAGE)):
            self._check_stop()
            after = page[-1][0]
            there = self._slave.known([gfid for gfid, _ in page])
            known = [row for row, is_there in zip(page, there, strict=True) if is_there]
            same = self._same(known)
            yield [gfid for gfid, _ in known if gfid not in same]

    def _same(self, rows: Sequence[tuple[Gfid, DataNeed]]) -> set[Gfid]:
        """The files that need not be sent, since size and hash are equal."""
        same: set[Gfid] = set()
        for suspects in self._suspects(rows):
            self._tree.will_read(len(suspects))
            for gfid, digest in zip(suspects, self._slave.digest(suspects), strict=True):
                self._check_stop()
                try:
                    if digest is not None and self._tree.digest(gfid) == digest:
                        same.add(gfid)
                except OSError:
                    pass  # sending it will tell why
        return same

    def _suspects(self, rows: Sequence[tuple[Gfid, DataNeed]]) -> Iterator[list[Gfid]]:
        """Portions of suspect files, small enough not to keep the agent busy for long."""
        suspects: list[Gfid] = []
        size = 0
        for gfid, data in rows:
            try:
                st = self._tree.stat(gfid)
            except OSError as exc:
                if self._tree.is_away(exc.errno or 0):
                    raise
                continue  # sending it will tell why
            if st is None or (data is DataNeed.SEND and (self._stime is None or st.st_mtime_ns >= self._stime)):
                continue
            if suspects and size + st.st_size > COMPARED:
                yield suspects
                suspects, size = [], 0
            suspects.append(gfid)
            size += st.st_size
        if suspects:
            yield suspects

    # attributes

    def set_attributes(self) -> None:
        """Directories come last, when nothing changes their times any more."""
        self._meta(dirs=False)
        self._meta(dirs=True)

    def _meta(self, dirs: bool) -> None:
        after = b""
        while (page := self._db.meta(after, PAGE, dirs)):
            self._check_stop()
            after = page[-1]
            rows = [row for gfid in page if (row := self._row(gfid)) is not None]
            for row, err in zip(rows, self._slave.meta(rows), strict=True):
                if err > 0:
                    self._failures.of_inode("meta", row.gfid, err, "attributes: " + os.strerror(err))
                elif _log.debugs:
                    _log.debug("attributes set", path=shown(self._failures.path_of(row.gfid)), gfid=row.gfid.hex())

    def _row(self, gfid: Gfid) -> MetaRow | None:
        """The inode's present attributes; None if it is gone, or they cannot be read."""
        try:
            found = self._tree.attrs_of(gfid)
        except OSError as exc:
            if self._tree.is_away(exc.errno or 0):
                raise
            self._failures.of_inode("meta", gfid, exc.errno or errno.EIO, exc.strerror or str(exc))
            return None
        if found is None:
            return None
        attrs, xattrs = found
        return MetaRow(gfid, attrs.mode, attrs.uid, attrs.gid, attrs.mtime, attrs.atime, xattrs)
