"""Mounts of a GlusterFS volume on which inodes are reached by gfid, for one worker.

A mount lives in a mount namespace of the client process alone: nobody else sees it, it stays attached as long as that
process lives, and it leaves no trace, however this process ends. No cache stands between the worker and the bricks,
since a changelog's names must not be looked up in the past: the client's caching translators are passed through
(quick-read cannot, and is given no memory). The kernel caches no names, and attributes only for as long as it takes to
ask for them. A second kind serves only to read many files in one batch: there a short file's content comes with its
lookup, and may be cached for the life of the mount, which is at most the batch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable

from gsync.base.errors import Faulty, Transient
from gsync.base.glusterfs import CLIENT_PID, truthful
from gsync.master.gluster.info import away
from gsync.state.gluster import GlusterInfo

_CACHES = ("md-cache", "io-cache", "readdir-ahead", "read-ahead", "nl-cache")
_ATTRIBUTES = 0.05  # s: the stat after a lookup need not ask again for what the lookup brought along
_KEPT = "32MB"      # of cached contents
_READERS = 4        # threads of the client that take requests
_GRACE = 5.0   # s that a client has to exit
_LOOK = 0.02


def mount_argv(info: GlusterInfo, place: str, log: str, contents: bool = False) -> list[str]:
    """The client process. It exits with the thread that starts it, and once a subvolume is unreachable. contents: come
    with lookups. By default the kernel keeps a file's pages until its size or time changes, but both may stay the same,
    or be set back; so it is told not to. quick-read does the same, though it is passed through (seen with 10.3)."""
    options = [f"{cache}.pass-through=true" for cache in _CACHES]
    options += [f"quick-read.cache-size={_KEPT}"] if contents else ["open-behind.pass-through=true",
                                                                    "quick-read.max-file-size=0"]
    passed = [*truthful(info.name), *(f"--xlator-option={info.name}-{option}" for option in options)]
    return ["unshare", "--mount", "--propagation", "private", "--", "setpriv", "--pdeathsig", "TERM", "--",
            "glusterfs", "--no-daemon", f"--volfile-server={info.host}", f"--volfile-id={info.name}", "--acl",
            "--aux-gfid-mount", f"--client-pid={CLIENT_PID}", f"--reader-thread-count={_READERS}",
            "--use-readdirp=no",  # an entry from a listing is looked up again before it is opened
            "--entry-timeout=0", "--fopen-keep-cache=off", f"--attribute-timeout={_ATTRIBUTES}",
            "--negative-timeout=0", f"--log-file={log}", *passed, place]


class VolumeMount:
    """The mount, once `open` has been called; made again when its process has exited. `place`: a folder for it."""

    def __init__(self, info: GlusterInfo, place: str, patience: float = 60.0,
                 meanwhile: Callable[[], None] = lambda: None, contents: bool = False) -> None:
        self._info, self._place = info, place
        self._patience = patience
        self._log = place + ".log"
        self._meanwhile, self._contents = meanwhile, contents
        self._client: subprocess.Popen[bytes] | None = None
        self._root = -1

    @property
    def alive(self) -> bool:
        return self._client is not None and self._client.poll() is None

    def open(self) -> int:
        """A new descriptor of the volume's root. Transient if it cannot be mounted now. A sharded volume is mounted
        again each time, which ends the mount before: a client caches pieces that others have replaced."""
        if self._info.sharded or not self.alive:
            self.close()
            self._mount()
        return os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._root)

    def _mount(self) -> None:
        os.makedirs(self._place, 0o700, exist_ok=True)
        try:
            argv = mount_argv(self._info, self._place, self._log, self._contents)
            self._client = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                            stderr=subprocess.DEVNULL)
        except FileNotFoundError as exc:
            raise Faulty(f"volume {self._info.name} cannot be mounted: {exc.filename} is not installed") from None
        end = time.monotonic() + self._patience
        while not self._mounted(self._client.pid):
            if self._client.poll() is not None or time.monotonic() > end:
                self.close()
                raise Transient(f"volume {self._info.name} cannot be mounted from {self._info.host}: "
                                f"{self._complaint()}")
            self._meanwhile()
            time.sleep(_LOOK)
        self._root = os.open(f"/proc/{self._client.pid}/root{self._place}",
                             os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def _mounted(self, pid: int) -> bool:
        try:
            with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
                return any(f" {self._place} " in line and " fuse.glusterfs " in line for line in file)
        except OSError:
            return False

    def _complaint(self) -> str:
        """The unreachable part of the volume, or else the last error in the client's log."""
        missing = away(self._info)
        if missing:
            return f"a part of it is unreachable: {', '.join(map(str, missing))}"
        try:
            with open(self._log, encoding="utf-8", errors="replace") as file:
                lines = [line.strip() for line in file if "] E [" in line]
        except OSError:
            lines = []
        return (lines[-1].split("] ", 2)[-1][:200] if lines else "no reason is given") + f"; see {self._log}"

    def close(self) -> None:
        if self._root >= 0:
            os.close(self._root)
            self._root = -1
        if self._client is not None:
            self._client.send_signal(signal.SIGTERM)
            try:
                self._client.wait(_GRACE)
            except subprocess.TimeoutExpired:
                self._client.kill()
                self._client.wait()
            self._client = None
