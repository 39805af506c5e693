"""Doubt: state that batches read from the master before the recorder did, and that may never be recorded (rule 20).

Promise: doubt is durable before the commit of its batch, across a power cut too (rule 44). It is kept until the
recorder has overtaken it without a gap. Not here: the names in doubt, which are tables of the ChangelogDB.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from gsync.engine.worklist import ChangelogDB

_KEYS = ("doubt_time", "doubt_gaps", "doubt_whole")


class Doubt:
    """The doubt of one brick's worker, in its ChangelogDB. `owner` identifies it: the slave remembers that with the
    stime, to tell whose doubt belongs to it. `token` makes the identifier of new doubt."""

    def __init__(self, db: ChangelogDB, token: Callable[[], str] = lambda: secrets.token_hex(8)) -> None:
        self._db = db
        owner = db.fact("name")
        if owner is None:
            owner = token()
            db.set_fact("name", owner)
        self.owner = str(owner)

    @property
    def any(self) -> bool:
        return self._db.fact("doubt_time") is not None

    @property
    def whole(self) -> bool:
        """Whether the whole tree is in doubt, not only some names."""
        return self._db.fact("doubt_whole") is not None

    def keep(self, resolved: int, gaps: int, *, renewed: bool, whole: bool = False) -> None:
        """Keep the names of this batch, last resolved at `resolved` (ns), or the whole tree. renewed: the batch has
        looked again at all earlier doubt."""
        earlier = None if renewed else self._db.fact("doubt_gaps")
        if whole:
            self._db.set_fact("doubt_whole", 1)
        else:
            self._db.keep_doubt()
        # A batch that resolved nothing must not make older doubt look settled.
        self._db.set_fact("doubt_time", max(resolved, int(self._db.fact("doubt_time") or 0)))
        self._db.set_fact("doubt_gaps", gaps if earlier is None else min(int(earlier), gaps))
        self._db.flush(durable=True)  # rule 44

    def settled(self, gaps: int, complete_up_to: int) -> bool:
        """Whether nothing has to be looked at again. Drops the doubt that the recorder has overtaken without a gap."""
        since, then = self._db.fact("doubt_time"), self._db.fact("doubt_gaps")
        if since is None:
            return True
        if then != gaps:
            return False
        if complete_up_to >= int(since):
            self._db.drop_doubt()
            for key in _KEYS:
                self._db.set_fact(key, None)
            self._db.flush()
        return True
