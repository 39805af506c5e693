"""Attributes of every kind of inode, as root and as a user without privileges; what the slave cannot hold."""

from __future__ import annotations

import errno
import os
import random
import stat
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gsync.base.model import NS
from gsync.base.model import ROOT_GFID as ROOT
from gsync.link.protocol import Caps, FillRow, LandedRow, MetaRow, Xattrs
from lab.slave_model import (
    DIR,
    FIFO,
    LNK,
    REG,
    Killed,
    Planner,
    Slave,
    World,
    check_index,
    check_limbo_empty,
    check_tree,
    open_new,
)
from lab.trees import acl

NOBODY = 65534
F, D, L = b"f" * 16, b"d" * 16, b"l" * 16
ME, MINE = os.geteuid(), os.getegid()


@pytest.fixture
def root() -> Iterator[Path]:
    """A folder that a user without privileges can have, too."""
    with tempfile.TemporaryDirectory(prefix="gsync-test-") as name:
        path = Path(name) / "slave"
        path.mkdir()
        for folder in (name, path):
            os.chmod(folder, 0o755)
            if os.geteuid() == 0:
                os.chown(folder, NOBODY, NOBODY)
        yield path


def unprivileged(work: Callable[[], None]) -> None:
    """Do it in a process of a user who is not root; its AssertionError comes out here."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            os.umask(0)
            work()
            status = 0
        except BaseException:  # noqa: BLE001 - of any kind: told to the parent
            os.write(writer, traceback.format_exc()[-4000:].encode())
        finally:
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as said:
        text = said.read().decode()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, text


def make(slave: Slave, *names: tuple[bytes, bytes, int]) -> None:
    """Files, directories, ... as they come: content empty."""
    for bname, gfid, mode in names:
        row = FillRow(ROOT, bname, gfid, mode, 5, 1, os.geteuid(), os.getegid(), 1, 1, 0, b"target", [])
        if stat.S_ISREG(mode):
            os.close(open_new(slave.tree, gfid))
        elif stat.S_ISDIR(mode):
            assert slave.apply.fill([row]).answers == ["made"]
        assert slave.apply.fill([row]).answers == ["ok"]


def meta(gfid: bytes, mode: int, xattrs: Xattrs | None = None, uid: int | None = None, gid: int | None = None,
         mtime: int = 7, atime: int = 8) -> MetaRow:
    return MetaRow(gfid, mode, os.geteuid() if uid is None else uid, os.getegid() if gid is None else gid, mtime, atime,
                   xattrs)


def xattrs_of(path: Path) -> dict[str, bytes]:
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)}


def check_attributes(root: Path) -> None:
    with Slave(root) as slave:
        make(slave, (b"f", F, REG), (b"d", D, DIR), (b"l", L, LNK), (b"p", b"p" * 16, FIFO))
        times = (-1_999_999_999, 7_000_000_000_123_456_789)
        rows = [meta(F, stat.S_IFREG | 0o6751, [], mtime=times[0], atime=times[1]),
                meta(D, stat.S_IFDIR | 0o3775, [], mtime=times[1], atime=times[0]),
                meta(L, LNK, [], mtime=5, atime=6), meta(b"p" * 16, FIFO, [], mtime=9, atime=10),
                meta(b"nowhere.........", REG, [])]
        assert slave.apply.meta(rows) == [0, 0, 0, 0, -1]
        for row, name in zip(rows, ("f", "d", "l", "p"), strict=False):
            st = (root / name).lstat()
            assert (st.st_mode, st.st_mtime_ns, st.st_atime_ns) == (row.mode, row.mtime, row.atime), name
        before = (root / "f").lstat().st_ctime_ns
        assert slave.apply.meta(rows[:1]) == [0]
        assert (root / "f").lstat().st_ctime_ns == before  # nothing written where nothing differs


def check_xattrs(root: Path) -> None:
    extended = acl({os.geteuid(): 6, 12345: 4})
    default = acl({12345: 7}, owner=7, group=5)
    with Slave(root) as slave:
        make(slave, (b"f", F, REG), (b"d", D, DIR))
        wanted: Xattrs = [(b"user.a", b"1"), (b"user.\xff\n", bytes(range(256))), (b"user.empty", b"")]
        os.setxattr(root / "f", b"user.too much", b"x")
        assert slave.apply.meta([meta(F, stat.S_IFREG | 0o400, wanted)]) == [0]  # read-only for its owner
        assert xattrs_of(root / "f") == {os.fsdecode(name): value for name, value in wanted}
        assert stat.S_IMODE((root / "f").stat().st_mode) == 0o400
        assert slave.apply.meta([meta(F, REG, None)]) == [0]
        assert len(xattrs_of(root / "f")) == 3
        acls: Xattrs = [(b"system.posix_acl_access", extended), (b"user.a", b"2")]
        assert slave.apply.meta([
            meta(F, stat.S_IFREG | 0o670, acls),
            meta(D, stat.S_IFDIR | 0o2755, [(b"system.posix_acl_default", default)])]) == [0, 0]
        assert xattrs_of(root / "f") == {"system.posix_acl_access": extended, "user.a": b"2"}
        assert xattrs_of(root / "d") == {"system.posix_acl_default": default}
        assert stat.S_IMODE((root / "f").stat().st_mode) == 0o670
        assert stat.S_IMODE((root / "d").stat().st_mode) == 0o2755
        assert slave.apply.meta([meta(F, REG, []), meta(D, DIR, [])]) == [0, 0]
        assert xattrs_of(root / "f") == xattrs_of(root / "d") == {}
        assert stat.S_IMODE((root / "f").stat().st_mode) == 0o644


CHECKS = [check_attributes, check_xattrs]


@pytest.mark.parametrize("check", CHECKS)
def test_everything_is_set(root: Path, check: Callable[[Path], None]) -> None:
    check(root)


@pytest.mark.parametrize("check", CHECKS)
def test_everything_is_set_without_privileges(root: Path, check: Callable[[Path], None]) -> None:
    unprivileged(lambda: check(root))


@pytest.mark.root
def test_owners_and_special_bits_and_roots_xattrs(root: Path) -> None:
    capability = bytes.fromhex("0100000200200000000000000000000000000000")
    with Slave(root) as slave:
        make(slave, (b"f", F, REG), (b"d", D, DIR), (b"l", L, LNK))
        wanted: Xattrs = [(b"trusted.a", b"1"), (b"security.test", b"2"), (b"security.capability", capability)]
        os.setxattr(root / "f", b"trusted.gfid", b"the file system's own")
        os.setxattr(root / "f", b"trusted.old", b"too much")
        assert slave.apply.meta([meta(F, stat.S_IFREG | 0o4755, wanted, 12345, 4_000_000_000), meta(D, DIR, [], 3, 4),
                                 meta(L, LNK, [(b"trusted.l", b"")], 5, 6)]) == [0, 0, 0]
        st = (root / "f").stat()
        assert (st.st_uid, st.st_gid, stat.S_IMODE(st.st_mode)) == (12345, 4_000_000_000, 0o4755)
        assert xattrs_of(root / "f") == {**{os.fsdecode(n): v for n, v in wanted},
                                         "trusted.gfid": b"the file system's own"}
        assert ((root / "l").lstat().st_uid, xattrs_of(root / "l")) == (5, {"trusted.l": b""})
        assert (root / "d").stat().st_gid == 4


def test_without_privileges_foreign_owners_and_their_rights_are_left_out(root: Path) -> None:
    def check() -> None:
        with Slave(root) as slave:
            assert not slave.tree.caps.chown
            assert not slave.tree.caps.trusted
            make(slave, (b"f", F, REG))
            rows = [meta(F, stat.S_IFREG | 0o6755, [(b"trusted.a", b"1"), (b"user.b", b"2")], uid=12345, gid=12345)]
            assert slave.apply.meta(rows) == [0]
            st = (root / "f").stat()
            assert (st.st_uid, stat.S_IMODE(st.st_mode)) == (os.geteuid(), 0o755)
            assert xattrs_of(root / "f") == {"user.b": b"2"}
            answer = slave.apply.fill([FillRow(ROOT, b"null", L, stat.S_IFCHR | 0o666, 5, 1, 0, 0, 1, 1,
                                               os.makedev(1, 3), None, [])])
            assert [(p.row, p.errno) for p in answer.errors] == [(0, errno.EPERM)]

    unprivileged(check)


@pytest.mark.root
def test_devices_are_made(root: Path) -> None:
    with Slave(root) as slave:
        rows = [FillRow(ROOT, b"null", F, stat.S_IFCHR | 0o666, 5, 2, 1, 2, 3, 4, os.makedev(1, 3), None, []),
                FillRow(ROOT, b"null too", F, stat.S_IFCHR | 0o666, 5, 2, 1, 2, 3, 4, os.makedev(1, 3), None, []),
                FillRow(ROOT, b"disk", D, stat.S_IFBLK | 0o660, 5, 1, 1, 2, 3, 4, os.makedev(259, 70000), None, []),
                FillRow(ROOT, b"socket", L, stat.S_IFSOCK | 0o755, 5, 1, 1, 2, 3, 4, 0, None, [])]
        assert slave.apply.fill(rows).answers == ["ok"] * 4
        assert (root / "null").stat().st_rdev == os.makedev(1, 3)
        assert (root / "null").samefile(root / "null too")
        assert (root / "disk").stat().st_rdev == os.makedev(259, 70000)
        st = (root / "socket").stat()
        assert (st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, st.st_atime_ns) == (stat.S_IFSOCK | 0o755, 1, 2, 3, 4)
        assert check_index(slave.tree) == []


def test_more_xattrs_than_an_inode_holds_are_its_own_error(root: Path) -> None:
    """ext4 says "no space left": not a full disk."""
    with Slave(root) as slave:
        make(slave, (b"f", F, REG), (b"d", D, DIR))
        many: Xattrs = [(b"user.%d" % n, bytes(3000)) for n in range(30)]
        answers = slave.apply.meta([meta(F, REG, many), meta(D, DIR, [], mtime=77)])
        assert answers[0] in (0, errno.E2BIG)
        assert answers[1] == 0
        assert (root / "d").stat().st_mtime_ns == 77


def test_what_the_file_system_cannot_hold_is_left_out(root: Path) -> None:
    with Slave(root) as slave:
        slave.tree.caps = Caps(xattr=False, acl=False, trusted=False, chown=os.geteuid() == 0)
        make(slave, (b"f", F, REG))
        rows = [meta(F, REG, [(b"user.a", b"1"), (b"system.posix_acl_access", acl({1: 7}))], mtime=77)]
        assert slave.apply.meta(rows) == [0]
        assert xattrs_of(root / "f") == {}
        assert (root / "f").stat().st_mtime_ns == 77


def test_nothing_is_inherited_from_the_slaves_root(root: Path) -> None:
    """A default ACL and the setgid bit of ROOT would else come into everything that is made in limbo."""
    os.setxattr(root, b"system.posix_acl_default", acl({12345: 7}, owner=7, group=5))
    os.chmod(root, 0o2755)
    with Slave(root) as slave:
        make(slave, (b"f", F, REG), (b"d", D, DIR), (b"l", L, LNK))
        for name in ("f", "d", "l"):
            assert xattrs_of(root / name) == {}
            assert not (root / name).lstat().st_mode & stat.S_ISGID


def test_a_new_directory_is_never_seen_without_its_attributes(root: Path) -> None:
    seen = []

    def look(n: int, name: str) -> None:
        if (root / "d").exists():
            st = (root / "d").stat()
            seen.append((stat.S_IMODE(st.st_mode), xattrs_of(root / "d")))

    with Slave(root, look) as slave:
        row = FillRow(ROOT, b"d", D, stat.S_IFDIR | 0o2710, 5, 2, os.geteuid(), os.getegid(), 1, 1, 0, None,
                      [(b"user.a", b"b")])
        assert slave.apply.fill([row]).answers == ["made"]
        assert slave.apply.fill([row]).answers == ["ok"]
    assert seen
    assert all(look == (0o2710, {"user.a": b"b"}) for look in seen)


def test_landed_files_are_checked_and_finished(root: Path) -> None:
    with Slave(root) as slave:
        for gfid, data in ((F, b"12345"), (D, b"1234")):
            fd = open_new(slave.tree, gfid)
            os.write(fd, data)
            os.close(fd)
        rows = [LandedRow(meta(F, stat.S_IFREG | 0o604), 5), LandedRow(meta(D, REG), 5), LandedRow(meta(L, REG), 5)]
        assert slave.apply.landed(rows) == [0, errno.EAGAIN, -1]
        assert slave.apply.fill([FillRow(ROOT, b"f", F, REG, 5, 1, 0, 0, 1, 1, 0)]).answers == ["ok"]
        assert stat.S_IMODE((root / "f").stat().st_mode) == 0o604
        assert (root / "f").stat().st_mtime_ns == 7


# directories and files that their owner may not use


def closed_world() -> World:
    """Modes that lock out their own owner."""
    world = World()
    closed = world.make(ROOT, b"closed", stat.S_IFDIR | 0o500)
    inner = world.make(closed, b"inner", stat.S_IFDIR | 0o000)
    world.make(inner, b"f", stat.S_IFREG | 0o000, b"behind two doors")
    world.make(closed, b"ro", stat.S_IFREG | 0o444, b"read-only")
    return world


def locked_changes(world: World) -> None:
    closed = world.names[ROOT, b"closed"]
    inner = world.names[closed, b"inner"]
    world.make(inner, b"new", stat.S_IFREG | 0o400, b"new behind two doors")
    world.rename((inner, b"f"), (ROOT, b"f"))
    world.make(inner, b"sub", stat.S_IFDIR | 0o111)
    world.rename((closed, b"inner"), (ROOT, b"inner"))
    world.nodes[world.names[closed, b"ro"]].data = b"written all the same"
    world.written.add(world.names[closed, b"ro"])
    world.dirty.add((closed, b"ro"))
    world.symlink(closed, b"link")


def random_world() -> World:
    """A tree of directories and files, many of them closed."""
    rng, world, dirs = random.Random(5), World(), [ROOT]
    for n in range(60):
        mode = rng.choice([0o500, 0o700, 0o000, 0o755, 0o300])
        dirs.append(world.make(rng.choice(dirs), b"d%d" % n, stat.S_IFDIR | mode))
        world.make(rng.choice(dirs), b"f%d" % n, stat.S_IFREG | rng.choice([0o644, 0o000, 0o400]), b"%d" % n)
    return world


def random_changes(world: World) -> None:
    rng = random.Random(6)
    for n in range(60):
        dirs = [ROOT, *(g for g, node in world.nodes.items() if stat.S_ISDIR(node.mode) and world.names_of(g))]
        old, new = rng.choice(sorted(world.names)), (rng.choice(dirs), b"moved%d" % n)
        if n % 10 == 9:
            world.remove(old)
        elif not world.is_below(new[0], world.names[old]):
            world.rename(old, new)


@pytest.mark.root
@pytest.mark.parametrize(("make_world", "change"), [(closed_world, locked_changes), (random_world, random_changes)])
def test_directories_that_their_owner_may_not_use(
        root: Path, make_world: Callable[[], World], change: Callable[[World], None]) -> None:
    def work() -> None:
        world = make_world()
        with Slave(root) as slave:
            planner = Planner(world, slave.apply, random.Random(1))
            planner.batch(world.dirty, 10)
            world.dirty.clear()
            change(world)
            planner.batch(world.dirty, 20)
            planner.quiet(30)
            assert check_limbo_empty(slave.tree) == []

    unprivileged(work)
    world = make_world()  # the other process's is lost with it
    change(world)
    assert check_tree(root, world) == []


@pytest.mark.root
def test_killed_while_directories_are_open_that_should_be_closed(root: Path) -> None:
    """The mode is put right by the next agent, though no record asks for it."""
    def work() -> None:
        def die(n: int, name: str) -> None:
            if name == "renamed":
                slave.tree.settle = lambda: None
                raise Killed

        world = World()
        a = world.make(ROOT, b"a", stat.S_IFDIR | 0o500)
        b = world.make(a, b"b", stat.S_IFDIR | 0o100)
        world.create(b, b"f")
        with Slave(root) as slave:
            Planner(world, slave.apply, random.Random(1)).batch(world.dirty, 10)
        assert stat.S_IMODE((root / "a").stat().st_mode) == 0o500
        slave = Slave(root)
        slave.on_step = die
        with pytest.raises(Killed):
            slave.apply.fill([FillRow(b, b"moved", world.names[b, b"f"], REG, 50, 1, ME, MINE, 1, 1, 0)])
            slave.apply.fill([FillRow(b, b"new", L, LNK, 50, 1, ME, MINE, 1, 1, 0, b"x")])
        slave.close()
        assert stat.S_IMODE((root / "a").stat().st_mode) == 0o700
        with Slave(root) as slave:
            assert slave.tree.index.opened_up() == []
        assert stat.S_IMODE((root / "a").stat().st_mode) == 0o500
        os.chmod(root / "a", 0o700)
        assert stat.S_IMODE((root / "a/b").stat().st_mode) == 0o100

    unprivileged(work)


def test_a_root_that_its_owner_may_not_write(root: Path) -> None:
    def work() -> None:
        with Slave(root) as slave:
            assert slave.apply.meta([MetaRow(ROOT, stat.S_IFDIR | 0o555, os.geteuid(), os.getegid(), 5 * NS, 6, [])]
                                    ) == [0]
            assert stat.S_IMODE(root.stat().st_mode) == 0o555
            assert root.stat().st_mtime_ns == 5 * NS
        with Slave(root) as slave:
            make(slave, (b"f", F, REG), (b"d", D, DIR))
            assert stat.S_IMODE(root.stat().st_mode) == 0o555
        os.chmod(root, 0o755)

    unprivileged(work)


def test_files_that_their_owner_may_not_open(root: Path) -> None:
    def work() -> None:
        with Slave(root) as slave:
            make(slave, (b"f", F, REG))
            os.chmod(root / "f", 0o040)
            fd = slave.tree.open_file(F, os.O_RDWR)
            os.write(fd, b"written")
            os.close(fd)
            assert stat.S_IMODE((root / "f").stat().st_mode) == 0o040
            assert slave.apply.digest([F])[0][:2] == (0, 7)
            assert slave.apply.expose([F]) == [0]
            assert (root / ".gsync/limbo/link" / F.hex()).read_bytes() == b"written"

    unprivileged(work)
