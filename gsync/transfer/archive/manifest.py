"""The manifest of an archive: what a tree held when it was frozen, as JSON lines.

The first line is the header. Then come the directories (each after its parent, the root first) and everything else. The
last line holds the SHA-256 of all lines before it, which shows a truncated or changed manifest. Lines are ASCII; a name
that is not UTF-8 has its bytes in base64 under the key with `_b64`. Times are whole nanoseconds. Memory does not grow
with the number of entries: the file is read line by line, from any line on, also backwards.
Not here: reading trees (inventory), EOS's own format (eosfile).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import IO, Any

from gsync.base.durable import fsync_dir
from gsync.base.errors import GsyncError
from gsync.base.model import shown

FORMAT = 1
_KINDS = {"directory": stat.S_IFDIR, "file": stat.S_IFREG, "symlink": stat.S_IFLNK, "fifo": stat.S_IFIFO,
          "socket": stat.S_IFSOCK, "character device": stat.S_IFCHR, "block device": stat.S_IFBLK}
_WORDS = {kind: word for word, kind in _KINDS.items()}
_BLOCK = 1 << 20
_DIRECTORY = b'{"type":"directory",'  # how a directory's line begins
_LONGEST = 16 << 20  # bytes of one line: xattrs may take 64 KiB each

Xattrs = tuple[tuple[bytes, bytes], ...]


class ManifestError(GsyncError):
    """A manifest that cannot be trusted: truncated, changed, or in another format."""

    exit_code = 1


@dataclass(frozen=True, slots=True)
class ManifestEntry:
    """One entry of a tree. path is relative to the root, b"" the root itself; times in ns; mode without the type bits.

    Only regular files have sha256 ("": not read yet), symlinks a target, devices an rdev. `link` marks a further hard
    link: it is the path of the inode's first name, earlier in the manifest. Its bytes are not moved again.
    """

    path: bytes
    kind: int
    size: int = 0
    mtime: int = 0
    ctime: int = 0
    uid: int = 0
    gid: int = 0
    mode: int = 0
    sha256: str = ""
    target: bytes | None = None
    link: bytes | None = None
    rdev: int = 0
    sparse: bool = False
    xattrs: Xattrs = ()

    @property
    def is_dir(self) -> bool:
        return self.kind == stat.S_IFDIR

    @property
    def has_content(self) -> bool:
        """Whether its bytes must be moved: it is a regular file under its first name."""
        return self.kind == stat.S_IFREG and self.link is None

    @property
    def word(self) -> str:
        return _WORDS[self.kind]


@dataclass(frozen=True, slots=True)
class ManifestHeader:
    """What a manifest says of itself. place in store holds the content. window (backups only): the manifest lists only
    entries whose time of this kind (mtime or ctime) is at or after `since` (ns)."""

    root: bytes
    store: str
    place: bytes
    created: int
    uid: int = 0
    gid: int = 0
    directories: int = 0
    files: int = 0
    bytes: int = 0
    excluded_xattrs: tuple[str, ...] = ()
    window: str = ""
    since: int = 0


# lines

def _put(doc: dict[str, Any], key: str, value: bytes) -> None:
    try:
        doc[key] = value.decode("utf-8")
    except UnicodeDecodeError:
        doc[key + "_b64"] = base64.b64encode(value).decode("ascii")


def _take(doc: dict[str, Any], key: str) -> bytes | None:
    if key in doc:
        text = doc[key]
        if not isinstance(text, str):
            raise ValueError(f"{key} is not a string")
        return text.encode("utf-8")
    return base64.b64decode(doc[key + "_b64"], validate=True) if key + "_b64" in doc else None


def checked_path(path: bytes | None) -> bytes:
    """The path itself if it stays inside a tree, else ValueError: a manifest may come from a hostile store."""
    if path is None:
        raise ValueError("path is missing")
    if path and (b"\0" in path or any(part in (b"", b".", b"..") for part in path.split(b"/"))):
        raise ValueError(f"path {shown(path)!r} leads out of the tree")
    return path


def line_of(entry: ManifestEntry) -> bytes:
    """The entry as a line, with its newline."""
    doc: dict[str, Any] = {"type": _WORDS[entry.kind]}
    _put(doc, "path", entry.path)
    if entry.kind == stat.S_IFREG:
        doc["size"] = entry.size
    doc.update(mtime=entry.mtime, ctime=entry.ctime, uid=entry.uid, gid=entry.gid, mode=f"{entry.mode:04o}")
    if entry.sha256:
        doc["checksum"] = ["sha256", entry.sha256]
    for key, value in (("target", entry.target), ("link", entry.link)):
        if value is not None:
            _put(doc, key, value)
    if entry.rdev:
        doc["rdev"] = entry.rdev
    if entry.sparse:
        doc["sparse"] = True
    for name, value in entry.xattrs:
        plain: dict[str, Any] = {}
        _put(plain, "xattrs", name)
        for key, text in plain.items():
            doc.setdefault(key, {})[text] = base64.b64encode(value).decode("ascii")
    return json.dumps(doc, separators=(",", ":")).encode("ascii") + b"\n"


def entry_of(line: bytes) -> ManifestEntry:
    """Parse a line; ValueError if it holds no entry."""
    try:
        doc = json.loads(line)
        kind = _KINDS[doc["type"]]
        algorithm, sha256 = doc.get("checksum", ("sha256", ""))
        if algorithm != "sha256" or len(bytes.fromhex(sha256)) not in (0, 32):
            raise ValueError("not a SHA-256 checksum")
        link = _take(doc, "link")
        xattrs = [(name.encode("utf-8"), value) for name, value in doc.get("xattrs", {}).items()]
        xattrs += [(base64.b64decode(name, validate=True), value) for name, value in doc.get("xattrs_b64", {}).items()]
        return ManifestEntry(
            checked_path(_take(doc, "path")), kind, int(doc.get("size", 0)), int(doc["mtime"]), int(doc["ctime"]),
            int(doc["uid"]), int(doc["gid"]), int(doc["mode"], 8) & 0o7777, sha256, _take(doc, "target"),
            None if link is None else checked_path(link), int(doc.get("rdev", 0)), bool(doc.get("sparse", False)),
            tuple(sorted((name, base64.b64decode(value, validate=True)) for name, value in xattrs)))
    except KeyError as exc:
        raise ValueError(f"{exc} is missing") from None
    except (TypeError, AttributeError, binascii.Error) as exc:
        raise ValueError(str(exc)) from None


def _header_line(header: ManifestHeader) -> bytes:
    doc: dict[str, Any] = {"gsync": "manifest", "format": FORMAT}
    _put(doc, "root", header.root)
    doc["store"] = header.store
    _put(doc, "place", header.place)
    doc.update(created=header.created, uid=header.uid, gid=header.gid, directories=header.directories,
               files=header.files, bytes=header.bytes)
    if header.excluded_xattrs:
        doc["excluded_xattrs"] = list(header.excluded_xattrs)
    if header.window:
        doc.update(window=header.window, since=header.since)
    return json.dumps(doc, separators=(",", ":")).encode("ascii") + b"\n"


def _header_of(line: bytes) -> ManifestHeader:
    doc = json.loads(line)
    if not isinstance(doc, dict) or doc.get("gsync") != "manifest":
        raise ValueError("not a gsync manifest")
    if doc["format"] != FORMAT:
        raise ValueError(f"format {doc['format']} is unknown; use a newer gsync")
    return ManifestHeader(_take(doc, "root") or b"/", str(doc["store"]), _take(doc, "place") or b"",
                          int(doc["created"]),
                          int(doc["uid"]), int(doc["gid"]), int(doc["directories"]), int(doc["files"]),
                          int(doc["bytes"]), tuple(doc.get("excluded_xattrs", ())), str(doc.get("window", "")),
                          int(doc.get("since", 0)))


# writing

class ManifestWriter:
    """Writes a manifest at `path`. Entries come in any order, but each directory after its parent.

    Directories and the rest go to two files beside it until `finish` joins them into the manifest, durable.
    """

    def __init__(self, path: bytes) -> None:
        self.path = path
        self._parts = [path + b".directories", path + b".files"]
        self._files: list[IO[bytes]] = [open(part, "wb+") for part in self._parts]  # noqa: SIM115 - closed below
        self.directories = self.files = self.bytes = 0

    def add(self, entry: ManifestEntry) -> None:
        self._files[0 if entry.is_dir else 1].write(line_of(entry))
        if entry.is_dir:
            self.directories += 1
        else:
            self.files += 1
            self.bytes += entry.size if entry.has_content else 0

    def finish(self, header: ManifestHeader) -> Manifest:
        """Write the whole manifest, with the header's counts set to what was added; the root is not counted."""
        header = replace(header, directories=max(self.directories - 1, 0), files=self.files, bytes=self.bytes)
        digest = hashlib.sha256()
        new = self.path + b".new"
        with open(new, "wb") as out:
            line = _header_line(header)
            digest.update(line)
            out.write(line)
            for file in self._files:
                file.flush()
                file.seek(0)
                while block := file.read(_BLOCK):
                    digest.update(block)
                    out.write(block)
            out.write(json.dumps({"end": digest.hexdigest()}).encode("ascii") + b"\n")
            out.flush()
            os.fsync(out.fileno())
        os.rename(new, self.path)
        fsync_dir(os.path.dirname(self.path))
        self.close()
        return Manifest(self.path)

    def close(self) -> None:
        """Discard an unfinished manifest."""
        for file, part in zip(self._files, self._parts, strict=True):
            file.close()
            if os.path.exists(part):
                os.unlink(part)


