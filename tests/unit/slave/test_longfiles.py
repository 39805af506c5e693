"""Long files on their way into a slave directory: past the page cache or not, and where the stream is afterwards."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from gsync.link import stream
from gsync.slave.directory.longfiles import LongFiles
from gsync.slave.receiver import Input


def item(*extents: tuple[int, bytes]) -> bytes:
    """The data of a long item, with its trailer."""
    return b"".join(stream.EXTENT.pack(offset, len(data)) + data for offset, data in extents) + stream.EXTENT.pack(
        0, 0) + bytes([stream.WHOLE])


def source(data: bytes) -> Input:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        return Input(os.dup(file.fileno()))


def test_what_the_disk_does_not_take_past_the_page_cache_goes_through_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    except OSError:
        pytest.skip("this file system writes through the page cache only")
    LongFiles(source(b"")).write_past_cache(fd, memoryview(b"x" * 1001), 7)  # EINVAL from a file system on a disk
    assert path.read_bytes() == bytes(7) + b"x" * 1001
    os.close(fd)


def test_what_lies_between_extents_becomes_a_hole(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"o" * 50_000)
    fd = os.open(tmp_path / "file", os.O_RDWR)
    assert LongFiles(source(item((0, b"a" * 10), (20_000, b"b")))).write(fd, 30_000, punch=True) == stream.WHOLE
    assert (tmp_path / "file").read_bytes() == b"a" * 10 + bytes(19_990) + b"b" + bytes(9_999)
    os.close(fd)


@pytest.mark.parametrize(("data", "unread"), [(item((0, b"x")), True), (item(), False)], ids=["in it", "at its end"])
def test_after_a_failure_it_is_known_whether_the_item_is_used_up(tmp_path: Path, data: bytes, unread: bool) -> None:
    """What follows in the stream would be dropped, or taken for data."""
    (tmp_path / "file").touch()
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    long = LongFiles(source(data + b"what follows"))
    with pytest.raises(OSError, match=r"Bad file descriptor|Invalid argument"):
        long.write(fd, 5, punch=False)
    assert long.unread is unread
    os.close(fd)
