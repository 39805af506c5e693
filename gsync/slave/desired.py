"""Brings names to what the master has, as a desired state: one order and one set of checks, for directories and
volumes.

Promise: a second run changes nothing; after a kill at any point, recovery and a second run give the same tree. A row
that cannot be done is answered with its error and does not affect other rows. Only a slave that is unusable as a whole
(full, read-only) raises OSError, after everything done so far is remembered.

A page of names runs in the order of rule 24: (a) make new inodes in limbo/new; (b) note durably the names that may
change; (c) rename. A move within limbo/new alone belongs to (a): nobody sees it, and a crash discards it. Just before a
name changes, its occupant and its inode's place are looked at again (rules 21 and 22). Not here: how names are found
and changed (Names). Standard library only, Python 3.9.
"""

from __future__ import annotations

import stat
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Generic, Protocol, TypeVar

from gsync.base.model import Gfid, Name
from gsync.link.protocol import (
    CYCLE,
    DIRECT,
    ERROR,
    MADE,
    NEW,
    OK,
    PARENT,
    RESERVED,
    FillAnswer,
    FillCode,
    FillRow,
    MetaRow,
    RemoveAnswer,
    RemoveRow,
)
from gsync.slave.limbo import LIMBO_NEW, TEMPORARY, name_in_limbo
from gsync.slave.outcome import NOT_TO_FILL, SPECIAL, Attachment, Outcome, Step


class Resident(Protocol):
    """The inode at a name. gfid: None if gsync did not make it."""

    @property
    def gfid(self) -> Gfid | None: ...

    @property
    def is_dir(self) -> bool: ...


Source = TypeVar("Source")                        # an inode, as it was found
Occupant = TypeVar("Occupant", bound=Resident)    # the inode found at a name


class Names(ABC, Generic[Source, Occupant]):
    """The names of one slave: an adapter finds and changes them, and remembers its changes. One page at a time.

    no_links: errnos of a file system without hard links, or with no more of them for this inode.
    """

    no_links: Collection[int] = ()

    def __init__(self) -> None:
        self.places: dict[Gfid, Attachment] = {}  # of the current page

    # the start and end of a page

    @contextmanager
    def page(self) -> Iterator[None]:
        """Encloses one request."""
        self.forget()
        yield

    @abstractmethod
    def preparing(self, gfids: Sequence[Gfid]) -> AbstractContextManager[None]:
        """Encloses (a) for these inodes; its end is (b), which writes the notes."""

    @abstractmethod
    def make_durable(self, *, made: bool) -> None:
        """Make the notes durable; with `made`, new inodes too, before they become visible."""

    @abstractmethod
    def changing(self) -> AbstractContextManager[None]:
        """Encloses (c)."""

    def check(self) -> None:
        """Before each row: raise Fenced if another connection has the slave now."""

    # locating directories

    def where(self, gfid: Gfid) -> Attachment:
        place = self.places.get(gfid)
        if place is None:
            place = self.places[gfid] = self.find_place(gfid)
        return place

    def forget(self) -> None:
        """Forget where directories are: one has moved or gone, so facts about others may be stale."""
        self.places.clear()

    @abstractmethod
    def find_place(self, gfid: Gfid) -> Attachment:
        """Find out where a directory is attached."""

    @abstractmethod
    def is_below(self, gfid: Gfid, above: Gfid) -> bool:
        """Whether a directory is `above` itself, or lies below it."""

    # (a) and (b)

    @abstractmethod
    def look(self, row: FillRow, place: Attachment) -> tuple[FillCode | None, Source | None, Occupant | None]:
        """The answer if the name is already right or was taken over; otherwise the inode's place (None: nowhere) and
        the name's occupant. This runs for every name: its calls to the slave decide gsync's speed."""

    @abstractmethod
    def is_new(self, source: Source, gfid: Gfid) -> bool:
        """Whether the inode is in limbo/new and nowhere else."""

    @abstractmethod
    def make_dir(self, gfid: Gfid) -> None:
        """Make a directory in limbo/new, noted as incomplete."""

    @abstractmethod
    def make_special(self, row: FillRow, pargfid: Gfid, bname: bytes) -> Source:
        """Make a symlink, FIFO, socket or device, complete, at a name in limbo/new that nothing else claims."""

    @abstractmethod
    def will_fill(self, row: FillRow, place: Attachment, source: Source, occupant: Occupant | None) -> None:
        """Note every name outside limbo that this row may change, and the inodes at stake there."""

    @abstractmethod
    def will_remove(self, row: RemoveRow) -> bool:
        """The same for a removal; False if there is nothing to remove."""

    # (c): looked at again

    @abstractmethod
    def occupant(self, row: FillRow) -> Occupant | None:
        """The inode at this row's name."""

    @abstractmethod
    def removable(self, row: RemoveRow) -> Occupant | None:
        """The inode at this row's name; also None if the name is another file's."""

    @abstractmethod
    def source(self, row: FillRow) -> Source | None:
        """Where this row's inode is; None: nowhere."""

    def is_same(self, row: FillRow, source: Source, occupant: Occupant) -> bool:
        """Whether the occupant turns out to be the inode itself: a link that was unknown, and is known from now on."""
        return False

    @abstractmethod
    def is_last(self, occupant: Occupant) -> bool:
        """Whether removing the name removes the inode."""

    @abstractmethod
    def home(self, source: Source, row: FillRow) -> Name:
        """A directory's name, or a file's best one."""

    @abstractmethod
    def home_in_limbo(self, source: Source, row: FillRow) -> Name | None:
        """The name of a file that is in limbo."""

    # (c): changing

    @abstractmethod
    def detach(self, row: FillRow | RemoveRow, occupant: Occupant, *, keep_name: bool) -> None:
        """Move the occupant of the row's name into limbo/old. keep_name: give a file a second link there if possible,
        so that a rename can replace the name in one step."""

    @abstractmethod
    def rename(self, source: Source, home: Name, row: FillRow, occupant: Occupant | None) -> None:
        """Move the inode from one name to the row's, replacing the occupant."""

    @abstractmethod
    def link(self, source: Source, pargfid: Gfid, bname: bytes) -> None:
        """Give a file another name; FileExistsError if the name is taken."""

    @abstractmethod
    def unlink(self, pargfid: Gfid, bname: bytes) -> None:
        """Remove one of several links; FileNotFoundError if the name is free."""

    @abstractmethod
    def set_attrs(self, source: Source, meta: MetaRow) -> None:
        """Set the attributes of a new directory in limbo/new."""


