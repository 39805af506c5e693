"""Brings a volume to what the master has: names as desired state, attributes, commits (the same promise and the same
answers as gsync/slave/directory/apply.py, without an index: the volume itself knows gfids).

An inode is found by its gfid wherever it is, so a file gets a name by link(2) of its gfid, and only a directory has to
be looked for: its name is asked of the volume. What is new is made with its gfid in .gsync/limbo/new and renamed into
place when it is complete [invariant 5]; rename(2) keeps the gfid. A page goes in the order of rule 24: (a) new inodes
are made in limbo/new; (b) the names that may change are written down (`VolumeState.touch`) durably; (c) renames.

gfids are unique in a volume, but GlusterFS does not see to that across its bricks: nothing is made before the volume
was asked whether it has the gfid. Numbers in brackets cite convergence.md. Standard library only, Python 3.9.
"""

from __future__ import annotations

import errno
import hashlib
import stat
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import date, timedelta

from gsync.base.model import ROOT_GFID, STATE_DIR, Gfid, Name
from gsync.link.protocol import (
    ABSENT,
    ADOPTED,
    CYCLE,
    DIRECT,
    ERROR,
    MADE,
    NEW,
    OK,
    PARENT,
    RESERVED,
    CommitAnswer,
    FillAnswer,
    FillCode,
    FillRow,
    LandedRow,
    MetaRow,
    RemoveAnswer,
    RemoveRow,
)
from gsync.slave.gluster.state import VolumeState
from gsync.slave.gluster.volume import GlusterVolume, Node, set_node_attrs
from gsync.slave.limbo import LIMBO_NEW, LIMBO_OLD, TEMPORARY, Waiting, gfid_in_limbo, name_in_limbo
from gsync.slave.outcome import NOT_TO_FILL, READ, SPECIAL, Attachment, Outcome, Step, answer_of

# gsync's own folders have gfids of their own making: nobody else may use these (protocol.gfid_of_json).
STATE: Gfid = RESERVED + b"state-dir\0"
LIMBO: Gfid = RESERVED + b"limbo\0\0\0\0\0"
LIMBO_DEL: Gfid = RESERVED + b"limbo/del\0"
TRASH: Gfid = RESERVED + b"trash\0\0\0\0\0"

_PAGE = 1000
_FRESH = 100_000    # directories that are known to be fresh
_LONGEST = 255
_DEEPEST = 100_000  # a chain of parents that is longer is a circle


class _Page(Outcome):
    """What one call of fill or remove has found out and done."""

    def __init__(self) -> None:
        super().__init__()
        self.touched: list[tuple[Gfid, bytes, Gfid, int]] = []
        self.guests: list[tuple[Gfid, int]] = []
        self.made: list[Gfid] = []


