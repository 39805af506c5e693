"""What the agent does in a GlusterFS volume, by both of its ways to it: one contract."""

from __future__ import annotations

import errno
import itertools
import os
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from gsync.base.errors import Faulty, GsyncError, Transient
from gsync.base.model import ROOT_GFID, Gfid
from gsync.link.client import SlaveClient
from gsync.link.protocol import FillRow, MetaRow
from gsync.sync.postbox import FileRequest
from lab.engines import Files
from lab.gluster.cluster import SHAPES, Node, cluster
from lab.gluster.slavehost import VOLUME_ID, HostLink, Side, SlaveHost, slave_host
from lab.hosts import wait_until
from lab.trees import acl
from tests.slave_contract import NamesContract

pytestmark = [pytest.mark.gluster, pytest.mark.root]

WAYS = [("one", "gfapi"), ("dist", "gfapi"), ("rep", "gfapi"), ("disp", "gfapi"), ("shard", "gfapi"), ("dist", "mount")]
NAMES = ["plain", "ümläut", "new\nline", "cr\r", "-dash", "per%20cent", "x" * 255, os.fsdecode(b"\xff\xfe"), " space "]


def holds(path: Path, data: bytes) -> bool:
    return path.read_bytes() == data


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlaveHost]:
    with slave_host(tmp_path_factory.mktemp("slave")) as made:
        yield made


@pytest.fixture(scope="module", params=WAYS, ids=["-".join(way) for way in WAYS])
def shared(request: pytest.FixtureRequest, host: SlaveHost) -> Iterator[Side]:
    shape, way = request.param
    name = f"{shape}-{way}"
    host.volume(name, shape)
    side = Side(host, name, way, Files(host.folder / f"master-{name}"))
    yield side
    side.close()
    side.source.close()


_numbers = itertools.count()


@pytest.fixture
def side(shared: Side) -> Side:
    """The volume, connected; whatever a test left in doubt is committed."""
    shared.commit()
    return shared


@pytest.fixture
def top(side: Side) -> tuple[bytes, bytes]:
    """A directory of this test: its name and gfid."""
    name = b"t%d" % next(_numbers)
    return name, side.folder(name)


class TestNames(NamesContract):
    @pytest.fixture
    def top(self, top: tuple[bytes, bytes]) -> Gfid:
        return top[1]


def test_a_new_file_has_the_masters_gfid_and_content(side: Side, top: tuple[bytes, bytes]) -> None:
    gfid = side.file(b"a", b"content", top[1])
    assert side.path(top[0], b"a").read_bytes() == b"content"
    assert side.listed(top[1]) == {b"a": gfid}
    assert side.client.known([gfid, bytes(15) + b"\x77"]) == [True, False]
    assert os.getxattr(side.path(top[0], b"a"), "glusterfs.gfid.string").decode().replace("-", "") == gfid.hex()


def test_a_new_directory_is_seen_with_all_that_is_in_it(side: Side, top: tuple[bytes, bytes]) -> None:
    folder = side.new_gfid()
    row = side.row(b"d", folder, top[1], stat.S_IFDIR | 0o750, uid=7, gid=8, xattrs=[(b"user.x", b"1")])
    assert side.fill(row) == ["made"]
    gfid = side.source.add(b"in-%d" % next(_numbers), b"inside")
    assert side.fill(side.row(b"f", gfid, folder)) == ["direct"]
    assert [r.errno for r in side.move(FileRequest(gfid, "D", folder, b"f", 6))] == [0]
    assert not side.path(top[0], b"d").exists()
    assert side.fill(row) == ["ok"]
    assert side.path(top[0], b"d", b"f").read_bytes() == b"inside"
    st = side.path(top[0], b"d").stat()
    assert (st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns) == (stat.S_IFDIR | 0o750, 7, 8, 10**18)
    assert os.getxattr(side.path(top[0], b"d"), "user.x") == b"1"


