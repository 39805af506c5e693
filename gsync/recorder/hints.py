"""A detector's hints that nobody has looked at yet: merged in memory, and in order on disk beyond that.

A detector that sees all names inodes, so its hints are merged at once. One that sees only names tells a story whose
order matters: it is kept as it came until its renames have been followed in the index (look).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from gsync.base.model import Gfid, Name
from gsync.recorder.backlog import Backlog
from gsync.recorder.detector import ChangeHint, Detector, Hint, LostWatch, NameHint, Overflow, RenameHint, RootGone

APPEARED, IS_DIR = 1, 2  # flags of a name
DATA, META = 1, 2        # flags of a changed inode


class HintLimits(NamedTuple):
    """Numbers of hints. at_once: a larger number does not wait for the end of the slice. in_memory: further hints wait
    on disk, in blocks. on_disk: beyond this number, the tree is compared with the index instead."""

    at_once: int = 2000
    in_memory: int = 10_000
    on_disk: int = 5_000_000
    block: int = 500


class Hints:
    """`drain` takes hints from the detector. `gap`: why the tree must be compared with the index, "" if it need not be.
    `lost`: directories whose watch is gone. `urgent`: a new directory waits for its watch, or a link must become known.
    `drained_at`: no hint of a change before that moment (ns) waits in the kernel or on disk."""

    def __init__(self, detector: Detector, folder: bytes, clock: Callable[[], int], drained_at: int,
                 limits: HintLimits) -> None:
        self._detector, self._clock, self._limits = detector, clock, limits
        self._names: dict[Name, int] = {}
        self._renamed_from: dict[Name, Name] = {}          # new name -> old name
        self._changes: dict[Gfid, int] = {}
        self._story: list[NameHint | RenameHint | ChangeHint] = []
        self._told: set[Hint] = set()                      # changes that the story ends with
        self._backlog = Backlog(folder, limits.block)      # hints that came after all these
        self.lost: set[Gfid] = set()
        self.gap = ""
        self.urgent = False
        self.drained_at = drained_at

    def close(self) -> None:
        self._backlog.close()

    def __len__(self) -> int:
        return self.in_memory + len(self._backlog)

    @property
    def in_memory(self) -> int:
        return len(self._names) + len(self._changes) + len(self._story)

    @property
    def many(self) -> bool:
        return len(self) >= self._limits.at_once

    @property
    def any_on_disk(self) -> bool:
        return bool(self._backlog)

    @property
    def taken(self) -> int:
        """The number of hints taken from the disk so far."""
        return self._backlog.taken

    @property
    def last(self) -> int:
        """The value of `taken` once all hints that wait now have been taken from the disk."""
        return self._backlog.taken + len(self._backlog)

    def drain(self) -> bool:
        """Take hints from the detector, as far as memory allows. Return whether there is anything new to look at."""
        drained_at, new = self._clock(), False
        for hint in self._detector.read():
            new = True
            if isinstance(hint, Overflow | LostWatch | RootGone) or (not self._backlog and self._room()):
                self._take(hint)
            else:
                self._backlog.put(hint)
        while self._backlog and self._room():
            new = True
            for hint in self._backlog.take():
                self._take(hint)
        if not self._backlog:
            self.drained_at = drained_at  # otherwise, changes that still wait may be older
        elif len(self._backlog) > self._limits.on_disk:
            self._forget_all()
            self.gap = "too many changes at once"
        return new

    def note(self, hint: NameHint | RenameHint | ChangeHint) -> None:
        """Merge a hint with the others: its names must be looked at, its inode has changed."""
        if isinstance(hint, ChangeHint):
            if hint.gfid is not None:
                self.note_change(hint.gfid, DATA if hint.data else META)
        elif isinstance(hint, RenameHint):
            self._names.setdefault(hint.new, 0)
            self._names.setdefault(hint.old, IS_DIR if hint.is_dir else 0)
            self._renamed_from[hint.new] = hint.old
        else:
            flags = (APPEARED if hint.appeared else 0) | (IS_DIR if hint.is_dir else 0)
            self._names[hint.name] = self._names.get(hint.name, 0) | flags

    def note_change(self, gfid: Gfid, what: int) -> None:
        self._changes[gfid] = self._changes.get(gfid, 0) | what

    def note_flags(self, name: Name, flags: int) -> None:
        """Add flags to a name that is to be looked at."""
        self._names[name] |= flags

    def flags(self, name: Name) -> int:
        return self._names[name]

    def tell(self) -> Iterator[NameHint | RenameHint | ChangeHint]:
        """The story so far, in order; it is told once."""
        story, self._story = self._story, []
        self._told.clear()
        return iter(story)

    def take_names(self) -> tuple[dict[Name, int], dict[Name, Name]]:
        """The names to look at with their flags, and the former names of those that were renamed."""
        names, self._names = self._names, {}
        renamed_from, self._renamed_from = self._renamed_from, {}
        return names, renamed_from

    def take_changes(self) -> dict[Gfid, int]:
        changes, self._changes = self._changes, {}
        return changes

    def take_lost(self) -> set[Gfid]:
        lost, self.lost = self.lost, set()
        return lost

    def _room(self) -> bool:
        return self.in_memory < self._limits.in_memory

    def _take(self, hint: Hint) -> None:
        if isinstance(hint, Overflow):
            self.gap = "the kernel dropped events"
        elif isinstance(hint, LostWatch):
            self.lost.add(hint.gfid)
        elif isinstance(hint, RootGone):
            self.gap = "the root was moved or unmounted"
        elif self._detector.sees_all:
            self.note(hint)
        elif not isinstance(hint, ChangeHint):
            self._story.append(hint)
            self._told.clear()
            self.urgent = self.urgent or (isinstance(hint, NameHint) and hint.appeared)
        elif hint not in self._told:  # once, until the next rename
            self._story.append(hint)
            self._told.add(hint)

    def _forget_all(self) -> None:
        self._backlog.clear()
        self._names.clear()
        self._renamed_from.clear()
        self._changes.clear()
        self._story.clear()
        self._told.clear()
