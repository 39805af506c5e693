"""The common frame of every operation on an archive: its lock, state file, log and request in the queue.

Promise: one operation at a time works on an archive. Its state file is `.err` before anything is done and `.done`
after, and only then does the database say DONE. A killed operation is shown as failed. Not here: the operations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from gsync.base.clock import Clock
from gsync.base.errors import GsyncError
from gsync.transfer.archive import eosfile
from gsync.transfer.archive.batches import Batches, JobOptions
from gsync.transfer.archive.copy import Vault
from gsync.transfer.archive.disk import DiskTree
from gsync.transfer.archive.manifest import Manifest, ManifestError
from gsync.transfer.archive.outcome import Verify, ending, log_line
from gsync.transfer.archive.restore import Restore
from gsync.transfer.archive.rows import Archive, Archives
from gsync.transfer.archive.statefiles import StateFiles
from gsync.transfer.archive.steps import refuse
from gsync.transfer.queue.requests import TransferState
from gsync.transfer.stores.store import Store


class Job:
    """The objects that an operation works with."""

    def __init__(self, archive: Archive, manifest: Manifest | None, vault: Vault, tree: DiskTree,
                 batches: Batches) -> None:
        self.archive = archive
        self._manifest = manifest
        self.vault = vault
        self.tree = tree
        self.restore = Restore(tree)
        self.batches = batches
        self.checked: int | None = None
        self.falls_to = ""  # the operation that must be done again if this one fails
        self.gone = False

    @property
    def manifest(self) -> Manifest:
        assert self._manifest is not None
        return self._manifest


class Jobs:
    """Makes jobs. open_store opens a store by its name or URL. told(archive) is called from time to time, and whenever
    the stage changes."""

    def __init__(self, archives: Archives, open_store: Callable[[str], Store], options: JobOptions, verify: Verify,
                 told: Callable[[Archive], None]) -> None:
        self.archives = archives
        self.verify = verify
        self._open_store = open_store
        self._options = options
        self._told = told

    @property
    def clock(self) -> Clock:
        return self.archives.transfers.clock

    @contextmanager
    def run(self, root: bytes, operation: str, retry: bool, needs_manifest: bool = True) -> Iterator[Job]:
        """Run one operation at a time: its state file is `.err` before anything is done and `.done` after, and then the
        database says DONE."""
        archive = self.archives.the(root)
        with self.archives.lock(archive, operation):
            archive = self.archives.settle(self.archives.the(root), alone=True)
            refuse(archive, operation, retry)
            manifest = self.archives.manifest(archive) if needs_manifest else None
            vault = self.vault(archive.store, archive.place)
            tree = DiskTree(root)
            tree.root_mtime = self.root_mtime(archive)
            before, batches = archive, None
            try:
                archive = self.archives.begin(archive, operation, verify=self.verify.value)
                batches = self.batches(archive)
                job = Job(archive, manifest, vault, tree, batches)
                try:
                    StateFiles(tree).set(eosfile.marker(operation, False),
                                         None if StateFiles(tree).present() or manifest is None else
                                         eosfile.lines(manifest, vault.store.url))
                    StateFiles(tree).append_log(log_line(operation, "resumed" if retry else "started",
                                                         self.clock.now()))
                    yield job
                    if not job.gone:
                        StateFiles(tree).set(eosfile.marker(operation, True))
                        StateFiles(tree).append_log(log_line(operation, "done", self.clock.now()))
                except BaseException as exc:
                    batches.close()
                    self._failed(job, before, exc)
                    raise
                # Last: an operation killed before this resumes with --retry, and the root keeps its mtime.
                job.archive = self.archives.end(archive, TransferState.DONE,
                                                checked=before.checked if job.checked is None else job.checked)
                if job.gone:
                    self.archives.remove(archive)
            finally:
                if batches is not None:
                    batches.close()
                tree.close()

    def _failed(self, job: Job, before: Archive, exc: BaseException) -> None:
        state, reason = ending(exc)
        job.archive = self.archives.end(job.archive, state, reason, operation=job.falls_to or job.archive.operation,
                                        checked=0 if job.falls_to else before.checked)
        with suppress(GsyncError, OSError):  # the database says it already
            StateFiles(job.tree).set(eosfile.marker(job.archive.operation, False))
            StateFiles(job.tree).append_log(log_line(job.archive.operation, f"failed: {reason}", self.clock.now()))

    def vault(self, name: str, place: bytes) -> Vault:
        """Open the part of a store that holds an archive."""
        store = self._open_store(name)
        store.probe()
        return Vault(store, place)

    def root_mtime(self, archive: Archive) -> int | None:
        """The root's mtime by the manifest. A job killed while it writes at the root may leave another one on the
        disk."""
        with suppress(OSError, ManifestError):
            return next(Manifest(self.archives.manifest_path(archive)).directories()).mtime
        return None

    def batches(self, archive: Archive) -> Batches:
        """The batches of a job on the archive."""
        return Batches(self.archives, archive, self._options, self._told)
