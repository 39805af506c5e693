"""The contract of the data engines: every sync-method, to a local slave and over a real ssh."""

from __future__ import annotations

import errno
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gsync.link.link import Link, Slave
from gsync.link.openssh import SshOptions
from gsync.link.ssh import SshLink
from gsync.sync.postbox import FileRequest
from gsync.sync.rsync import RsyncEngine
from gsync.sync.tarssh import StreamEngine
from lab.engines import World, allocated, at, content, local, xattrs
from lab.sshd import HOST, Sshd
from lab.trees import HOSTILE_NAMES, KIB, MIB

METHODS = ["tarssh", "rsync", "auto"]


@pytest.fixture(scope="module")
def ssh_link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Link]:
    with Sshd(tmp_path_factory.mktemp("sshd")) as sshd:
        link = SshLink(Slave(b"/", HOST), SshOptions(str(sshd.client_config)))
        yield link
        link.close()


@pytest.fixture(scope="module", params=[f"{method}-{way}" for method in METHODS for way in ("local", "ssh")])
def standing(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One agent and one engine for all tests of a sync-method and way."""
    method, way = request.param.split("-")
    folder = tmp_path_factory.mktemp(request.param)
    root = folder / "sl ave\n\udcff"
    link = local(root) if way == "local" else at(request.getfixturevalue("ssh_link"), root)
    with World(folder, link, method) as world:
        yield world


@pytest.fixture
def world(standing: World, tmp_path: Path) -> World:
    """With files of the test's own, and nothing in limbo."""
    standing.source.use(tmp_path / "master")
    standing.client.commit(1, 1, standing.epoch, clear=True)
    return standing


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


SIZES = [0, 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, MIB, MIB + 1, 9 * MIB + 17]


def test_new_files_of_every_size_arrive_whole(world: World) -> None:
    names = {b"f%d" % size: world.source.add(b"f%d" % size, noise(size)) for size in SIZES}
    assert world.fill_all(names) == {"new"}
    results = world.new(*names.values())
    assert [(r.errno, r.changed, r.bytes) for r in results] == [(0, False, size) for size in SIZES]
    assert world.fill_all(names) == {"ok"}
    for name in names:
        assert content(world.copy(name)) == content(world.source.path(name))


@pytest.mark.parametrize("size", [4, 9 * MIB])
def test_a_new_file_has_its_attributes_when_it_appears(world: World, size: int) -> None:
    gfid = world.source.add(b"f", noise(size))
    path = world.source.path(b"f")
    os.setxattr(path, b"user.note", b"\0any\xff bytes")
    os.chmod(path, 0o4751)
    os.utime(path, ns=(1_234_567_890_123_456_789, 987_654_321_987_654_321))
    world.place(b"f", gfid)
    there, here = os.stat(world.copy(b"f")), os.stat(path)
    assert (there.st_mode, there.st_mtime_ns, there.st_atime_ns) == (here.st_mode, 987_654_321_987_654_321,
                                                                     1_234_567_890_123_456_789)
    assert xattrs(world.copy(b"f")) == {"user.note": b"\0any\xff bytes"}


@pytest.mark.root
def test_owner_acl_and_privileged_xattrs_of_a_new_file(world: World) -> None:
    gfid = world.source.add(b"f", b"text")
    path = world.source.path(b"f")
    os.chown(path, 12345, 54321)
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", tag, perm, who) for tag, perm, who in [
        (1, 6, 0xFFFFFFFF), (2, 4, 777), (4, 4, 0xFFFFFFFF), (16, 4, 0xFFFFFFFF), (32, 0, 0xFFFFFFFF)])
    os.setxattr(path, b"system.posix_acl_access", acl)
    os.setxattr(path, b"trusted.mine", b"t")
    os.setxattr(path, b"security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    os.chmod(path, 0o6640)
    os.setxattr(path, b"security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    world.place(b"f", gfid)
    there, here = os.stat(world.copy(b"f")), os.stat(path)
    assert (there.st_uid, there.st_gid, there.st_mode) == (12345, 54321, here.st_mode)
    assert xattrs(world.copy(b"f")) == xattrs(path)


def test_times_before_1970_and_after_2262(world: World, tmp_path: Path) -> None:
    gfid = world.source.add(b"f", b"text")
    times = (-5_000_000_001, 10_000_000_000_123_456_789)
    os.utime(world.source.path(b"f"), ns=times)
    world.place(b"f", gfid)
    there = os.stat(world.copy(b"f"))
    assert (there.st_atime_ns, there.st_mtime_ns) == times


def test_direct_items_take_their_hostile_names(world: World) -> None:
    if not world.engine.direct:
        assert isinstance(world.engine, RsyncEngine)
        return
    folder = bytes(range(16))
    assert world.fill(b"dir", folder, mode=0o40755) == "made"
    requests = []
    for i, name in enumerate(HOSTILE_NAMES):
        gfid = world.source.add(name, b"%d" % i)
        assert world.fill(name, gfid, pargfid=folder) == "direct"
        requests.append(FileRequest(gfid, "D", folder, name, 1))
    assert {r.errno for r in world.move(*requests)} == {0}
    assert world.fill(b"dir", folder, mode=0o40755) == "ok"
    assert sorted(os.listdir(world.copy(b"dir"))) == sorted(HOSTILE_NAMES)
    assert [content(world.copy(b"dir/" + name)) for name in HOSTILE_NAMES] == [
        b"%d" % i for i in range(len(HOSTILE_NAMES))]
    assert world.client.known([r.gfid for r in requests]) == [True] * len(requests), "their names are in the index"


HOLES = {
    b"middle": [(0, 5000), (4 * MIB, 5000)],
    b"start": [(6 * MIB, 100)],
    b"end": [(0, 100)],
    b"only": [],
    b"many": [(i * 128 * KIB, 4096) for i in range(64)],
    b"short": [(100 * KIB, 10)],
}


def write_holes(path: bytes, pieces: list[tuple[int, int]], size: int) -> None:
    with open(path, "r+b") as file:
        file.truncate(0)
        file.truncate(size)
        for offset, length in pieces:
            file.seek(offset)
            file.write(noise(length))
        os.fsync(file.fileno())


@pytest.mark.parametrize("form", HOLES, ids=bytes.decode)
def test_holes_stay_holes(world: World, form: bytes) -> None:
    gfid = world.source.add(form)
    path = world.source.path(form)
    size = 128 * KIB if form == b"short" else 9 * MIB + 5
    write_holes(path, HOLES[form], size)
    assert world.place(form, gfid).errno == 0
    assert content(world.copy(form)) == content(path)
    assert allocated(world.copy(form)) <= allocated(path) + 64 * KIB


@pytest.mark.parametrize("form", HOLES, ids=bytes.decode)
def test_in_place_old_bytes_give_way_to_holes(world: World, form: bytes) -> None:
    gfid = world.source.add(form, noise(5 * MIB, 2))
    path = world.source.path(form)
    world.place(form, gfid)
    inode = os.stat(world.copy(form)).st_ino
    size = 128 * KIB if form == b"short" else 9 * MIB + 5
    write_holes(path, HOLES[form], size)
    (result,) = world.in_place(gfid)
    assert result.errno == 0, result.message
    assert content(world.copy(form)) == content(path)
    assert allocated(world.copy(form)) <= allocated(path) + 64 * KIB
    assert os.stat(world.copy(form)).st_ino == inode


@pytest.mark.parametrize(("before", "after"), [(10, 0), (0, 10), (10, 10), (5 * MIB, 100), (100, 5 * MIB),
                                               (5 * MIB, 5 * MIB), (6 * MIB, 5 * MIB + 1), (MIB + 1, MIB)])
def test_in_place_shorter_longer_and_equal(world: World, tmp_path: Path, before: int, after: int) -> None:
    gfid = world.source.add(b"f", noise(before, 3))
    world.place(b"f", gfid)
    os.link(world.copy(b"f"), tmp_path / "foreign link")
    os.chmod(world.copy(b"f"), 0o400)
    world.source.add(b"f", noise(after, 4))
    (result,) = world.in_place(gfid)
    assert (result.errno, result.bytes, result.changed) == (0, after, False)
    assert (tmp_path / "foreign link").read_bytes() == noise(after, 4), "it is the same inode"
    assert os.listdir(world.copy(b".gsync/limbo/link")) == []


def test_in_place_with_a_changed_middle(world: World) -> None:
    data = bytearray(noise(6 * MIB))
    gfid = world.source.add(b"f", bytes(data))
    world.place(b"f", gfid)
    data[3 * MIB:3 * MIB + 1000] = bytes(1000)
    world.source.add(b"f", bytes(data))
    sent = world.flow.bytes
    assert world.in_place(gfid)[0].errno == 0
    assert content(world.copy(b"f")) == data
    is_delta = world.flow.bytes - sent < MIB
    assert is_delta is (world.link.slave.host is not None and not isinstance(world.engine, StreamEngine))


def test_a_source_that_is_gone_or_unreadable_hurts_no_other(world: World) -> None:
    gone, secret, good = (world.source.add(name, name) for name in (b"gone", b"secret", b"good"))
    assert world.fill_all({b"gone": gone, b"secret": secret, b"good": good}) == {"new"}
    os.unlink(world.source.path(b"gone"))
    world.source.errors[secret] = errno.EACCES
    results = world.new(gone, secret, good)
    assert [r.errno for r in results] == [errno.ENOENT, errno.EACCES, 0]
    assert world.limbo() == [good.hex()]


def test_a_file_that_the_slave_does_not_have_fails_alone(world: World) -> None:
    good = world.source.add(b"good", b"old")
    world.place(b"good", good)
    world.source.add(b"good", b"new")
    absent = world.source.add(b"absent", b"x")
    results = world.in_place(absent, good)
    assert [r.errno for r in results] == [errno.ENOENT, 0]
    assert content(world.copy(b"good")) == b"new"


def once(action: str, size: int) -> Callable[[bytes], None]:
    """Something that changes a file, the first time that it is called for it."""
    done: set[bytes] = set()

    def meddle(path: bytes) -> None:
        if path not in done:
            done.add(path)
            if action == "grow":
                with open(path, "ab") as file:
                    file.write(noise(size, 7))
            elif action == "shrink":
                os.truncate(path, size)
            else:
                with open(path, "r+b") as file:
                    file.write(noise(size, 8))
    return meddle


@pytest.mark.parametrize("action", ["grow", "shrink", "rewrite"])
@pytest.mark.parametrize("size", [1000, 3 * MIB])
def test_a_source_that_changes_while_it_is_sent(world: World, action: str, size: int) -> None:
    gfid = world.source.add(b"f", noise(size))
    assert world.fill(b"f", gfid) == "new"
    world.source.meddle = once(action, size // 2)
    (result,) = world.new(gfid)
    assert result.errno == 0, result.message
    world.fill(b"f", gfid)
    whole = content(world.source.path(b"f"))
    if action == "grow" and result.changed:
        assert content(world.copy(b"f")) in (whole, noise(size)), "a state that the file had"
    else:
        assert content(world.copy(b"f")) == whole
    assert result.changed or content(world.copy(b"f")) == whole
    if size < MIB and isinstance(world.engine, StreamEngine):
        assert not result.changed, "a short file is read again"
    assert len(world.limbo()) == 0


def test_one_bad_file_among_a_thousand_good_ones_repeats_none_of_them(world: World) -> None:
    gfids = [world.source.add(b"f%d" % i, b"%1000d" % i) for i in range(1001)]
    assert world.fill_all({b"f%d" % i: gfid for i, gfid in enumerate(gfids)}) == {"new"}
    os.makedirs(world.copy(b".gsync/limbo/new/" + gfids[500].hex().encode() + b"/x"))  # nothing can be put there
    opened = world.source.opened
    results = world.new(*gfids)
    assert [i for i, r in enumerate(results) if r.errno] == [500]
    assert world.source.opened - opened == 1001
    assert len(world.limbo()) == 1001
