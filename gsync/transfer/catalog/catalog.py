"""Catalogs: arrived files are registered there, and withdrawn later if necessary.

Promise: an entry that is applied several times is in the catalog once; a withdrawn entry does not come back. After
`apply`, the catalog has every entry of the block; if it raises, it may have some.
Not here: when a block is due and what happens after an error (publish, send).

A catalog is written as one word, for `--register` and in a request's record:

    default                 the file catalog.db in gsync's state directory
    sqlite:/PATH            an SQLite file, table `replicas`
    jsonl:/PATH             a file with one JSON object per line, appended
    command:PROGRAM ARG...  a program that reads the entries, one JSON object per line, from stdin; no shell
    http://... https://...  POST of {"entries": [...]}; the user and password of ~/.netrc, if it knows the host
"""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import shlex
import sqlite3
import subprocess
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

from gsync.base.database import Database
from gsync.base.durable import fsync_dir, make_dirs
from gsync.base.errors import GsyncError, UsageError
from gsync.base.times import rfc3339
from gsync.transfer.stores.store import Category, StoreError

if TYPE_CHECKING:
    import sqlite_utils

TIMEOUT = 60.0      # seconds for a command, and for each step of an HTTP request
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS replicas (
  id TEXT PRIMARY KEY, name BLOB, store TEXT, url TEXT, path BLOB, size INTEGER, checksum TEXT, owner TEXT,
  request TEXT, registered INTEGER, withdrawn INTEGER);
CREATE INDEX IF NOT EXISTS replicas_by_name ON replicas (name);
"""
# The meaning of a command's exit status (sysexits.h).
_EXITS = {os.EX_USAGE: Category.PERMANENT, os.EX_DATAERR: Category.PERMANENT, os.EX_NOPERM: Category.PERMANENT,
          os.EX_UNAVAILABLE: Category.STORE_DOWN, os.EX_TEMPFAIL: Category.STORE_DOWN}
# Answers of an HTTP server that is unavailable for now (RFC 9110, RFC 6585, RFC 8470).
_NOT_NOW = {408, 423, 425, 429, 502, 503, 504}


class CatalogError(StoreError):
    """A catalog did not take a block. STORE_DOWN: it is unavailable for now."""

    def __init__(self, catalog: str, why: object, category: Category) -> None:
        super().__init__(f"catalog {catalog}: {why}", category, down=catalog)


class Action(Enum):
    REGISTER = "register"
    WITHDRAW = "withdraw"


@dataclass(frozen=True, slots=True)
class Registration:
    """One replica of a file, as a catalog knows it. `id` permanently identifies the registration."""

    id: str
    name: bytes         # the file's name for its users
    store: str          # the name of the store that holds it
    url: str            # the store's address
    path: bytes         # the path in the store
    size: int           # bytes
    checksum: str       # "sha256:<hex>"
    owner: str
    request: str
    time: int           # ns: when it arrived
    action: Action = Action.REGISTER

    def as_json(self) -> dict[str, Any]:
        """The entry for commands, HTTP servers and JSON lines. A name that is not UTF-8 comes with its bytes."""
        return {"action": self.action.value, "id": self.id, "name": _text(self.name), "store": self.store,
                "url": self.url, "path": _text(self.path), "size": self.size, "checksum": self.checksum,
                "owner": self.owner, "request": self.request, "time": rfc3339(self.time)}


class Catalog(Protocol):
    """The interface of every catalog."""

    text: str           # the word from which `open_catalog` makes it again

    def apply(self, entries: Sequence[Registration], again: bool = False) -> None:
        """Register or withdraw; CatalogError. `again`: an earlier try may have delivered some of the entries."""


class SqliteCatalog:
    """The table `replicas` of an SQLite file, which sqlite-utils' own tools can query too. A withdrawn entry leaves its
    row, so that it stays withdrawn."""

    def __init__(self, path: str, text: str | None = None, timeout: float = TIMEOUT) -> None:
        self.text = text or f"sqlite:{path}"
        self._path, self._timeout = path, timeout

    def apply(self, entries: Sequence[Registration], again: bool = False) -> None:
        try:
            make_dirs(os.path.dirname(os.fsencode(self._path)))
            with closing(_open(self._path, self._timeout)) as db, db.atomic():
                replicas = db.table("replicas")
                replicas.insert_all((
                    {"id": e.id, "name": e.name, "store": e.store, "url": e.url, "path": e.path, "size": e.size,
                     "checksum": e.checksum, "owner": e.owner, "request": e.request, "registered": e.time,
                     "withdrawn": None} for e in entries), ignore=True)
                for e in entries:
                    if e.action is Action.WITHDRAW:
                        replicas.update(e.id, {"withdrawn": e.time})
        except sqlite3.OperationalError as exc:  # locked, full, not writable
            raise CatalogError(self.text, exc, Category.STORE_DOWN) from exc
        except (sqlite3.Error, GsyncError) as exc:
            raise CatalogError(self.text, exc, Category.PERMANENT) from exc
        except OSError as exc:
            raise CatalogError(self.text, exc.strerror, Category.STORE_DOWN) from exc

    def where(self, name: bytes) -> list[tuple[str, bytes]]:
        """The stores that hold a file, each with its path there, oldest first."""
        with closing(_open(self._path, self._timeout)) as db:
            rows = db.table("replicas").rows_where("name=? AND withdrawn IS NULL", [name], order_by="registered")
            return [(row["store"], row["path"]) for row in rows]


def _open(path: str, timeout: float) -> sqlite_utils.Database:
    """Open the file, with its table. Errors are sqlite3's; UsageError if a newer gsync wrote it."""
    import sqlite_utils  # takes 0.2 s to load: only those who register something wait for it

    return sqlite_utils.Database(Database.open(path, _SCHEMA, _SCHEMA_VERSION, synchronous="FULL", timeout=timeout))


