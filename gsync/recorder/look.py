"""Looks at hinted names: records in the slice what is there now, and updates the index (rules 1 and 2).

Not here: when to look (recording), which names were hinted (hints).
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Callable
from contextlib import suppress

from gsync.base.fsid import Seen, is_mount_handle
from gsync.base.log import get_logger
from gsync.base.model import ROOT_GFID, Gfid, Name
from gsync.base.namespace import IndexEntry
from gsync.recorder.detector import ChangeHint, NameHint, RenameHint
from gsync.recorder.hints import APPEARED, DATA, IS_DIR, META, Hints
from gsync.recorder.live import GRANULARITY, LiveIndex, entry_at
from gsync.recorder.slice import Slice
from gsync.recorder.tree import OUTSIDE, Elsewhere, Gone, RecordedTree

_log = get_logger(__name__)

ROUNDS = 8                # reads in search of a rename that explains why a name is empty
DRAIN_EVERY = 500         # names of one directory
NOBODY = bytes(16)        # for the record of a name at which the index never had an inode


class Look:
    """`stuck`: names in directories that are not where the index says; they are looked at again.

    scan_below: records everything below a directory (gfid, handle) that came from an unwatched place.
    """

    def __init__(self, tree: RecordedTree, live: LiveIndex, hints: Hints, slice_: Slice,
                 scan_below: Callable[[Gfid, bytes], None]) -> None:
        self._tree, self._live, self._hints, self._slice = tree, live, hints, slice_
        self._scan_below = scan_below
        self._empty: dict[Name, IndexEntry] = {}                # index entries whose name turned out empty
        self._said: set[Name] = set()                      # old names that a RENAME record covered
        self.stuck: dict[Name, int] = {}

    def run(self) -> None:
        """Look at every hint in memory; the caller has a transaction open."""
        self._said.clear()
        self._live.begin_look()
        for _ in range(ROUNDS):
            self._live.clean_before = self._hints.drained_at - GRANULARITY
            self._follow_story()
            names, renamed_from = self._hints.take_names()
            names.update(self.stuck)
            self.stuck = {}
            changes = self._hints.take_changes()
            self._slice.changed_lately.clear()
            self._look(names, renamed_from)
            for gfid, what in changes.items():
                if gfid not in self._slice.changed_lately:  # otherwise looked at since, with everything recorded
                    self._hints.note_change(gfid, what)
            # The inode of an empty name may have been renamed since: find that out before it is dropped.
            if not self._empty or not self._hints.drain():
                break
        self._drop_empty()
        self._say_changes()

    def _follow_story(self) -> None:
        """Follow renames in the index, in the order of the events. An inode that moved within the tree is then known at
        its new name; one that left is unknown, even if it is back."""
        for hint in self._hints.tell():
            if isinstance(hint, ChangeHint) and hint.name is not None:
                for gfid in self._live.meant_by(hint.name):
                    self._hints.note(hint._replace(gfid=gfid))
                if self._live.rows.get(*hint.name) is None:
                    self._hints.note(NameHint(hint.name, True))
                continue
            self._hints.note(hint)
            if isinstance(hint, NameHint):
                if not hint.appeared and (entry := self._live.rows.get(*hint.name)):
                    self._live.drop(entry)
            elif isinstance(hint, RenameHint):
                unproven = self._hints.flags(hint.old) & APPEARED if self._live.move(hint) else APPEARED
                self._hints.note_flags(hint.new, unproven)

    def _look(self, names: dict[Name, int], renamed_from: dict[Name, Name]) -> None:
        """Look first at the new names of renames, then at all others, then at names in directories met on the way."""
        targets = {name: flags for name, flags in names.items() if name in renamed_from}
        unknown = self._look_at_all(targets, renamed_from)
        unknown |= self._look_at_all({n: f for n, f in names.items() if n not in targets}, renamed_from)
        self._look_at_all(unknown, renamed_from)  # names that are still unknown are not in the tree

    def _look_at_all(self, names: dict[Name, int], renamed_from: dict[Name, Name]) -> dict[Name, int]:
        """Look at the names; return those whose directory is unknown."""
        unknown: dict[Name, int] = {}
        for pargfid, group in itertools.groupby(sorted(names), key=lambda name: name[0]):
            if not self._live.knows(pargfid):
                unknown.update((name, names[name]) for name in group)
                continue
            fd = -1
            try:
                with suppress(Gone):
                    fd = self._tree.open_dir(pargfid, self._live.handle_of_displaced(pargfid))
                for n, name in enumerate(group, 1):
                    if n % DRAIN_EVERY == 0:
                        self._hints.drain()
                    self._look_at(fd, name, names[name], renamed_from.get(name))
                if fd >= 0:
                    self._live.keep_attributes(pargfid, os.fstat(fd))
            except Elsewhere:
                self.stuck.update((name, names[name]) for name in group)
            except PermissionError as exc:
                _log.warning("directory cannot be read", gfid=pargfid.hex(), error=exc.strerror)
            finally:
                if fd >= 0:
                    os.close(fd)
        return unknown

    def _look_at(self, fd: int, name: Name, flags: int, old: Name | None) -> None:
        seen = self._tree.look(fd, *name) if fd >= 0 else None
        if seen is OUTSIDE:
            self._slice.meta(name[0])  # only the directory's times matter to anybody
        elif seen is None:
            self._is_empty(name, flags)
        else:
            self._is_there(name, flags, old, seen)

    def _is_empty(self, name: Name, flags: int) -> None:
        known = self._live.rows.get(*name)
        if known is not None:
            self._empty[name] = known
        if name not in self._said:
            is_dir = stat.S_ISDIR(known.kind) if known else bool(flags & IS_DIR)
            gfid = known.gfid if known else self._live.was_at(name) or NOBODY
            self._slice.gone(gfid, name, is_dir)

    def _is_there(self, name: Name, flags: int, old: Name | None, seen: Seen) -> None:
        known = self._live.rows.get(*name)
        is_dir = stat.S_ISDIR(seen.st.st_mode)
        agrees = known is not None and known.gfid == seen.gfid
        place = self._live.tracked(seen.gfid)
        if place is None and agrees and (is_dir or not flags & APPEARED):
            place = known  # a directory that the index has here was scanned after it came
        if known is not None and not agrees:
            self._live.drop(known)
        if is_dir:
            for entry in self._live.rows.entries_of(seen.gfid):
                if entry.name != name:
                    self._live.rows.remove(*entry.name)
        self._live.put(entry_at(*name, seen, self._live.clean_before))
        if place is not None and (old is not None or (is_dir and place.name != name)):
            old = old or place.name
            self._slice.renamed(seen.gfid, old, name)
            self._said.add(old)
        else:
            self._slice.appeared(name, seen, linked=seen.st.st_nlink > 1)
        if place is None:
            self._slice.changed(seen)
            if is_dir and not is_mount_handle(seen.handle):
                self._scan_below(seen.gfid, seen.handle)

    def _drop_empty(self) -> None:
        for name, entry in self._empty.items():
            found = self._live.rows.get(*name)
            if found is not None and found.gfid == entry.gfid:
                self._live.drop(entry)
        self._empty.clear()

    def _say_changes(self) -> None:
        """Record D and M for changed inodes, as far as they belong to the tree."""
        for gfid, what in self._hints.take_changes().items():
            if gfid == ROOT_GFID:
                self._slice.meta(ROOT_GFID)
                self._live.keep_attributes(ROOT_GFID, os.fstat(self._tree.root_fd))
                continue
            entry = self._live.rows.entry_of(gfid)
            if entry is None:
                continue
            if what & DATA and stat.S_ISREG(entry.kind):
                self._slice.data(gfid)
            if what & META:
                self._slice.meta(gfid)
            self._live.keep_attributes(gfid, self._tree.stat(entry))
