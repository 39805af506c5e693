"""Every operation that a worker can ask of a slave volume (target.Operations): names, attributes, contents, commits;
recovery.

The same promise and the same answers as gsync/slave/directory/operations.py. Not here: whether the volume may be used
(target), how names are changed (slave/desired, apply). Standard library only, Python 3.9.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.model import ROOT_GFID, STATE_DIR, Gfid, Name
from gsync.link.protocol import (
    ABSENT,
    CommitAnswer,
    FillAnswer,
    FillRow,
    LandedRow,
    MetaRow,
    RemoveAnswer,
    RemoveRow,
)
from gsync.slave.desired import Desired
from gsync.slave.gluster.apply import VolumeNames
from gsync.slave.gluster.limbo import VolumeLimbo
from gsync.slave.gluster.state import VolumeState
from gsync.slave.gluster.volume import GlusterVolume, set_node_attrs
from gsync.slave.limbo import gfid_in_limbo, name_in_limbo
from gsync.slave.outcome import READ, Step, answer_of


class VolumeOperations:
    """Works on one volume; call `recover` first. step: told of every point at which a crash may follow. look: called
    before every change; raises Fenced once a younger connection has taken over the volume. leave: "xattrs", "acls"."""

    def __init__(self, volume: GlusterVolume, state: VolumeState, adopt: bool = False, delete_retention: int = 0,
                 step: Step = lambda name: None, look: Callable[[], None] = lambda: None,
                 leave: frozenset[str] = frozenset(), clock: Clock = SYSTEM_CLOCK) -> None:
        self.volume = volume
        self.state = state
        self.step = step
        self._look = look
        self._leave = leave
        self._limbo = VolumeLimbo(volume, state, delete_retention, step, look, clock)
        self._desired = Desired(VolumeNames(volume, state, self._limbo, adopt, step, look, leave), step)
        self._listed: Gfid | None = None

    def recover(self) -> None:
        """Recover after an agent has ended, for whatever reason. Call it before anything else."""
        self._limbo.recover()

    def sweep(self, goes_on: Callable[[], bool] = lambda: True) -> bool:
        """Delete what commits have let go, while goes_on; True if nothing deletable is left."""
        return self._limbo.sweep(goes_on)

    # names

    def fill(self, rows: Sequence[FillRow]) -> FillAnswer:
        """Bring each name to the inode that its row gives."""
        return self._desired.fill(rows)

    def remove(self, rows: Sequence[RemoveRow], keep_last: bool = False) -> RemoveAnswer:
        """Take names away. An inode that loses its last name waits in limbo/old; with keep_last it keeps that name."""
        return self._desired.remove(rows, keep_last)

    def names_in(self, gfid: Gfid, after: bytes | None, limit: int
                 ) -> tuple[list[tuple[bytes, Gfid | None]], bytes | None]:
        """A page of the names in a directory, each with its gfid, and the name to continue after."""
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
        """How many entries these names would remove, everything below directories included; counted up to limit + 1."""
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
        """Set attributes; return 0, an errno or ABSENT for each row."""
        answers = []
        for row in rows:
            self._look()
            try:
                node = self.volume.node(row.gfid)
                if node is not None:
                    set_node_attrs(self.volume, node, row.mode, row.uid, row.gid, row.mtime, row.atime, row.xattrs,
                                   self._leave)
                answers.append(ABSENT if node is None else 0)
            except FileNotFoundError:
                answers.append(ABSENT)
            except OSError as exc:
                answers.append(answer_of(exc))
        return answers

    def landed(self, rows: Sequence[LandedRow]) -> list[int]:
        """Refused: rsync never writes to a volume."""
        return [errno.EOPNOTSUPP for _ in rows]

    def expose(self, gfids: Sequence[Gfid]) -> list[int]:
        """Refused: rsync never writes to a volume."""
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
        """Note that the content of these directories is complete."""
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
        """Make everything durable. Then set the stime and the worker's mark with it, and forget the doubts. Then, if
        `clear`, let go of what no later batch can want (rule 25). stime None: an interim commit. walked: the stime
        holds for all streams."""
        state = self.state
        state.check_epoch(epoch)
        self._look()
        if clear:
            self._limbo.empty_new()
        self.volume.sync()
        self._look()
        self.step("synced")
        if stime is not None:
            state.set_standing(stime, entry_stime, mark, walked)
        state.set_fact(state.key("epoch"), epoch)
        state.committed(whole=stime is not None)
        self.step("committed")
        removed = self._limbo.clear(state.everyones_stime()) if clear else 0
        return CommitAnswer(state.standing()[0], removed, state.count_waiting())
