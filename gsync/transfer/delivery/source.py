"""The source of units: the ready folder in a store, the directories that its links point to, and fetching from them.

A link NIGHT/EXPOSURE in the ready folder marks the directory it points to as complete. The store follows no link; this
module follows them through the store, as the source's host would. Promise: anything that cannot be examined is an
error, never "not there". A fetched file gets its name only once it is whole and on the disk.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import BinaryIO, cast

from gsync.base.durable import make_dirs
from gsync.base.errors import UsageError
from gsync.base.fate import DISK
from gsync.base.log import get_logger
from gsync.base.model import shown
from gsync.link.link import parse_slave
from gsync.link.openssh import SshOptions, ssh_argv
from gsync.transfer.delivery import placement
from gsync.transfer.delivery.checksums import walk
from gsync.transfer.delivery.stopsignal import StopSignal
from gsync.transfer.delivery.units import OURS, Pattern, Unit
from gsync.transfer.queue.registry import Stores, open_store
from gsync.transfer.stores.store import Category, Item, Store, StoreError

_log = get_logger(__name__)

PART = OURS + b"part"         # a file being fetched, in its final directory
RSYNC_PART = OURS + b"rsync"  # rsync's folder for the same
_MOST_LINKS = 40
_SSH_URL = re.compile(r"(ssh://[^/]+)(/.*)", re.S)
_GLUSTER_URL = re.compile(r"(gluster://[^/]+/[^/]+)(?:/(.*))?", re.S)
_HOST_PATH = re.compile(r"((?:[^@/:]+@)?(?:\[[0-9A-Fa-f:.%]+\]|[^:/\[\]]+):)(/.*)", re.S)


@dataclass(frozen=True)
class SourceFile:
    """A file of a unit at the source. path: in the unit; real: in the store."""

    path: bytes
    real: bytes
    size: int
    mtime: int


@dataclass
class Listing:
    """A unit's content at the source: files and directories by their path in the unit; odd: anything else."""

    root: bytes = b""
    files: dict[bytes, SourceFile] = field(default_factory=dict)
    dirs: list[bytes] = field(default_factory=list)
    odd: list[bytes] = field(default_factory=list)

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files.values())


def rooted(text: str) -> tuple[str, bytes]:
    """The URL of the whole tree that a source is in, and the path in it. UsageError if it is not a source."""
    if text.startswith("/"):
        return "/", os.fsencode(os.path.normpath(text)).strip(b"/")
    for pattern in (_SSH_URL, _HOST_PATH):
        if found := pattern.fullmatch(text):
            return found[1] + "/", os.fsencode(os.path.normpath(found[2])).strip(b"/")
    if found := _GLUSTER_URL.fullmatch(text):
        return found[1], os.fsencode(os.path.normpath(found[2] or ".")).strip(b"/").removeprefix(b".")
    raise UsageError(f"{text!r}: not a source; expected /path, [user@]host:/path, ssh://[user@]host[:port]/path, "
                     "gluster://host/VOLUME/path, or NAME[:path] from gsync store list")


