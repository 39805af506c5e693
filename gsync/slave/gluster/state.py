"""The state that must outlive the agent, kept in the volume itself: an agent on any of its hosts can continue.

    facts       stime, entry_stime, mark, epoch (of each stream), session, clean
    touched     names that batches since the last commit of a stime may have changed, with the gfids at stake
    guests      directories that were moved into one that is not attached yet
    incomplete  directories made since then, whose content may be missing
    limbo       since when an entry of limbo/old waits, and its former base name

It is a log in two files of this connection in .gsync/state. Of these the one with the higher generation counts, if it
has its `whole` line. A line is a JSON object; a torn last line counts as never written. A commit rewrites the other
file. Nothing grows in this process's memory: the tables are SQLite's, in an unnamed file. An older connection that
wakes up on another host writes to files of its own, which nobody reads any more. Standard library only, Python 3.9.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from gsync.base.database import Database
from gsync.base.errors import SlaveError
from gsync.base.model import Gfid, Name
from gsync.link.protocol import RESERVED, text_of
from gsync.slave.gluster.volume import File, GlusterVolume
from gsync.slave.limbo import Waiting
from gsync.slave.streams import Streams

FOLDER: Gfid = RESERVED + b"state\0\0\0\0\0"
_SCHEMA = """
CREATE TABLE touched (pargfid BLOB, bname BLOB, gfid BLOB, since INTEGER, PRIMARY KEY (pargfid, bname, gfid))
  WITHOUT ROWID;
