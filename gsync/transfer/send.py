"""send: bring a file to the first store that takes it, else to a failover store from which the queue moves it on.

A send is a request of up to four operations, recorded in one transaction before a byte is moved:

    place       to the first of the wanted stores that takes the file, else to the first failover store that does
    replicate   from the failover store to the first of the wanted stores that takes it
    register    make the replica known in the catalog
    tidy        remove every other replica that this request made; refused while it is the only whole one

The arguments of the first operation record the state of a send: its plan, the places it began to fill, and where the
file is. They are updated before each upload. Every step first looks at what is there, so it can be killed at any point
and repeated. No store ever holds a file that no request knows of. Nothing here sleeps: the queue retries what cannot be
done now.
Not here: states, leases, pauses between tries (database, retry, worker), what a store or a catalog is.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from gsync.base.errors import UsageError
from gsync.base.log import get_logger
from gsync.base.model import shown
from gsync.transfer.catalog.catalog import Action, Catalog, CatalogError, Registration, open_catalog
from gsync.transfer.queue.handlers import Context
from gsync.transfer.queue.mover import content_of, copy, verify
from gsync.transfer.queue.registry import LOCAL, StorePath, Stores
from gsync.transfer.queue.requests import NewOperation, NewRequest, NewTransfer, Transfer
from gsync.transfer.queue.transfers import Transfers
from gsync.transfer.stores.store import Category, Content, Store, StoreError

_log = get_logger(__name__)

Progress = Callable[[int], None]    # called with the size of each piece moved; may raise to abort
OPERATIONS = ("place", "replicate", "register", "tidy")
FAILOVER_FOLDER = b"gsync-failover"  # at a failover store: <folder>/<request>/<name>, unique to the request
# The name itself is refused: neither another store of the same kind nor waiting helps.
_OF_THE_NAME = {errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EILSEQ}


@dataclass(frozen=True, slots=True)
class Plan:
    """The goal of a send, and its known state. places: wanted first, then failover."""

    request: str
    owner: str
    source: bytes                   # path on this host, without the leading slash
    name: bytes                     # the file's name in the catalog
    wanted: tuple[StorePath, ...]
    failover: tuple[StorePath, ...]
    content: Content
    catalog: str | None
    created: int                    # ns
    begun: tuple[StorePath, ...] = ()   # places this request began to fill; nothing was there before
    at: StorePath | None = None         # where the whole file is

    @property
    def places(self) -> tuple[StorePath, ...]:
        return self.wanted + self.failover

    @property
    def is_temporary(self) -> bool:
        """Whether the file is at a failover store."""
        return self.at is not None and self.at not in self.wanted

    def as_json(self) -> dict[str, Any]:
        return {"request": self.request, "owner": self.owner, "source": _text(self.source), "name": _text(self.name),
                "wanted": _places(self.wanted), "failover": _places(self.failover), "size": self.content.size,
                "sha256": self.content.sha256, "catalog": self.catalog, "created": self.created,
                "begun": _places(self.begun), "at": _places([self.at])[0] if self.at else None}

    @classmethod
    def of_json(cls, value: Mapping[str, Any]) -> Plan:
        def places(rows: Sequence[Sequence[str]]) -> tuple[StorePath, ...]:
            return tuple(StorePath(store, os.fsencode(path)) for store, path in rows)

        return cls(value["request"], value["owner"], os.fsencode(value["source"]), os.fsencode(value["name"]),
                   places(value["wanted"]), places(value["failover"]), Content(value["size"], value["sha256"]),
                   value["catalog"], value["created"], places(value["begun"]),
                   places([value["at"]])[0] if value["at"] else None)


def _text(path: bytes) -> str:
    return os.fsdecode(path)


def _places(places: Sequence[StorePath]) -> list[list[str]]:
    return [[place.store, _text(place.path)] for place in places]


@dataclass(frozen=True, slots=True)
class Attempt:
    """A place that did not take the file, and why."""

    place: StorePath
    error: str
    category: Category
    errno: int | None = None


class NoPlace(StoreError):
    """None of the places took the file; `failed` says why for each."""

    def __init__(self, plan: Plan, failed: Sequence[Attempt]) -> None:
        first = next((a for a in failed if a.category is not Category.PERMANENT), failed[0])
        super().__init__(f"send {_path(plan)}: no store accepted it: " + "; ".join(a.error for a in failed),
                         first.category, first.errno, first.place.store)
        self.failed = tuple(failed)


def measure(path: bytes) -> Content:
    """Size and SHA-256 of a file. UsageError if it is not a regular file, cannot be read, or changes meanwhile."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb", buffering=0) as file:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise UsageError(f"send {shown(path)}: not a regular file")
            content = content_of(file)
            after = os.fstat(fd)
    except OSError as exc:
        raise UsageError(f"send {shown(path)}: {exc.strerror}") from None
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns) or content.size != after.st_size:
        raise UsageError(f"send {shown(path)}: it changed while it was read; send it when it is complete")
    return content


