"""Brings the slave tree to what the master has: names as desired state, attributes, commits.

Promise: doing anything again changes nothing; killed anywhere, `recover` and doing it again gives the same tree. What
cannot be done is said per row and hurts no other row; only a slave that is unusable as a whole (full, read-only)
raises OSError, and even then everything done so far is in the index. Numbers in brackets cite convergence.md.

A page of names goes in the order of rule 24: (a) new inodes are made in limbo/new; (b) the names that may change are
written down (`touched`) and the file system is synced; (c) renames; (d) the index follows. What happens within
limbo/new alone belongs to (a): nobody sees it, and a crash throws it away.

Not here: whose tree it is (identity), the conversation (agent). Standard library only, Python 3.9.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from gsync.base.fsid import syncfs
from gsync.base.model import ROOT_GFID, STATE_DIR, Gfid, Name, shown
from gsync.base.namespace import Entry
from gsync.link.protocol import (
    ABSENT,
    ADOPTED,
    ANY_SIZE,
    CYCLE,
    DIRECT,
    ERROR,
    MADE,
    NEW,
    OK,
    PARENT,
    CommitAnswer,
    FillAnswer,
    FillCode,
    FillRow,
    LandedRow,
    MetaRow,
    RemoveAnswer,
    RemoveRow,
)
from gsync.slave.directory.index import Touched
from gsync.slave.directory.limbo import Limbo
from gsync.slave.directory.tree import Inode, SlaveTree
from gsync.slave.limbo import LIMBO_NEW, LIMBO_OLD, TEMPORARY, name_in_limbo
from gsync.slave.outcome import NOT_TO_FILL, READ, SPECIAL, Attachment, Outcome, Step, answer_of

_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS)


class _Page(Outcome):
    """What one call of fill or remove has found out and done."""

    def __init__(self) -> None:
        super().__init__()
        self.touched: list[Touched] = []
        self.empty: dict[Gfid, bool] = {}
        self.known: dict[Gfid, list[Entry]] = {}  # what the index said at the beginning and nothing has changed
        self.in_new: set[str] | None = None       # the names in limbo/new

    def forget(self) -> None:
        """A directory has moved or gone: what was found out about others may be wrong now."""
        self.places.clear()
        self.known.clear()


class Apply:
    """All that the worker can ask for, on one tree. Call `recover` (gsync/slave/directory/recover.py) first."""

    def __init__(self, tree: SlaveTree, adopt: bool = False, delete_retention: int = 0,
                 step: Step = lambda name: None) -> None:
        self.tree = tree
        self.index = tree.index
        self.limbo = Limbo(tree, delete_retention, step)
        self.step = step
        # Where handles are not lasting, recovery gives up what was touched: now it is as if others had made it.
        self.in_doubt = not tree.handles.lasting and bool(tree.index.touched_names(None, 1))
        self._adopt = adopt or self.in_doubt
        self.index.db.execute("CREATE TEMP TABLE IF NOT EXISTS listed (bname BLOB PRIMARY KEY) WITHOUT ROWID")
        self._listed: Gfid | None = None

    # names

    def fill(self, rows: Sequence[FillRow]) -> FillAnswer:
        """Bring each name to the inode that its row says."""
        page = _Page()
        answers = [ERROR] * len(rows)

        def place(i: int) -> None:
            answers[i] = self._place(page, rows[i])

        self.tree.turn()
        try:
            with self.index.transaction():
                page.known = self.index.entries_of_all([row.gfid for row in rows])
                moves = page.answer(answers, lambda i: self._prepare(page, rows[i]))
                self.index.touch(page.touched)
            page.raise_fatal()
            self.step("names to touch noted")
            if moves:
                self._sync_touched(page)
                self._change(page, moves, place)
        finally:
            self.tree.settle()
        return FillAnswer(answers, page.vacated, page.displaced, page.errors)

    def _sync_touched(self, page: _Page) -> None:
        if page.touched:
            syncfs(self.tree.root_fd)
            self.step("synced")

    def _change(self, page: _Page, numbers: Sequence[int], change: Callable[[int], None]) -> None:
        """(c) for these rows: change their names, each on its own, and have the index follow."""
        with self.index.transaction():
            page.each(numbers, change)
            self.step("names changed")
        page.raise_fatal()
        self.step("index follows")

    def _where(self, page: _Page, gfid: Gfid) -> Attachment:
        place = page.places.get(gfid)
        if place is None:
            place = page.places[gfid] = self._find_place(gfid)
        return place

    def _find_place(self, gfid: Gfid) -> Attachment:
        try:
            self.tree.dir(gfid)
        except FileNotFoundError:
            return Attachment.AWAY
        name = self.index.parent_of(gfid)
        if name is not None and name[0] == LIMBO_NEW:
            return Attachment.UNATTACHED
        return Attachment.DETACHED if self.index.is_below(gfid, LIMBO_OLD) else Attachment.IN_TREE

    def _prepare(self, page: _Page, row: FillRow) -> FillCode | None:
        """(a) for one name: its answer, or None if something has to be moved to it. This runs for every name there is:
        what is right already costs one look at the name and a share of a SELECT, what is new not even the look."""
        pargfid, bname, gfid = row.pargfid, row.bname, row.gfid
        place = page.places.get(pargfid) or self._where(page, pargfid)
        if place in NOT_TO_FILL:
            return PARENT
        kind = stat.S_IFMT(row.mode)
        mine = page.known.get(gfid)
        if mine is None:
            mine = self.index.entries_of(gfid)
        for entry in mine:
            if entry.pargfid == pargfid and entry.bname == bname:
                if entry.kind == kind and self._is_there(entry):
                    return OK
                self.index.drop_name(entry)
                page.forget()
                mine.remove(entry)
                break
        if bname.endswith(b".") and not self.tree.caps.dots:
            raise OSError(errno.EINVAL, "the slave keeps no dot at the end of a name")
        occupant = None if place is Attachment.UNATTACHED and self._is_empty(page, pargfid) else \
            self.index.get(pargfid, bname)
        if occupant is None:
            self._other_spelling(row)
        if mine or gfid.hex() in self._new_names(page):
            return self._move(page, row, place, mine, occupant)
        if self._adopt and place is Attachment.IN_TREE and self._take_over(row, occupant):
            page.known.pop(gfid, None)
            return ADOPTED
        free = place is Attachment.UNATTACHED and occupant is None
        if kind == stat.S_IFREG:
            return DIRECT if free and row.nlink == 1 else NEW
        page.known.pop(gfid, None)
        if kind == stat.S_IFDIR:
            self._make_dir(gfid)
            page.places[gfid] = Attachment.UNATTACHED
            page.empty[gfid] = True
            return MADE
        if free:
            self.index.put([self._make_special(self.tree.dir(pargfid), pargfid, bname, row)])
            page.empty[pargfid] = False
            return OK
        self._make_special(self.tree.new_fd, LIMBO_NEW, name_in_limbo(gfid), row)
        self._new_names(page).add(gfid.hex())
        return self._move(page, row, place, mine, occupant)

    def _other_spelling(self, row: FillRow) -> Entry | None:
        """The row's inode at the row's name by another spelling, on a file system that does not tell case. EEXIST if
        another inode of gsync's is there by another spelling, or any by quite another name."""
        alike = self._spellings(row.pargfid, row.bname)
        other = next((entry for name in alike or () if (entry := self.index.get(row.pargfid, name))), None)
        if alike == [] or (other is not None and other.gfid != row.gfid):
            with suppress(FileNotFoundError):  # it may have come already, before the other one
                self.tree.discard(self.tree.new_fd, name_in_limbo(row.gfid))
            raise OSError(errno.EEXIST, f"the slave cannot tell it from {shown(other.bname)}" if other is not None else
                          "the slave takes the name for that of another file")
        return other

    def _spellings(self, pargfid: Gfid, bname: bytes) -> list[bytes] | None:
        """The spellings by which the file at this name is listed; none where it has another name (of which this may be
        the short one: FAT gives long names one). None: nothing is there, or it is listed by this very name."""
        if self.tree.caps.case_sensitive:
            return None
        dirfd = self.tree.dir(pargfid)
        if self.tree.look(dirfd, bname) is None:
            return None
        folded = os.fsdecode(bname).casefold()
        alike = [os.fsencode(name) for name in os.listdir(dirfd) if name.casefold() == folded]
        return None if bname in alike else alike

    def _is_another(self, pargfid: Gfid, bname: bytes) -> bool:
        """Whether the file at this name has another one, by which it is gsync's, or may be."""
        alike = self._spellings(pargfid, bname)
        return alike is not None and (not alike or any(self.index.get(pargfid, name) for name in alike))

    def _is_there(self, entry: Entry) -> bool:
        try:
            return self.tree.handles.at(self.tree.dir(entry.pargfid), entry.bname) == entry.handle
        except FileNotFoundError:
            return False

    def _is_empty(self, page: _Page, gfid: Gfid) -> bool:
        """Whether an unattached directory has no names: then none of those to come has an occupant."""
        empty = page.empty.get(gfid)
        if empty is None:
            empty = page.empty[gfid] = self.index.is_empty(gfid)
        return empty

    def _new_names(self, page: _Page) -> set[str]:
        """What lies in limbo/new, read once per page: cheaper than a look for each inode that is nowhere else."""
        if page.in_new is None:
            page.in_new = set(os.listdir(self.tree.new_fd))
        return page.in_new

    def _move(self, page: _Page, row: FillRow, place: Attachment, mine: Sequence[Entry], occupant: Entry | None
              ) -> FillCode | None:
        """(b) for one name: note every name outside limbo that the move may change, with who is there.

        A move within limbo/new is done at once: its row has to be there before a crash can find it in the tree, in a
        directory that the same page attaches.
        """
        if place is Attachment.UNATTACHED and occupant is None and all(e.pargfid == LIMBO_NEW for e in mine):
            page.known.pop(row.gfid, None)
            page.empty[row.pargfid] = False
            self._new_names(page).discard(row.gfid.hex())
            return self._place(page, row)
        handles = {e.handle for e in mine}
        if not handles:
            handles.add(self.tree.handles.at(self.tree.new_fd, name_in_limbo(row.gfid)))
        kind = stat.S_IFMT(row.mode)
        for handle in handles:
            page.touched.append(Touched(row.pargfid, row.bname, row.gfid, handle, kind, row.since))
        changing = [e for e in mine if e.pargfid not in (LIMBO_NEW, LIMBO_OLD)]
        if occupant is not None:
            changing.append(occupant)
        page.touched += [Touched(e.pargfid, e.bname, e.gfid, e.handle, e.kind, row.since) for e in changing]
        return None

    # making

    def _make_dir(self, gfid: Gfid) -> Entry:
        name = name_in_limbo(gfid)
        try:
            os.mkdir(name, 0o700, dir_fd=self.tree.new_fd)
        except FileExistsError:  # of a page that broke off
            self.tree.discard(self.tree.new_fd, name)
            os.mkdir(name, 0o700, dir_fd=self.tree.new_fd)
        self.tree.forget(gfid)
        entry = Entry(LIMBO_NEW, name, gfid, stat.S_IFDIR, self.tree.handles.at(self.tree.new_fd, name))
        self.index.put([entry])
        self.index.add_incomplete(gfid)
        self.step("directory made")
        return entry

    def _make_special(self, dirfd: int, pargfid: Gfid, bname: bytes, row: FillRow) -> Entry:
        """Make a symlink, FIFO, socket or device whole at a name in limbo/new that no row is about."""
        kind = stat.S_IFMT(row.mode)
        if kind not in SPECIAL:
            raise ValueError(f"no kind of inode: mode {row.mode:o}")
        try:
            _make(dirfd, bname, kind, row)
        except FileExistsError:  # of a page or a transfer that broke off
            self.tree.discard(dirfd, bname)
            _make(dirfd, bname, kind, row)
        entry = Entry(pargfid, bname, row.gfid, kind, self.tree.handles.at(dirfd, bname))
        try:
            self.tree.set_attrs_at(dirfd, entry, row.meta)
        except OSError:
            os.unlink(bname, dir_fd=dirfd)
            raise
        self.step("special made")
        return entry

    def _take_over(self, row: FillRow, occupant: Entry | None) -> bool:
        """Let a foreign inode at the name be this gfid from now on, if it can be."""
        dirfd = self.tree.dir(row.pargfid)
        found = self.tree.look(dirfd, row.bname)
        if found is None or found.kind != stat.S_IFMT(row.mode):
            return False
        if occupant is not None:
            if occupant.handle == found.handle:
                return False
            self.index.drop_name(occupant)
        if found.kind == stat.S_IFLNK and os.readlink(row.bname, dir_fd=dirfd) != row.target:
            return False
        if found.kind in (stat.S_IFCHR, stat.S_IFBLK) and found.st.st_rdev != row.rdev:
            return False
        if not found.is_dir and found.st.st_nlink > 1:
            if not self.tree.handles.lasting:
                return False  # whose the other names are cannot be told
            if self.index.adopted(found.handle) not in (None, row.gfid):
                return False  # linked here, but two files on the master
            self.index.adopt(found.handle, row.gfid)
        self.index.put([Entry(row.pargfid, row.bname, row.gfid, found.kind, found.handle)])
        if found.is_dir:
            self.index.add_incomplete(row.gfid)
        return True

    # moving

    def _sources(self, row: FillRow) -> list[Entry]:
        """The names at which the inode really is, best first; rows that are not true are dropped."""
        kind = stat.S_IFMT(row.mode)
        true = []
        for entry in self.index.entries_of(row.gfid):
            if entry.kind == kind and self.tree.is_at(entry):
                true.append(entry)
            else:
                self.index.drop_name(entry)
        name = name_in_limbo(row.gfid)
        if not true and (found := self.tree.look(self.tree.new_fd, name)) is not None and found.kind == kind != \
                stat.S_IFDIR:
            true.append(Entry(LIMBO_NEW, name, row.gfid, kind, found.handle))
        true.sort(key=lambda e: e.pargfid not in (LIMBO_OLD, LIMBO_NEW))
        return true

    def _place(self, page: _Page, row: FillRow) -> FillCode:
        """(c) for one name: look again at who is where, then move [21, 22]."""
        if self._where(page, row.pargfid) in NOT_TO_FILL:
            return PARENT
        found, occupant = self._occupant(page, row.pargfid, row.bname)
        if occupant is not None and occupant.gfid == row.gfid:
            return OK
        if found is not None and occupant is None and (other := self._other_spelling(row)) is not None:
            # Away and back: FAT's rename(2) does nothing between spellings.
            self.limbo.detach(self.tree.dir(row.pargfid), other.bname, found, other, row.since, keep_name=False)
            page.forget()
            found = None
        sources = self._sources(row)
        is_dir = stat.S_ISDIR(row.mode)
        if not sources:
            return self._nowhere(page, row)
        if found is not None and self.tree.handles.lasting and any(e.handle == found.handle for e in sources):
            # A link that the index did not know.
            self.index.put([sources[0]._replace(pargfid=row.pargfid, bname=row.bname)])
            return OK
        if is_dir:
            return self._place_dir(page, row, sources[0], found, occupant)
        return self._place_file(page, row, sources[0], found, occupant)

    def _occupant(self, page: _Page, pargfid: Gfid, bname: bytes) -> tuple[Inode | None, Entry | None]:
        """Who is at the name, and the row about it; a row that is not true is dropped."""
        found = self.tree.look(self.tree.dir(pargfid), bname)
        entry = self.index.get(pargfid, bname)
        if entry is not None and (found is None or entry.handle != found.handle):
            self.index.drop_name(entry)
            if stat.S_ISDIR(entry.kind):
                page.forget()
            entry = None
        return found, entry

    def _nowhere(self, page: _Page, row: FillRow) -> FillCode:
        """The index was wrong: the inode is gone from the slave."""
        kind = stat.S_IFMT(row.mode)
        if kind == stat.S_IFREG:
            return NEW
        if kind == stat.S_IFDIR:
            self._make_dir(row.gfid)
            page.forget()
            return MADE
        self._make_special(self.tree.new_fd, LIMBO_NEW, name_in_limbo(row.gfid), row)
        return self._place(page, row)

    def _detach(self, page: _Page, row: FillRow | RemoveRow, found: Inode, entry: Entry | None, keep_name: bool
                ) -> None:
        self.limbo.detach(self.tree.dir(row.pargfid), row.bname, found, entry, row.since, keep_name)
        if entry is not None:
            page.displaced.append(entry.gfid)
        if found.is_dir:
            page.forget()

    def _unlink(self, row: FillRow | RemoveRow) -> None:
        """Take one of several links away."""
        os.unlink(row.bname, dir_fd=self.tree.dir(row.pargfid))
        self.index.remove(row.pargfid, row.bname)
        self.step("unlinked")

    def _place_dir(self, page: _Page, row: FillRow, source: Entry, found: Inode | None, occupant: Entry | None
                   ) -> FillCode:
        if self.index.is_below(row.pargfid, row.gfid):
            return CYCLE
        if found is not None:
            if self.limbo.is_last_link(found, occupant.gfid if occupant else None):
                self._detach(page, row, found, occupant, keep_name=False)
            else:
                self._unlink(row)
        tree = self.tree
        if source.pargfid == LIMBO_NEW:
            tree.set_attrs_at(tree.new_fd, source, row.meta)
        tree.rename(tree.dir(source.pargfid), source.bname, source, tree.dir(row.pargfid), row.bname)
        self._moved(page, source, row)
        page.forget()
        return OK

    def _place_file(self, page: _Page, row: FillRow, source: Entry, found: Inode | None, occupant: Entry | None
                    ) -> FillCode:
        tree = self.tree
        if found is not None and self.limbo.is_last_link(found, occupant.gfid if occupant else None):
            self._detach(page, row, found, occupant, keep_name=True)
        if source.pargfid in (LIMBO_NEW, LIMBO_OLD):
            os.rename(source.bname, row.bname, src_dir_fd=tree.dir(source.pargfid), dst_dir_fd=tree.dir(row.pargfid))
            if found is not None and not tree.handles.lasting:  # of two links of one inode rename(2) leaves both
                with suppress(FileNotFoundError):
                    os.unlink(source.bname, dir_fd=tree.dir(source.pargfid))
            self._moved(page, source, row)
            return OK
        try:
            self._link(source, row)
        except OSError as exc:
            if exc.errno not in _NO_LINKS or row.nlink != 1:
                raise
            os.rename(source.bname, row.bname, src_dir_fd=tree.dir(source.pargfid), dst_dir_fd=tree.dir(row.pargfid))
            self._moved(page, source, row)
            return OK
        self.step("linked")
        self.index.put([source._replace(pargfid=row.pargfid, bname=row.bname)])
        return OK

    def _link(self, source: Entry, row: FillRow) -> None:
        """Give the inode this name too, replacing in one step what is there."""
        tree = self.tree
        try:
            os.link(source.bname, row.bname, src_dir_fd=tree.dir(source.pargfid), dst_dir_fd=tree.dir(row.pargfid),
                    follow_symlinks=False)
            return
        except FileExistsError:
            pass
        temporary = TEMPORARY + name_in_limbo(row.gfid)
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=tree.new_fd)
        os.link(source.bname, temporary, src_dir_fd=tree.dir(source.pargfid), dst_dir_fd=tree.new_fd,
                follow_symlinks=False)
        self.step("temporary link made")
        os.rename(temporary, row.bname, src_dir_fd=tree.new_fd, dst_dir_fd=tree.dir(row.pargfid))

    def _moved(self, page: _Page, source: Entry, row: FillRow) -> None:
        """The rename is done: the index follows."""
        self.step("renamed")
        self.index.move(source, row.pargfid, row.bname)
        if source.pargfid == LIMBO_OLD:
            self.index.leave_limbo(source.bname)
        elif source.pargfid != LIMBO_NEW:
            page.vacated.append(source.name)

    def remove(self, rows: Sequence[RemoveRow], keep_last: bool = False) -> RemoveAnswer:
        """Take names away: an inode whose last name it is waits in limbo/old [17], or with keep_last keeps it. Those in
        detached directories too: a directory may come back."""
        page = _Page()
        self.tree.turn()
        try:
            there: list[int] = []
            with self.index.transaction():
                for i, row in enumerate(rows):
                    if self._where(page, row.pargfid) is Attachment.AWAY:
                        continue
                    there.append(i)
                    entry = self.index.get(row.pargfid, row.bname)
                    if entry is not None:
                        page.touched.append(Touched(*entry[:3], entry.handle, entry.kind, row.since))
                self.index.touch(page.touched)
            self.step("names to touch noted")
            self._sync_touched(page)
            self._change(page, there, lambda i: self._remove(page, rows[i], keep_last))
        finally:
            self.tree.settle()
        return RemoveAnswer(page.displaced, page.errors)

    def _remove(self, page: _Page, row: RemoveRow, keep_last: bool) -> None:
        if self._where(page, row.pargfid) is Attachment.AWAY:
            return
        found, entry = self._occupant(page, row.pargfid, row.bname)
        if found is None or (entry is None and self._is_another(row.pargfid, row.bname)):
            return
        if not self.limbo.is_last_link(found, entry.gfid if entry else None):
            self._unlink(row)
        elif not keep_last:
            self._detach(page, row, found, entry, keep_name=False)

    def names_in(self, gfid: Gfid, after: bytes | None, limit: int
                 ) -> tuple[list[tuple[bytes, Gfid | None]], bytes | None]:
        """A page of the names in a directory, each with its gfid, and where to go on; foreign names (None) only while
        adopting."""
        self.tree.turn()
        self._list_foreign(gfid, after)
        start = after or b""
        rows = self.index.db.execute(
            "SELECT bname, gfid FROM entries WHERE pargfid=?1 AND bname>?2 UNION ALL "
            "SELECT bname, NULL FROM listed WHERE bname>?2 AND NOT EXISTS "
            "(SELECT 1 FROM entries WHERE pargfid=?1 AND entries.bname=listed.bname) ORDER BY 1 LIMIT ?3",
            (gfid, start, limit)).fetchall()
        return rows, rows[-1][0] if len(rows) == limit else None

    def _list_foreign(self, gfid: Gfid, after: bytes | None) -> None:
        """Have every name that is in the directory in the table `listed`, when adopting."""
        if self._listed == gfid and after is not None:
            return
        self.index.db.execute("DELETE FROM listed")
        self._listed = gfid
        if not self._adopt:
            return
        try:
            dirfd = self.tree.dir(gfid)
        except FileNotFoundError:
            return
        with os.scandir(dirfd) as items, self.index.transaction():
            self.index.db.executemany("INSERT OR IGNORE INTO listed VALUES (?)", (
                (name,) for name in (os.fsencode(item.name) for item in items)
                if gfid != ROOT_GFID or name not in (STATE_DIR, b"lost+found")))
        self.tree.settle()

    # inodes

    def weigh(self, names: Iterable[Name], limit: int) -> int:
        """How many entries would go with these names, all below directories included; counted up to limit + 1."""
        total = 0
        todo: list[Gfid] = []
        for pargfid, bname in names:
            entry = self.index.get(pargfid, bname)
            if entry is None:
                continue
            total += 1
            if stat.S_ISDIR(entry.kind):
                todo.append(entry.gfid)
            while todo and total <= limit:
                gfid = todo.pop()
                total += int(self.index.db.execute("SELECT count(*) FROM entries WHERE pargfid=?",
                                                   (gfid,)).fetchone()[0])
                todo += (row[0] for row in self.index.db.execute(
                    "SELECT gfid FROM entries WHERE pargfid=? AND kind=?", (gfid, stat.S_IFDIR)))
            if total > limit:
                return limit + 1
        return total

    def known(self, gfids: Iterable[Gfid]) -> list[int]:
        """For each inode 1 if the slave has it at a name, or waiting in limbo; else 0."""
        execute = self.index.db.execute
        return [1 if gfid == ROOT_GFID or execute("SELECT 1 FROM entries WHERE gfid=?", (gfid,)).fetchone() else 0
                for gfid in gfids]

    def meta(self, rows: Sequence[MetaRow]) -> list[int]:
        """Set attributes; for each row 0, an errno or ABSENT."""
        answers = []
        self.tree.turn()
        try:
            for row in rows:
                try:
                    answers.append(0 if self.tree.set_attrs_of(row) else ABSENT)
                except OSError as exc:
                    answers.append(answer_of(exc))
        finally:
            self.tree.settle()
        return answers

    def landed(self, rows: Sequence[LandedRow]) -> list[int]:
        """Finish new files that rsync has made in limbo/link; for each 0, an errno or ABSENT."""
        answers = []
        for meta, size in rows:
            try:
                self._fetch(meta.gfid)
                found = self.tree.look(self.tree.new_fd, name_in_limbo(meta.gfid))
                if found is None:
                    answers.append(ABSENT)
                elif found.kind != stat.S_IFREG or size not in (found.st.st_size, ANY_SIZE):
                    answers.append(errno.EAGAIN)
                else:
                    entry = Entry(LIMBO_NEW, name_in_limbo(meta.gfid), meta.gfid, stat.S_IFREG, found.handle)
                    self.tree.set_attrs_at(self.tree.new_fd, entry, meta)
                    answers.append(0)
            except OSError as exc:
                answers.append(answer_of(exc))
        return answers

    def _fetch(self, gfid: Gfid) -> None:
        """Bring a new file from limbo/link to limbo/new, if it is there."""
        name = name_in_limbo(gfid)
        found = self.tree.look(self.tree.link_fd, name)
        if found is not None and found.kind == stat.S_IFREG and found.st.st_nlink == 1 and gfid not in \
                self.limbo.exposed:
            os.rename(name, name, src_dir_fd=self.tree.link_fd, dst_dir_fd=self.tree.new_fd)

    def digest(self, gfids: Sequence[Gfid]) -> list[tuple[int, int, str]]:
        """(errno or ABSENT, size, BLAKE2b in hex) of each file's content."""
        answers = []
        self.tree.turn()
        try:
            for gfid in gfids:
                try:
                    answers.append((0, *self._digest(gfid)))
                except FileNotFoundError:
                    answers.append((ABSENT, 0, ""))
                except OSError as exc:
                    answers.append((answer_of(exc), 0, ""))
        finally:
            self.tree.settle()
        return answers

    def _digest(self, gfid: Gfid) -> tuple[int, str]:
        try:
            fd = self.tree.open_file(gfid, os.O_RDONLY | os.O_NOATIME)
        except PermissionError:  # not the owner
            fd = self.tree.open_file(gfid, os.O_RDONLY)
        digest, size = hashlib.blake2b(), 0
        with open(fd, "rb", buffering=0) as file:
            while True:
                data = file.read(READ)
                if not data:
                    return size, digest.hexdigest()
                digest.update(data)
                size += len(data)

    def expose(self, gfids: Sequence[Gfid]) -> list[int]:
        """Give each file the name limbo/link/<gfid>, where rsync may write to it: 0, an errno or ABSENT. Nothing but
        regular files ever comes there: rsync would follow a symlink."""
        answers = []
        self.tree.turn()
        try:
            for gfid in gfids:
                try:
                    answers.append(0 if self._expose(gfid) else ABSENT)
                except OSError as exc:
                    answers.append(answer_of(exc))
        finally:
            self.tree.settle()
        return answers

    def _expose(self, gfid: Gfid) -> bool:
        for entry in self.tree.names(gfid):
            if not stat.S_ISREG(entry.kind):
                raise OSError(errno.EINVAL, "not a regular file", gfid.hex())
            dirfd = self.tree.dir(entry.pargfid)
            self.tree.make_writable(dirfd, entry)
            self._unexpose(gfid)
            os.link(entry.bname, name_in_limbo(gfid), src_dir_fd=dirfd, dst_dir_fd=self.tree.link_fd,
                    follow_symlinks=False)
            if not stat.S_ISREG(os.stat(name_in_limbo(gfid), dir_fd=self.tree.link_fd, follow_symlinks=False).st_mode):
                self._unexpose(gfid)
                raise OSError(errno.EINVAL, "not a regular file", gfid.hex())
            self.limbo.exposed.add(gfid)
            return True
        return False

    def _unexpose(self, gfid: Gfid) -> None:
        with suppress(FileNotFoundError):
            os.unlink(name_in_limbo(gfid), dir_fd=self.tree.link_fd)
        self.limbo.exposed.discard(gfid)

    def unexpose(self, gfids: Sequence[Gfid]) -> None:
        """Take the names for rsync away."""
        for gfid in gfids:
            self._unexpose(gfid)

    # the end of a batch

    def complete(self, gfids: Sequence[Gfid]) -> None:
        """The content of these directories is all here."""
        with self.index.transaction():
            self.index.complete(gfids)

    def leftover_names(self, after: Name | None, limit: int) -> list[Name]:
        """A page of the names that batches without a commit may have changed."""
        return self.index.touched_names(after, limit)

    def leftover_dirs(self, after: Gfid, limit: int) -> list[Gfid]:
        """A page of the directories whose content may be incomplete."""
        return self.index.incomplete(after, limit)

    def leftover_gfids(self, after: Gfid, limit: int) -> list[Gfid]:
        """A page of the inodes that wait in limbo/old."""
        return [e.gfid for e in self.index.children(LIMBO_OLD, name_in_limbo(after), limit)]

    def commit(self, stime: int | None, entry_stime: int | None, epoch: int, clear: bool,
               mark: str | None = None, walked: bool = False) -> CommitAnswer:
        """Make everything durable; then set the stime and, beside it, the worker's mark, and forget what was in doubt;
        then, if `clear`, let go what no later batch can want [25], of any stream. stime None: an interim commit, after
        which everything stays in doubt. walked: the stime holds for all streams."""
        index = self.index
        index.check_epoch(epoch)
        self.tree.turn()
        try:
            if clear:
                self.limbo.empty_new()
                self.limbo.empty_links()
            syncfs(self.tree.root_fd)
            self.step("synced")
            index.db.execute("PRAGMA synchronous=FULL")
            with index.transaction():
                if stime is not None:
                    index.set_standing(stime, entry_stime, mark, walked)
                index.set_fact(index.key("epoch"), epoch)
                index.committed(whole=stime is not None)
            index.db.execute("PRAGMA synchronous=NORMAL")
            self.step("committed")
            removed = self.limbo.clear(index.everyones_stime()) if clear else 0
        finally:
            self.tree.settle()
        return CommitAnswer(index.standing()[0], removed, index.count_waiting())


def _make(dirfd: int, bname: bytes, kind: int, row: FillRow) -> None:
    if kind == stat.S_IFLNK:
        if row.target is None:
            raise ValueError("a symlink without a target")
        os.symlink(row.target, bname, dir_fd=dirfd)
    else:
        os.mknod(bname, kind | 0o600, row.rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0, dir_fd=dirfd)
