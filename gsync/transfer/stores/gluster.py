"""A store in a directory of a GlusterFS volume: a DirStore on a mount that only this process can see.

The client runs in a mount namespace of its own and lives as long as a pipe to this process: nothing of it is left,
however this process ends. On such a mount fsync reaches the bricks and syncfs does not, so a batch makes its files
durable one by one.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from gsync.base.errors import UsageError
from gsync.base.glusterfs import truthful
from gsync.link.link import Channel
from gsync.transfer.stores.dir import DirStore
from gsync.transfer.stores.store import Category, StoreError

_URL = re.compile(r"gluster://(?:\[(?P<host6>[0-9A-Fa-f:.%]+)\]|(?P<host>[^/:\[\]-][^/:\[\]]*))/"
                  r"(?P<volume>[A-Za-z0-9_][A-Za-z0-9_-]*)(?P<path>/.*)?", re.S)
_PLACE = "/mnt"     # the mount point, in the client's namespace only
# The shell ends with the client, and ends the client when our end of the pipe closes, however that happens.
_CLIENT = 'exec 3<&0; "$@" 3<&- & c=$!; { cat <&3; kill $c; } >/dev/null 2>&1 & wait $c'
_LOOK = 0.05        # s
_PATIENCE = 60.0


class GlusterStore(DirStore):
    """The directory that the URL names; it must exist."""

    kind = "gluster"

    def __init__(self, url: str, name: str = "") -> None:
        name = name or url
        match = _URL.fullmatch(url)
        if not match:
            raise UsageError(f"store {name}: expected gluster://HOST/VOLUME[/path]")
        host = match["host6"] or match["host"]
        argv = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", _CLIENT, "gsync", "glusterfs",
                "--no-daemon", f"--volfile-server={host}", f"--volfile-id={match['volume']}", "--acl",
                *truthful(match["volume"]), "--log-level=ERROR", "--log-file=/dev/stderr", _PLACE]
        try:
            self._client = Channel([os.fsencode(word) for word in argv])
        except FileNotFoundError as exc:
            raise StoreError(f"store {name}: {exc.filename!r} is not installed", Category.PERMANENT,
                             errno.ENOENT) from exc
        try:
            self._wait(name)
            root = f"/proc/{self._client.pid}/root{_PLACE}{match['path'] or ''}"
            super().__init__(os.fsencode(root.rstrip("/")), name, url)
        except BaseException:
            self._client.close()
            raise

    def _wait(self, name: str) -> None:
        end = time.monotonic() + _PATIENCE
        while not self._mounted():
            if self._client.ended(within=_LOOK) or time.monotonic() > end:
                self._client.close()
                said = [line for line in self._client.said() if "] E [" in line or "] C [" in line]
                why = said[-1].split("] ", 2)[-1][:200] if said else "no reason given"
                raise StoreError(f"store {name}: cannot be mounted: {why}", Category.STORE_DOWN)

    def _mounted(self) -> bool:
        try:
            with open(f"/proc/{self._client.pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
                return any(f" {_PLACE} " in line and " fuse.glusterfs " in line for line in file)
        except OSError:
            return False

    @contextmanager
    def batch(self) -> Iterator[None]:
        yield

    def close(self) -> None:
        super().close()
        self._client.close()
