"""The indexes of a vault, and the catalog of their merged content.

An index is a list of records, one for each entry that was put, changed, moved or removed. Not here: the index files
(vaultfiles).
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from gsync.base.database import Database
from gsync.transfer.stores.store import Item

PAGE = 1000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
  path BLOB PRIMARY KEY, parent BLOB NOT NULL, tar TEXT NOT NULL, record TEXT NOT NULL) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS children ON entries (parent, path);
CREATE INDEX IF NOT EXISTS members ON entries (tar);
CREATE TABLE IF NOT EXISTS indexes (name TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tars (name TEXT PRIMARY KEY, size INTEGER NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Member:
    """An entry and its location: the tar, and the offset of its bytes there (-1: it has none)."""

    item: Item
    tar: str = ""
    offset: int = -1
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class VaultIndex:
    name: str
    tar: str | None
    size: int
    records: Sequence[Mapping[str, Any]]


def text_of(path: bytes) -> str:
    return path.decode("latin-1")


def record_of(entry: Member) -> dict[str, Any]:
    item = entry.item
    record: dict[str, Any] = {
        "path": text_of(item.path), "kind": item.kind, "size": item.size, "mtime": item.mtime, "ctime": item.ctime,
        "mode": item.mode, "uid": item.uid, "gid": item.gid}
    if item.xattrs:
        record["xattrs"] = [[text_of(name), text_of(value)] for name, value in item.xattrs]
    if item.target is not None:
        record["target"] = text_of(item.target)
    if entry.tar:
        record |= {"tar": entry.tar, "offset": entry.offset, "sha256": entry.sha256}
    return record


def named(record: dict[str, Any], temporary: str, name: str) -> dict[str, Any]:
    """The record with the tar's final name."""
    return {**record, "tar": name} if record.get("tar") == temporary and temporary else record


def member_of(record: Mapping[str, Any]) -> Member:
    target = record.get("target")
    item = Item(record["path"].encode("latin-1"), record["kind"], record["size"], record["mtime"], record["ctime"],
                record["mode"], record["uid"], record["gid"], None if target is None else target.encode("latin-1"),
                tuple((n.encode("latin-1"), v.encode("latin-1")) for n, v in record.get("xattrs", ())))
    return Member(item, record.get("tar", ""), record.get("offset", -1), record.get("sha256", ""))


class VaultContents:
    """The merged content of the indexes, in a SQLite file that may be deleted."""

    def __init__(self, path: str) -> None:
        self._path = path
        try:
            self._open()
        except sqlite3.DatabaseError:
            for end in ("", "-wal", "-shm"):
                with suppress(FileNotFoundError):
                    os.unlink(path + end)
            self._open()

    def _open(self) -> None:
        # NORMAL: rows lost in a power cut are read from the indexes again.
        self._db = Database.open(self._path, _SCHEMA, synchronous="NORMAL", threads=True)

    def close(self) -> None:
        self._db.close()

    def indexes(self) -> set[str]:
        return {row[0] for row in self._db.execute("SELECT name FROM indexes")}

    def clear(self) -> None:
        for table in ("entries", "indexes", "tars"):
            self._db.execute(f"DELETE FROM {table}")

    def entry(self, path: bytes) -> Member | None:
        row = self._db.execute("SELECT path, record FROM entries WHERE path=?", (path,)).fetchone()
        return _from_row(row) if row else None

    def children(self, parent: bytes, after: bytes, limit: int = PAGE) -> list[Member]:
        rows = self._db.execute("SELECT path, record FROM entries WHERE parent=? AND path>? ORDER BY path LIMIT ?",
                                (parent, after, limit))
        return [_from_row(row) for row in rows]

    def size_of_tar(self, name: str) -> int:
        row = self._db.execute("SELECT size FROM tars WHERE name=?", (name,)).fetchone()
        return int(row[0]) if row else -1

    def dead_tars(self) -> list[str]:
        return [row[0] for row in self._db.execute(
            "SELECT name FROM tars WHERE NOT EXISTS (SELECT 1 FROM entries WHERE tar=tars.name)")]

    def forget_tar(self, name: str) -> None:
        self._db.execute("DELETE FROM tars WHERE name=?", (name,))

    def apply(self, index: VaultIndex) -> None:
        with self._db.atomic() as db:
            if db.execute("INSERT OR IGNORE INTO indexes VALUES (?)", (index.name,)).rowcount:
                if index.tar:
                    db.execute("INSERT OR REPLACE INTO tars VALUES (?,?)", (index.tar, index.size))
                for record in index.records:
                    self._apply(record)

    def _apply(self, record: Mapping[str, Any]) -> None:
        if "gone" in record:
            self._db.execute("DELETE FROM entries WHERE path=?", (record["gone"].encode("latin-1"),))
        elif "move" in record:
            old, new = record["move"].encode("latin-1"), record["to"].encode("latin-1")
            below = self._db.execute("SELECT path FROM entries WHERE path=? OR (path>? AND path<?)",
                                     (old, old + b"/", old + b"0")).fetchall()
            for (path,) in below:
                moved = new + path[len(old):]
                self._db.execute("UPDATE entries SET path=?, parent=? WHERE path=?", (moved, _parent(moved), path))
        else:
            path = record["path"].encode("latin-1")
            self._db.execute("INSERT OR REPLACE INTO entries VALUES (?,?,?,?)",
                             (path, _parent(path), record.get("tar", ""), json.dumps(record)))


def _from_row(row: tuple[bytes, str]) -> Member:
    entry = member_of(json.loads(row[1]))
    return replace(entry, item=replace(entry.item, path=row[0]))


def _parent(path: bytes) -> bytes | None:
    """b"" for an entry at the top; for the root itself a value that is nobody's parent."""
    return path.rpartition(b"/")[0] if path else b"/"
