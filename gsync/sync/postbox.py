"""Requests on their way from the worker to the syncer threads: a bounded queue that nobody polls."""

from __future__ import annotations

import threading
from collections import deque
from typing import NamedTuple

from gsync.base.model import Gfid


class FileRequest(NamedTuple):
    """Move one file's data.

    place: 'N' a new file, to limbo; 'D' a new file straight to (dirgfid, bname) in an unattached directory; 'P' into
    the inode that the slave has. size: the last known size, a hint for choosing the engine and for bounds.
    """

    gfid: Gfid
    place: str
    dirgfid: Gfid
    bname: bytes
    size: int


class Result(NamedTuple):
    """The result of one request. errno 0: the slave has the file (not yet durable). `bytes`: how many were sent.
    `changed`: the source changed meanwhile, so the file has to be looked at again."""

    request: FileRequest
    errno: int
    message: str
    bytes: int
    changed: bool


class Closed(Exception):
    """The box is closed."""


class PostBox:
    """A queue of requests. `append` blocks while it is full, `take` while it is empty.

    A thread takes at most its fair share; otherwise one thread would do all the work while the others idle.
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
        """Add requests, each as soon as there is room. A request larger than the box is accepted when the box is empty.
        Closed if the box is closed, or gets closed."""
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
        """Take requests, up to a share; with `wait`, at least one. Closed once the box is closed."""
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
        """Close the box: every waiting and every later call raises Closed."""
        with self._room:
            self._closed = True
            self._requests.clear()
            self._bytes = 0
            self._room.notify_all()
            self._filled.notify_all()
