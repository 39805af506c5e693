"""A vault: append-only tar files and an index file for each, as tape-like storage wants them.

    <vault>/gsync-vault.json    marks the directory as a vault
            00000001.tar        members, with all attributes in pax headers: any tar reads them
            00000001.tar.idx    a JSON line for each (path, offset, size, SHA-256, attributes), and a closing line
            catalog.db          the merged content of the indexes, for lookups; rebuilt if it is lost

An index without members (deletions, moves, attributes) has no tar. The indexes, read in order, define what the vault
holds. Promise: a member counts once its tar is on disk, its index follows, and the index was read back and is as
written; until then everything has a temporary name. A member can be read with its index row alone. One whose SHA-256
does not match is CORRUPT, never returned as whole.
If commands are set (for hsi, htar and the like), they alone keep the tars, and also keep the indexes.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sqlite3
import stat
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, BinaryIO

from gsync.base.errors import UsageError
from gsync.base.model import shown
from gsync.base.times import parse_size
from gsync.transfer.stores.store import BLOCK, Category, Content, Item, StoreError, new_digest, parts_of, store_io
from gsync.transfer.stores.tape import Tape
from gsync.transfer.stores.vaultbatch import TarBatch
from gsync.transfer.stores.vaultfiles import VaultFiles
from gsync.transfer.stores.vaultindex import PAGE, Member, VaultContents

OPTIONS = ("tar-size", *Tape.OPTIONS)
_MOST = 20_000           # entries of one tar: a batch keeps them in memory
_TAR_SIZE = 4 << 30      # bytes after which a batch begins another tar


class VaultStore:
    """The vault in the directory `root`. STORE_DOWN if it cannot be found, UsageError if it is misconfigured. Any
    thread may call it; each thread has a batch of its own."""

    kind = "tar"

    def __init__(self, root: bytes, name: str = "", url: str = "", options: Mapping[str, Any] | None = None) -> None:
        self.name = name or shown(root)
        self.url = url or "tar://" + os.fsdecode(root)
        self._root = os.fsdecode(root)
        self._tape = Tape(self.name, self._root, options or {})
        self._files = VaultFiles(self.name, self._root, self._tape)
        self._tar_size = _size_of(self.name, (options or {}).get("tar-size"), _TAR_SIZE)
        self._lock = threading.RLock()
        self._local = threading.local()
        self.probe()
        try:
            self._catalog = VaultContents(os.path.join(self._root, "catalog.db"))
        except (sqlite3.Error, OSError) as exc:
            raise StoreError(f"store {self.name}: its catalog: {exc}", Category.STORE_DOWN) from exc
        self._refresh()

    def close(self) -> None:
        """Close the store; an uncommitted batch is dropped."""
        self._drop()
        self._catalog.close()
        self._tape.close()

    def probe(self) -> None:
        self._files.probe()
        self._tape.probe()

    # reading

    def stat(self, path: bytes) -> Item | None:
        entry = self._entry(path)
        return entry.item if entry else None

    def list(self, path: bytes) -> Iterator[Item]:
        self._flush()
        self._directory(path)
        after = b""
        while True:
            with self._lock:
                page = self._catalog.children(path, after)
            yield from (entry.item for entry in page)
            if len(page) < PAGE:
                return
            after = page[-1].item.path

    def content(self, path: bytes) -> Content | None:
        entry = self._entry(path)
        return Content(entry.item.size, entry.sha256) if entry is not None and entry.sha256 else None

    def durable(self, path: bytes) -> bool:
        entry = self._entry(path)
        if entry is None or path in self._pending():
            return False
        if not entry.tar:
            return True  # only an index holds it, and that was read back
        with self._lock:
            size = self._catalog.size_of_tar(entry.tar)
        return self._files.holds(entry.tar, size)

    def checksum(self, path: bytes, algorithm: str = "sha256") -> str:
        entry = self._file(path)
        with store_io(self.name, "read", path):
            wanted = None if algorithm == "sha256" else new_digest(algorithm)
        for block in self._blocks(entry):
            if wanted is not None:
                wanted.update(block)
        return entry.sha256 if wanted is None else wanted.hexdigest()

    def get(self, path: bytes, into: BinaryIO) -> Content:
        entry = self._file(path)
        for block in self._blocks(entry):
            into.write(block)
        return Content(entry.item.size, entry.sha256)

    def _blocks(self, entry: Member) -> Iterator[bytes]:
        """Yield the member's bytes; CORRUPT if the tar is truncated, or at the end if the checksum differs."""
        path = entry.item.path
        if path in self._pending() or (entry.tar and entry.tar == self._batch_tar()):
            self._flush()
            entry = self._file(path)
        left, digest = entry.item.size, hashlib.sha256()
        with store_io(self.name, "read", path), self._tape.open(entry.tar, entry.offset, left) as file:
            while left:
                block = file.read(min(BLOCK, left))
                if not block:
                    raise StoreError(f"store {self.name}: {shown(path)}: {entry.tar} is truncated",
                                     Category.CORRUPT)
                left -= len(block)
                digest.update(block)
                yield block
        if digest.hexdigest() != entry.sha256:
            raise StoreError(f"store {self.name}: {shown(path)} is corrupt: in {entry.tar} at {entry.offset} its "
                             f"SHA-256 is {digest.hexdigest()}, not {entry.sha256}", Category.CORRUPT)

    def free(self) -> int | None:
        with store_io(self.name, "look at", b""):
            found = os.statvfs(self._root)
            return found.f_bavail * found.f_frsize

    # writing

    def put(self, path: bytes, source: BinaryIO, item: Item | None = None, replace: bool = False) -> Content:
        with self.batch():
            there = self._entry(path)
            if not path or (there is not None and (not replace or not there.item.is_file)):
                raise self._error("put", path, errno.EEXIST)
            self._make_parents(path)
            given = item or Item(path, stat.S_IFREG, uid=os.geteuid(), gid=os.getegid())
            content, offset = self._begun().append(path, source, given)
            self._begun().note(Member(_whole(given, path, content.size), self._batch_tar(), offset, content.sha256),
                               new=there is None)
            self._roll()
            return content

    def symlink(self, path: bytes, item: Item) -> None:
        assert item.target is not None
        with self.batch():
            there = self._entry(path)
            if there is not None and (there.item.kind, there.item.target) == (stat.S_IFLNK, item.target):
                return
            if there is not None or not path:
                raise self._error("make", path, errno.EEXIST)
            self._make_parents(path)
            self._begun().add(path, item, tarfile.SYMTYPE, item.target)
            self._begun().note(Member(replace(item, path=path, kind=stat.S_IFLNK, size=len(item.target),
                                              xattrs=item.xattrs or ()), self._batch_tar()), new=True)
            self._roll()

    def link(self, path: bytes, first: bytes) -> None:
        with self.batch():
            of, there = self._file(first), self._entry(path)
            if there is not None:
                if (there.tar, there.offset) == (of.tar, of.offset):
                    return
                raise self._error("link", path, errno.EEXIST)
            self._make_parents(path)
            self._begun().add(path, of.item, tarfile.LNKTYPE, first)
            self._begun().note(replace(of, item=replace(of.item, path=path, target=of.item.target or first)), new=True)
            self._roll()

    def mkdir(self, path: bytes, item: Item | None = None) -> None:
        with self.batch():
            there = self._entry(path)
            if there is not None and not there.item.is_dir:
                raise self._error("make", path, errno.EEXIST)
            if there is not None and item is None:
                return
            if path:
                self._make_parents(path)
            self._make_dir(path, item, new=there is None)
            self._roll()

    def set_attrs(self, path: bytes, item: Item) -> None:
        with self.batch():
            there = self._entry(path)
            if there is None:
                raise self._error("set the attributes of", path, errno.ENOENT)
            old = there.item
            self._begun().note(replace(there, item=replace(
                old, mode=item.mode, uid=item.uid, gid=item.gid, mtime=item.mtime, ctime=item.ctime or old.ctime,
                xattrs=old.xattrs if item.xattrs is None else item.xattrs)))

    def delete(self, path: bytes) -> None:
        if not path:
            raise self._error("remove", path, errno.EBUSY)
        with self.batch():
            there = self._entry(path)
            if there is None:
                return
            if there.item.is_dir:
                self._flush()
                with self._lock:
                    if self._catalog.children(path, b"", 1):
                        raise self._error("remove", path, errno.ENOTEMPTY)
            self._begun().note_removed(path)

    def move(self, old: bytes, new: bytes) -> None:
        with self.batch():
            self._flush()
            there = self._entry(old)
            if there is None or not old:
                raise self._error("move", old, errno.ENOENT)
            if self._entry(new) is not None:
                raise self._error("move", new, errno.EEXIST)
            if new.startswith(old + b"/"):
                raise self._error("move", new, errno.EINVAL)
            self._make_parents(new)
            self._begun().note_moved(old, new)
            self._flush()

    # batches

    @contextmanager
    def batch(self) -> Iterator[None]:
        """Write one tar and one index at the end (more if the batch grows large)."""
        if getattr(self._local, "inside", False):
            yield
            return
        self._local.inside = True
        try:
            yield
            self._commit()
        finally:
            self._local.inside = False
            self._drop()

    @property
    def _batch(self) -> TarBatch | None:
        return getattr(self._local, "batch", None)

    def _begun(self) -> TarBatch:
        if self._batch is None:
            self._local.batch = TarBatch(self.name, self._root, self._tape)
        assert self._batch is not None
        return self._batch

    def _pending(self) -> Mapping[bytes, Member | None]:
        return self._batch.entries if self._batch else {}

    def _batch_tar(self) -> str:
        return self._batch.tar if self._batch else ""

    def _drop(self) -> None:
        batch, self._local.batch = self._batch, None
        if batch is not None:
            batch.drop()

    def _flush(self) -> None:
        """Commit this thread's batch, so that the catalog knows its entries."""
        if self._batch is not None:
            self._commit()

    def _roll(self) -> None:
        """Commit the batch if it is large enough, so that the next entry starts another tar."""
        batch = self._begun()
        if len(batch.records) >= _MOST or batch.size >= self._tar_size:
            self._commit()

    def _commit(self) -> None:
        batch, self._local.batch = self._batch, None
        if batch is None:
            return
        try:
            if not batch.records:
                return
            with store_io(self.name, "make durable", b""), self._lock, self._files.alone():
                self._refresh()
                for path in batch.new:
                    if self._catalog.entry(path) is not None:  # another process was faster
                        raise self._error("put", path, errno.EEXIST)
                self._catalog.apply(self._files.publish(batch))
                self._remove_dead()
        finally:
            batch.drop()

    def _remove_dead(self) -> None:
        """Delete tars without a remaining member."""
        for name in self._catalog.dead_tars():
            self._tape.delete(name)
            self._catalog.forget_tar(name)

    # the merged indexes

    def _refresh(self) -> None:
        """Read the indexes that are not in the catalog yet."""
        with self._lock, store_io(self.name, "read its indexes", b""):
            names = self._files.indexes()
            known = self._catalog.indexes()
            gone = known - set(names)
            if gone:
                raise StoreError(f"store {self.name}: index {min(gone)} is missing; restore it from a copy of "
                                 "the vault", Category.CORRUPT)
            fresh = [name for name in names if name not in known]
            if fresh and known and fresh[0] < max(known):  # a missing index came back
                self._catalog.clear()
                fresh = names
            for name in fresh:
                self._catalog.apply(self._files.read_index(name))

    # entries

    def _error(self, what: str, path: bytes, number: int) -> StoreError:
        return StoreError(f"store {self.name}: {what} {shown(path) or '/'}: {os.strerror(number)}",
                          Category.PERMANENT, number)

    def _entry(self, path: bytes) -> Member | None:
        try:
            parts_of(path)
        except ValueError:
            raise StoreError(f"store {self.name}: {shown(path)} not a path in a store", Category.PERMANENT,
                             errno.EINVAL) from None
        pending = self._pending()
        if path in pending:
            return pending[path]
        with self._lock:
            found = self._catalog.entry(path)
        return found or (Member(Item(b"", stat.S_IFDIR, mode=0o755, xattrs=())) if not path else None)

    def _file(self, path: bytes) -> Member:
        entry = self._entry(path)
        if entry is None:
            raise self._error("read", path, errno.ENOENT)
        if not entry.item.is_file:
            raise self._error("read", path, errno.EINVAL)
        return entry

    def _directory(self, path: bytes) -> None:
        entry = self._entry(path)
        if entry is None or not entry.item.is_dir:
            raise self._error("list", path, errno.ENOTDIR if entry else errno.ENOENT)

    def _make_parents(self, path: bytes) -> None:
        parts = path.split(b"/")
        for n in range(1, len(parts)):
            above = b"/".join(parts[:n])
            there = self._entry(above)
            if there is None:
                self._make_dir(above, None, new=True)
            elif not there.item.is_dir:
                raise self._error("make", above, errno.ENOTDIR)

    def _make_dir(self, path: bytes, item: Item | None, new: bool) -> None:
        given = item or Item(path, stat.S_IFDIR, mode=0o755, uid=os.geteuid(), gid=os.getegid())
        if path:
            self._begun().add(path, given, tarfile.DIRTYPE)
        # Two processes may make the same directory at once; that is no conflict.
        self._begun().note(Member(replace(_whole(given, path, 0), kind=stat.S_IFDIR),
                                  self._batch_tar() if path else ""))

def _whole(item: Item, path: bytes, size: int) -> Item:
    return replace(item, path=path, kind=stat.S_IFREG, size=size, target=None, xattrs=item.xattrs or ())


def _size_of(name: str, text: Any, default: int) -> int:
    if text is None:
        return default
    try:
        return max(parse_size(str(text)), 1)
    except ValueError as exc:
        raise UsageError(f"store {name}: tar-size {text!r}: {exc}") from None
