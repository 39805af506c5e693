"""The interface of every store: a place to which files are put and from which they are fetched.

Promise: when `put` returns, the file is at the store whole, under its name, and durable (within a `batch`: when that
ends); before, nobody sees it. Every error is a StoreError whose category decides what follows (retry); no error means
"not there". Paths are relative to the store's root, bytes, "/" between the parts, b"" the root itself.
Not here: which stores there are (registry), their implementations (stores/). Runs on the hosts of ssh stores too:
standard library only, Python 3.9.
"""

from __future__ import annotations

import errno
import hashlib
import stat
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import BinaryIO, Protocol

from gsync.base.errors import GsyncError
from gsync.base.fate import STORE, Fate
from gsync.base.model import check_bname, shown

BLOCK = 1 << 20  # bytes to read, hash and write at a time


class Category(Enum):
    """The kind of an error, which decides what follows."""

    TRANSIENT = "transient"     # may pass: retry after a pause
    STORE_DOWN = "store down"   # the whole store: it is banned for a while, and no try is charged
    CORRUPT = "corrupt"         # the bytes are wrong: use another replica, or fetch again
    PERMANENT = "permanent"     # a retry changes nothing


class StoreError(GsyncError):
    """The text says what failed, on what, why. errno: where the system gave one. down: which store is down, if the
    raiser knows better than its caller."""

    exit_code = 4

    def __init__(self, message: str, category: Category, number: int | None = None, down: str | None = None) -> None:
        super().__init__(message)
        self.category = category
        self.errno = number
        self.down = down


_CATEGORIES = {Fate.AWAY: Category.STORE_DOWN, Fate.FULL: Category.TRANSIENT, Fate.PASSING: Category.TRANSIENT}


def category_of(number: int | None) -> Category:
    """The category of an errno. A full store may get room again, so its tries are charged and the last one fails."""
    return _CATEGORIES.get(STORE.fate(number), Category.PERMANENT)


@contextmanager
def store_io(store: str, op: str, path: bytes) -> Iterator[None]:
    """Turn an OSError of an operation on one path into a StoreError."""
    try:
        yield
    except OSError as exc:
        raise StoreError(f"store {store}: {op} {shown(path) or '/'}: {exc.strerror or exc}", category_of(exc.errno),
                         exc.errno) from exc


def parts_of(path: bytes) -> list[bytes]:
    """The parts of a path in a store; ValueError for an invalid path (absolute, empty parts, dots)."""
    return [check_bname(part) for part in path.split(b"/")] if path else []


class Digest(Protocol):
    """A checksum being computed."""

    def update(self, data: bytes, /) -> None:
        """Add bytes."""

    def hexdigest(self) -> str:
        """The checksum of the bytes so far."""


class _Zlib:
    """adler32 and crc32, with hashlib's interface."""

    def __init__(self, step: Callable[[bytes, int], int], value: int) -> None:
        self._step, self._value = step, value

    def update(self, data: bytes, /) -> None:
        self._value = self._step(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value & 0xFFFFFFFF:08x}"


def new_digest(algorithm: str) -> Digest:
    """A new digest: an algorithm of hashlib with a fixed length, or adler32 or crc32; OSError EINVAL for any other."""
    if algorithm in ("adler32", "crc32"):
        return _Zlib(zlib.adler32, 1) if algorithm == "adler32" else _Zlib(zlib.crc32, 0)
    try:
        digest = hashlib.new(algorithm)
    except ValueError:
        digest = None
    if digest is None or not digest.digest_size:
        raise OSError(errno.EINVAL, f"no such checksum: {algorithm}")
    return digest


@dataclass(frozen=True)
class Item:
    """One entry of a store. kind is S_IFMT of the mode, mode the permission bits (0o7777); times in ns since the epoch.

    target: of a symlink; of a further hard link (kind S_IFREG) the path of the first one. xattrs: None if not
    requested; they include ACLs, as bytes (system.posix_acl_*).
    """

    path: bytes
    kind: int
    size: int = 0
    mtime: int = 0
    ctime: int = 0
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    target: bytes | None = None
    xattrs: tuple[tuple[bytes, bytes], ...] | None = None

    @property
    def is_dir(self) -> bool:
        return self.kind == stat.S_IFDIR

    @property
    def is_file(self) -> bool:
        return self.kind == stat.S_IFREG


@dataclass(frozen=True)
class Content:
    """Size and SHA-256 (hex) of the bytes moved, measured in passing."""

    size: int
    sha256: str


class Store(Protocol):
    """One opened store. Any thread may call it. Every method raises StoreError."""

    name: str
    url: str
    kind: str

    def probe(self) -> None:
        """Check cheaply that the store can be reached."""

    def stat(self, path: bytes) -> Item | None:
        """The entry, with xattrs; None if it is missing."""

    def list(self, path: bytes) -> Iterator[Item]:
        """The entries directly in a directory, sorted by name, without xattrs; PERMANENT (ENOENT, ENOTDIR) if it is not
        one."""

    def get(self, path: bytes, into: BinaryIO) -> Content:
        """Write a file's content into `into`."""

    def put(self, path: bytes, source: BinaryIO, item: Item | None = None, replace: bool = False) -> Content:
        """Store the bytes of `source` from its position on, with the attributes of item; creates parents. PERMANENT
        (EEXIST) if something is there, unless it is a file and `replace` is set."""

    def symlink(self, path: bytes, item: Item) -> None:
        """Make a symlink to item.target; fine if that very link is there."""

    def link(self, path: bytes, first: bytes) -> None:
        """Give the file `first` one more name; fine if it has it."""

    def mkdir(self, path: bytes, item: Item | None = None) -> None:
        """Make a directory and its parents; fine if it exists. item: its attributes."""

    def set_attrs(self, path: bytes, item: Item) -> None:
        """Set owner, mode, xattrs (unless None) and mtime. A store leaves out the kinds that it cannot keep."""

    def delete(self, path: bytes) -> None:
        """Remove a file, a symlink or an empty directory; fine if it is missing."""

    def move(self, old: bytes, new: bytes) -> None:
        """Rename an entry in one step. PERMANENT (EEXIST) if the new name exists."""

    def checksum(self, path: bytes, algorithm: str = "sha256") -> str:
        """The checksum (hex) of the bytes that the store holds, read back. algorithm: as new_digest takes it. CORRUPT
        if the bytes cannot be those that were put."""

    def content(self, path: bytes) -> Content | None:
        """Size and SHA-256 that the store recorded when the file was put; None if it keeps no such record: ask for the
        checksum."""

    def durable(self, path: bytes) -> bool:
        """Whether the entry exists and would survive a power cut."""

    def batch(self) -> AbstractContextManager[None]:
        """Make the entries put in the block durable together when it ends: cheaper than one by one. If it ends with an
        exception, they may be lost, but nothing older."""

    def free(self) -> int | None:
        """Free bytes; None if unknown."""

    def close(self) -> None:
        """Release the store's resources."""
