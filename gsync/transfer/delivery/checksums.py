"""Checksum lists as sha256sum(1) of GNU coreutils writes them, and the comparison of a folder with one.

A line is the digest in hex, a space, a space or `*` (binary mode, which makes no difference here), and the name. A line
that begins with a backslash has a name in which `\\\\`, `\\n` and `\\r` stand for those bytes. `SHA256 (name) = digest`
(--tag) is accepted too. The last line needs no newline. If every line ends in CRLF, the CR is ignored.
Files are read 1 MiB at a time.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from gsync.base.model import shown

PIECE = 1 << 20
_LONGEST = 1 << 16   # bytes of a line: a path in which every byte is escaped
_LARGEST = 1 << 30   # bytes of a list
_PLAIN = re.compile(rb"(?P<digest>[0-9A-Fa-f]{64}) [ *](?P<name>.+)", re.DOTALL)
_TAGGED = re.compile(rb"SHA256 \((?P<name>.+)\) = (?P<digest>[0-9A-Fa-f]{64})", re.DOTALL)
_ESCAPED = {b"\\\\": b"\\", b"\\n": b"\n", b"\\r": b"\r"}
_NAMED = 10          # names in a sentence


@dataclass(frozen=True)
class ChecksumList:
    """A parsed list: digests (lower case hex) by path relative to the list; and the lines that cannot be parsed."""

    digests: Mapping[bytes, str]
    bad: tuple[str, ...] = ()

    @classmethod
    def parse(cls, data: bytes) -> ChecksumList:
        lines = data.split(b"\n")
        if lines and not lines[-1]:
            lines.pop()
        if lines and all(line.endswith(b"\r") for line in lines):
            lines = [line[:-1] for line in lines]
        digests: dict[bytes, str] = {}
        bad = []
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                name, digest = _parsed(line)
                if digests.setdefault(name, digest) != digest:
                    raise ValueError(f"a second, different checksum for {shown(name)}")
            except ValueError as exc:
                bad.append(f"line {number}: {exc}")
        return cls(digests, tuple(bad))


def _parsed(line: bytes) -> tuple[bytes, str]:
    """Name and digest of a line; ValueError says what is wrong with it."""
    escaped = line.startswith(b"\\")
    found = _PLAIN.fullmatch(line, 1 if escaped else 0) or _TAGGED.fullmatch(line, 1 if escaped else 0)
    if found is None or len(line) > _LONGEST:
        raise ValueError(f"expected DIGEST  NAME: {shown(line[:80])}")
    name = found["name"]
    if escaped:
        def plain(match: re.Match[bytes]) -> bytes:
            if match[0] not in _ESCAPED:
                raise ValueError(f"unknown escape in a name: {shown(match[0])}")
            return _ESCAPED[match[0]]

        name = re.sub(rb"\\.?", plain, name, flags=re.DOTALL)
    return checked_name(name), found["digest"].decode().lower()


def checked_name(name: bytes) -> bytes:
    """A relative path below the list, without `./`; ValueError if it leads elsewhere."""
    parts = [part for part in name.split(b"/") if part not in (b"", b".")]
    if name.startswith(b"/") or b".." in parts or not parts or b"\0" in name:
        raise ValueError(f"the name leads out of the folder: {shown(name)}")
    return b"/".join(parts)


def line_of(name: bytes, digest: str) -> bytes:
    """The line as sha256sum(1) writes it."""
    if not any(byte in name for byte in (b"\\", b"\n", b"\r")):
        return digest.encode() + b"  " + name + b"\n"
    name = name.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return b"\\" + digest.encode() + b"  " + name + b"\n"


@dataclass
class Comparison:
    """How a folder compares with its list: names, bytes relative to the folder, sorted. digests: those computed."""

    missing: list[bytes] = field(default_factory=list)       # listed, but missing
    extra: list[bytes] = field(default_factory=list)         # present, but not listed
    mismatching: list[bytes] = field(default_factory=list)
    odd: list[bytes] = field(default_factory=list)           # neither file nor directory
    wrong: list[str] = field(default_factory=list)           # the list itself: absent, unreadable, bad lines
    digests: dict[bytes, str] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        return not (self.missing or self.extra or self.mismatching or self.odd or self.wrong)

    def reason(self) -> str:
        """One sentence that names the first of each kind; "" if all is good."""
        parts = [_some("", self.wrong)]
        for what, names in (("missing", self.missing), ("not in the list", self.extra),
                            ("checksum differs", self.mismatching), ("not a file or directory", self.odd)):
            parts.append(_some(f"{what}: ", [shown(name) for name in names]))
        return "; ".join(part for part in parts if part)

    def lists(self) -> dict[str, list[str]]:
        """For JSON and the page: the names by the kind of problem, as os.fsdecode gives them."""
        return {"list": list(self.wrong),
                **{what: [os.fsdecode(name) for name in getattr(self, what)]
                   for what in ("missing", "extra", "mismatching", "odd")}}


def _some(before: str, names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return before + ", ".join(names[:_NAMED]) + more


def verify(folder: bytes, list_name: bytes, progress: Callable[[int], None] = lambda count: None) -> Comparison:
    """Compare a folder with the list in it. progress gets the size of each piece read, and may raise. OSError if an
    existing file cannot be read."""
    comparison = Comparison()
    listed = _read_list(folder, list_name, comparison)
    for name, kind in walk(folder):
        if stat.S_ISDIR(kind):
            continue
        if not stat.S_ISREG(kind):
            comparison.odd.append(name)
            continue
        digest = digest_of(os.path.join(folder, name), progress)
        comparison.digests[name] = digest
        if name == list_name and name not in listed.digests:
            continue
        if name not in listed.digests:
            if listed.digests:  # without a valid list, no file is extra
                comparison.extra.append(name)
        elif listed.digests[name] != digest:
            comparison.mismatching.append(name)
    there = comparison.digests.keys() | set(comparison.odd)
    comparison.missing += [name for name in listed.digests if name not in there]
    for names in (comparison.missing, comparison.extra, comparison.mismatching, comparison.odd):
        names.sort()
    return comparison


def _read_list(folder: bytes, name: bytes, comparison: Comparison) -> ChecksumList:
    path = os.path.join(folder, name)
    try:
        st = os.lstat(path)
        if not stat.S_ISREG(st.st_mode):
            comparison.wrong.append(f"the checksum list {shown(name)} is not a file")
            return ChecksumList({})
        if st.st_size > _LARGEST:
            comparison.wrong.append(f"the checksum list {shown(name)} is too large: {st.st_size} bytes")
            return ChecksumList({})
        with open(path, "rb") as file:
            listed = ChecksumList.parse(file.read())
    except (FileNotFoundError, NotADirectoryError):
        comparison.wrong.append(f"no checksum list {shown(name)}")
        return ChecksumList({})
    comparison.wrong += [f"{shown(name)}: {line}" for line in listed.bad]
    if not listed.digests and not listed.bad:
        comparison.wrong.append(f"the checksum list {shown(name)} is empty")
    return listed


def walk(folder: bytes, below: bytes = b"") -> Iterator[tuple[bytes, int]]:
    """Yield the paths below a folder, each with its mode: sorted, a directory before its content. Follows no link."""
    pending = [below]
    while pending:
        here = pending.pop()
        with os.scandir(os.path.join(folder, here) if here else folder) as entries:
            found = sorted((entry.name, entry.stat(follow_symlinks=False).st_mode) for entry in entries)
        deeper = []
        for name, mode in found:
            path = here + b"/" + name if here else name
            yield path, mode
            if stat.S_ISDIR(mode):
                deeper.append(path)
        pending += reversed(deeper)


def digest_of(path: bytes, progress: Callable[[int], None] = lambda count: None) -> str:
    """The SHA-256 of a file, in hex; a link is not followed."""
    digest = hashlib.sha256()
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, "rb", buffering=0) as file:
        while piece := file.read(PIECE):
            digest.update(piece)
            progress(len(piece))
    return digest.hexdigest()
