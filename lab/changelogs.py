"""Changelog records for tests: any that hypothesis can generate, and a few fixed ones with hostile names."""

from __future__ import annotations

import io

from hypothesis import strategies as st

from gsync.base.model import ROOT_GFID, Gfid
from gsync.changelog import records as r
from gsync.changelog.records import CREATIONS, ENTRY_FOPS, META_FOPS, REMOVALS, Data, Entry, Fop, Meta

gfids = st.binary(min_size=16, max_size=16)
# Plain bytes, and names made of the format's own parts.
_tricky = st.sampled_from([b"D", b"E", b"M", b"\n", b"\r", b"%", b"-", b"\xff", b"00000000-0000-0000-0000-0000000000"])
bnames = st.one_of(
    st.binary(min_size=1, max_size=255).map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"_")),
    st.lists(_tricky, min_size=1, max_size=8).map(b"".join).map(lambda name: name[:255]),
).filter(lambda name: name not in (b".", b".."))
names = st.tuples(gfids, bnames)
ids = st.integers(0, 2**32 - 1)


def _entries(fop: Fop) -> st.SearchStrategy[Entry]:
    count = 2 if fop is Fop.RENAME else 1
    some_names = st.lists(names, min_size=count, max_size=count).map(tuple)
    mode = uid = gid = ids if fop in CREATIONS else st.just(0)
    path = st.none() | st.lists(bnames, min_size=1, max_size=3).map(b"/".join) if fop in REMOVALS else st.none()
    return st.builds(Entry, st.just(fop), gfids, some_names, mode, uid, gid, path)


entries = st.sampled_from(sorted(ENTRY_FOPS)).flatmap(_entries)
records = st.one_of(st.builds(Data, gfids), st.builds(Meta, st.sampled_from(sorted(META_FOPS)), gfids), entries)


def gfid(number: int) -> Gfid:
    return number.to_bytes(16, "big")


# One record of each shape.
SAMPLE: list[r.Record] = [
    Entry(Fop.MKDIR, gfid(7), ((ROOT_GFID, b"dir\n1"),), 0o40755, 0, 0),
    Entry(Fop.CREATE, gfid(8), ((gfid(7), b"hello world"),), 0o100644, 1000, 1000),
    Data(gfid(8)),
    Meta(Fop.SETATTR, gfid(8)),
    Entry(Fop.RENAME, gfid(8), ((gfid(7), b"hello world"), (ROOT_GFID, b"-\xff\r%20\\"))),
    Entry(Fop.LINK, gfid(8), ((gfid(7), b"x" * 255),)),
    Entry(Fop.UNLINK, gfid(8), ((gfid(7), b"x" * 255),), path=b"dir\n1/" + b"x" * 255),
    Entry(Fop.UNLINK, gfid(8), ((ROOT_GFID, b"-\xff\r%20\\"),)),
]


def changelog(some: list[r.Record]) -> bytes:
    """A whole changelog as bytes."""
    return r.HEADER + b"".join(map(r.encode, some))


def read_all(data: bytes) -> list[r.Record | r.Problem]:
    return list(r.read_records(io.BytesIO(data)))
