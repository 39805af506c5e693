"""Archives: a tree is frozen, put into a vault, purged from the disk, and got back the same.

Promise: nothing is removed from the disk unless every file is durable in the vault and its content there was read and
found to be the frozen one; an operation that was killed is shown as failed, and --retry looks at what is there, keeps
what is good and goes on from the first entry that is not. put and purge stop at the first error; get brings back all
that can be, and names the rest. Memory does not grow with the number of entries.
Not here: what a tree is on disk (tree), the manifest's form (manifest), what is known of all archives (archives), how a
store keeps things (store).
"""

from __future__ import annotations

import json
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from enum import Enum

from gsync.base.errors import GsyncError, UsageError
from gsync.base.log import get_logger
from gsync.base.model import shown
from gsync.transfer.archive import eosfile, manifestcopy
from gsync.transfer.archive.batches import Batches, JobOptions, Killed
from gsync.transfer.archive.compare import DryRun, beyond, differs, look
from gsync.transfer.archive.copy import Vault, in_vault, item_of
from gsync.transfer.archive.disk import DiskTree, TreeError
from gsync.transfer.archive.manifest import Manifest, ManifestEntry, ManifestError, ManifestHeader, ManifestWriter
from gsync.transfer.archive.restore import Restore
from gsync.transfer.archive.rows import Archive, Archives
from gsync.transfer.queue.requests import TransferState
from gsync.transfer.stores.store import Category, Store, StoreError

log = get_logger("gsync.archive")


class Verify(Enum):
    """How far a copy is believed. Each level holds those before it."""

    SIZE = "size"          # it is there, and as long as it should be
    CHECKSUM = "checksum"  # its bytes were read again and have the checksum of the manifest
    FULL = "full"          # get: what is on the disk was read again too; put: the tree as well


class Incomplete(GsyncError):
    """An operation that did all it could, and could not do all."""

    exit_code = 1


class ArchiveError(GsyncError):
    """An operation that stopped at an error; what it had done before stays done."""

    exit_code = 1


# what each operation may follow
_AFTER = {"put": {("create", True)}, "purge": {("put", True), ("get", True)}, "get": {("purge", True)}}
# and with --retry, beside its own failure: a purge that stopped half-way may be taken back, or the vault completed
_AFTER_WITH_RETRY = {"put": {("purge", False)}, "get": {("purge", False)}}


