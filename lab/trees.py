"""Trees for tests and load: make one with everything in it, change one at random, compare two.

`make_everything` fills a folder with every kind of entry that a tree can hold. `Churn` makes random changes of every
kind. `compare` lists every difference between two trees; `rsync_diff` asks rsync for its opinion.

Everything works through directory descriptors and follows no symlink, so depth beyond PATH_MAX and other processes at
work in the same tree are no obstacle.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import io
import itertools
import mmap
import os
import random
import shutil
import sqlite3
import stat
import struct
import subprocess
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

KIB, MIB = 1024, 1024 * 1024

HOSTILE_NAMES = [
    b"new\nline", b"\n", b"cr\rname", b"crlf\r\n", b"tab\tname", b"\x01\x1b[31m\x7f", b"\xff\xfe\x80 not utf-8",
    b"n" * 255, "é".encode() * 127 + b"!", b"\xfe" * 255, b"-rf", b"--delete", b"-", b"100%", b"%s%n%00", b"%0A",
    b"back\\slash", b"\\012", b"\\#012", b"trailing\\", b" leading", b"trailing ", b" ", b"*", b"?", b"[a-z]",
    b'"double"', b"'single'", b"`id`", b"$HOME", b"$(id)", b";ls", b"a|b", b"a&b", b"<in>", b"{a,b}", b"!1", b"...",
    b"....", b"..a", b".hidden", b"~", b"~root", b"#comment", b"- rule", b"+ rule", b"a:b", b"host:path", b"::mod",
    b"C:", b"CON", "é".encode(), "e\u0301".encode(), "\u202egnp".encode(), b".gsync", b"changelog~", b"limbo",
]

_DIR = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK
_ACLS = {"access": "system.posix_acl_access", "default": "system.posix_acl_default"}

AnyPath = str | bytes | os.PathLike[str]


# ---------------------------------------------------------------------------------------------- walking

def at(fd: int, name: bytes) -> bytes:
    """A short path to `name` in the directory `fd`, for calls that take no dir_fd (xattrs)."""
    return b"/proc/self/fd/%d/%s" % (fd, name)


@contextlib.contextmanager
def opened(name: AnyPath | int, flags: int = _DIR, mode: int = 0o777, dir_fd: int | None = None) -> Iterator[int]:
    fd = os.open(name, flags, mode, dir_fd=dir_fd)  # type: ignore[arg-type]
    try:
        yield fd
    finally:
        os.close(fd)


def _open_quietly(name: AnyPath, flags: int, dir_fd: int | None = None) -> int:
    """Opens without touching the atime where that is allowed (owner or root)."""
    try:
        return os.open(name, flags | os.O_NOATIME, dir_fd=dir_fd)
    except PermissionError:
        return os.open(name, flags, dir_fd=dir_fd)


def names_in(fd: int) -> list[bytes]:
    return sorted(os.fsencode(name) for name in os.listdir(fd))


def walk(root: AnyPath, exclude: Iterable[bytes] = ()) -> Iterator[tuple[int, bytes, bytes, os.stat_result]]:
    """(fd of the directory, name, path from the root, lstat) of every entry; a directory after its contents.

    Holds one descriptor whatever the depth. Names in `exclude` are left out at the root only. Entries that vanish
    meanwhile are left out; a directory moved away meanwhile is an OSError (ESTALE).
    """
    fd = _open_quietly(root, _DIR)
    try:
        above: list[tuple[bytes, Iterator[bytes], int]] = []  # name, names still to come beside it, inode above it
        pending = iter([name for name in names_in(fd) if name not in set(exclude)])
        path = b""
        while True:
            for name in pending:
                try:
                    st = os.stat(name, dir_fd=fd, follow_symlinks=False)
                    if not stat.S_ISDIR(st.st_mode):
                        yield fd, name, path + name, st
                        continue
                    child = _open_quietly(name, _DIR, fd)
                except FileNotFoundError:
                    continue
                above.append((name, pending, os.fstat(fd).st_ino))
                os.close(fd)
                fd, path = child, path + name + b"/"
                pending = iter(names_in(fd))
                break
            else:
                if not above:
                    return
                name, pending, ino = above.pop()
                parent = _open_quietly(b"..", _DIR, fd)
                os.close(fd)
                fd, path = parent, path[: -len(name) - 1]
                if os.fstat(fd).st_ino != ino:
                    raise OSError(errno.ESTALE, "directory was moved during the walk", path + name)
                with contextlib.suppress(FileNotFoundError):
                    yield fd, name, path + name, os.stat(name, dir_fd=fd, follow_symlinks=False)
    finally:
        os.close(fd)


# --------------------------------------------------------------------------------------- make_everything

def acl(users: dict[int, int] | None = None, *, owner: int = 6, group: int = 4, mask: int = 7, other: int = 0) -> bytes:
    """A POSIX ACL in the kernel's form for system.posix_acl_*: permissions are 0 to 7, `users` by uid."""
    none = 0xFFFFFFFF
    entries = [(0x01, owner, none), *((0x02, perm, uid) for uid, perm in sorted((users or {}).items()))]
    entries += [(0x04, group, none), (0x10, mask, none), (0x20, other, none)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


def write_at(fd: int, name: bytes, data: bytes = b"", mode: int = 0o644) -> None:
    with opened(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode, dir_fd=fd) as file:
        os.write(file, data)


def mkdir_at(fd: int, name: bytes, mode: int = 0o755) -> int:
    """Make a directory; return a descriptor of it."""
    os.mkdir(name, mode, dir_fd=fd)
    return os.open(name, _DIR, dir_fd=fd)


def write_sparse(fd: int, size: int, extents: Iterable[tuple[int, bytes]]) -> None:
    os.ftruncate(fd, size)
    for offset, data in extents:
        os.pwrite(fd, data, offset)


def _regular_files(fd: int, rng: random.Random) -> None:
    sizes = {b"empty": 0, b"one": 1, b"small": 1000, b"page": 4096, b"odd": 65537, b"big": 3 * MIB + 7}
    for name, size in sizes.items():
        write_at(fd, name, rng.randbytes(size))
    write_at(fd, b"zeros", bytes(MIB))
    data, hole = rng.randbytes(70_000), 4 * MIB
    sparse = {
        b"hole-at-start": (hole + len(data), [(hole, data)]),
        b"hole-in-the-middle": (hole + 2 * len(data), [(0, data), (hole + len(data), data)]),
        b"hole-at-end": (hole + len(data), [(0, data)]),
        b"holes-everywhere": (6 * hole + 11, [(n * hole + 12345, data) for n in range(5)]),
        b"wholly-sparse": (hole, []),
        b"island": (1 << 26, [(1 << 25, b"far from both ends")]),
    }
    for name, (size, extents) in sparse.items():
        with opened(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, dir_fd=fd) as file:
            write_sparse(file, size, extents)


def _directories(fd: int, rng: random.Random) -> None:
    for name, mode in {b"empty": 0o755, b"sticky": 0o1777, b"setgid": 0o2775, b"private": 0o700, b"odd": 0o711}.items():
        os.close(mkdir_at(fd, name))
        os.chmod(name, mode, dir_fd=fd)
    with opened(b"setgid", dir_fd=fd) as setgid:  # entries made inside inherit the group
        write_at(setgid, b"file")
        os.close(mkdir_at(setgid, b"dir"))
    nested = mkdir_at(fd, b"nested")
    for level in range(12):
        write_at(nested, b"file%d" % level, rng.randbytes(level * 100))
        below = mkdir_at(nested, b"d%d" % level)
        os.close(nested)
        nested = below
    os.close(nested)
    with opened(mkdir_at_path(fd, b"full")) as full:
        for n in range(300):
            write_at(full, b"%03d" % n, b"%d" % n)
    with opened(mkdir_at_path(fd, b"not-writable")) as closed:
        write_at(closed, b"inside", b"made before the chmod")
        os.close(mkdir_at(closed, b"below"))
    os.chmod(b"not-writable", 0o555, dir_fd=fd)


def mkdir_at_path(fd: int, name: bytes) -> bytes:
    os.mkdir(name, dir_fd=fd)
    return at(fd, name)


def _symlinks(fd: int, rng: random.Random) -> None:
    write_at(fd, b"target", b"what a link leads to")
    os.close(mkdir_at(fd, b"dir"))
    targets = {
        b"to-file": b"target", b"to-dir": b"dir", b"to-dir-slash": b"dir/", b"dangling": b"not/there",
        b"absolute": b"/proc", b"absolute-dangling": b"/nonexistent/x", b"to-root": b"/", b"to-parent": b"..",
        b"to-self-dir": b".", b"loop": b"loop", b"out": b"../../../../../../../../../../proc/self",
        b"newline": b"a\nb\r", b"bytes": b"\xff\xfe", b"dash": b"--delete", b"space": b" ", b"percent": b"%s",
        b"long": b"x" * 255 + b"/" + b"y" * 255, b"longest": b"z/" * 500, b"gsync": b"../.gsync/limbo",
        b"over-255": b"w" * 400, b"munged": b"/rsyncd-munged/target",
    }
    for name, target in targets.items():
        os.symlink(target, name, dir_fd=fd)


def _hard_links(fd: int, rng: random.Random) -> None:
    with opened(mkdir_at_path(fd, b"one")) as one, opened(mkdir_at_path(fd, b"two")) as two:
        write_at(one, b"a", rng.randbytes(5000))
        for n in range(5):
            os.link(b"a", b"a%d" % n, src_dir_fd=one, dst_dir_fd=one)
            os.link(b"a", b"across\n%d" % n, src_dir_fd=one, dst_dir_fd=two)
        write_at(two, b"empty")
        os.link(b"empty", b"empty too", src_dir_fd=two, dst_dir_fd=one)
        os.symlink(b"a", b"symlink", dir_fd=one)
        os.link(b"symlink", b"symlink too", src_dir_fd=one, dst_dir_fd=two, follow_symlinks=False)
        os.mkfifo(b"fifo", dir_fd=two)
        os.link(b"fifo", b"fifo too", src_dir_fd=two, dst_dir_fd=one)


def _specials(fd: int, rng: random.Random, privileged: bool) -> None:
    os.mkfifo(b"fifo", 0o640, dir_fd=fd)
    os.mknod(b"socket", stat.S_IFSOCK | 0o755, dir_fd=fd)
    os.mkfifo(b"fi\nfo", 0o600, dir_fd=fd)
    if not privileged:
        return
    character, block = stat.S_IFCHR, stat.S_IFBLK
    devices = [(b"null", character, 1, 3), (b"high", character, 511, 200_000), (b"block", block, 259, 70_000)]
    for name, kind, major, minor in devices:
        try:
            os.mknod(name, kind | 0o660, os.makedev(major, minor), dir_fd=fd)
        except PermissionError:  # a container without CAP_MKNOD
            return


def _modes(fd: int, rng: random.Random, privileged: bool) -> None:
    modes = [0o400, 0o444, 0o600, 0o640, 0o755, 0o777, 0o4755, 0o2755, 0o6711, 0o1644, 0o7777]
    unreadable = [0o000, 0o111, 0o200, 0o4000]
    for mode in modes + (unreadable if privileged else []):
        name = b"%04o" % mode
        write_at(fd, name, name)
        os.chmod(name, mode, dir_fd=fd)
    if privileged:
        with opened(mkdir_at_path(fd, b"dir-0000")) as closed:
            write_at(closed, b"inside", b"behind mode 000")
        os.chmod(b"dir-0000", 0, dir_fd=fd)


def _owners(fd: int, rng: random.Random) -> None:
    owners = [(0, 0), (1, 1), (65534, 65534), (12345, 54321), (2**31 + 5, 7), (0, 4_000_000_000)]
    for n, (uid, gid) in enumerate(owners):
        ids = b"%d-%d" % (uid, gid)
        write_at(fd, ids, ids)
        os.symlink(b"x", b"link-" + ids, dir_fd=fd)
        os.mkfifo(b"fifo-" + ids, dir_fd=fd)
        os.mkdir(b"dir-" + ids, dir_fd=fd)
        for kind in (b"", b"link-", b"fifo-", b"dir-"):
            os.chown(kind + ids, uid, gid, dir_fd=fd, follow_symlinks=False)
        if n % 2:  # after the chown, which clears these bits
            os.chmod(ids, 0o6755, dir_fd=fd)


def _xattrs(fd: int, rng: random.Random, privileged: bool) -> None:
    def put(name: bytes, attributes: dict[bytes, bytes], kind: str = "file") -> None:
        if kind == "file":
            write_at(fd, name, b"with xattrs")
        elif kind == "dir":
            os.mkdir(name, dir_fd=fd)
        else:
            os.symlink(b"nowhere", name, dir_fd=fd)
        for key, value in attributes.items():
            os.setxattr(at(fd, name), key, value, follow_symlinks=False)

    plain = {b"user.a": b"1", b"user.empty": b"", b"user.binary": bytes(range(256)), b"user.nul": b"\0"}
    put(b"plain", plain)
    put(b"dir", plain, "dir")
    put(b"big", {b"user.big": rng.randbytes(3000)})
    put(b"many", {b"user.n%d" % n: b"%d" % n for n in range(50)})
    odd_keys = [b"user.new\nline", b"user.\xff\xfe", b"user. ", b"user." + b"k" * 200]
    put(b"odd-keys", {key: b"of " + key[:20] for key in odd_keys})
    if privileged:
        admin = {b"trusted.test": b"root's", b"security.test": b"\0\1", b"user.u": b"u"}
        put(b"admin", admin)
        put(b"admin-dir", admin, "dir")
        put(b"admin-link", {b"trusted.test": b"on a symlink"}, "symlink")
        put(b"capability", {})
        cap_net_raw = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)  # a chown after this would drop it
        os.setxattr(at(fd, b"capability"), b"security.capability", cap_net_raw)


