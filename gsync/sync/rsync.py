"""The rsync engine: delta transfer for large files that the slave already has.

rsync reads from a folder of symlinks to /proc/<pid>/fd/<n>, so it sends the inodes that were opened and checked,
whatever happens to names meanwhile. It writes to limbo/link/<gfid>: new files, which the agent takes from there, and
temporary names that the agent has given to existing inodes. It moves bytes only; the agent sets attributes. The agent's
program starts its server side (gsync/slave/directory/rsync_server.py).
"""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from gsync.base.errors import GsyncError, SlaveError, Stopped, Transient, UsageError
from gsync.base.fate import SLAVE
from gsync.base.log import get_logger
from gsync.link.client import SlaveClient
from gsync.link.link import Link
from gsync.link.protocol import ANY_SIZE, LandedRow, MetaRow
from gsync.sync.engine import Flow, Report, Source
from gsync.sync.postbox import FileRequest, Result

_log = get_logger(__name__)

_MOST_FILES = 256  # open at once

# rsync must not outlive this process: it would keep writing into files that a new worker writes to.
_TIED = ("import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); parent = int(sys.argv[1]); "
         "os.getppid() == parent or os._exit(30); os.execvp(sys.argv[2], sys.argv[2:])")

_LOOK = 0.25  # seconds between two checks for a pause or a new rate

_PARTIAL = (23, 24)  # some files failed, or had gone
_LINK = (10, 12, 14, 20, 30, 35, 255)  # socket, protocol stream, IPC, signals, timeouts, ssh


@dataclass(frozen=True)
class RsyncSettings:
    """What the user can set: the program on this host, more options, and whether to log the statistics of each
    transfer."""

    command: str = "rsync"
    options: tuple[str, ...] = ()
    log: bool = False

    def there(self) -> bool:
        """Whether the program exists."""
        return shutil.which(self.command) is not None


