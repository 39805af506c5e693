"""Power cuts at the master: what the worker must remember of a commit is on its disk before the slave commits.

The state lies on an ext4 file system in an image file. A copy of the image holds what ext4 had written by then and
nothing else, as after a power cut.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from gsync.base.model import ROOT_GFID
from gsync.engine.doubt import Doubt
from gsync.engine.worklist import ChangelogDB, NameState
from lab.images import FsImage, mounted_copy

pytestmark = pytest.mark.root


@pytest.mark.parametrize("batches", [1, 3])
def test_44_doubt_survives_a_power_cut_from_when_it_is_kept(tmp_path: Path, batches: int) -> None:
    with FsImage(tmp_path / "disk", 24 << 20, options="commit=300") as disk:
        db = ChangelogDB(str(disk.path / "changelog.db"))
        doubt = Doubt(db)
        for n in range(batches):
            db.add_names([(ROOT_GFID, b"%d" % n)])
            db.set_names([(NameState.DONE, row.rowid) for row in db.names(NameState.DIRTY, 10)])
            doubt.keep(1000 + n, 5, renewed=False)
        with mounted_copy(disk.dir / "image", tmp_path) as after:
            found = ChangelogDB(str(after / "changelog.db"))
            try:
                again = Doubt(found)
                assert again.any and again.owner == doubt.owner
                assert not again.settled(gaps=6, complete_up_to=2000)
                found.reset()
                found.add_doubt()
                names = [row.name[1] for row in found.names(NameState.DIRTY, 10)]
            finally:
                found.abandon()
        db.abandon()
    assert set(names) >= {b"%d" % n for n in range(batches)}
