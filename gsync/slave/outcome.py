"""The agent's findings about a page of names on its way to what the master has, for any kind of slave.

Used by apply (a directory) and gluster/apply (a volume). Standard library only, Python 3.9.
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
READ = 1 << 20     # bytes of a file per read

Step = Callable[[str], None]


class Attachment(Enum):
    """Where a directory is, as far as it matters for filling names in it."""

    IN_TREE = "in the tree"
    UNATTACHED = "unattached"   # new, in limbo/new itself: its content is invisible, unknown before, and not durable
    DETACHED = "detached"       # in limbo/old or below a directory there; for a volume also in the trash
    AWAY = "away"               # nowhere


NOT_TO_FILL = (Attachment.DETACHED, Attachment.AWAY)


class Outcome:
    """The findings and changes of one call of fill or remove."""

    def __init__(self) -> None:
        self.vacated: list[Name] = []
        self.displaced: list[Gfid] = []
        self.errors: list[RowProblem] = []
        self.places: dict[Gfid, Attachment] = {}
        self.fatal: OSError | None = None

    def each(self, numbers: Iterable[int], change: Callable[[int], None]) -> None:
        """Call `change` with each row's number. An exception does not affect other rows, unless it concerns the whole
        slave: then the remaining rows are left."""
        for i in numbers:
            try:
                change(i)
            except (OSError, ValueError, OverflowError) as exc:
                self.failed(i, exc)
                if self.fatal:
                    return

    def answer(self, answers: list[FillCode], ask: Callable[[int], FillCode | None]) -> list[int]:
        """Do `each` for all answers: `ask` returns a row's answer, or None. Return the numbers of rows without one."""
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
        """Note the failure of one row; an error that concerns the whole slave ends the page."""
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
    """The answer for one inode; an error that concerns the whole slave is raised."""
    if exc.errno in SLAVE.full:
        raise exc
    return exc.errno or errno.EIO


def succeeds(attempt: Callable[[], object]) -> bool:
    """Whether an operation works there: it neither raises nor returns False."""
    try:
        return attempt() is not False
    except OSError:
        return False
