"""Hints from inotify(7): a watch per directory, for every account.

Until the next gap scan it does not see writes to a file through a name outside the tree while the file also has a name
inside. There are three cases: a hard link outside; a name that was removed before the recorder started, under which a
program has the file open; a link that is made, written through and removed again within some hundredths of a second.
"""

from __future__ import annotations

import errno
import os
import select
from collections.abc import Iterator

from inotify_simple import INotify, flags

from gsync.base.errors import Faulty
from gsync.base.fsid import Inodes
from gsync.base.model import ROOT_GFID, Gfid, Name
from gsync.recorder.detector import (
    ChangeHint,
    Hint,
    Knows,
    LostWatch,
    NameHint,
    Overflow,
    RenameHint,
    RootGone,
    Unavailable,
)

_CREATE, _DELETE = int(flags.CREATE), int(flags.DELETE)
_MOVED_FROM, _MOVED_TO = int(flags.MOVED_FROM), int(flags.MOVED_TO)
_WRITTEN, _ATTRIB = int(flags.MODIFY | flags.CLOSE_WRITE), int(flags.ATTRIB)
_Q_OVERFLOW, _IGNORED, _ISDIR = int(flags.Q_OVERFLOW), int(flags.IGNORED), int(flags.ISDIR)
_GONE = int(flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT)
_MASK = _CREATE | _DELETE | _MOVED_FROM | _MOVED_TO | _WRITTEN | _ATTRIB | _GONE | int(flags.ONLYDIR)
_PAIR_WAIT = 0.01  # s: the kernel queues the second half of a rename right after the first


class Inotify:
    """Hints at everything that happens in watched directories."""

    name = "inotify"
    sees_all = False

    def __init__(self, root_fd: int, inodes: Inodes, knows: Knows) -> None:
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError as exc:
            limit = "; raise fs.inotify.max_user_instances" if exc.errno == errno.EMFILE else ""
            raise Unavailable(f"inotify_init: {exc.strerror}{limit}") from None
        self._gfid_of: dict[int, Gfid] = {}
        self._watch_of: dict[Gfid, int] = {}

    def fileno(self) -> int:
        return int(self._inotify.fileno())

    def watch(self, gfid: Gfid, handle: bytes, fd: int) -> None:
        try:
            wd = self._inotify.add_watch(b"/proc/self/fd/%d" % fd, _MASK)
        except OSError as exc:
            if exc.errno != errno.ENOSPC:
                raise
            raise Faulty(f"inotify watches are used up after {len(self._gfid_of)} directories: raise the limit (sysctl "
                         "fs.inotify.max_user_watches), or run the recorder as root (fanotify needs none)") from None
        self._gfid_of[wd] = gfid
        self._watch_of[gfid] = wd

    def unwatch(self, gfid: Gfid) -> None:
        wd = self._watch_of.pop(gfid, None)
        if wd is not None:
            del self._gfid_of[wd]
            try:
                self._inotify.rm_watch(wd)
            except OSError as exc:
                if exc.errno != errno.EINVAL:  # the kernel dropped the watch with the directory
                    raise

    def close(self) -> None:
        self._inotify.close()

    def read(self) -> Iterator[Hint]:
        events = list(self._inotify.read(timeout=0))
        if events and events[-1].mask & _MOVED_FROM and select.select([self._inotify], [], [], _PAIR_WAIT)[0]:
            events += self._inotify.read(timeout=0)
        hints: list[Hint] = []
        halves: dict[int, tuple[int, Name]] = {}  # renames whose second half may follow, by cookie
        for event in events:
            mask = event.mask
            gfid = self._gfid_of.get(event.wd)
            if mask & _Q_OVERFLOW:
                hints.append(Overflow())
            elif gfid is None:
                continue
            elif mask & _IGNORED:
                del self._gfid_of[event.wd]
                del self._watch_of[gfid]
                hints.append(LostWatch(gfid))
            elif mask & _GONE:
                if gfid == ROOT_GFID:
                    hints.append(RootGone())
            elif event.name:
                name, is_dir = (gfid, os.fsencode(event.name)), bool(mask & _ISDIR)
                if mask & _MOVED_FROM:
                    halves[event.cookie] = (len(hints), name)
                if mask & _MOVED_TO and event.cookie in halves:
                    # At the position of the first half: events in between happened in other directories.
                    place, old = halves.pop(event.cookie)
                    hints[place] = RenameHint(old, name, None, is_dir)
                elif mask & (_CREATE | _DELETE | _MOVED_FROM | _MOVED_TO):
                    hints.append(NameHint(name, bool(mask & (_CREATE | _MOVED_TO)), is_dir))
                else:
                    hints.append(ChangeHint(None, name, bool(mask & _WRITTEN)))
            elif mask & _ATTRIB:
                hints.append(ChangeHint(gfid, None, False))
        yield from hints
