"""Mounts of a GlusterFS volume on which inodes are reached by gfid, for one worker.

It lies in a mount namespace of the client process alone: nobody else sees it, it stays attached as long as that
process lives, and nothing is left of it afterwards, however this process ends. No cache stands between the worker and
the bricks (what a changelog points at must not be looked up in the past): the client's caching translators are passed
through (quick-read does not know how, and gets nothing to keep), and the kernel keeps no names, and attributes only for
as long as it takes to ask for them. Only for the reading of many files in one batch there is a second kind: there the
contents of a short file come with its lookup, and may be kept as long as the mount, which is no longer than the batch.
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
_ATTRIBUTES = 0.05  # s: what a lookup brought along need not be asked for again by the stat that follows
_KEPT = "32MB"      # of contents
_READERS = 4        # threads of the client that take requests
_GRACE = 5.0   # s that a client has to end
_LOOK = 0.02


def mount_argv(info: GlusterInfo, place: str, log: str, contents: bool = False) -> list[str]:
    """The client process; it ends with the thread that starts it, and once a part of the volume is away. contents: come
    with lookups. Unless told not to, the kernel keeps what was read of a file until its size or time is another one:
    both may stay, or be set back. quick-read does the same, though it is passed through (seen with 10.3)."""
    options = [f"{cache}.pass-through=true" for cache in _CACHES]
    options += [f"quick-read.cache-size={_KEPT}"] if contents else ["open-behind.pass-through=true",
                                                                    "quick-read.max-file-size=0"]
    passed = [*truthful(info.name), *(f"--xlator-option={info.name}-{option}" for option in options)]
    return ["unshare", "--mount", "--propagation", "private", "--", "setpriv", "--pdeathsig", "TERM", "--",
            "glusterfs", "--no-daemon", f"--volfile-server={info.host}", f"--volfile-id={info.name}", "--acl",
            "--aux-gfid-mount", f"--client-pid={CLIENT_PID}", f"--reader-thread-count={_READERS}",
            "--use-readdirp=no",  # what came with a listing is looked up again before it is opened
            "--entry-timeout=0", "--fopen-keep-cache=off", f"--attribute-timeout={_ATTRIBUTES}",
            "--negative-timeout=0", f"--log-file={log}", *passed, place]


class VolumeMount:
    """The mount, once `open` has been called; made anew when its process has ended. `place`: a folder for it."""

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
        anew, which ends the mount before: a client keeps pieces in mind that others have replaced."""
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
        """Which part of the volume is away, or else the last error in the client's log."""
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
