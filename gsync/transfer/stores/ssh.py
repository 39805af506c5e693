"""A store in a directory of another host, over ssh.

gsync's own program there (copied over as for replication) is a DirStore, so the same promises hold. One ssh connection
carries a channel for each concurrent call; a batch keeps the channel of its thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

from gsync.base import rpc
from gsync.base.errors import GsyncError, UsageError
from gsync.link.link import Channel, parse_slave
from gsync.link.openssh import SshOptions
from gsync.link.ssh import SshLink
from gsync.transfer.stores.server import Pieces, Sender, item_json, items
from gsync.transfer.stores.store import BLOCK, Category, Content, Item, StoreError

OPTIONS = ("ssh-config",)
_BROKEN = (OSError, EOFError, rpc.BadFrame, ValueError)


class SshStore:
    """The directory that the URL names. Raises STORE_DOWN if a call needs the other host and cannot reach it."""

    kind = "ssh"

    def __init__(self, url: str, name: str = "", options: Mapping[str, Any] | None = None) -> None:
        self.name, self.url = name or url, url
        self._slave = parse_slave(url)
        config = (options or {}).get("ssh-config")
        if config is not None and not os.path.isfile(config):
            raise UsageError(f"store {self.name}: ssh-config {config}: no such file")
        self._options = SshOptions(config_file=config)
        self._lock = threading.Lock()
        self._link: SshLink | None = None
        self._idle: list[Channel] = []
        self._used: set[Channel] = set()
        self._local = threading.local()
        self._closed = False
        self._give(self._take())

    def close(self) -> None:
        """Call it from any thread: calls that wait for the other host end with STORE_DOWN."""
        self._closed = True
        self._drop_link()

    # channels

    def _down(self, exc: object) -> StoreError:
        text = str(exc)
        said = text.removeprefix(f"slave {self._slave}: ").removeprefix("ssh: ")
        return StoreError(f"store {self.name}: {said or 'the connection was lost'}", Category.STORE_DOWN)

    def _take(self) -> Channel:
        """An unused channel; in a batch, the thread's own."""
        mine = self._pinned()
        if mine is not None:
            return mine
        with self._lock:
            if self._closed:
                raise self._down("the store was closed")
            if self._link is not None and not self._link.alive():
                self._drop_link()
            if self._idle:
                channel = self._idle.pop()
                self._used.add(channel)
                return channel
            try:
                if self._link is None:
                    self._link = SshLink(self._slave, self._options)
                channel = self._link.agent([b"--store", self._slave.path, os.fsencode(self.name)])
            except GsyncError as exc:
                raise self._down(exc) from exc
            self._used.add(channel)
        try:
            self._answer(channel)
        except BaseException:
            self._discard(channel)
            raise
        return channel

    def _pinned(self) -> Channel | None:
        """The channel of this thread's batch."""
        found: Channel | None = getattr(self._local, "channel", None)
        return found

    def _give(self, channel: Channel) -> None:
        if self._pinned() is channel:
            return
        with self._lock:
            if channel in self._used:
                self._used.discard(channel)
                self._idle.append(channel)

    def _discard(self, channel: Channel) -> None:
        with self._lock:
            self._used.discard(channel)
        if self._pinned() is channel:
            self._local.channel = None
        with suppress(OSError):
            channel.kill()
        channel.close()

    def _drop_link(self) -> None:
        link, self._link = self._link, None
        idle, self._idle = self._idle, []
        for channel in [*idle, *self._used]:
            with suppress(OSError):
                channel.kill()
        for channel in idle:
            channel.close()
        if link is not None:
            link.break_off()
            link.close()

    @contextmanager
    def _channel(self) -> Iterator[Channel]:
        """A channel for one request. If it breaks, the error is STORE_DOWN."""
        channel = self._take()
        try:
            yield channel
        except StoreError:
            self._give(channel)  # the other end raised it: the channel is fine
            raise
        except _BROKEN as exc:
            link = self._link
            reason = link.error(channel) if link is not None and not isinstance(exc, rpc.BadFrame) else exc
            self._discard(channel)
            raise self._down(reason) from exc
        except BaseException:
            self._discard(channel)  # the channel stopped in the middle of something
            raise
        else:
            self._give(channel)

    def _answer(self, channel: Channel) -> Any:
        answer = rpc.read_frame(channel.stdout)
        if answer is None:
            raise EOFError
        if "error" in answer:
            raise StoreError(answer["error"], Category(answer["category"]), answer["errno"])
        return answer["items"] if "items" in answer else answer["ok"]

    def _call(self, what: str, path: bytes = b"", **more: Any) -> Any:
        with self._channel() as channel:
            channel.write(rpc.encode({"do": what, "path": path.decode("latin-1"), **more}))
            return self._answer(channel)

    # a store

    def probe(self) -> None:
        self._call("probe")

    def stat(self, path: bytes) -> Item | None:
        row = self._call("stat", path)
        return None if row is None else next(items(iter([[row]])))

    def list(self, path: bytes) -> Iterator[Item]:
        pages = self._pages(path)
        # Within a batch the thread has only one channel, and the caller needs it for its work on the items.
        yield from items(iter(list(pages)) if self._pinned() is not None else pages)

    def _pages(self, path: bytes) -> Iterator[Any]:
        with self._channel() as channel:
            channel.write(rpc.encode({"do": "list", "path": path.decode("latin-1")}))
            while (page := self._answer(channel)) is not None:
                yield page

    def get(self, path: bytes, into: BinaryIO) -> Content:
        with self._channel() as channel:
            channel.write(rpc.encode({"do": "get", "path": path.decode("latin-1")}))
            pieces = Pieces(channel.stdout)
            while block := pieces.read(BLOCK):
                try:
                    into.write(block)
                except BaseException as exc:  # noqa: BLE001 none of ours: it goes on as it is
                    failed = exc
                    self._discard(channel)  # it is in the middle of the file
                    break
            else:
                return Content(*self._answer(channel))
        raise failed

    def put(self, path: bytes, source: BinaryIO, item: Item | None = None, replace: bool = False) -> Content:
        with self._channel() as channel:
            channel.write(rpc.encode({"do": "put", "path": path.decode("latin-1"), "item": item_json(item),
                                      "replace": replace}))
            sender = Sender(channel.write)
            while True:
                try:
                    block = source.read(BLOCK)
                except BaseException as exc:  # noqa: BLE001 none of ours: it goes on as it is
                    failed = exc
                    break
                if not block:
                    sender.end()
                    return Content(*self._answer(channel))
                sender.write(block)
            sender.end(aborted=True)
            with suppress(StoreError):
                self._answer(channel)
        raise failed

    def symlink(self, path: bytes, item: Item) -> None:
        self._call("symlink", path, item=item_json(item))

    def link(self, path: bytes, first: bytes) -> None:
        self._call("link", path, first=first.decode("latin-1"))

    def mkdir(self, path: bytes, item: Item | None = None) -> None:
        self._call("mkdir", path, item=item_json(item))

    def set_attrs(self, path: bytes, item: Item) -> None:
        self._call("set_attrs", path, item=item_json(item))

    def delete(self, path: bytes) -> None:
        self._call("delete", path)

    def move(self, old: bytes, new: bytes) -> None:
        self._call("move", old, new=new.decode("latin-1"))

    def checksum(self, path: bytes, algorithm: str = "sha256") -> str:
        return str(self._call("checksum", path, algorithm=algorithm))

    def content(self, path: bytes) -> Content | None:
        return None

    def durable(self, path: bytes) -> bool:
        return self.stat(path) is not None

    @contextmanager
    def batch(self) -> Iterator[None]:
        if self._pinned() is not None:
            yield
            return
        channel = self._local.channel = self._take()
        try:
            self._call("begin")
            yield
            if self._pinned() is not channel:
                raise self._down("the connection was lost")
            self._call("commit")
            self._local.channel = None
            self._give(channel)
        finally:
            if self._pinned() is channel:
                self._discard(channel)

    def free(self) -> int | None:
        found = self._call("free")
        return None if found is None else int(found)
