"""A thread's unfinished batch for a vault: a tar under a temporary name, and the records of its index.

Any tar program reads the members: their attributes are in pax headers. Not here: how the tar and the index get their
names (vaultfiles).
"""

from __future__ import annotations

import fcntl
import hashlib
import io
import os
import secrets
import tarfile
from contextlib import suppress
from typing import Any, BinaryIO

from gsync.base.model import NS
from gsync.transfer.stores.store import BLOCK, Content, Item, store_io
from gsync.transfer.stores.tape import Tape
from gsync.transfer.stores.vaultindex import Member, record_of, text_of

_TAR_BLOCK = 512
_SIZE_DIGITS = 20


class TarBatch:
    """A batch for the vault in the directory `root`; name: of its store, for messages."""

    def __init__(self, name: str, root: str, tape: Tape) -> None:
        self._name, self._root, self._tape = name, root, tape
        self._file: io.BufferedRandom | None = None
        self.path = ""
        self.records: list[dict[str, Any]] = []
        self.entries: dict[bytes, Member | None] = {}  # as of this batch; None: removed
        self.new: set[bytes] = set()  # paths that must not exist in the vault yet

    @property
    def tar(self) -> str:
        """The temporary name of the tar; "" while there is none."""
        return os.path.basename(self.path)

    @property
    def size(self) -> int:
        return self._file.tell() if self._file is not None else 0

    def finish(self) -> int:
        """Make the tar whole and durable; return its size, 0 if there is none."""
        if self._file is None:
            return 0
        self._file.write(bytes(2 * _TAR_BLOCK))
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def drop(self) -> None:
        """Remove the tar if it still has its temporary name."""
        if self._file is not None:
            self._file.close()
            with suppress(FileNotFoundError):
                os.unlink(self.path)
            self._file = None

    # the index

    def note(self, member: Member, new: bool = False) -> None:
        self.entries[member.item.path] = member
        self.records.append(record_of(member))
        if new:
            self.new.add(member.item.path)

    def note_removed(self, path: bytes) -> None:
        self.records.append({"gone": text_of(path)})
        self.entries[path] = None

    def note_moved(self, old: bytes, new: bytes) -> None:
        self.records.append({"move": text_of(old), "to": text_of(new)})

    # the tar

    def add(self, path: bytes, item: Item, kind: bytes, target: bytes = b"") -> None:
        """Add a member without content. kind: as tarfile names it; target: of a link."""
        info = _info(path, item, kind)
        info.linkname = os.fsdecode(target)
        with store_io(self._name, "put", path):
            self._tar().write(_header(info))

    def append(self, path: bytes, source: BinaryIO, item: Item) -> tuple[Content, int]:
        """Add a file: its header, its data, and the header again once the size is known. Returns the content and its
        offset. If the source fails, the member is cut off."""
        info = _info(path, item, tarfile.REGTYPE)
        headers = {**info.pax_headers, "size": "0" * _SIZE_DIGITS}  # of fixed length, whatever the size becomes
        info.pax_headers = headers
        with store_io(self._name, "put", path):
            tar = self._tar()
            begin = tar.tell()
        try:
            with store_io(self._name, "put", path):
                tar.write(_header(info))
                offset = tar.tell()
            digest, size = hashlib.sha256(), 0
            while block := source.read(BLOCK):
                with store_io(self._name, "put", path):
                    tar.write(block)
                digest.update(block)
                size += len(block)
            with store_io(self._name, "put", path):
                tar.write(bytes(-size % _TAR_BLOCK))
                end = tar.tell()
                info.size = size
                headers["size"] = f"{size:0{_SIZE_DIGITS}d}"
                tar.seek(begin)
                tar.write(_header(info))
                tar.seek(end)
        except BaseException:
            with suppress(OSError):
                tar.seek(begin)
                tar.truncate()
            raise
        return Content(size, digest.hexdigest()), offset

    def _tar(self) -> io.BufferedRandom:
        if self._file is None:
            self._tape.sweep()
            while True:
                self.path = os.path.join(self._root, f".part.{os.getpid()}.{secrets.token_hex(4)}")
                fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                fcntl.flock(fd, fcntl.LOCK_SH)  # held while the tar is written, so that no sweep removes it
                if os.fstat(fd).st_nlink:
                    break
                os.close(fd)  # another process swept it before it was locked
            self._file = io.BufferedRandom(io.FileIO(fd, "r+b"), BLOCK)
        return self._file



def _info(path: bytes, item: Item, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(os.fsdecode(path))
    info.type, info.mode, info.uid, info.gid = kind, item.mode, item.uid, item.gid
    info.mtime = item.mtime // NS
    sign, (sec, nsec) = ("-" if item.mtime < 0 else ""), divmod(abs(item.mtime), NS)
    info.pax_headers = {"mtime": f"{sign}{sec}.{nsec:09d}", **{
        "SCHILY.xattr." + name.decode(): os.fsdecode(value) for name, value in item.xattrs or () if _is_text(name)}}
    return info



def _is_text(name: bytes) -> bool:
    """Whether the name can be a pax keyword; if not, only the index holds the xattr."""
    try:
        return "=" not in name.decode()
    except UnicodeDecodeError:
        return False


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
