"""The meta volume: the directory `geo-rep/` on a file system that all nodes of a site have mounted.

Promise: if nothing is mounted there, or another file system than this node knows, that is Faulty, never an empty meta
volume: a node that lost the mount would otherwise take itself for the only one. Not here: its contents (session, lease,
volumes).
"""

from __future__ import annotations

import json
import os
import re
import threading
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from gsync.base.durable import make_dirs, replace_file
from gsync.base.errors import Faulty
from gsync.base.log import get_logger

_log = get_logger(__name__)

GEO_REP = "geo-rep"
_CACHED = 1.0  # seconds for which the clients of network file systems believe what they know of a file
_NETWORK = re.compile(r"(fuse|nfs|cifs|smb|9p|ceph|afs|lustre)")


def node_name() -> str:
    """The name of this node in the files of all nodes."""
    return os.uname().nodename


@dataclass(frozen=True)
class Mount:
    """A mounted file system; kind as in /proc/filesystems."""

    place: str
    kind: str


def mount_at(path: str) -> Mount | None:
    """The mount at exactly this path, from the kernel's list: its server need not answer."""
    place = os.path.abspath(path)
    place = os.path.join(os.path.realpath(os.path.dirname(place)), os.path.basename(place))
    found = None
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            before, _, after = line.partition(" - ")
            at = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), before.split()[4])
            if at == place:
                found = Mount(place, after.split()[0])  # of several, the last one is on top
    return found


class MetaVolume:
    """The meta volume at `mnt`. memory: the file in which this node remembers which file system that is."""

    def __init__(self, mnt: str, memory: str) -> None:
        self.mnt = mnt
        self.folder = os.path.join(mnt, GEO_REP)
        self._memory = memory

    @property
    def mounted(self) -> bool:
        return mount_at(self.mnt) is not None

    @property
    def cached(self) -> float:
        """Seconds for which another node may see an older state."""
        mount = mount_at(self.mnt)
        return _CACHED if mount is not None and _NETWORK.match(mount.kind) else 0.0

    def check(self) -> None:
        """Faulty unless it is mounted, answers, and is the one this node knows; the first one is remembered."""
        if not self.mounted:
            raise Faulty(f"meta volume {self.mnt} is not mounted; mount it (until then this node replicates nothing, "
                         "since another node may be active)")
        try:
            found = self._identity()
            known = self._known()
            if known is None and found is None:
                found = self._make_identity()
        except OSError as exc:
            raise Faulty(f"meta volume {self.mnt}: {exc.strerror}") from exc
        if known is None:
            data = json.dumps({"mnt": self.mnt, "id": found}).encode() + b"\n"
            replace_file(self._memory, data)
        elif found != known:
            raise Faulty(f"meta volume {self.mnt}: another file system was mounted there before; mount that one, or "
                         f"remove {self._memory} if this one is the meta volume from now on")

    def _known(self) -> str | None:
        try:
            with open(self._memory, encoding="utf-8") as file:
                values = json.load(file)
            return str(values["id"]) if values["mnt"] == self.mnt else None
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def _identity(self) -> str | None:
        try:
            with open(os.path.join(self.folder, "id"), encoding="ascii", errors="replace") as file:
                return file.read().strip()
        except FileNotFoundError:
            return None

    def _make_identity(self) -> str | None:
        """By link, so that all nodes read the identity that the first one wrote."""
        make_dirs(self.folder)
        new = os.path.join(self.folder, f"id.{uuid.uuid4()}")
        replace_file(new, f"{uuid.uuid4()}\n".encode())
        with suppress(FileExistsError):
            os.link(new, os.path.join(self.folder, "id"))
        os.unlink(new)
        return self._identity()


class Mirror:
    """Calls `write` with the latest data it is given, on its own thread: for files that other nodes read and that
    nobody here may wait for, even if the meta volume hangs."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._changed = threading.Condition()
        self._data: bytes | None = None
        self._ended = False
        # A daemon: a thread that is stuck in a dead mount must not keep the worker from ending.
        self._thread = threading.Thread(target=self._serve, name="mirror", daemon=True)
        self._thread.start()

    def show(self, data: bytes) -> None:
        with self._changed:
            self._data = data
            self._changed.notify()

    def close(self, patience: float = 1.0) -> None:
        """Write the last data, if that is possible soon."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        self._thread.join(patience)

    def _serve(self) -> None:
        failed = False
        while True:
            with self._changed:
                while self._data is None:
                    if self._ended:
                        return
                    self._changed.wait()
                data, self._data = self._data, None
            try:
                self._write(data)
                failed = False
            except OSError as exc:
                if not failed:
                    _log.warning("cannot write the status for the other nodes", error=exc)
                failed = True