def test_a_name_in_a_new_directory_that_another_file_has_come_to(side: Side, top: tuple[bytes, bytes]) -> None:
    """The agent does not look who is at the names of a directory that it has just made."""
    folder = side.new_gfid()
    row = side.row(b"d", folder, top[1], stat.S_IFDIR | 0o755)
    assert side.fill(row) == ["made"]
    gfids = [side.source.add(b"other-%d" % next(_numbers), data) for data in (b"one", b"two")]
    for gfid in gfids:
        assert side.fill(side.row(b"f", gfid, folder)) == ["direct"]
        assert [r.errno for r in side.move(FileRequest(gfid, "D", folder, b"f", 3))] == [0]
    assert side.client.known(gfids) == [False, True]
    assert side.fill(side.row(b"f", gfids[1], folder)) == ["ok"]
    fifo = side.new_gfid()
    assert side.fill(side.row(b"f", fifo, folder, stat.S_IFIFO | 0o600)) == ["ok"]
    assert side.fill(row) == ["ok"]
    assert side.listed(folder) == {b"f": fifo}


def test_attributes_times_xattrs_and_acls(side: Side, top: tuple[bytes, bytes]) -> None:
    gfid = side.file(b"a", b"x", top[1])
    path = side.path(top[0], b"a")
    trusted = [(b"trusted.mine", b"\0\xff")]
    assert side.hello.caps.trusted
    wanted = [(b"user.one", b"1"), (b"user.empty", b""), *trusted,
              (b"system.posix_acl_access", acl({1234: 6}, owner=7, other=5))]
    row = MetaRow(gfid, stat.S_IFREG | 0o6775, 1234, 4321, 10**18 + 123456789, 10**18 + 987654321, wanted)
    assert side.client.meta([row]) == [0]
    st = path.stat()
    assert (stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid) == (0o6775, 1234, 4321)
    assert (st.st_mtime_ns, st.st_atime_ns) == (10**18 + 123456789, 10**18 + 987654321)
    assert [(name, os.getxattr(path, name)) for name, _ in wanted] == wanted
    assert side.client.meta([row._replace(xattrs=[], mode=stat.S_IFREG | 0o600)]) == [0]
    assert not [n for n in os.listxattr(path) if n.startswith(("user.", "trusted.mine", "system."))]
    assert side.client.meta([row._replace(xattrs=None, mtime=10**18)]) == [0]
    side.shows(lambda: path.stat().st_mtime_ns == 10**18)
    assert side.client.meta([row._replace(gfid=side.new_gfid())]) == [-1]
    folder = side.folder(b"d", top[1])
    assert side.client.meta([row._replace(gfid=folder, mode=stat.S_IFDIR | 0o3771, xattrs=[
        (b"system.posix_acl_default", acl({4321: 5}))])]) == [0]
    assert os.getxattr(side.path(top[0], b"d"), "system.posix_acl_default") == acl({4321: 5})
    assert stat.S_IMODE(side.path(top[0], b"d").stat().st_mode) == 0o3771


def test_an_xattr_that_the_bricks_cannot_hold_fails_alone(side: Side, top: tuple[bytes, bytes]) -> None:
    gfid = side.file(b"a", b"x", top[1])
    other = side.file(b"b", b"x", top[1])
    rows = [MetaRow(g, stat.S_IFREG | 0o600, 0, 0, 5, 5, x) for g, x in (
        (gfid, [(b"user.big", b"x" * 60000)]), (other, [(b"user.ok", b"1")]))]
    assert side.client.meta(rows) == [errno.E2BIG, 0]


def test_symlinks_fifos_sockets_and_devices(side: Side, top: tuple[bytes, bytes]) -> None:
    kinds = {b"symlink": (stat.S_IFLNK | 0o777, 0, b"t/" * 1000), b"fifo": (stat.S_IFIFO | 0o640, 0, None),
             b"socket": (stat.S_IFSOCK | 0o600, 0, None), b"device": (stat.S_IFCHR | 0o666, os.makedev(1, 3), None)}
    assert side.fill(*[side.row(name, side.new_gfid(), top[1], mode, uid=5, gid=6, rdev=rdev, target=target)
                       for name, (mode, rdev, target) in kinds.items()]) == ["ok"] * 4
    for name, (mode, rdev, target) in kinds.items():
        st = side.path(top[0], name).lstat()
        assert (st.st_mode, st.st_rdev, st.st_uid, st.st_gid, st.st_mtime_ns) == (mode, rdev, 5, 6, 10**18)
        if target:
            assert os.fsencode(os.readlink(side.path(top[0], name))) == target


