"""Compares the two copies of an archive: does the vault hold the disk's content, what would an operation do.

Changes nothing. Not here: what follows from the answer (purge, archiver).
"""

from __future__ import annotations

from dataclasses import replace

from gsync.base.database import Database
from gsync.transfer.archive.copy import Vault, in_vault
from gsync.transfer.archive.disk import DiskTree, about
from gsync.transfer.archive.manifest import Manifest, ManifestEntry
from gsync.transfer.archive.rows import Archive

DryRun = tuple[int, int, list[tuple[bytes, str]]]  # entries and bytes to work on; entries that would fail, why


def differs(archive: Archive, tree: DiskTree, entry: ManifestEntry) -> str:
    """Why an entry on the disk must not be removed; "" if it may be. A missing entry is fine: the vault holds it. The
    content of an immutable file is not read: it cannot change while size and mtime stay the same."""
    if not entry.path or tree.look(entry.path) is None:
        return ""
    if entry.link is not None and tree.look(entry.link) is None:  # a killed purge got this far
        entry = replace(entry, link=None)
    with about(entry.path):
        read = entry.has_content and not (archive.frozen and tree.is_frozen(entry.path))
    # A directory's mtime only shows that its names changed, and the names are compared themselves.
    why = tree.content_differs(entry, read) or tree.attributes_differ(entry, opened=entry.is_dir)
    return f"changed after it was archived: {why}" if why else ""


def beyond(manifest: Manifest, tree: DiskTree) -> list[bytes]:
    """Paths on the disk that the manifest does not list, at most 100."""
    known = Database.temporary("CREATE TABLE known (path BLOB PRIMARY KEY) WITHOUT ROWID")
    try:
        known.executemany("INSERT INTO known VALUES (?)", ((e.path,) for _, e in manifest.entries()))
        more = []
        for found in tree.walk():
            if not known.execute("SELECT 1 FROM known WHERE path = ?", (found.path,)).fetchone():
                more.append(found.path)
                if len(more) == 100:
                    break
        return more
    finally:
        known.close()


def look(operation: str, archive: Archive, manifest: Manifest, vault: Vault, tree: DiskTree, read: bool) -> DryRun:
    """Find what put, purge or get would do. read: read the vault's bytes too."""
    entries = size = 0
    bad: list[tuple[bytes, str]] = []
    for _, entry in manifest.entries():
        lacks = vault.lacks(entry, read) if in_vault(entry) else ""
        if operation == "put":
            if lacks and (why := tree.content_differs(entry, read=False)):
                bad.append((entry.path, why))
        elif lacks:
            bad.append((entry.path, lacks))
        elif operation == "purge" and (why := differs(archive, tree, entry)):
            bad.append((entry.path, why))
        if entry.path and (operation != "put" or lacks):
            entries += 1
            size += entry.size if entry.has_content else 0
    if operation == "purge":
        bad += [(path, "is not in the archive") for path in beyond(manifest, tree)]
    return entries, size, bad
