"""The files of a vault: the marker of its directory, its index files, and the writers' lock.

Promise: a batch counts once its tar is on disk, its index follows, and the index was read back and is as written; until
then everything has a temporary name. Not here: the merged content of the indexes (vaultindex), the tars (tape), an
unfinished batch (vaultbatch).
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from gsync.base.durable import fsync_dir, replace_file
from gsync.base.errors import UsageError
from gsync.transfer.stores.store import Category, StoreError
from gsync.transfer.stores.tape import Tape
from gsync.transfer.stores.vaultbatch import TarBatch
from gsync.transfer.stores.vaultindex import VaultIndex, named

FORMAT = 1
MARKER = "gsync-vault.json"
_INDEX = re.compile(r"([0-9]{8})\.tar\.idx")


def make_vault(root: str) -> None:
    """Make an empty directory a vault; fine if it is one. UsageError if it is missing or not empty."""
    try:
        names = os.listdir(root)
    except OSError as exc:
        raise UsageError(f"vault {root}: {exc.strerror}; create the directory first") from None
    if MARKER in names:
        return
    if [name for name in names if name != "lost+found" and not name.startswith(f".{MARKER}.")]:
        raise UsageError(f"vault {root}: neither an empty directory nor a vault")
    replace_file(os.path.join(root, MARKER), json.dumps({"format": FORMAT}).encode() + b"\n")


class VaultFiles:
    """The files of the vault in the directory `root`; name: of its store, for messages."""

    def __init__(self, name: str, root: str, tape: Tape) -> None:
        self._name, self._root, self._tape = name, root, tape

    def probe(self) -> None:
        """STORE_DOWN if the directory is not a vault, perhaps because it is not mounted."""
        try:
            with open(os.path.join(self._root, MARKER), encoding="ascii") as file:
                values = json.load(file)
        except FileNotFoundError:
            raise StoreError(f"store {self._name}: {self._root} is not a vault (not mounted?); gsync store add "
                             "makes a vault of an empty directory", Category.STORE_DOWN, errno.ENOENT) from None
        except (OSError, ValueError) as exc:
            raise StoreError(f"store {self._name}: {self._root}/{MARKER}: {exc}", Category.STORE_DOWN) from exc
        if values.get("format") != FORMAT:
            raise StoreError(f"store {self._name}: the vault has format {values.get('format')}, written by a newer "
                             "gsync", Category.PERMANENT)

    def indexes(self) -> list[str]:
        """The names of the index files, oldest first."""
        return sorted(name for name in os.listdir(self._root) if _INDEX.fullmatch(name))

    def holds(self, tar: str, size: int) -> bool:
        """Whether a tar is there with its index."""
        return self._tape.holds(tar, size) and os.path.exists(os.path.join(self._root, tar + ".idx"))

    def publish(self, batch: TarBatch) -> VaultIndex:
        """Give a batch its tar and index, each durable before it gets its name; read the index back. The caller must be
        `alone`."""
        name = f"{self._next_number():08d}.tar"
        size = batch.finish()
        if size:
            self._tape.keep(batch.path, name, size)
        lines = [json.dumps({"vault": FORMAT, "tar": name if size else None, "size": size})]
        lines += [json.dumps(named(record, batch.tar, name)) for record in batch.records]
        body = "\n".join(lines).encode("ascii") + b"\n"
        body += json.dumps({"end": len(batch.records), "sha256": hashlib.sha256(body).hexdigest()}).encode() + b"\n"
        index = os.path.join(self._root, name + ".idx")
        self._tape.keep_index(body, name + ".idx")
        replace_file(index, body)
        fsync_dir(self._root)
        with open(index, "rb") as file:
            with suppress(OSError):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            if file.read() != body:
                raise StoreError(f"store {self._name}: {index} differs from what was written", Category.CORRUPT)
        return self.read_index(name + ".idx")

    def _next_number(self) -> int:
        """The number after the last index. A tar that already has it was never indexed, and is overwritten."""
        names = self.indexes()
        return int(names[-1].partition(".")[0]) + 1 if names else 1

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be the only writer among all processes. Temporary names that exist now belong to dead processes."""
        fd = os.open(os.path.join(self._root, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def read_index(self, name: str) -> VaultIndex:
        """Read an index; CORRUPT if its closing line is missing or does not match."""
        with open(os.path.join(self._root, name), "rb") as file:
            body = file.read()
        try:
            head, _, tail = body[:-1].rpartition(b"\n")
            end = json.loads(tail)
            rows = [json.loads(line) for line in head.split(b"\n")]
            if end["sha256"] != hashlib.sha256(head + b"\n").hexdigest() or end["end"] != len(rows) - 1:
                raise ValueError("its SHA-256 does not match")
            return VaultIndex(name, rows[0]["tar"], int(rows[0]["size"]), rows[1:])
        except (ValueError, KeyError, TypeError, IndexError) as exc:
            raise StoreError(f"store {self._name}: index {name} is damaged: {exc}; restore it from a copy of the "
                             "vault", Category.CORRUPT) from exc
