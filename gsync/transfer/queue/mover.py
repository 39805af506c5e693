"""Copies one file from a store to a store: streamed, hashed at both ends, and compared.

Promise: a copy has its name at the destination only if the whole source was read, and the bytes written are the bytes
read. A destination that already holds that very content is left alone, so a copy can be repeated at any time.
"""

from __future__ import annotations

import hashlib
import io
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import BinaryIO

from gsync.base.model import shown
from gsync.transfer.stores.store import Category, Content, Item, Store, StoreError

_DEPTH = 4        # blocks in flight between reader and writer
_SMALL = 1 << 20  # bytes; a file up to this size is read whole before it is written


class _ReaderGone(Exception):
    """The reader of the pipe has given up."""


class _Pipe(io.RawIOBase):
    """A pipe within the process. Passes the writer's error on to the reader, so a broken source never looks
    complete."""

    def __init__(self, progress: Callable[[int], None]) -> None:
        self._progress = progress
        self._blocks: queue.Queue[bytes | BaseException | None] = queue.Queue(_DEPTH)
        self._rest = b""
        self._ended = False
        self._given_up = threading.Event()

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        block = bytes(data)  # type: ignore[call-overload]
        if block:
            self._put(block)
        return len(block)

    def end(self, error: BaseException | None = None) -> None:
        """Signal the end of the data, or an error."""
        with suppress(_ReaderGone):
            self._put(error)

    def _put(self, what: bytes | BaseException | None) -> None:
        while not self._given_up.is_set():
            try:
                self._blocks.put(what, timeout=0.2)
                return
            except queue.Full:
                continue
        raise _ReaderGone

    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        if not self._rest and not self._ended:
            block = self._blocks.get()
            if isinstance(block, BaseException):
                raise block
            self._ended = block is None
            self._rest = block or b""
        size = min(len(view), len(self._rest))
        self._progress(size)
        view[:size], self._rest = self._rest[:size], self._rest[size:]
        return size

    def give_up(self) -> None:
        """Stop reading; the writer's next write raises."""
        self._given_up.set()


def copy(source: Store, path: bytes, destination: Store, new: bytes, checksum: str | None = None,
         replace_it: bool = False, item: Item | None = None, progress: Callable[[int], None] = lambda size: None
         ) -> Content:
    """Copy a file with its attributes; return the content moved. checksum: its SHA-256 (hex), if known. progress:
    called with the size of each piece; may raise to abort the copy.

    StoreError: CORRUPT if the source does not match the checksum; PERMANENT (EEXIST) if the destination holds something
    else and `replace_it` is not set; else as the stores raise it.
    """
    if item is None:
        item = source.stat(path)
    if item is None or not item.is_file:
        what = "no such file" if item is None else "not a regular file"
        raise StoreError(f"store {source.name}: {what}: {shown(path)}", Category.PERMANENT)
    there = destination.stat(new)
    if there is not None and there.is_file and there.size == item.size:
        wanted = checksum or source.checksum(path)
        if destination.checksum(new) == wanted:
            return Content(item.size, wanted)
    moved = _small if item.size <= _SMALL else _streamed
    read, put = moved(source, path, destination, new, checksum, replace_it, item, progress)
    if put != read:
        raise StoreError(f"store {destination.name}: {shown(new)}: {put.size} bytes with SHA-256 {put.sha256} were "
                         f"written, not {read.size} with {read.sha256}", Category.CORRUPT)
    return put


def _check(source: Store, path: bytes, got: Content, checksum: str | None) -> None:
    if checksum is not None and got.sha256 != checksum:
        raise StoreError(f"store {source.name}: {shown(path)} is corrupt: its SHA-256 is {got.sha256}, not {checksum}",
                         Category.CORRUPT)


def _small(source: Store, path: bytes, destination: Store, new: bytes, checksum: str | None, replace_it: bool,
           item: Item, progress: Callable[[int], None]) -> tuple[Content, Content]:
    """Copy a file that fits in memory, without a second thread; return the content read and the content written."""
    held = io.BytesIO()
    read = source.get(path, held)
    _check(source, path, read, checksum)
    progress(read.size)
    held.seek(0)
    return read, destination.put(new, held, replace(item, path=new), replace_it)


def _streamed(source: Store, path: bytes, destination: Store, new: bytes, checksum: str | None, replace_it: bool,
              item: Item, progress: Callable[[int], None]) -> tuple[Content, Content]:
    """Copy a file through a pipe; return the content read and the content written."""
    pipe = _Pipe(progress)
    read: list[Content] = []

    def fetch() -> None:
        try:
            got = source.get(path, pipe)  # type: ignore[arg-type]
            _check(source, path, got, checksum)
            read.append(got)
            pipe.end()
        except _ReaderGone:
            pass
        except BaseException as exc:  # noqa: BLE001 it is the reader's now
            pipe.end(exc)

    thread = threading.Thread(target=fetch, name="mover")
    thread.start()
    try:
        put = destination.put(new, pipe, replace(item, path=new), replace_it)  # type: ignore[arg-type]
    finally:
        pipe.give_up()
        thread.join()
    return read[0], put


def verify(store: Store, path: bytes, content: Content) -> None:
    """Read the file back; StoreError CORRUPT if it does not hold the content."""
    item = store.stat(path)
    if item is None:
        raise StoreError(f"store {store.name}: {shown(path)} is missing", Category.CORRUPT)
    if item.size != content.size:
        raise StoreError(f"store {store.name}: {shown(path)} has {item.size} bytes instead of {content.size}",
                         Category.CORRUPT)
    found = store.checksum(path)
    if found != content.sha256:
        raise StoreError(f"store {store.name}: {shown(path)} has SHA-256 {found} instead of {content.sha256}",
                         Category.CORRUPT)


def content_of(file: BinaryIO) -> Content:
    """Read a file to its end; return its size and SHA-256."""
    digest, size = hashlib.sha256(), 0
    while block := file.read(1 << 20):
        digest.update(block)
        size += len(block)
    return Content(size, digest.hexdigest())