def test_names_of_every_kind(side: Side, top: tuple[bytes, bytes]) -> None:
    gfids = {os.fsencode(name): side.file(os.fsencode(name), name.encode("utf-8", "replace"), top[1]) for name in NAMES}
    assert side.listed(top[1]) == gfids
    assert sorted(os.listdir(side.path(top[0]))) == sorted(NAMES)


def test_one_gfid_never_becomes_two_inodes(side: Side, top: tuple[bytes, bytes]) -> None:
    """GlusterFS itself makes a second one where the name belongs on another brick."""
    gfid = side.file(b"a", b"x", top[1])
    folder = side.new_gfid()
    assert side.fill(side.row(b"d", folder, top[1], stat.S_IFDIR | 0o755)) == ["made"]
    for n in range(8):
        result, = side.move(FileRequest(gfid, "D", folder, b"n%d" % n, 1))
        assert result.errno == errno.EEXIST
    assert side.fill(side.row(b"d", folder, top[1], stat.S_IFDIR | 0o755)) == ["ok"]
    assert side.listed(folder) == {}
    assert side.path(top[0], b"a").stat().st_nlink == 1


def test_long_files_with_holes_arrive_and_change_in_place(side: Side, top: tuple[bytes, bytes]) -> None:
    data = bytearray(os.urandom(1 << 20) + bytes(9 << 20) + os.urandom(3 << 20))
    gfid = side.file(b"long", bytes(data), top[1])
    path = side.path(top[0], b"long")
    assert path.read_bytes() == data
    for changed in (bytes(data[:5 << 20]) + os.urandom(1 << 20), b"short", b"", os.urandom(6 << 20)):
        source = Path(os.fsdecode(side.source.paths[gfid]))
        with source.open("r+b") as file:
            file.write(changed)
            file.truncate(len(changed))
        assert [r.errno for r in side.move(FileRequest(gfid, "P", b"", b"", len(changed)))] == [0]
        side.shows(partial(holds, path, changed))
        assert side.client.digest([gfid])[0] is not None
        assert side.client.digest([gfid])[0][0] == len(changed)  # type: ignore[index]


def test_state_of_gsync_is_hidden_from_the_mirror(side: Side, top: tuple[bytes, bytes]) -> None:
    assert b".gsync" not in side.listed(ROOT_GFID)
    assert stat.S_IMODE(side.path(b".gsync").stat().st_mode) == 0o700


def test_an_agent_that_was_killed_is_followed_by_one_that_knows(side: Side, top: tuple[bytes, bytes]) -> None:
    gfid = side.file(b"a", b"x", top[1])
    attached, unattached = side.folder(b"old", top[1]), side.new_gfid()
    side.file(b"in old", b"y", attached)
    assert side.fill(side.row(b"new", unattached, top[1], stat.S_IFDIR | 0o755)) == ["made"]
    assert side.fill(side.row(b"guest", attached, unattached, stat.S_IFDIR | 0o755)) == ["ok"]
    assert side.remove((top[1], b"a")) == [gfid]
    side.host.kill(side.host.lock_holder(side.volume))
    with pytest.raises(GsyncError):
        side.client.call("ping")
    side.close()
    hello = side.connect()
    assert hello.unclean
    touched = {name for page in side.client.leftover_names() for name in page}
    assert {(top[1], b"a"), (top[1], b"old"), (unattached, b"guest")} <= touched
    assert {gfid for page in side.client.leftover_gfids() for gfid in page} >= {gfid, attached}
    assert side.client.known([unattached]) == [False] or side.fill(
        side.row(b"x", side.new_gfid(), unattached)) == ["parent"]
    assert side.fill(side.row(b"a", gfid, top[1]), side.row(b"old", attached, top[1], stat.S_IFDIR | 0o755)) == [
        "ok", "ok"]
    assert set(side.listed(attached)) == {b"in old"}
    side.commit(77)
    assert [name for page in side.client.leftover_names() for name in page] == []
    side.close()
    assert side.connect().stime == 77
    assert not side.hello.unclean


def test_a_younger_connection_ends_an_older_one(side: Side, top: tuple[bytes, bytes]) -> None:
    old = side.client, side.engine
    side.connect()
    with pytest.raises(GsyncError):
        old[0].call("ping")
    old[1].close()
    old[0].close()
    side.file(b"a", b"x", top[1])
    epoch = side.epoch - 1
    client = SlaveClient(HostLink(side.host.node, side.volume, side.way))
    with pytest.raises(Faulty, match="epoch"):
        client.hello(VOLUME_ID, "test", "test", epoch)
    client.close()
    side.file(b"b", b"x", top[1])


