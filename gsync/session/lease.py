"""Which worker of a subvolume may work: the holder of its lease, known by an epoch that grows with each taking.

On one node the worker's lock file keeps others out, and only the epoch is counted (LocalLease).
"""

from __future__ import annotations

import os
from typing import Protocol

from gsync.durable import replace_file


class Lease(Protocol):
    """One worker's claim. Faulty where the claim cannot be made or checked at all."""

    def take(self) -> int | None:
        """The epoch of a new claim, larger than any before, durably; None while another worker holds it."""

    def held(self) -> bool:
        """Whether the last claim still stands; looked at before every commit."""

    def release(self) -> None:
        """Give it up, so that another worker need not wait."""

    def beside(self) -> int | None:
        """The stime (ns) of the worker that holds it instead of this one, if it is known."""


class LocalLease:
    """For a session of one node."""

    def __init__(self, path: str) -> None:
        self._path = path

    def take(self) -> int | None:
        try:
            with open(self._path, encoding="ascii") as file:
                epoch = int(file.read()) + 1
        except FileNotFoundError:
            epoch = 1
        replace_file(os.fsencode(self._path), b"%d\n" % epoch)
        return epoch

    def held(self) -> bool:
        return True

    def release(self) -> None:
        """Nobody waits for it."""

    def beside(self) -> int | None:
        return None
