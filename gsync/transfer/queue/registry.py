"""The registry of named stores, their bans, and the notation of paths in stores.

Names, options and bans are in the transfers' database, so all processes of this node see the same. A store named only
by its URL can be banned too. Not here: the implementation of each kind of store (stores/).
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gsync.base.errors import UsageError
from gsync.base.model import NS, shown
from gsync.state.home import check_name
from gsync.transfer.queue.transfers import Transfers
from gsync.transfer.stores.dir import DirStore
from gsync.transfer.stores.store import Category, Store, StoreError, parts_of

LOCAL = "/"  # the URL of this host's whole tree, which a path without a store is in
_SCHEME = re.compile(r"([a-z][a-z0-9+]*)://(.*)", re.S)
_HOST_PATH = re.compile(r"(?:[^@/:]+@)?(?:\[[0-9A-Fa-f:.%]+\]|[^:/\[\]]+):(/.*)", re.S)


@dataclass(frozen=True, slots=True)
class StorePath:
    """A path in a store; the store is given by its name or its URL."""

    store: str
    path: bytes

    def __str__(self) -> str:
        return f"/{shown(self.path)}" if self.store == LOCAL else f"{self.store}:{shown(self.path)}"


@dataclass(frozen=True, slots=True)
class RegisteredStore:
    """A registered store. banned_until: ns; None with a reason: until a person allows it again."""

    name: str
    url: str
    options: Mapping[str, Any]
    read_only: bool
    banned: bool = False
    banned_until: int | None = None
    reason: str = ""


_FORMS = "/path, file:///path, host:/path, ssh://[user@]host[:port]/path, gluster://host/VOLUME[/path], tar:///path"


def kind_of(url: str) -> str:
    """The kind of store that a URL names: dir, ssh, gluster, tar. UsageError if it names none."""
    try:
        url.encode()
    except UnicodeEncodeError:
        raise UsageError(f"store {shown(os.fsencode(url))}: a store's URL must be UTF-8; use a directory above it "
                         "as the store, and the rest as path in that store") from None
    match = _SCHEME.fullmatch(url)
    if url.startswith("/") or (match and match[1] == "file" and match[2].startswith("/")):
        return "dir"
    if match and match[1] == "tar" and match[2].startswith("/"):
        return "tar"
    if match and match[1] in ("ssh", "gluster"):
        return match[1]
    if not match and _HOST_PATH.fullmatch(url):
        return "ssh"
    raise UsageError(f"store {url!r}: not a store URL; expected one of {_FORMS}")


def _check_options(name: str, kind: str, options: Mapping[str, Any]) -> None:
    from gsync.transfer.stores import ssh, vault

    known = {"ssh": ssh.OPTIONS, "tar": vault.OPTIONS}.get(kind, ())
    for option in options:
        if option not in known:
            raise UsageError(f"store {name}: no such option: {option}"
                             + (f"; expected one of {', '.join(known)}" if known else ""))


def open_store(url: str, name: str = "", options: Mapping[str, Any] | None = None) -> Store:
    """Open the store of a URL: /path, host:/path, ssh://…, gluster://host/VOLUME[/path], tar:///path (a vault).
    UsageError if the URL is not valid, StoreError if the store is not there."""
    kind = kind_of(url)
    if options:
        _check_options(name or url, kind, options)
    if kind == "ssh":
        from gsync.transfer.stores.ssh import SshStore

        return SshStore(url, name, options)
    if kind == "gluster":
        from gsync.transfer.stores.gluster import GlusterStore

        return GlusterStore(url, name)
    if kind == "tar":
        from gsync.transfer.stores.vault import VaultStore

        return VaultStore(os.fsencode(url.removeprefix("tar://")), name, url, options)
    return DirStore(os.fsencode(url.removeprefix("file://")), name, url)


class Stores:
    """The registry in a database. Opened stores stay open until `close`."""

    def __init__(self, transfers: Transfers) -> None:
        self._transfers = transfers
        self._open: dict[str, Store] = {}

    def close(self) -> None:
        for store in self._open.values():
            store.close()
        self._open.clear()

    def add(self, name: str, url: str, options: Mapping[str, Any] | None = None, read_only: bool = False) -> None:
        """Register a store, after opening it; UsageError if the name is taken."""
        check_name("store", name)
        if url.startswith("tar:///"):
            from gsync.transfer.stores.vaultfiles import make_vault

            make_vault(url.removeprefix("tar://"))
        store = open_store(url, name, options)
        store.probe()
        store.close()
        try:
            with self._transfers.atomic() as db:
                db.execute("INSERT INTO stores VALUES (?,?,?,?)",
                           (name, url, json.dumps(dict(options or {})), read_only))
        except sqlite3.IntegrityError:
            raise UsageError(f"store {name}: the name is taken") from None

    def remove(self, name: str) -> None:
        """Unregister a store; its content is not touched. UsageError while transfers go to it or come from it."""
        self.known(name)
        with self._transfers.atomic() as db:
            row = db.execute("SELECT count(*) FROM transfers WHERE (source=:s OR store=:s) AND state NOT IN "
                             "('DONE', 'FAILED', 'KILLED')", {"s": name}).fetchone()
            if row[0]:
                raise UsageError(f"store {name}: {row[0]} transfers need it; kill them with gsync queue kill "
                                 f"--link ,{name} and --link {name},")
            db.execute("DELETE FROM stores WHERE name=?", (name,))
            db.execute("DELETE FROM bans WHERE store=?", (name,))

    def all(self) -> list[RegisteredStore]:
        rows = self._transfers.read(
            "SELECT name, url, options, read_only, b.store IS NOT NULL, until, coalesce(reason, '') FROM stores s "
            "LEFT JOIN bans b ON b.store=s.name AND (until IS NULL OR until>?) ORDER BY name",
            (self._transfers.clock.now(),))
        return [RegisteredStore(row[0], row[1], json.loads(row[2]), bool(row[3]), bool(row[4]), row[5], row[6]) for row
                in rows]

    def known(self, name: str) -> RegisteredStore:
        """The registered store of a name; UsageError if there is none."""
        for known in self.all():
            if known.name == name:
                return known
        raise UsageError(f"no such store: {name}; list them with gsync store list")

    def get(self, store: str) -> Store:
        """The open store of a name or URL."""
        if store not in self._open:
            if store == LOCAL or "/" in store:
                self._open[store] = open_store(store)
            else:
                known = self.known(store)
                self._open[store] = open_store(known.url, store, known.options)
        return self._open[store]

    def writable(self, store: str) -> Store:
        """The open store, for writing; PERMANENT if it was registered as read-only."""
        if "/" not in store and self.known(store).read_only:
            raise StoreError(f"store {store} is read-only", Category.PERMANENT)
        return self.get(store)

    def place(self, text: str) -> StorePath:
        """Parse a path on a command line: NAME:path of a registered store, /path of this host, host:/path, a URL with a
        path in it. UsageError for anything else."""
        name, colon, path = text.partition(":")
        if colon and "/" not in name and not path.startswith("//") and any(known.name == name for known in self.all()):
            return StorePath(name, os.fsencode(path).strip(b"/"))
        if _SCHEME.fullmatch(text) or _HOST_PATH.fullmatch(text):
            store, _, last = text.rpartition("/")
            return StorePath(store + ("/" if store.endswith(":") else ""), os.fsencode(last))
        if colon and "/" not in name and not os.path.lexists(text):
            raise UsageError(f"{text!r}: no such store: {name}; list them with gsync store list")
        if not colon and "/" not in text and not os.path.lexists(text) and any(k.name == text for k in self.all()):
            raise UsageError(f"{text!r} is a store; write {text}:PATH for a path in it, {text}: for its root, ./{text} "
                             "for a local path")
        path = os.path.abspath(text)
        return StorePath(LOCAL, os.fsencode(os.path.join(os.path.realpath(os.path.dirname(path)),
                                                         os.path.basename(path)))[1:])

    def folder(self, text: str) -> StorePath:
        """Parse a folder on a command line: NAME[:path] of a registered store, else the URL of a store. The folder is
        then that store's root, so an unmounted disk is not mistaken for an empty one. UsageError for anything else."""
        name, colon, path = text.partition(":")
        if "/" not in name and any(known.name == name for known in self.all()):
            folder = os.fsencode(path).strip(b"/")
            try:
                parts_of(folder)
            except ValueError as exc:
                raise UsageError(f"{text!r}: {exc}") from None
            return StorePath(name, folder)
        if _SCHEME.fullmatch(text) or _HOST_PATH.fullmatch(text):
            return StorePath(text, b"")
        if ("/" in text and not colon) or text.startswith(("/", "./", "../")):
            return StorePath(os.path.abspath(text), b"")
        raise UsageError(f"{text!r}: no such store: {name}; list them with gsync store list")

    # bans

    def ban(self, store: str, reason: str, seconds: float | None = None, by_queue: bool = False) -> None:
        """Ban a store for so long, or until it is allowed. The queue changes no ban by hand that is in effect."""
        until = None if seconds is None else self._transfers.clock.now() + int(seconds * NS)
        with self._transfers.atomic() as db:
            holds = db.execute("SELECT 1 FROM bans WHERE store=? AND NOT by_queue AND (until IS NULL OR until>?)",
                               (store, self._transfers.clock.now())).fetchone()
            if not (by_queue and holds):
                db.execute("INSERT OR REPLACE INTO bans VALUES (?,?,?,?)", (store, until, reason, by_queue))
        self.forget(store)

    def allow(self, store: str) -> None:
        """End a ban; transfers that wait for the store are due at once."""
        with self._transfers.atomic() as db:
            db.execute("DELETE FROM bans WHERE store=?", (store,))
            db.execute("UPDATE transfers SET not_before=0 WHERE state='RETRY' AND category=? AND (source=? OR store=?)",
                       (Category.STORE_DOWN.value, store, store))
        self.forget(store)

    def banned(self, store: str) -> bool:
        return bool(self._transfers.read("SELECT 1 FROM bans WHERE store=? AND (until IS NULL OR until>?)",
                                         (store, self._transfers.clock.now())))

    def is_back(self, store: str) -> None:
        """The store has answered: end a ban by the queue, but not one by hand."""
        if self._transfers.read("SELECT 1 FROM bans WHERE store=? AND by_queue", (store,)):
            self.allow(store)

    def forget(self, store: str) -> None:
        """Close the store's open object; the next use opens it anew."""
        if (opened := self._open.pop(store, None)) is not None:
            opened.close()