class Desired(Generic[Source, Occupant]):
    """Fills and removes names. step: told of every point at which a crash may follow."""

    def __init__(self, names: Names[Source, Occupant], step: Step = lambda name: None) -> None:
        self._names = names
        self._step = step

    def fill(self, rows: Sequence[FillRow]) -> FillAnswer:
        """Bring each name to the inode that its row gives."""
        outcome = Outcome()
        answers = [ERROR] * len(rows)

        def place(i: int) -> None:
            answers[i] = self._place(outcome, rows[i])

        with self._names.page():
            with self._names.preparing([row.gfid for row in rows]):
                moves = outcome.answer(answers, lambda i: self._prepare(outcome, rows[i]))
            outcome.raise_fatal()
            self._step("names to touch noted")
            if moves:
                self._names.make_durable(made=True)
                self._change(outcome, moves, place)
        return FillAnswer(answers, outcome.vacated, outcome.displaced, outcome.errors)

    def remove(self, rows: Sequence[RemoveRow], keep_last: bool = False) -> RemoveAnswer:
        """Take names away. An inode that loses its last name waits in limbo/old (rule 17); with keep_last it keeps that
        name. Names in detached directories are taken away, too: a directory may come back."""
        outcome = Outcome()
        there: list[int] = []

        def find(i: int) -> None:
            if self._names.will_remove(rows[i]):
                there.append(i)

        with self._names.page():
            with self._names.preparing(()):
                outcome.each(range(len(rows)), find)
            outcome.raise_fatal()
            self._step("names to touch noted")
            self._names.make_durable(made=False)
            self._change(outcome, there, lambda i: self._remove(outcome, rows[i], keep_last))
        return RemoveAnswer(outcome.displaced, outcome.errors)

    def _change(self, outcome: Outcome, numbers: Sequence[int], change: Callable[[int], None]) -> None:
        """Do (c) for these rows, each on its own."""
        def checked(i: int) -> None:
            self._names.check()
            change(i)

        with self._names.changing():
            outcome.each(numbers, checked)
            self._step("names changed")
        outcome.raise_fatal()
        self._step("names follow")

    # (a) and (b)

    def _prepare(self, outcome: Outcome, row: FillRow) -> FillCode | None:
        """Do (a) for one name: its answer, or None if an inode has to be moved to it."""
        names = self._names
        names.check()
        place = names.places.get(row.pargfid) or names.where(row.pargfid)
        if place in NOT_TO_FILL:
            return PARENT
        answer, source, occupant = names.look(row, place)
        if answer is not None:
            return answer
        if source is not None:
            return self._move(outcome, row, place, source, occupant)
        free = place is Attachment.UNATTACHED and occupant is None
        if stat.S_ISREG(row.mode):
            return DIRECT if free and row.nlink == 1 else NEW
        if stat.S_ISDIR(row.mode):
            return self._make_dir(row)
        if free:
            self._make_special(row, row.pargfid, row.bname)
            return OK
        source = self._make_special(row, LIMBO_NEW, name_in_limbo(row.gfid))
        return self._move(outcome, row, place, source, occupant)

    def _move(self, outcome: Outcome, row: FillRow, place: Attachment, source: Source, occupant: Occupant | None
              ) -> FillCode | None:
        """Do (b) for one name. A move within limbo/new is done at once: its note must exist before a crash can find it
        in the tree, in a directory that the same page attaches."""
        if place is Attachment.UNATTACHED and occupant is None and self._names.is_new(source, row.gfid):
            return self._place(outcome, row)
        self._names.will_fill(row, place, source, occupant)
        return None

    def _make_dir(self, row: FillRow) -> FillCode:
        self._names.make_dir(row.gfid)
        self._step("directory made")
        return MADE

    def _make_special(self, row: FillRow, pargfid: Gfid, bname: bytes) -> Source:
        if stat.S_IFMT(row.mode) not in SPECIAL:
            raise ValueError(f"no kind of inode: mode {row.mode:o}")
        source = self._names.make_special(row, pargfid, bname)
        self._step("special made")
        return source

    # (c)

    def _place(self, outcome: Outcome, row: FillRow) -> FillCode:
        """Do (c) for one name: look again at occupant and inode, then move (rules 21 and 22)."""
        names = self._names
        if names.where(row.pargfid) in NOT_TO_FILL:
            return PARENT
        occupant = names.occupant(row)
        if occupant is not None and occupant.gfid == row.gfid:
            return OK
        source = names.source(row)
        if source is None:  # it has gone since the first look
            if stat.S_ISREG(row.mode):
                return NEW
            if stat.S_ISDIR(row.mode):
                return self._make_dir(row)
            source = self._make_special(row, LIMBO_NEW, name_in_limbo(row.gfid))
        elif occupant is not None and names.is_same(row, source, occupant):
            return OK
        if stat.S_ISDIR(row.mode):
            return self._place_dir(outcome, row, source, occupant)
        return self._place_file(outcome, row, source, occupant)

    def _place_dir(self, outcome: Outcome, row: FillRow, source: Source, occupant: Occupant | None) -> FillCode:
        names = self._names
        if names.is_below(row.pargfid, row.gfid):
            return CYCLE
        home = names.home(source, row)
        if occupant is not None:
            self._take_away(outcome, row, occupant)
        if home[0] == LIMBO_NEW:
            names.set_attrs(source, row.meta)
        self._rename(outcome, source, home, row, None)
        names.forget()
        return OK

    def _place_file(self, outcome: Outcome, row: FillRow, source: Source, occupant: Occupant | None) -> FillCode:
        names = self._names
        if occupant is not None and names.is_last(occupant):
            self._detach(outcome, row, occupant, keep_name=True)
            if occupant.is_dir:
                occupant = None
        home = names.home_in_limbo(source, row)
        if home is not None:
            self._rename(outcome, source, home, row, occupant)
            return OK
        try:
            self._link(row, source, occupant)
        except OSError as exc:
            if exc.errno not in names.no_links or row.nlink != 1:
                raise
            self._rename(outcome, source, names.home(source, row), row, None)
        return OK

    def _link(self, row: FillRow, source: Source, occupant: Occupant | None) -> None:
        """Give the inode this name too, replacing the occupant in one step."""
        names = self._names
        if occupant is None:
            with suppress(FileExistsError):  # a foreign inode has just appeared: the rename below replaces it
                names.link(source, row.pargfid, row.bname)
                self._step("linked")
                return
        temporary = LIMBO_NEW, TEMPORARY + name_in_limbo(row.gfid)
        with suppress(FileNotFoundError):
            names.unlink(*temporary)
        names.link(source, *temporary)
        self._step("temporary link made")
        names.rename(source, temporary, row, occupant)
        self._step("linked")

    def _rename(self, outcome: Outcome, source: Source, home: Name, row: FillRow, occupant: Occupant | None) -> None:
        self._names.rename(source, home, row, occupant)
        self._step("renamed")
        if not home[0].startswith(RESERVED):
            outcome.vacated.append(home)

    def _remove(self, outcome: Outcome, row: RemoveRow, keep_last: bool) -> None:
        """Do (c) for one removal."""
        occupant = self._names.removable(row)
        if occupant is not None and not (keep_last and self._names.is_last(occupant)):
            self._take_away(outcome, row, occupant)

    def _take_away(self, outcome: Outcome, row: FillRow | RemoveRow, occupant: Occupant) -> None:
        """Free a name: detach its inode if this is its only name."""
        if self._names.is_last(occupant):
            self._detach(outcome, row, occupant, keep_name=False)
        else:
            self._names.unlink(row.pargfid, row.bname)
            self._step("unlinked")

    def _detach(self, outcome: Outcome, row: FillRow | RemoveRow, occupant: Occupant, *, keep_name: bool) -> None:
        self._names.detach(row, occupant, keep_name=keep_name)
        if occupant.gfid is not None:
            outcome.displaced.append(occupant.gfid)
        if occupant.is_dir:
            self._names.forget()
