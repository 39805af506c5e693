"""Files on their way to the slave: passes each to the syncers once, retries failures, takes landed files back.

Promise: each file that was sent comes back exactly once, as landed, gone or failed. Not here: which files go where
(fill, enumeration, contents), the consequences for their names and directories (batch).
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gsync.base.errors import Transient
from gsync.base.fate import SENDING
from gsync.base.log import get_logger
from gsync.base.model import Gfid, Name, shown
from gsync.base.namespace import IndexEntry
from gsync.engine.progress import Failures, Progress
from gsync.master.tree import Resolved
from gsync.sync.postbox import FileRequest, Result

_log = get_logger(__name__)

DATA_RETRIES = 2

_ASK_AGAIN = (errno.EEXIST, errno.EMLINK)  # the slave has the inode, or it has other names: do not send it unasked


class _Syncer(Protocol):
    def send(self, *requests: FileRequest) -> None: ...
    def results(self, wait: bool) -> Sequence[Result]: ...


class _Master(Protocol):
    hints: dict[Gfid, tuple[bytes, Name]]

    def hint(self, gfid: Gfid) -> None: ...
    def will_read(self, files: int) -> None: ...
    def is_away(self, err: int) -> bool: ...
    def path_text(self, name: Name) -> bytes: ...


@dataclass(slots=True)
class Landed:
    """The files that came back. whole: new files, complete with their attributes; named: those of them in limbo/new,
    whose names can be filled. into: the number of files that are no longer missing, for each unattached directory.
    gone: there is nothing to send (any more), or sending is not that simple, so their names must be resolved again.
    failed: given up."""

    whole: list[Gfid] = field(default_factory=list)
    named: list[Gfid] = field(default_factory=list)
    into: Counter[Gfid] = field(default_factory=Counter)
    gone: list[FileRequest] = field(default_factory=list)
    failed: list[FileRequest] = field(default_factory=list)


class Flight:
    """`retries`: how often a file that could not be sent is tried again. `flying`: new files on their way. `out`: how
    many files are on their way, including those in place."""

    def __init__(self, tree: _Master, syncer: _Syncer, failures: Failures, progress: Progress,
                 retries: int = DATA_RETRIES) -> None:
        self._tree, self._syncer, self._failures, self._progress = tree, syncer, failures, progress
        self._retries = retries
        self._tries: dict[Gfid, int] = {}
        self._changed: list[Gfid] = []
        self._lost: list[Gfid] = []
        self.flying: dict[Gfid, FileRequest] = {}
        self.out = 0

    def send(self, new: Iterable[Resolved], direct: Iterable[Resolved | IndexEntry]) -> None:
        """Send new files: to limbo/new, each once whatever its names are, or straight to their names in unattached
        directories. Blocks while the box is full."""
        requests = [self._request(item, "N") for item in new if item.gfid not in self.flying]
        requests += [self._request(item, "D") for item in direct]
        self._go(requests)

    def send_in_place(self, gfids: Sequence[Gfid]) -> None:
        """Send content for files that the slave has."""
        for gfid in gfids:
            self._tree.hint(gfid)
        self.out += len(gfids)
        self._go([FileRequest(gfid, "P", b"", b"", 0) for gfid in gfids])

    def _request(self, item: Resolved | IndexEntry, place: str) -> FileRequest:
        gfid, name = item.gfid, item.name
        self._tree.hints[gfid] = (item.handle, name)
        size = item.size if isinstance(item, IndexEntry) else item.attrs.size if item.attrs else 0
        request = self.flying[gfid] = FileRequest(gfid, place, name[0], name[1], size)
        self.out += 1
        return request

    def _go(self, requests: Sequence[FileRequest]) -> None:
        """All at once: if each request woke the syncers, they would carry boxes of one."""
        if requests:
            self._tree.will_read(len(requests))
            self._syncer.send(*requests)

    def take(self, wait: bool) -> Landed:
        """Everything that came back since the last call; with `wait`, allow a moment for the first."""
        landed = Landed()
        results = self._syncer.results(wait)
        self.out -= len(results)
        for result in results:
            request = result.request
            self.flying.pop(request.gfid, None)
            if result.errno:
                self._not_sent(result, landed)
            else:
                self._arrived(result, landed)
        return landed

    def _arrived(self, result: Result, landed: Landed) -> None:
        (gfid, place, dirgfid, bname, _), _, _, size, changed = result
        self._progress.files += 1
        self._progress.bytes += size
        if _log.debugs:
            path = self._tree.path_text((dirgfid, bname)) if bname else self._failures.path_of(gfid)
            _log.debug("file sent", path=shown(path), gfid=gfid.hex(), bytes=size)
        if self._tries:
            self._tries.pop(gfid, None)
        if changed:
            self._changed.append(gfid)
        else:
            self._tree.hints.pop(gfid, None)
        if place == "D":
            landed.into[dirgfid] += 1
        elif place == "N":
            landed.named.append(gfid)
        if place != "P":
            landed.whole.append(gfid)

    def _not_sent(self, result: Result, landed: Landed) -> None:
        request, err = result.request, result.errno
        gfid, place = request.gfid, request.place
        if self._tree.is_away(err):
            raise Transient(f"master: {result.message}")
        tries = self._tries[gfid] = self._tries.get(gfid, 0) + 1
        vanished = err in SENDING.gone or (place == "D" and err in _ASK_AGAIN)
        if not vanished and tries <= self._retries and err not in SENDING.denied:
            self.flying[gfid] = request
            self.out += 1
            self._syncer.send(request)
            return
        del self._tries[gfid]
        self._tree.hints.pop(gfid, None)
        if place == "D":
            landed.into[request.dirgfid] += 1
        if vanished:  # the source, or the unattached directory, or it is not that simple
            if place == "P":
                self._lost.append(gfid)
            else:
                landed.gone.append(request)
        elif place == "P":
            self._failures.of_inode("data", gfid, err, result.message)
        else:
            self._failures.of_name((request.dirgfid, request.bname), err, result.message, gfid)
            landed.failed.append(request)

    def take_lost(self) -> list[Gfid]:
        """Files that the slave has and whose source was gone when it was to be read, since the last call."""
        lost, self._lost = self._lost, []
        return lost

    def take_changed(self) -> list[Gfid]:
        """Files that changed while they were read, since the last call."""
        changed, self._changed = self._changed, []
        return changed