class JsonLinesCatalog:
    """A file with one JSON object per line. A line is there whole or not at all; one writer at a time."""

    def __init__(self, path: str) -> None:
        self.text = f"jsonl:{path}"
        self._path = path

    def apply(self, entries: Sequence[Registration], again: bool = False) -> None:
        try:
            new = not os.path.exists(self._path)
            fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            with open(fd, "r+b", buffering=0) as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                end = _drop_torn_line(fd)
                there = self._there({(e.action.value, e.id) for e in entries}) if again else set()
                lines = b"".join(_line(e) for e in entries if (e.action.value, e.id) not in there)
                try:
                    _write_all(fd, lines)
                    os.fsync(fd)
                except OSError:
                    os.ftruncate(fd, end)
                    raise
            if new:
                fsync_dir(os.path.dirname(os.fsencode(self._path)))
        except OSError as exc:
            raise CatalogError(self.text, exc.strerror, Category.STORE_DOWN) from exc

    def _there(self, wanted: set[tuple[str, str]]) -> set[tuple[str, str]]:
        found = set()
        with open(self._path, "rb") as file:
            for line in file:
                try:
                    value = json.loads(line)
                    key = (str(value["action"]), str(value["id"]))
                except (ValueError, KeyError, TypeError):
                    continue  # another program's line
                if key in wanted:
                    found.add(key)
        return found


def _drop_torn_line(fd: int) -> int:
    """Cut off what a killed writer left after the last newline; return the file's end then."""
    end = os.fstat(fd).st_size
    at = end
    while at > 0:
        start = max(at - 65536, 0)
        block = os.pread(fd, at - start, start)
        newline = block.rfind(b"\n")
        if newline >= 0:
            at = start + newline + 1
            break
        at = start
    if at != end:
        os.ftruncate(fd, at)
    return at


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


class CommandCatalog:
    """A program of the admin's. Exit status 0: all entries are taken; 64, 65, 77 (sysexits.h): refused permanently; 69,
    75: unavailable for now; any other: these entries failed this time."""

    def __init__(self, argv: Sequence[str], timeout: float = TIMEOUT) -> None:
        self.text = f"command:{shlex.join(argv)}"
        self._argv = list(argv)
        self._timeout = timeout

    def apply(self, entries: Sequence[Registration], again: bool = False) -> None:
        try:
            done = subprocess.run(self._argv, input=b"".join(map(_line, entries)), stdout=subprocess.DEVNULL,
                                  stderr=subprocess.PIPE, timeout=self._timeout, check=False)
        except subprocess.TimeoutExpired:
            raise CatalogError(self.text, f"did not exit within {self._timeout:g} s", Category.STORE_DOWN) from None
        except OSError as exc:
            raise CatalogError(self.text, exc.strerror, Category.STORE_DOWN) from exc
        if done.returncode:
            last = done.stderr.decode("utf-8", "backslashreplace").strip().rpartition("\n")[2][:300]
            raise CatalogError(self.text, f"exited with status {done.returncode}" + (f": {last}" if last else ""),
                               _EXITS.get(done.returncode, Category.TRANSIENT))


