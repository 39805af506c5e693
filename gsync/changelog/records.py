"""The records of a changelog, read and written: GlusterFS's ascii encoding, versions 1.1 and 1.2. Pure.

The reader skips and reports a record that it cannot read (unknown type or fop, damage) and resumes at the next whole
known record that begins right after a NUL. It cannot mistake a name for one, since records begin with 37 bytes and a
NUL but names with "<gfid>/"; inside a skipped record, a captured path of that very form could be. An unreadable rest of
the file is reported as torn if it begins like a record; everything before it is kept.
"""

from __future__ import annotations

import re
from binascii import unhexlify
from collections.abc import Iterator
from enum import Enum, IntEnum
from typing import BinaryIO, NamedTuple, TypeAlias

from gsync.base.model import Gfid, Name, check_bname, gfid_str

HEADER = b"GlusterFS Changelog | version: v1.2 | encoding : 2\n"
_BLOCK = 1 << 16  # small: the values of a part are gone before the garbage collector looks at them often


class Fop(IntEnum):
    """The operations that changelogs record, by GlusterFS's numbers."""

    MKNOD = 3
    MKDIR = 4
    UNLINK = 5
    RMDIR = 6
    SYMLINK = 7
    RENAME = 8
    LINK = 9
    SETXATTR = 17
    REMOVEXATTR = 19
    CREATE = 23
    XATTROP = 33
    FXATTROP = 34
    FSETXATTR = 36
    SETATTR = 38
    FSETATTR = 39
    FREMOVEXATTR = 45


CREATIONS = frozenset({Fop.MKNOD, Fop.MKDIR, Fop.CREATE})  # their records tell mode, uid, gid
REMOVALS = frozenset({Fop.UNLINK, Fop.RMDIR})  # their records may tell the path
ENTRY_FOPS = CREATIONS | REMOVALS | {Fop.SYMLINK, Fop.RENAME, Fop.LINK}
META_FOPS = frozenset(Fop) - ENTRY_FOPS


class Entry(NamedTuple):
    """An E record: something happened to these names (RENAME: old and new) of gfid.

    mode (with type bits), uid and gid are told by CREATIONS only, path (relative to the brick) by REMOVALS only,
    and there it is optional.
    """

    fop: Fop
    gfid: Gfid
    names: tuple[Name, ...]
    mode: int = 0
    uid: int = 0
    gid: int = 0
    path: bytes | None = None


class Data(NamedTuple):
    """A D record: contents changed."""

    gfid: Gfid


class Meta(NamedTuple):
    """An M record: attributes, xattrs or ACLs changed. fop is a plain int where it is not one of META_FOPS."""

    fop: int
    gfid: Gfid


Record: TypeAlias = Entry | Data | Meta


class ProblemKind(Enum):
    HEADER = "no changelog that can be read"
    TORN = "torn record at the end"
    UNKNOWN_FOP = "unknown fop"
    UNKNOWN_RECORD = "unreadable bytes"


class Problem(NamedTuple):
    """Bytes of a changelog that are not what they should be. All but M records of an unknown fop are skipped."""

    kind: ProblemKind
    offset: int
    size: int
    detail: str

    def __str__(self) -> str:
        return f"{self.kind.value} at byte {self.offset}, {self.size} bytes: {self.detail}"


class Changes(NamedTuple):
    """What a part of a changelog says to look at: names and gfids, in the order of the records."""

    entries: list[tuple[Fop, Gfid, tuple[Name, ...]]]
    data: list[Gfid]
    meta: list[Gfid]
    problems: list[Problem]


def encode(record: Record) -> bytes:
    """The bytes of a record in version 1.2; ValueError for one that could not be read again."""
    gfid = _text(record.gfid)
    if isinstance(record, Data):
        return b"D%s\0" % gfid
    if isinstance(record, Meta):
        if record.fop not in META_FOPS:
            raise ValueError(f"not a metadata fop: {record.fop}")
        return b"M%s\0%d\0" % (gfid, record.fop)
    fop = record.fop
    if fop not in ENTRY_FOPS or len(record.names) != (2 if fop == Fop.RENAME else 1):
        raise ValueError(f"not an entry record: {record}")
    parts = [b"E%s\0%d" % (gfid, fop)]
    if fop in CREATIONS:
        if min(record.mode, record.uid, record.gid) < 0:
            raise ValueError(f"negative number: {record}")
        parts.append(b"%d\0%d\0%d" % (record.mode, record.uid, record.gid))
    parts += (b"%s/%s" % (_text(pargfid), check_bname(bname)) for pargfid, bname in record.names)
    if fop in REMOVALS:
        path = record.path
        if path == b"" or (path and b"\0" in path):
            raise ValueError(f"not a path: {path!r}")
        parts.append(path or b"\0")
    parts.append(b"")
    return b"\0".join(parts)


