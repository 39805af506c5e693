"""limbo and trash of a volume: limbo/old holds waiting entries, limbo/new unfinished ones, limbo/del deleted ones.

`step` is told of every point at which a crash may follow. Standard library only, Python 3.9.
"""

from __future__ import annotations

import hashlib
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import date, timedelta

from gsync.base.clock import SYSTEM_CLOCK, Clock
from gsync.base.model import NS, ROOT_GFID, Gfid, Name
from gsync.link.protocol import RESERVED
from gsync.slave.gluster.state import VolumeState
from gsync.slave.gluster.volume import GlusterVolume, Node
from gsync.slave.limbo import LIMBO_NEW, LIMBO_OLD, Waiting, name_in_limbo
from gsync.slave.outcome import Step

# gsync's own folders have reserved gfids: no master inode may use them (protocol.gfid_of_json).
STATE: Gfid = RESERVED + b"state-dir\0"
LIMBO: Gfid = RESERVED + b"limbo\0\0\0\0\0"
LIMBO_DEL: Gfid = RESERVED + b"limbo/del\0"
TRASH: Gfid = RESERVED + b"trash\0\0\0\0\0"

_PAGE = 1000
_LONGEST = 255
_DEEPEST = 100_000  # a longer chain of parents is a circle


def chain(volume: GlusterVolume, gfid: Gfid) -> list[Gfid]:
    """The directories above `gfid`, nearest first."""
    above: list[Gfid] = []
    while gfid != ROOT_GFID and len(above) < _DEEPEST:
        node = volume.at(gfid, b"..")
        if node is None:
            break
        gfid = node.gfid
        above.append(gfid)
    return above


