"""Brings names to what they are on the master: fills some at once, and determines which must wait, and for what.

Promise: afterwards each name of a page has a state in the names table, or an enumeration looks at it. The steps that
follow for files, directories and other names are returned, not taken. Not here: asking the master (batch), sending
files (flight), reading directories (enumeration), removing absent names (removals).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gsync.base.clock import Clock
from gsync.base.fsid import is_mount_handle
from gsync.base.log import get_logger
from gsync.base.model import Gfid, Name, shown
from gsync.engine.progress import Failures
from gsync.engine.worklist import PAGE, ChangelogDB, Dirty, EnumDir, NameState
from gsync.link.protocol import FillAnswer, FillCode, FillRow
from gsync.master.tree import Resolved, Verdict

_log = get_logger(__name__)

GROUP = 4000         # complete inodes per syncfs and page of renames
GROUP_AGE = 5.0      # seconds that a complete inode waits for company while more is coming,
GROUP_SHARE = 0.1    # or longer: making groups durable and visible takes at most this share of the time
MAX_TRIES = 60       # how often a name may become dirty again in one batch
MAX_STUCK = 8        # rounds without progress before blocked names are given up

_ON_THEIR_WAY = (NameState.DATA, NameState.BUILDING)
_NOTHING_LEFT = (NameState.DONE, NameState.FAILED)
_NO_PROGRESS = (FillCode.PARENT, FillCode.CYCLE, FillCode.ERROR)


class _Slave(Protocol):
    def fill(self, rows: Sequence[FillRow]) -> FillAnswer: ...
    def weigh(self, names: Sequence[Name], limit: int) -> int: ...


class _Master(Protocol):
    def parent_chain(self, gfid: Gfid) -> list[Name]: ...
    def path_text(self, name: Name) -> bytes: ...


class WaitsForRecorder(Protocol):
    def wait_complete(self, until_ns: int) -> None:
        """Return once the recorder has recorded everything up to then."""


@dataclass(slots=True)
class Filled:
    """The results of filling a page of names. asked: what the agent was told. new: files to be sent to limbo/new;
    direct: to their names in an unattached directory. dirs: to be enumerated. suspects: their content is to be
    compared. vacated, displaced: as in the agent's answer."""

    asked: list[Resolved] = field(default_factory=list)
    new: list[Resolved] = field(default_factory=list)
    direct: list[Resolved] = field(default_factory=list)
    dirs: list[EnumDir] = field(default_factory=list)
    suspects: list[Resolved] = field(default_factory=list)
    vacated: Sequence[Name] = ()
    displaced: Sequence[Gfid] = ()


