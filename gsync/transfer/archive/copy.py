"""The copy of an archive in a store: puts, checks and returns each entry as the manifest describes it.

Not here: which entries, in which order (put, get); the manifest's own copy there (manifestcopy); how a store keeps its
files (store).
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import BinaryIO

from gsync.base.model import shown
from gsync.transfer.archive.disk import TreeError
from gsync.transfer.archive.manifest import ManifestEntry
from gsync.transfer.stores.store import Category, Item, Store, StoreError


def item_of(entry: ManifestEntry, path: bytes) -> Item:
    """The Item that a store takes for an entry, under another path."""
    return Item(path, entry.kind, entry.size, entry.mtime, entry.ctime, entry.mode, entry.uid, entry.gid, entry.target,
                entry.xattrs)


@dataclass(frozen=True, slots=True)
class Vault:
    """The part of a store that holds one archive."""

    store: Store
    place: bytes

    def path(self, path: bytes) -> bytes:
        return self.place + b"/" + path if path else self.place

    def put(self, entry: ManifestEntry, source: BinaryIO) -> None:
        """Copy a file; TreeError if the bytes read from the source are not the frozen ones."""
        content = self.store.put(self.path(entry.path), source, item_of(entry, self.path(entry.path)), replace=True)
        if (content.size, content.sha256) != (entry.size, entry.sha256):
            self.store.delete(self.path(entry.path))
            raise TreeError(entry.path, "changed after the archive was created; run gsync archive delete, then "
                                        "create")

    def lacks(self, entry: ManifestEntry, read: bool) -> str:
        """The transfer check: why the vault does not hold the entry; "" if it does. read: read its bytes again."""
        path = self.path(entry.path)
        item = self.store.stat(path)
        if item is None:
            return "is missing from the vault"
        if item.kind != entry.kind:
            return f"is not a {entry.word} in the vault"
        if entry.kind == stat.S_IFLNK and item.target != entry.target:
            return "has another target in the vault"
        if entry.kind == stat.S_IFREG and item.size != entry.size:
            return f"has {item.size} bytes in the vault instead of {entry.size}"
        if not self.store.durable(path):
            return "is not durable in the vault"
        if entry.has_content and read:
            try:
                found = self.store.checksum(path)
            except StoreError as exc:
                if exc.category is not Category.CORRUPT:
                    raise
                return f"cannot be read from the vault ({exc})"
            if found != entry.sha256:
                return "has another checksum in the vault"
        elif entry.has_content:
            content = self.store.content(path)
            if content is not None and content.sha256 != entry.sha256:
                return "has another checksum in the vault"
        return ""

    def get(self, entry: ManifestEntry, into: BinaryIO) -> None:
        """Write a member's bytes; StoreError CORRUPT if they do not match the manifest."""
        content = self.store.get(self.path(entry.path), into)
        if (content.size, content.sha256) != (entry.size, entry.sha256):
            raise StoreError(f"{shown(entry.path)}: has another checksum in the vault", Category.CORRUPT)


def in_vault(entry: ManifestEntry) -> bool:
    """Whether an entry is a member of the vault; FIFOs, sockets and devices are only in the manifest."""
    return entry.kind in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR)