def request_of(plan: Plan, label: str = "", priority: int = 0) -> NewRequest:
    """One request with all operations that the send may need."""
    moved = (plan.content.size, plan.content.sha256)
    first = plan.wanted[0]
    operations = [NewOperation("place", [NewTransfer(LOCAL, plan.source, first.store, first.path, *moved)],
                               plan.as_json())]
    if plan.failover:
        spare = plan.failover[0]
        operations.append(NewOperation("replicate", [
            NewTransfer(spare.store, spare.path, first.store, first.path, *moved)]))
    if plan.catalog is not None:
        operations.append(NewOperation("register", [
            NewTransfer(first.store, first.path, plan.catalog, plan.name, *moved)]))
    if len(plan.places) > 1:
        last = plan.places[-1]
        operations.append(NewOperation("tidy", [NewTransfer(first.store, first.path, last.store, last.path, *moved)]))
    return NewRequest("send", plan.owner, operations, label or shown(os.path.basename(plan.name)), priority,
                      plan.request)


class Sending:
    """Carries out one send, operation by operation. Each can be repeated, and raises StoreError.

    note: called with the plan whenever it changes, above all before an upload begins; it must make the plan durable.
    """

    def __init__(self, plan: Plan, stores: Stores, catalog: Callable[[str], Catalog],
                 note: Callable[[Plan], None], progress: Progress = lambda size: None) -> None:
        self.plan = plan
        self._progress = progress
        self._stores = stores
        self._store = stores.get
        self._catalog = catalog
        self._note = note
        self.failed: list[Attempt] = []     # of the last `place` or `replicate`

    def do(self, operation: str) -> None:
        """Run an operation, named by its kind."""
        {"place": self.place, "replicate": self.replicate, "register": self.register, "tidy": self.tidy}[operation]()

    def place(self) -> None:
        """Place the file. A place filled by an earlier try is found, even if the source is gone. NoPlace gives each
        place's reason."""
        plan = self.plan
        self.failed = []
        if plan.at is not None and self._is_whole(plan.at):
            return
        if self._store(LOCAL).stat(plan.source) is None:
            self._find()
        elif not self._fill_one(LOCAL, plan.source, plan.wanted) and (
                all(a.errno in _OF_THE_NAME for a in self.failed)  # the failover stores would refuse the name too
                or not self._fill_one(LOCAL, plan.source, plan.failover)):
            raise NoPlace(plan, self.failed)
        self._register_for_now()

    def replicate(self) -> None:
        """Copy the file from the failover store to a wanted one. Does nothing if it is already at a wanted place."""
        self.failed = []
        if not self.plan.is_temporary:
            return
        self._register_for_now()
        at = self._at()
        self._store(at.store).probe()  # if the failover store is down, do not blame the wanted ones
        if not self._fill_one(at.store, at.path, self.plan.wanted):
            raise NoPlace(self.plan, self.failed)

    def register(self) -> None:
        if self.plan.catalog is not None:
            self._tell(Action.REGISTER, self._at())

    def tidy(self) -> None:
        """Remove the other replicas. A place that no longer holds this very file belongs to somebody else, and is left
        alone."""
        at = self._at()
        for place in self.plan.begun:
            if place == at:
                continue
            store = self._store(place.store)
            there = store.stat(place.path)
            ours = there is not None and (place in self.plan.failover or self._is_whole(place))
            if there is not None and ours:
                self._guard(place, at)
            if self.plan.catalog is not None and place in self.plan.failover:
                self._tell(Action.WITHDRAW, place)
            if there is not None and ours:
                store.delete(place.path)
                _log.info("removed a replica", request=self.plan.request, place=place, kept=at)
            if place in self.plan.failover:
                self._remove_folders(store, place.path)

    # one place

    def _fill_one(self, source: str, path: bytes, places: Sequence[StorePath]) -> bool:
        """Bring the file to the first of the places that takes it. False: none did, and `failed` says why."""
        for place in places:
            try:
                self._fill(self._store(source), path, place)
            except StoreError as exc:
                if exc.category is Category.CORRUPT and source == LOCAL \
                        and self._store(LOCAL).checksum(path) != self.plan.content.sha256:
                    raise StoreError(f"send {_path(self.plan)}: it changed after it was submitted; send it again when "
                                     "it is complete", Category.PERMANENT) from exc
                self.failed.append(Attempt(place, str(exc), exc.category, exc.errno))
                _log.info("a store did not accept the file", request=self.plan.request, place=place, error=exc)
                continue
            self._know(at=place)
            return True
        return False

    def _fill(self, source: Store, path: bytes, place: StorePath) -> None:
        if self._stores.banned(place.store):
            raise StoreError(f"store {place.store} is banned; see gsync store list",
                             Category.STORE_DOWN)
        store = self._stores.writable(place.store)
        store.probe()
        if store.stat(place.path) is None and place not in self.plan.begun:
            self._know(begun=(*self.plan.begun, place))
        content = self.plan.content
        try:
            copy(source, path, store, place.path, content.sha256, progress=self._progress)
            verify(store, place.path, content)
        except StoreError:
            with suppress(StoreError):
                if self._is_whole(place):  # the file arrived, but the answer was lost
                    return
            raise

    def _find(self) -> None:
        """The source is gone: look for a place that already holds the file."""
        for place in self.plan.places:
            try:
                if self._is_whole(place):
                    self._know(at=place)
                    return
            except StoreError as exc:
                self.failed.append(Attempt(place, str(exc), exc.category, exc.errno))
        error = f"{_path(self.plan)} is gone, and no reachable store holds it"
        if not self.failed:
            raise StoreError(f"send: {error}", Category.PERMANENT)
        raise NoPlace(self.plan, self.failed)

    def _is_whole(self, place: StorePath) -> bool:
        """Whether the place holds this very file; the store reads it back."""
        store = self._store(place.store)
        item = store.stat(place.path)
        return (item is not None and item.is_file and item.size == self.plan.content.size
                and store.checksum(place.path) == self.plan.content.sha256)

    def _guard(self, place: StorePath, at: StorePath) -> None:
        """Refuse to remove the replica at `place` unless the one at `at` is whole."""
        if not self._is_whole(at):
            raise StoreError(f"send: the replica at {place} was not removed: it is the only one; the one at {at} is "
                             "missing or damaged", Category.PERMANENT)

    def _at(self) -> StorePath:
        if self.plan.at is None:
            raise StoreError(f"send {self.plan.request}: the file's location is unknown", Category.PERMANENT)
        return self.plan.at

    def _know(self, **changes: Any) -> None:
        self.plan = replace(self.plan, **changes)
        self._note(self.plan)

    @staticmethod
    def _remove_folders(store: Store, path: bytes) -> None:
        """Remove the empty folders above a failover place."""
        with suppress(StoreError):
            while (path := path.rpartition(b"/")[0]) and FAILOVER_FOLDER in path:
                store.delete(path)

    # the catalog

    def _register_for_now(self) -> None:
        """Register a replica at a failover store, so that the file can be found while it waits there. A failure does
        not matter: the file is registered once it has reached its place."""
        if self.plan.catalog is not None and self.plan.is_temporary:
            try:
                self._tell(Action.REGISTER, self._at())
            except CatalogError as exc:
                _log.info("the temporary replica is not registered yet", request=self.plan.request, error=exc)

    def _tell(self, action: Action, place: StorePath) -> None:
        plan = self.plan
        assert plan.catalog is not None
        entry = Registration(f"{plan.request}-{plan.places.index(place)}", plan.name, place.store,
                             self._store(place.store).url, place.path, plan.content.size,
                             f"sha256:{plan.content.sha256}", plan.owner, plan.request, plan.created, action)
        self._catalog(plan.catalog).apply([entry], again=True)


def _path(plan: Plan) -> str:
    return "/" + shown(plan.source)


def sending(transfers: Transfers, stores: Stores, request: str, progress: Progress = lambda size: None) -> Sending:
    """Resume a send from its state in the database, and record its progress there."""
    first = transfers.operations(request)[0]
    return Sending(Plan.of_json(first.arguments), stores, lambda text: open_catalog(text, transfers.home),
                   lambda plan: transfers.set_arguments(first.id, plan.as_json()), progress)


def carry_out(context: Context, transfer: Transfer) -> None:
    """The queue's handler of place, replicate, register and tidy; raises StoreError."""
    sending(context.transfers, context.stores, transfer.request, context.progress).do(transfer.kind)
