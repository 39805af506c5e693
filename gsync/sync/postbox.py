"""What is to be moved, on its way from the worker to the syncer threads: bounded, and nobody polls."""

from __future__ import annotations

import threading
from collections import deque
from typing import NamedTuple

from gsync.base.model import Gfid


class FileRequest(NamedTuple):
    """Move one file's data.

    place: 'N' a new file, to limbo; 'D' a new file straight to (dirgfid, bname) in an unattached directory; 'P' into
    the inode that the slave has. size is what was last seen: a hint for the choice of the engine and for bounds.
    """

    gfid: Gfid
    place: str
    dirgfid: Gfid
    bname: bytes
    size: int


class Result(NamedTuple):
    """What became of one request. errno 0: the slave has it (not yet durable). `bytes` is the length of what was moved.
    `changed`: the source changed meanwhile, so it has to be looked at again."""

    request: FileRequest
    errno: int
    message: str
    bytes: int
    changed: bool


class Closed(Exception):
    """The box takes and gives no more."""


class PostBox:
    """Requests wait here. `append` blocks while the box is full, `take` while it is empty.

    A thread takes what is there, up to its fair share: with more, one thread would carry all while others idle.
    """

    def __init__(self, capacity: int, capacity_bytes: int, share: int) -> None:
        self._requests: deque[FileRequest] = deque()
        self._bytes = 0
        self._capacity, self._capacity_bytes, self._share = capacity, capacity_bytes, max(1, share)
        self._closed = False
        lock = threading.Lock()
        self._room = threading.Condition(lock)
        self._filled = threading.Condition(lock)

    def append(self, *requests: FileRequest) -> None:
        """Put requests in, each once there is room; Closed if the box is, or gets, closed. One that alone is larger
        than the box is taken when the box is empty."""
        with self._room:
            for request in requests:
                while not self._closed and self._requests and (
                        len(self._requests) >= self._capacity or self._bytes + request.size > self._capacity_bytes):
                    self._filled.notify_all()
                    self._room.wait()
                if self._closed:
                    raise Closed
                self._requests.append(request)
                self._bytes += request.size
            self._filled.notify_all()

    def take(self, wait: bool = True) -> list[FileRequest]:
        """What is in the box, up to a share; with `wait` at least one. Closed once the box is closed."""
        with self._filled:
            while wait and not self._requests and not self._closed:
                self._filled.wait()
            if self._closed:
                raise Closed
            box: list[FileRequest] = []
            size = 0
            while self._requests and len(box) < self._share and size < self._capacity_bytes // 2:
                request = self._requests.popleft()
                size += request.size
                box.append(request)
            self._bytes -= size
            self._room.notify_all()
            return box

    def close(self) -> None:
        """Take and give no more: everyone who waits gets Closed, and so does everyone who comes."""
        with self._room:
            self._closed = True
            self._requests.clear()
            self._bytes = 0
            self._room.notify_all()
            self._filled.notify_all()