class Fill:
    """`recursive`: known directories are walked, too, and known files whose ctime is not older than `floor` (ns) are
    suspect. `waited`: directories for which the recorder had time to catch up."""

    def __init__(self, tree: _Master, slave: _Slave, db: ChangelogDB, failures: Failures, recorder: WaitsForRecorder,
                 clock: Clock, recursive: bool = False, floor: int | None = None) -> None:
        self._tree, self._slave, self._db, self._failures = tree, slave, db, failures
        self._recorder, self._clock = recorder, clock
        self._recursive, self._floor = recursive, floor
        self._stuck = 0
        self.waited = set[Gfid]()

    def settling(self, page: Sequence[Dirty]) -> list[Dirty]:
        """The names of a page without those that became dirty too often; these are given up."""
        keep: list[Dirty] = []
        for row in page:
            if row.tries > MAX_TRIES:
                self._give_up(row, errno.ELOOP, "the name keeps changing")
            else:
                keep.append(row)
        return keep

    def page(self, resolved: Sequence[Resolved], rowids: Sequence[int] | None, flying: Container[Gfid],
             unattached: Container[Gfid]) -> Filled:
        """Fill these names. rowids: their rows in the names table; None: they come from an enumeration. flying: files
        on their way. unattached: new directories that take files directly."""
        filled, states = Filled(), _States()
        asked: list[int | None] = []
        for i, item in enumerate(resolved):
            rowid = rowids[i] if rowids is not None else None
            if item.verdict is not Verdict.PRESENT:
                self._not_there(item, rowid, states)
                continue
            assert item.attrs is not None
            if is_mount_handle(item.handle) and (not item.attrs.is_dir or self._slave.weigh([item.name], 1)):
                states.settle(item, NameState.DONE, rowid)  # rule 46: the slave keeps what it has there
            elif item.attrs.is_dir and self._db.building(item.gfid):
                states.settle(item, NameState.BUILDING, rowid)
            elif item.gfid in flying:
                states.settle(item, NameState.DATA, rowid)
            else:
                filled.asked.append(item)
                asked.append(rowid)
        if filled.asked:
            self._ask(filled, asked, states, unattached)
        states.write(self._db)
        return filled

    def _not_there(self, item: Resolved, rowid: int | None, states: _States) -> None:
        """A name for which the agent has nothing to do now."""
        if item.verdict is Verdict.ABSENT:
            if rowid is not None:  # an enumerated name that has gone again was never told to the slave
                states.absent.append((item.since, rowid))
        elif item.verdict is Verdict.UNKNOWN:  # rule 10
            if rowid is not None and item.errno == errno.ENOENT and item.name[0] in self.waited:
                states.absent.append((item.since, rowid))  # the recorder has caught up and knows no such parent
            else:
                states.settle(item, NameState.UNKNOWN, rowid)
        elif item.verdict is Verdict.EXCLUDED:
            states.settle(item, NameState.DONE, rowid)
        else:
            self._failures.of_name(item.name, item.errno, os.strerror(item.errno))
            states.settle(item, NameState.FAILED, rowid)

    def _ask(self, filled: Filled, rowids: Sequence[int | None], states: _States, unattached: Container[Gfid]) -> None:
        answer = self._slave.fill([_fill_row(item) for item in filled.asked])
        settle = states.settle
        for item, rowid, code in zip(filled.asked, rowids, answer.answers, strict=True):
            if code is FillCode.OK:
                settle(item, NameState.DONE, rowid)
                self._known(item, filled)
            elif code is FillCode.MADE:
                filled.dirs.append(EnumDir(item.gfid, item.handle, self._recursive, True))
                settle(item, NameState.BUILDING, rowid)
            elif code is FillCode.DIRECT and item.name[0] in unattached:
                filled.direct.append(item)
                settle(item, NameState.DONE, rowid)
            elif code is FillCode.NEW or code is FillCode.DIRECT:  # its directory is complete, or not opened yet
                filled.new.append(item)
                settle(item, NameState.DATA, rowid)
            elif code is FillCode.ADOPTED:
                settle(item, NameState.DONE, rowid)
                self._adopted(item, filled)
            elif code is FillCode.PARENT or code is FillCode.CYCLE:
                settle(item, NameState.BLOCKED, rowid)
            else:
                settle(item, NameState.FAILED, rowid)
        for i, err, message in answer.errors:
            self._failures.of_name(filled.asked[i].name, err, message, filled.asked[i].gfid)
        filled.vacated, filled.displaced = answer.vacated, answer.displaced
        if any(code not in _NO_PROGRESS for code in answer.answers):
            self._stuck = 0
        if _log.debugs:
            for item, code in zip(filled.asked, answer.answers, strict=True):
                _log.debug("name", path=shown(self._tree.path_text(item.name)), answer=code.value)

    def _known(self, item: Resolved, filled: Filled) -> None:
        """In a walk: a name that the slave already has."""
        if not self._recursive:
            return
        assert item.attrs is not None
        if item.attrs.is_dir:
            if not self._db.has_dir(item.gfid):
                filled.dirs.append(EnumDir(item.gfid, item.handle, True, False))
        elif self._floor is not None and item.ctime >= self._floor:
            filled.suspects.append(item)

    def _adopted(self, item: Resolved, filled: Filled) -> None:
        assert item.attrs is not None
        if item.attrs.is_dir:
            filled.dirs.append(EnumDir(item.gfid, item.handle, True, False))
        else:
            filled.suspects.append(item)

    # names that cannot be filled at once

    def catch_up(self, dirs: Iterable[Gfid] = ()) -> None:
        """Wait until the recorder has recorded everything so far; then unknown names are dirty again (rule 10)."""
        self._wait(self._clock.now())
        self.waited.update(dirs)
        self.waited.update(self._db.parents(NameState.UNKNOWN))
        self._db.move(NameState.UNKNOWN, NameState.DIRTY)

    def unblock(self) -> None:
        """A round without progress: pull in the parents of blocked names (rule 15)."""
        self._stuck += 1
        rows = self._db.names(NameState.BLOCKED, PAGE)
        if self._stuck > MAX_STUCK:
            for row in rows:
                self._give_up(row, errno.ENOENT, "its parent directory never appeared at the slave")
            return
        if self._stuck > 1:  # the chain of parents may lack one that the recorder does not know yet
            self._wait(self._clock.now())
        for pargfid in {row.name[0] for row in rows}:
            self._db.add_names(self._tree.parent_chain(pargfid))
        self._db.move(NameState.BLOCKED, NameState.DIRTY)

    def let_suspects_be_found(self, seen: int) -> None:
        """When all names are filled, the last of them looked at at `seen` (ns), suspect files are found through the
        recorder's index. A file that the index does not have yet would count as gone."""
        if self._recursive and self._floor is not None:
            self._wait(seen)

    def _wait(self, until_ns: int) -> None:
        self._db.flush()
        self._recorder.wait_complete(until_ns)

    def _give_up(self, row: Dirty, err: int, message: str) -> None:
        self._failures.of_name(row.name, err, message)
        self._db.set_names([(NameState.FAILED, row.rowid)])


