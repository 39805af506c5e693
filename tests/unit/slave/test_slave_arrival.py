"""A file counts only if the volume holds what was sent: what is lost on the way is found, whatever was acknowledged.

The volume here is a wrapper of logic alone: dictionaries that lose writes. Real ones are tests/gluster's.
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
from gsync.link import stream
from gsync.slave.gluster.receive import VolumeReceiver
from gsync.slave.gluster.volume import Node
from gsync.slave.limbo import LIMBO_NEW, name_in_limbo
from gsync.slave.receiver import Input

GFID = b"file" * 4


class Held:
    """A File whose writes `lose` may change."""

    def __init__(self, volume: Losing, gfid: bytes) -> None:
        self.volume, self.gfid = volume, gfid

    def pwrite(self, data: bytes | memoryview, offset: int) -> None:
        data = self.volume.lose(bytes(data), offset)
        held = self.volume.files[self.gfid]
        held.extend(bytes(max(0, offset + len(data) - len(held))) if data else b"")
        held[offset:offset + len(data)] = data

    def pread(self, size: int, offset: int) -> bytes:
        return bytes(self.volume.files[self.gfid][offset:offset + size])

    def truncate(self, size: int) -> None:
        held = self.volume.files[self.gfid]
        del held[size:]
        held.extend(bytes(size - len(held)))

    def sync(self) -> None:
        self.volume.synced.append(self.gfid)

    def close(self) -> None:
        pass


class Losing:
    """As much of a Volume as a receiver uses."""

    refuses_twins = False

    def __init__(self, lose: Callable[[bytes, int], bytes], write_through: bool = False) -> None:
        self.lose, self.write_through = lose, write_through
        self.files: dict[bytes, bytearray] = {}
        self.places: dict[tuple[bytes, bytes], bytes] = {}
        self.synced: list[bytes] = []

    def node(self, gfid: bytes) -> Node | None:
        held = self.files.get(gfid)
        return None if held is None else Node(gfid, 0o100644, 0, 0, len(held), 1, 0, 0, 0)

    def at(self, pargfid: bytes, bname: bytes) -> Node | None:
        gfid = self.places.get((pargfid, bname))
        return None if gfid is None else self.node(gfid)

    def make(self, pargfid: bytes, bname: bytes, gfid: bytes, *_more: object) -> None:
        self.files[gfid] = bytearray()
        self.places[pargfid, bname] = gfid

    def unlink(self, pargfid: bytes, bname: bytes) -> None:
        del self.files[self.places.pop((pargfid, bname))]

    def open(self, gfid: bytes, write: bool = False) -> Held:
        return Held(self, gfid)

    open_short = open

    def set_attrs(self, *_what: object) -> None:
        pass


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
        assert volume.files[GFID] == content[0]
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
    assert "did not arrive whole" in str(failed[0][2])
    assert volume.files == {}
    assert (LIMBO_NEW, name_in_limbo(GFID)) not in volume.places


def test_a_gfid_that_the_volume_has_by_another_name_is_not_made_again() -> None:
    volume = Losing(nothing_lost)
    volume.make(b"other" * 3 + b"!", b"name", GFID)
    failed = received(volume, b"x", long=False)
    assert [row[:2] for row in failed] == [[0, errno.EEXIST]]
    assert list(volume.files) == [GFID]
