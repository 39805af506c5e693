"""Every operation that a worker can ask of a slave directory (target.Operations): names, attributes, contents, commits.

Not here: whose tree it is (identity), how names are changed (slave/desired, apply), recovery (recover), the
conversation (agent). Standard library only, Python 3.9.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Iterable, Sequence
from contextlib import suppress

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.fsid import syncfs
from gsync.base.model import ROOT_GFID, STATE_DIR, Gfid, Name
from gsync.base.namespace import IndexEntry
from gsync.link.protocol import (
    ABSENT,
    ANY_SIZE,
    CommitAnswer,
    FillAnswer,
    FillRow,
    LandedRow,
    MetaRow,
    RemoveAnswer,
    RemoveRow,
)
from gsync.slave.desired import Desired
from gsync.slave.directory.apply import DirectoryNames
from gsync.slave.directory.limbo import Limbo
from gsync.slave.directory.tree import SlaveTree
from gsync.slave.limbo import LIMBO_NEW, LIMBO_OLD, name_in_limbo
from gsync.slave.outcome import READ, Step, answer_of


class DirectoryOperations:
    """Works on one tree. Call `recover` (gsync/slave/directory/recover.py) first. step: told of every point at which a
    crash may follow."""

    def __init__(self, tree: SlaveTree, adopt: bool = False, delete_retention: int = 0,
                 step: Step = lambda name: None, clock: Clock = SYSTEM_CLOCK) -> None:
        self.tree = tree
        self.index = tree.index
        self.limbo = Limbo(tree, delete_retention, step, clock)
        self.step = step
        # Where handles do not last, recovery gives up touched names: from then on they count as made by others.
        self.in_doubt = not tree.handles.lasting and bool(tree.index.touched_names(None, 1))
        self._adopt = adopt or self.in_doubt
        self._desired = Desired(DirectoryNames(tree, self.limbo, self._adopt, step), step)
        self.index.db.execute("CREATE TEMP TABLE IF NOT EXISTS listed (bname BLOB PRIMARY KEY) WITHOUT ROWID")
        self._listed: Gfid | None = None

    # names

    def fill(self, rows: Sequence[FillRow]) -> FillAnswer:
        """Bring each name to the inode that its row gives."""
        return self._desired.fill(rows)

    def remove(self, rows: Sequence[RemoveRow], keep_last: bool = False) -> RemoveAnswer:
        """Take names away. An inode that loses its last name waits in limbo/old; with keep_last it keeps that name."""
        return self._desired.remove(rows, keep_last)

    def names_in(self, gfid: Gfid, after: bytes | None, limit: int
                 ) -> tuple[list[tuple[bytes, Gfid | None]], bytes | None]:
        """A page of the names in a directory, each with its gfid, and the name to continue after; foreign names (None)
        only while adopting."""
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
        """When adopting, put every name in the directory into the table `listed`."""
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
        """How many entries these names would remove, everything below directories included; counted up to limit + 1."""
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
        """For each inode, 1 if the slave has it at a name or waiting in limbo, else 0."""
        execute = self.index.db.execute
        return [1 if gfid == ROOT_GFID or execute("SELECT 1 FROM entries WHERE gfid=?", (gfid,)).fetchone() else 0
                for gfid in gfids]

    def meta(self, rows: Sequence[MetaRow]) -> list[int]:
        """Set attributes; return 0, an errno or ABSENT for each row."""
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
        """Finish new files that rsync has made in limbo/link; 0, an errno or ABSENT for each."""
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
                    entry = IndexEntry(LIMBO_NEW, name_in_limbo(meta.gfid), meta.gfid, stat.S_IFREG, found.handle)
                    self.tree.set_attrs_at(self.tree.new_fd, entry, meta)
                    answers.append(0)
            except OSError as exc:
                answers.append(answer_of(exc))
        return answers

    def _fetch(self, gfid: Gfid) -> None:
        """Move a new file from limbo/link to limbo/new, if it is there."""
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
        """Give each file the name limbo/link/<gfid>, where rsync may write to it: 0, an errno or ABSENT. Only regular
        files ever get there: rsync would follow a symlink."""
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
        """Remove the names for rsync."""
        for gfid in gfids:
            self._unexpose(gfid)

    # the end of a batch

    def complete(self, gfids: Sequence[Gfid]) -> None:
        """Note that the content of these directories is complete."""
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
        """Make everything durable. Then set the stime and the worker's mark with it, and forget the doubts. Then, if
        `clear`, let go of what no later batch of any stream can want (rule 25). stime None: an interim commit, after
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
