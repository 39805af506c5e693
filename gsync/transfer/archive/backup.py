"""Backups: a live tree is copied into a store; an entry that cannot be copied is skipped.

Promise: a skipped entry is named and holds up nothing else. A file that changes while it is copied counts as not
copied. An unchanged file that is already at the destination is not sent again. A backup deletes nothing at the
destination. A killed backup is shown as failed, there too. The time window is compared in integers only.
Not here: freezing, purging, restoring (archiver).
"""

from __future__ import annotations

import io
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from gsync.base.errors import UsageError
from gsync.base.model import NS, shown
from gsync.transfer.archive import eosfile
from gsync.transfer.archive.batches import Batches, Failures, JobOptions
from gsync.transfer.archive.copy import item_of
from gsync.transfer.archive.disk import DiskTree, TreeError, WalkedEntry
from gsync.transfer.archive.inventory import Inventory
from gsync.transfer.archive.manifest import Manifest, ManifestEntry, ManifestHeader, ManifestWriter
from gsync.transfer.archive.outcome import Incomplete, Verify, ending
from gsync.transfer.archive.rows import Archive, Archives
from gsync.transfer.queue.registry import StorePath
from gsync.transfer.queue.requests import TransferState
from gsync.transfer.stores.store import Category, Store, StoreError

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_STORED = (stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR)


@dataclass(frozen=True, slots=True)
class Window:
    """Selects entries whose time (mtime or ctime) is at most `seconds` before the start of the backup; 0 selects
    all."""

    seconds: int = 0
    time: str = "mtime"

    @classmethod
    def parse(cls, text: str | None, time: str) -> Window:
        """Parse a whole number and s, m, h or d, such as "2d"; UsageError for anything else."""
        if time not in ("mtime", "ctime"):
            raise UsageError(f"--by {time}: expected mtime or ctime")
        if text is None:
            return cls(0, time)
        match = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
        if match is None or not int(match[1]):
            raise UsageError(f"--newer-than {text}: give a whole number and s, m, h or d, as 2d")
        return cls(int(match[1]) * _UNITS[match[2]], time)

    def holds(self, st: os.stat_result, began: int) -> bool:
        """Whether the window selects an entry with these times; began: ns."""
        when = st.st_mtime_ns if self.time == "mtime" else st.st_ctime_ns
        return not self.seconds or when >= began - self.seconds * NS


class Backup:
    """Makes backups. open_store and told are those of Archiver."""

    def __init__(self, archives: Archives, open_store: Callable[[str], Store], options: JobOptions,
                 verify: Verify = Verify.CHECKSUM, told: Callable[[Archive], None] = lambda archive: None) -> None:
        self._archives, self._open_store, self._options = archives, open_store, options
        self._verify, self._told = verify, told

    def run(self, root: bytes, destination: StorePath, window: Window = Window(),
            excluded: tuple[str, ...] = ()) -> Archive:
        """Copy the tree at `root` to a place. Raises Incomplete if entries could not be copied."""
        self._refuse_inside(root, destination)
        store = self._open_store(destination.store)
        store.probe()
        archive = self._archives.backup(root, destination.store, destination.path) or self._archives.add(
            "backup", root, destination.store, destination.path, "backup")
        with self._archives.lock(archive, "backup"):
            tree = DiskTree(root)
            archive = self._archives.begin(archive, "backup", verify=self._verify.value, seconds=window.seconds,
                                           time=window.time, excluded_xattrs=list(excluded))
            batches = Batches(self._archives, archive, self._options, self._told)
            try:
                job = _Job(self._archives, archive, store, tree, batches, self._verify, window, excluded)
                manifest = job.copy()
            except BaseException as exc:
                batches.close()
                self._archives.end(archive, *ending(exc))
                raise
            finally:
                batches.close()
                tree.close()
            header, failures = manifest.header, self._archives.count_failures(archive)
            archive = self._archives.end(
                archive, TransferState.FAILED if failures else TransferState.DONE,
                f"{failures} entries failed" if failures else "",
                entries=header.directories + header.files, size=header.bytes)
        if failures:
            raise Incomplete(f"{shown(root)}: {failures} entries could not be backed up, all others were; "
                             f"gsync archive status {archive.id[:12]} lists them, the next backup retries them")
        return archive

    def survey(self, root: bytes, destination: StorePath, window: Window) -> tuple[int, int]:
        """Count the entries and bytes that `run` would consider, including those already there."""
        self._refuse_inside(root, destination)
        self._open_store(destination.store).probe()
        tree, began = DiskTree(root), self._archives.transfers.clock.now()
        entries = size = 0
        try:
            for found in tree.walk():
                if stat.S_ISDIR(found.st.st_mode) or window.holds(found.st, began):
                    entries += 1
                    size += found.st.st_size if stat.S_ISREG(found.st.st_mode) else 0
        finally:
            tree.close()
        return entries, size

    @staticmethod
    def _refuse_inside(root: bytes, destination: StorePath) -> None:
        local = destination.store if destination.store.startswith("/") else ""
        path = os.path.realpath(os.path.join(os.fsencode(local), destination.path)) if local else b""
        if path and (path + b"/").startswith(root.rstrip(b"/") + b"/"):
            raise UsageError(f"{shown(path)}: the destination is inside the source {shown(root)}")