# reading

class Manifest:
    """A manifest file. Raises ManifestError if it is not a whole manifest."""

    def __init__(self, path: bytes) -> None:
        self.path = path
        with open(path, "rb") as file:
            line = file.readline(_LONGEST)
        try:
            self.header = _header_of(line)
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise ManifestError(f"manifest {os.fsdecode(path)}: {exc}") from None
        self.start = len(line)

    def check(self) -> str:
        """Read the whole file; return the SHA-256 in its last line. ManifestError if the file is not as it was
        written."""
        digest, before = hashlib.sha256(), b""
        with open(self.path, "rb") as file:
            for line in file:
                digest.update(before)
                before = line
        try:
            end = json.loads(before)["end"]
        except (ValueError, KeyError, TypeError):
            raise ManifestError(f"manifest {os.fsdecode(self.path)}: truncated") from None
        if end != digest.hexdigest():
            raise ManifestError(f"manifest {os.fsdecode(self.path)}: modified after it was written")
        return str(end)

    def entries(self, start: int = 0) -> Iterator[tuple[int, ManifestEntry]]:
        """Yield entries from the line at offset `start` on (0: the first entry), each with the offset behind it."""
        at = start or self.start
        with open(self.path, "rb") as file:
            file.seek(at)
            for line in file:
                if line.startswith(b'{"end"'):
                    return
                at += len(line)
                yield at, self._entry(line, at)
        raise ManifestError(f"manifest {os.fsdecode(self.path)}: truncated")

    def directories(self) -> Iterator[ManifestEntry]:
        """Yield the root, then every directory after its parent."""
        for _, entry in self.entries():
            if not entry.is_dir:
                return
            yield entry

    def reversed_directories(self) -> Iterator[ManifestEntry]:
        """Yield every directory after all below it; the root last."""
        end = self.behind_directories()
        with open(self.path, "rb") as file:
            for line in _lines_backwards(file, self.start, end):
                yield self._entry(line, end)

    def behind_directories(self) -> int:
        """The offset of the first line that is not a directory's."""
        at = self.start
        with open(self.path, "rb") as file:
            file.seek(at)
            for line in file:
                if not line.startswith(_DIRECTORY):
                    break
                at += len(line)
        return at

    def _entry(self, line: bytes, at: int) -> ManifestEntry:
        try:
            return entry_of(line)
        except ValueError as exc:
            raise ManifestError(f"manifest {os.fsdecode(self.path)}: the line that ends at byte {at}: {exc}") from None


def _lines_backwards(file: IO[bytes], start: int, end: int) -> Iterator[bytes]:
    rest = b""
    while end > start:
        begin = max(start, end - _BLOCK)
        file.seek(begin)
        lines = (file.read(end - begin) + rest).split(b"\n")
        end, rest = begin, lines[0]
        yield from (line for line in reversed(lines[1:]) if line)
    if rest:
        yield rest
