"""Hints that arrived faster than they can be looked at: they wait on disk, in order, so that memory does not grow.

The file is unnamed and goes away with the process: after a crash the tree is compared with the index anyway. OSError if
the disk is full.
"""

from __future__ import annotations

import pickle
import tempfile
from typing import IO

from gsync.recorder.detector import ChangeHint, Hint


class Backlog:
    """A queue of hints, written in blocks of this size. Its length is the number of waiting hints."""

    def __init__(self, folder: bytes, block: int) -> None:
        self._folder, self._block = folder, block
        self._file: IO[bytes] | None = None
        self._read_at = 0
        self._on_disk = 0
        self._last: list[Hint] = []          # not written yet
        self._told: set[ChangeHint] = set()  # the changes that they end with
        self.taken = 0                       # total so far

    def __len__(self) -> int:
        return self._on_disk + len(self._last)

    def put(self, hint: Hint) -> None:
        if not isinstance(hint, ChangeHint):
            self._told.clear()
        elif hint in self._told:
            return  # so a file that is written all the time does not fill the disk
        else:
            self._told.add(hint)
        self._last.append(hint)
        if len(self._last) < self._block:
            return
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 closed by close
        self._file.seek(0, 2)
        pickle.dump(self._last, self._file)
        self._on_disk += len(self._last)
        self._last = []
        self._told.clear()

    def take(self) -> list[Hint]:
        """The oldest hints; [] if there are none."""
        block = self._last
        if self._file is not None and self._on_disk:
            self._file.seek(self._read_at)
            block = pickle.load(self._file)
            self._read_at = self._file.tell()
            self._on_disk -= len(block)
            if not self._on_disk:
                self._read_at = 0
                self._file.truncate(0)
        else:
            self._last = []
            self._told.clear()
        self.taken += len(block)
        return block

    def clear(self) -> None:
        while self.take():
            pass

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