def _posix_acls(fd: int, rng: random.Random) -> None:
    me = os.geteuid()
    write_at(fd, b"access", b"with an ACL")
    os.setxattr(at(fd, b"access"), _ACLS["access"], acl({me: 6, 12345: 4}))
    write_at(fd, b"masked", b"the group bits of the mode are the mask")
    os.setxattr(at(fd, b"masked"), _ACLS["access"], acl({54321: 7}, mask=4, other=4))
    os.mkdir(b"both", dir_fd=fd)
    os.setxattr(at(fd, b"both"), _ACLS["access"], acl({12345: 5}, owner=7, group=5))
    os.setxattr(at(fd, b"both"), _ACLS["default"], acl({12345: 7, 1: 4}, owner=7, group=5, other=1))
    with opened(b"both", dir_fd=fd) as both:
        write_at(both, b"inherits", b"the default ACL of its directory")
        os.mkdir(b"inherits-too", dir_fd=both)
        write_at(both, b"plain", b"lost what it inherited")
        os.removexattr(at(both, b"plain"), _ACLS["access"])
        os.chmod(b"plain", 0o644, dir_fd=both)


def _hostile_names(fd: int, rng: random.Random) -> None:
    with opened(mkdir_at_path(fd, b"files")) as files, opened(mkdir_at_path(fd, b"dirs")) as dirs:
        for name in HOSTILE_NAMES:
            write_at(files, name, name)
            inside = mkdir_at(dirs, name)
            write_at(inside, name, b"inside")
            os.symlink(name, b"link", dir_fd=inside)
            os.close(inside)