class Archiver:
    """Does the operations. open_store: a store by its name or URL. told(archive): called from time to time, and
    whenever the stage changes."""

    def __init__(self, archives: Archives, open_store: Callable[[str], Store], options: JobOptions,
                 verify: Verify = Verify.CHECKSUM, told: Callable[[Archive], None] = lambda archive: None) -> None:
        self.archives = self._archives = archives
        self._open_store = open_store
        self._options = options
        self._verify = verify
        self._told = told

    # create

    def create(self, root: bytes, store: str) -> Archive:
        """Freeze the tree at `root` and make its manifest. Undone if it fails; one that was killed is begun anew."""
        with self._new(root, store) as (tree, vault, known):
            archive = known or self._archives.add("archive", root, store, vault.place, "create")
            with self._archives.lock(archive, "create"):
                if known is not None:
                    tree.thaw_all()
                    tree.root_mtime = self._root_mtime(known)
                    tree.set_marker(None)
                    archive = self._archives.change(archive, store=store)
                return self._create(self._archives.begin(archive, "create"), tree, vault)

    def survey(self, root: bytes, store: str) -> tuple[int, int]:
        """What `create` would freeze, entries and bytes; refuses what it would refuse, and changes nothing."""
        with self._new(root, store) as (tree, _, _):
            return tree.survey(lambda entries, size: None)

    @contextmanager
    def _new(self, root: bytes, store: str) -> Iterator[tuple[DiskTree, Vault, Archive | None]]:
        """The tree and the vault of an archive to be made, and what a create that was killed has left of it."""
        known = self._archives.at(root)
        if known is not None and (known.operation, known.done) != ("create", False):
            raise UsageError(f"{shown(root)}: already an archive ({known.state}); end it with gsync archive delete")
        self._refuse_nested(root)
        tree = DiskTree(root)
        try:
            strange = tree.marker()
            if known is None and strange is not None:
                raise UsageError(f"{shown(root)}: holds {shown(strange)} of an archive unknown here; "
                                 "gsync archive rebuild adopts it from its vault")
            vault = self._vault(store, self._archives.place_of(root))
            if vault.store.stat(vault.path(b"")) is not None:
                raise UsageError(f"{shown(root)}: the vault {store} already holds an archive of it at "
                                 f"{shown(vault.place)}; gsync archive rebuild adopts it")
            yield tree, vault, known
        finally:
            tree.close()

    def _refuse_nested(self, root: bytes) -> None:
        """UsageError if a directory above or below is an archive, known here or not."""
        around = self._archives.around(root)
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

    def _create(self, archive: Archive, tree: DiskTree, vault: Vault) -> Archive:
        batches = self._batches(archive)
        try:
            batches.stage("looking")
            entries, _ = tree.survey(batches.count)
            batches.stage("freezing", entries)
            frozen = tree.can_freeze()
            writer = ManifestWriter(self._archives.manifest_path(archive))
            try:
                for entry in tree.entries(frozen, batches.count):
                    writer.add(entry)
                manifest = writer.finish(ManifestHeader(archive.root, archive.store, archive.place, time.time_ns(),
                                                os.geteuid(), os.getegid()))
            finally:
                writer.close()
            tree.set_marker(eosfile.INIT, eosfile.lines(manifest, vault.store.url))
            tree.append_log(_log_line("create", f"{manifest.header.directories} directories, "
                                                f"{manifest.header.files} files, {manifest.header.bytes} bytes"))
        except BaseException as exc:
            batches.close()
            tree.thaw_all()
            tree.set_marker(None)
            self._archives.end(archive, *ending(exc))
            self._archives.remove(archive)
            raise
        finally:
            batches.close()
        return self._archives.end(archive, TransferState.DONE, frozen=int(frozen), size=manifest.header.bytes,
                                  entries=manifest.header.directories + manifest.header.files)

    # put

    def put(self, root: bytes, retry: bool = False) -> Archive:
        """Copy everything into the vault and see that it is durable there."""
        with self._job(root, "put", retry) as job:
            manifest, vault, tree = job.manifest, job.vault, job.tree
            read = self._verify is not Verify.SIZE
            job.batches.stage("making directories", manifest.header.directories + 1)
            job.batches.run(manifest.directories(), lambda batch: self._put_directories(job, batch))
            job.batches.stage("copying", manifest.header.files)
            behind = manifest.behind_directories()

            def copy(entry: ManifestEntry) -> None:
                if self._verify is Verify.FULL and (why := tree.attributes_differ(entry)):
                    raise TreeError(entry.path, f"was changed after the archive was created ({why})")
                if retry and not entry.has_content:  # a wrong one may be there
                    vault.store.delete(vault.path(entry.path))
                if entry.has_content:
                    with tree.open_file(entry.path) as source:
                        vault.put(entry, source)
                    return
                if entry.link is not None and entry.kind == stat.S_IFREG:
                    vault.store.link(vault.path(entry.path), vault.path(entry.link))
                else:  # of a symlink with several names, only the manifest knows that they are one
                    vault.store.symlink(vault.path(entry.path), item_of(entry, vault.path(entry.path)))

            def put(batch: list[ManifestEntry]) -> list[tuple[bytes, str]]:
                todo = [e for e in batch if in_vault(e)]
                if retry:
                    todo = [e for e in todo if vault.lacks(e, read)]
                self._store_all(job, todo, copy)
                for entry in todo:
                    job.batches.pause_point()
                    if why := vault.lacks(entry, read):
                        raise ArchiveError(f"{shown(entry.path)}: {why}, although it was just put there")
                return []

            others = (e for _, e in manifest.entries(behind))
            job.batches.run((e for e in others if e.link is None), put)
            job.batches.run((e for _, e in manifest.entries(behind) if e.link is not None), put)
            job.batches.stage("saving the manifest")
            manifestcopy.put(vault, manifest)
            if vault.store.kind != "tar":  # there, what came into a directory has changed its times
                job.batches.run(manifest.reversed_directories(), lambda batch: self._put_attributes(job, batch))
            job.checked = time.time_ns() if read else 0
        return job.archive

    def _put_directories(self, job: _Job, batch: list[ManifestEntry]) -> list[tuple[bytes, str]]:
        def make(entry: ManifestEntry) -> None:
            path = job.vault.path(entry.path)
            item = item_of(entry, path)
            job.vault.store.mkdir(path, item if job.vault.store.kind == "tar" else replace(item, mode=0o700))

        self._store_all(job, batch, make)
        return []

    def _put_attributes(self, job: _Job, batch: list[ManifestEntry]) -> list[tuple[bytes, str]]:
        def make(entry: ManifestEntry) -> None:
            job.vault.store.set_attrs(job.vault.path(entry.path), item_of(entry, job.vault.path(entry.path)))

        self._store_all(job, batch, make)
        return []

    def _store_all(self, job: _Job, entries: list[ManifestEntry], store: Callable[[ManifestEntry], None]) -> None:
        """Have the store take entries, together durable. What passes is tried again after a pause, from the entry on
        at which it happened, the rest is raised after what came before is durable."""
        left = entries
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
            except StoreError as exc:  # at the end of the batch: what is in it may be lost
                at, error = 0, exc
            if error is None:
                return
            left = left[at:]
            if not job.batches.pause_for(error, tries):
                raise error
            tries += 1

    # purge

    def purge(self, root: bytes, retry: bool = False) -> Archive:
        """Remove the disk copy, once everything is known to be in the vault and the disk to hold nothing else."""
        with self._job(root, "purge", retry) as job:
            manifest, tree = job.manifest, job.tree
            if self._verify is Verify.SIZE and not job.archive.checked:
                raise UsageError(f"{shown(root)}: the vault was never read back; purge with --verify checksum")
            job.more = "more " if retry else ""
            self._check_vault(job)
            self._check_disk(job)
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
        return job.archive

    def _check_vault(self, job: _Job) -> None:
        """Nothing may be lost by a purge: refused unless each file is durable in the vault, whole."""
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
            raise ArchiveError(f"{shown(job.archive.root)}: not purged, nothing {job.more}was removed: {count} entries "
                               "are missing or damaged in the vault; gsync archive status lists them, gsync "
                               "archive put --retry copies them again")
        if read:
            job.checked = time.time_ns()

    def _check_disk(self, job: _Job) -> None:
        """Nothing that is not in the vault may be removed: what is on the disk is what was frozen, and no more."""
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
            raise ArchiveError(f"{shown(job.archive.root)}: not purged, nothing {job.more}was removed: "
                               f"{count + len(more)} entries on disk differ from the archive; gsync archive status "
                               "lists them")

    # get

    def get(self, root: bytes, retry: bool = False) -> Archive:
        """Bring everything back. What the vault cannot give is named, and the rest is there."""
        with self._job(root, "get", retry) as job:
            manifest, tree, frozen = job.manifest, job.tree, job.archive.frozen and job.tree.can_freeze()
            if not retry and (strange := next(tree.walk(), None)) is not None:
                raise ArchiveError(f"{shown(root)}: {shown(strange.path)} is in the way; the directory must be empty "
                                   "(gsync archive get --retry keeps existing good entries)")
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
                        self._bring(job, entry, frozen)
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
                tree.set_attributes(entry, bool(frozen))
            tree.sync()
            job.batches.stage("verifying", manifest.header.directories + 1 + manifest.header.files)
            job.batches.run((e for _, e in manifest.entries()), lambda batch: self._check_got(job, batch))
            failures = self._archives.count_failures(job.archive)
            if failures:
                raise Incomplete(f"{shown(root)}: {failures} entries could not be restored, all others are; "
                                 "gsync archive status lists them, gsync archive get --retry retries them")
        return job.archive

    def _bring(self, job: _Job, entry: ManifestEntry, frozen: bool) -> None:
        tree = job.tree
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

    def _check_got(self, job: _Job, batch: list[ManifestEntry]) -> list[tuple[bytes, str]]:
        bad = []
        for entry in batch:
            job.batches.pause_point()
            why = job.tree.content_differs(entry, read=self._verify is Verify.FULL)
            why = why or job.tree.attributes_differ(entry)
            if why:
                bad.append((entry.path, why))
        return bad

    # delete, rebuild

    def delete(self, root: bytes) -> None:
        """Remove the vault's copy, and give the tree back to its user."""
        with self._job(root, "delete", True, needs_manifest=False) as job:
            job.batches.stage("deleting", job.archive.entries)
            vault = job.vault
            with vault.store.batch():
                self._delete_below(job, vault.path(b""))
            job.batches.stage("thawing")
            job.tree.thaw_all()
            job.restore.end()
            job.tree.set_marker(None)
            job.gone = True

    def _delete_below(self, job: _Job, path: bytes) -> None:
        """A directory of the store with all that is in it, children first; what is not there is fine."""
        stack = [(path, False)]
        while stack:
            job.batches.pause_point()
            at, listed = stack.pop()
            if listed:
                job.vault.store.delete(at)
                continue
            if job.vault.store.stat(at) is None:  # a delete that was killed got so far
                continue
            stack.append((at, True))
            for item in job.vault.store.list(at):
                if item.kind == stat.S_IFDIR:
                    stack.append((item.path, False))
                else:
                    job.vault.store.delete(item.path)

    def rebuild(self, root: bytes, store: str | None) -> Archive:
        """Make a lost manifest, or all that is known of an archive, again from its vault: from the copy of the
        manifest there, or, if that is lost too, from the members."""
        archive, name, vault = self._to_rebuild(root, store)
        made = not os.path.isdir(root)
        if made:
            os.makedirs(root)
        known = archive is not None
        archive = archive or self._archives.add("archive", root, name, vault.place, "rebuild")
        with self._archives.lock(archive, "rebuild"):
            manifest = manifestcopy.fetch(vault, self._archives.manifest_path(archive), ManifestHeader(
                root, name, vault.place, time.time_ns()))
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
                tree.set_marker(eosfile.marker("purge" if empty else "get", empty),
                                eosfile.lines(manifest, vault.store.url))
            tree.append_log(_log_line("rebuild", f"{header.directories} directories, {header.files} files"))
        finally:
            tree.close()
        return self._archives.change(archive, entries=header.directories + header.files, size=header.bytes)

    def _to_rebuild(self, root: bytes, store: str | None) -> tuple[Archive | None, str, Vault]:
        """What is known of it here, and in which store it lies. UsageError if that holds nothing of it."""
        archive = self._archives.at(root)
        name = store or (archive.store if archive else None)
        if name is None:
            raise UsageError(f"{shown(root)}: name its store: gsync archive rebuild {shown(root)} --vault STORE")
        self._refuse_nested(root)
        vault = self._vault(name, self._archives.place_of(root))
        if vault.store.stat(vault.path(b"")) is None:
            raise UsageError(f"{shown(root)}: store {name} holds no archive of it")
        return archive, name, vault

    # dry runs: what an operation would do. They refuse what it would refuse, and change nothing

    def look(self, root: bytes, operation: str, retry: bool = False) -> DryRun:
        """What put, purge or get would do."""
        archive = self._archives.the(root)
        self._refuse(archive, operation, retry)
        tree = DiskTree(root)
        try:
            return look(operation, archive, self._archives.manifest(archive), self._vault(archive.store, archive.place),
                        tree, self._verify is not Verify.SIZE)
        finally:
            tree.close()

    def look_at_copy(self, root: bytes) -> DryRun:
        """What delete would remove from the vault."""
        archive = self._archives.the(root)
        sizes = [item.size if item.is_file else 0
                 for item in manifestcopy.members(self._vault(archive.store, archive.place))]
        return len(sizes), sum(sizes), []

    def look_at_lost(self, root: bytes, store: str | None) -> DryRun:
        """What rebuild would find in the vault."""
        _, name, vault = self._to_rebuild(root, store)
        with tempfile.TemporaryDirectory() as folder:
            header = manifestcopy.fetch(vault, os.fsencode(os.path.join(folder, "manifest")), ManifestHeader(
                root, name, vault.place, time.time_ns())).header
        return header.directories + header.files, header.bytes, []

    # what every operation does

    @contextmanager
    def _job(self, root: bytes, operation: str, retry: bool, needs_manifest: bool = True) -> Iterator[_Job]:
        """Around an operation: one at a time; its state file is `.err` before anything is done, and `.done` after,
        and then the database says so."""
        archive = self._archives.the(root)
        with self._archives.lock(archive, operation):
            archive = self._archives.settle(self._archives.the(root), alone=True)
            self._refuse(archive, operation, retry)
            manifest = self._archives.manifest(archive) if needs_manifest else None
            vault = self._vault(archive.store, archive.place)
            tree = DiskTree(root)
            tree.root_mtime = self._root_mtime(archive)
            before, batches = archive, None
            try:
                archive = self._archives.begin(archive, operation, verify=self._verify.value)
                batches = self._batches(archive)
                job = _Job(archive, manifest, vault, tree, batches)
                try:
                    tree.set_marker(eosfile.marker(operation, False), None if tree.marker() or manifest is None else
                                    eosfile.lines(manifest, vault.store.url))
                    tree.append_log(_log_line(operation, "resumed" if retry else "started"))
                    yield job
                    if not job.gone:
                        tree.set_marker(eosfile.marker(operation, True))
                        tree.append_log(_log_line(operation, "done"))
                except BaseException as exc:
                    batches.close()
                    self._failed(job, before, exc)
                    raise
                # Last, so that whoever is killed before it goes on with --retry, and leaves the root's mtime as it was.
                job.archive = self._archives.end(archive, TransferState.DONE,
                                                 checked=before.checked if job.checked is None else job.checked)
                if job.gone:
                    self._archives.remove(archive)
            finally:
                if batches is not None:
                    batches.close()
                tree.close()

    def _failed(self, job: _Job, before: Archive, exc: BaseException) -> None:
        state, reason = ending(exc)
        job.archive = self._archives.end(job.archive, state, reason, operation=job.falls_to or job.archive.operation,
                                         checked=0 if job.falls_to else before.checked)
        with suppress(GsyncError, OSError):  # the database says it already
            job.tree.set_marker(eosfile.marker(job.archive.operation, False))
            job.tree.append_log(_log_line(job.archive.operation, f"failed: {reason}"))

    def _refuse(self, archive: Archive, operation: str, retry: bool) -> None:
        where = shown(archive.root)
        state = (archive.operation, archive.done)
        if operation == "delete":
            return
        if state in _AFTER[operation] and not retry:
            return
        if retry and state in {(operation, False), *_AFTER_WITH_RETRY.get(operation, ())}:
            return
        if state == (operation, False):
            raise UsageError(f"{where}: the last {operation} failed ({archive.reason or 'it was killed'}); "
                             f"resume it with gsync archive {operation} --retry")
        needed = " or ".join(sorted(f"{name} done" if name != "create" else "created" for name, _ in _AFTER[operation]))
        hint = "" if archive.done else f"; resume that with gsync archive {archive.operation} --retry"
        raise UsageError(f"{where}: cannot {operation} an archive whose state is: {archive.state}; it must be: {needed}"
                         + (f", or for --retry: {operation} failed" if retry else hint))

    def _vault(self, name: str, place: bytes) -> Vault:
        store = self._open_store(name)
        store.probe()
        return Vault(store, place)

    def _root_mtime(self, archive: Archive) -> int | None:
        """As the manifest has it: a job that is killed while it writes at the root may leave another one."""
        with suppress(OSError, ManifestError):
            return next(Manifest(self._archives.manifest_path(archive)).directories()).mtime
        return None

    def _batches(self, archive: Archive) -> Batches:
        return Batches(self._archives, archive, self._options, self._told)


class _Job:
    """What an operation works with."""

    def __init__(self, archive: Archive, manifest: Manifest | None, vault: Vault, tree: DiskTree,
                 batches: Batches) -> None:
        self.archive = archive
        self._manifest = manifest
        self.vault = vault
        self.tree = tree
        self.restore = Restore(tree)
        self.batches = batches
        self.checked: int | None = None
        self.falls_to = ""  # the operation that has to be done again if this one fails
        self.gone = False
        self.more = ""  # "more " if an earlier try may have removed something

    @property
    def manifest(self) -> Manifest:
        assert self._manifest is not None
        return self._manifest


def ending(exc: BaseException) -> tuple[TransferState, str]:
    """How a job ended that did not do its work, and why."""
    if isinstance(exc, Killed):
        return TransferState.KILLED, str(exc)
    if isinstance(exc, KeyboardInterrupt):
        return TransferState.KILLED, "interrupted"
    return TransferState.FAILED, str(exc) if isinstance(exc, GsyncError) else f"{type(exc).__name__}: {exc}"


def _log_line(operation: str, text: str) -> str:
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return f"{now} {operation} {json.dumps(text)[1:-1]}"