class _States:
    """The states of a page's names, gathered to be written at once."""

    def __init__(self) -> None:
        self.absent: list[tuple[int, int]] = []
        self._states: list[tuple[int, int]] = []
        self._waiting: list[tuple[bytes, bytes, int, bytes]] = []

    def settle(self, item: Resolved, state: NameState, rowid: int | None) -> None:
        if state in _ON_THEIR_WAY or (rowid is None and state not in _NOTHING_LEFT):
            self._waiting.append((*item.name, state, item.gfid))
        elif rowid is not None:
            self._states.append((state, rowid))

    def write(self, db: ChangelogDB) -> None:
        db.set_names(self._states)
        db.set_absent(self.absent)
        db.add_waiting(self._waiting)


class Group:
    """Complete inodes that wait for company before they get their names: each group costs the slave a syncfs."""

    def __init__(self, db: ChangelogDB, clock: Clock) -> None:
        self._db, self._clock = db, clock
        self._since = 0.0
        self._patience = GROUP_AGE
        self.ready = 0

    def arrived(self, gfids: Sequence[Gfid], waiting: NameState) -> None:
        """These inodes, for which names wait in the state `waiting`, are complete."""
        if not gfids:
            return
        if not self.ready:
            self._since = self._clock.monotonic()
        self.ready += len(gfids)
        self._db.arrived(gfids, waiting)

    def due(self) -> bool:
        """Whether the group is large enough, or has waited long enough, to go while more is coming."""
        return self.ready >= GROUP or (self.ready > 0 and self._clock.monotonic() - self._since > self._patience)

    def took(self, seconds: float) -> None:
        """Naming a group took this long."""
        self._patience = max(GROUP_AGE, seconds / GROUP_SHARE)


def _fill_row(r: Resolved) -> FillRow:
    a = r.attrs
    assert a is not None
    return FillRow(r.name[0], r.name[1], r.gfid, a.mode, r.since, a.nlink, a.uid, a.gid, a.mtime, a.atime, a.rdev,
                   r.target, r.xattrs)
