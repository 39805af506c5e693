"""What tells the recorder that something changed: hints, and the Protocol of what gives them.

A hint says where to look, never what is there: kernel events merge, come late and race with new directories.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, TypeAlias

from gsync.base.fsid import Inodes
from gsync.base.model import Gfid, Name


class NameHint(NamedTuple):
    """Something happened at a name. appeared: an inode came to be there, from nowhere or from where nobody watched."""

    name: Name
    appeared: bool
    is_dir: bool = False


class RenameHint(NamedTuple):
    """An inode was renamed within the tree. gfid: whose, where the detector knows."""

    old: Name
    new: Name
    gfid: Gfid | None = None
    is_dir: bool = False


class ChangeHint(NamedTuple):
    """An inode changed: data (contents) or else attributes. It is gfid, or what was at the name."""

    gfid: Gfid | None
    name: Name | None
    data: bool


class Overflow(NamedTuple):
    """The kernel dropped events: anything may have changed."""


class LostWatch(NamedTuple):
    """The directory is not watched any more. Normal if it was deleted."""

    gfid: Gfid


class RootGone(NamedTuple):
    """The root was deleted, moved away or unmounted, as far as can be told."""


Hint: TypeAlias = NameHint | RenameHint | ChangeHint | Overflow | LostWatch | RootGone


class Unavailable(Exception):
    """This detector does not work here; the text says why."""


class Detector(Protocol):
    """A source of hints for one tree."""

    @property
    def name(self) -> str: ...

    @property
    def sees_all(self) -> bool:
        """Whether it hints, from its creation on, at every change of the file system by identity, so that an inode
        which the index knows is known in full wherever it was meanwhile; else only at watched directories."""

    def fileno(self) -> int:
        """Readable when there are events."""

    def watch(self, gfid: Gfid, handle: bytes, fd: int) -> None:
        """The directory (fd is open on it) belongs to the tree from now on; called before it is read."""

    def unwatch(self, gfid: Gfid) -> None:
        """The directory left the tree."""

    def read(self) -> Iterator[Hint]:
        """Everything that was queued when it began, in order. To be read to its end before anything else is asked."""

    def close(self) -> None: ...


# Whether an inode belongs to the tree as the recorder knows it; None: perhaps.
Knows: TypeAlias = Callable[[Gfid], bool | None]
DetectorFactory: TypeAlias = Callable[[int, Inodes, Knows], Detector]
