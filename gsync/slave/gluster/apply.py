"""The names of a slave volume. The volume knows gfids itself, so there is no index (see slave/desired).

gsync reaches a file by its gfid wherever it is, and gives it a name by link(2) of its gfid. Only directories have to be
located: gsync asks the volume for their name. New inodes are made with their gfid in .gsync/limbo/new and renamed into
place when they are complete (invariant 5); rename(2) keeps the gfid.

gfids must be unique in a volume, but GlusterFS does not enforce that across its bricks: gsync makes no inode before it
has asked the volume whether the gfid exists. Standard library only, Python 3.9.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from gsync.base.model import ROOT_GFID, Gfid, Name
from gsync.link.protocol import ADOPTED, OK, RESERVED, FillCode, FillRow, MetaRow, RemoveRow
from gsync.slave.desired import Names
from gsync.slave.gluster.limbo import LIMBO_DEL, TRASH, VolumeLimbo, chain
from gsync.slave.gluster.state import VolumeState
from gsync.slave.gluster.volume import GlusterVolume, Node, set_node_attrs
from gsync.slave.limbo import LIMBO_NEW, LIMBO_OLD, Waiting, name_in_limbo
from gsync.slave.outcome import Attachment, Step

_FRESH = 100_000    # directories known to be fresh


class VolumeNames(Names[Node, Node]):
    """look: called before every change; raises Fenced once a younger connection has taken over the volume. adopt: until
    the first commit, content that is already right is taken over. leave: "xattrs", "acls" that the slave keeps as its
    own."""

    def __init__(self, volume: GlusterVolume, state: VolumeState, limbo: VolumeLimbo, adopt: bool, step: Step,
                 look: Callable[[], None], leave: frozenset[str]) -> None:
        super().__init__()
        self._volume = volume
        self._state = state
        self._limbo = limbo
        self._adopt = adopt
        self._step = step
        self._look = look
        self._leave = leave
        self._touched: list[tuple[Gfid, bytes, Gfid, int]] = []
        self._guests: list[tuple[Gfid, int]] = []
        self._made: list[Gfid] = []
        self._fresh: set[Gfid] = set()  # directories in limbo/new that hold only what receivers put there

    # the start and end of a page

    @contextmanager
    def preparing(self, gfids: Sequence[Gfid]) -> Iterator[None]:
        self._touched, self._guests, self._made = [], [], []
        yield
        self._note_made()
        self._state.touch(self._touched)
        self._state.add_guests(self._guests)
        self._state.write(durable=bool(self._touched))

    def make_durable(self, *, made: bool) -> None:
        """The notes are durable already."""
        if made and not self._volume.write_through:
            self._volume.sync()

    @contextmanager
    def changing(self) -> Iterator[None]:
        try:
            yield
        finally:
            self._note_made()
            self._state.write()

    def _note_made(self) -> None:
        self._state.add_incomplete(self._made)
        self._made = []

    def check(self) -> None:
        self._look()

    # locating directories

    def find_place(self, gfid: Gfid) -> Attachment:
        if gfid == ROOT_GFID:
            return Attachment.IN_TREE
        if self._is_in_new(gfid):
            return Attachment.UNATTACHED
        node = self._volume.node(gfid)
        if node is None or not node.is_dir:
            return Attachment.AWAY
        above = chain(self._volume, gfid)
        if not above or above[-1] != ROOT_GFID:
            return Attachment.AWAY
        detached = any(other in (LIMBO_OLD, LIMBO_DEL, TRASH) for other in above)
        return Attachment.DETACHED if detached else Attachment.IN_TREE

    def is_below(self, gfid: Gfid, above: Gfid) -> bool:
        return gfid == above or above in chain(self._volume, gfid)

    def _is_in_new(self, gfid: Gfid) -> bool:
        """Whether an inode lies in limbo/new itself."""
        node = self._volume.at(LIMBO_NEW, name_in_limbo(gfid))
        return node is not None and node.gfid == gfid

    # (a) and (b)

    def look(self, row: FillRow, place: Attachment) -> tuple[FillCode | None, Node | None, Node | None]:
        pargfid, gfid, kind = row.pargfid, row.gfid, stat.S_IFMT(row.mode)
        if kind == stat.S_IFREG and pargfid in self._fresh and self._volume.node(gfid) is None:
            return None, None, None  # anything at the name came from a receiver, and makes room
        occupant = self._volume.at(pargfid, row.bname)
        if occupant is not None and occupant.gfid == gfid and occupant.kind == kind:
            adopted = self._adopt and place is Attachment.IN_TREE and self._state.standing()[0] is None
            return ADOPTED if adopted else OK, None, None
        return None, self.source(row), occupant

    def is_new(self, source: Node, gfid: Gfid) -> bool:
        return self._is_in_new(gfid)

    def will_fill(self, row: FillRow, place: Attachment, source: Node, occupant: Node | None) -> None:
        self._fresh.discard(row.pargfid)
        self._touched.append((row.pargfid, row.bname, row.gfid, row.since))
        if occupant is not None:
            self._touched.append((row.pargfid, row.bname, occupant.gfid, row.since))
        if source.is_dir:
            name = self._volume.parent(row.gfid)
            if name is not None and not name[0].startswith(RESERVED):
                self._touched.append((*name, row.gfid, row.since))
                if place is Attachment.UNATTACHED or LIMBO_NEW in chain(self._volume, row.pargfid):
                    self._guests.append((row.gfid, row.since))

    def will_remove(self, row: RemoveRow) -> bool:
        found = self._volume.at(row.pargfid, row.bname)
        if found is None:
            return False
        self._touched.append((row.pargfid, row.bname, found.gfid, row.since))
        return True

    def make_dir(self, gfid: Gfid) -> None:
        self._volume.make(LIMBO_NEW, name_in_limbo(gfid), gfid, stat.S_IFDIR | 0o700)
        self.places[gfid] = Attachment.UNATTACHED
        if len(self._fresh) >= _FRESH:
            self._fresh.clear()
        self._fresh.add(gfid)
        self._made.append(gfid)

    def make_special(self, row: FillRow, pargfid: Gfid, bname: bytes) -> Node:
        self._volume.make(pargfid, bname, row.gfid, row.mode, row.uid, row.gid, row.rdev, row.target)
        try:
            node = self._volume.node(row.gfid)
            if node is None:
                raise OSError(errno.EIO, "the inode is not there though it was made")
            self.set_attrs(node, row.meta)
        except OSError:
            with suppress(OSError):
                self._volume.unlink(pargfid, bname)
            raise
        self._fresh.discard(pargfid)
        return node

    # (c): looked at again

    def occupant(self, row: FillRow) -> Node | None:
        return self._volume.at(row.pargfid, row.bname)

    def removable(self, row: RemoveRow) -> Node | None:
        return self._volume.at(row.pargfid, row.bname)

    def source(self, row: FillRow) -> Node | None:
        node = self._volume.node(row.gfid)
        if node is not None and node.kind != stat.S_IFMT(row.mode):
            raise OSError(errno.EEXIST, "the slave has another kind of inode with this gfid")
        return node

    def is_last(self, occupant: Node) -> bool:
        return occupant.is_dir or occupant.nlink <= 1

    def home(self, source: Node, row: FillRow) -> Name:
        name = self._volume.parent(row.gfid)
        if name is None:
            raise OSError(errno.ESTALE, "the directory has no name")
        return name

    def home_in_limbo(self, source: Node, row: FillRow) -> Name | None:
        name = name_in_limbo(row.gfid)
        if self._is_in_new(row.gfid):
            return LIMBO_NEW, name
        if self._state.waits(name):
            there = self._volume.at(LIMBO_OLD, name)
            if there is not None and there.gfid == row.gfid:
                return LIMBO_OLD, name
        return None

    # (c): changing

    def detach(self, row: FillRow | RemoveRow, occupant: Node, *, keep_name: bool) -> None:
        if not self._limbo.lives_at(occupant, row.pargfid, row.bname):
            raise OSError(errno.EBUSY, "the volume has this directory under another name too, as after an "
                                       "interrupted rename; this name is left as it is")
        name = name_in_limbo(occupant.gfid)
        self._state.wait_in_limbo(Waiting(name, row.since, row.bname))
        if keep_name and not occupant.is_dir:
            with suppress(FileExistsError):  # left by a page that broke off: its gfid tells that it is the same
                self._volume.link(occupant.gfid, LIMBO_OLD, name)
        else:
            self._volume.rename(row.pargfid, row.bname, LIMBO_OLD, name)
        self._step("detached")

    def rename(self, source: Node, home: Name, row: FillRow, occupant: Node | None) -> None:
        self._fresh -= {row.gfid, row.pargfid}
        self._volume.rename(*home, row.pargfid, row.bname)
        if home[0] == LIMBO_OLD:
            self._state.leave_limbo([home[1]])

    def link(self, source: Node, pargfid: Gfid, bname: bytes) -> None:
        self._volume.link(source.gfid, pargfid, bname)

    def unlink(self, pargfid: Gfid, bname: bytes) -> None:
        self._volume.unlink(pargfid, bname)

    def set_attrs(self, source: Node, meta: MetaRow) -> None:
        """A new inode has no xattrs yet."""
        set_node_attrs(self._volume, source, meta.mode, meta.uid, meta.gid, meta.mtime, meta.atime, meta.xattrs or None,
                       self._leave)