class HttpCatalog:
    """POST of {"entries": [...]} to a URL. 2xx: all are taken. 4xx: refused permanently, except for those that mean
    "not now". Idempotency-Key is the same for the same block. Redirects are not followed: they would turn a POST into a
    GET."""

    def __init__(self, url: str, timeout: float = TIMEOUT) -> None:
        self.text = url
        self._timeout = timeout

    def apply(self, entries: Sequence[Registration], again: bool = False) -> None:
        import urllib3  # not loaded at every start of a command

        key = hashlib.sha256("\n".join(f"{e.action.value} {e.id}" for e in entries).encode("ascii")).hexdigest()
        headers = {"Content-Type": "application/json", "Idempotency-Key": key, **_authorization(self.text)}
        body = json.dumps({"entries": [e.as_json() for e in entries]}).encode("ascii")
        try:
            with urllib3.PoolManager(retries=False, timeout=urllib3.Timeout(self._timeout)) as pool:
                answer = pool.request("POST", self.text, body=body, headers=headers, redirect=False,
                                      preload_content=False)
                why = answer.read(300).decode("utf-8", "backslashreplace").strip().partition("\n")[0]
                answer.release_conn()
        except (urllib3.exceptions.HTTPError, OSError) as exc:
            raise CatalogError(self.text, exc, Category.STORE_DOWN) from exc
        if not 200 <= answer.status < 300:
            category = (Category.STORE_DOWN if answer.status in _NOT_NOW else
                        Category.PERMANENT if answer.status < 500 else Category.TRANSIENT)
            raise CatalogError(self.text, f"HTTP {answer.status} {answer.reason or ''}: {why}".rstrip(": "), category)


def _authorization(url: str) -> dict[str, str]:
    import netrc

    import urllib3

    try:
        known = netrc.netrc().authenticators(urllib3.util.parse_url(url).host or "")
    except (OSError, netrc.NetrcParseError):
        return {}
    if known is None:
        return {}
    return urllib3.make_headers(basic_auth=f"{known[0]}:{known[2]}")


def parse_catalog(text: str) -> str:
    """The word for a catalog as it is recorded: with absolute paths. UsageError if it names none."""
    kind, colon, rest = text.partition(":")
    if text == "default":
        return text
    if kind in ("sqlite", "jsonl") and rest:
        return f"{kind}:{os.path.abspath(rest)}"
    if kind == "command" and colon:
        try:
            argv = shlex.split(rest)
        except ValueError as exc:
            raise UsageError(f"catalog {text}: {exc}") from None
        if argv:
            return f"command:{shlex.join(argv)}"
    if kind in ("http", "https") and rest.startswith("//") and rest.strip("/"):
        if "@" in rest[2:].partition("/")[0]:
            raise UsageError(f"catalog {kind}://…: put user and password in ~/.netrc, not in the URL, which is "
                             "stored and shown")
        return text
    raise UsageError(f"catalog {text}: expected default, sqlite:/PATH, jsonl:/PATH, command:PROGRAM ARG…, http(s)://…")


def open_catalog(text: str, home: str) -> Catalog:
    """Open the catalog that a word names; `home`: gsync's state directory. UsageError if it names none."""
    text = parse_catalog(text)
    kind, _, rest = text.partition(":")
    if text == "default":
        return SqliteCatalog(os.path.join(home, "catalog.db"), text)
    if kind == "sqlite":
        return SqliteCatalog(rest)
    if kind == "jsonl":
        return JsonLinesCatalog(rest)
    if kind == "command":
        return CommandCatalog(shlex.split(rest))
    return HttpCatalog(text)


def _line(entry: Registration) -> bytes:
    return json.dumps(entry.as_json()).encode("ascii") + b"\n"


def _text(name: bytes) -> str | dict[str, str]:
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return {"path": name.decode("utf-8", "replace"), "path_b64": base64.b64encode(name).decode("ascii")}
