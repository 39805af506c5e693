"""Brings names to what the master has, as desired state: the one order and the checks, for directories and volumes.

Promise: doing it again changes nothing; killed anywhere, recovery and doing it again give the same tree. A row that
cannot be done is answered with its error and hurts no other row; only a slave that is unusable as a whole (full,
read-only) raises OSError, after everything done so far is remembered.

A page of names goes in the order of rule 24: (a) new inodes are made in limbo/new; (b) the names that may change are
noted, durably; (c) renames. A move within limbo/new alone belongs to (a): nobody sees it, and a crash throws it away.
Before a name changes, who is at it and where its inode is are looked at again (rules 21 and 22).
Not here: how names are found and changed (Names). Standard library only, Python 3.9.
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
    """Who is at a name. gfid: None if it is none of gsync's."""

    @property
    def gfid(self) -> Gfid | None: ...

    @property
    def is_dir(self) -> bool: ...


Source = TypeVar("Source")                        # where an inode was found
Occupant = TypeVar("Occupant", bound=Resident)    # who was found at a name


class Names(ABC, Generic[Source, Occupant]):
    """The names of one slave: an adapter finds and changes them, and remembers what it changes. One page at a time.

    no_links: errnos of a file system that has no hard links, or no more of them for this inode.
    """

    no_links: Collection[int] = ()

    def __init__(self) -> None:
        self.places: dict[Gfid, Attachment] = {}  # of this page

    # the frame of a page

    @contextmanager
    def page(self) -> Iterator[None]:
        """Around one request."""
        self.forget()
        yield

    @abstractmethod
    def preparing(self, gfids: Sequence[Gfid]) -> AbstractContextManager[None]:
        """Around (a), which is about these inodes; at its end comes (b): what was noted is written down."""

    @abstractmethod
    def make_durable(self, *, made: bool) -> None:
        """Have on disk what was noted; with `made`, what was made too, before it can be seen."""

    @abstractmethod
    def changing(self) -> AbstractContextManager[None]:
        """Around (c)."""

    def check(self) -> None:
        """Before each row: Fenced if the slave is another connection's now."""

    # where directories are

    def where(self, gfid: Gfid) -> Attachment:
        place = self.places.get(gfid)
        if place is None:
            place = self.places[gfid] = self.find_place(gfid)
        return place

    def forget(self) -> None:
        """A directory has moved or gone: what was found out about others may be wrong now."""
        self.places.clear()

    @abstractmethod
    def find_place(self, gfid: Gfid) -> Attachment:
        """Where a directory is."""

    @abstractmethod
    def is_below(self, gfid: Gfid, above: Gfid) -> bool:
        """Whether a directory is the other one, or lies below it."""

    # (a) and (b)

    @abstractmethod
    def look(self, row: FillRow, place: Attachment) -> tuple[FillCode | None, Source | None, Occupant | None]:
        """The answer, if the name is right already or was taken over; else where the inode is (None: nowhere), and who
        is at the name. This runs for every name there is: what it asks of the slave decides gsync's speed."""

    @abstractmethod
    def is_new(self, source: Source, gfid: Gfid) -> bool:
        """Whether the inode lies in limbo/new and nowhere else."""

    @abstractmethod
    def make_dir(self, gfid: Gfid) -> None:
        """A new directory in limbo/new, noted as incomplete."""

    @abstractmethod
    def make_special(self, row: FillRow, pargfid: Gfid, bname: bytes) -> Source:
        """A new symlink, FIFO, socket or device, complete, at a name in limbo/new that nobody has a claim to."""

    @abstractmethod
    def will_fill(self, row: FillRow, place: Attachment, source: Source, occupant: Occupant | None) -> None:
        """Note every name outside limbo that this row may change, and who is at stake there."""

    @abstractmethod
    def will_remove(self, row: RemoveRow) -> bool:
        """The same for a removal; False if there is nothing to remove."""

    # (c): looked at anew

    @abstractmethod
    def occupant(self, row: FillRow) -> Occupant | None:
        """Who is at the name of this row."""

    @abstractmethod
    def removable(self, row: RemoveRow) -> Occupant | None:
        """Who is at the name of this row; None, too, if the name is another file's."""

    @abstractmethod
    def source(self, row: FillRow) -> Source | None:
        """Where the inode of this row is; None: nowhere."""

    def is_same(self, row: FillRow, source: Source, occupant: Occupant) -> bool:
        """Whether the occupant turns out to be the inode itself: a link that was not known, and is from now on."""
        return False

    @abstractmethod
    def is_last(self, occupant: Occupant) -> bool:
        """Whether the inode goes when the name goes."""

    @abstractmethod
    def home(self, source: Source, row: FillRow) -> Name:
        """The name of a directory, or the best one of a file."""

    @abstractmethod
    def home_in_limbo(self, source: Source, row: FillRow) -> Name | None:
        """The name of a file that lies in limbo."""

    # (c): changed

    @abstractmethod
    def detach(self, row: FillRow | RemoveRow, occupant: Occupant, *, keep_name: bool) -> None:
        """Bring the occupant of the row's name into limbo/old. keep_name: a file by a second link where that is
        possible, so that the name can be renamed over in one step."""

    @abstractmethod
    def rename(self, source: Source, home: Name, row: FillRow, occupant: Occupant | None) -> None:
        """Move the inode from one name to the row's, in place of the occupant."""

    @abstractmethod
    def link(self, source: Source, pargfid: Gfid, bname: bytes) -> None:
        """Give a file one more name; FileExistsError if somebody has it."""

    @abstractmethod
    def unlink(self, pargfid: Gfid, bname: bytes) -> None:
        """Take away one of several links; FileNotFoundError if nobody is there."""

    @abstractmethod
    def set_attrs(self, source: Source, meta: MetaRow) -> None:
        """Give a new directory in limbo/new its attributes."""


class Desired(Generic[Source, Occupant]):
    """Fills and removes names. step: told of everything that a crash may follow."""

    def __init__(self, names: Names[Source, Occupant], step: Step = lambda name: None) -> None:
        self._names = names
        self._step = step

    def fill(self, rows: Sequence[FillRow]) -> FillAnswer:
        """Bring each name to the inode that its row says."""
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
        """Take names away: an inode whose last name it is waits in limbo/old (rule 17), or with keep_last keeps it.
        Those in detached directories too: a directory may come back."""
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
        """(c) for these rows, each on its own."""
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
        """(a) for one name: its answer, or None if something has to be moved to it."""
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
        """(b) for one name. A move within limbo/new is done at once: what is remembered of it has to be there before a
        crash can find it in the tree, in a directory that the same page attaches."""
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
        """(c) for one name: look again at who is where, then move (rules 21 and 22)."""
        names = self._names
        if names.where(row.pargfid) in NOT_TO_FILL:
            return PARENT
        occupant = names.occupant(row)
        if occupant is not None and occupant.gfid == row.gfid:
            return OK
        source = names.source(row)
        if source is None:  # gone since it was looked at
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
        """Give the inode this name too, replacing in one step who is there."""
        names = self._names
        if occupant is None:
            with suppress(FileExistsError):  # somebody foreign has just come: renamed over
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
        """(c) for one removal."""
        occupant = self._names.removable(row)
        if occupant is not None and not (keep_last and self._names.is_last(occupant)):
            self._take_away(outcome, row, occupant)

    def _take_away(self, outcome: Outcome, row: FillRow | RemoveRow, occupant: Occupant) -> None:
        """Free a name: detach an inode that has no other one."""
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