def _deep(fd: int, rng: random.Random) -> None:
    """Make one path of more than 5000 bytes, which only directory descriptors reach."""
    here = os.dup(fd)
    for level in range(21):
        below = mkdir_at(here, (b"%d" % level + b"d" * 250)[:250])
        os.close(here)
        here = below
    write_at(here, b"bottom", rng.randbytes(10_000))
    os.link(b"bottom", b"bottom too", src_dir_fd=here, dst_dir_fd=here)
    os.symlink(b"bottom", b"link", dir_fd=here)
    os.mkfifo(b"fifo", dir_fd=here)
    os.close(mkdir_at(here, b"empty"))
    os.setxattr(at(here, b"bottom"), b"user.deep", b"yes")
    os.close(here)


_TIMES = [  # times that ext4, xfs and tmpfs can all store
    0, 1, -1, -1_999_999_999, -2_100_000_000_000_000_000, 999_999_999, 1_000_000_000_000_000_001,
    (2**31 - 1) * 10**9 + 999_999_999, 2**31 * 10**9, 7_000_000_000_123_456_789,
]


def make_everything(root: AnyPath, rng_seed: int, privileged: bool) -> None:
    """Fill the empty (or missing) folder `root` with every kind of entry that a tree can hold.

    privileged: with root's rights: device nodes (where mknod is allowed), owners, trusted and security xattrs, entries
    that their owner cannot read. Without it, their owner can read all entries.
    """
    rng = random.Random(rng_seed)
    os.makedirs(root, exist_ok=True)
    top = os.open(root, _DIR)
    umask = os.umask(0o022)
    parts: dict[bytes, Callable[[int], None]] = {
        b"regular": lambda fd: _regular_files(fd, rng),
        b"directories": lambda fd: _directories(fd, rng),
        b"symlinks": lambda fd: _symlinks(fd, rng),
        b"hard-links": lambda fd: _hard_links(fd, rng),
        b"specials": lambda fd: _specials(fd, rng, privileged),
        b"modes": lambda fd: _modes(fd, rng, privileged),
        b"xattrs": lambda fd: _xattrs(fd, rng, privileged),
        b"acls": lambda fd: _posix_acls(fd, rng),
        b"names": lambda fd: _hostile_names(fd, rng),
        b"deep": lambda fd: _deep(fd, rng),
    }
    if privileged:
        parts[b"owners"] = lambda fd: _owners(fd, rng)
    try:
        for name, make in parts.items():
            with opened(mkdir_at_path(top, name)) as fd:
                make(fd)
        write_at(top, b"at the root", b"not in any folder")
        for fd, name, _path, _st in walk(root):  # a directory comes after its contents, so its mtime stays
            if rng.random() < 0.6:
                times = (rng.choice(_TIMES), rng.choice(_TIMES))
                os.utime(name, ns=times, dir_fd=fd, follow_symlinks=False)
        os.utime(top, ns=(1_600_000_000_000_000_001, 1_500_000_000_123_456_789))
    finally:
        os.umask(umask)
        os.close(top)


# ---------------------------------------------------------------------------------------------- compare

@dataclass(frozen=True, slots=True)
class Entry:
    """The properties of one entry that `compare` looks at. `links` is the first path of its inode in the tree."""

    kind: str
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    atime_ns: int
    rdev: int
    size: int
    allocated: int
    content: str
    target: bytes
    links: bytes
    xattrs: dict[str, bytes]


_KINDS = {
    stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket", stat.S_IFCHR: "character device", stat.S_IFBLK: "block device",
}


def _digest(fd: int) -> str:
    """The digest of the content alone: a hole and written zeros are the same. Holes cost no time."""
    digest, block, offset, zeros = hashlib.blake2b(digest_size=16), 64 * KIB, 0, bytes(64 * KIB)
    while True:
        try:
            offset = os.lseek(fd, offset, os.SEEK_DATA)
            end = os.lseek(fd, offset, os.SEEK_HOLE)
        except OSError as exc:
            if exc.errno == errno.EOPNOTSUPP and offset < os.fstat(fd).st_size:  # a sharded volume reports no holes
                end = os.fstat(fd).st_size
            elif exc.errno in (errno.ENXIO, errno.EOPNOTSUPP):
                return digest.hexdigest()
            else:
                raise
        offset -= offset % block
        while offset < end:
            data = os.pread(fd, block, offset)
            if data != zeros[: len(data)]:
                digest.update(b"%d:" % offset + data.rstrip(b"\0"))
            offset += block


