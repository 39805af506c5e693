"""The slice that is being recorded: collects its records on their way to the changelog."""

from __future__ import annotations

import stat

from gsync.base.fsid import Seen
from gsync.base.model import Gfid, Name
from gsync.changelog.records import Data, Entry, Fop, Meta, Record
from gsync.changelog.writer import ChangelogWriter

_PAGE = 4000
_REMEMBERED = 200_000


class Slice:
    """D and M records appear once per gfid (as far as it can remember); E records appear every time they are added."""

    def __init__(self, writer: ChangelogWriter) -> None:
        self._writer = writer
        self._records: list[Record] = []
        self._data: set[Gfid] = set()
        self._meta: set[Gfid] = set()
        self.changed_lately: set[Gfid] = set()  # by changed(); the caller empties it
        self.records = 0

    def appeared(self, name: Name, seen: Seen, linked: bool = False) -> None:
        """E: this inode is at the name; linked: it has another name, too."""
        st = seen.st
        if stat.S_ISDIR(st.st_mode):
            fop = Fop.MKDIR
        elif linked:
            fop = Fop.LINK
        elif stat.S_ISREG(st.st_mode):
            fop = Fop.CREATE
        elif stat.S_ISLNK(st.st_mode):
            fop = Fop.SYMLINK
        else:
            fop = Fop.MKNOD
        if fop in (Fop.LINK, Fop.SYMLINK):
            self.add(Entry(fop, seen.gfid, (name,)))
        else:
            self.add(Entry(fop, seen.gfid, (name,), st.st_mode, st.st_uid, st.st_gid))

    def renamed(self, gfid: Gfid, old: Name, new: Name) -> None:
        self.add(Entry(Fop.RENAME, gfid, (old, new)))

    def gone(self, gfid: Gfid, name: Name, is_dir: bool) -> None:
        """E: the name is empty; gfid: the inode that was there, as far as known."""
        self.add(Entry(Fop.RMDIR if is_dir else Fop.UNLINK, gfid, (name,)))

    def data(self, gfid: Gfid) -> None:
        if gfid not in self._data:
            if len(self._data) >= _REMEMBERED:
                self._data.clear()
            self._data.add(gfid)
            self.add(Data(gfid))

    def meta(self, gfid: Gfid) -> None:
        if gfid not in self._meta:
            if len(self._meta) >= _REMEMBERED:
                self._meta.clear()
            self._meta.add(gfid)
            self.add(Meta(Fop.SETATTR, gfid))

    def changed(self, seen: Seen) -> None:
        """M, and D for a regular file: anything about this inode may have changed."""
        if stat.S_ISREG(seen.st.st_mode):
            self.data(seen.gfid)
        self.meta(seen.gfid)
        if len(self.changed_lately) < _REMEMBERED:
            self.changed_lately.add(seen.gfid)

    def add(self, record: Record) -> None:
        self._records.append(record)
        self.records += 1
        if len(self._records) >= _PAGE:
            self.flush()

    def flush(self) -> None:
        """Pass the collected records to the writer."""
        self._writer.append(self._records)
        self._records = []

    def begin_next(self) -> None:
        """The changelog of the records so far is closed."""
        self._data.clear()
        self._meta.clear()
        self.changed_lately.clear()
        self.records = 0
