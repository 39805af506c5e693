"""The seams that an agent works through. Its target is a directory (directory) or a GlusterFS volume (gluster.target);
ROOT decides.

Both kinds keep these seams, so the conversation (agent) and the worker need not know the kind. Standard library only,
Python 3.9.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, Protocol

from gsync.base.model import Gfid, Name
from gsync.link.protocol import Caps, CommitAnswer, FillAnswer, FillRow, LandedRow, MetaRow, RemoveAnswer, RemoveRow
from gsync.link.survey import Survey

Whereabouts = tuple[str, Sequence[Sequence[int]]]
_VOLUME = b"::"  # prefix of a ROOT that is a volume


class Asked(NamedTuple):
    """A worker's hello. master: its tree's whereabouts (gsync/base/fsid.py). boot_id: of the worker's host."""

    volume: str
    volume_name: str
    session: str
    epoch: int
    ticket: str
    adopt: bool
    make: bool
    delete_retention: int
    leave: frozenset[str]
    master: Whereabouts
    boot_id: str


class Opened(NamedTuple):
    """The slave's state when it was taken; the fields of protocol.Hello."""

    stime: int | None
    entry_stime: int | None
    mark: str | None
    unclean: bool
    empty: bool
    free: int
    caps: Caps
    volume_id: str = ""


class Operations(Protocol):
    """The operations available once the slave is taken: the methods of the protocol."""

    def fill(self, rows: Sequence[FillRow]) -> FillAnswer: ...
    def remove(self, rows: Sequence[RemoveRow], keep_last: bool = False) -> RemoveAnswer: ...
    def names_in(self, gfid: Gfid, after: bytes | None, limit: int
                 ) -> tuple[list[tuple[bytes, Gfid | None]], bytes | None]: ...
    def weigh(self, names: Iterable[Name], limit: int) -> int: ...
    def known(self, gfids: Iterable[Gfid]) -> list[int]: ...
    def meta(self, rows: Sequence[MetaRow]) -> list[int]: ...
    def landed(self, rows: Sequence[LandedRow]) -> list[int]: ...
    def digest(self, gfids: Sequence[Gfid]) -> list[tuple[int, int, str]]: ...
    def expose(self, gfids: Sequence[Gfid]) -> list[int]: ...
    def unexpose(self, gfids: Sequence[Gfid]) -> None: ...
    def complete(self, gfids: Sequence[Gfid]) -> None: ...
    def leftover_names(self, after: Name | None, limit: int) -> list[Name]: ...
    def leftover_dirs(self, after: Gfid, limit: int) -> list[Gfid]: ...
    def leftover_gfids(self, after: Gfid, limit: int) -> list[Gfid]: ...
    def commit(self, stime: int | None, entry_stime: int | None, epoch: int, clear: bool,
               mark: str | None = None, walked: bool = False) -> CommitAnswer: ...


class Target(Protocol):
    """A slave, before and after it is taken."""

    @property
    def taken(self) -> bool:
        """Whether `open` has been called; it is called once."""

    @property
    def operations(self) -> Operations | None:
        """The operations that `open` has made ready."""

    @property
    def valid(self) -> bool:
        """False once a younger connection has taken over the slave."""

    def look(self, volume: str, adopt: bool, make: bool, master: Whereabouts) -> bool:
        """Whether the slave already belongs to this volume; SlaveError where `open` would refuse it. Changes
        nothing."""

    def survey(self, volume: str, adopt: bool, master: Whereabouts) -> Survey:
        """How suitable the place is as this volume's slave. Changes nothing."""

    def open(self, asked: Asked) -> Opened:
        """Take the slave, and put it in order after whatever happened before. Raises SlaveError, Fenced, Transient."""

    def check(self) -> None:
        """Raise Fenced once a younger connection has taken over the slave (invariant 9)."""

    def sweep(self, goes_on: Callable[[], bool]) -> bool:
        """Delete what commits have let go, while goes_on; False if there may be more."""

    def forget_stime(self) -> None:
        """Make the next worker compare the whole tree."""

    def goodbye(self) -> None:
        """The connection ends in an orderly way."""

    def close(self) -> None: ...


def is_volume(root: bytes) -> bool:
    """Whether a ROOT is a GlusterFS volume, `::NAME`."""
    return root.startswith(_VOLUME)


def volume_of(root: bytes) -> str:
    """The volume's name."""
    return root[len(_VOLUME):].decode("utf-8", "replace")