def _entry(fd: int, name: bytes, path: bytes, st: os.stat_result, first: dict[tuple[int, int], bytes]) -> Entry:
    kind = _KINDS[stat.S_IFMT(st.st_mode)]
    content, target, links = "", b"", path
    if kind == "file":
        file = _open_quietly(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, fd)
        try:
            content = _digest(file)
        finally:
            os.close(file)
    elif kind == "symlink":
        target = os.readlink(name, dir_fd=fd)
    if kind != "directory" and st.st_nlink > 1:
        links = first.setdefault((st.st_dev, st.st_ino), path)
    place = at(fd, name)
    keys = os.listxattr(place, follow_symlinks=False)
    return Entry(
        kind=kind, mode=stat.S_IMODE(st.st_mode), uid=st.st_uid, gid=st.st_gid, mtime_ns=st.st_mtime_ns,
        atime_ns=st.st_atime_ns, rdev=st.st_rdev, size=st.st_size if kind in ("file", "symlink") else 0,
        allocated=st.st_blocks * 512 if kind == "file" else 0, content=content, target=target, links=links,
        xattrs={key: os.getxattr(place, key, follow_symlinks=False) for key in keys},
    )


def scan(root: AnyPath, exclude: Iterable[bytes] = ()) -> dict[bytes, Entry]:
    """Every entry of the tree by path; the root itself is b"."."""
    first: dict[tuple[int, int], bytes] = {}
    with opened(root, _DIR) as fd:
        entries = {b".": _entry(fd, b".", b".", os.fstat(fd), first)}
    for fd, name, path, st in walk(root, exclude):
        with contextlib.suppress(FileNotFoundError):
            entries[path] = _entry(fd, name, path, st, first)
    return entries


def shown(path: bytes) -> str:
    return repr(path)[1:] if len(path) < 200 else f"{path[:90]!r}...{path[-90:]!r}"


def _differences(a: Entry, b: Entry, atime: bool) -> Iterator[str]:
    if a.kind != b.kind:
        yield f"{a.kind} != {b.kind}"
        return
    if a.mode != b.mode:
        yield f"mode {a.mode:04o} != {b.mode:04o}"
    fields = ["uid", "gid", "size", "target", "mtime_ns"]
    if atime and a.kind != "symlink":  # a symlink cannot be read without touching its atime
        fields.append("atime_ns")
    for field in fields:
        mine, theirs = getattr(a, field), getattr(b, field)
        if mine != theirs:
            yield f"{field} {mine!r} != {theirs!r}"
    if a.rdev != b.rdev and "device" in a.kind:
        yield f"device {os.major(a.rdev)}:{os.minor(a.rdev)} != {os.major(b.rdev)}:{os.minor(b.rdev)}"
    if a.content != b.content:
        yield "content"
    if a.allocated < a.size and b.allocated > a.allocated + 128 * KIB:
        yield f"sparse: {a.allocated} != {b.allocated} bytes allocated"
    if a.links != b.links:
        yield f"hard link of {shown(a.links)} != of {shown(b.links)}"
    for key in sorted(a.xattrs.keys() | b.xattrs.keys()):
        if a.xattrs.get(key) != b.xattrs.get(key):
            yield f"xattr {key!r} {a.xattrs.get(key)!r} != {b.xattrs.get(key)!r}"


def compare(a: AnyPath, b: AnyPath, exclude: Iterable[bytes] = (b".gsync",), *, atime: bool = False) -> list[str]:
    """One line for each difference between two quiet trees; empty if they are equal in everything.

    Kinds, content, size, sparseness, link targets, hard-link groups, owner, group, mode, mtime, devices, all xattrs and
    ACLs; atime on request. `exclude`: names left out at the root of both.
    """
    exclude = tuple(exclude)
    mine, theirs = scan(a, exclude), scan(b, exclude)
    lines = []
    for path in sorted(mine.keys() | theirs.keys()):
        if path not in theirs:
            lines.append(f"{shown(path)}: only in the first")
        elif path not in mine:
            lines.append(f"{shown(path)}: only in the second")
        else:
            lines += [f"{shown(path)}: {text}" for text in _differences(mine[path], theirs[path], atime)]
    return lines


def wait_until_equal(a: AnyPath, b: AnyPath, timeout: float = 120, pause: float = 0.2) -> list[str]:
    """Compare again and again until the trees are equal or `timeout` has passed; return the last differences."""
    end = time.monotonic() + timeout
    while True:
        try:
            lines = compare(a, b)
        except OSError as exc:  # moved during the walk
            lines = [f"not quiet: {exc}"]
        if not lines or time.monotonic() > end:
            return lines
        time.sleep(pause)


def rsync_diff(
    master: AnyPath, slave: AnyPath, *, ssh_config: AnyPath | None = None, exclude: Sequence[str] = ("/.gsync", "/deep")
) -> list[str]:
    """The changes that rsync would still make at the slave (`/path` or `host:/path`): its itemized lines, none when
    equal.

    `/deep` of make_everything is left out because rsync refuses paths beyond PATH_MAX: only `compare` sees it.
    """
    argv = ["rsync", "-aHAXS", "--delete", "--checksum", "--dry-run", "--itemize-changes"]
    argv.append("--modify-window=-1")  # otherwise rsync compares whole seconds only
    argv += [f"--exclude={pattern}" for pattern in exclude]
    if ssh_config is not None:
        argv += ["-e", f"ssh -F {os.fsdecode(ssh_config)}"]
    argv += [os.fsdecode(master).rstrip("/") + "/", os.fsdecode(slave).rstrip("/") + "/"]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode:
        raise RuntimeError(f"rsync: exit {done.returncode}: {done.stderr.decode(errors='replace')}")
    return done.stdout.decode(errors="backslashreplace").splitlines()


# ------------------------------------------------------------------------------------------------ Churn

class Nothing(Exception):
    """At the moment, the tree has nothing that the operation could work on."""


@dataclass(frozen=True, slots=True)
class _Operation:
    name: str
    run: Callable[[Churn], None]
    weight: int
    outside: bool  # needs the folder outside the tree
    privileged: bool


_OPERATIONS: list[_Operation] = []
_Method = Callable[["Churn"], None]


def _op(weight: int = 2, *, outside: bool = False, privileged: bool = False) -> Callable[[_Method], _Method]:
    def register(method: _Method) -> _Method:
        _OPERATIONS.append(_Operation(method.__name__, method, weight, outside, privileged))
        return method
    return register


# Errors that an operation may meet when others change the same tree, or when it takes names as they come.
_EXPECTED = {
    errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY, errno.EINVAL, errno.ELOOP, errno.ENXIO,
    errno.EBUSY, errno.ETXTBSY, errno.EMLINK, errno.ESTALE, errno.ENAMETOOLONG, errno.ENODATA, errno.EOPNOTSUPP,
    errno.EFAULT, errno.EACCES,  # root too: fs.protected_regular in sticky directories
}

_LIBC = ctypes.CDLL(None, use_errno=True)
_RENAME_EXCHANGE = 2


