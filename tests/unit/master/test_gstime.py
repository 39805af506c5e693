"""The times of GlusterFS's own geo-replication, on real extended attributes."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from gsync.base.model import NS
from gsync.master.gluster.stime import GsyncdTimes, note, standing

MASTER, SLAVE, OTHER = (f"{n}21a4c6d-c5a5-4c24-991a-19163e218c6a" for n in range(3))

pytestmark = pytest.mark.root


def test_what_gsyncd_has_noted_is_read(tmp_path: Path) -> None:
    os.setxattr(tmp_path, f"trusted.glusterfs.{MASTER}.{SLAVE}.stime", struct.pack(">II", 1_700_000_000, 250_000))
    os.setxattr(tmp_path, f"trusted.glusterfs.{MASTER}.{SLAVE}.entry_stime", struct.pack(">II", 1_700_000_009, 0))
    os.setxattr(tmp_path, f"trusted.glusterfs.{MASTER}.xtime", struct.pack(">II", 1_700_000_100, 0))
    os.setxattr(tmp_path, f"trusted.glusterfs.{OTHER}.{SLAVE}.stime", struct.pack(">II", 1, 0))
    os.setxattr(tmp_path, f"trusted.glusterfs.{MASTER}.{OTHER}.stime", b"short")
    assert standing(str(tmp_path), MASTER, SLAVE) == GsyncdTimes(1_700_000_000 * NS + 250_000_000, 1_700_000_009 * NS)
    assert standing(str(tmp_path), MASTER, OTHER) is None
    os.setxattr(tmp_path, f"trusted.glusterfs.{MASTER}.{SLAVE}.stime", bytes(8))  # it was reset
    assert standing(str(tmp_path), MASTER, SLAVE) is None


def test_what_we_note_is_in_its_form_and_never_too_late(tmp_path: Path) -> None:
    note(str(tmp_path), MASTER, SLAVE, 1_700_000_000 * NS + 999_999_999)
    for kind in ("stime", "entry_stime"):
        value = os.getxattr(tmp_path, f"trusted.glusterfs.{MASTER}.{SLAVE}.{kind}")
        assert value == struct.pack(">II", 1_700_000_000, 999_999)
    found = standing(str(tmp_path), MASTER, SLAVE)
    assert found is not None
    assert found.stime <= 1_700_000_000 * NS + 999_999_999
