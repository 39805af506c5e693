"""create: freeze a tree and make its manifest. Copies nothing yet."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from gsync.base.errors import UsageError
from gsync.base.model import shown
from gsync.transfer.archive import eosfile
from gsync.transfer.archive.copy import Vault
from gsync.transfer.archive.disk import DiskTree
from gsync.transfer.archive.inventory import Inventory
from gsync.transfer.archive.jobs import Jobs
from gsync.transfer.archive.manifest import ManifestHeader, ManifestWriter
from gsync.transfer.archive.outcome import ending, log_line
from gsync.transfer.archive.rows import Archive, Archives
from gsync.transfer.archive.statefiles import StateFiles
from gsync.transfer.queue.requests import TransferState


class Create:
    """Makes archives."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs, self._archives = jobs, jobs.archives

    def create(self, root: bytes, store: str) -> Archive:
        """Freeze the tree at `root` and make its manifest. A failed create is undone; a killed one starts over."""
        with self._new(root, store) as (tree, vault, known):
            archive = known or self._archives.add("archive", root, store, vault.place, "create")
            with self._archives.lock(archive, "create"):
                if known is not None:
                    tree.thaw_all()
                    tree.root_mtime = self._jobs.root_mtime(known)
                    StateFiles(tree).set(None)
                    archive = self._archives.change(archive, store=store)
                return self._create(self._archives.begin(archive, "create"), tree, vault)

    def survey(self, root: bytes, store: str) -> tuple[int, int]:
        """Count the entries and bytes that `create` would freeze. Refuses what `create` would refuse, and changes
        nothing."""
        with self._new(root, store) as (tree, _, _):
            return Inventory(tree).survey(lambda entries, size: None)

    @contextmanager
    def _new(self, root: bytes, store: str) -> Iterator[tuple[DiskTree, Vault, Archive | None]]:
        """The tree and the vault of a new archive, and the record that a killed create left of it."""
        known = self._archives.at(root)
        if known is not None and (known.operation, known.done) != ("create", False):
            raise UsageError(f"{shown(root)}: already an archive ({known.state}); end it with gsync archive delete")
        refuse_nested(self._archives, root)
        tree = DiskTree(root)
        try:
            strange = StateFiles(tree).present()
            if known is None and strange is not None:
                raise UsageError(f"{shown(root)}: holds {shown(strange)} of an archive unknown here; "
                                 "gsync archive rebuild adopts it from its vault")
            vault = self._jobs.vault(store, self._archives.place_of(root))
            if vault.store.stat(vault.path(b"")) is not None:
                raise UsageError(f"{shown(root)}: the vault {store} already holds an archive of it at "
                                 f"{shown(vault.place)}; gsync archive rebuild adopts it")
            yield tree, vault, known
        finally:
            tree.close()

    def _create(self, archive: Archive, tree: DiskTree, vault: Vault) -> Archive:
        batches = self._jobs.batches(archive)
        try:
            batches.stage("looking")
            entries, _ = Inventory(tree).survey(batches.count)
            batches.stage("freezing", entries)
            frozen = tree.can_freeze()
            writer = ManifestWriter(self._archives.manifest_path(archive))
            try:
                for entry in Inventory(tree).entries(frozen, batches.count):
                    writer.add(entry)
                manifest = writer.finish(ManifestHeader(archive.root, archive.store, archive.place,
                                                        self._jobs.clock.now(),
                                                        os.geteuid(), os.getegid()))
            finally:
                writer.close()
            StateFiles(tree).set(eosfile.INIT, eosfile.lines(manifest, vault.store.url))
            StateFiles(tree).append_log(log_line("create", f"{manifest.header.directories} directories, "
                                                 f"{manifest.header.files} files, {manifest.header.bytes} bytes",
                                                 self._jobs.clock.now()))
        except BaseException as exc:
            batches.close()
            tree.thaw_all()
            StateFiles(tree).set(None)
            self._archives.end(archive, *ending(exc))
            self._archives.remove(archive)
            raise
        finally:
            batches.close()
        return self._archives.end(archive, TransferState.DONE, frozen=int(frozen), size=manifest.header.bytes,
                                  entries=manifest.header.directories + manifest.header.files)


def refuse_nested(archives: Archives, root: bytes) -> None:
    """Raise UsageError if a directory above or below is an archive, whether registered here or not."""
    around = archives.around(root)
    if around is not None:
        raise UsageError(f"{shown(root)}: archives cannot be nested, and {shown(around.root)} is an archive")
    above = os.path.dirname(root)
    while True:
        for name in eosfile.MARKERS:
            if os.path.lexists(os.path.join(above, name)):
                raise UsageError(f"{shown(root)}: archives cannot be nested, and {shown(above)} holds "
                                 f"{shown(name)}")
        if above == os.path.dirname(above):
            return
        above = os.path.dirname(above)
