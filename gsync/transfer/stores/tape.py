"""Holds a vault's tars: in its directory, or by commands in the manner of hsi and htar.

Commands are words, run without a shell; {name} stands for the tar's name at the back end, {file} for a local file.
put-command and get-command move a tar. size-command prints the size in bytes of the tar at the back end, and fails if
there is none. delete-command removes it. read-command (optional) prints {size} bytes from {offset} on.
With commands, a tar counts as kept once size-command reports its whole size; then the local tar is removed.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import re
import shlex
import subprocess
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, cast

from gsync.base.durable import fsync_dir, replace_file
from gsync.base.errors import UsageError
from gsync.transfer.stores.store import Category, StoreError

_STAGED_MOST = 4     # tars fetched for reading
_TIMEOUT = 86400.0   # s to wait for a tape


class Tape:
    """root: the vault's directory. UsageError if some commands are set but a required one is not."""

    OPTIONS = ("put-command", "get-command", "size-command", "delete-command", "read-command", "command-timeout")
    _NEEDED = ("put-command", "get-command", "size-command", "delete-command")

    def __init__(self, name: str, root: str, options: Mapping[str, Any]) -> None:
        self._name, self._root = name, root
        self._commands = {key: shlex.split(str(options[key])) for key in self.OPTIONS[:-1] if options.get(key)}
        if self._commands and (missing := [key for key in self._NEEDED if key not in self._commands]):
            raise UsageError(f"store {name}: {', '.join(missing)} must be set as well")
        try:
            self._timeout = float(options.get("command-timeout", _TIMEOUT))
        except ValueError:
            value = options["command-timeout"]
            raise UsageError(f"store {name}: command-timeout {value!r}: expected a number of seconds") from None
        self._lock = threading.Lock()
        self._staged: OrderedDict[str, str] = OrderedDict()

    def close(self) -> None:
        for path in self._staged.values():
            with suppress(FileNotFoundError):
                os.unlink(path)
        self._staged.clear()

    def probe(self) -> None:
        """Nothing to check: a command shows its errors when it is used."""

    def keep(self, path: str, name: str, size: int) -> None:
        """Take a whole, durable tar under its name."""
        if not self._commands:
            os.rename(path, os.path.join(self._root, name))
            fsync_dir(self._root)
            return
        self._run("put-command", file=path, name=name)
        if (held := self._size(name)) != size:
            raise StoreError(f"store {self._name}: put-command succeeded, but {name} has {held} bytes there, not "
                             f"{size}", Category.TRANSIENT)
        os.unlink(path)

    def keep_index(self, body: bytes, name: str) -> None:
        """Copy the index to the back end, so that the vault can be read without this host."""
        if self._commands:
            path = os.path.join(self._root, ".part.index")  # one name is enough: the caller holds the vault's lock
            replace_file(path, body)
            self._run("put-command", file=path, name=name)
            os.unlink(path)

    def holds(self, name: str, size: int) -> bool:
        if not self._commands:
            try:
                return os.stat(os.path.join(self._root, name)).st_size == size
            except FileNotFoundError:
                return False
        return self._size(name) == size

    def delete(self, name: str) -> None:
        if self._commands:
            self._run("delete-command", name=name)
            with self._lock:
                staged = self._staged.pop(name, None)
        else:
            staged = os.path.join(self._root, name)
        if staged is not None:
            with suppress(FileNotFoundError):
                os.unlink(staged)

    @contextmanager
    def open(self, name: str, offset: int, size: int) -> Iterator[BinaryIO]:
        """Open the tar at offset. CORRUPT if the tar is missing."""
        if not size:
            yield io.BytesIO()
        elif "read-command" in self._commands and name not in self._staged:
            done = self._start("read-command", name=name, offset=str(offset), size=str(size))
            with done:
                assert done.stdout is not None
                yield cast("BinaryIO", done.stdout)
        else:
            try:
                file = open(self._stage(name) if self._commands else os.path.join(self._root, name), "rb")  # noqa: SIM115
            except FileNotFoundError:
                raise StoreError(f"store {self._name}: {name} is missing", Category.CORRUPT, errno.ENOENT) from None
            with file:
                file.seek(offset)
                yield file

    def sweep(self) -> None:
        """Remove temporary tars of dead processes: their locks are free."""
        for name in os.listdir(self._root):
            if not name.startswith(".part.") or name == ".part.index":
                continue
            path = os.path.join(self._root, name)
            with suppress(OSError):
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(path)
                finally:
                    os.close(fd)

    # commands

    def _stage(self, name: str) -> str:
        """A local file with the tar's bytes, fetched if necessary."""
        with self._lock:
            if name in self._staged:
                self._staged.move_to_end(name)
                return self._staged[name]
            path = os.path.join(self._root, f".staged.{os.getpid()}.{name}")
            self._run("get-command", file=path, name=name)
            self._staged[name] = path
            while len(self._staged) > _STAGED_MOST:
                with suppress(FileNotFoundError):
                    os.unlink(self._staged.popitem(last=False)[1])
            return path

    def _size(self, name: str) -> int:
        """The size at the back end; -1 if it holds nothing under the name."""
        done = self._finish(self._start("size-command", name=name))
        numbers = re.findall(rb"[0-9]+", done.stdout)
        return int(numbers[-1]) if done.returncode == 0 and numbers else -1

    def _run(self, which: str, **places: str) -> None:
        done = self._finish(self._start(which, **places))
        if done.returncode != 0:
            said = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
            raise StoreError(f"store {self._name}: {which} for {places['name']} exited with status {done.returncode}"
                             + (f": {said[-1]}" if said else ""), Category.TRANSIENT)

    def _finish(self, process: subprocess.Popen[bytes]) -> subprocess.CompletedProcess[bytes]:
        with process:
            try:
                out, err = process.communicate(timeout=self._timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise StoreError(f"store {self._name}: {process.args!r} did not exit within {self._timeout:.0f} s",
                                 Category.TRANSIENT) from None
            return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def _start(self, which: str, **places: str) -> subprocess.Popen[bytes]:
        argv = [re.sub(r"\{(\w+)\}", lambda m: places.get(m[1], m[0]), word) for word in self._commands[which]]
        try:
            return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                    stderr=subprocess.DEVNULL if which == "read-command" else subprocess.PIPE)
        except OSError as exc:
            raise StoreError(f"store {self._name}: {which}: {argv[0]}: {exc.strerror}", Category.STORE_DOWN) from exc
