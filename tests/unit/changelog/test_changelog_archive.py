"""The archive: tar files that tar reads, whatever a crash did to their ends, within the bound."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from gsync.changelog.archive import ChangelogArchive
from gsync.changelog.layout import Changelog
from lab.changelogs import SAMPLE, changelog

NOVEMBER, DECEMBER = 1_700_000_000, 1_702_000_000
BIG = 1 << 30


@pytest.fixture
def folder(tmp_path: Path) -> bytes:
    return os.fsencode(tmp_path / "archive")


def make(tmp_path: Path, ts: int, size: int | None = None) -> Changelog:
    path = tmp_path / f"CHANGELOG.{ts}"
    path.write_bytes(changelog(SAMPLE) if size is None else bytes(size))
    return Changelog(ts, os.fsencode(path))


def members(folder: bytes, name: str) -> list[str]:
    """What the tar program finds, so that the file is one for others too."""
    tar = ["tar", "-tf", os.path.join(os.fsdecode(folder), name)]
    return subprocess.run(tar, check=True, capture_output=True, text=True).stdout.split()


def test_members_are_the_changelogs_month_by_month(tmp_path: Path, folder: bytes) -> None:
    some = [make(tmp_path, ts) for ts in (NOVEMBER, NOVEMBER + 1, DECEMBER)]
    ChangelogArchive(folder, BIG).add(some[:2])
    ChangelogArchive(folder, BIG).add(some[2:])
    assert sorted(os.listdir(folder)) == [b"archive_202311.tar", b"archive_202312.tar"]
    assert members(folder, "archive_202311.tar") == [f"CHANGELOG.{NOVEMBER}", f"CHANGELOG.{NOVEMBER + 1}"]
    with tarfile.open(Path(os.fsdecode(folder), "archive_202312.tar")) as tar:
        (member,) = tar.getmembers()
        file = tar.extractfile(member)
        assert file is not None and file.read() == changelog(SAMPLE)
        assert (member.mtime, member.mode) == (DECEMBER, 0o600)
    assert os.stat(os.path.join(folder, b"archive_202312.tar")).st_mode & 0o777 == 0o600


def test_the_same_archive_takes_more(tmp_path: Path, folder: bytes) -> None:
    archive = ChangelogArchive(folder, BIG)
    for i in range(5):
        archive.add([make(tmp_path, NOVEMBER + i)])
    assert members(folder, "archive_202311.tar") == [f"CHANGELOG.{NOVEMBER + i}" for i in range(5)]


@pytest.mark.parametrize("same", [True, False], ids=["same process", "after a restart"])
def test_a_torn_end_is_cut_off_before_the_next_append(tmp_path: Path, folder: bytes, same: bool) -> None:
    path = os.path.join(folder, b"archive_202311.tar")
    archive = ChangelogArchive(folder, BIG)
    archive.add([make(tmp_path, NOVEMBER)])
    one = os.stat(path).st_size - 1024
    archive.add([make(tmp_path, NOVEMBER + 1)])
    whole = Path(os.fsdecode(path)).read_bytes()
    for cut in [0, 1, 511, 512, one - 1, one, one + 1, one + 512, one + 513, len(whole) - 1025, len(whole) - 1024,
                len(whole) - 512, len(whole)]:  # fmt: skip
        Path(os.fsdecode(path)).write_bytes(whole[:cut])
        (archive if same else ChangelogArchive(folder, BIG)).add([make(tmp_path, NOVEMBER + 2)])
        kept = [f"CHANGELOG.{NOVEMBER + i}" for i in range(2) if cut >= one * (i + 1)]
        assert members(folder, "archive_202311.tar") == [*kept, f"CHANGELOG.{NOVEMBER + 2}"], cut
        assert os.stat(path).st_size == one * (len(kept) + 1) + 1024, cut


def test_rubbish_after_the_last_member_does_not_stay(tmp_path: Path, folder: bytes) -> None:
    path = Path(os.fsdecode(folder), "archive_202311.tar")
    ChangelogArchive(folder, BIG).add([make(tmp_path, NOVEMBER)])
    one = path.stat().st_size - 1024
    path.write_bytes(path.read_bytes()[:one] + b"\xff" * 10_000)
    ChangelogArchive(folder, BIG).add([make(tmp_path, NOVEMBER + 1)])
    assert members(folder, path.name) == [f"CHANGELOG.{NOVEMBER}", f"CHANGELOG.{NOVEMBER + 1}"]
    assert path.stat().st_size == 2 * one + 1024


def test_a_tar_file_that_was_taken_away_is_begun_again(tmp_path: Path, folder: bytes) -> None:
    archive = ChangelogArchive(folder, BIG)
    archive.add([make(tmp_path, NOVEMBER)])
    os.unlink(os.path.join(folder, b"archive_202311.tar"))
    archive.add([make(tmp_path, NOVEMBER + 1)])
    assert members(folder, "archive_202311.tar") == [f"CHANGELOG.{NOVEMBER + 1}"]


def test_the_oldest_go_when_all_are_over_the_bound(tmp_path: Path, folder: bytes) -> None:
    archive = ChangelogArchive(folder, 40_000)
    archive.add([make(tmp_path, NOVEMBER, 4000)])
    for i in range(40):
        archive.add([make(tmp_path, DECEMBER + i, 4000)])
        assert sum(entry.stat().st_size for entry in os.scandir(folder)) <= 40_000
    names = sorted(map(os.fsdecode, os.listdir(folder)), key=lambda name: (name.count(".") == 1, name))
    assert names == ["archive_202312.12.tar", "archive_202312.13.tar", "archive_202312.tar"]
    kept = [member for name in names for member in members(folder, name)]
    assert len(kept) >= 5  # no more than needed went
    assert kept == [f"CHANGELOG.{DECEMBER + i}" for i in range(40 - len(kept), 40)]


def test_what_is_gone_or_too_large_is_left_out(tmp_path: Path, folder: bytes) -> None:
    some = [make(tmp_path, NOVEMBER, 10_001), make(tmp_path, NOVEMBER + 1), make(tmp_path, NOVEMBER + 2)]
    os.unlink(some[1].path)
    ChangelogArchive(folder, 40_000).add(some)
    assert members(folder, "archive_202311.tar") == [f"CHANGELOG.{NOVEMBER + 2}"]


def test_a_bound_of_nothing_keeps_nothing(tmp_path: Path, folder: bytes) -> None:
    ChangelogArchive(folder, 0).add([make(tmp_path, NOVEMBER)])
    assert not os.path.exists(folder)
