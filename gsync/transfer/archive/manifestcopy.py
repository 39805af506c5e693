"""The copies of an archive's manifest in the vault, and how a lost manifest is rebuilt from the vault.

There are two copies: the whole manifest, and the lines of those entries that the members cannot describe (FIFOs,
sockets and devices, further hard links, sparse files). Either copy, with the members, restores the whole.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress

from gsync.base.database import Database
from gsync.base.log import get_logger
from gsync.base.model import shown
from gsync.transfer.archive.copy import Vault, in_vault
from gsync.transfer.archive.eosfile import MANIFEST, MORE
from gsync.transfer.archive.manifest import Manifest, ManifestEntry, ManifestError, ManifestHeader, ManifestWriter
from gsync.transfer.stores.store import Category, Item, StoreError

log = get_logger("gsync.archive")


def put(vault: Vault, manifest: Manifest) -> None:
    """Put both copies into the vault; ManifestError if one is not durable there."""
    more = manifest.path + b".more"
    writer = ManifestWriter(more)
    try:
        for _, entry in manifest.entries(manifest.behind_directories()):
            if entry.link is not None or entry.sparse or not in_vault(entry):
                writer.add(entry)
        writer.finish(manifest.header)
        for name, path in ((MORE, more), (MANIFEST, manifest.path)):
            _put(vault, vault.path(name), path)
    finally:
        writer.close()
        with suppress(FileNotFoundError):
            os.unlink(more)


def _put(vault: Vault, path: bytes, file: bytes) -> None:
    with vault.store.batch(), open(file, "rb") as source:
        content = vault.store.put(path, source, replace=True)
    if vault.store.checksum(path) != content.sha256 or not vault.store.durable(path):
        raise ManifestError(f"{shown(path)}: not durable in the vault")


def fetch(vault: Vault, path: bytes, header: ManifestHeader) -> Manifest:
    """Rebuild the manifest at `path`: from its copy or, if that is lost too, from the members, with this header."""
    found = _copy(vault, MANIFEST, path)
    if found is not None:
        return found
    more_path = path + b".more"
    try:
        return _from_members(vault, path, header, _copy(vault, MORE, more_path))
    finally:
        with suppress(FileNotFoundError):
            os.unlink(more_path)


def _copy(vault: Vault, name: bytes, path: bytes) -> Manifest | None:
    """Fetch a copy from the vault to `path`; None if it is lost. StoreError if the store cannot say."""
    new = path + b".vault"
    try:
        with open(new, "wb") as out:
            vault.store.get(vault.path(name), out)
            out.flush()
            os.fsync(out.fileno())
        Manifest(new).check()
        os.rename(new, path)
        return Manifest(path)
    except (StoreError, ManifestError) as exc:
        if isinstance(exc, StoreError) and exc.category in (Category.TRANSIENT, Category.STORE_DOWN):
            raise
        log.warning("lost in the vault too; rebuilding the manifest from the members", what=shown(name), why=str(exc))
        return None
    finally:
        with suppress(FileNotFoundError):
            os.unlink(new)


def _from_members(vault: Vault, path: bytes, header: ManifestHeader, more: Manifest | None) -> Manifest:
    writer, known = ManifestWriter(path), Database.temporary("CREATE TABLE known (path BLOB PRIMARY KEY) WITHOUT ROWID")
    try:
        for _, entry in more.entries() if more is not None else ():
            known.execute("INSERT INTO known VALUES (?)", (entry.path,))
            writer.add(entry)
        for item in members(vault):
            below = item.path[len(vault.place) + 1:]
            if not known.execute("SELECT 1 FROM known WHERE path = ?", (below,)).fetchone():
                writer.add(_entry_of(vault, item, below))
        return writer.finish(header)
    finally:
        known.close()
        writer.close()


def members(vault: Vault) -> Iterator[Item]:
    """Yield the vault's members with xattrs, a directory before its content; not the copies of the manifest."""
    stack = [vault.path(b"")]
    while stack:
        item = vault.store.stat(stack.pop())
        if item is None:  # it was removed just now
            continue
        yield item
        if item.is_dir:
            stack += [below.path for below in vault.store.list(item.path)
                      if below.path not in (vault.path(MANIFEST), vault.path(MORE))]


def _entry_of(vault: Vault, item: Item, path: bytes) -> ManifestEntry:
    sha256 = ""
    if item.is_file:
        content = vault.store.content(item.path)
        sha256 = content.sha256 if content else vault.store.checksum(item.path)
    return ManifestEntry(path, item.kind, item.size if item.is_file else 0, item.mtime, item.ctime, item.uid, item.gid,
                         item.mode, sha256, item.target if item.kind == stat.S_IFLNK else None,
                         xattrs=tuple(item.xattrs or ()))