class _Job:
    """One backup."""

    def __init__(self, archives: Archives, archive: Archive, store: Store, tree: DiskTree, batches: Batches,
                 verify: Verify, window: Window, excluded: tuple[str, ...]) -> None:
        self._archives, self._archive, self._store, self._tree = archives, archive, store, tree
        self._batches, self._verify, self._window, self._excluded = batches, verify, window, excluded
        self._began = self._archives.transfers.clock.now()
        self._done: ManifestWriter | None = None
        self._lock = threading.Lock()

    def copy(self) -> Manifest:
        """Copy the whole tree; return the manifest of the copied entries."""
        self._shown_state(eosfile.BACKUP_ERR + b"0", [b"running, or its process died\n"])
        path = self._archives.manifest_path(self._archive)
        todo, self._done = self._look(path + b".todo"), ManifestWriter(path)
        try:
            self._batches.stage("making directories", todo.header.directories + 1)
            self._batches.run(todo.directories(), lambda batch: self._each(batch, self._make_directory))
            self._batches.stage("copying", todo.header.files)
            behind = todo.behind_directories()
            for first in (True, False):  # a hard link comes after its first name
                self._batches.run((e for _, e in todo.entries(behind) if (e.link is None) is first),
                                  lambda batch: self._each(batch, self._copy))
            self._batches.stage("setting attributes", todo.header.directories + 1)
            self._batches.run(todo.reversed_directories(), lambda batch: self._each(batch, self._set_attributes))
            manifest = self._done.finish(replace(todo.header, excluded_xattrs=self._excluded))
        finally:
            self._done.close()
            os.unlink(todo.path)
        self._tell(manifest)
        with suppress(StoreError):  # writing the state files changed the root's times
            self._set_attributes(next(manifest.directories()))
        return manifest

    def _look(self, path: bytes) -> Manifest:
        """List the entries to copy, as a manifest without checksums."""
        self._batches.stage("looking")
        writer = ManifestWriter(path)
        failures: Failures = []

        def failed(exc: TreeError) -> None:
            failures.append((exc.path, exc.why))
            if len(failures) >= 1000:
                self._archives.fail(self._archive, iter(failures))
                failures.clear()

        def wanted(found: WalkedEntry) -> bool:
            return self._window.holds(found.st, self._began) and not (
                b"/" not in found.path and found.name.startswith(eosfile.BACKUP_PREFIX))

        try:
            excluded = frozenset(os.fsencode(name) for name in self._excluded)
            for entry in Inventory(self._tree).entries(False, self._batches.count, excluded, wanted, failed,
                                                       hashed=False):
                writer.add(entry)
            self._archives.fail(self._archive, iter(failures))
            since = self._began - self._window.seconds * NS if self._window.seconds else 0
            return writer.finish(ManifestHeader(self._archive.root, self._archive.store, self._archive.place,
                                                self._began,
                                                os.geteuid(), os.getegid(), window=self._window.time if since else "",
                                                since=since))
        finally:
            writer.close()

    # entries

    def _each(self, batch: list[ManifestEntry], work: Callable[[ManifestEntry], ManifestEntry | None]) -> Failures:
        """Apply `work` to each entry, and name those that fail. A store that stays down ends the backup."""
        failures: Failures = []
        left = batch
        tries = 0
        while left:
            error, at, done = None, len(left), []
            with self._store.batch():
                for at, entry in enumerate(left):  # noqa: B007 - used below
                    self._batches.pause_point()
                    try:
                        if (copied := work(entry)) is not None:
                            done.append(copied)
                    except (StoreError, TreeError) as exc:
                        if isinstance(exc, StoreError) and exc.category in (Category.TRANSIENT, Category.STORE_DOWN):
                            error = exc
                            break
                        failures.append((entry.path, exc.why if isinstance(exc, TreeError) else str(exc)))
            failures += self._kept(done)
            if error is None:
                break
            if self._batches.pause_for(error, tries):
                left, tries = left[at:], tries + 1
            elif error.category is Category.STORE_DOWN:
                raise error
            else:
                failures.append((left[at].path, str(error)))
                left, tries = left[at + 1:], 0
        return failures

    def _kept(self, done: list[ManifestEntry]) -> Failures:
        """Read the copied entries back. Returns those that the store does not hold; the others are recorded as done."""
        failures: Failures = []
        for entry in done:
            if entry.has_content and self._verify is not Verify.SIZE:
                with suppress(StoreError):
                    if self._store.checksum(self._path(entry)) == entry.sha256:
                        self._note(entry)
                        continue
                failures.append((entry.path, "has another checksum at the destination"))
            else:
                self._note(entry)
        return failures

    def _note(self, entry: ManifestEntry) -> None:
        assert self._done is not None
        with self._lock:
            self._done.add(entry)

    def _path(self, entry: ManifestEntry) -> bytes:
        return b"/".join(part for part in (self._archive.place, entry.path) if part)

    def _make_directory(self, entry: ManifestEntry) -> ManifestEntry:
        path = self._path(entry)
        if path:
            there = self._store.stat(path)
            if there is None or not there.is_dir or self._store.kind == "tar":
                item = item_of(entry, path)
                self._store.mkdir(path, item if self._store.kind == "tar" else replace(item, mode=item.mode | 0o700))
        return entry

    def _set_attributes(self, entry: ManifestEntry) -> None:
        if entry.path or self._archive.place:  # the root of a store does not belong to the backup
            self._store.set_attrs(self._path(entry), item_of(entry, self._path(entry)))

    def _copy(self, entry: ManifestEntry) -> ManifestEntry | None:
        path = self._path(entry)
        if entry.kind not in _STORED:
            return entry  # a FIFO, socket or device is only in the manifest
        there = self._store.stat(path)
        linked = entry.link is not None and entry.kind == stat.S_IFREG
        if there is not None and (there.kind != entry.kind or linked):
            self._store.delete(path)
            there = None
        if entry.link is not None and linked:
            self._store.link(path, self._path(replace(entry, path=entry.link)))
            return entry
        if entry.kind == stat.S_IFLNK:
            if there is None or there.target != entry.target:
                self._store.delete(path)
                self._store.symlink(path, item_of(entry, path))
            return entry
        if there is not None and (there.size, there.mtime) == (entry.size, entry.mtime):
            if (there.mode, there.uid, there.gid, there.xattrs) != (entry.mode, entry.uid, entry.gid, entry.xattrs):
                self._store.set_attrs(path, item_of(entry, path))
            kept = self._store.content(path)
            if kept is not None:
                return replace(entry, sha256=kept.sha256)
            return entry if self._verify is Verify.SIZE else replace(entry,
                                                                     sha256=self._tree.content_of(entry.path)[1])
        with self._tree.open_file(entry.path) as source:
            before = os.fstat(source.fileno())
            entry = replace(entry, size=before.st_size, mtime=before.st_mtime_ns, ctime=before.st_ctime_ns)
            content = self._store.put(path, source, item_of(entry, path), replace=True)
            now = os.fstat(source.fileno())
        if (now.st_size, now.st_mtime_ns, content.size) != (entry.size, entry.mtime, entry.size):
            raise TreeError(entry.path, "changed while it was copied")
        return replace(entry, sha256=content.sha256)

    # the state at the destination, under EOS's names

    def _tell(self, manifest: Manifest) -> None:
        url = self._store.url
        self._write(eosfile.BACKUP_FILE, eosfile.lines(manifest, url, self._window.seconds))
        failures = self._archives.failures(self._archive)
        if failures:
            self._shown_state(eosfile.BACKUP_ERR + b"%d" % len(failures),
                              [f"{shown(path)}: {why}\n".encode() for path, why in failures])
        else:
            self._shown_state(eosfile.BACKUP_DONE, [])

    def _shown_state(self, name: bytes, lines: list[bytes]) -> None:
        """Leave exactly this state file at the destination."""
        self._write(name, iter(lines))
        for item in list(self._store.list(self._archive.place)):
            there = item.path.rpartition(b"/")[2]
            if there != name and (there == eosfile.BACKUP_DONE or there.startswith(eosfile.BACKUP_ERR)):
                self._store.delete(item.path)

    def _write(self, name: bytes, lines: Iterator[bytes]) -> None:
        path = b"/".join(part for part in (self._archive.place, name) if part)
        with self._store.batch():
            self._store.put(path, io.BufferedReader(_Lines(lines)), replace=True)


class _Lines(io.RawIOBase):
    """Lines as a readable file."""

    def __init__(self, lines: Iterator[bytes]) -> None:
        self._lines, self._rest = lines, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        while not self._rest:
            line = next(self._lines, None)
            if line is None:
                return 0
            self._rest = line
        count = min(len(view), len(self._rest))
        view[:count], self._rest = self._rest[:count], self._rest[count:]
        return count