class VolumeLimbo:
    """delete_retention: seconds that deleted entries stay in the trash; 0: there is no trash. look: called before every
    change; raises Fenced once a younger connection has taken over the volume."""

    def __init__(self, volume: GlusterVolume, state: VolumeState, delete_retention: int, step: Step,
                 look: Callable[[], None], clock: Clock = SYSTEM_CLOCK) -> None:
        self._volume = volume
        self._state = state
        self._retention = delete_retention
        self._step = step
        self._look = look
        self._clock = clock

    def recover(self) -> None:
        """Recover after an agent has ended, for whatever reason (rule 27). Call it before anything else."""
        for bname, node in list(self._volume.names(LIMBO_OLD)):
            if self._state.waits(bname):
                continue
            since = self._state.touched_since(node.gfid)
            if since is not None:
                self._state.wait_in_limbo(Waiting(bname, since, bname))
            else:
                self._discard(LIMBO_OLD, bname, node)  # left by an interrupted delete
        self.empty_new()
        if not self._volume.refuses_twins:
            self._state.add_incomplete(self._torn())
        gone = [gfid for gfid in self._all_incomplete() if self._volume.node(gfid) is None]
        self._state.db.executemany("DELETE FROM incomplete WHERE gfid=?", ((gfid,) for gfid in gone))
        self._step("recovered")

    def _torn(self) -> list[Gfid]:
        """The directories whose names may have been changed. A directory rename runs on one subvolume after the other:
        if it breaks off in between, both names exist, each with a part of the directory's content."""
        touched = self._state.db.execute("SELECT DISTINCT gfid FROM touched").fetchall()
        return [gfid for gfid, in touched if (node := self._volume.node(gfid)) is not None and node.is_dir]

    def _all_incomplete(self) -> list[Gfid]:
        return [row[0] for row in self._state.db.execute("SELECT gfid FROM incomplete")]

    def empty_new(self) -> None:
        """Discard unfinished inodes; directories that were only moved into it go to limbo/old first."""
        for gfid, since in self._state.guests():
            name = self._volume.parent(gfid)
            if name is not None and name[0] != LIMBO_NEW and LIMBO_NEW in chain(self._volume, gfid):
                self._look()
                self._state.wait_in_limbo(Waiting(name_in_limbo(gfid), since, name[1]))
                self._volume.rename(*name, LIMBO_OLD, name_in_limbo(gfid))
        # Not through limbo/del: a lookup of one of these gfids must find nothing, not half a file.
        self._delete_below(LIMBO_NEW, self._discarding)
        for bname, node in list(self._volume.names(LIMBO_NEW)):  # entries that could not be deleted
            self._discard(LIMBO_NEW, bname, node)

    def _discarding(self) -> bool:
        self._look()
        self._step("discarded")
        return True

    def clear(self, stime: int | None) -> int:
        """Let go of entries that no later batch can want (rule 25); return how many."""
        after, gone = b"", 0
        while (page := self._state.waiting(after, _PAGE)):
            after = page[-1].bname
            left: list[bytes] = []
            for waiting in page:
                self._look()
                node = self._volume.at(LIMBO_OLD, waiting.bname)
                if node is None:
                    left.append(waiting.bname)
                elif not node.is_dir and node.nlink > 1:
                    self._volume.unlink(LIMBO_OLD, waiting.bname)
                    left.append(waiting.bname)
                elif stime is not None and waiting.since <= stime:
                    if self._retention:
                        self._to_trash(waiting, node)
                    elif node.is_dir:
                        self._discard(LIMBO_OLD, waiting.bname, node)
                    else:
                        self._volume.unlink(LIMBO_OLD, waiting.bname)
                    left.append(waiting.bname)
                self._step("let go")
            self._state.leave_limbo(left)
            self._state.write()
            gone += len(left)
        self._prune_trash()
        return gone

    def lives_at(self, node: Node, pargfid: Gfid, bname: bytes) -> bool:
        """Whether a change to this inode by its gfid also changes the inode at the name: after a torn directory rename
        there are two with one gfid."""
        if not node.is_dir or self._volume.refuses_twins:
            return True
        with suppress(OSError):
            other = self._volume.parent(node.gfid)
            if other is not None and other != (pargfid, bname):
                there = self._volume.at(*other)
                return there is None or there.gfid != node.gfid
        return True

    def _discard(self, pargfid: Gfid, bname: bytes, node: Node) -> None:
        """Move the entry at a name into limbo/del, from where `sweep` deletes it."""
        self._look()
        if not self.lives_at(node, pargfid, bname):
            return
        name, n = name_in_limbo(node.gfid), 0
        while self._volume.at(LIMBO_DEL, name) is not None:  # taken by another name of the same file
            n += 1
            name = b"%s.%d" % (name_in_limbo(node.gfid), n)
        with suppress(FileNotFoundError):
            self._volume.rename(pargfid, bname, LIMBO_DEL, name)

    def sweep(self, goes_on: Callable[[], bool] = lambda: True) -> bool:
        """Delete the entries of limbo/del while goes_on; True if nothing deletable is left."""
        return self._delete_below(LIMBO_DEL, goes_on)

    def _delete_below(self, top: Gfid, goes_on: Callable[[], bool]) -> bool:
        stack = [top]
        names: dict[Gfid, Name] = {}
        stuck: set[Gfid] = set()
        while stack:
            gfid = stack[-1]
            deeper = None
            try:
                for bname, node in self._volume.names(gfid):
                    if not goes_on():
                        return False
                    if not node.is_dir:
                        with suppress(OSError):
                            self._volume.unlink(gfid, bname)
                    elif node.gfid not in stuck and not self.lives_at(node, gfid, bname):
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
                    self._volume.rmdir(*names.pop(gfid))
                except FileNotFoundError:
                    pass
                except OSError:
                    stuck.add(gfid)
        return True

    # the trash

    def _to_trash(self, waiting: Waiting, node: Node) -> None:
        day = date.today().isoformat().encode()
        folder = self._volume.at(TRASH, day)
        if folder is None:
            gfid = RESERVED + hashlib.blake2b(b"trash " + day, digest_size=10).digest()
            self._volume.make(TRASH, day, gfid, stat.S_IFDIR | 0o700)
            folder = self._volume.node(gfid)
            assert folder is not None
        n = 0
        while True:
            tail = b"." + waiting.bname[:8] + (b".%d" % n if n else b"")
            name = waiting.was[:_LONGEST - len(tail)] + tail
            if self._volume.at(folder.gfid, name) is None:
                break
            n += 1
        self._volume.rename(LIMBO_OLD, waiting.bname, folder.gfid, name)
        self._step("put into the trash")

    def _prune_trash(self) -> None:
        """Delete the days that are older than the retention."""
        for bname, node in list(self._volume.names(TRASH)):
            try:
                day = date.fromisoformat(bname.decode("ascii"))
            except ValueError:
                continue
            end = time.mktime((day + timedelta(days=1)).timetuple())
            if end + self._retention < self._clock.now() / NS:
                self._discard(TRASH, bname, node)
