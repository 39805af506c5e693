"""The names of a slave directory: found with its index, changed on disk, then in the index (see slave/desired).

Occupant and source are read from the file system (rule 21): a row of the index counts only while its inode's handle is
the row's. Where inodes cannot be told apart at all times (handles do not last), the inode at a touched name is taken
over as if others had made it. Standard library only, Python 3.9.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from gsync.base.fsid import syncfs
from gsync.base.model import Gfid, Name, shown
from gsync.base.namespace import IndexEntry
from gsync.link.protocol import ADOPTED, OK, FillCode, FillRow, MetaRow, RemoveRow
from gsync.slave.desired import Names
from gsync.slave.directory.index import Touched
from gsync.slave.directory.limbo import Limbo
from gsync.slave.directory.tree import Inode, SlaveTree
from gsync.slave.limbo import LIMBO_NEW, LIMBO_OLD, name_in_limbo
from gsync.slave.outcome import Attachment, Step

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)


class Claimed(NamedTuple):
    """The inode at a name: according to the index (None: not gsync's), and according to the disk, where that was
    asked."""

    entry: IndexEntry | None
    inode: Inode | None = None

    @property
    def gfid(self) -> Gfid | None:
        return None if self.entry is None else self.entry.gfid

    @property
    def is_dir(self) -> bool:
        return self.inode is not None and self.inode.is_dir


class DirectoryNames(Names[list[IndexEntry], Claimed]):
    """A source is the rows of an inode's names, the best first; empty if it is in limbo/new without a name.

    adopt: take over foreign inodes.
    """

    no_links = _NO_LINKS

    def __init__(self, tree: SlaveTree, limbo: Limbo, adopt: bool, step: Step) -> None:
        super().__init__()
        self._tree = tree
        self._index = tree.index
        self._limbo = limbo
        self._adopt = adopt
        self._step = step
        self._touched: list[Touched] = []
        self._known: dict[Gfid, list[IndexEntry]] = {}  # rows as of the start of the page, unchanged since
        self._empty: dict[Gfid, bool] = {}         # unattached directories: whether they have no names
        self._new: set[str] | None = None          # the names in limbo/new

    # the start and end of a page

    @contextmanager
    def page(self) -> Iterator[None]:
        self._touched, self._new = [], None
        self._empty.clear()
        self._tree.turn()
        try:
            with super().page():
                yield
        finally:
            self._tree.settle()

    @contextmanager
    def preparing(self, gfids: Sequence[Gfid]) -> Iterator[None]:
        with self._index.transaction():
            self._known = self._index.entries_of_all(gfids)
            yield
            self._index.touch(self._touched)

    def make_durable(self, *, made: bool) -> None:
        if self._touched:
            syncfs(self._tree.root_fd)
            self._step("synced")

    @contextmanager
    def changing(self) -> Iterator[None]:
        with self._index.transaction():
            yield

    # locating directories

    def forget(self) -> None:
        super().forget()
        self._known.clear()

    def find_place(self, gfid: Gfid) -> Attachment:
        try:
            self._tree.dir(gfid)
        except FileNotFoundError:
            return Attachment.AWAY
        name = self._index.parent_of(gfid)
        if name is not None and name[0] == LIMBO_NEW:
            return Attachment.UNATTACHED
        return Attachment.DETACHED if self._index.is_below(gfid, LIMBO_OLD) else Attachment.IN_TREE

    def is_below(self, gfid: Gfid, above: Gfid) -> bool:
        return self._index.is_below(gfid, above)

    # (a) and (b)

    def look(self, row: FillRow, place: Attachment
             ) -> tuple[FillCode | None, list[IndexEntry] | None, Claimed | None]:
        """A name that is already right costs one look and a share of a SELECT; a new one not even the look."""
        pargfid, bname, gfid = row.pargfid, row.bname, row.gfid
        mine = self._known.get(gfid)
        if mine is None:
            mine = self._index.entries_of(gfid)
        for entry in mine:
            if entry.pargfid == pargfid and entry.bname == bname:
                if entry.kind == stat.S_IFMT(row.mode) and self._is_there(entry):
                    return OK, None, None
                self._index.drop_name(entry)
                self.forget()
                mine.remove(entry)
                break
        if bname.endswith(b".") and not self._tree.caps.dots:
            raise OSError(errno.EINVAL, "the slave drops a dot at the end of a name")
        occupant = None if place is Attachment.UNATTACHED and self._is_empty(pargfid) else \
            self._index.get(pargfid, bname)
        if occupant is None:
            self._other_spelling(row)
        claimed = None if occupant is None else Claimed(occupant)
        if mine or gfid.hex() in self._new_names():
            return None, mine, claimed
        if self._adopt and place is Attachment.IN_TREE and self._take_over(row, occupant):
            self._known.pop(gfid, None)
            return ADOPTED, None, None
        return None, None, claimed

    def _is_there(self, entry: IndexEntry) -> bool:
        try:
            return self._tree.handles.at(self._tree.dir(entry.pargfid), entry.bname) == entry.handle
        except FileNotFoundError:
            return False

    def _is_empty(self, gfid: Gfid) -> bool:
        """Whether an unattached directory has no names: then no name filled there has an occupant."""
        empty = self._empty.get(gfid)
        if empty is None:
            empty = self._empty[gfid] = self._index.is_empty(gfid)
        return empty

    def _new_names(self) -> set[str]:
        """The entries of limbo/new, read once per page: cheaper than a look for each inode that is nowhere else."""
        if self._new is None:
            self._new = set(os.listdir(self._tree.new_fd))
        return self._new

    def _other_spelling(self, row: FillRow) -> IndexEntry | None:
        """The row's inode at another spelling of the row's name, on a file system that ignores case. EEXIST if another
        of gsync's inodes has another spelling there, or any inode has a quite different name."""
        alike = self._spellings(row.pargfid, row.bname)
        other = next((entry for name in alike or () if (entry := self._index.get(row.pargfid, name))), None)
        if alike == [] or (other is not None and other.gfid != row.gfid):
            with suppress(FileNotFoundError):  # it may have arrived already, before the other one
                self._tree.discard(self._tree.new_fd, name_in_limbo(row.gfid))
            raise OSError(errno.EEXIST, "the slave takes it for the name of another file" if other is None else
                          f"the slave cannot distinguish it from {shown(other.bname)}")
        return other

    def _spellings(self, pargfid: Gfid, bname: bytes) -> list[bytes] | None:
        """The spellings under which the file at this name is listed; empty if it is listed under another name (this may
        be that one's short name: FAT gives long names one). None: the name is free, or listed exactly so."""
        if self._tree.caps.case_sensitive:
            return None
        dirfd = self._tree.dir(pargfid)
        if self._tree.look(dirfd, bname) is None:
            return None
        folded = os.fsdecode(bname).casefold()
        alike = [os.fsencode(name) for name in os.listdir(dirfd) if name.casefold() == folded]
        return None if bname in alike else alike

    def _is_another(self, pargfid: Gfid, bname: bytes) -> bool:
        """Whether the file at this name has another name, under which it is, or may be, gsync's."""
        alike = self._spellings(pargfid, bname)
        return alike is not None and (not alike or any(self._index.get(pargfid, name) for name in alike))

    def _take_over(self, row: FillRow, occupant: IndexEntry | None) -> bool:
        """Give the foreign inode at the name this gfid from now on, if that is possible."""
        dirfd = self._tree.dir(row.pargfid)
        found = self._tree.look(dirfd, row.bname)
        if found is None or found.kind != stat.S_IFMT(row.mode):
            return False
        if occupant is not None:
            if occupant.handle == found.handle:
                return False
            self._index.drop_name(occupant)
        if found.kind == stat.S_IFLNK and os.readlink(row.bname, dir_fd=dirfd) != row.target:
            return False
        if found.kind in (stat.S_IFCHR, stat.S_IFBLK) and found.st.st_rdev != row.rdev:
            return False
        if not found.is_dir and found.st.st_nlink > 1:
            if not self._tree.handles.lasting:
                return False  # nobody can tell whose the other names are
            if self._index.adopted(found.handle) not in (None, row.gfid):
                return False  # hard links here, but two files on the master
            self._index.adopt(found.handle, row.gfid)
        self._index.put([IndexEntry(row.pargfid, row.bname, row.gfid, found.kind, found.handle)])
        if found.is_dir:
            self._index.add_incomplete(row.gfid)
        return True

    def is_new(self, source: list[IndexEntry], gfid: Gfid) -> bool:
        return all(entry.pargfid == LIMBO_NEW for entry in source)

    def will_fill(self, row: FillRow, place: Attachment, source: list[IndexEntry], occupant: Claimed | None) -> None:
        handles = {entry.handle for entry in source}
        if not handles:
            handles.add(self._tree.handles.at(self._tree.new_fd, name_in_limbo(row.gfid)))
        kind = stat.S_IFMT(row.mode)
        for handle in handles:
            self._touched.append(Touched(row.pargfid, row.bname, row.gfid, handle, kind, row.since))
        changing = [entry for entry in source if entry.pargfid not in (LIMBO_NEW, LIMBO_OLD)]
        if occupant is not None and occupant.entry is not None:
            changing.append(occupant.entry)
        self._touched += [Touched(e.pargfid, e.bname, e.gfid, e.handle, e.kind, row.since) for e in changing]

    def will_remove(self, row: RemoveRow) -> bool:
        if self.where(row.pargfid) is Attachment.AWAY:
            return False
        entry = self._index.get(row.pargfid, row.bname)
        if entry is not None:
            self._touched.append(Touched(*entry[:3], entry.handle, entry.kind, row.since))
        return True

    def make_dir(self, gfid: Gfid) -> None:
        name = name_in_limbo(gfid)
        try:
            os.mkdir(name, 0o700, dir_fd=self._tree.new_fd)
        except FileExistsError:  # left by a page that broke off
            self._tree.discard(self._tree.new_fd, name)
            os.mkdir(name, 0o700, dir_fd=self._tree.new_fd)
        self._tree.forget(gfid)
        handle = self._tree.handles.at(self._tree.new_fd, name)
        self._index.put([IndexEntry(LIMBO_NEW, name, gfid, stat.S_IFDIR, handle)])
        self._index.add_incomplete(gfid)
        self._known.pop(gfid, None)
        self.places[gfid] = Attachment.UNATTACHED
        self._empty[gfid] = True

    def make_special(self, row: FillRow, pargfid: Gfid, bname: bytes) -> list[IndexEntry]:
        kind = stat.S_IFMT(row.mode)
        dirfd = self._tree.dir(pargfid)
        try:
            _make(dirfd, bname, kind, row)
        except FileExistsError:  # left by a page or a transfer that broke off
            self._tree.discard(dirfd, bname)
            _make(dirfd, bname, kind, row)
        entry = IndexEntry(pargfid, bname, row.gfid, kind, self._tree.handles.at(dirfd, bname))
        try:
            self._tree.set_attrs_at(dirfd, entry, row.meta)
        except OSError:
            os.unlink(bname, dir_fd=dirfd)
            raise
        self._known.pop(row.gfid, None)
        if pargfid == LIMBO_NEW:
            if self._new is not None:
                self._new.add(row.gfid.hex())
        else:
            self._index.put([entry])
            self._empty[pargfid] = False
        return [entry]

    # (c): looked at again

    def occupant(self, row: FillRow) -> Claimed | None:
        """If the row's own inode is there under another spelling, it is detached and comes back later, since FAT's
        rename(2) does nothing between spellings."""
        occupant = self._occupant(row.pargfid, row.bname)
        if occupant is None or occupant.inode is None or occupant.entry is not None:
            return occupant
        other = self._other_spelling(row)
        if other is None:
            return occupant
        self._limbo.detach(self._tree.dir(row.pargfid), other.bname, occupant.inode, other, row.since, keep_name=False)
        self.forget()
        return None

    def removable(self, row: RemoveRow) -> Claimed | None:
        if self.where(row.pargfid) is Attachment.AWAY:
            return None
        occupant = self._occupant(row.pargfid, row.bname)
        if occupant is not None and occupant.entry is None and self._is_another(row.pargfid, row.bname):
            return None
        return occupant

    def _occupant(self, pargfid: Gfid, bname: bytes) -> Claimed | None:
        """The inode at the name, and its row; a row that is not true is dropped."""
        inode = self._tree.look(self._tree.dir(pargfid), bname)
        entry = self._index.get(pargfid, bname)
        if entry is not None and (inode is None or entry.handle != inode.handle):
            self._index.drop_name(entry)
            if stat.S_ISDIR(entry.kind):
                self.forget()
            entry = None
        return None if inode is None else Claimed(entry, inode)

    def source(self, row: FillRow) -> list[IndexEntry] | None:
        """Rows that are not true are dropped."""
        kind = stat.S_IFMT(row.mode)
        true = []
        for entry in self._index.entries_of(row.gfid):
            if entry.kind == kind and self._tree.is_at(entry):
                true.append(entry)
            else:
                self._index.drop_name(entry)
                if stat.S_ISDIR(entry.kind):
                    self.forget()
        name = name_in_limbo(row.gfid)
        if not true and (found := self._tree.look(self._tree.new_fd, name)) is not None and found.kind == kind != \
                stat.S_IFDIR:
            true.append(IndexEntry(LIMBO_NEW, name, row.gfid, kind, found.handle))
        true.sort(key=lambda e: e.pargfid not in (LIMBO_OLD, LIMBO_NEW))
        return true or None

    def is_same(self, row: FillRow, source: list[IndexEntry], occupant: Claimed) -> bool:
        inode = occupant.inode
        if inode is None or not self._tree.handles.lasting or all(entry.handle != inode.handle for entry in source):
            return False
        self._index.put([source[0]._replace(pargfid=row.pargfid, bname=row.bname)])
        return True

    def is_last(self, occupant: Claimed) -> bool:
        return occupant.inode is not None and self._limbo.is_last_link(occupant.inode, occupant.gfid)

    def home(self, source: list[IndexEntry], row: FillRow) -> Name:
        return source[0].name

    def home_in_limbo(self, source: list[IndexEntry], row: FillRow) -> Name | None:
        return source[0].name if source[0].pargfid in (LIMBO_NEW, LIMBO_OLD) else None

    # (c): changing

    def detach(self, row: FillRow | RemoveRow, occupant: Claimed, *, keep_name: bool) -> None:
        assert occupant.inode is not None
        self._limbo.detach(self._tree.dir(row.pargfid), row.bname, occupant.inode, occupant.entry, row.since, keep_name)

    def rename(self, source: list[IndexEntry], home: Name, row: FillRow, occupant: Claimed | None) -> None:
        tree, entry = self._tree, source[0]._replace(pargfid=home[0], bname=home[1])
        if stat.S_ISDIR(entry.kind):
            tree.rename(tree.dir(home[0]), home[1], entry, tree.dir(row.pargfid), row.bname)
        else:
            os.rename(home[1], row.bname, src_dir_fd=tree.dir(home[0]), dst_dir_fd=tree.dir(row.pargfid))
            if occupant is not None and not tree.handles.lasting:  # of two links of one inode rename(2) leaves both
                with suppress(FileNotFoundError):
                    os.unlink(home[1], dir_fd=tree.dir(home[0]))
        self._index.move(entry, row.pargfid, row.bname)
        if home[0] == LIMBO_OLD:
            self._index.leave_limbo(home[1])
        self._known.pop(row.gfid, None)
        self._empty[row.pargfid] = False
        if home[0] == LIMBO_NEW and self._new is not None:
            self._new.discard(row.gfid.hex())

    def link(self, source: list[IndexEntry], pargfid: Gfid, bname: bytes) -> None:
        tree = self._tree
        os.link(source[0].bname, bname, src_dir_fd=tree.dir(source[0].pargfid), dst_dir_fd=tree.dir(pargfid),
                follow_symlinks=False)
        if pargfid != LIMBO_NEW:
            self._index.put([source[0]._replace(pargfid=pargfid, bname=bname)])

    def unlink(self, pargfid: Gfid, bname: bytes) -> None:
        os.unlink(bname, dir_fd=self._tree.dir(pargfid))
        self._index.remove(pargfid, bname)

    def set_attrs(self, source: list[IndexEntry], meta: MetaRow) -> None:
        self._tree.set_attrs_at(self._tree.new_fd, source[0], meta)


def _make(dirfd: int, bname: bytes, kind: int, row: FillRow) -> None:
    if kind == stat.S_IFLNK:
        if row.target is None:
            raise ValueError("a symlink without a target")
        os.symlink(row.target, bname, dir_fd=dirfd)
    else:
        os.mknod(bname, kind | 0o600, row.rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0, dir_fd=dirfd)
