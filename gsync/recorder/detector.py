"""Hints, which tell the recorder that something changed, and the Protocol of detectors, which give them.

A hint says where to look, never what is there: kernel events are merged, come late and race with new directories.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol, TypeAlias

from gsync.base.fsid import Inodes
from gsync.base.model import Gfid, Name


class NameHint(NamedTuple):
    """Something happened at a name. appeared: an inode arrived there, either new or from an unwatched place."""

    name: Name
    appeared: bool
    is_dir: bool = False


class RenameHint(NamedTuple):
    """An inode was renamed within the tree. gfid: the inode's, if the detector knows it."""

    old: Name
    new: Name
    gfid: Gfid | None = None
    is_dir: bool = False


class ChangeHint(NamedTuple):
    """An inode changed: data (contents) or else attributes. It is gfid, or the inode that was at the name."""

    gfid: Gfid | None
    name: Name | None
    data: bool


class Overflow(NamedTuple):
    """The kernel dropped events: anything may have changed."""


class LostWatch(NamedTuple):
    """The directory is no longer watched. That is normal if it was deleted."""

    gfid: Gfid


class RootGone(NamedTuple):
    """The root was deleted, moved away or unmounted, as far as can be told."""


Hint: TypeAlias = NameHint | RenameHint | ChangeHint | Overflow | LostWatch | RootGone


class Unavailable(Exception):
    """This detector does not work here; the text gives the reason."""


class Detector(Protocol):
    """A source of hints for one tree."""

    @property
    def name(self) -> str: ...

    @property
    def sees_all(self) -> bool:
        """Whether the detector hints, from its creation on, at every change of the file system by identity. Then an
        inode in the index is known in full wherever it was meanwhile. Otherwise it hints only at watched
        directories."""

    def fileno(self) -> int:
        """Readable when there are events."""

    def watch(self, gfid: Gfid, handle: bytes, fd: int) -> None:
        """The directory (fd is open on it) belongs to the tree from now on. Called before the directory is read."""

    def unwatch(self, gfid: Gfid) -> None:
        """The directory has left the tree."""

    def read(self) -> Iterator[Hint]:
        """Every event that was queued at the start, in order. Read it to the end before calling anything else."""

    def close(self) -> None: ...


# Whether an inode belongs to the tree as the recorder knows it; None: it may.
Knows: TypeAlias = Callable[[Gfid], bool | None]
DetectorFactory: TypeAlias = Callable[[int, Inodes, Knows], Detector]