class VolumeApply:
    """All that the worker can ask for, on one volume. step: told of everything that a crash may follow. look: called
    before every change, raises Fenced once a younger connection has taken the volume over. leave: "xattrs", "acls"."""

    def __init__(self, volume: GlusterVolume, state: VolumeState, adopt: bool = False, delete_retention: int = 0,
                 step: Step = lambda name: None, look: Callable[[], None] = lambda: None,
                 leave: frozenset[str] = frozenset()) -> None:
        self.volume = volume
        self.state = state
        self.step = step
        self._look = look
        self._adopt = adopt
        self._retention = delete_retention
        self._leave = leave
        self._listed: Gfid | None = None
        self._fresh: set[Gfid] = set()  # directories in limbo/new with nothing in them but what receivers put there

    # names

    def fill(self, rows: Sequence[FillRow]) -> FillAnswer:
        """Bring each name to the inode that its row says."""
        page = _Page()
        answers = [ERROR] * len(rows)

        def prepare(i: int) -> FillCode | None:
            self._look()
            return self._prepare(page, rows[i])

        def place(i: int) -> None:
            answers[i] = self._place(page, rows[i])

        moves = page.answer(answers, prepare)
        self._note(page)
        page.raise_fatal()
        if moves:
            if not self.volume.write_through:
                self.volume.sync()
            self._change(page, moves, place)
        return FillAnswer(answers, page.vacated, page.displaced, page.errors)

    def _note(self, page: _Page) -> None:
        """(b): what may change is in the volume, durably, before it does."""
        self.state.add_incomplete(page.made)
        self.state.touch(page.touched)
        self.state.add_guests(page.guests)
        self.state.write(durable=bool(page.touched))
        self.step("names to touch noted")

    def _change(self, page: _Page, numbers: Sequence[int], change: Callable[[int], None]) -> None:
        """(c) for these rows, each on its own."""
        def looked(i: int) -> None:
            self._look()
            change(i)

        try:
            page.each(numbers, looked)
            self.step("names changed")
        finally:
            self.state.write()
        page.raise_fatal()

    def _where(self, page: _Page, gfid: Gfid) -> Attachment:
        place = page.places.get(gfid)
        if place is None:
            place = page.places[gfid] = self._find_place(gfid)
        return place

    def _find_place(self, gfid: Gfid) -> Attachment:
        if gfid == ROOT_GFID:
            return Attachment.IN_TREE
        node = self.volume.at(LIMBO_NEW, name_in_limbo(gfid))
        if node is not None and node.gfid == gfid:
            return Attachment.UNATTACHED
        node = self.volume.node(gfid)
        if node is None or not node.is_dir:
            return Attachment.AWAY
        chain = self._chain(gfid)
        if not chain or chain[-1] != ROOT_GFID:
            return Attachment.AWAY
        return Attachment.DETACHED if any(g in (LIMBO_OLD, LIMBO_DEL, TRASH) for g in chain) else Attachment.IN_TREE

    def _chain(self, gfid: Gfid) -> list[Gfid]:
        """The directories above one, nearest first."""
        above: list[Gfid] = []
        while gfid != ROOT_GFID and len(above) < _DEEPEST:
            node = self.volume.at(gfid, b"..")
            if node is None:
                break
            gfid = node.gfid
            above.append(gfid)
        return above

    def _prepare(self, page: _Page, row: FillRow) -> FillCode | None:
        """(a) for one name: its answer, or None if something has to be moved to it."""
        pargfid, bname, gfid = row.pargfid, row.bname, row.gfid
        place = self._where(page, pargfid)
        if place in NOT_TO_FILL:
            return PARENT
        kind = stat.S_IFMT(row.mode)
        if kind == stat.S_IFREG and pargfid in self._fresh and self.volume.node(gfid) is None:
            return DIRECT if row.nlink == 1 else NEW  # who may be there came from a receiver, and makes room
        occupant = self.volume.at(pargfid, bname)
        if occupant is not None and occupant.gfid == gfid and occupant.kind == kind:
            return ADOPTED if self._adopt and self.state.standing()[0] is None and place is Attachment.IN_TREE else OK
        node = self.volume.node(gfid)
        if node is not None:
            if node.kind != kind:
                raise OSError(errno.EEXIST, "the slave has another kind of inode with this gfid")
            return self._move(page, row, place, node, occupant)
        free = place is Attachment.UNATTACHED and occupant is None
        if kind == stat.S_IFREG:
            return DIRECT if free and row.nlink == 1 else NEW
        if kind == stat.S_IFDIR:
            self._make_dir(page, gfid)
            return MADE
        if free:
            self._make_special(pargfid, bname, row)
            self._fresh.discard(pargfid)
            return OK
        return self._move(page, row, place, self._make_special(LIMBO_NEW, name_in_limbo(gfid), row), occupant)

    def _move(self, page: _Page, row: FillRow, place: Attachment, node: Node, occupant: Node | None) -> FillCode | None:
        """(b) for one name: note every name outside limbo that the move may change. A move from limbo/new into a
        directory there is done at once: nobody sees it, and a crash throws it away."""
        self._fresh.discard(row.pargfid)
        if place is Attachment.UNATTACHED and occupant is None and self._is_new(row.gfid):
            return self._place(page, row)
        page.touched.append((row.pargfid, row.bname, row.gfid, row.since))
        if occupant is not None:
            page.touched.append((row.pargfid, row.bname, occupant.gfid, row.since))
        if node.is_dir:
            name = self.volume.parent(row.gfid)
            if name is not None and not name[0].startswith(RESERVED):
                page.touched.append((*name, row.gfid, row.since))
                if place is Attachment.UNATTACHED or LIMBO_NEW in self._chain(row.pargfid):
                    page.guests.append((row.gfid, row.since))
        return None

    def _is_new(self, gfid: Gfid) -> bool:
        """Whether it lies in limbo/new."""
        node = self.volume.at(LIMBO_NEW, name_in_limbo(gfid))
        return node is not None and node.gfid == gfid

    # making

    def _make_dir(self, page: _Page, gfid: Gfid) -> None:
        self.volume.make(LIMBO_NEW, name_in_limbo(gfid), gfid, stat.S_IFDIR | 0o700)
        page.places[gfid] = Attachment.UNATTACHED
        if len(self._fresh) >= _FRESH:
            self._fresh.clear()
        self._fresh.add(gfid)
        page.made.append(gfid)
        self.step("directory made")

    def _make_special(self, pargfid: Gfid, bname: bytes, row: FillRow) -> Node:
        """Make a symlink, FIFO, socket or device whole at a free name."""
        if stat.S_IFMT(row.mode) not in SPECIAL:
            raise ValueError(f"no kind of inode: mode {row.mode:o}")
        self.volume.make(pargfid, bname, row.gfid, row.mode, row.uid, row.gid, row.rdev, row.target)
        try:
            node = self.volume.node(row.gfid)
            if node is None:
                raise OSError(errno.EIO, "the inode is not there though it was made")
            self._set(node, row.meta, new=True)
        except OSError:
            with suppress(OSError):
                self.volume.unlink(pargfid, bname)
            raise
        self.step("special made")
        return node

    def _set(self, node: Node, meta: MetaRow, new: bool = False) -> None:
        """Set attributes; a new inode has no xattrs yet."""
        xattrs = meta.xattrs or None if new else meta.xattrs
        set_node_attrs(self.volume, node, meta.mode, meta.uid, meta.gid, meta.mtime, meta.atime, xattrs, self._leave)

    # moving

    def _place(self, page: _Page, row: FillRow) -> FillCode:
        """(c) for one name: look again at who is where, then move [21, 22]."""
        if self._where(page, row.pargfid) in NOT_TO_FILL:
            return PARENT
        occupant = self.volume.at(row.pargfid, row.bname)
        if occupant is not None and occupant.gfid == row.gfid:
            return OK
        node = self.volume.node(row.gfid)
        if node is None:  # gone since it was looked at
            if stat.S_ISREG(row.mode):
                return NEW
            if stat.S_ISDIR(row.mode):
                self._make_dir(page, row.gfid)
                self.state.add_incomplete([row.gfid])
                return MADE
            node = self._make_special(LIMBO_NEW, name_in_limbo(row.gfid), row)
        if node.is_dir:
            return self._place_dir(page, row, node, occupant)
        return self._place_file(page, row, occupant)

    def _detach(self, page: _Page, row: FillRow | RemoveRow, found: Node, keep_name: bool) -> None:
        """Bring the inode at this name into limbo/old; keep_name: by a second link, so that the name can be renamed
        over in one step."""
        if not self._lives_at(found, row.pargfid, row.bname):
            raise OSError(errno.EBUSY, "the volume has this directory by another name too, as after a rename that was "
                                       "cut off; what is at this name stays")
        name = name_in_limbo(found.gfid)
        self.state.wait_in_limbo(Waiting(name, row.since, row.bname))
        if keep_name and not found.is_dir:
            with suppress(FileExistsError):  # of a page that broke off: gfids tell that it is the same
                self.volume.link(found.gfid, LIMBO_OLD, name)
        else:
            self.volume.rename(row.pargfid, row.bname, LIMBO_OLD, name)
        self.step("detached")
        page.displaced.append(found.gfid)
        if found.is_dir:
            page.places.clear()

    def _place_dir(self, page: _Page, row: FillRow, node: Node, occupant: Node | None) -> FillCode:
        if row.pargfid == row.gfid or row.gfid in self._chain(row.pargfid):
            return CYCLE
        source = self.volume.parent(row.gfid)
        if source is None:
            raise OSError(errno.ESTALE, "the directory has no name")
        if occupant is not None:
            if occupant.is_dir or occupant.nlink <= 1:
                self._detach(page, row, occupant, keep_name=False)
            else:
                self.volume.unlink(row.pargfid, row.bname)
                self.step("unlinked")
        if source[0] == LIMBO_NEW:
            self._set(node, row.meta, new=True)
        self._fresh.discard(row.gfid)
        self.volume.rename(*source, row.pargfid, row.bname)
        self._moved(page, source, row)
        page.places.clear()
        return OK

    def _place_file(self, page: _Page, row: FillRow, occupant: Node | None) -> FillCode:
        volume, limbo_name = self.volume, name_in_limbo(row.gfid)
        if occupant is not None:
            if occupant.is_dir or occupant.nlink <= 1:
                self._detach(page, row, occupant, keep_name=True)
            if occupant.is_dir:
                occupant = None
        for folder in (LIMBO_NEW, LIMBO_OLD):
            if folder == LIMBO_OLD and not self.state.waits(limbo_name):
                continue
            there = volume.at(folder, limbo_name)
            if there is not None and there.gfid == row.gfid:
                volume.rename(folder, limbo_name, row.pargfid, row.bname)
                self._moved(page, (folder, limbo_name), row)
                return OK
        if occupant is None:
            with suppress(FileExistsError):  # a foreign file that has just come: renamed over
                volume.link(row.gfid, row.pargfid, row.bname)
                self.step("linked")
                return OK
        temporary = TEMPORARY + limbo_name
        with suppress(FileNotFoundError):
            volume.unlink(LIMBO_NEW, temporary)
        volume.link(row.gfid, LIMBO_NEW, temporary)
        self.step("temporary link made")
        volume.rename(LIMBO_NEW, temporary, row.pargfid, row.bname)
        self.step("renamed")
        return OK

    def _moved(self, page: _Page, source: Name, row: FillRow) -> None:
        self.step("renamed")
        if source[0] == LIMBO_OLD:
            self.state.leave_limbo([source[1]])
        elif not source[0].startswith(RESERVED):
            page.vacated.append(source)

    def remove(self, rows: Sequence[RemoveRow], keep_last: bool = False) -> RemoveAnswer:
        """Take names away: an inode whose last name it is waits in limbo/old [17], or with keep_last keeps it."""
        page = _Page()
        there: list[int] = []

        def find(i: int) -> None:
            row = rows[i]
            found = self.volume.at(row.pargfid, row.bname)
            if found is not None:
                there.append(i)
                page.touched.append((row.pargfid, row.bname, found.gfid, row.since))

        page.each(range(len(rows)), find)
        self._note(page)
        self._change(page, there, lambda i: self._remove(page, rows[i], keep_last))
        return RemoveAnswer(page.displaced, page.errors)

    def _remove(self, page: _Page, row: RemoveRow, keep_last: bool) -> None:
        found = self.volume.at(row.pargfid, row.bname)
        if found is None:
            return
        if not found.is_dir and found.nlink > 1:
            self.volume.unlink(row.pargfid, row.bname)
            self.step("unlinked")
        elif not keep_last:
            self._detach(page, row, found, keep_name=False)

    def names_in(self, gfid: Gfid, after: bytes | None, limit: int
                 ) -> tuple[list[tuple[bytes, Gfid | None]], bytes | None]:
        """A page of the names in a directory, each with its gfid, and where to go on."""
        db = self.state.db
        if after is None or self._listed != gfid:
            db.execute("DELETE FROM listed")
            self._listed = gfid
            with suppress(FileNotFoundError):
                db.executemany("INSERT OR REPLACE INTO listed VALUES (?,?)", (
                    (bname, node.gfid) for bname, node in self.volume.names(gfid)
                    if gfid != ROOT_GFID or bname != STATE_DIR))
        rows = db.execute("SELECT bname, gfid FROM listed WHERE bname>? ORDER BY 1 LIMIT ?",
                          (after or b"", limit)).fetchall()
        return rows, rows[-1][0] if len(rows) == limit else None

    # inodes

    def weigh(self, names: Iterable[Name], limit: int) -> int:
        """How many entries would go with these names, all below directories included; counted up to limit + 1."""
        total = 0
        for pargfid, bname in names:
            node = self.volume.at(pargfid, bname)
            if node is None:
                continue
            total += 1
            todo = [node.gfid] if node.is_dir else []
            while todo and total <= limit:
                for _, inner in self.volume.names(todo.pop()):
                    total += 1
                    if inner.is_dir:
                        todo.append(inner.gfid)
                    if total > limit:
                        break
            if total > limit:
                return limit + 1
        return total

    def known(self, gfids: Iterable[Gfid]) -> list[int]:
        """For each inode 1 if the slave has it, else 0."""
        return [0 if self.volume.node(gfid) is None else 1 for gfid in gfids]

    def meta(self, rows: Sequence[MetaRow]) -> list[int]:
        """Set attributes; for each row 0, an errno or ABSENT."""
        answers = []
        for row in rows:
            self._look()
            try:
                node = self.volume.node(row.gfid)
                if node is not None:
                    self._set(node, row)
                answers.append(ABSENT if node is None else 0)
            except FileNotFoundError:
                answers.append(ABSENT)
            except OSError as exc:
                answers.append(answer_of(exc))
        return answers

    def landed(self, rows: Sequence[LandedRow]) -> list[int]:
        """rsync does not come here."""
        return [errno.EOPNOTSUPP for _ in rows]

    def expose(self, gfids: Sequence[Gfid]) -> list[int]:
        """rsync does not come here."""
        return [errno.EOPNOTSUPP for _ in gfids]

    def unexpose(self, gfids: Sequence[Gfid]) -> None:
        """Nothing was exposed."""

    def digest(self, gfids: Sequence[Gfid]) -> list[tuple[int, int, str]]:
        """(errno or ABSENT, size, BLAKE2b in hex) of each file's content."""
        answers = []
        with self.volume.anew() as volume:
            for gfid in gfids:
                try:
                    answers.append((0, *self._digest(volume, gfid)))
                except FileNotFoundError:
                    answers.append((ABSENT, 0, ""))
                except OSError as exc:
                    answers.append((answer_of(exc), 0, ""))
        return answers

    @staticmethod
    def _digest(volume: GlusterVolume, gfid: Gfid) -> tuple[int, str]:
        file = volume.open(gfid)
        try:
            digest, size = hashlib.blake2b(), 0
            while (data := file.pread(READ, size)):
                digest.update(data)
                size += len(data)
            return size, digest.hexdigest()
        finally:
            file.close()

    # the end of a batch

    def complete(self, gfids: Sequence[Gfid]) -> None:
        """The content of these directories is all here."""
        self.state.complete(gfids)

    def leftover_names(self, after: Name | None, limit: int) -> list[Name]:
        """A page of the names that batches without a commit may have changed."""
        return self.state.touched_names(after, limit)

    def leftover_dirs(self, after: Gfid, limit: int) -> list[Gfid]:
        """A page of the directories whose content may be incomplete."""
        return self.state.incomplete(after, limit)

    def leftover_gfids(self, after: Gfid, limit: int) -> list[Gfid]:
        """A page of the inodes that wait in limbo/old."""
        return [gfid for waiting in self.state.waiting(name_in_limbo(after) if after else b"", limit)
                if (gfid := gfid_in_limbo(waiting.bname)) is not None]

    def commit(self, stime: int | None, entry_stime: int | None, epoch: int, clear: bool,
               mark: str | None = None, walked: bool = False) -> CommitAnswer:
        """Make everything durable; then set the stime and, beside it, the worker's mark, and forget what was in doubt;
        then, if `clear`, let go what no later batch can want [25]. stime None: an interim commit. walked: the stime
        holds for all streams."""
        state = self.state
        state.check_epoch(epoch)
        self._look()
        if clear:
            self._empty_new()
        self.volume.sync()
        self._look()
        self.step("synced")
        if stime is not None:
            state.set_standing(stime, entry_stime, mark, walked)
        state.set_fact(state.key("epoch"), epoch)
        state.committed(whole=stime is not None)
        self.step("committed")
        removed = self._clear(state.everyones_stime()) if clear else 0
        return CommitAnswer(state.standing()[0], removed, state.count_waiting())

    # limbo

    def recover(self) -> None:
        """After an agent has ended, however it ended [27]: to be called before anything else is done."""
        for bname, node in list(self.volume.names(LIMBO_OLD)):
            if self.state.waits(bname):
                continue
            since = self.state.touched_since(node.gfid)
            if since is not None:
                self.state.wait_in_limbo(Waiting(bname, since, bname))
            else:
                self._discard(LIMBO_OLD, bname, node)  # of a delete that was under way
        self._empty_new()
        if not self.volume.refuses_twins:
            self.state.add_incomplete(self._torn())
        gone = [gfid for gfid in self._all_incomplete() if self.volume.node(gfid) is None]
        self.state.db.executemany("DELETE FROM incomplete WHERE gfid=?", ((gfid,) for gfid in gone))
        self.step("recovered")

    def _torn(self) -> list[Gfid]:
        """The directories whose names may have been changed. A rename of a directory is done by one subvolume after the
        other: broken off between, it leaves both names, each with a part of what is in it."""
        touched = self.state.db.execute("SELECT DISTINCT gfid FROM touched").fetchall()
        return [gfid for gfid, in touched if (node := self.volume.node(gfid)) is not None and node.is_dir]

    def _all_incomplete(self) -> list[Gfid]:
        return [row[0] for row in self.state.db.execute("SELECT gfid FROM incomplete")]

    def _empty_new(self) -> None:
        """Throw away what is unfinished; directories that were only moved into it go to limbo/old first."""
        for gfid, since in self.state.guests():
            name = self.volume.parent(gfid)
            if name is not None and name[0] != LIMBO_NEW and LIMBO_NEW in self._chain(gfid):
                self._look()
                self.state.wait_in_limbo(Waiting(name_in_limbo(gfid), since, name[1]))
                self.volume.rename(*name, LIMBO_OLD, name_in_limbo(gfid))
        # Not by way of limbo/del: whoever looks for one of these gfids must find none, not half a file.
        self._delete_below(LIMBO_NEW, self._discarding)
        for bname, node in list(self.volume.names(LIMBO_NEW)):  # what could not be deleted
            self._discard(LIMBO_NEW, bname, node)

    def _discarding(self) -> bool:
        self._look()
        self.step("discarded")
        return True

    def _clear(self, stime: int | None) -> int:
        """Let go what nobody can want any more [25]; how many entries."""
        after, gone = b"", 0
        while (page := self.state.waiting(after, _PAGE)):
            after = page[-1].bname
            left: list[bytes] = []
            for waiting in page:
                self._look()
                node = self.volume.at(LIMBO_OLD, waiting.bname)
                if node is None:
                    left.append(waiting.bname)
                elif not node.is_dir and node.nlink > 1:
                    self.volume.unlink(LIMBO_OLD, waiting.bname)
                    left.append(waiting.bname)
                elif stime is not None and waiting.since <= stime:
                    if self._retention:
                        self._to_trash(waiting, node)
                    elif node.is_dir:
                        self._discard(LIMBO_OLD, waiting.bname, node)
                    else:
                        self.volume.unlink(LIMBO_OLD, waiting.bname)
                    left.append(waiting.bname)
                self.step("let go")
            self.state.leave_limbo(left)
            self.state.write()
            gone += len(left)
        self._prune_trash()
        return gone

    def _lives_at(self, node: Node, pargfid: Gfid, bname: bytes) -> bool:
        """Whether what is done to this inode by its gfid is done to what is at the name: of a directory whose rename
        was torn, there are two, with one gfid."""
        if not node.is_dir or self.volume.refuses_twins:
            return True
        with suppress(OSError):
            other = self.volume.parent(node.gfid)
            if other is not None and other != (pargfid, bname):
                there = self.volume.at(*other)
                return there is None or there.gfid != node.gfid
        return True

    def _discard(self, pargfid: Gfid, bname: bytes, node: Node) -> None:
        """Move what is at a name into limbo/del, from where `sweep` deletes it."""
        self._look()
        if not self._lives_at(node, pargfid, bname):
            return
        name, n = name_in_limbo(node.gfid), 0
        while self.volume.at(LIMBO_DEL, name) is not None:  # another name of the same file
            n += 1
            name = b"%s.%d" % (name_in_limbo(node.gfid), n)
        with suppress(FileNotFoundError):
            self.volume.rename(pargfid, bname, LIMBO_DEL, name)

    def sweep(self, goes_on: Callable[[], bool] = lambda: True) -> bool:
        """Delete what lies in limbo/del, for as long as goes_on; True if nothing deletable is left."""
        return self._delete_below(LIMBO_DEL, goes_on)

    def _delete_below(self, top: Gfid, goes_on: Callable[[], bool]) -> bool:
        stack = [top]
        names: dict[Gfid, Name] = {}
        stuck: set[Gfid] = set()
        while stack:
            gfid = stack[-1]
            deeper = None
            try:
                for bname, node in self.volume.names(gfid):
                    if not goes_on():
                        return False
                    if not node.is_dir:
                        with suppress(OSError):
                            self.volume.unlink(gfid, bname)
                    elif node.gfid not in stuck and not self._lives_at(node, gfid, bname):
                        stuck.add(node.gfid)
                    elif node.gfid not in stuck:
                        deeper = node.gfid
                        names[deeper] = (gfid, bname)
                        break
            except FileNotFoundError:
                pass
            if deeper is not None:
                stack.append(deeper)
                continue
            stack.pop()
            if gfid in names:
                try:
                    self.volume.rmdir(*names.pop(gfid))
                except FileNotFoundError:
                    pass
                except OSError:
                    stuck.add(gfid)
        return True

    # the trash

    def _to_trash(self, waiting: Waiting, node: Node) -> None:
        day = date.today().isoformat().encode()
        folder = self.volume.at(TRASH, day)
        if folder is None:
            gfid = RESERVED + hashlib.blake2b(b"trash " + day, digest_size=10).digest()
            self.volume.make(TRASH, day, gfid, stat.S_IFDIR | 0o700)
            folder = self.volume.node(gfid)
            assert folder is not None
        n = 0
        while True:
            tail = b"." + waiting.bname[:8] + (b".%d" % n if n else b"")
            name = waiting.was[:_LONGEST - len(tail)] + tail
            if self.volume.at(folder.gfid, name) is None:
                break
            n += 1
        self.volume.rename(LIMBO_OLD, waiting.bname, folder.gfid, name)
        self.step("put into the trash")

    def _prune_trash(self) -> None:
        """Delete the days that lie further back than the retention."""
        for bname, node in list(self.volume.names(TRASH)):
            try:
                day = date.fromisoformat(bname.decode("ascii"))
            except ValueError:
                continue
            if time.mktime((day + timedelta(days=1)).timetuple()) + self._retention < time.time():
                self._discard(TRASH, bname, node)
