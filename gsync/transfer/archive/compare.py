"""The two copies of an archive compared: is what is on the disk in the vault, what would an operation find to do.

Nothing is changed. Not here: what follows from it (purge, archiver).
"""

from __future__ import annotations

from dataclasses import replace

from gsync.base.database import Database
from gsync.transfer.archive.copy import Vault, in_vault
from gsync.transfer.archive.disk import DiskTree, about
from gsync.transfer.archive.manifest import Manifest, ManifestEntry
from gsync.transfer.archive.rows import Archive

DryRun = tuple[int, int, list[tuple[bytes, str]]]  # entries and bytes to work on; entries that would fail, with why


def differs(archive: Archive, tree: DiskTree, entry: ManifestEntry) -> str:
    """Why an entry on the disk must not be removed, "" if it may. What is not there is fine, it is in the vault; what
    is immutable cannot have another content with the same size and mtime."""
    if not entry.path or tree.look(entry.path) is None:
        return ""
    if entry.link is not None and tree.look(entry.link) is None:  # a purge that was killed got so far
        entry = replace(entry, link=None)
    with about(entry.path):
        read = entry.has_content and not (archive.frozen and tree.is_frozen(entry.path))
    # A directory's mtime tells what happened to its names, and these are looked at.
    why = tree.content_differs(entry, read) or tree.attributes_differ(entry, opened=entry.is_dir)
    return f"changed after it was archived: {why}" if why else ""


def beyond(manifest: Manifest, tree: DiskTree) -> list[bytes]:
    """Some of what the tree holds beyond the manifest."""
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
    """What put, purge or get would do. read: the vault's bytes are read."""
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
