"""What a store is: a place that files are brought to and fetched from, whatever it is made of.

Promise: what `put` has returned for is at the store whole, under its name, and durable (within a `batch`: when that
ends); before, nobody sees it. Every error is a StoreError whose category decides its fate (retry), and none of them
means "not there". Paths are relative to the store's root, bytes, "/" between the parts, b"" the root itself.
Not here: which stores there are (registry), what they are made of (stores/). Runs on the hosts of ssh stores too:
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

BLOCK = 1 << 20  # bytes that are read, hashed and written at a time


class Category(Enum):
    """The fate of an error."""

    TRANSIENT = "transient"     # may pass: try again after a pause
    STORE_DOWN = "store down"   # the store as a whole: it is left alone for a while, and no try is charged
    CORRUPT = "corrupt"         # the bytes are not what they should be: another replica, or again
    PERMANENT = "permanent"     # trying again changes nothing


class StoreError(GsyncError):
    """What failed, on what, why; errno where the system gave one. down: which store is, where the one that raises it
    knows better than who looks at the transfer."""

    exit_code = 4

    def __init__(self, message: str, category: Category, number: int | None = None, down: str | None = None) -> None:
        super().__init__(message)
        self.category = category
        self.errno = number
        self.down = down


_CATEGORIES = {Fate.AWAY: Category.STORE_DOWN, Fate.FULL: Category.TRANSIENT, Fate.PASSING: Category.TRANSIENT}


def category_of(number: int | None) -> Category:
    """The category of an errno. A full store may have room again, so tries are charged, and it fails after the last."""
    return _CATEGORIES.get(STORE.fate(number), Category.PERMANENT)


@contextmanager
def store_io(store: str, op: str, path: bytes) -> Iterator[None]:
    """Around operations on one path of a store: an OSError becomes a StoreError."""
    try:
        yield
    except OSError as exc:
        raise StoreError(f"store {store}: {op} {shown(path) or '/'}: {exc.strerror or exc}", category_of(exc.errno),
                         exc.errno) from exc


def parts_of(path: bytes) -> list[bytes]:
    """The parts of a path in a store; ValueError for what is none (absolute, empty parts, dots)."""
    return [check_bname(part) for part in path.split(b"/")] if path else []


class Digest(Protocol):
    """A checksum being made."""

    def update(self, data: bytes, /) -> None:
        """Add bytes."""

    def hexdigest(self) -> str:
        """What they amount to so far."""


class _Zlib:
    """adler32 and crc32, in the manner of hashlib."""

    def __init__(self, step: Callable[[bytes, int], int], value: int) -> None:
        self._step, self._value = step, value

    def update(self, data: bytes, /) -> None:
        self._value = self._step(data, self._value)

    def hexdigest(self) -> str:
        return f"{self._value & 0xFFFFFFFF:08x}"


def new_digest(algorithm: str) -> Digest:
    """Of hashlib's algorithms with one length, or adler32 or crc32; OSError EINVAL for any other."""
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

    target: of a symlink; of a further hard link (kind S_IFREG) the path of the first one.
    xattrs: None where they were not asked for; ACLs are among them, as bytes (system.posix_acl_*).
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
    """What was moved, measured while it was: bytes, and SHA-256 in hex."""

    size: int
    sha256: str


class Store(Protocol):
    """One store, opened. Any thread may call. Every method raises StoreError."""

    name: str
    url: str
    kind: str

    def probe(self) -> None:
        """Whether it can be reached; cheap."""

    def stat(self, path: bytes) -> Item | None:
        """The entry, with xattrs; None if there is none."""

    def list(self, path: bytes) -> Iterator[Item]:
        """The entries directly in a directory by name, without xattrs; PERMANENT (ENOENT, ENOTDIR) if it is none."""

    def get(self, path: bytes, into: BinaryIO) -> Content:
        """Write a file's content into `into`."""

    def put(self, path: bytes, source: BinaryIO, item: Item | None = None, replace: bool = False) -> Content:
        """Store what `source` holds from where it stands, with the attributes of item; parents are made. PERMANENT
        (EEXIST) if something is there, unless it is a file and `replace` is said."""

    def symlink(self, path: bytes, item: Item) -> None:
        """Make a symlink to item.target; fine if that very link is there."""

    def link(self, path: bytes, first: bytes) -> None:
        """Give the file `first` one more name; fine if it has it."""

    def mkdir(self, path: bytes, item: Item | None = None) -> None:
        """Make a directory, and those above it; fine if it is there. item: its attributes."""

    def set_attrs(self, path: bytes, item: Item) -> None:
        """Owner, mode, xattrs (unless None), mtime. A store that keeps none of a kind leaves that out."""

    def delete(self, path: bytes) -> None:
        """Remove a file, a symlink or an empty directory; fine if it is not there."""

    def move(self, old: bytes, new: bytes) -> None:
        """One rename. PERMANENT (EEXIST) if something is at the new name."""

    def checksum(self, path: bytes, algorithm: str = "sha256") -> str:
        """Of the bytes that the store holds, read anew; hex. algorithm: as new_digest takes it. CORRUPT if they cannot
        be what was put."""

    def content(self, path: bytes) -> Content | None:
        """What the store noted of a file when it was put; None where it keeps no such notes: ask for the checksum."""

    def durable(self, path: bytes) -> bool:
        """Whether the entry is there and would be after a power cut."""

    def batch(self) -> AbstractContextManager[None]:
        """Within it entries become durable together, when it ends: cheaper than one by one. If it ends with an
        exception, what was put in it may be lost, and nothing older."""

    def free(self) -> int | None:
        """Bytes of room; None where that is not known."""

    def close(self) -> None:
        """Let go of what it holds."""
