"""A page of names on its way to what the master has: what an agent finds out about it, whatever the slave is.

For apply (a directory) and gluster/apply (a volume). Standard library only, Python 3.9.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterable
from enum import Enum

from gsync.base.fate import SLAVE
from gsync.base.model import Gfid, Name
from gsync.link.protocol import FillCode, RowProblem

SPECIAL = (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
READ = 1 << 20     # bytes of a file that are read at once

Step = Callable[[str], None]


class Attachment(Enum):
    """Where a directory is, as far as filling names in it goes."""

    IN_TREE = "in the tree"
    UNATTACHED = "unattached"   # new, in limbo/new itself: nothing in it is visible, known before, or durable
    DETACHED = "detached"       # in limbo/old or below a directory there; of a volume also in the trash
    AWAY = "away"               # nowhere


NOT_TO_FILL = (Attachment.DETACHED, Attachment.AWAY)


class Outcome:
    """What one call of fill or remove has found out and done."""

    def __init__(self) -> None:
        self.vacated: list[Name] = []
        self.displaced: list[Gfid] = []
        self.errors: list[RowProblem] = []
        self.places: dict[Gfid, Attachment] = {}
        self.fatal: OSError | None = None

    def each(self, numbers: Iterable[int], change: Callable[[int], None]) -> None:
        """Call `change` with each row's number. What it raises hurts no other row, unless it concerns the whole slave:
        then the rest is left."""
        for i in numbers:
            try:
                change(i)
            except (OSError, ValueError, OverflowError) as exc:
                self.failed(i, exc)
                if self.fatal:
                    return

    def answer(self, answers: list[FillCode], ask: Callable[[int], FillCode | None]) -> list[int]:
        """`each`, for all of the answers: `ask` gives that of a row, or None. The numbers of those without one."""
        left: list[int] = []

        def change(i: int) -> None:
            answer = ask(i)
            if answer is None:
                left.append(i)
            else:
                answers[i] = answer

        self.each(range(len(answers)), change)
        return left

    def failed(self, row: int, exc: OSError | ValueError | OverflowError) -> None:
        """Note what became of one row; an error that concerns the whole slave ends the page."""
        if isinstance(exc, OSError):
            self.errors.append(RowProblem(row, exc.errno or errno.EIO, exc.strerror or str(exc)))
            if exc.errno in SLAVE.full:
                self.fatal = exc
        else:
            self.errors.append(RowProblem(row, errno.EINVAL, str(exc)))

    def raise_fatal(self) -> None:
        if self.fatal:
            raise self.fatal


def answer_of(exc: OSError) -> int:
    """What to answer for one inode; an error that concerns the whole slave is raised."""
    if exc.errno in SLAVE.full:
        raise exc
    return exc.errno or errno.EIO


def succeeds(attempt: Callable[[], object]) -> bool:
    """Whether something can be done there: it neither fails nor says False."""
    try:
        return attempt() is not False
    except OSError:
        return False
