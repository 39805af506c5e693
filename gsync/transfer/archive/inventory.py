"""Reads a tree into manifest entries; freezes each entry first, if requested.

Memory does not grow with the tree. Not here: the manifest's form (manifest), how the tree is walked (disk).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace

from gsync.base.database import Database
from gsync.transfer.archive.disk import DIR, DiskTree, TreeError, WalkedEntry, about, hash_of, open_quietly
from gsync.transfer.archive.eosfile import MANIFEST, MARKERS, MORE
from gsync.transfer.archive.flags import APPEND, IMMUTABLE, flags_of, set_immutable
from gsync.transfer.archive.manifest import ManifestEntry


class Inventory:
    """Reads one tree."""

    def __init__(self, tree: DiskTree) -> None:
        self._tree = tree

    def survey(self, told: Callable[[int, int], None]) -> tuple[int, int]:
        """Check whether the whole tree can be archived, changing nothing; return the number of entries and bytes.

        TreeError for a nested archive, another file system, an unreadable entry, and an entry that is already
        immutable: gsync could not tell it later from the entries it froze itself.
        """
        count = size = 0
        with about(b""):
            self._refuse_flags(b"", self._tree.root_fd)
        for found in self._tree.walk():
            if found.name in MARKERS:
                raise TreeError(found.path, "belongs to an archive inside this one: archives cannot be nested")
            if found.path in (MANIFEST, MORE):
                raise TreeError(found.path, "has a name that gsync uses in the vault: rename it")
            if found.st.st_dev != self._tree.dev:
                raise TreeError(found.path, "is on another file system: unmount it, or archive it separately")
            with about(found.path):
                if stat.S_ISDIR(found.st.st_mode):
                    fd = os.open(found.name, DIR, dir_fd=found.dirfd)
                elif stat.S_ISREG(found.st.st_mode):
                    fd = open_quietly(found.dirfd, found.name)
                    size += found.st.st_size
                else:
                    fd = -1
                if fd >= 0:
                    try:
                        self._refuse_flags(found.path, fd)
                    finally:
                        os.close(fd)
            count += 1
            told(count, size)
        return count, size

    def _refuse_flags(self, path: bytes, fd: int) -> None:
        if self._tree.privileged and flags_of(fd) & (IMMUTABLE | APPEND):
            raise TreeError(path, "is immutable or append-only (see lsattr); run chattr -i -a first")

    def entries(self, freeze: bool, told: Callable[[int, int], None], excluded_xattrs: frozenset[bytes] = frozenset(),
                wanted: Callable[[WalkedEntry], bool] = lambda found: True,
                failed: Callable[[TreeError], None] | None = None, hashed: bool = True) -> Iterator[ManifestEntry]:
        """Yield everything in the tree, the root first. With `freeze`, freezes each entry before reading it.

        A further hard link carries the path of the first one. Entries that `wanted` refuses are left out, except
        directories. With `failed`, an unreadable entry is reported there and left out; without, it raises TreeError.
        hashed False: files come without a checksum, to be read later.
        """
        links = Database.temporary(
            "CREATE TABLE links (ino INTEGER PRIMARY KEY, path BLOB, sha256 TEXT, ctime INTEGER)")
        try:
            with about(b""):
                if freeze:
                    set_immutable(self._tree.root_fd, True)
                yield self._entry(b"", os.fstat(self._tree.root_fd), b"/proc/self/fd/%d" % self._tree.root_fd,
                                  excluded_xattrs)
            count = size = 0
            for found in self._tree.walk():
                try:
                    if found.st.st_dev != self._tree.dev:
                        raise TreeError(found.path, "is on another file system")
                    if not stat.S_ISDIR(found.st.st_mode) and not wanted(found):
                        continue
                    with about(found.path):
                        entry = self._met(found, freeze, excluded_xattrs, links, hashed)
                except TreeError as exc:
                    if failed is None:
                        raise
                    failed(exc)
                    continue
                count += 1
                size += entry.size if entry.has_content else 0
                told(count, size)
                yield entry
        finally:
            links.close()

    def _met(self, found: WalkedEntry, freeze: bool, excluded: frozenset[bytes], links: Database,
             hashed: bool) -> ManifestEntry:
        st = found.st
        first = None
        if st.st_nlink > 1 and not stat.S_ISDIR(st.st_mode):
            first = links.execute("SELECT path, sha256, ctime FROM links WHERE ino = ?",
                                  (_signed(st.st_ino),)).fetchone()
        sha256 = first[1] if first else ""
        if stat.S_ISDIR(st.st_mode) or stat.S_ISREG(st.st_mode):
            flags = DIR if stat.S_ISDIR(st.st_mode) else 0
            fd = os.open(found.name, flags, dir_fd=found.dirfd) if flags else open_quietly(found.dirfd, found.name)
            try:
                if freeze:
                    set_immutable(fd, True)
                now = os.fstat(fd)
                if (now.st_ino, stat.S_IFMT(now.st_mode)) != (st.st_ino, stat.S_IFMT(st.st_mode)):
                    raise TreeError(found.path, "was replaced while it was read")
                if not flags and not first and hashed:
                    sha256 = hash_of(fd)[1]
                    if not _same(os.fstat(fd), now):
                        raise TreeError(found.path, "is being written to")
                entry = replace(self._entry(found.path, now, b"/proc/self/fd/%d" % fd, excluded, sha256=sha256),
                                ctime=st.st_ctime_ns)  # freezing changed the ctime
            finally:
                os.close(fd)
        else:
            target = os.readlink(found.name, dir_fd=found.dirfd) if stat.S_ISLNK(st.st_mode) else None
            entry = self._entry(found.path, st, b"/proc/self/fd/%d/%s" % (found.dirfd, found.name), excluded,
                                target=target)
        if first:
            return replace(entry, link=first[0], ctime=first[2])
        if st.st_nlink > 1 and not entry.is_dir:
            links.execute("INSERT INTO links VALUES (?, ?, ?, ?)",
                          (_signed(st.st_ino), found.path, sha256, entry.ctime))
        return entry

    def _entry(self, path: bytes, st: os.stat_result, place: bytes, excluded: frozenset[bytes], sha256: str = "",
               target: bytes | None = None) -> ManifestEntry:
        regular = stat.S_ISREG(st.st_mode)
        return ManifestEntry(
            path, stat.S_IFMT(st.st_mode), st.st_size if regular else 0, st.st_mtime_ns, st.st_ctime_ns, st.st_uid,
            st.st_gid, stat.S_IMODE(st.st_mode), sha256, target, None,
            st.st_rdev if stat.S_ISBLK(st.st_mode) or stat.S_ISCHR(st.st_mode) else 0,
            regular and st.st_blocks * 512 < st.st_size, self._tree.xattrs(place, stat.S_ISLNK(st.st_mode), excluded))


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_size, one.st_mtime_ns, one.st_ino) == (other.st_size, other.st_mtime_ns, other.st_ino)


def _signed(ino: int) -> int:
    """An inode number as SQLite's signed integer."""
    return ino - (1 << 64) if ino >= 1 << 63 else ino
