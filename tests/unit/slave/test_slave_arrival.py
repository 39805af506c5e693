"""A file counts only if the volume holds what was sent: what is lost on the way is found, whatever was acknowledged.

The volume is one in memory that loses writes. Real ones are tests/gluster's.
"""

from __future__ import annotations

import errno
import io
import os
import random
import tempfile
from collections.abc import Callable, Iterator

import pytest

from gsync.base import rpc
from gsync.base.model import ROOT_GFID, Gfid
from gsync.link import stream
from gsync.slave.gluster.receive import VolumeReceiver
from gsync.slave.gluster.target import make_folders
from gsync.slave.limbo import LIMBO_NEW
from gsync.slave.receiver import Input
from lab.slave_volume import MemoryFile, MemoryVolume

GFID = b"file" * 4


class LosingFile(MemoryFile):
    """A File whose writes `lose` may change."""

    def __init__(self, volume: Losing, gfid: Gfid) -> None:
        super().__init__(volume, gfid)
        self.volume, self.gfid = volume, gfid

    def pwrite(self, data: bytes | memoryview, offset: int) -> None:
        data = self.volume.lose(bytes(data), offset)
        if data:
            super().pwrite(data, offset)

    def sync(self) -> None:
        self.volume.synced.append(self.gfid)


class Losing(MemoryVolume):
    def __init__(self, lose: Callable[[bytes, int], bytes], write_through: bool = False) -> None:
        super().__init__()
        self.lose, self.write_through = lose, write_through
        self.synced: list[Gfid] = []
        make_folders(self)

    def open(self, gfid: Gfid, write: bool = False) -> LosingFile:
        return LosingFile(self, gfid)


class Anyone:
    """A pass."""

    def look(self) -> None:
        pass

    check = look


def received(volume: Losing, content: bytes, *, long: bool) -> list[list[object]]:
    """What a receiver says failed of one new file."""
    head = stream.ItemHeader(stream.FILE, stream.NEW, 0 if long else stream.INLINE, 0, 0, GFID, bytes(16), 0o100644,
                             0, 0, 1, 0, 1, 0, len(content))
    data = stream.HEADER.pack(*head)
    if long:
        half = len(content) // 2
        for start, end in ((0, half), (half, len(content))):
            data += stream.EXTENT.pack(start, end - start) + content[start:end]
        data += stream.EXTENT.pack(0, 0)
    else:
        data += content
    data += bytes([stream.WHOLE]) + stream.encode_end(1)
    out = io.BytesIO()
    with tempfile.TemporaryFile() as source:
        source.write(stream.encode_hello(1, "ab" * 8) + data)
        source.seek(0)
        mask = os.umask(0o022)
        receiver = VolumeReceiver(volume, lambda epoch, ticket: Anyone(), Input(source.fileno()), out, random.Random(1))
        receiver.serve()
        os.umask(mask)
    out.seek(0)
    assert rpc.read_frame(out) == {"ready": stream.PROTOCOL}
    answer = rpc.read_frame(out)
    assert answer is not None
    failed: list[list[object]] = answer["failed"]
    return failed


def nothing_lost(data: bytes, offset: int) -> bytes:
    return data


@pytest.fixture(params=[False, True], ids=["short", "long"])
def content(request: pytest.FixtureRequest) -> Iterator[tuple[bytes, bool]]:
    yield os.urandom(3 << 20 if request.param else 5000), request.param


def test_what_arrived_counts(content: tuple[bytes, bool]) -> None:
    for write_through in (False, True):
        volume = Losing(nothing_lost, write_through)
        assert received(volume, content[0], long=content[1]) == []
        assert volume.inodes[GFID].data == content[0]
        assert volume.synced == [GFID] * write_through


@pytest.mark.parametrize("lose", [
    lambda data, offset: b"",                                     # every write acknowledged, none done
    lambda data, offset: data[:-1],                               # the last byte is missing
    lambda data, offset: data if offset else b"\0" + data[1:],    # other bytes at the beginning
    lambda data, offset: data[:-1] + bytes([data[-1] ^ 1]),       # and at the end
], ids=["empty", "short", "first", "last"])
def test_what_did_not_arrive_is_told_and_leaves_nothing(
        content: tuple[bytes, bool], lose: Callable[[bytes, int], bytes]) -> None:
    volume = Losing(lose)
    failed = received(volume, content[0], long=content[1])
    if lose(b"ab", 0) == b"a" and content[1]:  # the length is set at the end; the hole is found by its bytes
        assert "other bytes" in str(failed)
    assert [row[:2] for row in failed] == [[0, errno.EIO]]
    assert "did not arrive intact" in str(failed[0][2])
    assert GFID not in volume.inodes
    assert list(volume.names(LIMBO_NEW)) == []


def test_a_gfid_that_the_volume_has_by_another_name_is_not_made_again() -> None:
    volume = Losing(nothing_lost)
    volume.make(ROOT_GFID, b"name", GFID, 0o100644)
    failed = received(volume, b"x", long=False)
    assert [row[:2] for row in failed] == [[0, errno.EEXIST]]
    assert volume.inodes[GFID].nlink == 1
    assert volume.inodes[GFID].data == b""