def read_changes(file: BinaryIO) -> Iterator[Changes]:
    """What a changelog says to look at, in parts of bounded size. The fast way: for batches."""
    scan = _Scan(file)
    for matches in scan.blocks():
        gfids = _Gfids()
        changes = Changes([], [], [], [])
        entries, data, meta, _ = changes
        for m in matches:
            shape = m.lastindex
            if shape == _DATA:
                data.append(gfids[m[1]])
            elif shape == _META:
                meta.append(gfids[m[2]])
                if m[3] in _LENGTH_FOPS:
                    data.append(gfids[m[2]])
                if m[3] not in _META_FOPS:
                    scan.unknown_meta(m)
            elif shape == _PLAIN:
                gfid, creation, fop, pargfid, bname = m.group(4, 5, 9, 10, 11)
                entries.append((_FOPS[creation or fop], gfids[gfid], ((gfids[pargfid], bname),)))
            elif shape == _RENAME:
                gfid, pargfid, bname, new_pargfid, new_bname = m.group(4, 12, 13, 14, 15)
                names = ((gfids[pargfid], bname), (gfids[new_pargfid], new_bname))
                entries.append((Fop.RENAME, gfids[gfid], names))
            else:
                gfid, fop, pargfid, bname = m.group(4, 16, 17, 18)
                entries.append((_FOPS[fop], gfids[gfid], ((gfids[pargfid], bname),)))
        changes.problems.extend(scan.take_problems())
        yield changes
    if problems := scan.take_problems():
        yield Changes([], [], [], problems)


def read_records(file: BinaryIO, block: int = _BLOCK) -> Iterator[Record | Problem]:
    """Everything that a changelog holds, with what cannot be read in its place. block: bytes read at a time."""
    scan = _Scan(file, block)
    for matches in scan.blocks():
        gfids = _Gfids()
        for m in matches:
            yield from scan.take_problems()
            yield _record(m, gfids)
            if m.lastindex == _META and m[3] not in _META_FOPS:
                scan.unknown_meta(m)
    yield from scan.take_problems()


def sound_end(file: BinaryIO) -> int:
    """Where the last whole record of a changelog ends; 0 when it holds none."""
    scan = _Scan(file)
    end = 0
    for matches in scan.blocks():
        for m in matches:
            end = scan.base + m.end()
    return end


# The regular expressions. The last group that took part tells the shape of a record.
_DATA, _META, _PLAIN, _RENAME = 1, 3, 11, 15
_UUID = rb"([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"
_NAME = _UUID + rb"/([^\0/]+)\0"


def _pattern(path_field: bytes) -> re.Pattern[bytes]:
    return re.compile(
        rb"(?:\A|(?<=\0))(?:"
        rb"D" + _UUID + rb"\0"  # group 1
        rb"|M" + _UUID + rb"\0(\d{1,9})\0"  # 2, 3
        rb"|E" + _UUID + rb"\0(?:"  # 4
        rb"(?:(3|4|23)\0(\d{1,10})\0(\d{1,10})\0(\d{1,10})|(7|9))\0" + _NAME +  # 5 to 8, 9, 10 and 11
        rb"|8\0" + _NAME + _NAME +  # 12 to 15
        rb"|(5|6)\0" + _NAME + path_field +  # 16, 17 and 18, 19
        rb"))"
    )  # fmt: skip


_PATTERNS = {b"1": _pattern(rb""), b"2": _pattern(rb"(?:\0\0|([^\0]+)\0)")}  # by the minor version
_HEADER = re.compile(rb"GlusterFS Changelog \| version: v(\d+)\.(\d+) \| encoding : (\d)\n")
_HEAD = re.compile(rb"([EM])" + _UUID + rb"\0(\d{1,9})\0")
_FOPS = {b"%d" % fop: fop for fop in Fop}
_META_FOPS = {b"%d" % fop for fop in META_FOPS}
_LENGTH_FOPS = {b"%d" % fop for fop in (Fop.XATTROP, Fop.FXATTROP)}  # recorded where a sharded file changes its length

_LONGEST_RECORD = 1 << 16  # longer than any real one: a path of 64 KiB


def _text(gfid: Gfid) -> bytes:
    if len(gfid) != 16:
        raise ValueError(f"not a gfid: {gfid!r}")
    return gfid_str(gfid).encode()


