"""How long a worker rests before it connects again."""

from __future__ import annotations

from pathlib import Path

import pytest

from gsync.base.errors import Stopped, Transient
from gsync.engine.ledger import Ledger
from gsync.engine.worker import Worker
from gsync.engine.worklist import ChangelogDB


class Lease:
    def take(self) -> int:
        return 1

    def held(self) -> bool:
        return True

    def release(self) -> None:
        pass


def test_pauses_grow_until_a_batch_gets_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that breaks now and then is not taken for one that is dead."""
    db, ledger = ChangelogDB(str(tmp_path / "changelog.db")), Ledger(str(tmp_path / "ledger.db"))
    worker = Worker(connect=None, open_tree=None, history=None, recorder=None, waiter=None,  # type: ignore[arg-type]
                    db=db, ledger=ledger, lease=Lease())  # type: ignore[arg-type]
    worker._was_active = True
    sessions = iter(["broken", "broken", "broken", "a batch, then broken", "broken", "stopped"])
    rests: list[float] = []

    def session(epoch: int) -> None:
        what = next(sessions)
        if what == "stopped":
            raise Stopped
        if "batch" in what:
            worker._settle()
        raise Transient("the line is cut")

    monkeypatch.setattr(worker, "_session", session)
    monkeypatch.setattr(worker, "_rest", rests.append)
    assert worker.run() == 0
    assert rests == [0, 1, 2, 4, 1, 2]
    db.close()
    ledger.close()
