"""put: copy a frozen tree into its vault and check that it is durable there. Stops at the first error."""

from __future__ import annotations

import stat
from collections.abc import Callable
from dataclasses import replace

from gsync.base.model import shown
from gsync.transfer.archive import manifestcopy
from gsync.transfer.archive.copy import in_vault, item_of
from gsync.transfer.archive.disk import TreeError
from gsync.transfer.archive.jobs import Job
from gsync.transfer.archive.manifest import ManifestEntry
from gsync.transfer.archive.outcome import ArchiveError, Verify
from gsync.transfer.stores.store import StoreError


class Put:
    """One put. retry: copy only entries that are missing from the vault or damaged there."""

    def __init__(self, job: Job, verify: Verify, retry: bool) -> None:
        self._job, self._verify, self._retry = job, verify, retry
        self._read = verify is not Verify.SIZE  # read the copies back

    def run(self, now: Callable[[], int]) -> None:
        job = self._job
        manifest, vault = job.manifest, job.vault
        job.batches.stage("making directories", manifest.header.directories + 1)
        job.batches.run(manifest.directories(), self._directories)
        job.batches.stage("copying", manifest.header.files)
        behind = manifest.behind_directories()
        for first in (True, False):  # a hard link comes after its first name
            job.batches.run((e for _, e in manifest.entries(behind) if (e.link is None) is first), self._put)
        job.batches.stage("saving the manifest")
        manifestcopy.put(vault, manifest)
        if vault.store.kind != "tar":  # storing members changed a directory's times
            job.batches.run(manifest.reversed_directories(), self._attributes)
        job.checked = now() if self._read else 0

    def _put(self, batch: list[ManifestEntry]) -> list[tuple[bytes, str]]:
        vault = self._job.vault
        todo = [e for e in batch if in_vault(e)]
        if self._retry:
            todo = [e for e in todo if vault.lacks(e, self._read)]
        self._store_all(todo, self._copy)
        for entry in todo:
            self._job.batches.pause_point()
            if why := vault.lacks(entry, self._read):
                raise ArchiveError(f"{shown(entry.path)}: {why}, although it was just put there")
        return []

    def _copy(self, entry: ManifestEntry) -> None:
        vault, tree = self._job.vault, self._job.tree
        if self._verify is Verify.FULL and (why := tree.attributes_differ(entry)):
            raise TreeError(entry.path, f"changed after the archive was created ({why})")
        if self._retry and not entry.has_content:  # a wrong one may be there
            vault.store.delete(vault.path(entry.path))
        if entry.has_content:
            with tree.open_file(entry.path) as source:
                vault.put(entry, source)
        elif entry.link is not None and entry.kind == stat.S_IFREG:
            vault.store.link(vault.path(entry.path), vault.path(entry.link))
        else:  # only the manifest records that several names are one symlink
            vault.store.symlink(vault.path(entry.path), item_of(entry, vault.path(entry.path)))

    def _directories(self, batch: list[ManifestEntry]) -> list[tuple[bytes, str]]:
        store = self._job.vault.store

        def make(entry: ManifestEntry) -> None:
            path = self._job.vault.path(entry.path)
            item = item_of(entry, path)
            store.mkdir(path, item if store.kind == "tar" else replace(item, mode=0o700))

        self._store_all(batch, make)
        return []

    def _attributes(self, batch: list[ManifestEntry]) -> list[tuple[bytes, str]]:
        vault = self._job.vault
        self._store_all(batch, lambda entry: vault.store.set_attrs(vault.path(entry.path),
                                                                   item_of(entry, vault.path(entry.path))))
        return []

    def _store_all(self, entries: list[ManifestEntry], store: Callable[[ManifestEntry], None]) -> None:
        """Store entries and make them durable together. Retries a transient error after a pause, from the entry that
        failed. Raises any other error, once the entries before it are durable."""
        job, left = self._job, entries
        tries = 0
        while left:
            at, error = 0, None
            try:
                with job.vault.store.batch():
                    for at, entry in enumerate(left):  # noqa: B007 - used below
                        job.batches.pause_point()
                        try:
                            store(entry)
                        except (StoreError, TreeError) as exc:
                            error = exc
                            break
            except StoreError as exc:  # at the end of the batch: any of its entries may be lost
                at, error = 0, exc
            if error is None:
                return
            left = left[at:]
            if not job.batches.pause_for(error, tries):
                raise error
            tries += 1