class ReadyFolder:
    """An open ready folder. Any error but a UsageError is a StoreError; STORE_DOWN concerns all of it.

    stop_signal: told of every piece that arrives; it raises when the work must stop.
    """

    def __init__(self, text: str, pattern: Pattern, stores: Stores, stop_signal: StopSignal, *, ssh_config: str = "",
                 rsync: str = "") -> None:
        options: Mapping[str, object] = {"ssh-config": ssh_config} if ssh_config else {}
        name, colon, path = text.partition(":")
        if "/" not in name and not path.startswith("/") and any(known.name == name for known in stores.all()):
            known = stores.known(name)
            text, options = known.url.rstrip("/") + ("/" + path.strip("/") if colon else ""), known.options
        self.url, self._folder = rooted(text)
        self.text, self._pattern, self._stop_signal, self._rsync = text, pattern, stop_signal, rsync
        self._ssh_config = str(options.get("ssh-config", ""))
        self._store: Store = open_store(self.url, "", options)
        self._warned: set[bytes] = set()
        self._resolved: dict[bytes, bytes] = {}

    def close(self) -> None:
        self._store.close()

    # reading

    def probe(self) -> None:
        self._store.probe()
        if self._item(self._folder) is None:
            raise StoreError(f"source {self.text}: no such folder", Category.STORE_DOWN)

    def locked(self, lock: str) -> bool:
        """Whether the lock file exists. An error of the store is raised, not taken for an answer."""
        path = os.fsencode(lock).strip(b"/")
        parent = self._real(os.path.dirname(path))
        return parent is not None and self._store.stat(_joined(parent, os.path.basename(path))) is not None

    def ready(self) -> list[Unit]:
        """The units whose links exist, sorted by name. A link that fits no unit is logged once."""
        self._resolved.clear()
        found = []
        for path in self._links(b"", self._pattern.depth):
            unit = self._pattern.match(path)
            if unit is not None:
                found.append(unit)
            elif path not in self._warned:
                self._warned.add(path)
                _log.warning("not a unit", source=self.text, link=shown(path), pattern=self._pattern.text)
        return found

    def _links(self, below: bytes, depth: int) -> Iterator[bytes]:
        folder = self._real(_joined(self._folder, below))
        if folder is None:
            if not below:
                raise StoreError(f"source {self.text}: no such folder", Category.STORE_DOWN)
            return
        items = list(self._listed(folder))
        self._stop_signal.check()
        for item in items:
            path = _joined(below, os.path.basename(item.path))
            if depth == 1 and stat.S_ISLNK(item.kind):
                yield path
            elif depth > 1 and stat.S_ISLNK(item.kind):
                target = self._item(_joined(folder, os.path.basename(item.path)))
                if target is not None and target.is_dir:
                    yield from self._links(path, depth - 1)
                else:
                    yield path  # fits no unit: `ready` logs it
            elif depth > 1 and item.is_dir:
                yield from self._links(path, depth - 1)

    def _listed(self, folder: bytes) -> Iterator[Item]:
        try:
            yield from self._store.list(folder)
        except StoreError as exc:
            if exc.errno not in DISK.gone:
                raise  # otherwise it was removed meanwhile

    def listing(self, unit: bytes) -> Listing | None:
        """The unit's present content; None if its link is gone: the source no longer keeps the unit. A dangling link or
        a missing ready folder is an error, since a disk may not be mounted."""
        self._resolved.clear()
        root = self._real(_joined(self._folder, unit))
        item = None if root is None else self._store.stat(root)
        if root is None or item is None:
            if self._item(self._folder) is None:
                raise StoreError(f"source {self.text}: no such folder", Category.STORE_DOWN)
            parent = self._real(_joined(self._folder, os.path.dirname(unit)))
            if parent is None or self._store.stat(_joined(parent, os.path.basename(unit))) is None:
                return None
            raise StoreError(f"source {self.text}: the target of the link {shown(unit)} is missing",
                             Category.TRANSIENT, errno.ENOENT)
        if not item.is_dir:
            raise StoreError(f"source {self.text}: {shown(unit)} does not point to a directory", Category.PERMANENT)
        found = Listing(root)
        self._list_into(found, root, b"", (root,))
        found.dirs.sort()
        return found

    def _list_into(self, found: Listing, folder: bytes, below: bytes, above: tuple[bytes, ...]) -> None:
        items = list(self._store.list(folder))
        self._stop_signal.check()
        for item in items:
            path, real = _joined(below, os.path.basename(item.path)), item.path
            if stat.S_ISLNK(item.kind):
                target = self._real(item.path)
                there = None if target is None else self._store.stat(target)
                if target is None or there is None or target in above:
                    found.odd.append(path)  # a dangling link, or a circle
                    continue
                item, real = there, target
            if item.is_file:
                found.files[path] = SourceFile(path, real, item.size, item.mtime)
            elif item.is_dir:
                found.dirs.append(path)
                self._list_into(found, real, path, (*above, real))
            else:
                found.odd.append(path)

    def _item(self, path: bytes) -> Item | None:
        real = self._real(path)
        return None if real is None else self._store.stat(real)

    def _real(self, path: bytes) -> bytes | None:
        """The path with all links resolved; None if a part of it is missing."""
        done, rest, links = b"", [part for part in path.split(b"/") if part], 0
        while rest:
            part = rest.pop(0)
            if part == b".":
                continue
            if part == b"..":
                done = os.path.dirname(done)
                continue
            here = _joined(done, part)
            if here in self._resolved:
                done = self._resolved[here]
                continue
            item = self._store.stat(here)
            if item is None:
                return None
            if not stat.S_ISLNK(item.kind):
                if item.is_dir:
                    self._resolved[here] = here
                done = here
                continue
            links += 1
            if links > _MOST_LINKS:
                raise StoreError(f"source {self.text}: {shown(path)}: too many links", Category.PERMANENT, errno.ELOOP)
            target = item.target or b""
            if target.startswith(b"/"):
                if self.url.startswith("gluster:"):
                    raise StoreError(f"source {self.text}: {shown(here)} is an absolute link, which cannot be "
                                     "followed in a volume", Category.PERMANENT)
                done = b""
            rest = [each for each in target.split(b"/") if each] + rest
        return done

    # fetching

    def mirror(self, listing: Listing, folder: bytes, digests_wrong: frozenset[bytes] = frozenset()) -> int:
        """Make the folder match the listing; return the number of bytes fetched. Present files, by size and time, are
        not fetched again, except those named as wrong. Files that the source lacks are removed."""
        make_dirs(folder)
        self._clear(listing, folder, digests_wrong)
        for name in listing.dirs:
            with suppress(FileExistsError):
                os.mkdir(os.path.join(folder, name), 0o700)
        wanted = [file for file in listing.files.values() if differs(file, folder)]
        if self._rsync and wanted:
            self._run_rsync(listing, folder)
            for file in listing.files.values():
                if differs(file, folder):
                    raise StoreError(f"source {self.text}: {shown(file.path)} changed while rsync fetched it",
                                     Category.TRANSIENT)
        else:
            for file in wanted:
                self.fetch(file, os.path.join(folder, file.path))
        return sum(file.size for file in wanted)

    def _clear(self, listing: Listing, folder: bytes, wrong: frozenset[bytes]) -> None:
        placement.open_up(folder)
        dirs = set(listing.dirs)
        for name, mode in reversed(list(walk(folder))):
            path = os.path.join(folder, name)
            if stat.S_ISDIR(mode):
                if name not in dirs and os.path.basename(name) != RSYNC_PART:
                    with suppress(OSError):
                        os.rmdir(path)
            elif RSYNC_PART not in name.split(b"/") and (name not in listing.files or name in wrong):
                os.unlink(path)

    def fetch(self, file: SourceFile, target: bytes) -> None:
        """Fetch one file whole to the disk, with its time; replaces the target, never writes to it."""
        part = os.path.join(os.path.dirname(target), PART)
        with suppress(FileNotFoundError):
            os.unlink(part)
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with open(fd, "wb", buffering=0) as into, self._stop_signal.watch(self.close):
                try:
                    content = self._store.get(file.real, cast(BinaryIO, _Counted(into, self._stop_signal.check)))
                except StoreError as exc:
                    if exc.errno == errno.ENOENT:
                        raise StoreError(f"source {self.text}: {shown(file.path)} disappeared while it was fetched",
                                         Category.TRANSIENT, errno.ENOENT) from exc
                    raise
                if content.size != file.size:
                    raise StoreError(f"source {self.text}: {shown(file.path)} changed while it was fetched: "
                                     f"{content.size} bytes instead of {file.size}", Category.TRANSIENT)
                os.utime(into.fileno(), ns=(file.mtime, file.mtime))
                os.fsync(into.fileno())
            os.rename(part, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(part)
            raise

    def _run_rsync(self, listing: Listing, folder: bytes) -> None:
        argv = rsync_argv(self._rsync, self.url, listing.root, folder, self._ssh_config, self._stop_signal.timeout)
        _log.debug("rsync", source=self.text, folder=shown(listing.root))
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   start_new_session=True)
        said = b""
        assert process.stdout is not None
        try:
            with self._stop_signal.watch(lambda: _signal_group(process.pid, signal.SIGTERM)):
                while piece := process.stdout.read1(1 << 16):  # type: ignore[attr-defined]
                    said = (said + piece)[-2000:]
                    self._stop_signal.check()
                status = process.wait()
        except BaseException:
            _end(process)
            raise
        finally:
            process.stdout.close()
        if status != 0:
            last = [line for line in said.decode("utf-8", "replace").splitlines() if line.strip()][-2:]
            # 5, 10, 12, 30, 35, 255: the connection; others may concern one file.
            category = Category.STORE_DOWN if status in (5, 10, 12, 30, 35, 255) else Category.TRANSIENT
            raise StoreError(f"source {self.text}: rsync exited with status {status}: {'; '.join(last)}", category)
        for name in [name for name, _mode in walk(folder) if os.path.basename(name) == RSYNC_PART]:
            placement.remove(os.path.join(folder, name))


