"""purge: remove the copy on disk, once the vault is known to hold everything and the disk nothing else."""

from __future__ import annotations

from collections.abc import Callable

from gsync.base.errors import UsageError
from gsync.base.model import shown
from gsync.transfer.archive import eosfile
from gsync.transfer.archive.compare import beyond, differs
from gsync.transfer.archive.copy import in_vault
from gsync.transfer.archive.jobs import Job
from gsync.transfer.archive.manifest import ManifestEntry
from gsync.transfer.archive.outcome import ArchiveError, Verify
from gsync.transfer.archive.rows import Archives


class Purge:
    """One purge. retry: an earlier purge may have removed entries."""

    def __init__(self, job: Job, archives: Archives, verify: Verify, retry: bool) -> None:
        self._job, self._archives, self._verify = job, archives, verify
        self._more = "more " if retry else ""

    def run(self, now: Callable[[], int]) -> None:
        job = self._job
        manifest, tree = job.manifest, job.tree
        if self._verify is Verify.SIZE and not job.archive.checked:
            raise UsageError(f"{shown(job.archive.root)}: the vault was never read back; purge with --verify checksum")
        self._check_vault(now)
        self._check_disk()
        job.batches.stage("removing", manifest.header.directories + manifest.header.files)

        def remove(batch: list[ManifestEntry]) -> list[tuple[bytes, str]]:
            for entry in batch:
                job.batches.pause_point()
                tree.remove(entry)
            return []

        for entry in manifest.directories():
            if tree.look(entry.path) is not None:
                tree.open_up(entry.path)
        job.batches.run((e for _, e in manifest.entries(manifest.behind_directories())), remove)
        for entry in manifest.reversed_directories():
            if entry.path:
                tree.remove(entry)
        tree.sync()

    def _check_vault(self, now: Callable[[], int]) -> None:
        """Refuse the purge unless every file is whole and durable in the vault: a purge must lose nothing."""
        job = self._job
        manifest, read = job.manifest, self._verify is not Verify.SIZE
        job.batches.stage("checking the vault", manifest.header.directories + 1 + manifest.header.files)

        def check(batch: list[ManifestEntry]) -> list[tuple[bytes, str]]:
            bad = []
            for entry in batch:
                job.batches.pause_point()
                if in_vault(entry) and (why := job.vault.lacks(entry, read)):
                    bad.append((entry.path, why))
            return bad

        count = job.batches.run((e for _, e in manifest.entries()), check)
        content = job.vault.store.stat(job.vault.path(eosfile.MANIFEST))
        if content is None:
            self._archives.fail(job.archive, iter([(eosfile.MANIFEST, "is missing from the vault")]))
            count += 1
        if count:
            job.falls_to = "put"
            raise ArchiveError(f"{shown(job.archive.root)}: not purged, nothing {self._more}was removed: {count} "
                               "entries are missing or damaged in the vault; gsync archive status lists them, gsync "
                               "archive put --retry copies them again")
        if read:
            job.checked = now()

    def _check_disk(self) -> None:
        """Refuse the purge unless the disk holds exactly what was frozen: the vault has nothing else."""
        job = self._job
        manifest, tree = job.manifest, job.tree
        job.batches.stage("checking the disk", manifest.header.directories + 1 + manifest.header.files)

        def check(batch: list[ManifestEntry]) -> list[tuple[bytes, str]]:
            bad = []
            for entry in batch:
                job.batches.pause_point()
                if why := differs(job.archive, tree, entry):
                    bad.append((entry.path, why))
            return bad

        count = job.batches.run((e for _, e in manifest.entries()), check)
        more = beyond(manifest, tree)
        self._archives.fail(job.archive, ((path, "is not in the archive") for path in more))
        if count or more:
            raise ArchiveError(f"{shown(job.archive.root)}: not purged, nothing {self._more}was removed: "
                               f"{count + len(more)} entries on disk differ from the archive; gsync archive status "
                               "lists them")
