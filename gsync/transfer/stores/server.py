"""Serves a directory store to another host: one request at a time over stdin and stdout (`agent --store`).

Requests and answers are frames (gsync/base/rpc.py): {"do": method, ...} and {"ok": ...} or {"error", "category",
"errno"}. A file's bytes travel between them in pieces of 4 bytes of length and data. An empty piece ends them; ABORT
says that the sender could not continue. Paths travel as latin-1 text. Standard library only, Python 3.9.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, BinaryIO

from gsync.base import rpc
from gsync.base.errors import GsyncError
from gsync.transfer.stores.dir import DirStore
from gsync.transfer.stores.store import BLOCK, Category, Item, StoreError

PROTOCOL = 1
ABORT = 0xFFFFFFFF
_LENGTH = struct.Struct(">I")
_PAGE = 500


def item_json(item: Item | None) -> Any:
    if item is None:
        return None
    xattrs = None if item.xattrs is None else [[n.decode("latin-1"), v.decode("latin-1")] for n, v in item.xattrs]
    return [item.path.decode("latin-1"), item.kind, item.size, item.mtime, item.ctime, item.mode, item.uid, item.gid,
            None if item.target is None else item.target.decode("latin-1"), xattrs]


def item_of_json(row: Any) -> Item | None:
    if row is None:
        return None
    path, kind, size, mtime, ctime, mode, uid, gid, target, xattrs = row
    return Item(path.encode("latin-1"), int(kind), int(size), int(mtime), int(ctime), int(mode), int(uid), int(gid),
                None if target is None else target.encode("latin-1"),
                None if xattrs is None else tuple((n.encode("latin-1"), v.encode("latin-1")) for n, v in xattrs))


class Aborted(Exception):
    """The other end could not continue sending the bytes."""


class Pieces:
    """The incoming bytes of a file, readable like a file."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._left = 0
        self.ended = False

    def read(self, size: int = -1) -> bytes:
        if self.ended:
            return b""
        if not self._left:
            head = self._stream.read(4)
            if len(head) < 4:
                raise EOFError
            (self._left,) = _LENGTH.unpack(head)
            if self._left in (0, ABORT):
                aborted, self._left, self.ended = self._left == ABORT, 0, True
                if aborted:
                    raise Aborted
                return b""
        data = self._stream.read(self._left if size < 0 else min(size, self._left))
        if not data:
            raise EOFError
        self._left -= len(data)
        return data

    def drain(self) -> None:
        """Read and discard the rest, so that the next frame can be read."""
        try:
            while self.read(BLOCK):
                pass
        except Aborted:
            pass


class Sender:
    """Writes a file's bytes in pieces."""

    def __init__(self, write: Any) -> None:
        self._write = write

    def write(self, data: Any) -> int:
        view = memoryview(data)
        for at in range(0, len(view), BLOCK):
            piece = view[at:at + BLOCK]
            self._write(_LENGTH.pack(len(piece)))
            self._write(piece)
        return len(view)

    def end(self, aborted: bool = False) -> None:
        self._write(_LENGTH.pack(ABORT if aborted else 0))


class _Server:
    def __init__(self, store: DirStore, stdin: BinaryIO, stdout: BinaryIO) -> None:
        self._store, self._in, self._out = store, stdin, stdout
        self._batch: ExitStack | None = None

    def serve(self) -> None:
        self._say({"ok": PROTOCOL})
        while (message := rpc.read_frame(self._in)) is not None:
            try:
                self._say({"ok": self._do(message)})
            except GsyncError as exc:
                self._say(error_json(exc))

    def _say(self, answer: Any) -> None:
        self._out.write(rpc.encode(answer))
        self._out.flush()

    def _do(self, message: dict[str, Any]) -> Any:
        what = message["do"]
        if what not in _METHODS:
            raise StoreError(f"no such request: {what}", Category.PERMANENT)
        path = str(message.get("path", "")).encode("latin-1")
        return getattr(self, "_" + what)(path, message)

    def _probe(self, path: bytes, message: Any) -> None:
        self._store.probe()

    def _stat(self, path: bytes, message: Any) -> Any:
        return item_json(self._store.stat(path))

    def _list(self, path: bytes, message: Any) -> None:
        page: list[Any] = []
        for item in self._store.list(path):
            page.append(item_json(item))
            if len(page) == _PAGE:
                self._say({"items": page})
                page = []
        self._say({"items": page})

    def _get(self, path: bytes, message: Any) -> Any:
        sender = Sender(self._out.write)
        try:
            content = self._store.get(path, sender)  # type: ignore[arg-type]
        finally:
            sender.end()
        return [content.size, content.sha256]

    def _put(self, path: bytes, message: Any) -> Any:
        pieces = Pieces(self._in)
        try:
            content = self._store.put(path, pieces, item_of_json(message["item"]),  # type: ignore[arg-type]
                                      bool(message["replace"]))
        except Aborted:
            raise StoreError("the source could not be read", Category.TRANSIENT) from None
        finally:
            pieces.drain()
        return [content.size, content.sha256]

    def _symlink(self, path: bytes, message: Any) -> None:
        item = item_of_json(message["item"])
        assert item is not None
        self._store.symlink(path, item)

    def _link(self, path: bytes, message: Any) -> None:
        self._store.link(path, message["first"].encode("latin-1"))

    def _mkdir(self, path: bytes, message: Any) -> None:
        self._store.mkdir(path, item_of_json(message["item"]))

    def _set_attrs(self, path: bytes, message: Any) -> None:
        item = item_of_json(message["item"])
        assert item is not None
        self._store.set_attrs(path, item)

    def _delete(self, path: bytes, message: Any) -> None:
        self._store.delete(path)

    def _move(self, path: bytes, message: Any) -> None:
        self._store.move(path, message["new"].encode("latin-1"))

    def _checksum(self, path: bytes, message: Any) -> str:
        return self._store.checksum(path, message["algorithm"])

    def _free(self, path: bytes, message: Any) -> int | None:
        return self._store.free()

    def _begin(self, path: bytes, message: Any) -> None:
        self._batch = ExitStack()
        self._batch.enter_context(self._store.batch())

    def _commit(self, path: bytes, message: Any) -> None:
        batch, self._batch = self._batch, None
        assert batch is not None
        batch.close()


_METHODS = {"probe", "stat", "list", "get", "put", "symlink", "link", "mkdir", "set_attrs", "delete", "move",
            "checksum", "free", "begin", "commit"}


def error_json(exc: GsyncError) -> dict[str, Any]:
    category = exc.category if isinstance(exc, StoreError) else Category.PERMANENT
    number = exc.errno if isinstance(exc, StoreError) else None
    return {"error": str(exc), "category": category.value, "errno": number}


def main(argv: list[str]) -> int:
    """Serve the directory ROOT as the store NAME until stdin ends. Arguments: ROOT NAME."""
    root, name = argv
    stdout = os.fdopen(os.dup(1), "wb", buffering=1 << 16)
    os.dup2(2, 1)  # stray prints go to stderr: only frames may reach the other end
    stdin = os.fdopen(os.dup(0), "rb", buffering=1 << 16)
    try:
        try:
            store = DirStore(os.fsencode(root), name)
        except GsyncError as exc:
            stdout.write(rpc.encode(error_json(exc)))
            stdout.flush()
            return exc.exit_code
        _Server(store, stdin, stdout).serve()
    except (BrokenPipeError, EOFError):
        return 4
    return 0


def items(pages: Iterator[Any]) -> Iterator[Item]:
    """The items of a list's pages."""
    for page in pages:
        for row in page:
            item = item_of_json(row)
            assert item is not None
            yield item


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
