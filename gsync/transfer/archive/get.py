"""get: restore a purged tree. Entries that the vault cannot return are named, and everything else is restored."""

from __future__ import annotations

import stat

from gsync.base.model import shown
from gsync.transfer.archive.disk import TreeError
from gsync.transfer.archive.jobs import Job
from gsync.transfer.archive.manifest import ManifestEntry
from gsync.transfer.archive.outcome import ArchiveError, Incomplete, Verify
from gsync.transfer.archive.rows import Archives
from gsync.transfer.stores.store import Category, StoreError


class Get:
    """One get. retry: keep the good entries that are already on the disk."""

    def __init__(self, job: Job, archives: Archives, verify: Verify, retry: bool) -> None:
        self._job, self._archives, self._verify, self._retry = job, archives, verify, retry
        self._frozen = bool(job.archive.frozen and job.tree.can_freeze())

    def run(self) -> None:
        job = self._job
        manifest, tree = job.manifest, job.tree
        if not self._retry and (strange := next(tree.walk(), None)) is not None:
            raise ArchiveError(f"{shown(job.archive.root)}: {shown(strange.path)} is in the way; the directory must be "
                               "empty (gsync archive get --retry keeps existing good entries)")
        restore = job.restore
        restore.begin()
        job.batches.stage("making directories", manifest.header.directories + 1)
        for entry in manifest.directories():
            job.batches.pause_point()
            restore.directory(entry)
        job.batches.stage("copying", manifest.header.files)

        def bring(batch: list[ManifestEntry]) -> list[tuple[bytes, str]]:
            bad = []
            for entry in batch:
                job.batches.pause_point()
                try:
                    self._bring(entry)
                except StoreError as exc:
                    if exc.category in (Category.TRANSIENT, Category.STORE_DOWN):
                        raise
                    bad.append((entry.path, str(exc)))
                except TreeError as exc:
                    if not exc.of_the_entry:
                        raise
                    bad.append((entry.path, exc.why))
            return bad

        behind = manifest.behind_directories()
        job.batches.run((e for _, e in manifest.entries(behind) if e.link is None), bring)
        job.batches.run((e for _, e in manifest.entries(behind) if e.link is not None), bring)
        restore.end()
        job.batches.stage("setting attributes", manifest.header.directories + 1)
        for entry in manifest.reversed_directories():
            tree.set_attributes(entry, self._frozen)
        tree.sync()
        job.batches.stage("verifying", manifest.header.directories + 1 + manifest.header.files)
        job.batches.run((e for _, e in manifest.entries()), self._check)
        failures = self._archives.count_failures(job.archive)
        if failures:
            raise Incomplete(f"{shown(job.archive.root)}: {failures} entries could not be restored, all others are; "
                             "gsync archive status lists them, gsync archive get --retry retries them")

    def _bring(self, entry: ManifestEntry) -> None:
        job, tree, frozen = self._job, self._job.tree, self._frozen
        if tree.content_differs(entry, read=True) == "":
            if tree.attributes_differ(entry):
                tree.set_attributes(entry, frozen)
            return
        there = tree.look(entry.path)
        if there is not None and stat.S_ISDIR(there.st_mode):
            raise TreeError(entry.path, f"a directory is in the way of this {entry.word}; move it elsewhere")
        if not entry.has_content:
            if entry.link is not None and tree.look(entry.link) is None:
                raise StoreError(f"{shown(entry.path)}: hard link to {shown(entry.link)}, which is missing",
                                 Category.CORRUPT)
            job.restore.other(entry, frozen)
            return
        tries = 0
        while True:
            try:
                job.restore.file(entry, lambda into: job.vault.get(entry, into), frozen)
                return
            except StoreError as exc:
                if not job.batches.pause_for(exc, tries):
                    raise
                tries += 1

    def _check(self, batch: list[ManifestEntry]) -> list[tuple[bytes, str]]:
        job, bad = self._job, []
        for entry in batch:
            job.batches.pause_point()
            why = job.tree.content_differs(entry, read=self._verify is Verify.FULL)
            why = why or job.tree.attributes_differ(entry)
            if why:
                bad.append((entry.path, why))
        return bad