class _Counted:
    """A writer that reports each piece."""

    def __init__(self, into: object, tell: Callable[[int], None]) -> None:
        self._into, self._tell = into, tell

    def write(self, data: bytes) -> int:
        done = 0
        view = memoryview(data)
        while done < len(view):
            done += self._into.write(view[done:])  # type: ignore[attr-defined]
        self._tell(done)
        return done


def differs(file: SourceFile, folder: bytes) -> bool:
    """Whether the folder lacks the file, by size and time. OSError if that cannot be told."""
    try:
        st = os.lstat(os.path.join(folder, file.path))
    except (FileNotFoundError, NotADirectoryError):
        return True
    return not stat.S_ISREG(st.st_mode) or st.st_size != file.size or st.st_mtime_ns != file.mtime


def rsync_argv(program: str, url: str, root: bytes, folder: bytes, ssh_config: str, timeout: float) -> list[bytes]:
    """The command line for rsync from a directory of the store to a folder; names need no quoting (-s)."""
    argv = [os.fsencode(program), b"-rLtsO", b"--partial-dir=" + RSYNC_PART, b"--no-motd", b"--info=progress2",
            b"--timeout=%d" % max(1, int(timeout))]
    path = b"/" + root + b"/"
    if url == "/":
        return [*argv, b"--", path, folder + b"/"]
    slave = parse_slave(url)
    ssh = ssh_argv(slave, SshOptions(ssh_config or None))
    shell = " ".join("'" + word.replace("'", "''") + "'" for word in ssh)  # rsync's own quoting
    return [*argv, b"-e", os.fsencode(shell), b"--", os.fsencode(slave.target) + b":" + path, folder + b"/"]


def _end(process: subprocess.Popen[bytes]) -> None:
    """End rsync and its ssh, after a moment to save partial files in rsync's folder."""
    _signal_group(process.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)
    _signal_group(process.pid, signal.SIGKILL)
    process.wait()


def _signal_group(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, number)


def _joined(folder: bytes, name: bytes) -> bytes:
    return folder + b"/" + name if folder and name else folder or name
