"""Archives: a tree is frozen, copied to a vault, purged from disk, and restored unchanged.

Promise: purge removes nothing from the disk until every file is durable in the vault and its content there was read
back and matches the frozen one. A killed operation is shown as failed; --retry keeps the good entries and resumes at
the first other one. put and purge stop at the first error; get restores all it can and names the rest. Memory does not
grow with the number of entries. Not here: the operations themselves (create, put, purge, get, rebuild), their common
frame (jobs), which operation may follow which (steps).
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable

from gsync.transfer.archive import manifestcopy
from gsync.transfer.archive.batches import JobOptions
from gsync.transfer.archive.compare import DryRun, look
from gsync.transfer.archive.create import Create
from gsync.transfer.archive.disk import DiskTree
from gsync.transfer.archive.get import Get
from gsync.transfer.archive.jobs import Job, Jobs
from gsync.transfer.archive.outcome import Verify
from gsync.transfer.archive.purge import Purge
from gsync.transfer.archive.put import Put
from gsync.transfer.archive.rebuild import Rebuild
from gsync.transfer.archive.rows import Archive, Archives
from gsync.transfer.archive.statefiles import StateFiles
from gsync.transfer.archive.steps import refuse
from gsync.transfer.stores.store import Store


class Archiver:
    """Runs the operations. The arguments are those of Jobs."""

    def __init__(self, archives: Archives, open_store: Callable[[str], Store], options: JobOptions,
                 verify: Verify = Verify.CHECKSUM, told: Callable[[Archive], None] = lambda archive: None) -> None:
        self.archives = self._archives = archives
        self._jobs = Jobs(archives, open_store, options, verify, told)

    def create(self, root: bytes, store: str) -> Archive:
        """Freeze the tree at `root` and make its manifest. A failed create is undone; a killed one starts over."""
        return Create(self._jobs).create(root, store)

    def survey(self, root: bytes, store: str) -> tuple[int, int]:
        """Count the entries and bytes that `create` would freeze. Refuses what `create` would refuse, and changes
        nothing."""
        return Create(self._jobs).survey(root, store)

    def put(self, root: bytes, retry: bool = False) -> Archive:
        """Copy everything into the vault and check that it is durable there."""
        with self._jobs.run(root, "put", retry) as job:
            Put(job, self._jobs.verify, retry).run(self._jobs.clock.now)
        return job.archive

    def purge(self, root: bytes, retry: bool = False) -> Archive:
        """Remove the copy on disk, once the vault is known to hold everything and the disk nothing else."""
        with self._jobs.run(root, "purge", retry) as job:
            Purge(job, self._archives, self._jobs.verify, retry).run(self._jobs.clock.now)
        return job.archive

    def get(self, root: bytes, retry: bool = False) -> Archive:
        """Restore everything. Entries that the vault cannot return are named; the rest is restored."""
        with self._jobs.run(root, "get", retry) as job:
            Get(job, self._archives, self._jobs.verify, retry).run()
        return job.archive

    def delete(self, root: bytes) -> None:
        """Remove the vault's copy, and unfreeze the user's tree."""
        with self._jobs.run(root, "delete", True, needs_manifest=False) as job:
            job.batches.stage("deleting", job.archive.entries)
            vault = job.vault
            with vault.store.batch():
                _delete_below(job, vault.path(b""))
            job.batches.stage("thawing")
            job.tree.thaw_all()
            job.restore.end()
            StateFiles(job.tree).set(None)
            job.gone = True

    def rebuild(self, root: bytes, store: str | None) -> Archive:
        """Rebuild a lost manifest, or the whole record of an archive, from its vault: from the copy of the manifest
        there or, if that is lost too, from the members."""
        return Rebuild(self._jobs, root, store).run()

    # dry runs: each refuses what its operation would refuse, and changes nothing

    def look(self, root: bytes, operation: str, retry: bool = False) -> DryRun:
        """Find what put, purge or get would do."""
        archive = self._archives.the(root)
        refuse(archive, operation, retry)
        tree = DiskTree(root)
        try:
            return look(operation, archive, self._archives.manifest(archive),
                        self._jobs.vault(archive.store, archive.place),
                        tree, self._jobs.verify is not Verify.SIZE)
        finally:
            tree.close()

    def look_at_copy(self, root: bytes) -> DryRun:
        """Find what delete would remove from the vault."""
        archive = self._archives.the(root)
        sizes = [item.size if item.is_file else 0
                 for item in manifestcopy.members(self._jobs.vault(archive.store, archive.place))]
        return len(sizes), sum(sizes), []

    def look_at_lost(self, root: bytes, store: str | None) -> DryRun:
        """Find what rebuild would find in the vault."""
        found = Rebuild(self._jobs, root, store)
        with tempfile.TemporaryDirectory() as folder:
            header = found.fetch(os.fsencode(os.path.join(folder, "manifest"))).header
        return header.directories + header.files, header.bytes, []


def _delete_below(job: Job, path: bytes) -> None:
    """Delete a directory of the store and all below it, children first. A missing entry is fine."""
    stack = [(path, False)]
    while stack:
        job.batches.pause_point()
        at, listed = stack.pop()
        if listed:
            job.vault.store.delete(at)
            continue
        if job.vault.store.stat(at) is None:  # a killed delete got this far
            continue
        stack.append((at, True))
        for item in job.vault.store.list(at):
            if item.kind == stat.S_IFDIR:
                stack.append((item.path, False))
            else:
                job.vault.store.delete(item.path)