def rsync_argv(command: str, reach: Sequence[bytes], source: bytes, rate: float | None, sparse: bool, noatime: bool,
               extra: Sequence[str]) -> list[bytes]:
    """The command line: from the folder of symlinks to limbo; rsync reads the list of files from stdin."""
    argv = [os.fsencode(command), b"-L", b"--inplace", b"--ignore-times", b"--files-from=-", b"--from0",
            b"--no-relative", b"--no-protect-args", b"--stats", b"--no-human-readable"]
    if sparse:
        argv.append(b"--sparse")
    if noatime:
        argv.append(b"--open-noatime")
    if rate is not None:
        argv.append(b"--bwlimit=%d" % max(1, rate // 1024))
    argv += map(os.fsencode, extra)
    return [*argv, *reach, source + b"/", b"slave:."]


@dataclass
class _File:
    """An open source file; `st` is how it was before the transfer."""

    request: FileRequest
    fd: int
    st: os.stat_result
    meta: MetaRow | None  # of a new file
    errno: int = 0
    message: str = ""

    @property
    def name(self) -> str:
        return self.request.gfid.hex()

    @property
    def sparse(self) -> bool:
        return self.st.st_blocks * 512 < self.st.st_size

    def changed(self) -> bool:
        return os.fstat(self.fd).st_ctime_ns != self.st.st_ctime_ns

    def fail(self, err: int, message: str) -> None:
        self.errno, self.message = err, message

    def result(self) -> Result:
        return Result(self.request, self.errno, self.message, 0 if self.errno else self.st.st_size, self.changed())


class _OtherRate(Exception):
    """The rate has changed since rsync was started."""


class RsyncEngine:
    """An Engine that runs rsync once or twice per box. SlaveError if there is no rsync here or there.

    A pause stops rsync. When the rate changes, a running transfer is restarted and resumes where it was.
    """

    direct = False

    def __init__(self, link: Link, client: SlaveClient, source: Source, epoch: int, flow: Flow,
                 settings: RsyncSettings | None = None) -> None:
        self._settings = settings or RsyncSettings()
        if not link.has_rsync() or not self._settings.there():
            raise SlaveError(f"slave {link.slave}: sync-method rsync needs rsync on both hosts; install it or use auto")
        self._link, self._client, self._source, self._flow = link, client, source, flow
        self._reach = link.rsync(epoch, client.ticket)
        self._noatime = _knows_noatime(self._settings.command)
        self._folder = tempfile.TemporaryDirectory(prefix="gsync-rsync-")
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._files_at_once = max(1, min(_MOST_FILES, soft // 8))
        self._lock = threading.Lock()
        self._running: subprocess.Popen[bytes] | None = None
        self._aborted = False

    # the engine's contract

    def move(self, box: Sequence[FileRequest], report: Report) -> None:
        for start in range(0, len(box), self._files_at_once):
            report(self._move(box[start:start + self._files_at_once]))

    def flush(self, report: Report) -> None:
        """`move` reports everything."""

    def abort(self) -> None:
        with self._lock:
            self._aborted = True
            if self._running is not None:
                self._running.kill()

    def close(self) -> None:
        self._folder.cleanup()

    # one run

    def _move(self, requests: Sequence[FileRequest]) -> list[Result]:
        results: list[Result] = []
        files: list[_File] = []
        try:
            for request in requests:
                try:
                    files.append(self._open(request))
                except OSError as exc:
                    results.append(Result(request, exc.errno or errno.EIO, exc.strerror or str(exc), 0, False))
            old = [file for file in files if file.meta is None]
            if old:
                for file, err in zip(old, self._client.expose([f.request.gfid for f in old]), strict=True):
                    if err:
                        file.fail(errno.ENOENT if err < 0 else err, "slave: " + (
                            "no such file" if err < 0 else os.strerror(err)))
            try:
                self._run([file for file in files if not file.errno])
            finally:
                if old:
                    self._client.unexpose([file.request.gfid for file in old])
            new = [file for file in files if file.meta is not None and not file.errno]
            for last in (False, False, True):
                new = self._land(new, last)
                if not new:
                    break
                for file in new:
                    self._look(file)
                self._run(new)
                new = [file for file in new if not file.errno]
            results += [file.result() for file in files]
        finally:
            for file in files:
                os.close(file.fd)
        return results

    def _open(self, request: FileRequest) -> _File:
        fd, st = self._source.open(request.gfid)
        try:
            file = _File(request, fd, st, None)
            self._look(file)
            return file
        except BaseException:
            os.close(fd)
            raise

    def _look(self, file: _File) -> None:
        """Note the present state of the source."""
        file.st = self._source.fstat(file.fd)
        if file.request.place == "N":
            st, xattrs = file.st, self._source.xattrs(file.request.gfid, file.fd, file.st)
            file.meta = MetaRow(file.request.gfid, st.st_mode, st.st_uid, st.st_gid, st.st_mtime_ns, st.st_atime_ns,
                                xattrs)

    def _land(self, new: Sequence[_File], last: bool) -> list[_File]:
        """Have the agent finish new files; returns those whose source changed, so that they must be sent again. If a
        source keeps changing, the last state that rsync got is taken and reported as changed."""
        rows = [LandedRow(file.meta, ANY_SIZE if last and file.changed() else file.st.st_size)
                for file in new if file.meta is not None]
        again: list[_File] = []
        for file, err in zip(new, self._client.landed(rows) if rows else (), strict=True):
            if err == errno.EAGAIN and not last and file.changed():
                again.append(file)
            elif err:
                file.fail(errno.EIO if err < 0 else err, "slave: the file did not arrive" if err < 0 else
                          "slave: " + os.strerror(err))
        return again

    def _run(self, files: Sequence[_File]) -> None:
        """Let rsync move these files; mark those that it could not move."""
        for sparse in (False, True):
            part = [file for file in files if file.sparse is sparse]
            if part:
                self._run_alike(part, sparse)

    def _run_alike(self, files: Sequence[_File], sparse: bool) -> None:
        links = [os.path.join(self._folder.name, file.name) for file in files]
        for file, path in zip(files, links, strict=True):
            os.symlink(f"/proc/{os.getpid()}/fd/{file.fd}", path)
        try:
            status, out, said = self._rsync("\0".join(file.name for file in files).encode(), sparse)
        finally:
            for path in links:
                os.unlink(path)
        sent = re.search(r"^Total bytes sent: (\d+)", out, re.M)
        if self._settings.log:
            _log.info("rsync", files=len(files), **_performance(out))
        self._flow.pay(int(sent[1]) if sent else 0)  # it kept to a share; others may have used all
        if status == 0:
            return
        if status not in _PARTIAL:
            raise self._error(status, said)
        by_name = {file.name: file for file in files}
        blamed = False
        for line in said:
            for name in re.findall(r"\b[0-9a-f]{32}\b", line):
                if name in by_name and not line.startswith("WARNING:"):
                    blamed = True
                    number = re.search(r"\((\d+)\)", line)
                    err = int(number[1]) if number else errno.ENOENT if "vanished" in line else errno.EIO
                    if err in SLAVE.full:
                        raise SlaveError(f"slave {self._link.slave}: {os.strerror(err)}")
                    by_name[name].fail(err, line)
        if not blamed:  # rsync does not say which ones: all of them count as failed
            for file in files:
                file.fail(errno.EIO, "; ".join(said[-2:]) or f"rsync exited with status {status}")

    def _rsync(self, names: bytes, sparse: bool) -> tuple[int, str, list[str]]:
        """Run rsync, and again each time the rate changes: exit status, stdout, lines of stderr."""
        while True:
            try:
                return self._rsync_at(self._flow.share, names, sparse)
            except _OtherRate:
                continue

    def _rsync_at(self, share: float | None, names: bytes, sparse: bool) -> tuple[int, str, list[str]]:
        settings = self._settings
        argv = rsync_argv(settings.command, self._reach, os.fsencode(self._folder.name), share, sparse,
                          self._noatime, settings.options)
        env = {name: value for name, value in os.environ.items() if not name.startswith("RSYNC_")}
        with self._lock:
            if self._aborted:
                raise Stopped
            process = self._running = subprocess.Popen(
                [sys.executable.encode(), b"-I", b"-S", b"-c", _TIED.encode(), b"%d" % os.getpid(), *argv],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                env={**env, "LC_ALL": "C"})
        try:
            out, err = self._watch(process, share, names)
        finally:
            with self._lock:
                self._running = None
                if process.poll() is None:
                    process.kill()
                    process.wait()
        if self._aborted:
            raise Stopped
        said = [line for line in err.decode("utf-8", "replace").splitlines() if line.strip()]
        return process.returncode, out.decode("utf-8", "replace"), said

    def _watch(self, process: subprocess.Popen[bytes], share: float | None, names: bytes) -> tuple[bytes, bytes]:
        """Feed and drain rsync until it exits: a pause stops it, a new rate ends it."""
        given: bytes | None = names
        paused = False
        try:
            while True:
                try:
                    return process.communicate(given, timeout=_LOOK)
                except subprocess.TimeoutExpired:
                    given = None  # it is kept
                if self._flow.paused() != paused:
                    paused = not paused
                    # Only the sender: its children must not stay stopped for ever if we are killed now.
                    process.send_signal(signal.SIGSTOP if paused else signal.SIGCONT)
                elif not paused and self._flow.share != share:
                    process.terminate()
                    process.communicate()
                    raise _OtherRate
        finally:
            if paused:
                process.send_signal(signal.SIGCONT)

    def _error(self, status: int, said: Sequence[str]) -> GsyncError:
        """The error for an rsync that failed as a whole."""
        words = "; ".join(said[-3:]) or f"rsync exited with status {status}"
        for line in said:
            number = re.search(r"\((\d+)\)$", line)
            if number and int(number[1]) in SLAVE.full:
                return SlaveError(f"slave {self._link.slave}: {os.strerror(int(number[1]))} (rsync)")
        if status == 1:
            return UsageError(f"slave {self._link.slave}: rsync: {words}")
        if status in _LINK or status < 0:
            return Transient(f"slave {self._link.slave}: rsync: {words}")
        return SlaveError(f"slave {self._link.slave}: rsync: {words}")


def _performance(out: str) -> dict[str, int]:
    """The figures of --stats, in bytes."""
    words = {"size": "Total transferred file size", "literal": "Literal data", "matched": "Matched data",
             "sent": "Total bytes sent", "received": "Total bytes received"}
    found = ((key, re.search(rf"^{word}: (\d+)", out, re.M)) for key, word in words.items())
    return {key: int(match[1]) for key, match in found if match}


def _knows_noatime(command: str) -> bool:
    """Whether the rsync here can read without touching the access time (from 3.2.2 on)."""
    done = subprocess.run([command, "--help"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return b"--open-noatime" in done.stdout
