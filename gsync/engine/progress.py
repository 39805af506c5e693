"""Counts a worker's successes and failures for status. Every failure is counted, recorded in the ledger and, up to a
limit, logged.

Not here: when a failure is tried again (ledger), publishing the counts (worker).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from gsync.base.log import get_logger
from gsync.base.model import ROOT_GFID, Gfid, Name, shown
from gsync.engine.ledger import Failure, Ledger

_log = get_logger(__name__)

SHOWN_FAILURES = 20  # failures in a worker's life that are logged as warnings; the ledger has all


class _Master(Protocol):
    def names_of(self, gfid: Gfid) -> list[Name]: ...
    def path_text(self, name: Name) -> bytes: ...


@dataclass
class Progress:
    """Counters for status; the worker publishes them."""

    names: int = 0
    files: int = 0
    bytes: int = 0
    removed: int = 0
    failed: int = 0
    phase: str = "waiting"

    def since(self, before: Progress) -> dict[str, int]:
        """The counts since then, for a line of the log."""
        return {name: getattr(self, name) - getattr(before, name)
                for name in ("names", "files", "bytes", "removed", "failed")}


class Failures:
    """The parts of a batch report their failures here."""

    def __init__(self, tree: _Master, ledger: Ledger, progress: Progress) -> None:
        self._tree, self._ledger, self._progress = tree, ledger, progress

    def of_name(self, name: Name, err: int, message: str, gfid: Gfid | None = None) -> None:
        """A name, and perhaps a new inode with it, does not get to the slave."""
        self._record(Failure("name", gfid, name, self._tree.path_text(name), err, message))

    def of_inode(self, what: str, gfid: Gfid, err: int, message: str) -> None:
        """An inode that the slave has stays stale. what: its "data", "meta" or "dir"."""
        self._record(Failure(what, gfid, None, self.path_of(gfid), err, message))

    def path_of(self, gfid: Gfid) -> bytes:
        """One of the inode's paths, for people."""
        if gfid == ROOT_GFID:
            return b"."
        name = next(iter(self._tree.names_of(gfid)), None)
        return self._tree.path_text(name) if name else b"?"

    def _record(self, failure: Failure) -> None:
        self._progress.failed += 1
        self._ledger.record(failure)
        log = _log.warning if self._progress.failed <= SHOWN_FAILURES else _log.debug
        log("failed", what=failure.what, path=shown(failure.path), errno=failure.errno, error=failure.message)