class _Gfids(dict[bytes, Gfid]):
    """Gfids by their text. They come again and again: of 3 records of a new file 2 repeat its, and all its parent's."""

    def __missing__(self, text: bytes) -> Gfid:
        gfid = self[text] = unhexlify(text.replace(b"-", b""))
        return gfid


def _record(m: re.Match[bytes], gfids: _Gfids) -> Record:
    if m.lastindex == _DATA:
        return Data(gfids[m[1]])
    if m.lastindex == _META:
        return Meta(_FOPS[m[3]] if m[3] in _META_FOPS else int(m[3]), gfids[m[2]])
    gfid = gfids[m[4]]
    if m.lastindex == _RENAME:
        return Entry(Fop.RENAME, gfid, ((gfids[m[12]], m[13]), (gfids[m[14]], m[15])))
    if m[5]:
        return Entry(_FOPS[m[5]], gfid, ((gfids[m[10]], m[11]),), int(m[6]), int(m[7]), int(m[8]))
    if m[9]:
        return Entry(_FOPS[m[9]], gfid, ((gfids[m[10]], m[11]),))
    path = m[19] if m.re.groups == 19 else None
    return Entry(_FOPS[m[16]], gfid, ((gfids[m[17]], m[18]),), path=path)


class _Scan:
    """Finds the records of a changelog, block by block, and notes what is none."""

    def __init__(self, file: BinaryIO, block: int = _BLOCK) -> None:
        self.base = 0  # the offset in the file of the block at hand
        self._file, self._block = file, block
        self._problems: list[Problem] = []
        self._end = 0

    def blocks(self) -> Iterator[Iterator[re.Match[bytes]]]:
        """For each block its records; each must be used up before the next."""
        pattern = self._read_header()
        if pattern is None:
            return
        rest = b""
        while block := self._file.read(self._block):
            block = rest + block
            yield self._matches(pattern, block)
            rest = block[self._end :]
            # What is longer than a record is damage, up to some NUL: it need not be looked at with each block.
            cut = rest.rfind(b"\0", 0, max(0, len(rest) - _LONGEST_RECORD)) + 1
            if cut:
                self._skip(rest[:cut], self._end)
                rest = rest[cut:]
            self.base += self._end + cut
        if rest:
            self._skip(rest, 0, at_end=True)

    def take_problems(self) -> list[Problem]:
        problems, self._problems = self._problems, []
        return problems

    def unknown_meta(self, m: re.Match[bytes]) -> None:
        self._problems.append(_problem(m[0], self.base + m.start()))

    def _read_header(self) -> re.Pattern[bytes] | None:
        header = self._file.readline(len(HEADER) + 8)
        self.base = len(header)
        m = _HEADER.fullmatch(header)
        if m and m[1] == b"1" and m[2] in _PATTERNS and m[3] == b"2":
            return _PATTERNS[m[2]]
        if m:
            problem = Problem(ProblemKind.HEADER, 0, len(header), f"version v{int(m[1])}.{int(m[2])}, "
                              f"encoding {int(m[3])} (known: v1.1 and v1.2, encoding 2)")
        elif HEADER.startswith(header):
            problem = Problem(ProblemKind.TORN, 0, len(header), "header")
        else:
            problem = Problem(ProblemKind.HEADER, 0, len(header), f"begins with {header[:32]!r}")
        self._problems.append(problem)
        return None

    def _matches(self, pattern: re.Pattern[bytes], block: bytes) -> Iterator[re.Match[bytes]]:
        self._end = 0
        for m in pattern.finditer(block):
            start, end = m.span()
            if start != self._end:
                self._skip(block[self._end : start], self._end)
            self._end = end
            yield m

    def _skip(self, skipped: bytes, start: int, at_end: bool = False) -> None:
        self._problems.append(_problem(skipped, self.base + start, at_end))


def _problem(piece: bytes, offset: int, at_end: bool = False) -> Problem:
    head = _HEAD.match(piece)
    if head:
        known = ENTRY_FOPS if head[1] == b"E" else META_FOPS
        fop = int(head[3])
        if fop not in known:
            detail = f"{head[1].decode()} record of {head[2].decode()} with fop {fop}"
            return Problem(ProblemKind.UNKNOWN_FOP, offset, len(piece), detail)
    torn = at_end and piece[:1] in (b"D", b"M", b"E")
    kind = ProblemKind.TORN if torn else ProblemKind.UNKNOWN_RECORD
    return Problem(kind, offset, len(piece), f"begins with {piece[:48]!r}")
