"""The handlers of the queue's own kinds of operation: mkdir, copy, meta, verify, remove.

A handler carries out one transfer. It first looks at what is already there, so it can be repeated at any time. It
raises StoreError; the retry policy decides what follows from it (retry). Not here: the kinds of other commands (kinds).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from gsync.base.model import shown
from gsync.transfer.queue import mover
from gsync.transfer.queue.registry import Stores
from gsync.transfer.queue.requests import Transfer
from gsync.transfer.queue.transfers import Transfers
from gsync.transfer.stores.store import Category, Content, Store, StoreError


@dataclass(frozen=True, slots=True)
class Context:
    """The environment of a handler. arguments: of the transfer's operation. progress: call it with the size of each
    piece moved; it raises when the transfer is killed or given up."""

    transfers: Transfers
    stores: Stores
    arguments: Mapping[str, Any] = field(default_factory=dict)
    progress: Callable[[int], None] = lambda size: None


# Returns the content moved, for kinds that move any.
Handler = Callable[[Context, Transfer], Content | None]


def copy(context: Context, t: Transfer) -> Content | None:
    """Copy a file, symlink or directory with its attributes. arguments: replace (an existing file), verify (read the
    copy back)."""
    source, destination = context.stores.get(t.source), context.stores.writable(t.store)
    item = source.stat(t.source_path)
    if item is None:
        raise StoreError(f"store {source.name}: no such file: {shown(t.source_path) or '/'}", Category.PERMANENT,
                         errno.ENOENT)
    context.progress(0)
    if item.is_dir:
        destination.mkdir(t.path)
        return None
    if not item.is_file:
        if item.target is None:
            raise StoreError(f"store {source.name}: {shown(t.source_path)} not a file, directory or symlink",
                             Category.PERMANENT)
        destination.symlink(t.path, item)
        return None

    def move() -> Content:
        return mover.copy(source, t.source_path, destination, t.path, t.checksum,
                          bool(context.arguments.get("replace")), item, context.progress)

    try:
        content = move()
    except StoreError as exc:
        if exc.errno != errno.EEXIST:
            raise
        try:
            content = move()  # another process was faster, perhaps with the same content: then this succeeds
        except StoreError as again:
            if again.errno != errno.EEXIST:
                raise
            raise StoreError(f"store {destination.name}: {shown(t.path)} exists and differs; "
                             "gsync queue submit --replace replaces it", Category.PERMANENT, errno.EEXIST) from None
    if context.arguments.get("verify"):
        mover.verify(destination, t.path, content)
    return content


def meta(context: Context, t: Transfer) -> None:
    """Set the attributes of a directory, once it is filled."""
    item = context.stores.get(t.source).stat(t.source_path)
    if item is not None:
        context.stores.writable(t.store).set_attrs(t.path, item)


def verify(context: Context, t: Transfer) -> Content:
    """Read the copy back, and compare it with its checksum or else with the source."""
    store = context.stores.get(t.store)
    content = wanted(context.stores, t)
    if content is None:
        source = context.stores.get(t.source)
        raise StoreError(f"store {source.name}: {shown(t.source_path)} is missing, and its checksum is unknown",
                         Category.PERMANENT, errno.ENOENT)
    mover.verify(store, t.path, content)
    return content


def remove(context: Context, t: Transfer) -> None:
    """Remove the destination; the source is another replica. Refused unless that replica is there and whole."""
    store = context.stores.writable(t.store)
    item = store.stat(t.path)
    if item is None:
        return
    if t.source and item.is_file:
        content = Content(item.size, store.checksum(t.path))
        try:
            mover.verify(context.stores.get(t.source), t.source_path, content)
        except StoreError as exc:
            if exc.category is not Category.CORRUPT:
                raise
            raise StoreError(f"store {store.name}: {shown(t.path)} not removed, it is the only replica: {exc}",
                             Category.PERMANENT) from exc
    store.delete(t.path)


def wanted(stores: Stores, t: Transfer) -> Content | None:
    """The content that the destination should hold; None if neither the transfer nor the source shows it."""
    if t.checksum is not None and t.size is not None:
        return Content(t.size, t.checksum)
    source = stores.get(t.source)
    item = source.stat(t.source_path)
    if item is None or not item.is_file:
        return None
    return Content(item.size, t.checksum or source.checksum(t.source_path))


def is_finished(stores: Stores, t: Transfer) -> bool:
    """Whether a copy whose worker is lost has arrived: it is at its destination, whole."""
    if t.kind != "copy":
        return False
    store: Store = stores.get(t.store)
    there = store.stat(t.path)
    if there is None or not there.is_file:
        return False
    content = wanted(stores, t)
    return content is not None and there.size == content.size and store.checksum(t.path) == content.sha256


# The queue's own kinds.
OWN: Mapping[str, Handler] = {"mkdir": copy, "copy": copy, "meta": meta, "verify": verify, "remove": remove}
