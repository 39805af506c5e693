"""rebuild: restore a lost manifest, or the whole record of an archive, from its vault."""

from __future__ import annotations

import os

from gsync.base.errors import UsageError
from gsync.base.model import shown
from gsync.transfer.archive import eosfile, manifestcopy
from gsync.transfer.archive.copy import Vault
from gsync.transfer.archive.create import refuse_nested
from gsync.transfer.archive.disk import DiskTree
from gsync.transfer.archive.jobs import Jobs
from gsync.transfer.archive.manifest import Manifest, ManifestHeader
from gsync.transfer.archive.outcome import log_line
from gsync.transfer.archive.rows import Archive
from gsync.transfer.archive.statefiles import StateFiles


class Rebuild:
    """Rebuilds the archive of `root`, which lies in `store` (None: where the database says). UsageError if that store
    holds no archive of it."""

    def __init__(self, jobs: Jobs, root: bytes, store: str | None) -> None:
        self._jobs, self._archives, self._root = jobs, jobs.archives, root
        self._archive, self._name, self._vault = self._find(root, store)

    def fetch(self, path: bytes) -> Manifest:
        """Rebuild the manifest at `path` from the vault."""
        return manifestcopy.fetch(self._vault, path, ManifestHeader(
            self._root, self._name, self._vault.place, self._jobs.clock.now()))

    def run(self) -> Archive:
        """Rebuild a lost manifest, or the whole record of an archive, from its vault: from the copy of the manifest
        there or, if that is lost too, from the members."""
        root, archive, name, vault = self._root, self._archive, self._name, self._vault
        made = not os.path.isdir(root)
        if made:
            os.makedirs(root)
        known = archive is not None
        archive = archive or self._archives.add("archive", root, name, vault.place, "rebuild")
        with self._archives.lock(archive, "rebuild"):
            manifest = self.fetch(self._archives.manifest_path(archive))
        header = manifest.header
        tree = DiskTree(root)
        try:
            if not known or archive.operation == "rebuild":
                frozen = tree.is_frozen(b"") if not made else tree.can_freeze()
                empty = next(tree.walk(), None) is None
                archive = self._archives.change(
                    archive, operation="purge" if empty else "get", done=int(empty), frozen=int(frozen),
                    reason="" if empty else "rebuilt while the directory was not empty; gsync archive get --retry "
                                            "completes it, gsync archive status lists what may be missing")
                StateFiles(tree).set(eosfile.marker("purge" if empty else "get", empty),
                                     eosfile.lines(manifest, vault.store.url))
            StateFiles(tree).append_log(log_line("rebuild", f"{header.directories} directories, {header.files} files",
                                                 self._jobs.clock.now()))
        finally:
            tree.close()
        return self._archives.change(archive, entries=header.directories + header.files, size=header.bytes)

    def _find(self, root: bytes, store: str | None) -> tuple[Archive | None, str, Vault]:
        """Its record here, if any, and the store that holds it. UsageError if that store holds no archive of it."""
        archive = self._archives.at(root)
        name = store or (archive.store if archive else None)
        if name is None:
            raise UsageError(f"{shown(root)}: name its store: gsync archive rebuild {shown(root)} --vault STORE")
        refuse_nested(self._archives, root)
        vault = self._jobs.vault(name, self._archives.place_of(root))
        if vault.store.stat(vault.path(b"")) is None:
            raise UsageError(f"{shown(root)}: store {name} holds no archive of it")
        return archive, name, vault