def test_a_read_only_volume_is_written(side: Side, top: tuple[bytes, bytes]) -> None:
    node = side.host.node
    node.gluster("volume", "set", side.volume, "features.read-only", "on")
    try:
        def refused() -> bool:
            try:
                side.path(top[0], b"by a user").touch()
            except OSError as exc:
                return exc.errno == errno.EROFS
            return False

        wait_until("it is read-only for others", refused)
        side.close()
        side.connect()
        gfid = side.file(b"a", b"x", top[1])
        xattrs = [(b"trusted.x", b"z"), (b"user.x", b"y")]
        assert side.client.meta([MetaRow(gfid, stat.S_IFREG | 0o600, 1, 2, 3, 4, xattrs)]) == [0]
        assert side.path(top[0], b"a").read_bytes() == b"x"
        assert [os.getxattr(side.path(top[0], b"a"), name) for name, _ in xattrs] == [b"z", b"y"]
        side.close()
    finally:
        node.gluster("volume", "set", side.volume, "features.read-only", "off")
        side.connect()


@pytest.mark.parametrize("way", ["gfapi", "mount"])
def test_what_has_arrived_is_there_though_the_receiver_is_killed(host: SlaveHost, way: str) -> None:
    """The client of a dispersed volume would like to keep a file's length to itself for a second."""
    host.volume(f"killed-{way}", "disp")
    contents = [b"short", os.urandom(3 << 20)]
    with closing(Files(host.folder / f"master-killed-{way}")) as files, \
            closing(Side(host, f"killed-{way}", way, files)) as side:
        names = [b"short", b"long"]
        gfids = [files.add(name, content) for name, content in zip(names, contents, strict=True)]
        rows = [side.row(name, gfid) for name, gfid in zip(names, gfids, strict=True)]
        assert side.fill(*rows) == ["new", "new"]
        moved = side.move(*(FileRequest(gfid, "N", ROOT_GFID, name, len(content))
                            for name, gfid, content in zip(names, gfids, contents, strict=True)))
        host.node.run("pkill", "-9", "-f", "--", "--receive")
        assert [result.errno for result in moved] == [0, 0]
        assert side.fill(*rows) == ["ok", "ok"]
        assert [side.path(name).read_bytes() for name in names] == contents


def test_a_mount_that_dies_is_no_loss(host: SlaveHost) -> None:
    host.volume("dying")
    side = Side(host, "dying", "mount", Files(host.folder / "master-dying"))
    side.file(b"a", b"x")
    agent = host.lock_holder("dying")
    host.kill(int(host.node.run("pgrep", "-P", agent, "glusterfs")))
    with pytest.raises(Transient, match="the mount of the volume is lost"):
        side.client.known([bytes(15) + b"\x05"])
    side.close()
    assert side.connect().unclean
    side.file(b"b", b"y")
    assert set(side.listed(ROOT_GFID)) == {b"a", b"b"}
    side.close()
    side.source.close()


@contextmanager
def new_volume(host: SlaveHost, name: str, way: str) -> Iterator[Side]:
    """A distributed one, connected."""
    host.volume(name, "dist")
    with closing(Files(host.folder / f"master-{name}")) as source, closing(Side(host, name, way, source)) as side:
        yield side


@pytest.mark.parametrize("way", ["gfapi", "mount"])
def test_nothing_is_missing_because_a_part_of_the_volume_is_away(host: SlaveHost, way: str) -> None:
    """GlusterFS says of much that lies there that it is not there."""
    name = f"part-{way}"
    with new_volume(host, name, way) as side:
        gfids = [side.file(b"file%d" % n, b"x") for n in range(20)]
        host.kill(host.brick_pid(name, 1))
        with pytest.raises(Transient):
            while True:
                assert side.client.known(gfids) == [True] * 20
        side.close()
        for _ in range(2):
            with pytest.raises(Transient, match=rf"a part of the GlusterFS volume {name} is unreachable: "
                                                rf"[0-9.]+:{host.node.bricks}/{name}-1$"):
                side.connect()
        host.node.gluster("volume", "start", name, "force")
        wait_until("the brick is back", lambda: _finds(side, gfids))