CREATE INDEX touched_gfid ON touched (gfid);
CREATE TABLE guests (gfid BLOB PRIMARY KEY, since INTEGER) WITHOUT ROWID;
CREATE TABLE incomplete (gfid BLOB PRIMARY KEY, done INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE limbo (bname BLOB PRIMARY KEY, since INTEGER NOT NULL, was BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE listed (bname BLOB PRIMARY KEY, gfid BLOB) WITHOUT ROWID;
"""
_PAGE = 1000
_READ = 1 << 20


class _Place(NamedTuple):
    """A file of the state, as described by its first line."""

    generation: int
    epoch: int
    bname: bytes
    gfid: Gfid


class VolumeState(Streams):
    """own: names this connection's files. After `write`, every change is in the volume, but not yet durable."""

    def __init__(self, volume: GlusterVolume, own: str, stream: str = "") -> None:
        self._volume = volume
        self._own = own
        self.stream = stream
        self.db = Database.temporary(_SCHEMA)
        self.facts: dict[str, Any] = {}
        self._lines: list[bytes] = []
        self._file: File | None = None
        self._end = 0
        self._generation = 0
        self._read()

    def close(self) -> None:
        if self._file is not None:
            with suppress(Exception):
                self._file.close()
        self.db.close()

    # reading

    def _read(self) -> None:
        """Load the state left by the youngest earlier connection."""
        places = []
        for bname, node in self._volume.names(FOLDER):
            first = next(self._rows(node.gfid), None)
            if first is not None and "generation" in first:
                places.append(_Place(first["generation"], first["epoch"] or 0, bname, node.gfid))
        for place in sorted(places, reverse=True):
            self._generation = max(self._generation, place.generation)
        for place in sorted(places, reverse=True):
            if self._is_whole(place.gfid):
                for row in self._rows(place.gfid):
                    self._take(row)
                return

    def _is_whole(self, gfid: Gfid) -> bool:
        return any("whole" in row for row in self._rows(gfid))

    def _rows(self, gfid: Gfid) -> Iterator[dict[str, Any]]:
        """The lines of a file, up to a torn one."""
        file = self._volume.open(gfid)
        try:
            at, tail = 0, b""
            while True:
                data = file.pread(_READ, at)
                at += len(data)
                *lines, tail = (tail + data).split(b"\n")
                for line in lines:
                    try:
                        row = json.loads(line)
                    except ValueError:
                        return
                    if not isinstance(row, dict):
                        return
                    yield row
                if not data:
                    return
        finally:
            file.close()

    def _take(self, row: dict[str, Any]) -> None:
        self.facts.update(row.get("facts", {}))
        db = self.db
        db.executemany("INSERT OR REPLACE INTO touched VALUES (?,?,?,?)", (
            (bytes.fromhex(p), b.encode("latin-1"), bytes.fromhex(g), since) for p, b, g, since in
            row.get("touched", ())))
        db.executemany("INSERT OR REPLACE INTO guests VALUES (?,?)", (
            (bytes.fromhex(g), since) for g, since in row.get("guests", ())))
        db.executemany("INSERT OR REPLACE INTO incomplete VALUES (?,0)", (
            (bytes.fromhex(g),) for g in row.get("incomplete", ())))
        db.executemany("DELETE FROM incomplete WHERE gfid=?", ((bytes.fromhex(g),) for g in row.get("completed", ())))
        db.executemany("INSERT OR REPLACE INTO limbo VALUES (?,?,?)", (
            (b.encode("latin-1"), since, was.encode("latin-1")) for b, since, was in row.get("waiting", ())))
        db.executemany("DELETE FROM limbo WHERE bname=?", ((b.encode("latin-1"),) for b in row.get("left", ())))

    def fact(self, key: str) -> Any:
        return self.facts.get(key)

    def set_fact(self, key: str, value: Any) -> None:
        self._say(facts={key: value})

    def forget_stimes(self) -> None:
        """Those of all streams."""
        self._say(facts={key: None for key in self.facts if key.startswith(("stime", "entry_stime"))})

    # writing

    def _say(self, **row: Any) -> None:
        self._take(row)
        self._lines.append(json.dumps(row, separators=(",", ":")).encode() + b"\n")

    def touch(self, rows: Sequence[tuple[Gfid, bytes, Gfid, int]]) -> None:
        if rows:
            self._say(touched=[[p.hex(), text_of(b), g.hex(), since] for p, b, g, since in rows])

    def add_guests(self, rows: Sequence[tuple[Gfid, int]]) -> None:
        if rows:
            self._say(guests=[[g.hex(), since] for g, since in rows])

    def add_incomplete(self, gfids: Sequence[Gfid]) -> None:
        if gfids:
            self._say(incomplete=[g.hex() for g in gfids])

    def wait_in_limbo(self, waiting: Waiting) -> None:
        self._say(waiting=[[text_of(waiting.bname), waiting.since, text_of(waiting.was)]])

    def leave_limbo(self, bnames: Iterable[bytes]) -> None:
        gone = [text_of(bname) for bname in bnames]
        if gone:
            self._say(left=gone)

    def complete(self, gfids: Iterable[Gfid]) -> None:
        """Takes effect with the next commit."""
        self.db.executemany("UPDATE incomplete SET done=1 WHERE gfid=?", ((g,) for g in gfids))

    def write(self, durable: bool = False) -> None:
        """Write pending lines to the volume."""
        if self._file is None:
            raise SlaveError("the state was not begun")
        if self._lines:
            data = b"".join(self._lines)
            self._file.pwrite(data, self._end)
            self._end += len(data)
            self._lines.clear()
        if durable:
            self._file.sync()

    def committed(self, whole: bool) -> None:
        """Write everything durably. whole: a batch has ended, and nothing is in doubt any more; otherwise an interim
        commit."""
        if whole:
            for table in ("touched", "guests", "incomplete"):
                self.db.execute(f"DELETE FROM {table}")
            self.begin()
            return
        done = [row[0] for row in self.db.execute("SELECT gfid FROM incomplete WHERE done=1")]
        if done:
            self._say(completed=[g.hex() for g in done])
        self.write(durable=True)

    def begin(self) -> None:
        """Write the whole state to the next file, durably; from then on that file counts."""
        self._generation += 1
        bname = f"{self._own}.{self._generation % 2}".encode()
        gfid = RESERVED + hashlib.blake2b(bname, digest_size=16 - len(RESERVED)).digest()
        if self._volume.at(FOLDER, bname) is None:
            self._volume.make(FOLDER, bname, gfid, stat.S_IFREG | 0o600)
        file = self._volume.open(gfid, write=True)
        try:
            file.truncate(0)
            self._lines.clear()
            end, lines = 0, b""
            for row in self._snapshot():
                lines += json.dumps(row, separators=(",", ":")).encode() + b"\n"
                if len(lines) >= _READ or "whole" in row:
                    file.pwrite(lines, end)
                    end, lines = end + len(lines), b""
            file.sync()
        except BaseException:
            file.close()
            raise
        if self._file is not None:
            self._file.close()
        self._file, self._end = file, end

    def _snapshot(self) -> Iterator[dict[str, Any]]:
        yield {"generation": self._generation, "epoch": self.fact(self.key("epoch")), "facts": self.facts}
        yield from ({"waiting": [[text_of(b), s, text_of(w)] for b, s, w in page]} for page in self._pages(
            "SELECT bname, since, was FROM limbo"))
        yield from ({"touched": [[p.hex(), text_of(b), g.hex(), s] for p, b, g, s in page]} for page in self._pages(
            "SELECT pargfid, bname, gfid, since FROM touched"))
        yield from ({"guests": [[g.hex(), s] for g, s in page]} for page in self._pages(
            "SELECT gfid, since FROM guests"))
        yield from ({"incomplete": [g.hex() for g, in page]} for page in self._pages("SELECT gfid FROM incomplete"))
        yield {"whole": self._generation}

    def _pages(self, query: str) -> Iterator[list[Any]]:
        cursor = self.db.execute(query)
        while (page := cursor.fetchmany(_PAGE)):
            yield page

    def drop_others(self) -> None:
        """Delete the files of earlier connections."""
        mine = {f"{self._own}.{n}".encode() for n in (0, 1)}
        for bname in [bname for bname, _ in self._volume.names(FOLDER) if bname not in mine]:
            with suppress(FileNotFoundError):
                self._volume.unlink(FOLDER, bname)

    # queries

    def touched_names(self, after: Name | None, limit: int) -> list[Name]:
        """A page of the touched names."""
        return self.db.execute(
            "SELECT DISTINCT pargfid, bname FROM touched WHERE (pargfid, bname)>(?,?) ORDER BY pargfid, bname LIMIT ?",
            (*(after or (b"", b"")), limit)).fetchall()

    def touched_since(self, gfid: Gfid) -> int | None:
        """The latest time at which the master was asked about this inode."""
        found = self.db.execute("SELECT max(since) FROM touched WHERE gfid=?", (gfid,)).fetchone()[0]
        return None if found is None else int(found)

    def guests(self) -> list[tuple[Gfid, int]]:
        return self.db.execute("SELECT gfid, since FROM guests").fetchall()

    def incomplete(self, after: Gfid, limit: int) -> list[Gfid]:
        return [row[0] for row in self.db.execute(
            "SELECT gfid FROM incomplete WHERE gfid>? ORDER BY gfid LIMIT ?", (after, limit))]

    def waiting(self, after: bytes, limit: int) -> list[Waiting]:
        return [Waiting._make(row) for row in self.db.execute(
            "SELECT bname, since, was FROM limbo WHERE bname>? ORDER BY bname LIMIT ?", (after, limit))]

    def waits(self, bname: bytes) -> bool:
        return self.db.execute("SELECT 1 FROM limbo WHERE bname=?", (bname,)).fetchone() is not None

    def count_waiting(self) -> int:
        return int(self.db.execute("SELECT count(*) FROM limbo").fetchone()[0])
