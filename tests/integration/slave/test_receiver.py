"""The receiver, spoken to byte by byte: what a wrong or hostile sender can make it do."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gsync.base import rpc
from gsync.base.model import ROOT_GFID
from gsync.link import stream
from gsync.link.client import SlaveClient
from gsync.link.link import Channel
from gsync.link.local import LocalLink
from gsync.link.protocol import FillRow
from lab import REPOSITORY
from lab.engines import local
from lab.trees import MIB

G = bytes(range(100, 116))
DIR = bytes(range(200, 216))
VOLUME = "00000000-0000-0000-0000-00000000c0de"


class Talk:
    """A receiver of a slave tree with an agent at work, and an unattached directory DIR."""

    def __init__(self, root: Path) -> None:
        self.root = root
        link = local(root)
        assert isinstance(link, LocalLink)
        self.client = SlaveClient(link)
        self.client.hello(VOLUME, "v", "s", 3)
        row = FillRow(ROOT_GFID, b"dir", DIR, stat.S_IFDIR | 0o755, 1, 2, os.geteuid(), os.getegid(), 0, 0, 0)
        assert self.client.fill([row]).answers == ["made"]
        self.link = link
        self.channel: Channel = link.agent([b"--receive", os.fsencode(root)])
        self.boxes = 0

    def close(self) -> None:
        self.channel.close()
        self.client.close()

    def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.channel.write(piece)

    def hear(self) -> Any:
        return rpc.read_frame(self.channel.stdout)

    def begin(self) -> None:
        self.say(stream.encode_hello(3, self.client.ticket))
        assert self.hear() == {"ready": stream.PROTOCOL}

    def box(self, *pieces: bytes) -> list[tuple[int, int]]:
        """Send these items as a box; (item, errno) of those that failed."""
        self.boxes += 1
        self.say(*pieces, stream.encode_end(self.boxes))
        answer = self.hear()
        assert answer["box"] == self.boxes, answer
        return [(item, err) for item, err, _ in answer["failed"]]

    def everything(self) -> list[str]:
        """All files outside gsync's own state, and what lies in limbo/new."""
        found = [str(p.relative_to(self.root)) for p in self.root.parent.rglob("*") if not p.is_dir()
                 and p.is_relative_to(self.root)]
        return sorted(p for p in found if not p.startswith(".gsync/") or p.startswith(".gsync/limbo/new/"))


@pytest.fixture
def talk(tmp_path: Path) -> Iterator[Talk]:
    talk = Talk(tmp_path / "slave")
    yield talk
    talk.close()


def item(place: int = stream.NEW, bname: bytes = b"", data: bytes = b"data", trailer: int = stream.WHOLE,
         gfid: bytes = G, dirgfid: bytes = DIR, xattrs: bytes = b"", **fields: Any) -> bytes:
    head = stream.ItemHeader(stream.FILE, place, stream.INLINE, len(bname), len(xattrs), gfid, dirgfid,
                         stat.S_IFREG | 0o644, os.geteuid(), os.getegid(), 5, 6, 7, 8, len(data))._replace(**fields)
    return stream.HEADER.pack(*head) + bname + xattrs + data + bytes([trailer])


def long_item(*extents: tuple[int, bytes], size: int, trailer: int = stream.WHOLE, place: int = stream.NEW,
              gfid: bytes = G, xattrs: bytes = b"") -> bytes:
    body = b"".join(stream.EXTENT.pack(offset, len(data)) + data for offset, data in extents)
    head = item(place, data=b"", gfid=gfid, flags=0, size=size, xattrs=xattrs)[:-1]
    return head + body + stream.EXTENT.pack(0, 0) + bytes([trailer])


@pytest.mark.parametrize("bname", [b"../out", b"a/b", b"..", b".", b"", b"/abs", b"nul\0"])
def test_a_name_that_leads_elsewhere_is_refused(talk: Talk, bname: bytes) -> None:
    talk.begin()
    assert talk.box(item(stream.DIRECT, bname), item(stream.DIRECT, b"good")) == [(0, 22)]
    assert talk.everything() == [f".gsync/limbo/new/{DIR.hex()}/good"]