@pytest.mark.parametrize("way", ["gfapi", "mount"])
def test_what_was_unfinished_is_not_taken_for_the_file(host: SlaveHost, way: str) -> None:
    """It may be half of it; so may a directory that is being deleted."""
    name = f"half-{way}"
    with new_volume(host, name, way) as side:
        folder = side.new_gfid()
        whole = side.row(b"d", folder, mode=stat.S_IFDIR | 0o755)
        assert side.fill(whole) == ["made"]
        rows, inner, requests = [], [], []
        for n in range(300):
            gfid, within = side.source.add(b"f%d" % n, b"x"), side.source.add(b"w%d" % n, b"x")
            rows.append(side.row(b"f%d" % n, gfid))
            inner.append(side.row(b"w%d" % n, within, folder))
            requests += [FileRequest(gfid, "N", ROOT_GFID, b"f%d" % n, 1),
                         FileRequest(within, "D", folder, b"w%d" % n, 1)]
        assert side.fill(*inner) == ["direct"] * 300
        assert not any(result.errno for result in side.move(*requests))
        host.kill(host.lock_holder(name))
        side.close()
        side.connect()
        assert side.fill(*rows) == ["new"] * 300
        assert side.fill(whole) == ["made"]
        assert side.fill(*inner) == ["direct"] * 300


@pytest.mark.parametrize("way", ["gfapi", "mount"])
def test_more_bricks_are_noticed(host: SlaveHost, way: str) -> None:
    """A client that does not know a brick finds nothing that was moved there."""
    name = f"more-{way}"
    with new_volume(host, name, way) as side:
        gfids = [side.file(b"file%d" % n, b"x") for n in range(20)]
        brick = host.node.bricks / f"{name}-2"
        host.node.gluster("volume", "add-brick", name, f"{host.node.address}:{brick}", "force")
        with pytest.raises(Transient):
            while True:
                assert side.client.known(gfids) == [True] * 20
        host.node.gluster("volume", "rebalance", name, "start", "force")
        wait_until("files have moved", lambda: any(brick.glob("file*")))
        wait_until("the agent works again", lambda: _finds(side, gfids))


def _finds(side: Side, gfids: list[Gfid]) -> bool:
    """By a new connection, all of them or none."""
    try:
        side.close()
        side.connect()
        found = side.client.known(gfids)
    except Transient:
        return False
    assert found == [True] * len(gfids)
    return True


@pytest.mark.parametrize("way", ["gfapi", "mount"])
def test_a_frozen_agent_on_another_host_does_nothing_more(tmp_path: Path, way: str) -> None:
    """The hosts know of each other by the volume alone."""
    def connected(node: Node, epoch: int) -> SlaveClient:
        client = SlaveClient(HostLink(node, "copy", way))
        try:
            hello = client.hello(VOLUME_ID, "test", "test", epoch)
        except BaseException:
            client.close()
            raise
        pids[epoch] = hello.pid
        return client

    def folder(n: int) -> FillRow:
        return Side.row(b"%d" % n, bytes(15) + bytes([100 + n]), mode=stat.S_IFDIR | 0o755)

    pids: dict[int, int] = {}
    with cluster(tmp_path, "replica 2") as site:
        site.make("copy", SHAPES["replica 2"])
        first, second = site.nodes
        with closing(connected(first, 1)) as old:
            assert old.fill([folder(1)]).answers == ["made"]
            assert old.fill([folder(1)]).answers == ["ok"]
            first.run("kill", "-STOP", pids[1])
            late = old.submit("fill", rows=[folder(2).to_json()])
            with closing(connected(second, 2)) as new:
                assert new.fill([folder(3)]).answers == ["made"]
                first.run("kill", "-CONT", pids[1])
                with pytest.raises(GsyncError):
                    late.result(60)
                assert new.fill([folder(3)]).answers == ["ok"]
                assert set(dict(new.list(ROOT_GFID)[0])) == {b"1", b"3"}
                assert new.known([folder(2).gfid]) == [False]
                with pytest.raises(Faulty, match="epoch"):
                    connected(first, 1)
                new.commit(5, 5, 2, clear=True)