class Churn:
    """Random changes of every kind to the tree `root`, one per `step()`; several may work on one tree.

    `outside` is a folder on the same file system that entries move out to and in from. The tree keeps to about
    `max_entries` entries of a few MiB at most, and to paths that rsync can still read. Names come from a small pool, so
    that they are used again and again. `done` and `skipped` count by operation. `close()` closes open files.

    Unprivileged, their owner can read all entries, and no inode keeps one name inside and one outside: inotify cannot
    see writes through the outer one.
    """

    def __init__(
        self, root: AnyPath, seed: int, privileged: bool, outside: AnyPath | None = None, *, max_entries: int = 3000
    ) -> None:
        self.root = os.path.abspath(os.fsencode(root))
        self.seed, self.privileged, self.max_entries = seed, privileged, max_entries
        self.rng = random.Random(seed)
        self.done: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self._names = [b"%c%d" % (letter, n) for letter in b"abcd" for n in range(12)] + HOSTILE_NAMES
        self._serial = itertools.count()
        self._held: list[tuple[int, int]] = []  # open descriptor, appends still to come
        self._db: sqlite3.Connection | None = None
        self._clone: bytes | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix="churn-")
        self._tar = self._make_tar()
        self._top = os.open(self.root, _DIR)
        self._outside = None if outside is None else os.open(outside, _DIR)
        self._operations = [
            op for op in _OPERATIONS
            if (self._outside is not None or not op.outside) and (privileged or not op.privileged)
        ]
        self._tolerated = _EXPECTED if privileged else _EXPECTED | {errno.EPERM}

    def close(self) -> None:
        self._trim()
        for fd, _left in self._held:
            os.close(fd)
        self._held.clear()
        if self._db is not None:
            self._db.close()
        os.close(self._top)
        if self._outside is not None:
            os.close(self._outside)
        self._scratch.cleanup()

    def __enter__(self) -> Churn:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def step(self, name: str | None = None) -> str:
        """Do one random operation, or the one called `name`; return its name."""
        if name is None:
            op = self.rng.choices(self._operations, [op.weight for op in self._operations])[0]
        else:
            op = next(op for op in self._operations if op.name == name)
        try:
            op.run(self)
            self.done[op.name] += 1
        except (Nothing, sqlite3.Error, subprocess.SubprocessError):
            self.skipped[op.name] += 1
        except OSError as exc:
            if exc.errno not in self._tolerated:
                raise
            self.skipped[op.name] += 1
        if (sum(self.done.values()) + sum(self.skipped.values())) % 100 == 0:
            self._trim()
        return op.name

    def run(self, seconds: float, rate: float | None = None) -> None:
        """Do steps for this many seconds, at most `rate` a second if given."""
        start = time.monotonic()
        for n in itertools.count(1):
            now = time.monotonic() - start
            if now >= seconds:
                return
            self.step()
            if rate is not None and n / rate > now:
                time.sleep(min(n / rate - now, max(0.0, seconds - now)))

    @property
    def operations(self) -> list[str]:
        return [op.name for op in self._operations]

    # ------------------------------------------------------------------------------ choosing

    def _name(self) -> bytes:
        return self.rng.choice(self._names)

    def _fresh(self, prefix: bytes = b"new") -> bytes:
        return b"%s-%d-%d" % (prefix, self.seed, next(self._serial))

    @contextlib.contextmanager
    def _dir(self) -> Iterator[int]:
        """A random directory of the tree, found by a walk down from the root."""
        fd = os.dup(self._top)
        try:
            while self.rng.random() < 0.7:
                try:
                    name = self._entry_of(fd, stat.S_ISDIR)
                except Nothing:
                    break
                below = os.open(name, _DIR, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)

    def _entry_of(self, fd: int, wanted: Callable[[int], bool] | None = None) -> bytes:
        names = names_in(fd)
        for name in self.rng.sample(names, min(len(names), 12)):
            with contextlib.suppress(FileNotFoundError):
                if wanted is None or wanted(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                    return name
        raise Nothing

    @contextlib.contextmanager
    def _entry(self, wanted: Callable[[int], bool] | None = None) -> Iterator[tuple[int, bytes]]:
        """A random entry of the tree, as (descriptor of its directory, name)."""
        for _try in range(8):
            with self._dir() as fd:
                try:
                    name = self._entry_of(fd, wanted)
                except Nothing:
                    continue
                yield fd, name
                return
        raise Nothing

    @contextlib.contextmanager
    def _file(self, flags: int) -> Iterator[int]:
        with self._entry(stat.S_ISREG) as (fd, name), self._open_regular(fd, name, flags) as file:
            yield file

    @contextlib.contextmanager
    def _open_regular(self, fd: int, name: bytes, flags: int) -> Iterator[int]:
        with opened(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644, dir_fd=fd) as file:
            if not stat.S_ISREG(os.fstat(file).st_mode):  # another process has replaced it
                raise Nothing
            yield file

    @contextlib.contextmanager
    def _any(self) -> Iterator[tuple[bytes, int]]:
        """A random inode, rarely the root, as (path that leads to this very inode and follows nothing, its mode)."""
        if self.rng.random() < 0.03:
            yield at(self._top, b"."), os.fstat(self._top).st_mode
            return
        with self._entry() as (fd, name), opened(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=fd) as inode:
            yield b"/proc/self/fd/%d" % inode, os.fstat(inode).st_mode

    def _data(self) -> bytes:
        limit = self.rng.choices([0, 1, 4 * KIB, 64 * KIB, 2 * MIB], [10, 5, 60, 22, 3])[0]
        return self.rng.randbytes(self.rng.randint(0, limit))

    def _put(self, fd: int, name: bytes, data: bytes | None = None) -> None:
        with self._open_regular(fd, name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
            os.write(file, self._data() if data is None else data)

    def _command(self, fd: int, *argv: bytes | str, stdin: bytes = b"") -> None:
        env = {
            **os.environ, "LC_ALL": "C", "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "churn", "GIT_AUTHOR_EMAIL": "churn@localhost",
            "GIT_COMMITTER_NAME": "churn", "GIT_COMMITTER_EMAIL": "churn@localhost",
        }
        # The timeout: another process may put a FIFO where git opens a file.
        cwd = f"/proc/{os.getpid()}/fd/{fd}"
        subprocess.run(argv, input=stdin, cwd=cwd, env=env, check=True, capture_output=True, timeout=5)

    def _remove(self, fd: int, name: bytes) -> None:
        if stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            shutil.rmtree(name, ignore_errors=True, dir_fd=fd)
        else:
            os.unlink(name, dir_fd=fd)

    def _trim(self) -> None:
        """Keep the tree below `max_entries`, and paths below 3000 bytes."""
        paths: list[tuple[int, bytes]] = []
        too_long: bytes | None = None
        with contextlib.suppress(OSError):
            for _fd, _name, path, _st in walk(self.root):
                paths.append((len(path), path))
                if len(path) > 3000:
                    too_long = path
        if too_long is not None:
            shutil.rmtree(too_long.split(b"/", 1)[0], ignore_errors=True, dir_fd=self._top)
        excess = len(paths) - self.max_entries
        while excess > 0:
            with contextlib.suppress(Nothing, OSError), self._entry() as (fd, name):
                with contextlib.suppress(OSError):
                    excess -= sum(1 for _ in walk(at(fd, name)))
                self._remove(fd, name)
                excess -= 1
        if self._outside is not None:
            for name in names_in(self._outside)[40:]:
                with contextlib.suppress(OSError):
                    self._remove(self._outside, name)

    # --------------------------------------------------------------- content, of files in place

    @_op(8)
    def create(self) -> None:
        with self._dir() as fd:
            self._put(fd, self._name())

    @_op(1)
    def create_many(self) -> None:
        with self._dir() as fd, opened(mkdir_at_path(fd, self._fresh(b"many"))) as new:
            for n in range(self.rng.randint(2, 60)):
                self._put(new, b"%d" % n, b"%d" % n)

    @_op(4)
    def write(self) -> None:
        with self._file(os.O_WRONLY) as file:
            data = self._data()
            os.pwrite(file, data, self.rng.randint(0, os.fstat(file).st_size + 100))

    @_op(4)
    def append(self) -> None:
        with self._file(os.O_WRONLY | os.O_APPEND) as file:
            if os.fstat(file).st_size > 4 * MIB:
                raise Nothing
            os.write(file, self._data())

    @_op(2)
    def append_for_long(self) -> None:
        """A file stays open over many steps, whatever happens to its name."""
        if len(self._held) < 3 and self.rng.random() < 0.3:
            with self._file(os.O_WRONLY | os.O_APPEND) as file:
                self._held.append((os.dup(file), self.rng.randint(2, 40)))
        if not self._held:
            raise Nothing
        fd, left = self._held.pop(0)
        if not self.privileged and os.fstat(fd).st_nlink == 0:
            left = 0
        os.write(fd, b"a line in the log %d\n" % left)
        if left:
            self._held.append((fd, left - 1))
        else:
            os.close(fd)

    @_op(3)
    def truncate(self) -> None:
        with self._file(os.O_WRONLY) as file:
            size = os.fstat(file).st_size
            os.ftruncate(file, self.rng.choice([0, size // 2, size + self.rng.randint(1, MIB)]))

    @_op(2)
    def write_mmap(self) -> None:
        with self._file(os.O_RDWR) as file:
            if not os.fstat(file).st_size:
                os.write(file, bytes(100))
            try:
                mapped = mmap.mmap(file, 0)
            except ValueError:  # another process has emptied it
                raise Nothing from None
            data = self.rng.randbytes(min(len(mapped), 50))
            start = self.rng.randint(0, len(mapped) - len(data))
            reader, writer = os.pipe()
            try:
                os.write(writer, data)
                # The kernel stores into the page: EFAULT instead of SIGBUS if another process truncates the file.
                with mapped, memoryview(mapped) as view, view[start : start + len(data)] as part:
                    os.readv(reader, [part])
            finally:
                os.close(reader)
                os.close(writer)

    @_op(1)
    def write_sparse(self) -> None:
        with self._dir() as fd, self._open_regular(fd, self._name(), os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
            write_sparse(file, 9 * MIB, [(self.rng.randint(0, 8 * MIB), self._data()[: 64 * KIB]) for _ in range(3)])

    @_op(2)
    def append_last_byte(self) -> None:
        """A change that leaves size and mtime as they were: only the ctime tells."""
        with self._file(os.O_RDWR) as file:
            st = os.fstat(file)
            if not st.st_size:
                raise Nothing
            os.pwrite(file, self.rng.randbytes(1), st.st_size - 1)
            os.utime(file, ns=(st.st_atime_ns, st.st_mtime_ns))

    # -------------------------------------------------------------------------- attributes

    @_op(3)
    def chmod(self) -> None:
        with self._any() as (path, mode):
            if stat.S_ISLNK(mode):
                raise Nothing
            usable = 0o700 if stat.S_ISDIR(mode) else 0o600
            kept = 0 if self.privileged else usable
            os.chmod(path, self.rng.choice([0, 0o600, 0o644, 0o751, 0o777, 0o1777, 0o2770, 0o4755, 0o7777]) | kept)

    @_op(2, privileged=True)
    def chown(self) -> None:
        ids = [-1, 0, 1, 12345, 65534]
        with self._any() as (path, mode):
            if stat.S_ISLNK(mode):
                raise Nothing
            os.chown(path, self.rng.choice(ids), self.rng.choice(ids))

    @_op(1, privileged=True)
    def chown_symlink(self) -> None:
        with self._entry(stat.S_ISLNK) as (fd, name):
            os.chown(name, self.rng.choice([0, 1, 12345]), self.rng.choice([0, 1]), dir_fd=fd, follow_symlinks=False)

    @_op(3)
    def touch(self) -> None:
        with self._entry() as (fd, name):
            now = time.time_ns()
            times = (self.rng.choice([*_TIMES, now]), self.rng.choice([*_TIMES, now, now - 1]))
            os.utime(name, ns=times, dir_fd=fd, follow_symlinks=False)

    @_op(2)
    def set_xattr(self) -> None:
        keys = [b"user.a", b"user.b", b"user.\xff\n"] + ([b"trusted.t", b"security.test"] if self.privileged else [])
        with self._any() as (path, mode):
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise Nothing
            os.setxattr(path, self.rng.choice(keys), self.rng.randbytes(self.rng.choice([0, 1, 30, 500])))

    @_op(1)
    def remove_xattr(self) -> None:
        for _try in range(20):
            with self._any() as (path, mode):
                found = [] if stat.S_ISLNK(mode) else os.listxattr(path)
                keys = [key for key in found if not key.startswith("system.")]
                if keys:
                    os.removexattr(path, self.rng.choice(keys))
                    return
        raise Nothing

    @_op(1)
    def set_acl(self) -> None:
        with self._any() as (path, mode):
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise Nothing
            kind = "default" if stat.S_ISDIR(mode) and self.rng.random() < 0.4 else "access"
            os.setxattr(path, _ACLS[kind], acl({self.rng.choice([1, 12345]): self.rng.randint(0, 7)}, owner=7))

    @_op(1)
    def remove_acl(self) -> None:
        with self._any() as (path, mode):
            if stat.S_ISLNK(mode):
                raise Nothing
            os.removexattr(path, self.rng.choice(list(_ACLS.values())))

    # ------------------------------------------------------------------------------- names

    @_op(2)
    def link(self) -> None:
        with self._entry(stat.S_ISREG) as (fd, name):
            os.link(name, self._name(), src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)

    @_op(2)
    def link_across(self) -> None:
        with self._entry(lambda mode: not stat.S_ISDIR(mode)) as (fd, name), self._dir() as other:
            os.link(name, self._name(), src_dir_fd=fd, dst_dir_fd=other, follow_symlinks=False)

    @_op(4)
    def unlink(self) -> None:
        with self._entry(lambda mode: not stat.S_ISDIR(mode)) as (fd, name):
            os.unlink(name, dir_fd=fd)

    @_op(2)
    def unlink_and_create_again(self) -> None:
        """The same name with a new inode, perhaps with the same number."""
        with self._entry(stat.S_ISREG) as (fd, name):
            os.unlink(name, dir_fd=fd)
            self._put(fd, name)

    @_op(1)
    def change_kind(self) -> None:
        with self._entry() as (fd, name):
            was_dir = stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode)
            self._remove(fd, name)
            if was_dir:
                self._put(fd, name)
            else:
                os.mkdir(name, dir_fd=fd)

    @_op(4)
    def mkdir(self) -> None:
        with self._dir() as fd:
            os.mkdir(self._name(), self.rng.choice([0o755, 0o700, 0o2775]), dir_fd=fd)

    @_op(1)
    def mkdir_deep(self) -> None:
        with self._dir() as fd:
            here = os.dup(fd)
            try:
                for level in range(self.rng.randint(3, 25)):
                    below = mkdir_at(here, self._fresh(b"deep"))
                    os.close(here)
                    here = below
                    if level % 3 == 0:
                        self._put(here, self._name())
            finally:
                os.close(here)

    @_op(2)
    def rmdir(self) -> None:
        for _try in range(10):
            with self._entry(stat.S_ISDIR) as (fd, name), contextlib.suppress(OSError):
                os.rmdir(name, dir_fd=fd)
                return
        raise Nothing

    @_op(2)
    def rm_rf(self) -> None:
        with self._entry(stat.S_ISDIR) as (fd, name):
            shutil.rmtree(name, ignore_errors=True, dir_fd=fd)

    @_op(2)
    def symlink(self) -> None:
        with self._dir() as fd:
            target = self.rng.choice([self._name(), b"../" + self._name(), b".", b"/nonexistent/x", self.root + b"/a1"])
            os.symlink(target, self._name(), dir_fd=fd)

    @_op(1)
    def special(self) -> None:
        with self._dir() as fd:
            kinds = [stat.S_IFIFO, stat.S_IFSOCK] + ([stat.S_IFCHR, stat.S_IFBLK] if self.privileged else [])
            device = os.makedev(259, self.rng.randint(60_000, 60_009))
            os.mknod(self._name(), self.rng.choice(kinds) | 0o640, device, dir_fd=fd)

    # ----------------------------------------------------------------------------- renames

    def _rename(self, fd: int, name: bytes, to_fd: int, to: bytes) -> None:
        os.rename(name, to, src_dir_fd=fd, dst_dir_fd=to_fd)

    @_op(4)
    def rename_within(self) -> None:
        with self._entry() as (fd, name):
            self._rename(fd, name, fd, self._name())

    @_op(4)
    def rename_across(self) -> None:
        with self._entry() as (fd, name), self._dir() as other:
            self._rename(fd, name, other, self._name())

    @_op(2)
    def rename_directory_across(self) -> None:
        with self._entry(stat.S_ISDIR) as (fd, name), self._dir() as other:
            self._rename(fd, name, other, self._name())

    @_op(2)
    def rename_over_file(self) -> None:
        with self._entry(stat.S_ISREG) as (fd, name), self._entry(stat.S_ISREG) as (other, victim):
            self._rename(fd, name, other, victim)

    @_op(1)
    def rename_over_own_link(self) -> None:
        """rename(2) between two names of one inode does nothing, silently."""
        with self._entry(stat.S_ISREG) as (fd, name):
            second = self._fresh(b"link")
            os.link(name, second, src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
            self._rename(fd, name, fd, second)

    @_op(2)
    def rename_over_empty_directory(self) -> None:
        with self._entry(stat.S_ISDIR) as (fd, name), self._dir() as other:
            empty = self._fresh(b"empty")
            os.mkdir(empty, dir_fd=other)
            self._rename(fd, name, other, empty)

    @_op(2)
    def swap(self) -> None:
        with self._entry() as (fd, a), self._entry() as (other, b):
            through = self._fresh(b"swap")
            self._rename(fd, a, fd, through)
            self._rename(other, b, fd, a)
            self._rename(fd, through, other, b)

    @_op(1)
    def exchange(self) -> None:
        with self._entry() as (fd, a), self._entry() as (other, b):
            if _LIBC.renameat2(fd, a, other, b, _RENAME_EXCHANGE):
                code = ctypes.get_errno()
                raise OSError(code, os.strerror(code))

    @_op(2)
    def rename_chain(self) -> None:
        with self._dir() as fd:
            names = names_in(fd)
            if len(names) < 3:
                raise Nothing
            chain = [self._fresh(b"end"), *self.rng.sample(names, self.rng.randint(3, min(6, len(names))))]
            for to, name in itertools.pairwise(chain):
                self._rename(fd, name, fd, to)

    @_op(2)
    def rename_there_and_back(self) -> None:
        with self._entry() as (fd, name), self._dir() as other:
            away = self._fresh(b"away")
            self._rename(fd, name, other, away)
            self._rename(other, away, fd, name)

    @_op(2)
    def move_directory_into_sibling(self) -> None:
        with self._entry(stat.S_ISDIR) as (fd, name):
            sibling = self._entry_of(fd, stat.S_ISDIR)
            with opened(sibling, dir_fd=fd) as into:
                self._rename(fd, name, into, self._name())

    @_op(1)
    def swap_parent_and_child(self) -> None:
        with self._entry(stat.S_ISDIR) as (fd, name), opened(name, dir_fd=fd) as inside:
            child, up = self._entry_of(inside, stat.S_ISDIR), self._fresh(b"up")
            self._rename(inside, child, fd, up)
            with opened(up, dir_fd=fd) as over:
                self._rename(fd, name, over, child)
            self._rename(fd, up, fd, name)

    @_op(2, outside=True)
    def move_out(self) -> None:
        assert self._outside is not None
        with self._entry() as (fd, name):
            if not self.privileged:
                st = os.stat(name, dir_fd=fd, follow_symlinks=False)
                below = walk(at(fd, name)) if stat.S_ISDIR(st.st_mode) else iter(())
                inodes = [st, *(entry[3] for entry in below)]
                if any(st.st_nlink > 1 and not stat.S_ISDIR(st.st_mode) for st in inodes):
                    raise Nothing
            self._rename(fd, name, self._outside, self._fresh(b"out"))

    @_op(3, outside=True)
    def move_in(self) -> None:
        """Move in an entry that went out before, or a new one: written outside, moved in and perhaps on at once."""
        assert self._outside is not None
        out = self._outside
        name = self._fresh(b"in")
        kind = self.rng.choice(["file", "directory", "returning"])
        if kind == "file":
            self._put(out, name)
        elif kind == "directory":
            with opened(mkdir_at_path(out, name)) as new, opened(mkdir_at_path(new, b"below")) as below:
                for inside in (new, below):
                    self._put(inside, self._name())
        else:
            name = self._entry_of(out)
        with self._dir() as fd:
            to = self._name()
            self._rename(out, name, fd, to)
            if self.rng.random() < 0.3:
                self._rename(fd, to, fd, self._name())

    @_op(1, outside=True, privileged=True)
    def write_outside_and_link_in(self) -> None:
        assert self._outside is not None
        with self._entry(stat.S_ISREG) as (fd, name):
            out = self._fresh(b"linked")
            self._rename(fd, name, self._outside, out)
            self._put(self._outside, out)
            os.link(out, self._name(), src_dir_fd=self._outside, dst_dir_fd=fd, follow_symlinks=False)
            os.unlink(out, dir_fd=self._outside)

    # ----------------------------------------------------------------- what programs do

    @_op(2)
    def rotate_logs(self) -> None:
        with self._dir() as fd:
            for n in (2, 1):
                with contextlib.suppress(FileNotFoundError):
                    self._rename(fd, b"app.log.%d" % n, fd, b"app.log.%d" % (n + 1))
            with self._open_regular(fd, b"app.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND) as log:
                os.write(log, self._data()[:KIB])
                self._rename(fd, b"app.log", fd, b"app.log.1")
                os.write(log, b"the last line goes to the renamed file\n")
            self._put(fd, b"app.log", b"a new log\n")

    @_op(3)
    def save_like_an_editor(self) -> None:
        with self._entry(stat.S_ISREG) as (fd, name):
            temporary = self._fresh(b".save")
            if self.rng.random() < 0.5:
                with contextlib.suppress(FileExistsError):
                    os.link(name, name[:200] + b"~", src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
            with self._open_regular(fd, temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
                os.write(file, self._data())
                os.fsync(file)
            self._rename(fd, temporary, fd, name)

    @_op(1)
    def snapshot_by_links(self) -> None:
        """cp -al, then a change to one of the copies by write-then-rename, as backup programs do."""
        with self._entry(stat.S_ISDIR) as (fd, name):
            if sum(1 for _ in itertools.islice(walk(at(fd, name)), 200)) == 200:
                raise Nothing
            self._command(fd, "cp", "-alT", "--", name, self._fresh(b"snapshot"))

    @_op(1)
    def extract_tar(self) -> None:
        with self._dir() as fd, opened(mkdir_at_path(fd, self._fresh(b"tar"))) as new:
            self._command(new, "tar", "-xf", "-", stdin=self._tar)

    def _make_tar(self) -> bytes:
        buffer = io.BytesIO()
        rng = random.Random(self.seed)
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for n in range(20):
                info = tarfile.TarInfo(f"top/d{n % 4}/new\nline {n}")
                info.size, info.mtime, info.mode = n * 300, 1_000_000_000 + n, 0o640
                tar.addfile(info, io.BytesIO(rng.randbytes(info.size)))
            for kind, name, to in [(tarfile.LNKTYPE, "hard", "top/d1/new\nline 1"), (tarfile.SYMTYPE, "soft", "d1")]:
                info = tarfile.TarInfo(f"top/{name}")
                info.type, info.linkname = kind, to
                tar.addfile(info)
        return buffer.getvalue()

    @_op(3)
    def write_database(self) -> None:
        """An SQLite database changed in place, with its journal coming and going."""
        path = self.root + b"/database-%d" % self.seed
        try:
            if self._db is None:
                self._db = sqlite3.connect(path, timeout=1)
                # Without it SQLite maps its -shm file, which another process may truncate: SIGBUS.
                self._db.execute("PRAGMA locking_mode=exclusive")
                self._db.execute(f"PRAGMA journal_mode={self.rng.choice(['delete', 'truncate', 'wal'])}")
                self._db.execute("CREATE TABLE IF NOT EXISTS t (k INTEGER PRIMARY KEY, v BLOB)")
            with self._db:
                for _ in range(self.rng.randint(1, 20)):
                    self._db.execute("REPLACE INTO t VALUES (?, ?)", (self.rng.randint(1, 200), self._data()[:4000]))
                self._db.execute("DELETE FROM t WHERE k = ?", (self.rng.randint(1, 200),))
        except sqlite3.Error:  # another process has moved or removed it
            if self._db is not None:
                self._db.close()
                self._db = None
            for end in (b"", b"-journal", b"-wal", b"-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path + end)
            raise

    @_op(1)
    def git_checkout(self) -> None:
        """Clone a small repository into the tree once, then switch between its branches."""
        git = ["git", "-c", "safe.directory=*", "-c", "advice.detachedHead=false", "-c", "core.hooksPath=/dev/null"]
        source = Path(self._scratch.name, "repository")
        if not source.exists():
            self._make_repository(source)
        if self._clone is None:
            self._clone = self._fresh(b"clone")
            self._command(self._top, *git, "clone", "-q", "--template=", "--no-hardlinks", str(source), self._clone)
        try:
            with opened(self._clone, dir_fd=self._top) as clone:
                self._command(clone, *git, "checkout", "-qf", self.rng.choice(["one", "two", "three"]))
        except (OSError, subprocess.SubprocessError):  # another process has taken something from it
            self._clone = None
            raise

    def _make_repository(self, source: Path) -> None:
        source.mkdir()
        with opened(source) as fd:
            def commit(branch: str, files: dict[str, bytes]) -> None:
                self._command(fd, "git", "checkout", "-q", "--orphan", branch)
                self._command(fd, "git", "rm", "-rfq", "--ignore-unmatch", ".")
                for name, data in files.items():
                    (source / name).parent.mkdir(parents=True, exist_ok=True)
                    (source / name).write_bytes(data)
                self._command(fd, "git", "add", "-A")
                self._command(fd, "git", "commit", "-qm", branch)

            self._command(fd, "git", "init", "-q", "--template=", "-b", "start")
            same = {f"src/{n}.c": b"%d\n" % n for n in range(20)}
            commit("one", {**same, "thing": b"a file", "README": b"one"})
            commit("two", {**same, "thing/is/a": b"directory here", "README": b"two", "src/3.c": b"changed\n"})
            commit("three", {f"lib/{n}.c": b"%d\n" % n for n in range(20)} | {"README": b"three"})