def test_a_directory_that_is_not_in_limbo_is_refused(talk: Talk, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    os.symlink(tmp_path / "outside", talk.root / ".gsync/limbo/new" / G.hex())
    talk.begin()
    failed = talk.box(item(stream.DIRECT, b"f", dirgfid=ROOT_GFID), item(stream.DIRECT, b"f", dirgfid=G))
    assert [number for number, _ in failed] == [0, 1]
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_symlink_in_the_way_is_not_followed(talk: Talk, tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    os.symlink(tmp_path / "victim", talk.root / ".gsync/limbo/new" / G.hex())
    os.symlink(tmp_path / "victim", talk.root / ".gsync/limbo/new" / DIR.hex() / "f")
    talk.begin()
    assert talk.box(item(), item(stream.DIRECT, b"f", gfid=b"x" * 16)) == []
    assert (tmp_path / "victim").read_text() == "precious"
    assert (talk.root / ".gsync/limbo/new" / G.hex()).read_bytes() == b"data"


@pytest.mark.parametrize("gfid", [ROOT_GFID, b"gsync:limbo/new\0"])
def test_the_gfids_of_gsyncs_own_are_no_files(talk: Talk, gfid: bytes) -> None:
    talk.begin()
    assert talk.box(item(stream.DIRECT, b"f", gfid=gfid)) == [(0, 22)]


def test_an_item_that_is_sent_again_replaces_what_is_there(talk: Talk) -> None:
    talk.begin()
    assert talk.box(item(data=b"first"), item(data=b"again")) == []
    assert talk.box(item(stream.DIRECT, b"f", data=b"first", gfid=b"y" * 16)) == []
    assert talk.box(item(stream.DIRECT, b"f", data=b"again", gfid=b"y" * 16)) == []
    limbo = talk.root / ".gsync/limbo/new"
    assert (limbo / G.hex()).read_bytes() == (limbo / DIR.hex() / "f").read_bytes() == b"again"


@pytest.mark.parametrize("whole", [False, True])
def test_torn_data_does_not_count(talk: Talk, whole: bool) -> None:
    talk.begin()
    trailer = stream.WHOLE if whole else stream.TORN
    failed = talk.box(item(trailer=trailer, gfid=b"a" * 16),
                      long_item((0, b"x" * 100), size=100, trailer=trailer, gfid=b"b" * 16))
    assert len(failed) == (0 if whole else 2)
    assert len(talk.everything()) == (2 if whole else 0)


def test_torn_data_in_place_leaves_the_rest_of_the_old_file(talk: Talk) -> None:
    talk.begin()
    assert talk.box(item(data=b"o" * 1000)) == []
    row = FillRow(ROOT_GFID, b"f", G, stat.S_IFREG | 0o644, 1, 1, os.geteuid(), os.getegid(), 0, 0, 0)
    assert talk.client.fill([row]).answers == ["ok"]
    assert len(talk.box(long_item((0, b"n" * 10), size=10, trailer=stream.TORN, place=stream.IN_PLACE))) == 1
    assert (talk.root / "f").read_bytes() == b"n" * 10 + b"o" * 990
    assert len(talk.box(item(stream.IN_PLACE, data=b"n", trailer=stream.TORN))) == 1
    assert (talk.root / "f").read_bytes() == b"n" * 10 + b"o" * 990
    assert talk.box(long_item((0, b"n" * 10), size=10, place=stream.IN_PLACE)) == []
    assert (talk.root / "f").read_bytes() == b"n" * 10


def test_xattrs_of_a_long_file_outlast_the_buffer(talk: Talk) -> None:
    talk.begin()
    extents = [(i * 4096, b"%4096d" % i) for i in range(3000)]
    assert talk.box(long_item(*extents, size=3000 * 4096, xattrs=stream.encode_xattrs([(b"user.note", b"kept")]))) == []
    path = talk.root / ".gsync/limbo/new" / G.hex()
    assert os.getxattr(path, "user.note") == b"kept"
    assert path.read_bytes() == b"".join(data for _, data in extents)


@pytest.mark.root
def test_long_extents_of_every_alignment_arrive(talk: Talk) -> None:
    whole, odd_end, odd_start = os.urandom(8 * MIB), os.urandom(5 * MIB + 123), os.urandom(6 * MIB + 1)
    second = len(whole) + 3 * 4096
    third = second + len(odd_end) + 77
    size = third + len(odd_start) + 9
    talk.begin()
    assert talk.box(long_item((0, whole), (second, odd_end), (third, odd_start), size=size)) == []
    arrived = (talk.root / ".gsync/limbo/new" / G.hex()).read_bytes()
    assert arrived == whole + bytes(3 * 4096) + odd_end + bytes(77) + odd_start + bytes(9)


def test_bytes_of_an_item_that_fails_are_drained(talk: Talk) -> None:
    (talk.root / ".gsync/limbo/new" / G.hex() / "x").mkdir(parents=True)
    talk.begin()
    failed = talk.box(long_item((0, b"x" * MIB), (2 * MIB, b"y" * 3 * MIB), size=6 * MIB), item(gfid=b"z" * 16))
    assert [number for number, _ in failed] == [0]
    assert (talk.root / ".gsync/limbo/new" / (b"z" * 16).hex()).read_bytes() == b"data"


@pytest.mark.parametrize("nonsense", [
    b"\x07" + bytes(stream.HEADER.size - 1),
    item(bname_size=60_000),
    item(xattrs_size=stream.XATTRS_MAX + 1),
    item(size=stream.INLINE_MAX + 1),
    item(flags=0, size=1 << 63),
    long_item((10, b"x" * 10), (5, b"y"), size=100),
    long_item((0, b"x" * 10), size=9),
    long_item((1 << 64 - 1, b"x"), size=100),
    item(xattrs=b"\x05"),
    item(xattrs=b"\xff" * 6),
], ids=range(10))
def test_nonsense_ends_the_receiver_with_a_word(talk: Talk, nonsense: bytes) -> None:
    talk.begin()
    talk.say(nonsense)
    assert talk.hear()["error"]["type"] == "transient"
    assert talk.hear() is None
    assert talk.everything() == []


@pytest.mark.parametrize("xattrs", [stream.encode_xattrs([(name, b"")]) for name in (b"", b"a\0b", b"bad")])
def test_wrong_xattrs_do_no_harm(talk: Talk, xattrs: bytes) -> None:
    talk.begin()
    failed = talk.box(item(xattrs=xattrs), item(gfid=b"z" * 16))
    assert [number for number, _ in failed] in ([], [0])
    assert (talk.root / ".gsync/limbo/new" / (b"z" * 16).hex()).read_bytes() == b"data"


def test_a_stream_that_ends_inside_an_item_leaves_nothing_of_it(talk: Talk) -> None:
    talk.begin()
    whole = long_item((0, b"x" * MIB), size=MIB)
    talk.say(whole[:-MIB // 2])
    talk.channel.end_input()
    assert "ended inside" in talk.hear()["error"]["message"]
    assert talk.everything() == []


@pytest.mark.parametrize("hello", [b"GET / HTTP/1.1\r\n", b"x" * 2000, b'{"gsync-stream": 99, "epoch": 3}\n'])
def test_another_language_is_refused(talk: Talk, hello: bytes) -> None:
    talk.say(hello)
    assert talk.hear()["error"]["type"] == "transient"


def test_an_older_epoch_is_fenced(talk: Talk) -> None:
    talk.say(stream.encode_hello(2, talk.client.ticket))
    assert talk.hear()["error"]["type"] == "fenced"


def test_a_receiver_ends_when_its_agent_has_gone(talk: Talk) -> None:
    code = ("import os, sys; from gsync.slave import receive, receiver; "
            "receive.main(os.fsencode(sys.argv[1]), lambda locks: receiver.Watch(locks, every=0.01))")
    python = [sys.executable.encode(), b"-c", code.encode(), os.fsencode(talk.root)]
    talk.channel.close()
    talk.channel = Channel(python, {**os.environ, "PYTHONPATH": str(REPOSITORY)})
    talk.begin()
    assert talk.box(item()) == [], "while the agent lives"
    talk.client.close()
    assert talk.hear()["error"]["message"] == "the agent has ended"
    assert talk.hear() is None


def test_what_creation_inherits_is_taken_away_again(talk: Talk) -> None:
    """A setgid bit or default ACL of the directory does not change what a file in it is to be."""
    folder = talk.root / ".gsync/limbo/new" / DIR.hex()
    acl = (b"\x02\x00\x00\x00" b"\x01\x00\x07\x00\xff\xff\xff\xff" b"\x02\x00\x07\x00\x01\x00\x00\x00"
           b"\x04\x00\x05\x00\xff\xff\xff\xff" b"\x10\x00\x07\x00\xff\xff\xff\xff" b"\x20\x00\x05\x00\xff\xff\xff\xff")
    os.setxattr(folder, "system.posix_acl_default", acl)
    talk.begin()
    assert talk.box(item(stream.DIRECT, b"f", mode=stat.S_IFREG | 0o604)) == []
    assert stat.S_IMODE((folder / "f").stat().st_mode) == 0o604
    assert os.listxattr(folder / "f") == []


@pytest.mark.root
def test_a_setgid_directory_does_not_give_its_group(talk: Talk) -> None:
    folder = talk.root / ".gsync/limbo/new" / DIR.hex()
    os.chown(folder, 0, 4321)
    os.chmod(folder, 0o2755)
    talk.begin()
    assert talk.box(item(stream.DIRECT, b"f"), item(stream.DIRECT, b"g", gid=4321, gfid=b"z" * 16)) == []
    assert ((folder / "f").stat().st_gid, (folder / "g").stat().st_gid) == (os.getegid(), 4321)
